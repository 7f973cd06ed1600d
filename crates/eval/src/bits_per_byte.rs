//! Suite `bits-per-byte`: how many bits of surprise each byte of a text holds for a model.
//!
//! bits per byte = -(1/bytes) sum_i log2 p(t_i | separator, t_1 .. t_{i-1})
//!
//! Independent of the tokenizer, so that models compare with each other and with `xz`. The bytes are those
//! of the file as it lies on disk; the tokens are those of the whole file as one document, after the
//! document separator, as in training. Lower is better.
//!
//! A text longer than the window of W tokens is read through overlapping windows, each half a window
//! further: every token is scored once, from at least W/2 tokens before it (those at the start of the file
//! from all there are). `infer::Engine::score` draws it.
//!
//! Intervals: stretches of text, one a window, drawn anew; they say how much another text of the same kind
//! would differ, not how exact the figure is for this one (it is exact).

use std::path::{Path, PathBuf};

use formats::FileError;
use formats::hash::sha256_hex;
use thiserror::Error;

use crate::evaluation::{Evaluation, FileBits, VERSION};
use crate::stats;
use crate::suite::{Setting, SettingError, Settings, SuiteInfo};
use crate::target::{Target, TargetError};

/// The suite.
pub const INFO: SuiteInfo = SuiteInfo {
    name: "bits-per-byte",
    version: 1,
    about: "How well texts are predicted: bits per byte of each file, lower is better. Needs the weights.",
    settings: &[
        Setting {
            key: "files",
            default: None,
            about: "texts in UTF-8, separated by commas, each read as one document",
        },
        Setting {
            key: "window",
            default: Some("auto"),
            about: "tokens seen at once; auto: the length it was trained at, else 4096, or what it can take",
        },
    ],
};

/// Seed of the intervals.
const BOOTSTRAP_SEED: u64 = 0;

/// The suite could not be run.
#[derive(Debug, Error)]
pub enum BitsPerByteError {
    /// A setting.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The model.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Bytes that are not text.
    #[error("{} is not UTF-8: byte {at} begins no character; convert it first", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// Counted from 0.
        at: usize,
    },
    /// Nothing to predict.
    #[error("{} is empty; there is nothing to predict", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Scores each file. `progress` hears the file's name and how many of its tokens are scored, of how many.
///
/// # Errors
/// For a file that is no text, a setting out of range, or a target that only answers.
pub fn run(
    target: &mut dyn Target,
    settings: &Settings,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Evaluation<FileBits>, BitsPerByteError> {
    let window: Option<usize> = match settings.text("window") {
        "auto" => None,
        _ => Some(settings.value("window", "auto, or 2 to 1048576", |n| {
            (2..=1 << 20).contains(n)
        })?),
    };
    let names: Vec<&str> = settings.text("files").split(',').map(str::trim).collect();
    if names.iter().any(|name| name.is_empty()) {
        return Err(settings
            .refused("files", "it takes paths, separated by commas".to_owned())
            .into());
    }
    let mut items = Vec::new();
    let mut blocks = Vec::new();
    let mut values = settings.values().clone();
    // All files are read before the first is scored: a wrong path shows at once.
    let texts: Vec<String> = names
        .iter()
        .map(|name| read_text(Path::new(name)))
        .collect::<Result<_, _>>()?;
    for (name, text) in names.iter().zip(&texts) {
        let scored = target.score_text(text, window, &mut |done, of| progress(name, done, of))?;
        values.insert("window".to_owned(), scored.window.to_string());
        let bytes = text.len() as u64;
        let bits: f64 = scored.stretches.iter().map(|stretch| stretch.bits).sum();
        // Bytes of tokens are those of the NFC form; the file's are what counts.
        let counted: u64 = scored.stretches.iter().map(|stretch| stretch.bytes).sum();
        let scale = bytes as f64 / counted.max(1) as f64;
        let of_file = scored.stretches.iter();
        blocks.push(of_file.map(|s| (s.bits, s.bytes as f64 * scale)).collect());
        items.push(FileBits {
            file: (*name).to_owned(),
            sha256: sha256_hex(text.as_bytes()),
            bytes,
            tokens: scored.tokens,
            bits,
            bits_per_byte: bits / bytes as f64,
            ci95: [0.0, 0.0],
            is_changed: scored.is_changed,
        });
    }
    let (of_files, (_, ci95)) = stats::ratio_bootstrap(&blocks, BOOTSTRAP_SEED);
    for (item, (_, ci95)) in items.iter_mut().zip(of_files) {
        item.ci95 = ci95;
    }
    let sum: f64 = items.iter().map(|item| item.bits_per_byte).sum();
    Ok(Evaluation {
        version: VERSION,
        suite: INFO.name.to_owned(),
        suite_version: INFO.version,
        model: target.identity().model.clone(),
        weights_sha256: target.identity().weights_sha256.clone(),
        settings: values,
        unit: "bits per byte".to_owned(),
        score: sum / items.len() as f64,
        ci95,
        chance: None,
        points: None,
        tracks: Default::default(),
        items,
    })
}

pub(crate) fn read_text(path: &Path) -> Result<String, BitsPerByteError> {
    let bytes = std::fs::read(path).map_err(|e| FileError::io("read", path, e))?;
    if bytes.is_empty() {
        let path = path.to_path_buf();
        return Err(BitsPerByteError::Empty { path });
    }
    String::from_utf8(bytes).map_err(|e| BitsPerByteError::NotText {
        path: path.to_path_buf(),
        at: e.utf8_error().valid_up_to(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite;
    use crate::target::{AnswerOptions, Identity, Reply, ScoredText, Stretch};

    /// Gives each byte one bit, or two to every second stretch of four bytes.
    struct Even(Identity);

    impl Target for Even {
        fn identity(&self) -> &Identity {
            &self.0
        }

        fn answer(
            &mut self,
            _: &[&str],
            _: &AnswerOptions,
            _: &mut dyn FnMut(usize),
        ) -> Result<Vec<Reply>, TargetError> {
            unreachable!("this suite asks no questions")
        }

        fn score_text(
            &mut self,
            text: &str,
            window: Option<usize>,
            done: &mut dyn FnMut(usize, usize),
        ) -> Result<ScoredText, TargetError> {
            done(text.len(), text.len());
            let pieces = text.as_bytes().chunks(4).enumerate();
            let stretches = pieces.map(|(idx, piece)| Stretch {
                bytes: piece.len() as u64,
                bits: piece.len() as f64 * (1 + idx % 2) as f64,
            });
            Ok(ScoredText {
                tokens: text.len() as u64,
                stretches: stretches.collect(),
                window: window.unwrap_or(7),
                is_changed: false,
            })
        }
    }

    fn evaluate(files: &str) -> Result<Evaluation<FileBits>, BitsPerByteError> {
        let suite = suite::find("bits-per-byte").unwrap();
        let settings = Settings::new(suite, &[format!("files={files}")]).unwrap();
        let identity = Identity {
            model: "even".to_owned(),
            weights_sha256: None,
        };
        run(&mut Even(identity), &settings, &mut |_, _, _| {})
    }

    #[test]
    fn the_score_is_the_mean_over_files_of_bits_through_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("short"), "abcd").unwrap();
        std::fs::write(path("long"), "abcdefgh".repeat(50)).unwrap();
        let done = evaluate(&format!("{},{}", path("short"), path("long"))).unwrap();
        assert_eq!(done.items[0].bits_per_byte, 1.0);
        assert_eq!(done.items[1].bits_per_byte, 1.5);
        assert_eq!(done.score, 1.25);
        assert_eq!(done.settings["window"], "7");
        assert_eq!(done.items[0].ci95, [1.0, 1.0]);
        let [low, high] = done.items[1].ci95;
        assert!(low > 1.3 && low < 1.5 && high > 1.5 && high < 1.7);
    }

    #[test]
    fn what_is_no_text_is_refused_before_anything_is_scored() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("empty"), "").unwrap();
        std::fs::write(path("binary"), b"ab\xff").unwrap();
        let told = |files: &str| evaluate(files).unwrap_err().to_string();
        assert!(told(&path("none")).contains("check the path"));
        assert!(told(&path("empty")).contains("is empty"));
        assert!(told(&path("binary")).contains("byte 2"));
        assert!(told("a,,b").contains("separated by commas"));
    }
}
