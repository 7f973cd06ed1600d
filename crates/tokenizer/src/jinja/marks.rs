//! Marks in the source of a template where the engine makes strings and lists: filters that pay for them
//! (`bounds`).
//!
//! ```text
//! a + b            a|_sum + b|_sum
//! a ~ b            a|_text ~ b|_text
//! a * b            (a)|_times(b)
//! a[1:]            (a|_sum)[1:]
//! {% for .. %}     {% for .. %}{% if N|_spend %}{% endif %}    N: bytes of text until {% endfor %};
//!                  so for macros, calls, blocks, and whatever reads the template again
//! ```
//!
//! Every operand is marked where it ends, so a chain of operators pays for all it joins, whatever binds first.
//! Filters and not functions: a template cannot give their names to something else. Nothing is written on a
//! new line, so errors name the lines of the source. What is not understood stays as it is; the engine tells
//! what is wrong with it.

/// Words that are operators after an operand; before one they are names like any other, but for `not`.
const KEYWORDS: [&str; 7] = ["and", "or", "not", "in", "if", "else", "is"];

/// The source with its marks.
pub(super) fn mark(source: &str) -> String {
    let mut edits = Vec::new();
    let mut bodies: Vec<Body> = Vec::new();
    let mut text_bytes = 0;
    let mut at = 0;
    while let Some((start, kind)) = next_tag(source, at) {
        text_bytes += start - at;
        let Some(end) = end_of_tag(source, start, kind, &mut edits, &mut bodies, text_bytes) else {
            break;
        };
        // The text between `raw` and `endraw` is text.
        at = match kind == Kind::Block && first_word(&source[start + 2..]) == "raw" {
            true => {
                let raw = end_of_raw(source, end);
                text_bytes += raw - end;
                raw
            }
            false => end,
        };
    }
    for body in bodies {
        body.mark(text_bytes + source.len() - at, source, &mut edits);
    }
    apply(source, edits)
}

/// What opens a tag.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Variable,
    Block,
    Comment,
}

/// What is written more than once for one time that it stands in the source.
struct Body {
    after: usize, // the end of its tag
    text_before: usize,
}

impl Body {
    fn mark(&self, text_bytes: usize, source: &str, edits: &mut Vec<Edit>) {
        let bytes = text_bytes - self.text_before;
        // What the end of the tag does to the white space behind it, the end of the mark does.
        let control = match source.as_bytes().get(self.after.wrapping_sub(3)) {
            Some(b'-') => "-",
            Some(b'+') => "+",
            _ => "",
        };
        let mark = format!("{{% if {bytes}|_spend %}}{{% endif {control}%}}");
        edits.push(Edit::insert(self.after, mark));
    }
}

/// A piece of the source that becomes another.
struct Edit {
    at: usize,
    len: usize,
    order: u8, // among those of one place
    text: String,
}

impl Edit {
    fn insert(at: usize, text: impl Into<String>) -> Edit {
        Edit {
            at,
            len: 0,
            order: 1,
            text: text.into(),
        }
    }
}

fn apply(source: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| (edit.at, edit.order));
    let mut out = String::with_capacity(source.len() + 16 * edits.len());
    let mut at = 0;
    for edit in edits {
        out.push_str(&source[at..edit.at]);
        out.push_str(&edit.text);
        at = edit.at + edit.len;
    }
    out.push_str(&source[at..]);
    out
}

/// The next tag from `at` on.
fn next_tag(source: &str, at: usize) -> Option<(usize, Kind)> {
    let bytes = source.as_bytes();
    let mut at = at;
    while let Some(brace) = source[at..].find('{') {
        let start = at + brace;
        let kind = match bytes.get(start + 1) {
            Some(b'{') => Some(Kind::Variable),
            Some(b'%') => Some(Kind::Block),
            Some(b'#') => Some(Kind::Comment),
            _ => None,
        };
        if let Some(kind) = kind {
            return Some((start, kind));
        }
        at = start + 1;
    }
    None
}

/// The first word of a tag, from behind what opens it.
fn first_word(tag: &str) -> &str {
    word(tag.trim_start_matches(['-', '+']).trim_start())
}

/// The word that a text begins with, or nothing.
fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The start of the tag `endraw`.
fn end_of_raw(source: &str, at: usize) -> usize {
    let mut at = at;
    while let Some(found) = source[at..].find("{%") {
        at += found;
        if first_word(&source[at + 2..]) == "endraw" {
            return at;
        }
        at += 2;
    }
    source.len()
}

/// Reads a tag, marks what is in it, and returns where it ends; None where it does not.
fn end_of_tag(
    source: &str,
    start: usize,
    kind: Kind,
    edits: &mut Vec<Edit>,
    bodies: &mut Vec<Body>,
    text_bytes: usize,
) -> Option<usize> {
    if kind == Kind::Comment {
        let inside = start + 2;
        return Some(inside + source[inside..].find("#}")? + 2);
    }
    let close = if kind == Kind::Block { "%}" } else { "}}" };
    let mut inside = Tag {
        source,
        at: start + 2,
        close,
        edits,
        depth: 0,
    };
    if matches!(source.as_bytes().get(inside.at), Some(b'-' | b'+')) {
        inside.at += 1;
    }
    let mut first = "";
    if kind == Kind::Block {
        inside.skip_space();
        first = word(&source[inside.at..]);
        inside.at += first.len();
    }
    inside.expressions(None);
    let end = inside.at;
    if !inside.is_at_close() {
        return None;
    }
    let end = end + usize::from(matches!(source.as_bytes()[end], b'-' | b'+')) + 2;
    match first {
        "include" | "import" | "from" | "extends" => {
            let whole = Body {
                after: end,
                text_before: 0,
            };
            whole.mark(source.len(), source, edits);
        }
        "for" | "macro" | "call" | "block" => bodies.push(Body {
            after: end,
            text_before: text_bytes,
        }),
        "endfor" | "endmacro" | "endcall" | "endblock" => {
            if let Some(body) = bodies.pop() {
                body.mark(text_bytes, source, edits);
            }
        }
        _ => {}
    }
    Some(end)
}

/// The inside of a tag.
struct Tag<'a> {
    source: &'a str,
    at: usize,
    close: &'static str,
    edits: &'a mut Vec<Edit>,
    depth: usize,
}

/// Deepest nesting of brackets that is looked into; the engine allows less.
const MAX_DEPTH: usize = 500;

impl<'a> Tag<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn word(&self) -> &'a str {
        word(self.rest())
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    /// Whether the tag ends here.
    fn is_at_close(&self) -> bool {
        let rest = self.rest();
        let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
        rest.starts_with(self.close)
    }

    /// Expressions and what stands between them, up to the bracket `end` or the end of the tag. Returns
    /// whether a colon stands among them.
    fn expressions(&mut self, end: Option<char>) -> bool {
        let mut has_colon = false;
        let mut chain: Option<usize> = None; // the start of the operands of * / // %
        let mut before: Option<&'static str> = None; // the mark that the next operand gets
        let mut open_times = false;
        let mut is_after_operand = false;
        self.depth += 1;
        loop {
            self.skip_space();
            let Some(c) = self.peek() else { break };
            if end == Some(c) || end.is_none() && self.is_at_close() {
                break;
            }
            let is_word = c.is_alphabetic() || c == '_';
            let keyword = if is_word { self.word() } else { "" };
            if keyword == "not" || is_after_operand && KEYWORDS.contains(&keyword) {
                self.at += keyword.len();
                if keyword == "not" && is_after_operand {
                    self.skip_space();
                    if self.word() == "in" {
                        self.at += 2;
                    }
                }
                (chain, before, is_after_operand) = (None, None, false);
                continue;
            }
            let is_operand = is_word
                || c.is_ascii_digit()
                || "'\"([{".contains(c)
                || !is_after_operand && self.is_sign();
            if !is_operand {
                // An operator without an operand before it, a comma, a comparison, or nothing known.
                self.at += c.len_utf8();
                has_colon |= c == ':';
                (chain, before, is_after_operand) = (None, None, false);
                continue;
            }
            if is_after_operand {
                // Words of a tag, one after the other.
                (chain, before) = (None, None);
            }
            let start = self.at;
            self.operand();
            let chain_start = *chain.get_or_insert(start);
            let operand_end = self.at;
            self.skip_space();
            let rest = &self.source[self.at..];
            let is_last = end.is_none() && self.is_at_close();
            let (operator, mark) = match rest.as_bytes() {
                _ if is_last => ("", None),
                [b'*', b'*', ..] => ("**", None),
                [b'*', ..] => ("*", None),
                [b'/', b'/', ..] => ("//", None),
                [b'/', ..] => ("/", None),
                [b'%', ..] => ("%", None),
                [b'+', ..] => ("+", Some("|_sum")),
                [b'~', ..] => ("~", Some("|_text")),
                [b'-', ..] => ("-", None),
                _ => ("", None),
            };
            // `+` binds weaker than `~`: what is joined as text is text on both sides.
            let marks = [before, mark.filter(|mark| before != Some(*mark))];
            for mark in marks.into_iter().flatten() {
                self.edits.push(Edit::insert(operand_end, mark));
            }
            if open_times && operator != "**" {
                self.edits.push(Edit::insert(operand_end, ")"));
                open_times = false;
            }
            before = mark;
            match operator {
                "*" => {
                    self.edits.push(Edit {
                        order: 0,
                        ..Edit::insert(chain_start, "(")
                    });
                    self.edits.push(Edit {
                        len: 1,
                        ..Edit::insert(self.at, ")|_times(")
                    });
                    open_times = true;
                }
                "**" | "/" | "//" | "%" => {}
                _ => chain = None,
            }
            self.at += operator.len();
            is_after_operand = operator.is_empty();
        }
        self.depth -= 1;
        has_colon
    }

    /// Whether a sign stands before an operand here.
    fn is_sign(&self) -> bool {
        self.rest().starts_with('-') && !self.is_at_close()
    }

    /// Signs, a value, and what is done with it: attributes, items, calls, filters, tests.
    fn operand(&mut self) {
        self.postfixed();
        loop {
            let end = self.at;
            self.skip_space();
            if self.peek() == Some('|') {
                self.at += 1;
                self.skip_space();
                self.dotted_name();
                self.skip_space_before('(');
                if self.peek() == Some('(') {
                    self.bracket();
                }
            } else if self.word() == "is" {
                self.at += 2;
                self.skip_space();
                if self.word() == "not" {
                    self.at += 3;
                    self.skip_space();
                }
                self.dotted_name();
                let end = self.at;
                self.skip_space();
                let starts = |c: char| c.is_alphanumeric() || "_'\"[{".contains(c);
                let is_argument = self.peek().is_some_and(starts)
                    && !["and", "or", "else", "is"].contains(&self.word());
                match self.peek() {
                    Some('(') => {
                        self.bracket();
                    }
                    _ if is_argument => self.postfixed(),
                    _ => self.at = end,
                }
            } else {
                self.at = end;
                return;
            }
        }
    }

    /// Signs, a value, and its attributes, items and calls.
    fn postfixed(&mut self) {
        while self.is_sign() {
            self.at += 1;
            self.skip_space();
        }
        let start = self.at;
        match self.peek() {
            Some('\'' | '"') => self.string(),
            Some(c) if c.is_ascii_digit() => self.number(),
            Some('(' | '[' | '{') => {
                self.bracket();
            }
            Some(c) if c.is_alphabetic() || c == '_' => self.at += self.word().len(),
            _ => return,
        }
        loop {
            let end = self.at;
            self.skip_space();
            match self.peek() {
                Some('.') => {
                    self.at += 1;
                    self.skip_space();
                    self.at += self.word().len();
                }
                Some('(') => {
                    self.bracket();
                }
                Some('[') => {
                    if self.bracket() {
                        self.edits.push(Edit {
                            order: 0,
                            ..Edit::insert(start, "(")
                        });
                        self.edits.push(Edit::insert(end, "|_sum)"));
                    }
                }
                _ => {
                    self.at = end;
                    return;
                }
            }
        }
    }

    fn skip_space_before(&mut self, c: char) {
        if self.rest().trim_start().starts_with(c) {
            self.skip_space();
        }
    }

    fn dotted_name(&mut self) {
        loop {
            self.at += self.word().len();
            if self.peek() != Some('.') {
                return;
            }
            self.at += 1;
        }
    }

    /// What is in brackets; returns whether a colon stands in them.
    fn bracket(&mut self) -> bool {
        let close = match self.peek() {
            Some('(') => ')',
            Some('[') => ']',
            _ => '}',
        };
        self.at += 1;
        if self.depth > MAX_DEPTH {
            return false;
        }
        let has_colon = self.expressions(Some(close));
        if self.peek() == Some(close) {
            self.at += 1;
        }
        has_colon
    }

    fn string(&mut self) {
        let quote = self.peek();
        let mut chars = self.rest().char_indices().skip(1);
        let mut len = self.rest().len();
        while let Some((at, c)) = chars.next() {
            if c == '\\' {
                chars.next();
            } else if Some(c) == quote {
                len = at + 1;
                break;
            }
        }
        self.at += len;
    }

    fn number(&mut self) {
        let bytes = self.rest().as_bytes();
        let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
        let mut len = 0;
        while let Some(&byte) = bytes.get(len) {
            let is_exponent = len > 0 && bytes[len - 1].eq_ignore_ascii_case(&b'e');
            match byte {
                b'.' if digit(len + 1) => {}
                b'+' | b'-' if is_exponent && digit(len + 1) && !bytes.starts_with(b"0x") => {}
                byte if byte.is_ascii_alphanumeric() || byte == b'_' => {}
                _ => break,
            }
            len += 1;
        }
        self.at += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_are_marked_and_nothing_else() {
        let cases = [
            ("{{ a + b }}", "{{ a|_sum + b|_sum }}"),
            ("{{ a+b -}}", "{{ a|_sum+b|_sum -}}"),
            ("{{ a.b['c'] ~ f(x) }}", "{{ a.b['c']|_text ~ f(x)|_text }}"),
            ("{{ a + b + c }}", "{{ a|_sum + b|_sum + c|_sum }}"),
            ("{{ a + b ~ c }}", "{{ a|_sum + b|_sum|_text ~ c|_text }}"),
            ("{{ a * b }}", "{{ (a )|_times( b) }}"),
            ("{{ a * b * c }}", "{{ ((a )|_times( b) )|_times( c) }}"),
            (
                "{{ a / b * -c ** d - e }}",
                "{{ (a / b )|_times( -c ** d) - e }}",
            ),
            (
                "{{ 'x' * (n + 1) }}",
                "{{ ('x' )|_times( (n|_sum + 1|_sum)) }}",
            ),
            ("{{ a[1:] }}", "{{ (a|_sum)[1:] }}"),
            ("{{ a.b[::-1][0] }}", "{{ (a.b|_sum)[::-1][0] }}"),
            ("{{ -a[1:2].c[3:] }}", "{{ -((a|_sum)[1:2].c|_sum)[3:] }}"),
            ("{{ {'a': 1, 'b': [2]} }}", "{{ {'a': 1, 'b': [2]} }}"),
            (
                "{{ '+ ~ }}' ~ \"\\\"*\" }}",
                "{{ '+ ~ }}'|_text ~ \"\\\"*\"|_text }}",
            ),
            ("{{ f(*args, **kw) }}", "{{ f(*args, **kw) }}"),
            ("{{ 1.5e+3 + 2 }}", "{{ 1.5e+3|_sum + 2|_sum }}"),
            (
                "{{ x is defined and a|f(b) + c }}",
                "{{ x is defined and a|f(b)|_sum + c|_sum }}",
            ),
            (
                "{{ a is divisibleby 3 or a is in [b + c] }}",
                "{{ a is divisibleby 3 or a is in [b|_sum + c|_sum] }}",
            ),
            ("{%- if (a) ~ b -%}", "{%- if (a)|_text ~ b|_text -%}"),
            ("{% set ns.a = b - c %}", "{% set ns.a = b - c %}"),
            (
                "{# a + b #}{% raw %}{{ a + b }}{% endraw %}",
                "{# a + b #}{% raw %}{{ a + b }}{% endraw %}",
            ),
            ("{ a + b } } %", "{ a + b } } %"),
            ("{{ a + ", "{{ a|_sum + "),
            ("{#} {{ ' #}{{ a + b }}", "{#} {{ ' #}{{ a|_sum + b|_sum }}"),
            ("{{ if ~ in }}", "{{ if|_text ~ in|_text }}"),
            ("{{ x is eq in ~ in }}", "{{ x is eq in|_text ~ in|_text }}"),
            (
                "{{ a if b else c + d not in (e)[1:] }}",
                "{{ a if b else c|_sum + d|_sum not in ((e)|_sum)[1:] }}",
            ),
            (
                "{% for a, b in (c * d) if not e - f %}",
                "{% for a, b in ((c )|_times( d)) if not e - f %}{% if 0|_spend %}{% endif %}",
            ),
            (
                "{% set x = recursive ~ y %}",
                "{% set x = recursive|_text ~ y|_text %}",
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(mark(source), expected, "{source}");
        }
    }

    #[test]
    fn a_sign_or_a_space_where_a_name_would_stand_is_no_part_of_it() {
        for (source, marked) in [
            ("{{ a | +trim\u{5c2} }}", "{{ a | |_sum+trim\u{5c2}|_sum }}"),
            ("{{ a. -\u{ae00} }}", "{{ a. -\u{ae00} }}"),
            ("{% +\u{ae00} a %}", "{% +\u{ae00} a %}"),
            ("{{ a is not -\u{ae00} }}", "{{ a is not -\u{ae00} }}"),
        ] {
            assert_eq!(mark(source), marked);
        }
    }

    #[test]
    fn loops_and_macros_pay_for_the_text_in_them() {
        let source = "12345{% for a in b -%} abc\n{% for c in d %}x{% endfor %}yz{% endfor %}";
        assert_eq!(
            mark(source),
            "12345{% for a in b -%}{% if 8|_spend %}{% endif -%} abc\n\
             {% for c in d %}{% if 1|_spend %}{% endif %}x{% endfor %}yz{% endfor %}"
        );
    }
}
