//! Are the weights of two models related? Each component for itself, with bounds on what chance could do.
//!
//! A network's hidden units could as well stand in any other order. Two models of which one was begun from random numbers
//! of its own therefore have their units in orders that have nothing to do with one another, whatever they were trained
//! on; a model that was made from another's weights keeps its order, however long it is trained. So units are compared
//! that stand in the same place ([`units`]), and how often these are the most alike is held against chance
//! ([`chance`], where the bounds are proved). Someone may put units into another order to hide where they come from. Then
//! what a unit reads and what it writes still name the same unit of the other model ([`matching`]).
//!
//! Raw cosines are not looked at: gains are all near one, so those of any two models point the same way.
//!
//! Not seen: a rotation of the stream (a permutation of it is, by the embedding), layers that were moved, merges of
//! several experts; and nothing that leaves no trace in weights, such as training on another model's answers.

mod chance;
mod matching;
mod units;
mod vocabulary;
mod weights;

use std::collections::HashSet;
use std::path::PathBuf;

use checkpoint::CheckpointError;
use formats::error::FileError;
use formats::run_dir::RunDirError;
use serde::Serialize;
use tensor::Device;
use thiserror::Error;

use matching::Matching;
use units::{Block, Reader};
use weights::Tower;

pub use units::Component;
pub use vocabulary::Overlap;
pub use weights::Weights;

/// Why models cannot be compared.
#[derive(Debug, Error)]
pub enum CompareError {
    /// The weights.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The file system.
    #[error(transparent)]
    File(#[from] FileError),
    /// A JSON file beside the weights.
    #[error("cannot use {}: {source}", path.display())]
    Config {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// What was found of a component, or of a whole model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// There is nothing in both that could be compared.
    NotComparable,
    /// So few units that even the same ones would prove nothing.
    TooFewUnits,
    /// As alike as chance makes two models.
    NoneFound,
    /// The same units, in another order.
    Reordered,
    /// Units in one order, more alike than chance allows.
    Related,
}

/// A component of both models.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The part of the model that it belongs to, where that is not the language model: its names' beginning in A.
    pub tower: String,
    /// Which.
    pub component: Component,
    /// What was found.
    pub result: Relation,
    /// Units in the same place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_place: Option<InPlace>,
    /// Units wherever they stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_any_order: Option<InAnyOrder>,
    /// Why nothing was compared, where that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Units that stand in the same place. The p-value is a bound that assumes nothing but a random start of one's own.
#[derive(Clone, Debug, Serialize)]
pub struct InPlace {
    /// Layers, experts or heads, each with an order of its own.
    pub blocks: usize,
    /// Units of all blocks.
    pub units: usize,
    /// Units that are most alike the one in the same place of the other model. By chance one in each block at most.
    pub matches: usize,
    /// The same after A's units were put into an order drawn by chance: what no relation looks like.
    pub shuffled_matches: usize,
    /// Units whose values are the same, to the bit.
    pub identical: usize,
    /// Mean centred correlation of units in the same place.
    pub similarity: f64,
    /// How many standard deviations that is above its mean over all orders.
    pub z: f64,
    /// Chance is at most this.
    pub p_value: f64,
    /// Its decimal logarithm.
    pub log10_p: f64,
    /// The same, corrected for everything that was tested (Holm).
    pub log10_p_adjusted: f64,
}

/// Units wherever they stand. Here the bound is not proved: it takes what a unit reads and what it writes for unrelated
/// in models that are unrelated. Dimensions of embeddings that were learned from one language are not quite (8 of 192
/// agree where chance gives one: docs/LOG-models.md). So more than half of the units must agree as well.
#[derive(Clone, Debug, Serialize)]
pub struct InAnyOrder {
    /// Layers, experts or heads.
    pub blocks: usize,
    /// Units of all blocks of the model that has fewer.
    pub units: usize,
    /// Units for which both kinds of values name the same unit of the other model. By chance one in each block.
    pub agreeing: usize,
    /// Chance is at most this.
    pub p_value: f64,
    /// Its decimal logarithm.
    pub log10_p: f64,
    /// The same, corrected for everything that was tested (Holm).
    pub log10_p_adjusted: f64,
}

/// Two models beside one another.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    /// The first.
    pub a: PathBuf,
    /// The second.
    pub b: PathBuf,
    /// Related if one component is.
    pub verdict: Relation,
    /// Component by component.
    pub findings: Vec<Finding>,
    /// What the tokenizers share, where both have one; no evidence of shared weights.
    pub tokenizers: Option<Overlap>,
}

/// The pair that was asked about, and what stands beside it.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The two models that were asked about.
    #[serde(flatten)]
    pub pair: Pair,
    /// Each of the two beside each model of reference.
    pub references: Vec<Pair>,
    /// Adjusted p-values up to this one make a relation.
    pub alpha: f64,
    /// What remains open, however it came out.
    pub cannot_conclude: Vec<&'static str>,
}

/// How models are compared.
pub struct CompareOptions<'a> {
    /// Where products are computed.
    pub device: &'a Device,
    /// The chance of one false relation in the whole comparison that is put up with.
    pub alpha: f64,
    /// Told how many of how many blocks are done.
    pub on_block: &'a mut dyn FnMut(usize, usize),
}

/// What a comparison of weights leaves open.
const CANNOT_CONCLUDE: [&str; 4] = [
    "Which of two related models came first, whether both come from a third, or whether both were begun from the same \
     random numbers (one seed and one program).",
    "That one model was not trained on another's answers or data, or built after its design: that leaves no order of \
     units behind.",
    "That nothing is related, where nothing was found: a rotated stream, layers that were moved and experts that were \
     merged are not seen; and where sizes differ, nothing can be compared.",
    "Anything, if both models sort their units by the same rule: the bounds are for models of which one was begun from \
     random numbers and trained without regard to the order of units.",
];

/// Compares two models, and each of them with each model of reference: one known to be independent shows what no
/// relation looks like, one known to be derived that a relation would be seen.
///
/// # Errors
/// When weights cannot be read.
pub fn compare(
    a: &Weights,
    b: &Weights,
    references: &[Weights],
    options: CompareOptions<'_>,
) -> Result<Comparison, CompareError> {
    let beside = (references.iter()).flat_map(|reference| [(a, reference), (b, reference)]);
    let pairs: Vec<(&Weights, &Weights)> = [(a, b)].into_iter().chain(beside).collect();
    let total = pairs.iter().map(|(a, b)| count_blocks(a, b)).sum();
    let mut work = Work {
        device: options.device,
        done: 0,
        total,
        on_block: options.on_block,
    };
    let mut compared = Vec::new();
    for (a, b) in pairs {
        compared.push(Pair {
            a: a.path().to_path_buf(),
            b: b.path().to_path_buf(),
            verdict: Relation::NotComparable,
            findings: work.pair(a, b)?,
            tokenizers: match (&a.vocabulary, &b.vocabulary) {
                (Some(a), Some(b)) => Some(a.overlap(b)),
                _ => None,
            },
        });
    }
    judge(&mut compared, options.alpha);
    let mut compared = compared.into_iter();
    let pair = compared.next().expect("two models make a pair");
    Ok(Comparison {
        pair,
        references: compared.collect(),
        alpha: options.alpha,
        cannot_conclude: CANNOT_CONCLUDE.to_vec(),
    })
}

/// Corrects all p-values for one another, and says what follows.
fn judge(pairs: &mut [Pair], alpha: f64) {
    let findings = || pairs.iter().flat_map(|pair| &pair.findings);
    let logs = findings().flat_map(|finding| {
        let in_place = finding.in_place.as_ref().map(|found| found.log10_p);
        let in_any_order = finding.in_any_order.as_ref().map(|found| found.log10_p);
        in_place.into_iter().chain(in_any_order)
    });
    let logs: Vec<f64> = logs.collect();
    let tests = logs.len() as f64;
    let mut adjusted = chance::holm(&logs).into_iter();
    for pair in pairs {
        for finding in &mut pair.findings {
            let (mut is_related, mut is_reordered, mut can_tell) = (false, false, false);
            if let Some(found) = &mut finding.in_place {
                let of_all = chance::matches(found.units, found.blocks) + tests.log10();
                found.log10_p_adjusted = adjusted.next().unwrap_or(0.0);
                is_related = found.log10_p_adjusted <= alpha.log10();
                can_tell = of_all <= alpha.log10();
            }
            if let Some(found) = &mut finding.in_any_order {
                let of_all = chance::matches(found.units, found.blocks) + tests.log10();
                found.log10_p_adjusted = adjusted.next().unwrap_or(0.0);
                is_reordered = found.log10_p_adjusted <= alpha.log10() && is_most(found);
                can_tell |= of_all <= alpha.log10();
            }
            finding.result = match (is_related, is_reordered) {
                _ if finding.in_place.is_none() && finding.in_any_order.is_none() => continue,
                (true, _) => Relation::Related,
                (_, true) => Relation::Reordered,
                _ if !can_tell => Relation::TooFewUnits,
                _ => Relation::NoneFound,
            };
        }
        let results = pair.findings.iter().map(|finding| finding.result);
        pair.verdict = match results.max().unwrap_or(Relation::NotComparable) {
            Relation::Reordered => Relation::Related,
            other => other,
        };
    }
}

/// Blocks that two models have.
fn count_blocks(a: &Weights, b: &Weights) -> usize {
    let towers = towers(a, b);
    let counts = towers.iter().map(|(tower_a, tower_b)| {
        let (a, b) = readers(a, tower_a, b, tower_b);
        let shared = |component: &Component| shared(&a, &b, *component).len();
        Component::ALL.iter().map(shared).sum::<usize>()
    });
    counts.sum()
}

/// The language models, and every other tower with every other one.
fn towers<'a>(a: &'a Weights, b: &'a Weights) -> Vec<(&'a Tower, &'a Tower)> {
    let pairs = (a.towers.iter()).flat_map(|a| b.towers.iter().map(move |b| (a, b)));
    pairs
        .filter(|(a, b)| a.name.is_empty() == b.name.is_empty())
        .collect()
}

/// What is read of both: the tokens that both know, and dimensions of the stream as they stand.
fn readers<'a>(
    a: &'a Weights,
    tower_a: &'a Tower,
    b: &'a Weights,
    tower_b: &'a Tower,
) -> (Reader<'a>, Reader<'a>) {
    let reader = |weights, tower: &'a Tower| Reader {
        weights,
        tower,
        tokens: Vec::new(),
        dims: (0..tower.width().unwrap_or(0)).collect(),
    };
    let (mut a, mut b) = (reader(a, tower_a), reader(b, tower_b));
    let rows = [tower_a.token_rows(), tower_b.token_rows()];
    let shared = match (&a.weights.vocabulary, &b.weights.vocabulary) {
        (Some(of_a), Some(of_b)) => of_a.shared(of_b),
        _ if rows[0] == rows[1] => (0u32..).take(rows[0]).map(|id| (id, id)).collect(),
        _ => Vec::new(),
    };
    for (of_a, of_b) in shared {
        let (of_a, of_b) = (of_a as usize, of_b as usize);
        if of_a < rows[0] && of_b < rows[1] {
            a.tokens.push(of_a);
            b.tokens.push(of_b);
        }
    }
    (a, b)
}

/// Blocks of a component that both have.
fn shared(a: &Reader<'_>, b: &Reader<'_>, component: Component) -> Vec<Block> {
    let of_b: HashSet<Block> = b.blocks(component).into_iter().collect();
    let mut blocks = a.blocks(component);
    blocks.retain(|block| of_b.contains(block));
    blocks
}

/// A comparison under way.
struct Work<'a> {
    device: &'a Device,
    done: usize,
    total: usize,
    on_block: &'a mut dyn FnMut(usize, usize),
}

impl Work<'_> {
    fn pair(&mut self, a: &Weights, b: &Weights) -> Result<Vec<Finding>, CompareError> {
        let mut findings = Vec::new();
        for (tower_a, tower_b) in towers(a, b) {
            let (mut a, mut b) = readers(a, tower_a, b, tower_b);
            for component in Component::ALL {
                findings.extend(self.component(&mut a, &mut b, component)?);
            }
        }
        Ok(findings)
    }

    fn component(
        &mut self,
        a: &mut Reader<'_>,
        b: &mut Reader<'_>,
        component: Component,
    ) -> Result<Option<Finding>, CompareError> {
        let tower = a.tower.name.clone();
        let finding = |reason: Option<String>| Finding {
            tower,
            component,
            result: Relation::NotComparable,
            in_place: None,
            in_any_order: None,
            reason,
        };
        let blocks = shared(a, b, component);
        let there = [&*a, &*b].map(|reader| !reader.blocks(component).is_empty());
        let reason = match there {
            [false, false] => return Ok(None),
            [true, false] => Some("only the first model has it"),
            [false, true] => Some("only the second model has it"),
            _ if blocks.is_empty() => Some("in no layer of both"),
            _ if is_stream(component) && a.tokens.is_empty() => Some("no token in common is known"),
            _ => None,
        };
        if let Some(reason) = reason {
            self.tell(blocks.len());
            return Ok(Some(finding(Some(reason.to_owned()))));
        }
        let mut all = Matching::default();
        let mut same = Vec::new();
        for block in blocks {
            let units = match is_stream(component) || a.dims.len() == b.dims.len() {
                true => matching::both(|| a.units(block), || b.units(block)),
                false => (Ok(None), Ok(None)),
            };
            if let (Some(of_a), Some(of_b)) = (units.0?, units.1?) {
                let widths = [&of_a, &of_b].map(|units| {
                    let widths = units.kinds.iter().map(|kind| kind.width);
                    widths.collect::<Vec<usize>>()
                });
                if widths[0] == widths[1] {
                    let (matching, of_block) = matching::compare(self.device, of_a, of_b);
                    all.add(&matching);
                    same = of_block;
                }
            }
            self.tell(1);
        }
        if all.blocks + all.split == 0 {
            let (of_a, of_b) = (a.dims.len(), b.dims.len());
            let reason = match of_a == of_b {
                true => "the sizes differ".to_owned(),
                false => format!("the stream has {of_a} and {of_b} dimensions"),
            };
            return Ok(Some(finding(Some(reason))));
        }
        let mut finding = finding(None);
        finding.in_place = (all.blocks > 0).then(|| in_place(&all));
        finding.in_any_order = (all.split > 0).then(|| in_any_order(&all));
        if component == Component::Embedding {
            follow(a, b, &same);
        }
        Ok(Some(finding))
    }

    fn tell(&mut self, blocks: usize) {
        self.done += blocks;
        (self.on_block)(self.done, self.total);
    }
}

fn is_stream(component: Component) -> bool {
    matches!(component, Component::Embedding | Component::Head)
}

/// Where more than half of the dimensions of the stream stand elsewhere in the other model, all that follows is compared
/// along those that the embeddings have in common. That does not touch the order of hidden units, so the bounds for those stay true.
fn follow(a: &mut Reader<'_>, b: &mut Reader<'_>, same: &[Option<usize>]) {
    let moved = (same.iter().enumerate()).filter(|(i, j)| j.is_some_and(|j| j != *i));
    if 2 * moved.count() > a.dims.len().min(b.dims.len()) {
        let pairs = same.iter().enumerate();
        (a.dims, b.dims) = pairs.filter_map(|(i, j)| Some((i, (*j)?))).unzip();
    }
}

/// Whether more than half of the units were found again.
fn is_most(found: &InAnyOrder) -> bool {
    2 * found.agreeing > found.units
}

fn in_place(all: &Matching) -> InPlace {
    let z = all.z();
    let log10_p = chance::either(chance::matches(all.matches, all.blocks), chance::excess(z));
    InPlace {
        blocks: all.blocks,
        units: all.units,
        matches: all.matches,
        shuffled_matches: all.shuffled,
        identical: all.identical,
        similarity: all.sum / all.units.max(1) as f64,
        z,
        p_value: 10f64.powf(log10_p),
        log10_p,
        log10_p_adjusted: log10_p,
    }
}

fn in_any_order(all: &Matching) -> InAnyOrder {
    let log10_p = chance::matches(all.agreeing, all.split);
    InAnyOrder {
        blocks: all.split,
        units: all.split_units,
        agreeing: all.agreeing,
        p_value: 10f64.powf(log10_p),
        log10_p,
        log10_p_adjusted: log10_p,
    }
}
