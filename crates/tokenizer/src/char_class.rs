//! Classes of characters that the K-EXAONE pattern distinguishes: letters `\p{L}`, combining marks
//! `\p{M}`, numbers `\p{N}`, white space `\s`, line breaks `[\r\n]`, and the rest.
//!
//! The table is filled once, at first use, by asking the regular-expression library: one source of
//! Unicode data, fixed by `Cargo.lock`, and not the standard library's, which changes with the compiler.

use fancy_regex::Regex;
use std::sync::LazyLock;

pub(crate) type Class = u8;
pub(crate) const OTHER: Class = 0;
pub(crate) const LETTER: Class = 1;
pub(crate) const MARK: Class = 2;
pub(crate) const NUMBER: Class = 3;
pub(crate) const SPACE: Class = 4; // white space that does not break the line
pub(crate) const NEWLINE: Class = 5; // \r and \n

/// Planes with assigned characters other than private use; all others hold class `OTHER` only.
const PLANES: [u32; 5] = [0, 1, 2, 3, 14];
const PAGE: usize = 256;

static ASCII: [Class; 128] = {
    let mut table = [OTHER; 128];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' => LETTER,
            b'0'..=b'9' => NUMBER,
            b'\r' | b'\n' => NEWLINE,
            b' ' | b'\t' | 0x0B | 0x0C => SPACE,
            _ => OTHER,
        };
        byte += 1;
    }
    table
};

/// The class of an ASCII byte.
#[inline]
pub(crate) fn class_of_ascii(byte: u8) -> Class {
    ASCII[usize::from(byte & 0x7F)]
}

/// Pages of 256 classes; equal pages are stored once.
pub(crate) struct ClassTable {
    page_of: Vec<u16>, // code point / 256 -> index of its page
    classes: Vec<Class>,
}

impl ClassTable {
    /// The table, built at first use.
    pub(crate) fn get() -> &'static ClassTable {
        static TABLE: LazyLock<ClassTable> = LazyLock::new(ClassTable::build);
        &TABLE
    }

    /// The class of a character.
    #[inline]
    pub(crate) fn class(&self, c: char) -> Class {
        let code = c as usize;
        self.classes[usize::from(self.page_of[code / PAGE]) * PAGE + code % PAGE]
    }

    fn build() -> ClassTable {
        let mut flat = vec![OTHER; 0x11_0000];
        for plane in PLANES {
            let text: String = (plane << 16..(plane + 1) << 16)
                .filter_map(char::from_u32)
                .collect();
            let properties = [
                (r"\p{L}+", LETTER),
                (r"\p{M}+", MARK),
                (r"\p{N}+", NUMBER),
                (r"\s+", SPACE),
            ];
            for (property, class) in properties {
                let regex = Regex::new(property).expect("a pattern known to compile");
                for found in regex.find_iter(&text) {
                    let found = found.expect("no backtracking in a single class");
                    found
                        .as_str()
                        .chars()
                        .for_each(|c| flat[c as usize] = class);
                }
            }
        }
        flat[usize::from(b'\r')] = NEWLINE;
        flat[usize::from(b'\n')] = NEWLINE;

        let mut table = ClassTable {
            page_of: Vec::new(),
            classes: Vec::new(),
        };
        let mut seen = std::collections::HashMap::new();
        for page in flat.chunks(PAGE) {
            let next = seen.len() as u16;
            let index = *seen.entry(page).or_insert_with(|| {
                table.classes.extend_from_slice(page);
                next
            });
            table.page_of.push(index);
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_has_the_class_that_the_pattern_language_gives_it() {
        let table = ClassTable::get();
        let all: String = (0..=0x10_FFFF).filter_map(char::from_u32).collect();
        let mut counts = [0_usize; 6];
        all.chars()
            .for_each(|c| counts[usize::from(table.class(c))] += 1);
        let patterns = [
            (OTHER, r"[^\p{L}\p{M}\p{N}\s]"),
            (LETTER, r"\p{L}"),
            (MARK, r"\p{M}"),
            (NUMBER, r"\p{N}"),
            (SPACE, r"[^\S\r\n]"),
            (NEWLINE, r"[\r\n]"),
        ];
        for (class, pattern) in patterns {
            let regex = Regex::new(pattern).unwrap();
            let mut found = 0;
            for m in regex.find_iter(&all) {
                let c = m.unwrap().as_str().chars().next().unwrap();
                assert_eq!(table.class(c), class, "{c:?}");
                found += 1;
            }
            assert_eq!(found, counts[usize::from(class)], "{pattern}");
        }
    }

    #[test]
    fn the_ascii_table_agrees_with_the_full_one() {
        for byte in 0..128 {
            assert_eq!(
                class_of_ascii(byte),
                ClassTable::get().class(char::from(byte))
            );
        }
    }
}
