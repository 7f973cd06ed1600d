//! Patterns of Oniguruma, which the Hugging Face library runs, in the syntax of `fancy-regex`.
//!
//! What means the same in both is copied; what means something else is rewritten; the rest is refused
//! by name. Rewritten are:
//!
//! ```text
//! x{2,3}+  x{2}?    a quantifier on a quantifier; elsewhere possessive and lazy
//! ^  $              at every line, and `$` not after the last line break alone
//! (?m)              the dot takes line breaks
//! (?i)a|b           an option holds up to the end of its group, alternatives included
//! \w  \b            letters as Oniguruma counts them: without the joiners
//! [a-c~~&-]         every symbol in a class stands for itself
//! ( )               groups are not remembered: only the whole match is asked for
//! ```
//!
//! Not supported: back references, calls, conditions, absent operators, POSIX brackets, intersections
//! of classes, extended layout (`x`). Source: Oniguruma's `doc/RE`, and the library itself, which the
//! tests were recorded from.

use std::iter::Peekable;
use std::str::CharIndices;

/// A construct that is not supported, and the byte where it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unsupported {
    pub(super) at: usize,
    pub(super) what: String,
}

/// What `\w` matches: the superscripts and fractions of Latin-1 too, and no others.
const WORD: &str = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u{B2}\u{B3}\u{B9}\u{BC}-\u{BE}";

/// What `\w` matches inside of a class: not those.
const WORD_IN_CLASS: &str = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}";

/// The pattern in the other syntax.
pub(super) fn translate(pattern: &str) -> Result<String, Unsupported> {
    let mut translator = Translator {
        pattern,
        chars: pattern.char_indices().peekable(),
        out: String::with_capacity(2 * pattern.len()),
        groups: vec![Group::default()],
        atom: None,
    };
    translator.run()?;
    Ok(translator.out)
}

/// An open group; the first is the whole pattern.
#[derive(Default)]
struct Group {
    start: usize,   // in the output
    options: usize, // groups that options opened and that end with this one
    is_look: bool,  // a look-around, which nothing may repeat
}

struct Translator<'a> {
    pattern: &'a str,
    chars: Peekable<CharIndices<'a>>,
    out: String,
    groups: Vec<Group>,
    atom: Option<usize>, // where in the output the last thing starts that a quantifier may follow
}

impl Translator<'_> {
    fn run(&mut self) -> Result<(), Unsupported> {
        while let Some((at, c)) = self.chars.next() {
            match c {
                '\\' => self.escape(at)?,
                '[' => {
                    let start = self.out.len();
                    self.class(at, 0)?;
                    self.atom = Some(start);
                }
                '(' => self.open(at)?,
                ')' => self.close(at)?,
                '|' => {
                    self.out.push('|');
                    self.atom = None;
                }
                '.' => self.single("."),
                '^' => self.assertion(r"(?:\A|(?<=\n)(?!\z))"),
                '$' => self.assertion(r"(?=\n|\z)"),
                '*' | '+' | '?' => self.quantifier(at, c)?,
                '{' => self.interval(at)?,
                _ => self.literal(c),
            }
        }
        match self.groups.len() {
            1 => {
                self.end_options();
                Ok(())
            }
            _ => self.refuse(self.pattern.len(), "an open group without its end"),
        }
    }

    fn refuse<T>(&self, at: usize, what: impl Into<String>) -> Result<T, Unsupported> {
        let what = what.into();
        Err(Unsupported { at, what })
    }

    fn peek(&mut self) -> Option<char> {
        self.chars.peek().map(|(_, c)| *c)
    }

    /// Takes the next character if it is `c`.
    fn take(&mut self, c: char) -> bool {
        self.chars.next_if(|(_, next)| *next == c).is_some()
    }

    fn single(&mut self, translated: &str) {
        self.atom = Some(self.out.len());
        self.out.push_str(translated);
    }

    fn assertion(&mut self, translated: &str) {
        self.out.push_str(translated);
        self.atom = None;
    }

    fn literal(&mut self, c: char) {
        self.atom = Some(self.out.len());
        if r"\.+*?()|[]{}^$".contains(c) {
            self.out.push('\\');
        }
        self.out.push(c);
    }

    fn open(&mut self, at: usize) -> Result<(), Unsupported> {
        let mut group = Group {
            start: self.out.len(),
            ..Group::default()
        };
        self.atom = None;
        if !self.take('?') {
            self.out.push_str("(?:");
            self.groups.push(group);
            return Ok(());
        }
        match self.peek() {
            Some(c @ (':' | '>' | '=' | '!')) => {
                self.chars.next();
                self.out.push_str("(?");
                self.out.push(c);
                group.is_look = matches!(c, '=' | '!');
            }
            Some('<') => {
                self.chars.next();
                match self.peek() {
                    Some(c @ ('=' | '!')) => {
                        self.chars.next();
                        self.out.push_str("(?<");
                        self.out.push(c);
                        group.is_look = true;
                    }
                    _ => return self.refuse(at, "a named group"),
                }
            }
            Some('#') => {
                if !self.chars.by_ref().any(|(_, c)| c == ')') {
                    return self.refuse(at, "a comment without its end");
                }
                return Ok(());
            }
            Some(c) if c.is_ascii_alphabetic() || c == '-' => return self.options(at, group),
            Some(c) => return self.refuse(at, format!("the group (?{c}")),
            None => return self.refuse(at, "an open group without its end"),
        }
        self.groups.push(group);
        Ok(())
    }

    /// `(?i:...)` or `(?i)`.
    fn options(&mut self, at: usize, group: Group) -> Result<(), Unsupported> {
        self.out.push_str("(?");
        loop {
            match self.chars.next() {
                Some((_, c @ ('i' | '-'))) => self.out.push(c),
                Some((_, 'm')) => self.out.push('s'),
                Some((_, ':')) => {
                    self.out.push(':');
                    self.groups.push(group);
                    return Ok(());
                }
                Some((_, ')')) => {
                    self.out.push(':');
                    if let Some(group) = self.groups.last_mut() {
                        group.options += 1;
                    }
                    return Ok(());
                }
                Some((_, c)) => return self.refuse(at, format!("the option {c:?}")),
                None => return self.refuse(at, "an open group without its end"),
            }
        }
    }

    fn close(&mut self, at: usize) -> Result<(), Unsupported> {
        if self.groups.len() == 1 {
            return self.refuse(at, "the end of a group that is not open");
        }
        self.end_options();
        self.out.push(')');
        if let Some(group) = self.groups.pop() {
            self.atom = (!group.is_look).then_some(group.start);
        }
        Ok(())
    }

    /// Ends the groups that options opened in the innermost group.
    fn end_options(&mut self) {
        let options = self.groups.last().map_or(0, |group| group.options);
        self.out.extend(std::iter::repeat_n(')', options));
    }

    fn quantifier(&mut self, at: usize, c: char) -> Result<(), Unsupported> {
        if self.atom.take().is_none() {
            return self.refuse(at, format!("the quantifier {c} on nothing that can repeat"));
        }
        self.out.push(c);
        if let Some((_, c)) = self.chars.next_if(|(_, c)| matches!(c, '?' | '+')) {
            self.out.push(c);
        }
        Ok(())
    }

    /// `{n}`, `{n,}`, `{,m}`, `{n,m}`; any other brace stands for itself.
    fn interval(&mut self, at: usize) -> Result<(), Unsupported> {
        let rest = &self.pattern[at + 1..];
        let Some((inner, least, most)) = rest.find('}').and_then(|end| {
            let inner = &rest[..end];
            let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            let (least, most) = inner.split_once(',').unwrap_or((inner, inner));
            let is_interval = is_number(least) && is_number(most) && (least, most) != ("", "");
            is_interval.then_some((inner, least, most))
        }) else {
            self.literal('{');
            return Ok(());
        };
        let Some(start) = self.atom.take() else {
            return self.refuse(
                at,
                format!("the quantifier {{{inner}}} on nothing that can repeat"),
            );
        };
        for _ in 0..=inner.len() {
            self.chars.next();
        }
        let least = if least.is_empty() { "0" } else { least };
        let is_exact = !inner.contains(',');
        match is_exact {
            true => self.out.push_str(&format!("{{{least}}}")),
            false => self.out.push_str(&format!("{{{least},{most}}}")),
        }
        let after = match self.peek() {
            Some('+') => '+',
            Some('?') if is_exact => '?',
            Some('?') => {
                self.chars.next();
                self.out.push('?');
                return Ok(());
            }
            _ => return Ok(()),
        };
        self.chars.next();
        self.out.insert_str(start, "(?:");
        self.out.push(')');
        self.out.push(after);
        Ok(())
    }

    fn escape(&mut self, at: usize) -> Result<(), Unsupported> {
        let Some((_, c)) = self.chars.next() else {
            return self.refuse(at, "a backslash at the end");
        };
        match c {
            'A' | 'z' => self.assertion(if c == 'A' { r"\A" } else { r"\z" }),
            'Z' => self.assertion(r"(?=\n?\z)"),
            'b' => self.assertion(&format!(
                "(?:(?<=[{WORD}])(?![{WORD}])|(?<![{WORD}])(?=[{WORD}]))"
            )),
            'B' => self.assertion(&format!(
                "(?:(?<=[{WORD}])(?=[{WORD}])|(?<![{WORD}])(?![{WORD}]))"
            )),
            _ => match self.escaped_item(at, c, WORD)? {
                Item::Char(c) => self.literal(c),
                Item::Set(set) => self.single(&format!("[{set}]")),
            },
        }
        Ok(())
    }

    /// What `\c` stands for; `word` is what `\w` does.
    fn escaped_item(&mut self, at: usize, c: char, word: &str) -> Result<Item, Unsupported> {
        let set = |text: &str| Ok(Item::Set(text.to_owned()));
        match c {
            's' | 'S' | 'd' | 'D' => set(&format!("\\{c}")),
            'w' => set(word),
            'W' => set(&format!("[^{word}]")),
            'h' => set("0-9A-Fa-f"),
            'H' => set("[^0-9A-Fa-f]"),
            'p' | 'P' => self.property(at, c == 'P', word),
            'n' => Ok(Item::Char('\n')),
            'r' => Ok(Item::Char('\r')),
            't' => Ok(Item::Char('\t')),
            'f' => Ok(Item::Char('\u{C}')),
            'v' => Ok(Item::Char('\u{B}')),
            'a' => Ok(Item::Char('\u{7}')),
            'e' => Ok(Item::Char('\u{1B}')),
            'x' | 'u' => self.code_point(at, c),
            _ if c.is_ascii_alphanumeric() => self.refuse(at, format!("the escape \\{c}")),
            _ => Ok(Item::Char(c)),
        }
    }

    /// `\x41`, `\x{AC00}`, `\uAC00`.
    fn code_point(&mut self, at: usize, c: char) -> Result<Item, Unsupported> {
        let mut digits = String::new();
        let is_braced = c == 'x' && self.take('{');
        let most = match (c, is_braced) {
            ('x', false) => 2,
            ('x', true) => 8,
            _ => 4,
        };
        while digits.len() < most
            && let Some((_, digit)) = self.chars.next_if(|(_, c)| c.is_ascii_hexdigit())
        {
            digits.push(digit);
        }
        let is_whole = match is_braced {
            true => self.take('}') && !digits.is_empty(),
            false => digits.len() == most,
        };
        let code = u32::from_str_radix(&digits, 16).ok().filter(|_| is_whole);
        // Two digits above ASCII are a byte and not a character.
        let is_byte = |code: u32| most == 2 && code > 0x7F;
        match code.filter(|code| !is_byte(*code)).and_then(char::from_u32) {
            Some(c) => Ok(Item::Char(c)),
            None => self.refuse(at, format!("the character \\{c}{digits}")),
        }
    }

    /// `\p{Name}`, `\P{Name}`, `\p{^Name}`.
    fn property(&mut self, at: usize, is_negated: bool, word: &str) -> Result<Item, Unsupported> {
        let mut name = String::new();
        if self.take('{') {
            while let Some((_, c)) = self.chars.next_if(|(_, c)| *c != '}') {
                name.push(c);
            }
        }
        let bare = name.strip_prefix('^').unwrap_or(&name);
        let is_negated = is_negated != name.starts_with('^');
        let is_name = |c: char| c.is_ascii_alphanumeric() || " _-".contains(c);
        if !self.take('}') || bare.is_empty() || !bare.chars().all(is_name) {
            return self.refuse(at, format!("the property {name:?}"));
        }
        let key: String = bare
            .chars()
            .filter(|c| c.is_ascii_alphanumeric())
            .map(|c| c.to_ascii_lowercase())
            .collect();
        // Names that Oniguruma takes from POSIX and the other library from Unicode.
        let set = match key.as_str() {
            "alpha" => r"\p{Alphabetic}".to_owned(),
            "digit" => r"\p{Nd}".to_owned(),
            "lower" => r"\p{Lowercase}".to_owned(),
            "upper" => r"\p{Uppercase}".to_owned(),
            "space" => r"\s".to_owned(),
            "cntrl" => r"\p{Cc}".to_owned(),
            "word" => word.to_owned(),
            "punct" => r"\p{P}".to_owned(),
            "alnum" | "blank" | "graph" | "print" | "xdigit" => {
                return self.refuse(at, format!("the property {name:?}"));
            }
            _ => format!("\\p{{{bare}}}"),
        };
        Ok(Item::Set(match is_negated {
            true => format!("[^{set}]"),
            false => set,
        }))
    }

    /// Everything up to the bracket that closes the class; the opening one has been read.
    fn class(&mut self, at: usize, depth: usize) -> Result<(), Unsupported> {
        if depth == 8 {
            return self.refuse(at, "classes nested more than eight deep");
        }
        self.out.push('[');
        if self.take('^') {
            self.out.push('^');
        }
        let mut is_empty = true;
        let mut low: Option<char> = None; // a character that may begin a range
        loop {
            let Some((at, c)) = self.chars.next() else {
                return self.refuse(at, "a class without its end");
            };
            match c {
                ']' if is_empty => return self.refuse(at, "a class that begins with its end"),
                ']' => break,
                '[' if self.peek() == Some(':') => {
                    return self.refuse(at, "a POSIX bracket");
                }
                '[' => {
                    self.class(at, depth + 1)?;
                    low = None;
                }
                '&' if self.peek() == Some('&') => {
                    return self.refuse(at, "an intersection of classes");
                }
                '-' if low.is_some() && !matches!(self.peek(), Some(']') | None) => {
                    let high = match self.chars.next() {
                        Some((at, '\\')) => self.class_escape(at)?,
                        Some((_, '[')) | None => return self.refuse(at, "a range to a class"),
                        Some((_, c)) => Item::Char(c),
                    };
                    match high {
                        Item::Char(high) => {
                            self.out.push('-');
                            self.class_literal(high);
                        }
                        Item::Set(_) => return self.refuse(at, "a range to a class"),
                    }
                    low = None;
                    if self.peek() == Some('-') {
                        return self.refuse(at, "a range that goes on from a range");
                    }
                }
                '\\' => match self.class_escape(at)? {
                    Item::Char(c) => {
                        self.class_literal(c);
                        low = Some(c);
                    }
                    Item::Set(set) => {
                        self.out.push_str(&set);
                        low = None;
                    }
                },
                _ => {
                    self.class_literal(c);
                    low = Some(c);
                }
            }
            is_empty = false;
        }
        self.out.push(']');
        Ok(())
    }

    fn class_escape(&mut self, at: usize) -> Result<Item, Unsupported> {
        match self.chars.next() {
            Some((_, 'b')) => Ok(Item::Char('\u{8}')),
            Some((_, c)) => self.escaped_item(at, c, WORD_IN_CLASS),
            None => self.refuse(at, "a backslash at the end"),
        }
    }

    /// A character of a class; symbols by their numbers, so that none is an operator.
    fn class_literal(&mut self, c: char) {
        match c.is_ascii() && !c.is_ascii_alphanumeric() {
            true => self.out.push_str(&format!("\\x{{{:X}}}", u32::from(c))),
            false => self.out.push(c),
        }
    }
}

/// A character, or the inside of a class.
enum Item {
    Char(char),
    Set(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use fancy_regex::Regex;

    fn pieces(pattern: &str, text: &str) -> Vec<String> {
        let translated = translate(pattern).unwrap();
        let regex = Regex::new(&translated).unwrap_or_else(|error| panic!("{translated}: {error}"));
        let found = regex.find_iter(text).map(|found| found.unwrap().as_str());
        found.map(str::to_owned).collect()
    }

    fn refused(pattern: &str) -> String {
        let Unsupported { at, what } = translate(pattern).unwrap_err();
        format!("{what} at {at}")
    }

    #[test]
    fn a_quantifier_after_an_interval_repeats_the_interval() {
        assert_eq!(pieces("[0-9]{1,3}+", "12345"), ["12345"]);
        assert_eq!(pieces("a{2}?", "aaa"), ["aa", ""]);
        assert_eq!(pieces("a{2,3}?", "aaa"), ["aa"]);
        assert_eq!(pieces("(?:ab){1,2}+c", "ababababc"), ["ababababc"]);
        assert_eq!(pieces("a{,2}b", "aaab"), ["aab"]);
        // Others are possessive and lazy in both.
        assert!(pieces("a++a", "aaa").is_empty());
        assert_eq!(pieces("a+?", "aa"), ["a", "a"]);
    }

    #[test]
    fn a_brace_that_is_no_interval_stands_for_itself() {
        assert_eq!(pieces("a{x}", "a{x}"), ["a{x}"]);
        assert_eq!(pieces("{}", "{}"), ["{}"]);
        assert_eq!(pieces("a{,}", "a{,}"), ["a{,}"]);
    }

    #[test]
    fn an_option_holds_to_the_end_of_its_group() {
        assert_eq!(pieces("x(?i)a|b", "xB xA b"), ["xB", "xA"]);
        assert_eq!(pieces("(?:x(?i)a)y", "xAy xAY"), ["xAy"]);
        assert_eq!(pieces("(?i:'S)|b", "'s B"), ["'s"]);
        assert_eq!(pieces("(?m).", "\n"), ["\n"]);
        assert_eq!(pieces(".", "\n"), [""; 0]);
    }

    #[test]
    fn anchors_hold_at_lines() {
        assert_eq!(pieces("^a", "a\na\n"), ["a", "a"]);
        assert_eq!(pieces(r"\s+$", " \n x  "), [" ", "  "]);
        assert_eq!(pieces(r"a\Z", "a\na\n"), ["a"]);
    }

    #[test]
    fn symbols_of_a_class_stand_for_themselves() {
        let pattern = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##;
        assert_eq!(
            pieces(pattern, "~a-b [c]d&e"),
            ["~a", "-b", "[c", "]d", "&e"]
        );
        assert_eq!(pieces("[a~~b-]+", "a~-b"), ["a~-b"]);
        assert_eq!(pieces(r"[\w\-.]+", "a-b.c d"), ["a-b.c", "d"]);
        assert_eq!(pieces(r"[^\s\p{L}\p{N}]+", "ab, .1"), [",", "."]);
        assert_eq!(
            pieces(r"[\x{AC00}-\uD7A3]+", "a\u{AC00}\u{D55C}"),
            ["\u{AC00}\u{D55C}"]
        );
    }

    #[test]
    fn words_are_counted_without_joiners() {
        assert_eq!(
            pieces(r"\w+", "a\u{200D}b\u{301}_1\u{B2}\u{9F4}"),
            ["a", "b\u{301}_1\u{B2}"]
        );
        assert_eq!(pieces(r"[\w-]+", "a-\u{B2}"), ["a-"]);
        assert_eq!(pieces(r"\bb", "ab b\u{200D}b"), ["b", "b"]);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        assert_eq!(refused(r"(a)\1"), r"the escape \1 at 3");
        assert_eq!(refused(r"a\K"), r"the escape \K at 1");
        assert_eq!(refused("(?<name>a)"), "a named group at 0");
        assert_eq!(refused("(?(1)a)"), "the group (?( at 0");
        assert_eq!(refused("(?x)a"), "the option 'x' at 0");
        assert_eq!(refused("[[:alpha:]]"), "a POSIX bracket at 1");
        assert_eq!(refused("[a&&b]"), "an intersection of classes at 2");
        assert_eq!(
            refused("a**"),
            "the quantifier * on nothing that can repeat at 2"
        );
        assert_eq!(refused("(a"), "an open group without its end at 2");
        assert_eq!(refused("a)"), "the end of a group that is not open at 1");
        assert_eq!(refused("[a"), "a class without its end at 0");
        assert_eq!(refused(r"\p{L"), r#"the property "L" at 0"#);
        assert_eq!(refused(r"\xFF"), r"the character \xFF at 0");
        assert_eq!(
            refused(&"[a".repeat(9)),
            "classes nested more than eight deep at 16"
        );
    }
}
