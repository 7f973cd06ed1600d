//! Where the weights come from: the way from random numbers to the final weights, link by link, as the
//! certificate judges it, and what each judgement cannot show; then the records and recipes themselves.

use std::fmt::Write;

use formats::ledger::{Event, Record};
use formats::run_dir::Stage;

use crate::html::Escaped;
use crate::plot::{figure, grouped};
use crate::run::{Certificate, ClaimResult, Run, stage_name};

/// The sections.
pub(crate) fn section(run: &Run) -> String {
    let mut out = String::new();
    if let Some(certificate) = &run.certificate {
        out.push_str(&judged(run, certificate));
    }
    out.push_str(&records(run));
    out
}

/// A station of the way.
struct Station {
    title: String,
    detail: String,
    digest: String,
    link: Option<(&'static str, &'static str)>, // the claim that joins it to the one before, in a word
    inputs: Vec<&'static str>,                  // claims about what went into it
}

fn judged(run: &Run, certificate: &Certificate) -> String {
    let (word, what) = match certificate.verdict.as_str() {
        "valid" => (
            "valid",
            "Everything that belongs to a finished run was tested and held.",
        ),
        "broken" => ("broken", "Something contradicts the record."),
        _ => (
            "incomplete",
            "Nothing contradicts the record, but it does not reach from the end to the start.",
        ),
    };
    let claims: String = certificate.claims.iter().map(claim).collect();
    format!(
        "<section><h2>Where it comes from</h2><p><strong class=\"verdict {word}\">{word}</strong> {what}</p>{}\
         <div class=claims>{claims}</div>\
         <p class=foot>A certificate sums up; whoever relies on it runs <code>dokja audit verify</code>. Ledger \
         head <code class=digest>{}</code>{}</p></section>\n",
        chain(run, certificate),
        Escaped(&certificate.ledger_head),
        certificate
            .key
            .as_ref()
            .map_or(String::new(), |key| format!(
                ", signed by <code class=digest>{}</code>",
                Escaped(key)
            )),
    )
}

/// The way from the random start, stations and links in turns.
fn chain(run: &Run, certificate: &Certificate) -> String {
    let result = |name: &str| {
        let found = certificate.claims.iter().find(|claim| claim.claim == name);
        state(found.map_or("not tested", |claim| claim.result.as_str()))
    };
    let mut out = String::new();
    for station in stations(run) {
        if let Some((claim, word)) = station.link {
            let state = result(claim);
            let _ = write!(
                out,
                "<li class=\"link {}\"><i title=\"{}\">{}</i><span>{word}</span></li>",
                state.class, state.word, state.mark
            );
        }
        let digest = station.digest.get(..12).map_or(String::new(), |start| {
            let (whole, start) = (Escaped(&station.digest), Escaped(start));
            format!("<code title=\"{whole}\">{start}\u{2026}</code>")
        });
        let inputs = station.inputs.iter().map(|claim| {
            let state = result(claim);
            format!(
                "<em class={} title=\"{}\">{} {claim}</em> ",
                state.class, state.word, state.mark
            )
        });
        let _ = write!(
            out,
            "<li class=station><b>{}</b><span>{}</span>{digest}<span class=inputs>{}</span></li>",
            Escaped(&station.title),
            Escaped(&station.detail),
            inputs.collect::<String>()
        );
    }
    match out.is_empty() {
        true => out,
        false => format!("<ol class=chain>{out}</ol>"),
    }
}

/// What the ledger records of the way.
fn stations(run: &Run) -> Vec<Station> {
    let mut stations = Vec::new();
    let (mut checkpoints, mut score) = (0, None);
    let mut inputs = vec!["data", "tokenizer", "recipe"];
    for (_, event) in run.events() {
        match event {
            Event::Init(init) => {
                stations.push(Station {
                    title: "Random numbers".to_owned(),
                    detail: format!("seed {}", init.seed),
                    digest: String::new(),
                    link: None,
                    inputs: Vec::new(),
                });
                stations.push(Station {
                    title: "Initial weights".to_owned(),
                    detail: "knowing nothing".to_owned(),
                    digest: init.weights_sha256,
                    link: Some(("random_start", "recomputed")),
                    inputs: Vec::new(),
                });
            }
            Event::Inherit(inherit) => stations.push(Station {
                title: "Another run".to_owned(),
                detail: inherit.path,
                digest: inherit.weights_sha256,
                link: None,
                inputs: Vec::new(),
            }),
            Event::Checkpoint(_) => checkpoints += 1,
            Event::Final(last) => {
                let title = match last.stage {
                    Stage::Pretrain => "Pretrained",
                    Stage::Sft => "Tuned on instructions",
                    Stage::Prefer => "Taught what is preferred",
                    Stage::Rl => "Reinforced",
                };
                stations.push(Station {
                    title: title.to_owned(),
                    detail: format!("step {}, {checkpoints} checkpoints", grouped(last.step)),
                    digest: last.weights_sha256,
                    link: Some(("lineage", "trained")),
                    inputs: std::mem::replace(&mut inputs, vec!["recipe"]),
                });
                (checkpoints, score) = (0, None);
            }
            Event::Eval(eval) => score = Some(eval),
            _ => {}
        }
    }
    if let Some(eval) = score {
        stations.push(Station {
            title: format!("Score {}", figure(eval.score)),
            detail: eval.suite,
            digest: String::new(),
            link: Some(("evaluation", "scored")),
            inputs: Vec::new(),
        });
    }
    stations
}

struct State {
    class: &'static str,
    mark: &'static str,
    word: &'static str,
}

fn state(result: &str) -> State {
    let (class, mark, word) = match result {
        "ok" => ("ok", "\u{2713}", "holds"),
        "failed" => ("failed", "\u{2717}", "failed"),
        _ => ("open", "?", "not tested"),
    };
    State { class, mark, word }
}

fn claim(claim: &ClaimResult) -> String {
    let state_ = state(&claim.result);
    let failed = claim.findings.iter().filter(|f| f.result == "failed");
    let failures: String = failed
        .take(5)
        .map(|f| {
            let (component, detail) = (Escaped(&f.component), Escaped(&f.detail));
            format!("<p class=failure>{component}: {detail}</p>")
        })
        .collect();
    format!(
        "<article class={}><h3><i>{}</i>{}<small>{}</small></h3><p>{}</p>{failures}<p class=open>Cannot show: \
         {}</p></article>\n",
        state_.class,
        state_.mark,
        Escaped(&claim_name(&claim.claim)),
        state_.word,
        Escaped(&claim.statement),
        Escaped(&lower_first(&claim.cannot_conclude)),
    )
}

/// `random_start` as "Random start".
fn claim_name(name: &str) -> String {
    let words = name.replace('_', " ");
    let mut chars = words.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_lowercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

fn records(run: &Run) -> String {
    let mut out = String::new();
    if !run.records.is_empty() {
        let lines: String = run.records.iter().map(line).collect();
        let _ = write!(
            out,
            "<details><summary>The ledger: {} records</summary><div class=scroll><table><tr><th>#<th>time \
             (UTC)<th>what{lines}</table></div></details>",
            run.records.len()
        );
    }
    for stage in &run.stages {
        if let Some(recipe) = &stage.recipe {
            let _ = write!(
                out,
                "<details><summary>The recipe of {}</summary><pre>{}</pre></details>",
                stage_name(stage.stage),
                Escaped(recipe.trim_end())
            );
        }
    }
    if let Some(config) = &run.config {
        let text = serde_json::to_string_pretty(config).unwrap_or_default();
        let _ = write!(
            out,
            "<details><summary>The architecture: config.json</summary><pre>{}</pre></details>",
            Escaped(&text)
        );
    }
    match out.is_empty() {
        true => out,
        false => format!("<section><h2>The record</h2>{out}</section>\n"),
    }
}

fn line(record: &Record) -> String {
    let what = match record.event() {
        Ok(event) => in_words(event),
        Err(_) => record.kind.clone(),
    };
    format!(
        "<tr><td>{}<td>{}<td>{}",
        record.seq,
        Escaped(&record.time.replace('T', " ").replace('Z', "")),
        Escaped(&what)
    )
}

fn in_words(event: Event) -> String {
    let short = |digest: &str| digest.get(..12).unwrap_or(digest).to_owned();
    match event {
        Event::Genesis(g) => format!(
            "begun with dokja {} on {} ({}, {} cores)",
            g.dokja_version, g.machine.cpu, g.machine.isa, g.machine.cores
        ),
        Event::Data(d) => format!(
            "data: {} documents, {} held out, manifest {}",
            grouped(d.train_documents),
            grouped(d.heldout_documents),
            short(&d.manifest_sha256)
        ),
        Event::Tokenizer(t) => format!(
            "tokenizer: {} tokens, {}",
            grouped(t.vocab_size),
            short(&t.sha256)
        ),
        Event::Init(i) => format!(
            "random weights from seed {}: {}",
            i.seed,
            short(&i.weights_sha256)
        ),
        Event::Inherit(i) => format!("weights of another run: {}", short(&i.weights_sha256)),
        Event::Recipe(r) => format!("recipe of {}: {}", stage_name(r.stage), short(&r.sha256)),
        Event::Batches(b) => format!(
            "order of the batches of {} committed: {}",
            stage_name(b.stage),
            short(&b.commitment_sha256)
        ),
        Event::Checkpoint(c) => format!(
            "{}, step {}, {} tokens: weights {} from {}",
            stage_name(c.stage),
            grouped(c.step),
            grouped(c.tokens),
            short(&c.weights_sha256),
            short(&c.parent_weights_sha256)
        ),
        Event::Resume(r) => format!(
            "{} resumed after step {}",
            stage_name(r.stage),
            grouped(r.step)
        ),
        Event::Final(f) => format!(
            "end of {} at step {}: weights {}",
            stage_name(f.stage),
            grouped(f.step),
            short(&f.weights_sha256)
        ),
        Event::Eval(e) => {
            let interval = e.ci95.map_or(String::new(), |[low, high]| {
                format!(" ({} to {})", figure(low), figure(high))
            });
            format!(
                "{}: {}{interval} for weights {}",
                e.suite,
                figure(e.score),
                short(&e.weights_sha256)
            )
        }
    }
}
