//! Suite `drift`: how far a model in a smaller precision has moved from the one it was made of.
//!
//! KL(p || q) = sum_v p_v (ln p_v - ln q_v)      p: the reference's next-token distribution, q: the model's
//!
//! in nats, the mean over every position of a text; beside it how often both have the same likeliest token,
//! and the perplexity of the text for either. Both see the same ids: windows of W tokens that do not overlap,
//! each after the token that begins documents.
//!
//! Intervals: windows drawn anew.

use std::path::Path;

use formats::hash::sha256_hex;
use thiserror::Error;

use crate::bits_per_byte::{BitsPerByteError, read_text};
use crate::evaluation::{Evaluation, FileDrift, VERSION};
use crate::local::Local;
use crate::stats;
use crate::suite::{Setting, SettingError, Settings, SuiteInfo};
use crate::target::{Target, TargetError};

/// The suite.
pub const INFO: SuiteInfo = SuiteInfo {
    name: "drift",
    version: 1,
    about: "How far a model has moved from a reference (KL divergence, same likeliest token), lower is \
            better. Needs the weights of both.",
    settings: &[
        Setting {
            key: "reference",
            default: None,
            about: "the model it was made of: a run directory, a checkpoint directory or a .gguf file",
        },
        Setting {
            key: "files",
            default: None,
            about: "texts in UTF-8, separated by commas, each read as one document",
        },
        Setting {
            key: "window",
            default: Some("512"),
            about: "tokens seen at once",
        },
    ],
};

/// Seed of the intervals.
const BOOTSTRAP_SEED: u64 = 0;

/// The suite could not be run.
#[derive(Debug, Error)]
pub enum DriftError {
    /// A setting.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// One of the models.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A text.
    #[error(transparent)]
    Text(#[from] BitsPerByteError),
    /// Their ids mean different things.
    #[error(
        "the tokenizers of model and reference differ ({what}); drift compares one model in two \
         precisions"
    )]
    Tokenizers {
        /// In what.
        what: &'static str,
    },
}

/// What two models say of a window.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    positions: f64,
    kl: f64,
    same: f64,
    nats: f64,           // of the text, for the model
    reference_nats: f64, // for the reference
}

/// Compares `model` with `reference` on each file. `progress` hears the file's name and how many of its
/// tokens are done, of how many.
///
/// # Errors
/// For a file that is no text, a setting out of range, or models of different vocabularies.
pub fn run(
    model: &mut Local,
    reference: &mut Local,
    settings: &Settings,
    progress: &mut dyn FnMut(&str, usize, usize),
) -> Result<Evaluation<FileDrift>, DriftError> {
    let max = model.max_context().min(reference.max_context());
    let window: usize =
        settings.value("window", &format!("2 to {max}"), |n| (2..=max).contains(n))?;
    let names: Vec<&str> = settings.text("files").split(',').map(str::trim).collect();
    let texts: Vec<String> = names
        .iter()
        .map(|name| read_text(Path::new(name)))
        .collect::<Result<_, _>>()?;
    let (mut items, mut kl_blocks) = (Vec::new(), Vec::new());
    for (name, text) in names.iter().zip(&texts) {
        let ids = model.document(text);
        if ids != reference.document(text) {
            return Err(DriftError::Tokenizers { what: "their ids" });
        }
        let (start, ids) = (ids[0], &ids[1..]);
        let mut blocks = Vec::new();
        for (i, part) in ids.chunks(window - 1).enumerate() {
            let part: Vec<u32> = [&[start], part].concat();
            blocks.push(compare(model, reference, &part)?);
            progress(name, (ids.len()).min((i + 1) * (window - 1)), ids.len());
        }
        let sum = |of: fn(&Sums) -> f64| blocks.iter().map(of).sum::<f64>();
        let positions = sum(|b| b.positions).max(1.0);
        items.push(FileDrift {
            file: (*name).to_owned(),
            sha256: sha256_hex(text.as_bytes()),
            tokens: positions as u64,
            kl_divergence: sum(|b| b.kl) / positions,
            ci95: [0.0, 0.0],
            top1_agreement: 100.0 * sum(|b| b.same) / positions,
            perplexity: (sum(|b| b.nats) / positions).exp(),
            reference_perplexity: (sum(|b| b.reference_nats) / positions).exp(),
        });
        kl_blocks.push(blocks.iter().map(|b| (b.kl, b.positions)).collect());
    }
    let (of_files, (_, ci95)) = stats::ratio_bootstrap(&kl_blocks, BOOTSTRAP_SEED);
    for (item, (_, ci95)) in items.iter_mut().zip(of_files) {
        item.ci95 = ci95;
    }
    let sum: f64 = items.iter().map(|item| item.kl_divergence).sum();
    let identity = model.identity();
    Ok(Evaluation {
        version: VERSION,
        suite: INFO.name.to_owned(),
        suite_version: INFO.version,
        model: identity.model.clone(),
        weights_sha256: identity.weights_sha256.clone(),
        settings: settings.values().clone(),
        unit: "nats of KL divergence".to_owned(),
        score: sum / items.len() as f64,
        ci95,
        chance: None,
        points: None,
        tracks: Default::default(),
        items,
    })
}

/// Both models on one window; every token but the first is predicted.
fn compare(model: &mut Local, reference: &mut Local, ids: &[u32]) -> Result<Sums, DriftError> {
    let expected = reference.logits(ids)?;
    let got = model.logits(ids)?;
    if expected.len() != got.len() {
        let what = "the size of their vocabularies";
        return Err(DriftError::Tokenizers { what });
    }
    let width = got.len() / ids.len();
    let rows = expected.chunks_exact(width).zip(got.chunks_exact(width));
    let mut sums = Sums::default();
    for ((expected, got), &target) in rows.zip(&ids[1..]) {
        let (p, q) = (log_softmax(expected), log_softmax(got));
        let terms = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q));
        sums.positions += 1.0;
        // A sum of rounded terms may fall a little below zero, which the divergence cannot.
        sums.kl += terms.sum::<f64>().max(0.0);
        sums.same += f64::from(likeliest(expected) == likeliest(got));
        sums.nats -= q[target as usize];
        sums.reference_nats -= p[target as usize];
    }
    Ok(sums)
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&z| (f64::from(z) - max).exp()).sum();
    let all = logits.iter();
    all.map(|&z| f64::from(z) - max - sum.ln()).collect()
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, z) in logits.iter().enumerate() {
        if *z > logits[best] {
            best = i;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_of_a_row_sum_to_one_however_large_its_logits() {
        let p = log_softmax(&[1000.0, 1000.0, -1e30]);
        assert!((p[0] - 0.5f64.ln()).abs() < 1e-12);
        assert!((p.iter().map(|p| p.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(likeliest(&[1.0, 3.0, 3.0, 2.0]), 1);
    }
}
