//! Sample answers, before and after: of each area some that became right and one that is still wrong. Which
//! ones is decided by their order alone, not by how well they read.

use std::collections::HashMap;
use std::fmt::Write;

use eval::Answered;

use crate::html::Escaped;
use crate::run::{Run, Scored};
use crate::scores::{AREAS, area_name};

/// Right and wrong ones of an area.
const RIGHT: usize = 2;
const WRONG: usize = 1;
/// Characters of a prompt that stand in the open; of a longer one, its last line.
const OPEN_CHARS: usize = 260;
/// Characters of an answer, and of one that went on until it was cut.
const ANSWER_CHARS: usize = 400;
const CUT_CHARS: usize = 80;

/// The section; empty without an evaluation.
pub(crate) fn section(run: &Run) -> String {
    let Some(last) = run.evaluations.last() else {
        return String::new();
    };
    let before = match run.evaluations.as_slice() {
        [first, .., _] => Some(first),
        _ => None,
    };
    let earlier: HashMap<&str, &Answered> = before.map_or_else(HashMap::new, |first| {
        let items = first.result.items.iter();
        items.map(|item| (item.id.as_str(), item)).collect()
    });
    let mut cards = String::new();
    let known = AREAS.iter().map(|(key, _, _)| *key);
    for area in known {
        for item in chosen(&last.result.items, area) {
            let same = earlier.get(item.id.as_str());
            let first = same.filter(|first| first.prompt == item.prompt);
            cards.push_str(&card(item, first.copied(), before, last));
        }
    }
    if cards.is_empty() {
        return String::new();
    }
    format!(
        "<section><h2>In its own words</h2><p>Of each area the first answers that are right and the first that \
         is wrong, whatever they say.</p><div class=cards>{cards}</div></section>\n"
    )
}

/// The first right ones, in different languages where there are, then the first wrong ones.
fn chosen<'a>(items: &'a [Answered], area: &str) -> Vec<&'a Answered> {
    let mut right: Vec<&Answered> = Vec::new();
    let of_area = || items.iter().filter(|item| item.area == area);
    for item in of_area().filter(|item| item.correct) {
        if right.len() < RIGHT && right.iter().all(|other| other.lang != item.lang) {
            right.push(item);
        }
    }
    let wrong = of_area().filter(|item| !item.correct).take(WRONG);
    right.into_iter().chain(wrong).collect()
}

fn card(
    item: &Answered,
    first: Option<&Answered>,
    before: Option<&Scored>,
    last: &Scored,
) -> String {
    let mut out = format!(
        "<article lang=\"{}\"><h3>{}</h3>{}<dl>",
        Escaped(&item.lang),
        Escaped(area_name(&item.area)),
        prompt(&item.prompt)
    );
    if let (Some(first), Some(before)) = (first, before) {
        said(&mut out, &before.label, first);
    }
    said(&mut out, &last.label, item);
    if !item.correct {
        let _ = write!(
            out,
            "<dt>expected<dd class=expected>{}",
            Escaped(&item.expected)
        );
    }
    out.push_str("</dl></article>\n");
    out
}

fn said(out: &mut String, label: &str, item: &Answered) {
    let (class, mark, word) = match item.correct {
        true => ("right", "\u{2713}", "right"),
        false => ("wrong", "\u{2717}", "wrong"),
    };
    let is_cut = item.problem.is_some();
    let limit = if is_cut { CUT_CHARS } else { ANSWER_CHARS };
    let answer = shortened(item.answer.trim(), limit);
    let _ = write!(
        out,
        "<dt>{}<dd class={class}><i title={word}>{mark}</i> ",
        Escaped(label)
    );
    let _ = match answer.is_empty() {
        true => write!(out, "<em>nothing</em>"),
        false => write!(out, "{}", Escaped(&answer)),
    };
    if let Some(problem) = &item.problem {
        let short = if problem.starts_with("cut") {
            "cut off"
        } else {
            "not asked"
        };
        let _ = write!(
            out,
            " <small title=\"{}\">{short}</small>",
            Escaped(problem)
        );
    }
}

fn prompt(text: &str) -> String {
    if text.chars().count() <= OPEN_CHARS {
        return format!("<blockquote>{}</blockquote>", Escaped(text));
    }
    let (passage, question) = text.trim_end().rsplit_once('\n').unwrap_or((text, ""));
    let question = shortened(question, OPEN_CHARS);
    format!(
        "<blockquote><details><summary>passage of {} characters</summary>{}</details>{}</blockquote>",
        passage.chars().count(),
        Escaped(passage),
        Escaped(&question)
    )
}

fn shortened(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}\u{2026}", &text[..end]),
        None => text.to_owned(),
    }
}
