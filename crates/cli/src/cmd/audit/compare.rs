//! `dokja audit compare`: whether the weights of two models are related.

use crate::progress::{Progress, Unit, grouped};
use crate::{env, interrupt, print};
use ::audit::compare::{CompareOptions, Comparison, Finding, Overlap, Pair, Relation, Weights};
use anyhow::Result;
use std::fmt::Write;
use std::path::PathBuf;

/// Says whether the weights of two models are related, component by component.
///
/// The hidden units of a network could as well stand in any other order. Two models of which one was begun from random
/// numbers of its own have orders that have nothing to do with one another, whatever they were trained on; a model made
/// from another's weights keeps its order. So units in the same place are compared, and the chance that unrelated models
/// look as alike is at most the p-value shown: a proven bound, corrected for everything that was tested. Units that were
/// put into another order are found too.
///
/// Models of reference show what to expect: one known to be independent of both, one known to be derived.
///
/// A and B are run directories, checkpoint directories or GGUF files. Checkpoint directories may be of any architecture
/// whose tensors have the field's names; layers of a part that sees or hears are compared apart. Exit status 0 whatever
/// the verdict.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  dokja audit compare run other-model
  dokja audit compare run other-model --reference unrelated-model --reference run/sft/checkpoints/step-00000300
  dokja audit compare a.gguf b --json")]
pub(super) struct Args {
    /// The first model.
    a: PathBuf,
    /// The second model.
    b: PathBuf,
    /// A model that both are compared with too; may be given several times.
    #[arg(long = "reference", value_name = "R")]
    references: Vec<PathBuf>,
    /// The chance of one false relation in the whole comparison that is put up with.
    #[arg(long, value_name = "P", default_value_t = 0.001, value_parser = probability)]
    alpha: f64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn probability(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(p) if p > 0.0 && p < 1.0 => Ok(p),
        _ => Err("expected a number between 0 and 1".to_owned()),
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    interrupt::end_at_once()?;
    let (a, b) = (Weights::open(&args.a)?, Weights::open(&args.b)?);
    let references = args.references.iter().map(|path| Weights::open(path));
    let references: Vec<Weights> = references.collect::<Result<_, _>>()?;
    let device = env::device()?;
    let mut progress: Option<Progress> = None;
    let comparison = ::audit::compare(
        &a,
        &b,
        &references,
        CompareOptions {
            device: &device,
            alpha: args.alpha,
            on_block: &mut |done, total| {
                let new = || Progress::new("comparing", Unit::Of("blocks"), 0, total as u64);
                progress.get_or_insert_with(new).set(done as u64);
            },
        },
    )?;
    if let Some(progress) = progress {
        progress.finish();
    }
    print(&match args.json {
        true => serde_json::to_string(&comparison)?,
        false => describe(&comparison),
    });
    Ok(())
}

fn word(relation: Relation) -> &'static str {
    match relation {
        Relation::Related => "related",
        Relation::Reordered => "in another order",
        Relation::TooFewUnits => "too few units",
        Relation::NoneFound => "no relation found",
        Relation::NotComparable => "not comparable",
    }
}

fn describe(comparison: &Comparison) -> String {
    let mut text = describe_pair(&comparison.pair);
    for pair in &comparison.references {
        let _ = write!(text, "\nreference: {}", describe_pair(pair));
    }
    let _ = writeln!(text, "\nNot said by this:");
    for sentence in &comparison.cannot_conclude {
        let _ = writeln!(text, "  - {sentence}");
    }
    text.trim_end().to_owned()
}

fn describe_pair(pair: &Pair) -> String {
    let mut text = format!(
        "{}: {} and {}\n\n",
        word(pair.verdict),
        pair.a.display(),
        pair.b.display()
    );
    let head = [
        "component",
        "result",
        "units alike",
        "by chance",
        "correlation",
        "p at most",
    ];
    let _ = writeln!(text, "{}", row(head.map(str::to_owned)));
    for finding in &pair.findings {
        let _ = writeln!(text, "{}", row(cells(finding)));
    }
    if let Some(overlap) = &pair.tokenizers {
        let _ = writeln!(text, "  {}", describe_tokenizers(overlap));
    }
    text
}

fn row([component, result, units, chance, correlation, p]: [String; 6]) -> String {
    let text =
        format!("  {component:<18} {result:<18} {units:<20} {chance:<10} {correlation:<12} {p}");
    text.trim_end().to_owned()
}

/// A finding with the evidence for its result: units in their place, or wherever they stand.
fn cells(finding: &Finding) -> [String; 6] {
    let component = match finding.tower.as_str() {
        "" => finding.component.name().to_owned(),
        tower => format!("{tower} {}", finding.component.name()),
    };
    let count = |count: usize| grouped(count as u64);
    let (in_place, in_any_order) = (&finding.in_place, &finding.in_any_order);
    let [units, chance, correlation, p] = match (in_place, in_any_order) {
        (Some(found), _) if finding.result != Relation::Reordered => [
            format!("{} of {}", count(found.matches), count(found.units)),
            count(found.blocks),
            format!("{:.3}", found.similarity),
            power(found.log10_p_adjusted),
        ],
        (_, Some(found)) => [
            format!("{} of {}", count(found.agreeing), count(found.units)),
            count(found.blocks),
            String::new(),
            // Without a relation it would say nothing: the bound is not proved (`InAnyOrder`).
            match finding.result {
                Relation::Reordered => power(found.log10_p_adjusted),
                _ => String::new(),
            },
        ],
        _ => [
            finding.reason.clone().unwrap_or_default(),
            String::new(),
            String::new(),
            String::new(),
        ],
    };
    [
        component,
        word(finding.result).to_owned(),
        units,
        chance,
        correlation,
        p,
    ]
}

/// 10 to the power of `log10`, also where no number holds it.
fn power(log10: f64) -> String {
    match log10 {
        log if log > -3.0 => format!("{:.3}", 10f64.powf(log)),
        log => format!("1e{:.0}", log.ceil()),
    }
}

fn describe_tokenizers(overlap: &Overlap) -> String {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut text = format!(
        "tokenizers: {} tokens in common ({} of the first, {} of the second, {} of either), {} of them under one id",
        grouped(overlap.shared as u64),
        percent(overlap.share_of_a),
        percent(overlap.share_of_b),
        percent(overlap.jaccard),
        grouped(overlap.same_id as u64)
    );
    if let Some([shared, of_a, of_b]) = overlap.merges {
        let _ = write!(
            text,
            "; merges {} of {} and {}",
            grouped(shared as u64),
            grouped(of_a as u64),
            grouped(of_b as u64)
        );
    }
    text + " (no evidence of shared weights)"
}
