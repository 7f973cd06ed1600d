//! How training went: loss, bits per byte of held-out text, learning rate, gradient norm, speed.

use formats::ledger::Event;
use formats::metrics::StepMetrics;
use formats::run_dir::Stage;

use crate::chart::{Lines, Series, Size, last_finite};
use crate::plot::{figure, grouped};
use crate::run::{Run, StageRun};

/// The section; empty before the first step.
pub(crate) fn section(run: &Run) -> String {
    let mut out = String::new();
    for stage in &run.stages {
        if !stage.metrics.is_empty() {
            out.push_str(&of_stage(run, stage));
        }
    }
    out
}

fn of_stage(run: &Run, stage: &StageRun) -> String {
    let metrics = &stage.metrics;
    let x: Vec<f64> = metrics.iter().map(|m| m.tokens as f64).collect();
    let column = |value: fn(&StepMetrics) -> f64| metrics.iter().map(value).collect::<Vec<f64>>();
    let (title, what) = match stage.stage {
        Stage::Pretrain => (
            "Learning to predict",
            "Each step reads a batch of text and is corrected wherever the next token surprised the model.",
        ),
        Stage::Sft => (
            "Learning to answer",
            "Instruction tuning: dialogues in the chat format; only the answers count in the loss.",
        ),
        Stage::Prefer => (
            "Learning what is preferred",
            "Of two answers to a question, the chosen one becomes likelier than the rejected one. The reward is the share \
             of pairs that the model tells apart better than at the start.",
        ),
        Stage::Rl => (
            "Learning from its own answers",
            "Reinforcement learning: the model answers each question several times, and what was better than the others \
             becomes likelier.",
        ),
    };
    let large = match stage.stage {
        Stage::Prefer | Stage::Rl => rewards(&x, metrics),
        Stage::Pretrain | Stage::Sft => losses(run, stage, &x),
    };
    let mut small = String::new();
    small.push_str(&bits_per_byte(metrics));
    let mut add = |title, unit, values: Vec<f64>, from_zero, is_smoothed| {
        let lines = Lines {
            title,
            note: String::new(),
            unit,
            x: &x,
            x_unit: "tokens",
            series: vec![Series {
                name: title,
                class: "a",
                values,
            }],
            is_log: false,
            from_zero,
            is_smoothed,
            guide: None,
            size: Size::Small,
        };
        small.push_str(&lines.figure());
    };
    add("Learning rate", "", column(|m| m.lr), true, false);
    add(
        "Gradient norm",
        "before clipping",
        column(|m| m.grad_norm),
        true,
        true,
    );
    add(
        "Speed",
        "tokens per second",
        column(|m| m.tokens_per_sec),
        true,
        true,
    );
    let balance = column(|m| m.balance_loss);
    if balance.iter().any(|loss| *loss != 0.0) {
        add("Balance loss", "unweighted", balance, false, true);
    }
    format!(
        "<section><h2>{title}</h2><p>{what}</p>{large}<div class=multiples>{small}</div></section>\n"
    )
}

/// The course of the loss.
fn losses(run: &Run, stage: &StageRun, x: &[f64]) -> String {
    let metrics = &stage.metrics;
    let column = |value: fn(&StepMetrics) -> f64| metrics.iter().map(value).collect::<Vec<f64>>();
    let mut series = vec![Series {
        name: "next token",
        class: "a",
        values: column(|m| m.next_token_loss),
    }];
    let mtp = column(|m| m.mtp_loss);
    if mtp.iter().any(|loss| *loss != 0.0) {
        series.push(Series {
            name: "token after",
            class: "b",
            values: mtp,
        });
    }
    let guess = vocab_size(run).filter(|_| stage.stage == Stage::Pretrain);
    let loss = Lines {
        title: "Loss",
        note: loss_note(stage, metrics),
        unit: "nats per token",
        x,
        x_unit: "tokens",
        series,
        is_log: true,
        from_zero: false,
        is_smoothed: true,
        guide: guess.map(|v| {
            let value = (v as f64).ln();
            let name = format!("guessing among {} tokens: {}", grouped(v), figure(value));
            (value, name)
        }),
        size: Size::Large,
    };
    loss.figure()
}

/// The course of the reward.
fn rewards(x: &[f64], metrics: &[StepMetrics]) -> String {
    let values: Vec<f64> = (metrics.iter())
        .map(|m| m.reward.unwrap_or(f64::NAN))
        .collect();
    // Single steps ask too few questions to be compared.
    let few = values.len().div_ceil(10);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let (first, last) = (mean(&values[..few]), mean(&values[values.len() - few..]));
    let tokens = metrics.last().map_or(0, |m| m.tokens);
    let lines = Lines {
        title: "Reward",
        note: format!(
            "from {} to {} (means of a tenth of the steps) over {} steps and {} tokens of questions and answers",
            figure(first),
            figure(last),
            grouped(metrics.len() as u64),
            figure(tokens as f64)
        ),
        unit: "mean of a step's answers",
        x,
        x_unit: "tokens",
        series: vec![Series {
            name: "Reward",
            class: "a",
            values,
        }],
        is_log: false,
        from_zero: true,
        is_smoothed: true,
        guide: None,
        size: Size::Large,
    };
    lines.figure()
}

fn loss_note(stage: &StageRun, metrics: &[StepMetrics]) -> String {
    let (Some(first), Some(last)) = (metrics.first(), metrics.last()) else {
        return String::new();
    };
    let steps = match last.step == 1 {
        true => "1 step".to_owned(),
        false => format!("{} steps", grouped(last.step)),
    };
    let axis = "nats per token, logarithmic";
    let what = match stage.stage {
        Stage::Pretrain => "tokens",
        Stage::Sft | Stage::Prefer | Stage::Rl => "tokens of dialogue",
    };
    format!(
        "from {} to {} over {steps} and {} {what}; {axis}",
        figure(first.next_token_loss),
        figure(last.next_token_loss),
        figure(last.tokens as f64)
    )
}

fn bits_per_byte(metrics: &[StepMetrics]) -> String {
    let measured = metrics
        .iter()
        .filter_map(|m| Some((m.tokens as f64, m.bits_per_byte?)));
    let (x, values): (Vec<f64>, Vec<f64>) = measured.unzip();
    if values.len() < 2 {
        return String::new(); // a point shows no course
    }
    let lines = Lines {
        title: "Held-out text",
        note: String::new(),
        unit: "bits per byte",
        x: &x,
        x_unit: "tokens",
        series: vec![Series {
            name: "Held-out text",
            class: "c",
            values,
        }],
        is_log: false,
        from_zero: true,
        is_smoothed: false,
        guide: None,
        size: Size::Small,
    };
    lines.figure()
}

/// Of the tokenizer, as the ledger has it, or of the model.
fn vocab_size(run: &Run) -> Option<u64> {
    let recorded = run.events().find_map(|(_, event)| match event {
        Event::Tokenizer(tokenizer) => Some(tokenizer.vocab_size),
        _ => None,
    });
    recorded.or_else(|| run.config.as_ref()?["vocab_size"].as_u64())
}

/// The last bits per byte of held-out text, and what it was at first.
pub(crate) fn heldout(run: &Run) -> Option<(f64, f64)> {
    let measured = run.metrics(Stage::Pretrain).iter();
    let values: Vec<f64> = measured.filter_map(|m| m.bits_per_byte).collect();
    Some((*values.first()?, last_finite(&values)?))
}

/// Tokens read and seconds spent in all stages.
pub(crate) fn effort(run: &Run) -> (u64, f64) {
    let mut sum = (0, 0.0);
    for stage in &run.stages {
        let mut before = 0;
        for m in &stage.metrics {
            let tokens = m.tokens.saturating_sub(before);
            before = m.tokens;
            sum.0 += tokens;
            if m.tokens_per_sec > 0.0 {
                sum.1 += tokens as f64 / m.tokens_per_sec;
            }
        }
    }
    sum
}
