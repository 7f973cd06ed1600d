//! What the model can do: each area before and after, with intervals and the mark of a guesser; and, where
//! texts were scored, bits per byte of each.

use std::fmt::Write;

use eval::{Comparison, FileBits, Track, compare};

use crate::html::{Escaped, attribute};
use crate::plot::{Scale, figure, px, round_step};
use crate::run::{Run, Scored};

/// Areas of the national evaluation, in its order, and what each asks here.
pub(crate) const AREAS: [(&str, &str, &str); 4] = [
    ("mathematics", "Mathematics", "arithmetic in words"),
    ("knowledge", "Knowledge", "facts never asked in training"),
    (
        "long_document",
        "Long document",
        "questions about a passage",
    ),
    (
        "reliability_safety",
        "Reliability and safety",
        "refuse harm, admit not knowing",
    ),
];

/// The name of an area for people.
pub(crate) fn area_name(area: &str) -> &str {
    let known = AREAS.iter().find(|(key, _, _)| *key == area);
    known.map_or(area, |(_, name, _)| name)
}

/// What is scored together in the headline: mathematics and knowledge, or all where one is missing.
pub(crate) fn headline(scored: &Scored) -> (f64, &'static str) {
    match scored.result.score_of(&["mathematics", "knowledge"]) {
        Some((score, _)) => (score, "mathematics and knowledge"),
        None => (scored.result.score, "all areas"),
    }
}

/// The section; empty without an evaluation.
pub(crate) fn section(run: &Run) -> String {
    let scores = scores(&run.evaluations);
    let texts = run
        .texts
        .as_ref()
        .map_or(String::new(), |e| texts(&e.items));
    if scores.is_empty() && texts.is_empty() {
        return String::new();
    }
    format!("<section><h2>What it can do</h2>{scores}{texts}</section>\n")
}

/// One line of the chart: the score of an area, or of all, in each evaluation.
struct Row<'a> {
    name: &'a str,
    what: &'a str,
    chance: Option<f64>,
    scores: Vec<Option<(f64, [f64; 2])>>, // one for each evaluation
}

fn scores(evaluations: &[Scored]) -> String {
    let Some(last) = evaluations.last() else {
        return String::new();
    };
    let mut rows = vec![Row {
        name: "All areas",
        what: "their mean",
        chance: last.result.chance,
        scores: evaluations
            .iter()
            .map(|e| Some((e.result.score, e.result.ci95)))
            .collect(),
    }];
    let of = |scored: &Scored, area: &str| {
        let track: Option<&Track> = scored.result.tracks.get(area);
        track.map(|track| (track.score, track.ci95))
    };
    let known = AREAS.iter().map(|(key, name, what)| (*key, *name, *what));
    let others = last
        .result
        .tracks
        .keys()
        .map(|key| (key.as_str(), key.as_str(), ""));
    let others = others.filter(|(key, _, _)| AREAS.iter().all(|(known, _, _)| known != key));
    for (key, name, what) in known.chain(others) {
        if let Some(track) = last.result.tracks.get(key) {
            rows.push(Row {
                name,
                what,
                chance: Some(track.chance),
                scores: evaluations.iter().map(|scored| of(scored, key)).collect(),
            });
        }
    }
    let compared = match evaluations {
        [first, .., last] => compare(&first.result, &last.result).ok(),
        _ => None,
    };
    let asked = last.result.items.len();
    format!(
        "<p>{asked} questions that no training text asks, half Korean, half English{}.{}</p>{}\
         <figure class=\"chart large scores\">{}{}</figure>{}",
        points(last),
        compared.as_ref().map_or(String::new(), in_words),
        legend(evaluations),
        svg(&rows, 1040.0, "wide"),
        svg(&rows, 360.0, "narrow"),
        table(&rows, evaluations, compared.as_ref()),
    )
}

fn points(last: &Scored) -> String {
    match (last.result.points, last.result.settings.get("points")) {
        (Some(points), Some(of)) => format!(
            "; as points of the national evaluation\u{2019}s benchmark track, {points:.1} of {}",
            Escaped(of)
        ),
        _ => String::new(),
    }
}

fn in_words(comparison: &Comparison) -> String {
    let total = &comparison.total;
    format!(
        " From the first evaluation to the last {} answers became right and {} became wrong: {:+.1} percentage \
         points (95 %: {:+.1} to {:+.1}; p {}).",
        total.gained,
        total.lost,
        total.difference,
        total.ci95[0],
        total.ci95[1],
        p_value(total.p_value)
    )
}

fn p_value(p: f64) -> String {
    match p {
        p if p < 1e-6 => "&lt; 10\u{207b}\u{2076}".to_owned(),
        p => format!("= {}", figure(p)),
    }
}

fn legend(evaluations: &[Scored]) -> String {
    let last = evaluations.len() - 1;
    let entries = evaluations.iter().enumerate().map(|(idx, scored)| {
        format!(
            "<li><svg width=14 height=14><circle class=\"score {}\" cx=7 cy=7 r=5 /></svg>{}</li>",
            place(idx, last),
            Escaped(&scored.label)
        )
    });
    format!(
        "<ul class=legend>{}<li><svg width=34 height=14><path class=\"interval last\" d=\"M2 7H32\"/></svg>95 % \
         interval</li><li><svg width=10 height=14><path class=chance d=\"M5 0V14\"/></svg>a guesser</li></ul>",
        entries.collect::<String>()
    )
}

fn place(idx: usize, last: usize) -> &'static str {
    match idx {
        i if i == last => "last",
        0 => "first",
        _ => "between",
    }
}

fn svg(rows: &[Row<'_>], width: f64, class: &str) -> String {
    let is_narrow = width < 600.0;
    let row_height = if is_narrow { 76.0 } else { 58.0 };
    let (start, end) = match is_narrow {
        true => (8.0, width - 34.0),
        false => (250.0, width - 60.0),
    };
    let top = 26.0;
    let height = top + row_height * rows.len() as f64 + 14.0;
    let x = Scale::linear([0.0, 100.0], [start, end]);
    let mut out = format!(
        "<svg class={class} viewBox=\"0 0 {width} {height}\" role=img aria-label=\"scores by area\">"
    );
    for value in [0.0, 25.0, 50.0, 75.0, 100.0] {
        let at = px(x.at(value));
        let word = if value == 100.0 { "100 %" } else { "" };
        let _ = write!(
            out,
            "<path class=grid d=\"M{at} {top}V{}\"/><text class=tick x={at} y={} text-anchor=middle>{}</text>",
            px(height - 14.0),
            top - 9.0,
            if word.is_empty() {
                px(value)
            } else {
                word.to_owned()
            }
        );
    }
    for (idx, row) in rows.iter().enumerate() {
        let above = top + row_height * idx as f64;
        let y = above + if is_narrow { 52.0 } else { 30.0 };
        draw_row(&mut out, row, x, y, (idx == 0, is_narrow, above));
    }
    out.push_str("</svg>");
    out
}

fn draw_row(out: &mut String, row: &Row<'_>, x: Scale, y: f64, how: (bool, bool, f64)) {
    let (is_total, is_narrow, above) = how;
    let weight = if is_total { "name total" } else { "name" };
    let _ = match is_narrow {
        true => write!(
            out,
            "<text class=\"{weight}\" x=0 y={}>{} <tspan class=what>{}</tspan></text>",
            px(above + 20.0),
            Escaped(row.name),
            Escaped(row.what)
        ),
        false => write!(
            out,
            "<text class=\"{weight}\" x=0 y={}>{}</text><text class=what x=0 y={}>{}</text>",
            px(y - 1.0),
            Escaped(row.name),
            px(y + 15.0),
            Escaped(row.what)
        ),
    };
    if let Some(chance) = row.chance {
        let at = px(x.at(chance));
        let _ = write!(
            out,
            "<path class=chance d=\"M{at} {}V{}\"><title>a guesser: {chance:.1} %</title></path>",
            px(y - 12.0),
            px(y + 12.0)
        );
    }
    let known: Vec<(usize, f64, [f64; 2])> = (row.scores.iter().enumerate())
        .filter_map(|(idx, score)| score.map(|(score, ci)| (idx, score, ci)))
        .collect();
    if let [(_, first, _), .., (_, last, _)] = known.as_slice() {
        let (from, to) = (px(x.at(*first)), px(x.at(*last)));
        let _ = write!(out, "<path class=move d=\"M{from} {}H{to}\"/>", px(y));
    }
    let end = row.scores.len() - 1;
    for (idx, score, ci) in known {
        let class = place(idx, end);
        let at = px(x.at(score));
        let _ = write!(
            out,
            "<path class=\"interval {class}\" d=\"M{} {y}H{}\"/><circle class=\"score {class}\" cx={at} cy={y} \
             r={}><title>{score:.1} %, 95 % interval {:.1} to {:.1}</title></circle>",
            px(x.at(ci[0])),
            px(x.at(ci[1])),
            if class == "last" { 7 } else { 5 },
            ci[0],
            ci[1]
        );
        let _ = match class {
            "last" => write!(
                out,
                "<text class=\"figure last\" x={} y={}>{score:.0}</text>",
                px(x.at(ci[1].max(score)) + 11.0),
                px(y + 5.5)
            ),
            // A value over its mark; where it would touch the last one, the last one says enough.
            "first" => write!(
                out,
                "<text class=\"figure first\" x={at} y={} text-anchor=middle>{score:.0}</text>",
                px(y - 11.0)
            ),
            _ => Ok(()),
        };
    }
}

fn table(rows: &[Row<'_>], evaluations: &[Scored], compared: Option<&Comparison>) -> String {
    let mut out = String::from(
        "<details><summary>Figures</summary><div class=scroll><table><tr><th>area<th>guesser",
    );
    for scored in evaluations {
        let _ = write!(out, "<th>{}", Escaped(&scored.label));
    }
    if compared.is_some() {
        out.push_str("<th>change<th>gained, lost<th>p");
    }
    for row in rows {
        let _ = write!(
            out,
            "<tr><td>{}<td>{}",
            Escaped(row.name),
            row.chance.map_or(String::new(), |c| format!("{c:.1}"))
        );
        for score in &row.scores {
            let _ = match score {
                Some((score, ci)) => write!(
                    out,
                    "<td>{score:.1} <small>{:.1} to {:.1}</small>",
                    ci[0], ci[1]
                ),
                None => write!(out, "<td>"),
            };
        }
        let key = AREAS
            .iter()
            .find(|(_, name, _)| *name == row.name)
            .map_or(row.name, |area| area.0);
        let change = compared.and_then(|all| match row.name {
            "All areas" => Some(&all.total),
            _ => all.tracks.get(key),
        });
        if let Some(change) = change {
            let _ = write!(
                out,
                "<td>{:+.1} <small>{:+.1} to {:+.1}</small><td>{}, {}<td>{}",
                change.difference,
                change.ci95[0],
                change.ci95[1],
                change.gained,
                change.lost,
                p_value(change.p_value)
            );
        }
    }
    out.push_str(
        "</table></div><p class=foot>Percent correct. Intervals: Wilson, for clusters of items about one thing; \
         change: Newcombe, paired; p: exact sign test over clusters (McNemar).</p></details>",
    );
    out
}

/// Bits per byte of each file, the smaller the better.
fn texts(files: &[FileBits]) -> String {
    let Some([_, high]) = crate::plot::extent(files.iter().map(|f| f.ci95[1].max(f.bits_per_byte)))
    else {
        return String::new();
    };
    let step = round_step(high / 4.0);
    let full = step * (high / step).ceil();
    let draw = |width: f64, class: &str| {
        let is_narrow = width < 600.0;
        let (start, end) = if is_narrow {
            (90.0, width - 44.0)
        } else {
            (250.0, width - 60.0)
        };
        let x = Scale::linear([0.0, full.max(1e-9)], [start, end]);
        let row = 30.0;
        let height = 26.0 + row * files.len() as f64 + 6.0;
        let mut out = format!(
            "<svg class={class} viewBox=\"0 0 {width} {height}\" role=img aria-label=\"bits per byte\">"
        );
        for value in x.ticks(4) {
            let at = px(x.at(value));
            let _ = write!(
                out,
                "<path class=grid d=\"M{at} 26V{height}\"/><text class=tick x={at} y=17 \
                 text-anchor=middle>{}</text>",
                crate::plot::tick(value)
            );
        }
        for (idx, file) in files.iter().enumerate() {
            let y = 26.0 + row * (idx as f64 + 0.5);
            let (name, value) = (short_name(&file.file), file.bits_per_byte);
            let _ = write!(
                out,
                "<text class=name x=0 y={}>{}</text><path class=\"interval last\" d=\"M{} {y}H{}\"/>\
                 <circle class=\"score last\" cx={} cy={y} r=6><title>{}: {value:.4} bits per byte, {} bytes, \
                 {} tokens</title></circle><text class=\"figure last\" x={} y={}>{value:.3}</text>",
                px(y + 5.0),
                Escaped(&name),
                px(x.at(file.ci95[0])),
                px(x.at(file.ci95[1])),
                px(x.at(value)),
                attribute(&file.file),
                file.bytes,
                file.tokens,
                px(x.at(file.ci95[1].max(value)) + 10.0),
                px(y + 5.5),
            );
        }
        out.push_str("</svg>");
        out
    };
    format!(
        "<figure class=\"chart large scores\"><figcaption><b>Bits per byte</b><span>of texts it has not seen; \
         the smaller the better</span></figcaption>{}{}</figure>",
        draw(1040.0, "wide"),
        draw(360.0, "narrow")
    )
}

fn short_name(path: &str) -> String {
    let name = path.rsplit(['/', '\\']).next().unwrap_or(path);
    match name.char_indices().nth(28) {
        Some((end, _)) => format!("{}\u{2026}", &name[..end]),
        None => name.to_owned(),
    }
}
