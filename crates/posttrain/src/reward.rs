//! Is an answer right, by an answer that is known to be?
//!
//! Where the known answer has numbers, the last one of it must be the last one of the answer: what stands before it may
//! be worked out in any way. Where it has none, the two must be the same words.

/// Whether `answer` says what `reference` says.
pub fn is_right(reference: &str, answer: &str) -> bool {
    match last_number(reference) {
        Some(number) => last_number(answer) == Some(number),
        None => words(reference).eq(words(answer)),
    }
}

/// The last number of a text, without separators of thousands, zeros in front and zeros behind the point.
fn last_number(text: &str) -> Option<String> {
    let chars: Vec<char> = text.chars().collect();
    let end = chars.iter().rposition(char::is_ascii_digit)? + 1;
    let digit = |idx: usize| chars.get(idx).is_some_and(char::is_ascii_digit);
    let mut start = end - 1;
    while start > 0 {
        let before = start - 1;
        let is_inside = matches!(chars[before], '.' | ',') && before > 0 && digit(before - 1);
        match digit(before) || is_inside {
            true => start = before,
            false => break,
        }
    }
    let is_negative = start > 0
        && matches!(chars[start - 1], '-' | '\u{2212}')
        && (start == 1 || !(chars[start - 2].is_alphanumeric() || chars[start - 2] == ')'));
    let digits: String = chars[start..end].iter().filter(|c| **c != ',').collect();
    let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
    let whole = whole.trim_start_matches('0');
    let fraction = fraction.trim_end_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let sign = if is_negative && (whole, fraction) != ("0", "") {
        "-"
    } else {
        ""
    };
    Some(match fraction {
        "" => format!("{sign}{whole}"),
        fraction => format!("{sign}{whole}.{fraction}"),
    })
}

/// Words in lower case, without what stands between them.
fn words(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|c: char| !c.is_alphanumeric());
    words.filter(|word| !word.is_empty()).map(str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_counts_however_it_is_written() {
        for (text, number) in [
            ("7+8=15, 4+3+1=8: 85", Some("85")),
            ("It is 1,234.50.", Some("1234.5")),
            ("답은 007입니다.", Some("7")),
            ("x = -3", Some("-3")),
            ("x = \u{2212}3.0", Some("-3")),
            ("5-3", Some("3")),
            ("2, 3", Some("3")),
            ("-0", Some("0")),
            ("v2.10", Some("2.1")),
            ("none", None),
            ("", None),
        ] {
            assert_eq!(last_number(text).as_deref(), number, "{text}");
        }
    }

    #[test]
    fn answers_are_right_by_number_or_by_words() {
        assert!(is_right("The sum is 12.", "5+7=12"));
        assert!(!is_right("The sum is 12.", "5+7=13"));
        assert!(!is_right("12", "I do not know."));
        assert!(is_right(
            "The bakery, on Hill Street.",
            "the bakery on hill street"
        ));
        assert!(is_right("미나예요.", "미나예요"));
        assert!(!is_right("미나예요.", "수아예요."));
        assert!(!is_right("yes", "yes, 3"));
    }
}
