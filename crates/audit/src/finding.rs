//! One thing that was looked at, and what came out.

use serde::{Deserialize, Serialize};

/// What a finding speaks for or against. Each is judged apart: one being true says nothing of
/// another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    /// The record itself was not changed.
    Ledger,
    /// The files are those recorded.
    Files,
    /// The final weights lead back to the start.
    Lineage,
    /// The start was random.
    RandomStart,
    /// The training data is known.
    Data,
    /// The tokenizer is known and the run's own.
    Tokenizer,
    /// What was to be done was fixed beforehand.
    Recipe,
    /// The scores belong to these weights.
    Evaluation,
}

impl Claim {
    /// All of them, in the order of a report.
    pub const ALL: [Claim; 8] = [
        Claim::Ledger,
        Claim::Files,
        Claim::Lineage,
        Claim::RandomStart,
        Claim::Data,
        Claim::Tokenizer,
        Claim::Recipe,
        Claim::Evaluation,
    ];

    /// Its name in a report.
    pub fn title(self) -> &'static str {
        match self {
            Claim::Ledger => "Ledger",
            Claim::Files => "Files",
            Claim::Lineage => "Lineage",
            Claim::RandomStart => "Random start",
            Claim::Data => "Data",
            Claim::Tokenizer => "Tokenizer",
            Claim::Recipe => "Recipe",
            Claim::Evaluation => "Evaluation",
        }
    }

    /// What is claimed and was tested.
    pub fn statement(self) -> &'static str {
        match self {
            Claim::Ledger => {
                "Every record is signed by one key, names the digest of the record before it, and \
                 has not been changed, removed, repeated or reordered since."
            }
            Claim::Files => {
                "Every recorded file has the size and SHA-256 digest that were recorded."
            }
            Claim::Lineage => {
                "The final weights are those of the last checkpoint, and every checkpoint names \
                 the weights it was trained from, back to the start."
            }
            Claim::RandomStart => {
                "The initial weights, computed again from the recorded seed, are the recorded ones."
            }
            Claim::Data => {
                "The training data is that of the recorded manifest, and the order of its batches \
                 was committed before training."
            }
            Claim::Tokenizer => {
                "The tokenizer is the recorded one, in every checkpoint, and was trained on the \
                 recorded data."
            }
            Claim::Recipe => {
                "The recipe of every stage is the one recorded before its first checkpoint."
            }
            Claim::Evaluation => "Every recorded score belongs to weights of this run.",
        }
    }

    /// What the test of this claim leaves open, however it comes out.
    pub fn cannot_conclude(self) -> &'static str {
        match self {
            Claim::Ledger => {
                "Who holds the key; that its holder recorded the truth, or did not write the whole \
                 ledger afterwards; that the machine's clock was right. A head digest published \
                 during the run answers the second."
            }
            Claim::Files => "What the files mean, and where their contents came from.",
            Claim::Lineage => {
                "That training from one checkpoint really gives the next: only repeating segments \
                 of the training shows it, as dokja audit replay does."
            }
            Claim::RandomStart => {
                "That training began from these weights: only repeating its first segment shows it, \
                 as dokja audit replay can."
            }
            Claim::Data => {
                "That exactly these batches were trained on: repeating segments shows it; that the \
                 data is free of licences' claims, of test questions, or of other models' output."
            }
            Claim::Tokenizer => "That training the tokenizer on this data gives this vocabulary.",
            Claim::Recipe => "That the recipe was followed: repeating segments shows it.",
            Claim::Evaluation => {
                "That the score comes out again: only repeating the evaluation shows it."
            }
        }
    }
}

/// How a test came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// As claimed.
    #[serde(rename = "ok")]
    Ok,
    /// Contradicted.
    #[serde(rename = "failed")]
    Failed,
    /// Nothing was there to test, or it could not be done here.
    #[serde(rename = "not tested")]
    NotTested,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it speaks for or against.
    pub claim: Claim,
    /// The record, file or stage.
    pub component: String,
    /// How it came out.
    pub result: Outcome,
    /// The files looked at, relative to the run directory.
    pub evidence: Vec<String>,
    /// What was seen; for a failure, which link is broken.
    pub detail: String,
}

/// The whole, from all findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything that belongs to a finished run was tested and held.
    Valid,
    /// Something contradicts the record.
    Broken,
    /// Nothing contradicts the record, but it does not reach from end to start.
    Incomplete,
}

/// Findings as they come in.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) list: Vec<Finding>,
    pub(crate) is_incomplete: bool,
}

impl Findings {
    pub(crate) fn ok(&mut self, at: &At<'_>, detail: String) {
        self.add(at, Outcome::Ok, detail);
    }

    pub(crate) fn failed(&mut self, at: &At<'_>, detail: String) {
        self.add(at, Outcome::Failed, detail);
    }

    /// Something without which the walk does not reach from end to start.
    pub(crate) fn missing(&mut self, at: &At<'_>, detail: String) {
        self.is_incomplete = true;
        self.add(at, Outcome::NotTested, detail);
    }

    /// Something that is told, and no part of the walk.
    pub(crate) fn not_tested(&mut self, at: &At<'_>, detail: String) {
        self.add(at, Outcome::NotTested, detail);
    }

    fn add(&mut self, at: &At<'_>, result: Outcome, detail: String) {
        self.list.push(Finding {
            claim: at.claim,
            component: at.component.to_string(),
            result,
            evidence: at.evidence.to_vec(),
            detail,
        });
    }

    pub(crate) fn verdict(&self) -> Verdict {
        if self.list.iter().any(|f| f.result == Outcome::Failed) {
            Verdict::Broken
        } else if self.is_incomplete {
            Verdict::Incomplete
        } else {
            Verdict::Valid
        }
    }
}

/// What a finding is about.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) claim: Claim,
    pub(crate) component: &'a str,
    pub(crate) evidence: &'a [String],
}
