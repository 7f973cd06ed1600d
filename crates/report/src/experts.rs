//! Who does the work: the share of tokens that each expert gets, layer by layer, over the course of training.
//!
//! A cell is the share of an expert in a stretch of training, relative to an even share: on a logarithmic
//! scale from half (deep blue) over even (the page's ground) to twice (deep orange). Cells of one
//! colour are one path, so that a page with thousands of cells stays small.

use std::fmt::Write;

use formats::metrics::StepMetrics;
use formats::run_dir::Stage;

use crate::plot::{figure, px};
use crate::run::Run;

/// Colours on each side of even.
const STEPS: i32 = 4;
/// Stretches of training at most.
const MAX_COLUMNS: usize = 56;
/// Layers shown at most; of more, an even selection.
const MAX_LAYERS: usize = 12;
/// Experts shown at most in a layer: the most and the least used of more.
const MAX_EXPERTS: usize = 128;

const WIDTH: f64 = 300.0;

/// The section; empty where no load was recorded.
pub(crate) fn section(run: &Run) -> String {
    let recorded: Vec<&StepMetrics> = run
        .metrics(Stage::Pretrain)
        .iter()
        .filter(|m| {
            m.expert_load
                .as_ref()
                .is_some_and(|layers| !layers.is_empty())
        })
        .collect();
    let (Some(first), Some(last)) = (recorded.first(), recorded.last()) else {
        return String::new();
    };
    let num_layers = first.expert_load.as_ref().map_or(0, Vec::len);
    let shown = crate::plot::spread(num_layers, MAX_LAYERS);
    let mut panels = String::new();
    let mut busiest: f64 = 0.0;
    for layer in &shown {
        let columns = columns(&recorded, *layer);
        let Some(end) = columns.last() else {
            continue;
        };
        let max = end.iter().copied().fold(0.0, f64::max);
        busiest = busiest.max(max);
        panels.push_str(&panel(*layer, &columns, max));
    }
    if panels.is_empty() {
        return String::new();
    }
    let selected = match shown.len() < num_layers {
        true => format!(" {} of {num_layers} sparse layers are shown.", shown.len()),
        false => String::new(),
    };
    format!(
        "<section><h2>Who does the work</h2>\
         <p>Every token is sent to a few experts in each sparse layer. A balanced router keeps all of them in \
         use: at the end the busiest expert has {} times an even share.{selected}</p>{}\
         <div class=multiples>{panels}</div>\
         <p class=foot>Rows are experts, from left to right {} to {} tokens.</p></section>\n",
        figure(busiest),
        legend(),
        figure(first.tokens as f64),
        figure(last.tokens as f64),
    )
}

/// Share relative to even, by stretch of training and expert.
fn columns(recorded: &[&StepMetrics], layer: usize) -> Vec<Vec<f64>> {
    let of_layer: Vec<&Vec<f32>> = recorded
        .iter()
        .filter_map(|m| m.expert_load.as_ref()?.get(layer))
        .collect();
    let num_experts = of_layer.first().map_or(0, |load| load.len());
    if num_experts == 0 {
        return Vec::new();
    }
    let piece = of_layer.len().div_ceil(MAX_COLUMNS).max(1);
    let mut columns: Vec<Vec<f64>> = Vec::new();
    for stretch in of_layer.chunks(piece) {
        let mut sums = vec![0.0; num_experts];
        for load in stretch.iter().filter(|load| load.len() == num_experts) {
            let total: f64 = load.iter().map(|share| f64::from(*share)).sum();
            for (sum, share) in sums.iter_mut().zip(load.iter()) {
                *sum += f64::from(*share) * num_experts as f64 / total.max(1e-12);
            }
        }
        let count = stretch.len().max(1) as f64;
        columns.push(sums.into_iter().map(|sum| sum / count).collect());
    }
    keep_extremes(columns)
}

/// Of more experts than can be shown, those most and least used at the end.
fn keep_extremes(columns: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let Some(end) = columns.last().filter(|end| end.len() > MAX_EXPERTS) else {
        return columns;
    };
    let mut order: Vec<usize> = (0..end.len()).collect();
    order.sort_by(|a, b| end[*b].total_cmp(&end[*a]));
    let mut kept = order[..MAX_EXPERTS / 2].to_vec();
    kept.extend_from_slice(&order[order.len() - MAX_EXPERTS / 2..]);
    kept.sort_unstable();
    let pick = |column: &Vec<f64>| kept.iter().map(|i| column[*i]).collect();
    columns.iter().map(pick).collect()
}

/// -STEPS to STEPS: how many quarters of an octave above or below even.
fn colour(relative: f64) -> i32 {
    let octaves = relative.max(1e-9).log2();
    ((octaves * f64::from(STEPS)).round() as i32).clamp(-STEPS, STEPS)
}

fn panel(layer: usize, columns: &[Vec<f64>], max: f64) -> String {
    let num_experts = columns.first().map_or(0, Vec::len);
    let row = (128.0 / num_experts as f64).clamp(1.5, 12.0);
    let height = row * num_experts as f64;
    let width = WIDTH / columns.len() as f64;
    let mut paths = vec![String::new(); (2 * STEPS + 1) as usize];
    for expert in 0..num_experts {
        let colours: Vec<i32> = columns.iter().map(|c| colour(c[expert])).collect();
        let mut start = 0;
        // Neighbours of one colour are one cell.
        for end in 1..=colours.len() {
            if end < colours.len() && colours[end] == colours[start] {
                continue;
            }
            let path = &mut paths[(colours[start] + STEPS) as usize];
            let _ = write!(
                path,
                "M{} {}h{}v{}h-{}z",
                px(start as f64 * width),
                px(expert as f64 * row),
                px((end - start) as f64 * width),
                px(row),
                px((end - start) as f64 * width)
            );
            start = end;
        }
    }
    let mut out = format!(
        "<figure class=\"chart small heat\"><figcaption><b>Sparse layer {}</b><span class=now>busiest \
         {}\u{d7}</span></figcaption><svg viewBox=\"0 0 {WIDTH} {}\" role=img \
         aria-label=\"share of tokens of each expert over time, layer {}\" shape-rendering=crispEdges>\
         <rect class=\"h h0\" width={WIDTH} height={} />",
        layer + 1,
        figure(max),
        px(height),
        layer + 1,
        px(height)
    );
    for (idx, path) in paths.iter().enumerate() {
        let step = idx as i32 - STEPS;
        if !path.is_empty() && step != 0 {
            let _ = write!(out, "<path class=\"h {}\" d=\"{path}\"/>", class(step));
        }
    }
    out.push_str("</svg></figure>\n");
    out
}

fn class(step: i32) -> String {
    match step {
        0 => "h0".to_owned(),
        s if s < 0 => format!("hm{}", -s),
        s => format!("hp{s}"),
    }
}

fn legend() -> String {
    let words = ["\u{bd}\u{d7}", "", "", "", "even", "", "", "", "2\u{d7}"];
    let cells = words
        .iter()
        .zip(-STEPS..)
        .map(|(word, step)| format!("<li><i class=\"h {}\"></i>{word}</li>", class(step)));
    format!("<ul class=scale>{}</ul>", cells.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_quarter_octaves_around_even() {
        assert_eq!(
            [0.0, 0.5, 0.7, 1.0, 1.05, 1.4, 99.0].map(colour),
            [-4, -4, -2, 0, 0, 2, 4]
        );
    }

    #[test]
    fn the_most_and_the_least_used_of_many_experts_are_kept() {
        let end: Vec<f64> = (0..300).map(f64::from).collect();
        let kept = keep_extremes(vec![end.clone(), end]);
        assert_eq!(kept[1].len(), MAX_EXPERTS);
        assert_eq!((kept[1][0], kept[1][MAX_EXPERTS - 1]), (0.0, 299.0));
    }

    #[test]
    fn loads_of_changing_shape_do_not_panic() {
        let step = |layers: Vec<Vec<f32>>| StepMetrics {
            expert_load: Some(layers),
            ..StepMetrics::default()
        };
        let steps = [
            step(vec![vec![0.5, 0.5], vec![]]),
            step(vec![vec![1.0]]),
            step(vec![vec![f32::NAN, 0.0], vec![0.1]]),
        ];
        let recorded: Vec<&StepMetrics> = steps.iter().collect();
        assert!(panel(0, &columns(&recorded, 0), 1.0).contains("</svg>"));
        assert!(columns(&recorded, 1).is_empty() && columns(&recorded, 2).is_empty());
    }
}
