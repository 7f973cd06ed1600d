//! Two evaluations by the same items: what changed, how sure is it, could it be chance.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::evaluation::{Answered, Evaluation};
use crate::stats::{self, Interval, Pair};

/// Why two evaluations cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CompareError {
    /// Different suites, or versions of one.
    #[error("{before} and {after} are different suites; only the same items can be compared")]
    Suite {
        /// Name and version of the first.
        before: String,
        /// Of the second.
        after: String,
    },
    /// An item that the other lacks, or words otherwise.
    #[error(
        "item {id} is not the same in both evaluations; run them with the same settings (per_area, \
         areas, world)"
    )]
    Item {
        /// Its id.
        id: String,
    },
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Of the score.
    pub total: Change,
    /// Of each track.
    pub tracks: BTreeMap<String, Change>,
}

/// A difference in percent correct.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// After less before.
    pub difference: f64,
    /// At 95 %, items paired.
    pub ci95: Interval,
    /// Probability of a change as large by chance alone (exact, McNemar's where items stand alone).
    pub p_value: f64,
    /// Items that were wrong and are right.
    pub gained: usize,
    /// Items that were right and are wrong.
    pub lost: usize,
}

/// What changed from `before` to `after`.
///
/// # Errors
/// When they do not hold the same items.
pub fn compare(
    before: &Evaluation<Answered>,
    after: &Evaluation<Answered>,
) -> Result<Comparison, CompareError> {
    let name = |e: &Evaluation<Answered>| format!("{} version {}", e.suite, e.suite_version);
    if name(before) != name(after) {
        return Err(CompareError::Suite {
            before: name(before),
            after: name(after),
        });
    }
    let mut first: HashMap<&str, &Answered> = before
        .items
        .iter()
        .map(|item| (item.id.as_str(), item))
        .collect();
    let mut pairs: BTreeMap<&str, Vec<Pair<'_>>> = BTreeMap::new();
    for item in &after.items {
        let same = (first.remove(item.id.as_str()))
            .filter(|first| first.prompt == item.prompt && first.expected == item.expected);
        let Some(first) = same else {
            return Err(CompareError::Item {
                id: item.id.clone(),
            });
        };
        pairs.entry(&item.area).or_default().push(Pair {
            cluster: &item.cluster,
            before: first.correct,
            after: item.correct,
        });
    }
    if let Some(id) = first.keys().min() {
        return Err(CompareError::Item {
            id: (*id).to_owned(),
        });
    }
    let tracks: BTreeMap<String, Change> = pairs
        .iter()
        .map(|(area, pairs)| {
            let difference = stats::paired_difference(pairs);
            ((*area).to_owned(), change(difference, pairs))
        })
        .collect();
    let parts: Vec<(f64, Interval)> = pairs
        .values()
        .map(|pairs| stats::paired_difference(pairs))
        .collect();
    let all: Vec<Pair<'_>> = pairs.into_values().flatten().collect();
    Ok(Comparison {
        total: change(stats::mean(&parts), &all),
        tracks,
    })
}

fn change((difference, ci95): (f64, Interval), pairs: &[Pair<'_>]) -> Change {
    let count = |before, after| {
        let matching = pairs
            .iter()
            .filter(|p| p.before == before && p.after == after);
        matching.count()
    };
    Change {
        difference: 100.0 * difference,
        ci95: ci95.map(|limit| 100.0 * limit),
        p_value: stats::paired_p_value(pairs),
        gained: count(false, true),
        lost: count(true, false),
    }
}
