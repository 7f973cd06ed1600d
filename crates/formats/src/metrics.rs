//! `metrics.jsonl`: one JSON object a training step, appended and never rewritten but on resume.
//!
//! A line is written by one call and ends with a newline. A process that is killed may leave a last
//! line without one; readers pass over it and the next [`MetricsWriter::open`] removes it. On
//! resume [`truncate_after_step`] drops the lines of steps that will be done again.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::atomic;
use crate::error::FileError;
use crate::json::{self, JsonError};

/// What is known after one training step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Counted from 1.
    pub step: u64,
    /// Tokens trained on so far in this stage.
    pub tokens: u64,
    /// The whole loss, in nats per token.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Its next-token part.
    #[serde(deserialize_with = "null_is_nan")]
    pub next_token_loss: f64,
    /// Its multi-token-prediction part, unweighted.
    #[serde(deserialize_with = "null_is_nan")]
    pub mtp_loss: f64,
    /// Its balance part, unweighted.
    #[serde(deserialize_with = "null_is_nan")]
    pub balance_loss: f64,
    /// Learning rate of this step.
    #[serde(deserialize_with = "null_is_nan")]
    pub lr: f64,
    /// Norm of the gradient before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// Speed of this step.
    #[serde(deserialize_with = "null_is_nan")]
    pub tokens_per_sec: f64,
    /// Bits per byte of held-out text, at the steps where it is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// Where answers are weighed: the mean reward of the model's own, or the share of pairs told apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward: Option<f64>,
    /// Share of the routed tokens per expert, for each sparse layer, where recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_load: Option<Vec<Vec<f32>>>,
}

/// JSON has no NaN or infinity: a diverged loss is written as null.
fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Appends lines.
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
}

impl MetricsWriter {
    /// Opens or makes the file; removes a torn last line.
    pub fn open(path: &Path) -> Result<MetricsWriter, FileError> {
        let failed = |e| FileError::io("write", path, e);
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path);
        let file = file.map_err(failed)?;
        let text = json::read_bytes(path)?;
        let complete = complete_lines(&text).len();
        if complete < text.len() {
            file.set_len(complete as u64).map_err(failed)?;
        }
        Ok(MetricsWriter {
            path: path.to_path_buf(),
            file,
        })
    }

    /// Appends one line, which reaches the operating system before this returns.
    pub fn append(&mut self, metrics: &StepMetrics) -> Result<(), JsonError> {
        let mut line = serde_json::to_vec(metrics).map_err(|e| JsonError::Write {
            path: self.path.clone(),
            what: e.to_string(),
        })?;
        line.push(b'\n');
        let before = self
            .file
            .metadata()
            .map_err(|e| FileError::io("write", &self.path, e))?
            .len();
        if let Err(e) = self.file.write_all(&line) {
            // Half a line must not stay in front of the next one.
            let _ = self.file.set_len(before);
            return Err(FileError::io("write", &self.path, e).into());
        }
        Ok(())
    }

    /// Forces the lines to the disk, before a checkpoint refers to them.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file
            .sync_data()
            .map_err(|e| FileError::io("write", &self.path, e))
    }
}

/// All complete lines; no file means no lines.
pub fn read(path: &Path) -> Result<Vec<StepMetrics>, JsonError> {
    let text = match json::read_bytes(path) {
        Err(e) if e.is_not_found() => return Ok(Vec::new()),
        other => other?,
    };
    lines(path, &text)?
        .into_iter()
        .map(|(_, metrics)| Ok(metrics))
        .collect()
}

/// Keeps the lines up to and including `step`.
pub fn truncate_after_step(path: &Path, step: u64) -> Result<(), JsonError> {
    let text = match json::read_bytes(path) {
        Err(e) if e.is_not_found() => return Ok(()),
        other => other?,
    };
    let kept: Vec<u8> = lines(path, &text)?
        .iter()
        .filter(|(_, metrics)| metrics.step <= step)
        .flat_map(|(line, _)| line.iter().copied())
        .collect();
    if kept.len() < text.len() {
        atomic::write_bytes(path, &kept)?;
    }
    Ok(())
}

fn complete_lines(text: &[u8]) -> &[u8] {
    &text[..text
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |at| at + 1)]
}

fn lines<'a>(path: &Path, text: &'a [u8]) -> Result<Vec<(&'a [u8], StepMetrics)>, JsonError> {
    let mut offset = 0;
    let mut all = Vec::new();
    for (idx, line) in complete_lines(text)
        .split_inclusive(|b| *b == b'\n')
        .enumerate()
    {
        let metrics = json::parse_line(path, line, idx + 1, offset)?;
        offset += line.len();
        all.push((line, metrics));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            tokens: step * 10,
            loss: 1.0 / step as f64,
            ..Default::default()
        }
    }

    fn three_lines() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::open(&path).unwrap();
        (1..=3).for_each(|step| writer.append(&at(step)).unwrap());
        (dir, path)
    }

    #[test]
    fn a_torn_last_line_is_passed_over_and_then_removed() {
        let (_dir, path) = three_lines();
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"step\":4,\"tok");
        std::fs::write(&path, &text).unwrap();
        assert_eq!(read(&path).unwrap(), [at(1), at(2), at(3)]);
        MetricsWriter::open(&path).unwrap().append(&at(4)).unwrap();
        assert_eq!(read(&path).unwrap(), [at(1), at(2), at(3), at(4)]);
    }

    #[test]
    fn resume_drops_the_steps_to_be_repeated() {
        let (_dir, path) = three_lines();
        truncate_after_step(&path, 2).unwrap();
        assert_eq!(read(&path).unwrap(), [at(1), at(2)]);
        truncate_after_step(Path::new("/no/such/metrics"), 2).unwrap();
    }

    #[test]
    fn a_diverged_loss_survives_as_not_a_number() {
        let (_dir, path) = three_lines();
        let diverged = StepMetrics {
            loss: f64::NAN,
            grad_norm: f64::INFINITY,
            ..at(4)
        };
        MetricsWriter::open(&path)
            .unwrap()
            .append(&diverged)
            .unwrap();
        let last = read(&path).unwrap().pop().unwrap();
        assert!(last.loss.is_nan() && last.grad_norm.is_nan() && last.step == 4);
    }

    #[test]
    fn a_wrong_line_is_named_by_number_and_byte() {
        let (_dir, path) = three_lines();
        let text = std::fs::read_to_string(&path)
            .unwrap()
            .replacen("\"step\":2", "\"step\":x", 1);
        std::fs::write(&path, &text).unwrap();
        let JsonError::Parse { line, offset, .. } = read(&path).unwrap_err() else {
            panic!()
        };
        assert_eq!(line, 2);
        assert!(
            text.as_bytes()[..offset].ends_with(b"\"step\":"),
            "{offset}"
        );
    }
}
