//! The ledger told for people: what happened, in order, with the many checkpoints of a stage as one.
//!
//! It repeats what the records say; whether that holds is for the findings.

use formats::ledger::{Chain, Event};
use formats::run_dir::Stage;
use serde::{Deserialize, Serialize};

/// Something that happened to the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Milestone {
    /// Place of its last record in the ledger.
    pub record: u64,
    /// When that was written, by the recorder's clock.
    pub time: String,
    /// The `kind` of its record.
    pub kind: String,
    /// In a few words.
    pub title: String,
    /// How much, with what.
    pub detail: String,
    /// Digest of what came out.
    pub sha256: Option<String>,
}

/// Checkpoints of one stage as they come in.
#[derive(Default)]
struct Training {
    num_checkpoints: u64,
    num_resumes: u64,
    step: u64,
    tokens: u64,
}

pub(super) fn tell(chain: &Chain) -> Vec<Milestone> {
    let mut story: Vec<Milestone> = Vec::new();
    let mut training = Training::default();
    for check in &chain.records {
        let Some(record) = &check.record else {
            continue;
        };
        let Ok(event) = record.event() else { continue };
        let mut stage_goes_on = None;
        let (title, detail, sha256) = match event {
            Event::Genesis(genesis) => {
                let machine = genesis.machine;
                let commit = genesis.code_commit.map_or(String::new(), |commit| {
                    format!(" at commit {}", commit.chars().take(12).collect::<String>())
                });
                let detail = format!(
                    "dokja {}{commit}, on {} ({}, {} cores, {:.0} GB)",
                    genesis.dokja_version,
                    machine.cpu,
                    machine.isa,
                    machine.cores,
                    machine.memory_bytes as f64 / 1e9
                );
                ("The run begins".to_string(), detail, None)
            }
            Event::Data(data) => {
                let (train, heldout) = (data.train_documents, data.heldout_documents);
                let detail = format!(
                    "{} documents to learn from, {} held out",
                    grouped(train),
                    grouped(heldout)
                );
                let sha256 = Some(data.manifest_sha256);
                ("Training data".to_string(), detail, sha256)
            }
            Event::Tokenizer(tokenizer) => {
                let origin = match tokenizer.trained_on_manifest_sha256 {
                    Some(_) => "learned from this data",
                    None => "brought along",
                };
                let detail = format!("{} tokens, {origin}", grouped(tokenizer.vocab_size));
                ("Tokenizer".to_string(), detail, Some(tokenizer.sha256))
            }
            Event::Init(init) => {
                let detail = format!("seed {}, generator {}", init.seed, init.generator);
                (
                    "Random start".to_string(),
                    detail,
                    Some(init.weights_sha256),
                )
            }
            Event::Inherit(inherit) => {
                let detail = format!("weights of {}", inherit.path);
                let sha256 = Some(inherit.weights_sha256);
                ("Start from another run".to_string(), detail, sha256)
            }
            Event::Checkpoint(checkpoint) => {
                training.num_checkpoints += 1;
                training.step = checkpoint.step;
                training.tokens = checkpoint.tokens;
                stage_goes_on = Some(checkpoint.stage);
                let sha256 = Some(checkpoint.weights_sha256);
                (title_of(checkpoint.stage), training.tell(), sha256)
            }
            Event::Resume(_) => {
                training.num_resumes += 1;
                continue;
            }
            Event::Eval(eval) => {
                let sha256 = Some(&eval.weights_sha256);
                let of = story
                    .iter()
                    .rfind(|m| m.is_weights() && m.sha256.as_ref() == sha256);
                let of = of.map_or(String::new(), |m| format!(", after: {}", m.title));
                let title = format!("Measured: {}{of}", eval.suite);
                let detail = match eval.ci95 {
                    Some([low, high]) => format!(
                        "{} ({} to {} with 95 % confidence)",
                        tenths(eval.score),
                        tenths(low),
                        tenths(high)
                    ),
                    None => eval.score.to_string(),
                };
                (title, detail, Some(eval.weights_sha256))
            }
            Event::Recipe(_) => {
                training = Training::default();
                continue;
            }
            Event::Batches(_) | Event::Final(_) => continue,
        };
        let milestone = Milestone {
            record: check.position,
            time: record.time.clone(),
            kind: record.kind.clone(),
            title,
            detail,
            sha256,
        };
        match story.last_mut() {
            Some(last) if stage_goes_on.is_some_and(|stage| last.title == title_of(stage)) => {
                *last = milestone;
            }
            _ => story.push(milestone),
        }
    }
    story
}

impl Milestone {
    /// Whether the model's weights came out of it.
    pub fn is_weights(&self) -> bool {
        matches!(self.kind.as_str(), "init" | "inherit" | "checkpoint")
    }
}

impl Training {
    fn tell(&self) -> String {
        let plural = |n: u64| if n == 1 { "" } else { "s" };
        let mut text = format!(
            "{} steps, {} tokens, {} checkpoint{}",
            grouped(self.step),
            grouped(self.tokens),
            grouped(self.num_checkpoints),
            plural(self.num_checkpoints)
        );
        if self.num_resumes > 0 {
            let n = self.num_resumes;
            text.push_str(&format!(", gone on after {n} interruption{}", plural(n)));
        }
        text
    }
}

fn title_of(stage: Stage) -> String {
    match stage {
        Stage::Pretrain => "Pretraining",
        Stage::Sft => "Instruction tuning",
        Stage::Prefer => "Preference learning",
        Stage::Rl => "Reinforcement learning",
    }
    .to_string()
}

/// One decimal, and no minus before zero.
fn tenths(value: f64) -> String {
    format!("{:.1}", (10.0 * value).round() / 10.0 + 0.0)
}

/// `12,345`
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap_or_default())
        .collect();
    groups.join(",")
}
