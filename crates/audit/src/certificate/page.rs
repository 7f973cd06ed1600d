//! The certificate as one page of HTML, with nothing from outside: no script, no font, no picture.
//!
//! All text from the run is escaped: a ledger may come from anybody.

use std::fmt::{self, Display, Write};

use super::{Certificate, ClaimResult};
use crate::finding::{Finding, Outcome, Verdict};
use crate::verify::Milestone;

/// More findings of one claim are counted, not shown; `certificate.json` has them all.
const MAX_FINDINGS: usize = 60;

pub(super) fn html(certificate: &Certificate) -> String {
    let (class, title) = match certificate.verdict {
        Verdict::Valid => ("valid", "Trained from a random start"),
        Verdict::Broken => ("broken", "The record is contradicted"),
        Verdict::Incomplete => ("incomplete", "The record does not reach back to the start"),
    };
    let mut page = String::with_capacity(1 << 15);
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>Certificate of origin: {title}</title>\n<style>\n{}</style>\n</head>\n\
         <body>\n<main class=\"{class}\">\n<header>\n<div>\n<p class=\"over\">Certificate of origin</p>\n\
         <h1>{title}</h1>\n<p>{}</p>\n</div>\n{}</header>\n",
        include_str!("page.css"),
        Escaped(&summary(certificate)),
        seal(certificate.verdict),
    );
    model(&mut page, certificate);
    story(&mut page, &certificate.story);
    page.push_str("<h2>What was tested</h2>\n<div class=\"claims\">\n");
    for claim in &certificate.claims {
        claim_card(&mut page, claim);
    }
    page.push_str("</div>\n");
    footer(&mut page, certificate);
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

/// The verdict in one sentence.
fn summary(certificate: &Certificate) -> String {
    let findings = || certificate.claims.iter().flat_map(|claim| &claim.findings);
    let first = |result: Outcome| {
        findings()
            .find(|finding| finding.result == result)
            .map_or(String::new(), |finding| {
                format!(" First: {}: {}.", finding.component, finding.detail)
            })
    };
    let count = |result: Outcome| findings().filter(|f| f.result == result).count();
    match certificate.verdict {
        Verdict::Valid => "Every link from the final weights back to the random numbers that they \
                           began as was tested, and holds."
            .to_string(),
        Verdict::Broken => {
            let n = count(Outcome::Failed);
            let findings = if n == 1 {
                "finding contradicts"
            } else {
                "findings contradict"
            };
            format!("{n} {findings} the record.{}", first(Outcome::Failed))
        }
        Verdict::Incomplete => format!(
            "Nothing contradicts the record, but not every link could be tested.{}",
            first(Outcome::NotTested)
        ),
    }
}

fn model(page: &mut String, certificate: &Certificate) {
    let Some(sha256) = &certificate.weights_sha256 else {
        page.push_str("<div class=\"model\"><p>The run has no final weights yet.</p></div>\n");
        return;
    };
    let _ = write!(
        page,
        "<div class=\"model\">\n{}<p><small>The weights, by their SHA-256 (the picture is drawn from \
         it: equal weights, equal picture)</small><br><code>{}</code></p>\n</div>\n",
        fingerprint(sha256),
        Escaped(sha256)
    );
}

fn story(page: &mut String, story: &[Milestone]) {
    if story.is_empty() {
        return;
    }
    page.push_str("<h2>How it came to be</h2>\n<ol class=\"story\">\n");
    for milestone in story {
        let class = match milestone.is_weights() {
            true => " class=\"weights\"",
            false => "",
        };
        let digest = milestone.sha256.as_ref().map_or(String::new(), |sha256| {
            let start: String = sha256.chars().take(16).collect();
            format!(
                " <code title=\"{}\">{}</code>",
                Escaped(sha256),
                Escaped(&start)
            )
        });
        let _ = writeln!(
            page,
            "<li{class}><b>{}</b><time>{}</time><div class=\"what\">{}{digest}</div></li>",
            Escaped(&milestone.title),
            Escaped(&milestone.time.replace('T', " ").replace('Z', " UTC")),
            Escaped(&milestone.detail),
        );
    }
    page.push_str("</ol>\n");
}

fn claim_card(page: &mut String, claim: &ClaimResult) {
    let (class, word) = told(claim.result);
    let _ = write!(
        page,
        "<section class=\"claim {class}\">\n<h3>{}<span>{word}</span></h3>\n<p>{}</p>\n",
        claim.claim.title(),
        Escaped(&claim.statement),
    );
    // What went wrong is seen without a click.
    let (held, others): (Vec<&Finding>, Vec<&Finding>) =
        (claim.findings.iter()).partition(|finding| finding.result == Outcome::Ok);
    if !others.is_empty() {
        list(page, &others);
    }
    if !held.is_empty() {
        let findings = if held.len() == 1 {
            "finding"
        } else {
            "findings"
        };
        let n = held.len();
        let _ = writeln!(page, "<details><summary>{n} {findings} for it</summary>");
        list(page, &held);
        page.push_str("</details>\n");
    }
    let _ = write!(
        page,
        "<p class=\"soft\">Left open: {}</p>\n</section>\n",
        Escaped(&claim.cannot_conclude)
    );
}

fn list(page: &mut String, findings: &[&Finding]) {
    page.push_str("<ul>\n");
    for finding in findings.iter().take(MAX_FINDINGS) {
        let (class, _) = told(finding.result);
        let (component, detail) = (Escaped(&finding.component), Escaped(&finding.detail));
        let _ = writeln!(
            page,
            "<li class=\"{class}\"><b>{component}</b>: {detail}</li>"
        );
    }
    if findings.len() > MAX_FINDINGS {
        let _ = writeln!(page, "<li>and {} more</li>", findings.len() - MAX_FINDINGS);
    }
    page.push_str("</ul>\n");
}

fn told(result: Outcome) -> (&'static str, &'static str) {
    match result {
        Outcome::Ok => ("ok", "holds"),
        Outcome::Failed => ("failed", "contradicted"),
        Outcome::NotTested => ("open", "not tested"),
    }
}

fn footer(page: &mut String, certificate: &Certificate) {
    page.push_str("<footer>\n<dl>\n");
    let records = certificate.records.to_string();
    for (name, value) in [
        ("Signed with the key", certificate.key.as_deref()),
        ("Head of the ledger", Some(certificate.ledger_head.as_str())),
        ("Records", Some(records.as_str())),
        ("Recorded until", certificate.recorded_until.as_deref()),
    ] {
        let value = Escaped(value.unwrap_or("unknown"));
        let _ = writeln!(page, "<dt>{name}</dt><dd><code>{value}</code></dd>");
    }
    page.push_str(
        "</dl>\n<p class=\"soft\">A certificate sums up; it is no evidence itself. Whoever has the run \
         directory can test it again, and repeat parts of its training:</p>\n<pre><code>dokja audit verify RUN_DIR",
    );
    if let Some(key) = &certificate.key {
        let _ = write!(page, " --key {}", Escaped(key));
    }
    let _ = write!(
        page,
        " --head {}\ndokja audit replay RUN_DIR</code></pre>\n</footer>\n",
        Escaped(&certificate.ledger_head)
    );
}

/// A scalloped seal with a tick, a cross or a dash.
fn seal(verdict: Verdict) -> String {
    let sign = match verdict {
        Verdict::Valid => "M34 52l12 12 22-26",
        Verdict::Broken => "M37 37l26 26M63 37l-26 26",
        Verdict::Incomplete => "M34 50h32",
    };
    const SCALLOPS: usize = 24;
    let mut edge = String::new();
    for i in 0..2 * SCALLOPS {
        let angle = std::f64::consts::PI * i as f64 / SCALLOPS as f64;
        let radius = if i % 2 == 0 { 48.0 } else { 43.5 };
        let (x, y) = (50.0 + radius * angle.cos(), 50.0 + radius * angle.sin());
        let _ = write!(edge, "{}{x:.1} {y:.1}", if i == 0 { "M" } else { "L" });
    }
    format!(
        "<svg class=\"seal\" viewBox=\"0 0 100 100\" role=\"img\" aria-label=\"{}\">\
         <path d=\"{edge}Z\" fill=\"var(--tone)\" stroke=\"var(--tone)\" stroke-width=\"3\" \
         stroke-linejoin=\"round\"/><circle cx=\"50\" cy=\"50\" r=\"36\" fill=\"none\" \
         stroke=\"var(--paper)\" stroke-width=\"1.4\"/><path d=\"{sign}\" fill=\"none\" \
         stroke=\"var(--paper)\" stroke-width=\"8\" stroke-linecap=\"round\" \
         stroke-linejoin=\"round\"/></svg>\n",
        match verdict {
            Verdict::Valid => "valid",
            Verdict::Broken => "broken",
            Verdict::Incomplete => "incomplete",
        }
    )
}

/// A picture of a digest: nine rows, mirrored, so that people see at a glance whether two differ.
fn fingerprint(sha256: &str) -> String {
    const ROWS: usize = 9;
    const HALF: usize = 5;
    let digits: Vec<u32> = sha256.chars().filter_map(|c| c.to_digit(16)).collect();
    let digit = |at: usize| digits.get(at).copied().unwrap_or(0);
    let hue = (digit(0) * 256 + digit(1) * 16 + digit(2)) % 360;
    let mut cells = String::new();
    for row in 0..ROWS {
        for column in 0..HALF {
            let value = digit(3 + row * HALF + column);
            if value < 8 {
                continue;
            }
            let turned = hue + 40 * (value % 4);
            for x in [column, 2 * HALF - 2 - column] {
                let _ = write!(
                    cells,
                    "<rect x=\"{x}\" y=\"{row}\" width=\"1.02\" height=\"1.02\" \
                     fill=\"hsl({turned} 55% 48%)\"/>"
                );
            }
        }
    }
    format!("<svg viewBox=\"-1 -1 11 11\" role=\"img\" aria-label=\"fingerprint\">{cells}</svg>\n")
}

/// Text as HTML shows it literally, in elements and in quoted attributes.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            c => f.write_char(c),
        })
    }
}
