//! Stop strings, matched on decoded text as it comes.
//!
//! Text that might be the beginning of a stop string waits until it is known not to be one, so a match
//! across any number of tokens ends the answer before its first character is given out.

/// Watches one text for the first occurrence of any of its strings.
#[derive(Debug, Default)]
pub(crate) struct StopStrings {
    strings: Vec<String>,
    held: String, // the longest suffix so far that begins a stop string
}

/// What became of a piece of text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Released {
    pub(crate) text: String,
    pub(crate) is_stopped: bool,
}

impl StopStrings {
    /// `strings` are not empty.
    pub(crate) fn new(strings: Vec<String>) -> StopStrings {
        StopStrings {
            strings,
            held: String::new(),
        }
    }

    /// Takes the next piece and gives out what is certain.
    pub(crate) fn push(&mut self, piece: &str) -> Released {
        self.held.push_str(piece);
        let first = self
            .strings
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min();
        if let Some(at) = first {
            self.held.truncate(at);
            return Released {
                text: std::mem::take(&mut self.held),
                is_stopped: true,
            };
        }
        let kept = self
            .strings
            .iter()
            .map(|stop| overlap(&self.held, stop))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        Released {
            text: std::mem::replace(&mut self.held, rest),
            is_stopped: false,
        }
    }

    /// Ends the text: what waited was no stop string.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest proper prefix of `stop` that ends `text`.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices()
        .map(|(at, _)| at)
        .rev()
        .find(|&len| text.ends_with(&stop[..len]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut watch = StopStrings::new(stops.iter().map(|s| s.to_string()).collect());
        let mut text = String::new();
        for piece in pieces {
            let released = watch.push(piece);
            text.push_str(&released.text);
            if released.is_stopped {
                return (text, true);
            }
        }
        text.push_str(&watch.finish());
        (text, false)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_never_shown() {
        assert_eq!(run(&["END"], &["abcE", "N", "Dxyz"]), ("abc".into(), true));
        assert_eq!(
            run(&["END"], &["abcE", "N", "E", "N", "D"]),
            ("abcEN".into(), true)
        );
        assert_eq!(run(&["END"], &["abcE", "N"]), ("abcEN".into(), false));
        assert_eq!(
            run(&["그만", "멈춰"], &["자, 멈", "춰 이제"]),
            ("자, ".into(), true)
        );
        assert_eq!(run(&["bc", "b"], &["ab", "c"]), ("a".into(), true));
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), false));
    }

    #[test]
    fn text_that_cannot_be_a_stop_string_is_not_held_back() {
        let mut watch = StopStrings::new(vec!["\n\nQ:".into()]);
        assert_eq!(watch.push("hello ").text, "hello ");
        assert_eq!(watch.push("x\n").text, "x");
        assert_eq!(watch.push("y").text, "\ny");
    }

    proptest! {
        #[test]
        fn any_division_into_pieces_gives_the_same_text(
            text in "[ab가]{0,24}",
            stops in prop::collection::vec("[ab가]{1,4}", 0..3),
            cuts in prop::collection::vec(0..24usize, 0..6),
        ) {
            let chars: Vec<char> = text.chars().collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(chars.len())).collect();
            cuts.extend([0, chars.len()]);
            cuts.sort_unstable();
            let pieces: Vec<String> =
                cuts.windows(2).map(|pair| chars[pair[0]..pair[1]].iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            // The earliest match of the text as a whole ends at the earliest piece that completes any
            // match, so it suffices to compare with characters pushed one by one up to that point.
            let (whole, is_stopped) = run(&stops, &pieces);
            let earliest = stops.iter().filter_map(|stop| text.find(stop)).min();
            prop_assert_eq!(is_stopped, earliest.is_some());
            if let Some(at) = earliest {
                prop_assert!(whole.len() >= at && text.starts_with(&whole));
                prop_assert!(stops.iter().all(|stop| !whole.contains(stop)));
            } else {
                prop_assert_eq!(whole, text);
            }
        }
    }
}
