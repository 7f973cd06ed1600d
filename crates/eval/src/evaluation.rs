//! The result of a suite: one JSON document that holds every item, so that each figure can be checked.
//!
//! Written to `eval/<name>.json` of a run directory (`formats::run_dir::RunDir::eval`) or elsewhere, in one
//! step. Format: `docs/formats/evaluation.md`.

use std::collections::BTreeMap;
use std::path::Path;

use formats::hash::sha256_hex;
use formats::json::{self, JsonError};
use formats::ledger::records;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::stats::{self, Interval, Share};

/// Of the document's form.
pub const VERSION: u32 = 1;

/// What a suite made of a model; `I` is the kind of its items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation<I> {
    /// [`VERSION`].
    pub version: u32,
    /// Name of the suite.
    pub suite: String,
    /// Its version: scores of different versions are not comparable.
    pub suite_version: u32,
    /// A path, or the name under which a server knows the model.
    pub model: String,
    /// SHA-256 of the weights, where they are at hand.
    pub weights_sha256: Option<String>,
    /// All settings, defaults included.
    pub settings: BTreeMap<String, String>,
    /// What the score counts: `percent correct`, `bits per byte`, `nats of KL divergence`.
    pub unit: String,
    /// The result: mean of the tracks, or of the files.
    pub score: f64,
    /// Where the score of other items of the same kind would lie, at 95 %.
    pub ci95: Interval,
    /// The score of a guesser, where there is one.
    pub chance: Option<f64>,
    /// The score as points of an evaluation, where the suite has them.
    pub points: Option<f64>,
    /// What is scored apart, by name: the areas.
    pub tracks: BTreeMap<String, Track>,
    /// Everything that was asked.
    pub items: Vec<I>,
}

/// A part that is scored apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Track {
    /// Percent correct.
    pub score: f64,
    /// At 95 %.
    pub ci95: Interval,
    /// Percent that a guesser gets.
    pub chance: f64,
    /// Number of items.
    pub items: usize,
    /// How many of them are right.
    pub correct: usize,
    /// Its part of the points.
    pub points: f64,
}

/// A question and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// Name within the suite.
    pub id: String,
    /// The track.
    pub area: String,
    /// ISO 639-1 code.
    pub lang: String,
    /// What was asked.
    pub prompt: String,
    /// What would be right, in words.
    pub expected: String,
    /// What was answered.
    pub answer: String,
    /// Whether that is right.
    pub correct: bool,
    /// Probability that a guesser is right.
    pub chance: f64,
    /// Id of the first item about the same thing: they stand or fall together.
    pub cluster: String,
    /// Why the answer is not a whole one (cut, not asked), if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A file and how well it was predicted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileBits {
    /// As it was given.
    pub file: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Size of the file.
    pub bytes: u64,
    /// Tokens scored, each once.
    pub tokens: u64,
    /// Minus the logarithm of the text's probability, base 2.
    pub bits: f64,
    /// `bits / bytes`.
    pub bits_per_byte: f64,
    /// At 95 %, over stretches of the text.
    pub ci95: Interval,
    /// Whether the tokenizer changed the text (Unicode NFC) before it was scored.
    pub is_changed: bool,
}

/// A file and how far a model has moved from its reference on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileDrift {
    /// As it was given.
    pub file: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Tokens predicted by both.
    pub tokens: u64,
    /// Mean divergence of the next-token distributions, in nats.
    pub kl_divergence: f64,
    /// At 95 %, over windows of the text.
    pub ci95: Interval,
    /// Percent of positions with the same likeliest token.
    pub top1_agreement: f64,
    /// Of the text, for the model.
    pub perplexity: f64,
    /// Of the text, for the reference.
    pub reference_perplexity: f64,
}

impl<I: Serialize + DeserializeOwned> Evaluation<I> {
    /// Writes the document, in place of an earlier one.
    ///
    /// # Errors
    /// As [`formats::json::write`].
    pub fn write(&self, path: &Path) -> Result<(), JsonError> {
        if let Some(dir) = path.parent() {
            formats::run_dir::make_dir(dir)?;
        }
        json::write(path, self)
    }

    /// Reads a document.
    ///
    /// # Errors
    /// As [`formats::json::read`].
    pub fn read(path: &Path) -> Result<Self, JsonError> {
        json::read(path)
    }
}

impl<I> Evaluation<I> {
    /// A name for its file: the suite, the weights, and whatever else determines it.
    pub fn name(&self) -> String {
        let settings: Vec<String> = (self.settings.iter())
            .map(|(key, value)| format!("{key}={value}\n"))
            .collect();
        let model = self.weights_sha256.as_ref().unwrap_or(&self.model);
        let all = format!(
            "{} {}\n{model}\n{}",
            self.suite,
            self.suite_version,
            settings.concat()
        );
        format!("{}-{}", self.suite, &sha256_hex(all.as_bytes())[..8])
    }

    /// The record for the ledger of the run that the model is of; None without weights.
    pub fn to_record(&self) -> Option<records::Eval> {
        Some(records::Eval {
            suite: self.suite.clone(),
            weights_sha256: self.weights_sha256.clone()?,
            score: self.score,
            ci95: Some(self.ci95),
        })
    }
}

impl Evaluation<Answered> {
    /// The score of some of the tracks together, each with the same weight; None if one is not there.
    pub fn score_of(&self, tracks: &[&str]) -> Option<(f64, Interval)> {
        let parts: Option<Vec<(f64, Interval)>> = tracks
            .iter()
            .map(|name| {
                self.tracks
                    .get(*name)
                    .map(|track| (track.score, track.ci95))
            })
            .collect();
        Some(stats::mean(&parts?))
    }
}

/// From scores to points: `points` for a score of `target` or more, in proportion below. The form is a
/// choice of ours, since the national evaluation's is not published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Points {
    /// What all tracks together can earn.
    pub points: f64,
    /// The score that earns them.
    pub target: f64,
}

impl Points {
    fn of(self, score: f64, num_tracks: usize) -> f64 {
        self.points / num_tracks as f64 * (score / self.target).clamp(0.0, 1.0)
    }
}

/// Scores of the areas of the items.
pub(crate) fn tracks(items: &[Answered], points: Points) -> BTreeMap<String, Track> {
    let mut by_area: BTreeMap<&str, Vec<&Answered>> = BTreeMap::new();
    for item in items {
        by_area.entry(&item.area).or_default().push(item);
    }
    let num_tracks = by_area.len();
    let score = |items: Vec<&Answered>| {
        let share = Share::of(items.iter().map(|i| (i.cluster.as_str(), i.correct)));
        let chance: f64 = items.iter().map(|item| item.chance).sum();
        Track {
            score: 100.0 * share.p,
            ci95: share.ci95.map(|limit| 100.0 * limit),
            chance: 100.0 * chance / items.len() as f64,
            items: items.len(),
            correct: items.iter().filter(|item| item.correct).count(),
            points: points.of(100.0 * share.p, num_tracks),
        }
    };
    let scored = by_area.into_iter();
    scored
        .map(|(area, items)| (area.to_owned(), score(items)))
        .collect()
}
