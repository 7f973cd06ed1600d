//! The frame of the page, and the only way by which text from outside gets into it.

use std::fmt::{self, Display, Write};

use formats::run_dir::Stage;

use crate::plot::{figure, grouped};
use crate::run::Run;
use crate::{answers, experts, provenance, scores, training};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Text as HTML shows it, inside elements and quoted attributes alike.
pub(crate) struct Escaped<'a>(pub(crate) &'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' => f.write_char(c)?,
                // Marks that turn the direction of the text around them, and what is no character.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => f.write_char('\u{fffd}')?,
                c if c.is_control() => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// For a quoted attribute.
pub(crate) fn attribute(text: &str) -> String {
    Escaped(text).to_string()
}

/// The whole page.
pub(crate) fn page(run: &Run) -> String {
    let mut body = String::new();
    body.push_str(&header(run));
    body.push_str(&scores::section(run));
    body.push_str(&answers::section(run));
    body.push_str(&training::section(run));
    body.push_str(&experts::section(run));
    body.push_str(&provenance::section(run));
    body.push_str(&left_out(run));
    format!(
        "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src \
         'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n\
         <meta name=viewport content=\"width=device-width, initial-scale=1\">\n\
         <meta name=color-scheme content=\"light dark\">\n\
         <title>{} \u{b7} dokja</title>\n<style>\n{STYLE}</style>\n<main>\n{body}</main>\n\
         <footer>Made by dokja {} from the files of the run alone.</footer>\n\
         <div id=tip hidden></div>\n<script>\n{SCRIPT}</script>\n</html>\n",
        Escaped(&run.name),
        env!("CARGO_PKG_VERSION"),
    )
}

/// What it is, and the figures that one wants first.
fn header(run: &Run) -> String {
    let mut facts: Vec<(String, String)> = Vec::new(); // figure (HTML), what it is
    if let [first, .., last] = run.evaluations.as_slice() {
        let ((from, _), (to, what)) = (scores::headline(first), scores::headline(last));
        facts.push((
            format!("<s>{from:.0}</s> {to:.0}<small>%</small>"),
            format!("right in {what}"),
        ));
    } else if let Some(only) = run.evaluations.last() {
        let (score, what) = scores::headline(only);
        facts.push((
            format!("{score:.0}<small>%</small>"),
            format!("right in {what}"),
        ));
    }
    if let Some((from, to)) = training::heldout(run) {
        facts.push((
            format!("<s>{from:.2}</s> {to:.2}"),
            "bits per byte of held-out text".to_owned(),
        ));
    }
    if let Some(count) = run.num_parameters {
        facts.push((spaced(count as f64), "parameters".to_owned()));
    }
    let (tokens, seconds) = training::effort(run);
    if tokens > 0 {
        facts.push((spaced(tokens as f64), "tokens read in training".to_owned()));
    }
    if seconds > 0.0 {
        facts.push((duration(seconds), "of training".to_owned()));
    }
    if let Some(certificate) = &run.certificate {
        let known = ["valid", "broken"]
            .into_iter()
            .find(|w| *w == certificate.verdict);
        let word = known.unwrap_or("incomplete");
        facts.push((
            format!("<span class=\"verdict {word}\">{word}</span>"),
            "certificate of its origin".to_owned(),
        ));
    }
    let facts: String = facts
        .into_iter()
        .map(|(value, name)| format!("<div><dd>{value}<dt>{}</div>", Escaped(&name)))
        .collect();
    format!(
        "<header><p class=brand>dokja <span lang=ko>\u{b3c5}\u{c790}</span></p><h1>{}</h1><p>{}</p>\
         <dl class=facts>{facts}</dl></header>\n",
        Escaped(&run.name),
        Escaped(&subtitle(run)),
    )
}

/// What kind of model, in a sentence.
fn subtitle(run: &Run) -> String {
    let mut text = "A language model of one\u{2019}s own, from random numbers".to_owned();
    let get = |key: &str| run.config.as_ref().and_then(|config| config[key].as_u64());
    if let (Some(layers), Some(experts), Some(active)) = (
        get("num_hidden_layers"),
        get("num_experts"),
        get("num_experts_per_tok"),
    ) {
        let _ = write!(
            text,
            ": {} layers, {active} of {} experts for each token",
            grouped(layers),
            grouped(experts)
        );
    }
    let steps = |stage| run.metrics(stage).last().map(|m| m.step);
    if let Some(steps) = steps(Stage::Pretrain) {
        let _ = write!(text, ", pretrained for {} steps", grouped(steps));
    }
    if let Some(steps) = steps(Stage::Sft) {
        let _ = write!(text, ", tuned on instructions for {}", grouped(steps));
    }
    if let Some(steps) = steps(Stage::Prefer) {
        let _ = write!(text, ", taught what is preferred for {}", grouped(steps));
    }
    if let Some(steps) = steps(Stage::Rl) {
        let _ = write!(text, ", reinforced for {}", grouped(steps));
    }
    text.push('.');
    text
}

fn spaced(value: f64) -> String {
    let text = figure(value);
    match text.split_once(' ') {
        Some((number, unit)) => format!("{number}<small>{unit}</small>"),
        None => text,
    }
}

fn duration(seconds: f64) -> String {
    let whole = seconds.min(1e12).round() as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}<small>s</small>"),
        (0, _) => format!("{minutes}<small>min</small> {seconds:02}<small>s</small>"),
        _ => format!(
            "{}<small>h</small> {minutes:02}<small>min</small>",
            grouped(hours)
        ),
    }
}

/// What could not be read.
fn left_out(run: &Run) -> String {
    if run.unreadable.is_empty() {
        return String::new();
    }
    let reasons = run.unreadable.iter();
    let list: String = reasons.map(|why| format!("<li>{}", Escaped(why))).collect();
    format!(
        "<section class=left-out><h2>Left out</h2><p>These files could not be read:</p><ul>{list}</ul></section>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_can_leave_its_place() {
        let hostile = "</td><script>alert(1)</script>\"' onload=x &amp; \u{202e}\u{0}\u{1b}[2J";
        let shown = Escaped(hostile).to_string();
        assert!(!shown.contains(['<', '>', '"', '\'', '\u{202e}', '\u{0}', '\u{1b}']));
        assert!(shown.contains("&amp;amp;"));
        assert_eq!(Escaped("가\n나\t&").to_string(), "가\n나\t&amp;");
    }

    #[test]
    fn durations_are_for_people() {
        let plain = |seconds| {
            duration(seconds)
                .replace("<small>", "")
                .replace("</small>", "")
        };
        assert_eq!(
            [3.4, 75.0, 7500.0].map(plain),
            ["3s", "1min 15s", "2h 05min"]
        );
        assert_eq!(plain(f64::MAX).len(), "277,777,777h 46min".len());
    }
}
