//! The layout of a run directory: one model's whole life.
//!
//! ```text
//! RUN_DIR/ledger.jsonl          the signed record of everything below
//! RUN_DIR/data/                 manifest.json, *.tokens (or elsewhere: then recorded by hash)
//! RUN_DIR/tokenizer.json
//! RUN_DIR/<stage>/recipe.toml
//! RUN_DIR/<stage>/metrics.jsonl
//! RUN_DIR/<stage>/checkpoints/step-00000200/   config.json, model.safetensors, tokenizer.json,
//!                                              optimizer.safetensors, trainer.json
//! RUN_DIR/eval/<name>.json
//! RUN_DIR/report.html
//! RUN_DIR/certificate.json
//! ```
//! A checkpoint directory is a Hugging Face layout with two files more, from which training goes
//! on. It is made by [`crate::atomic::write_dir`], so that one with its right name is whole.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::atomic;
use crate::error::FileError;
use crate::safetensors::{INDEX_FILE, SINGLE_FILE};

/// A run directory or a model could not be found, or may not be used.
#[derive(Debug, Error)]
pub enum RunDirError {
    /// The file system failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A run is never overwritten.
    #[error(
        "{} already holds a run; continue it with --resume or choose another directory",
        path.display()
    )]
    Occupied {
        /// The directory.
        path: PathBuf,
    },
    /// Neither a run nor a checkpoint.
    #[error(
        "{} is neither a run directory (it has no ledger.jsonl) nor a checkpoint (it has no \
         config.json with model.safetensors); give the path of one of them",
        path.display()
    )]
    NoModel {
        /// The path.
        path: PathBuf,
    },
    /// A run that has not come that far.
    #[error("the run in {} has no checkpoint yet; train it first, or resume it", path.display())]
    NoCheckpoint {
        /// The run directory.
        path: PathBuf,
    },
}

/// A part of a run that trains weights, in the order of a model's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// From random weights.
    Pretrain,
    /// Instruction tuning.
    Sft,
    /// Preference learning.
    Prefer,
    /// Reinforcement learning.
    Rl,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Stage; 4] = [Stage::Pretrain, Stage::Sft, Stage::Prefer, Stage::Rl];

    /// The name of its directory.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Pretrain => "pretrain",
            Stage::Sft => "sft",
            Stage::Prefer => "prefer",
            Stage::Rl => "rl",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A complete checkpoint in a run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The stage that made it.
    pub stage: Stage,
    /// Steps done.
    pub step: u64,
    /// Its directory.
    pub path: PathBuf,
}

/// Paths inside a run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Names a directory, which need not be there.
    pub fn new(root: &Path) -> RunDir {
        RunDir {
            root: root.to_path_buf(),
        }
    }

    /// Makes the directory for a new run.
    ///
    /// # Errors
    /// [`RunDirError::Occupied`] when there is a run in it. Other files are left where they are.
    pub fn create(root: &Path) -> Result<RunDir, RunDirError> {
        let run = RunDir::new(root);
        if run.is_run() {
            return Err(RunDirError::Occupied {
                path: root.to_path_buf(),
            });
        }
        make_dir(root)?;
        Ok(run)
    }

    /// True when a run was begun here.
    pub fn is_run(&self) -> bool {
        self.ledger().exists()
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `ledger.jsonl`.
    pub fn ledger(&self) -> PathBuf {
        self.root.join("ledger.jsonl")
    }

    /// `data`.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// `tokenizer.json`.
    pub fn tokenizer(&self) -> PathBuf {
        self.root.join("tokenizer.json")
    }

    /// `<stage>`.
    pub fn stage(&self, stage: Stage) -> PathBuf {
        self.root.join(stage.name())
    }

    /// `<stage>/recipe.toml`.
    pub fn recipe(&self, stage: Stage) -> PathBuf {
        self.stage(stage).join("recipe.toml")
    }

    /// `<stage>/metrics.jsonl`.
    pub fn metrics(&self, stage: Stage) -> PathBuf {
        self.stage(stage).join("metrics.jsonl")
    }

    /// `<stage>/checkpoints`.
    pub fn checkpoints_dir(&self, stage: Stage) -> PathBuf {
        self.stage(stage).join("checkpoints")
    }

    /// `<stage>/checkpoints/step-<8 digits>`.
    pub fn checkpoint(&self, stage: Stage, step: u64) -> PathBuf {
        self.checkpoints_dir(stage).join(format!("step-{step:08}"))
    }

    /// `eval/<name>.json`.
    pub fn eval(&self, name: &str) -> PathBuf {
        self.root.join("eval").join(format!("{name}.json"))
    }

    /// `report.html`.
    pub fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }

    /// `certificate.json`.
    pub fn certificate(&self) -> PathBuf {
        self.root.join("certificate.json")
    }

    /// Makes the directories of a stage.
    pub fn create_stage(&self, stage: Stage) -> Result<(), FileError> {
        make_dir(&self.checkpoints_dir(stage))
    }

    /// The complete checkpoints of a stage, by step.
    pub fn checkpoints(&self, stage: Stage) -> Result<Vec<Checkpoint>, FileError> {
        let entries = match atomic::list(&self.checkpoints_dir(stage)) {
            Err(e) if e.is_not_found() => return Ok(Vec::new()),
            other => other?,
        };
        let mut found: Vec<Checkpoint> = entries
            .iter()
            .filter_map(|entry| {
                let step = parse_step(entry.file_name().to_str()?)?;
                let path = entry.path();
                is_resumable(&path).then_some(Checkpoint { stage, step, path })
            })
            .collect();
        found.sort_by_key(|c| c.step);
        Ok(found)
    }

    /// The last complete checkpoint of a stage.
    pub fn latest_checkpoint(&self, stage: Stage) -> Result<Option<Checkpoint>, FileError> {
        Ok(self.checkpoints(stage)?.pop())
    }

    /// The path of a file relative to the run directory, with `/` between its parts, as the ledger
    /// names it; None when it lies elsewhere.
    pub fn relative(&self, path: &Path) -> Option<String> {
        let inside = |root: &Path, path: &Path| {
            let parts = path.strip_prefix(root).ok()?.components();
            let parts: Option<Vec<&str>> = parts
                .map(|part| match part {
                    std::path::Component::Normal(name) => name.to_str(),
                    _ => None,
                })
                .collect();
            parts
                .filter(|parts| !parts.is_empty())
                .map(|parts| parts.join("/"))
        };
        inside(&self.root, path).or_else(|| {
            // The same place may be spelled in two ways (`run` and `./run`, links).
            inside(
                &fs::canonicalize(&self.root).ok()?,
                &fs::canonicalize(path).ok()?,
            )
        })
    }
}

/// Makes a directory and those above it.
pub fn make_dir(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(|e| FileError::io("create", path, e))
}

/// Finds what MODEL means: a file or checkpoint directory itself, or the last checkpoint of a run's last stage that has
/// one.
pub fn resolve_model(path: &Path) -> Result<PathBuf, RunDirError> {
    let metadata = fs::metadata(path).map_err(|e| FileError::io("read", path, e))?;
    if metadata.is_file() || is_model(path) {
        return Ok(path.to_path_buf());
    }
    let run = RunDir::new(path);
    for stage in Stage::ALL.into_iter().rev() {
        if let Some(checkpoint) = run.latest_checkpoint(stage)? {
            return Ok(checkpoint.path);
        }
    }
    let path = path.to_path_buf();
    Err(if run.is_run() {
        RunDirError::NoCheckpoint { path }
    } else {
        RunDirError::NoModel { path }
    })
}

fn is_model(dir: &Path) -> bool {
    let has = |name: &str| dir.join(name).is_file();
    has("config.json") && (has(SINGLE_FILE) || has(INDEX_FILE))
}

fn is_resumable(dir: &Path) -> bool {
    is_model(dir)
        && dir.join("optimizer.safetensors").is_file()
        && dir.join("trainer.json").is_file()
}

fn parse_step(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?;
    let step = digits.parse().ok()?;
    // Only the one spelling that `checkpoint` gives, so that a step has one directory.
    (format!("{step:08}") == digits).then_some(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add_checkpoint(run: &RunDir, stage: Stage, step: u64, files: &[&str]) {
        let dir = run.checkpoint(stage, step);
        make_dir(&dir).unwrap();
        files
            .iter()
            .for_each(|name| fs::write(dir.join(name), b"x").unwrap());
    }

    const WHOLE: [&str; 4] = [
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "trainer.json",
    ];

    #[test]
    fn the_latest_complete_checkpoint_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(&dir.path().join("run")).unwrap();
        assert!(run.latest_checkpoint(Stage::Pretrain).unwrap().is_none());
        add_checkpoint(&run, Stage::Pretrain, 200, &WHOLE);
        add_checkpoint(&run, Stage::Pretrain, 100, &WHOLE);
        add_checkpoint(&run, Stage::Pretrain, 300, &WHOLE[..3]);
        make_dir(&run.checkpoints_dir(Stage::Pretrain).join("step-400")).unwrap();
        make_dir(
            &run.checkpoints_dir(Stage::Pretrain)
                .join(".dokja-tmp-1-1-step-00000500"),
        )
        .unwrap();
        let steps = run.checkpoints(Stage::Pretrain).unwrap();
        assert_eq!(steps.iter().map(|c| c.step).collect::<Vec<_>>(), [100, 200]);
        let latest = run.latest_checkpoint(Stage::Pretrain).unwrap().unwrap();
        assert_eq!(latest.path, run.checkpoint(Stage::Pretrain, 200));
    }

    #[test]
    fn a_model_is_the_last_stage_that_has_a_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(dir.path()).unwrap();
        assert!(matches!(
            resolve_model(dir.path()),
            Err(RunDirError::NoModel { .. })
        ));
        fs::write(run.ledger(), b"").unwrap();
        assert!(matches!(
            resolve_model(dir.path()),
            Err(RunDirError::NoCheckpoint { .. })
        ));
        add_checkpoint(&run, Stage::Pretrain, 9, &WHOLE);
        assert_eq!(
            resolve_model(dir.path()).unwrap(),
            run.checkpoint(Stage::Pretrain, 9)
        );
        add_checkpoint(&run, Stage::Sft, 3, &WHOLE);
        let model = run.checkpoint(Stage::Sft, 3);
        assert_eq!(resolve_model(dir.path()).unwrap(), model);
        assert_eq!(resolve_model(&model).unwrap(), model);
        assert!(matches!(
            resolve_model(Path::new("/no/such")),
            Err(RunDirError::File(_))
        ));
    }

    #[test]
    fn a_run_is_never_begun_twice_in_one_place() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::create(dir.path()).unwrap();
        fs::write(run.ledger(), b"").unwrap();
        let text = RunDir::create(dir.path()).unwrap_err().to_string();
        assert!(text.contains("--resume"), "{text}");
    }

    #[test]
    fn paths_are_named_relative_to_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        let recipe = run.recipe(Stage::Sft);
        assert_eq!(run.relative(&recipe).as_deref(), Some("sft/recipe.toml"));
        assert_eq!(run.relative(Path::new("/etc/hosts")), None);
        assert_eq!(run.relative(&dir.path().join("../x")), None);
        fs::write(run.tokenizer(), b"x").unwrap();
        let spelled = dir.path().join("../").join(dir.path().file_name().unwrap());
        let spelled = spelled.join("tokenizer.json");
        assert_eq!(run.relative(&spelled).as_deref(), Some("tokenizer.json"));
    }
}
