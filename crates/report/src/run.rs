//! What a run directory holds that can be shown. Every part may be missing; a part that cannot be read is
//! told by `Run::unreadable` and left out.

use std::collections::HashMap;
use std::path::Path;

use eval::{Answered, Evaluation, FileBits};
use formats::json::{self, JsonError};
use formats::ledger::{Event, Record, verify_chain};
use formats::metrics::{self, StepMetrics};
use formats::run_dir::{RunDir, Stage};
use formats::safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::Value;

use crate::ReportError;

/// Everything at hand.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// Name of the directory.
    pub(crate) name: String,
    /// Stages that have begun.
    pub(crate) stages: Vec<StageRun>,
    /// Evaluations by questions, in the order in which their weights came to be.
    pub(crate) evaluations: Vec<Scored>,
    /// The last evaluation by texts.
    pub(crate) texts: Option<Evaluation<FileBits>>,
    /// The certificate.
    pub(crate) certificate: Option<Certificate>,
    /// Records of the ledger.
    pub(crate) records: Vec<Record>,
    /// `config.json` of the last checkpoint.
    pub(crate) config: Option<Value>,
    /// Parameters of the last checkpoint.
    pub(crate) num_parameters: Option<u64>,
    /// Files that could not be read, and why.
    pub(crate) unreadable: Vec<String>,
}

/// One stage.
#[derive(Debug)]
pub(crate) struct StageRun {
    /// Which.
    pub(crate) stage: Stage,
    /// One a step.
    pub(crate) metrics: Vec<StepMetrics>,
    /// The text of `recipe.toml`.
    pub(crate) recipe: Option<String>,
}

/// An evaluation and where in the model's life it stands.
#[derive(Debug)]
pub(crate) struct Scored {
    /// "random start", "after pretraining", ...
    pub(crate) label: String,
    /// What came out.
    pub(crate) result: Evaluation<Answered>,
}

/// What is shown of `certificate.json`, which `dokja audit report` writes.
#[derive(Debug, Deserialize)]
pub(crate) struct Certificate {
    /// `valid`, `broken` or `incomplete`.
    pub(crate) verdict: String,
    /// Digest of the last record.
    pub(crate) ledger_head: String,
    /// The public key of the recorder.
    pub(crate) key: Option<String>,
    /// What was tested.
    pub(crate) claims: Vec<ClaimResult>,
}

/// One claim.
#[derive(Debug, Deserialize)]
pub(crate) struct ClaimResult {
    /// Its name.
    pub(crate) claim: String,
    /// In words.
    pub(crate) statement: String,
    /// How it came out.
    pub(crate) result: String,
    /// What remains open.
    pub(crate) cannot_conclude: String,
    /// What was seen.
    pub(crate) findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Debug, Deserialize)]
pub(crate) struct Finding {
    /// The record, file or stage.
    pub(crate) component: String,
    /// How it came out.
    pub(crate) result: String,
    /// What was seen.
    pub(crate) detail: String,
}

impl Run {
    /// Reads what there is.
    ///
    /// # Errors
    /// Where there is neither a ledger nor metrics.
    pub(crate) fn read(dir: &RunDir) -> Result<Run, ReportError> {
        let mut run = Run {
            name: name_of(dir.root()),
            ..Run::default()
        };
        for stage in Stage::ALL {
            let metrics = run
                .take(metrics::read(&dir.metrics(stage)))
                .unwrap_or_default();
            let recipe = std::fs::read_to_string(dir.recipe(stage)).ok();
            if !metrics.is_empty() || recipe.is_some() {
                run.stages.push(StageRun {
                    stage,
                    metrics,
                    recipe,
                });
            }
        }
        if !dir.is_run() && run.stages.is_empty() {
            return Err(ReportError::NoRun {
                path: dir.root().to_path_buf(),
            });
        }
        if dir.is_run() {
            match verify_chain(dir.root()) {
                Ok(chain) => {
                    run.records = chain.records.into_iter().filter_map(|c| c.record).collect();
                }
                Err(e) => run.unreadable.push(e.to_string()),
            }
        }
        run.read_evaluations(dir);
        run.certificate = run.take_if_there(json::read(&dir.certificate()));
        run.read_model(dir);
        Ok(run)
    }

    fn take<T, E: std::fmt::Display>(&mut self, read: Result<T, E>) -> Option<T> {
        read.map_err(|e| self.unreadable.push(e.to_string())).ok()
    }

    fn take_if_there<T>(&mut self, read: Result<T, JsonError>) -> Option<T> {
        match read {
            Err(JsonError::File(e)) if e.is_not_found() => None,
            read => self.take(read),
        }
    }

    fn read_evaluations(&mut self, dir: &RunDir) {
        let folder = dir.root().join("eval");
        let Ok(entries) = std::fs::read_dir(&folder) else {
            return;
        };
        let mut paths: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|e| e == "json"));
        paths.sort();
        let places = places(&self.records);
        let mut found: Vec<(usize, Scored)> = Vec::new();
        for path in paths {
            let Some(value) = self.take(json::read::<Value>(&path)) else {
                continue;
            };
            let kind = value["unit"].as_str().unwrap_or_default();
            let text = value.to_string();
            match kind {
                "percent correct" => {
                    let read = json::parse::<Evaluation<Answered>>(&path, text.as_bytes());
                    let Some(result) = self.take(read) else {
                        continue;
                    };
                    let place = result.weights_sha256.as_ref().and_then(|w| places.get(w));
                    // Weights that the ledger does not know stand after those it knows, by name.
                    let (order, label) = match place {
                        Some((order, label)) => (*order, label.clone()),
                        None => (usize::MAX, name_of(&path.with_extension(""))),
                    };
                    found.push((order, Scored { label, result }));
                }
                "bits per byte" => {
                    let read = json::parse::<Evaluation<FileBits>>(&path, text.as_bytes());
                    if let Some(read) = self.take(read) {
                        self.texts = Some(read);
                    }
                }
                _ => self.unreadable.push(format!(
                    "{}: this is no evaluation that this version knows",
                    path.display()
                )),
            }
        }
        found.sort_by_key(|(order, _)| *order);
        self.evaluations = found.into_iter().map(|(_, scored)| scored).collect();
    }

    fn read_model(&mut self, dir: &RunDir) {
        let Ok(model) = formats::run_dir::resolve_model(dir.root()) else {
            return;
        };
        self.config = self.take(json::read(&model.join("config.json")));
        let Some(weights) = self.take(SafeTensors::open(&model)) else {
            return;
        };
        let names: Vec<&str> = weights.names().collect();
        let sizes = names.iter().filter_map(|name| weights.get(name).ok());
        self.num_parameters = Some(sizes.map(|view| view.num_elements() as u64).sum());
    }

    /// The metrics of a stage.
    pub(crate) fn metrics(&self, stage: Stage) -> &[StepMetrics] {
        let of_stage = self.stages.iter().find(|run| run.stage == stage);
        of_stage.map_or(&[], |run| &run.metrics)
    }

    /// What the ledger records, in types; records of later versions are passed over.
    pub(crate) fn events(&self) -> impl Iterator<Item = (&Record, Event)> {
        let records = self.records.iter();
        records.filter_map(|record| Some((record, record.event().ok()?)))
    }
}

/// Where weights stand in the model's life: an order, and words.
fn places(records: &[Record]) -> HashMap<String, (usize, String)> {
    let mut places = HashMap::new();
    for (order, record) in records.iter().enumerate() {
        let Ok(event) = record.event() else {
            continue;
        };
        let place = match event {
            Event::Init(init) => Some((init.weights_sha256, "random start".to_owned())),
            Event::Inherit(inherit) => Some((inherit.weights_sha256, "inherited".to_owned())),
            Event::Checkpoint(checkpoint) => Some((
                checkpoint.weights_sha256,
                format!("{}, step {}", stage_name(checkpoint.stage), checkpoint.step),
            )),
            Event::Final(last) => Some((
                last.weights_sha256,
                format!("after {}", stage_name(last.stage)),
            )),
            _ => None,
        };
        if let Some((weights, label)) = place {
            places.insert(weights, (order, label));
        }
    }
    places
}

/// The stage in a sentence.
pub(crate) fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Pretrain => "pretraining",
        Stage::Sft => "instruction tuning",
        Stage::Prefer => "preference learning",
        Stage::Rl => "reinforcement learning",
    }
}

fn name_of(path: &Path) -> String {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}
