//! The byte alphabet of GPT-2: how a token made of bytes is spelled in `tokenizer.json`.
//!
//! Printable bytes of Latin-1 stand for themselves; the other 68 are given the characters from
//! U+0100 on, in ascending order of the byte. The space becomes U+0120, the newline U+010A.
//! Source: the byte-to-character table published with GPT-2 (Radford et al. 2019), section 2.2.

use std::sync::LazyLock;

/// Whether the byte is spelled by the character of the same number.
const fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF)
}

static CHAR_OF_BYTE: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut shifted = 0x100..;
    std::array::from_fn(|byte| {
        let code = if is_printable(byte as u8) {
            byte as u32
        } else {
            shifted.next().expect("an endless range")
        };
        char::from_u32(code).expect("below U+0144")
    })
});

/// The character that spells a byte.
pub(crate) fn char_of_byte(byte: u8) -> char {
    CHAR_OF_BYTE[usize::from(byte)]
}

/// The byte that a character spells, if it belongs to the alphabet.
pub(crate) fn byte_of_char(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ 0..=0xFF => is_printable(code as u8).then_some(code as u8),
        0x100..=0x143 => CHAR_OF_BYTE
            .iter()
            .position(|&other| other == c)
            .map(|byte| byte as u8),
        _ => None,
    }
}

/// The spelling of a byte string.
pub(crate) fn spell(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char_of_byte(byte)).collect()
}

/// The bytes of a token: those that its characters spell, or, if one of them is outside the alphabet,
/// the UTF-8 bytes of the whole (the rule of the Hugging Face `ByteLevel` decoder).
pub(crate) fn unspell(token: &str) -> Vec<u8> {
    let spelled: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
    spelled.unwrap_or_else(|| token.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_a_bijection_with_the_published_landmarks() {
        for byte in 0..=255 {
            assert_eq!(byte_of_char(char_of_byte(byte)), Some(byte));
        }
        let landmarks = [
            (b' ', '\u{120}'),
            (b'\n', '\u{10A}'),
            (b'a', 'a'),
            (0x7F, '\u{121}'),
        ];
        for (byte, c) in landmarks {
            assert_eq!(char_of_byte(byte), c);
        }
        assert_eq!(char_of_byte(0xAD), '\u{143}');
        assert_eq!(byte_of_char(' '), None);
        assert_eq!(byte_of_char('\u{144}'), None);
    }

    #[test]
    fn a_token_outside_the_alphabet_is_its_utf8_bytes() {
        assert_eq!(unspell("\u{120}a"), b" a");
        assert_eq!(unspell("\u{120} a"), "\u{120} a".as_bytes());
        assert_eq!(spell(b" a\n"), "\u{120}a\u{10A}");
    }
}
