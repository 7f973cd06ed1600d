//! The story that the records tell: does it reach from the final weights to a random start, and do
//! its parts fit together? What each stage was given is looked at in [`inputs`].

mod inputs;

use std::fs;
use std::io::Read;
use std::path::Path;

use formats::hash;
use formats::ledger::records::{Checkpoint, Data, Eval, Final, Inherit, Init, Resume, Tokenizer};
use formats::ledger::{Chain, Event, Record};
use formats::run_dir::{RunDir, Stage};

use super::VerifyOptions;
use crate::finding::{At, Claim, Findings};

/// Weights that the story has come to.
#[derive(Clone, PartialEq)]
struct Point {
    at: Option<(Stage, u64)>, // None: the start
    weights_sha256: String,
}

struct Walk<'a> {
    run_dir: &'a Path,
    options: &'a VerifyOptions<'a>,
    findings: &'a mut Findings,
    points: Vec<Point>,    // the start, then checkpoints in order
    abandoned: Vec<Point>, // checkpoints before a resume from an earlier one
    data: Option<Data>,
    tokenizer: Option<Tokenizer>,
    init: Option<Init>,
    recipes: Vec<Stage>,
    batches: Vec<Stage>,
    finals: Vec<Final>,
    num_links: u64,
}

/// Returns the digest of the final weights.
pub(super) fn check(
    run_dir: &Path,
    chain: &Chain,
    options: &VerifyOptions<'_>,
    findings: &mut Findings,
) -> Option<String> {
    let mut walk = Walk {
        run_dir,
        options,
        findings,
        points: Vec::new(),
        abandoned: Vec::new(),
        data: None,
        tokenizer: None,
        init: None,
        recipes: Vec::new(),
        batches: Vec::new(),
        finals: Vec::new(),
        num_links: 0,
    };
    let records = chain
        .records
        .iter()
        .filter_map(|c| Some((c.position, c.record.as_ref()?)));
    for (position, record) in records {
        walk.record(position, record);
    }
    walk.end()
}

impl Walk<'_> {
    fn record(&mut self, position: u64, record: &Record) {
        let name = format!("record {position} ({})", record.kind);
        let event = match record.event() {
            Ok(event) => event,
            Err(e) if Event::KINDS.contains(&record.kind.as_str()) => {
                return self.failed(
                    Claim::Ledger,
                    &name,
                    &[],
                    format!("its contents are wrong: {e}"),
                );
            }
            Err(_) => {
                let detail = "this version does not know records of this kind".to_string();
                return self.missing(Claim::Ledger, &name, detail);
            }
        };
        if (position == 0) != matches!(event, Event::Genesis(_)) {
            let detail = "a ledger has one genesis, as its first record".to_string();
            self.failed(Claim::Ledger, &name, &[], detail);
        }
        match event {
            Event::Genesis(_) => {}
            Event::Data(data) => self.data(&name, record, data),
            Event::Tokenizer(tokenizer) => self.tokenizer(&name, record, tokenizer),
            Event::Init(init) => self.init(&name, init),
            Event::Inherit(inherit) => self.inherit(&name, &inherit),
            Event::Recipe(recipe) => self.recipe(&name, record, &recipe),
            Event::Batches(batches) => self.batches(&name, &batches),
            Event::Checkpoint(checkpoint) => self.checkpoint(&name, record, &checkpoint),
            Event::Resume(resume) => self.resume(&name, &resume),
            Event::Final(end) => self.finish(&name, end),
            Event::Eval(eval) => self.eval(&name, &eval),
        }
    }

    // The start.

    fn start(&mut self, name: &str, weights_sha256: &str) {
        if self.points.is_empty() {
            self.points.push(Point {
                at: None,
                weights_sha256: weights_sha256.to_string(),
            });
        } else {
            let detail =
                "a second start: weights were put in place of those trained before".to_string();
            self.failed(Claim::Lineage, name, &[], detail);
        }
    }

    fn init(&mut self, name: &str, init: Init) {
        self.start(name, &init.weights_sha256);
        self.init = Some(init);
    }

    fn inherit(&mut self, name: &str, inherit: &Inherit) {
        self.start(name, &inherit.weights_sha256);
        let detail = format!(
            "the run starts from weights of another run ({}, ledger head {}): audit that one too, \
             with this head",
            inherit.path, inherit.ledger_head
        );
        self.missing(Claim::RandomStart, name, detail);
    }

    /// Computes the initial weights again.
    fn regenerate(&mut self) {
        let Some(init) = self.init.clone() else {
            return;
        };
        let name = "initial weights";
        let Some(initial_weights) = self.options.initial_weights else {
            let detail = "no function to compute them was given".to_string();
            return self.missing(Claim::RandomStart, name, detail);
        };
        let Some((path, config)) = self.config(&init.config_sha256) else {
            let detail = "no checkpoint has the recorded config.json".to_string();
            return self.missing(Claim::RandomStart, name, detail);
        };
        let Init {
            seed,
            generator,
            weights_sha256,
            ..
        } = &init;
        match initial_weights(&config, *seed, generator) {
            Ok(found) if found == *weights_sha256 => {
                let detail = format!("{generator} with seed {seed} gives the recorded {found}");
                self.ok(Claim::RandomStart, name, &[path], detail);
            }
            Ok(found) => {
                let detail = format!(
                    "{generator} with seed {seed} gives {found} instead of {weights_sha256}"
                );
                self.failed(Claim::RandomStart, name, &[path], detail);
            }
            Err(e) => self.missing(
                Claim::RandomStart,
                name,
                format!("they cannot be computed: {e}"),
            ),
        }
    }

    /// The config.json of any checkpoint of the story whose digest is the recorded one.
    fn config(&self, sha256: &str) -> Option<(String, String)> {
        const LIMIT: u64 = 1 << 24; // a config is a few kilobytes
        self.points
            .iter()
            .filter_map(|point| point.at)
            .find_map(|(stage, step)| {
                let path = RunDir::new(Path::new(""))
                    .checkpoint(stage, step)
                    .join("config.json");
                let mut text = String::new();
                let file = fs::File::open(self.run_dir.join(&path)).ok()?;
                file.take(LIMIT).read_to_string(&mut text).ok()?;
                (hash::sha256_hex(text.as_bytes()) == sha256).then(|| (inside(&path), text))
            })
    }

    // The way.

    fn checkpoint(&mut self, name: &str, record: &Record, checkpoint: &Checkpoint) {
        let Checkpoint {
            stage,
            step,
            weights_sha256,
            ..
        } = checkpoint;
        let name = format!("{name}: {stage} step {step}");
        let dir = inside(&RunDir::new(Path::new("")).checkpoint(*stage, *step));
        let at = |file: &str| format!("{dir}/{file}");
        self.must_have(
            Claim::Lineage,
            &name,
            record,
            &at("model.safetensors"),
            weights_sha256,
        );
        let optimizer = &checkpoint.optimizer_sha256;
        self.must_have(
            Claim::Lineage,
            &name,
            record,
            &at("optimizer.safetensors"),
            optimizer,
        );
        if let Some(sha256) = self.init.as_ref().map(|init| init.config_sha256.clone()) {
            self.must_have(Claim::Lineage, &name, record, &at("config.json"), &sha256);
        }
        match self
            .tokenizer
            .as_ref()
            .map(|tokenizer| tokenizer.sha256.clone())
        {
            Some(sha256) => {
                self.must_have(
                    Claim::Tokenizer,
                    &name,
                    record,
                    &at("tokenizer.json"),
                    &sha256,
                );
            }
            None => {
                let detail = "no tokenizer was recorded before it".to_string();
                self.failed(Claim::Tokenizer, &name, &[], detail);
            }
        }
        if self.data.is_none() {
            let detail = "no training data was recorded before it".to_string();
            self.failed(Claim::Data, &name, &[], detail);
        }
        if !self.recipes.contains(stage) {
            let detail = format!("no recipe of {stage} was recorded before it");
            self.failed(Claim::Recipe, &name, &[], detail);
        }
        if !self.batches.contains(stage) {
            let detail = format!("no order of batches of {stage} was committed before it");
            self.failed(Claim::Data, &name, &[], detail);
        }
        self.link(&name, &at("model.safetensors"), checkpoint);
    }

    fn link(&mut self, name: &str, file: &str, checkpoint: &Checkpoint) {
        let Checkpoint {
            stage,
            step,
            weights_sha256,
            parent_weights_sha256: parent,
            ..
        } = checkpoint;
        let evidence = [file.to_string()];
        let previous = self.points.last().cloned();
        match &previous {
            None => {
                let detail = "no start was recorded before it".to_string();
                self.failed(Claim::Lineage, name, &evidence, detail);
            }
            Some(previous) if previous.weights_sha256 != *parent => {
                let (before, found) = (previous.name(), &previous.weights_sha256);
                let detail = format!(
                    "it names {parent} as the weights it was trained from, but the weights before \
                     it ({before}) are {found}"
                );
                self.failed(Claim::Lineage, name, &evidence, detail);
            }
            Some(previous) if previous.at.is_some_and(|at| at >= (*stage, *step)) => {
                let before = previous.name();
                let detail = format!("it follows {before} without a resume: steps go back");
                self.failed(Claim::Lineage, name, &evidence, detail);
            }
            Some(_) => self.num_links += 1,
        }
        let at = Some((*stage, *step));
        self.points.push(Point {
            at,
            weights_sha256: weights_sha256.clone(),
        });
    }

    fn resume(&mut self, name: &str, resume: &Resume) {
        let from = if resume.step > 0 {
            let at = Some((resume.stage, resume.step));
            self.points.iter().rposition(|point| point.at == at)
        } else {
            // The start of the stage: the last point of the stages before.
            self.points
                .iter()
                .rposition(|p| p.at.is_none_or(|(stage, _)| stage < resume.stage))
        };
        match from {
            Some(from) => self.abandoned.extend(self.points.drain(from + 1..)),
            None => {
                let detail = format!("it goes on from {} step {}", resume.stage, resume.step);
                let detail = format!("{detail}, which was never recorded");
                self.failed(Claim::Lineage, name, &[], detail);
            }
        }
    }

    fn finish(&mut self, name: &str, end: Final) {
        let evidence = [inside(
            &RunDir::new(Path::new(""))
                .checkpoint(end.stage, end.step)
                .join("model.safetensors"),
        )];
        let last = self
            .points
            .last()
            .filter(|point| point.at == Some((end.stage, end.step)));
        match last.map(|point| point.weights_sha256.clone()) {
            Some(found) if found == end.weights_sha256 => {
                let detail = format!(
                    "the final weights of {} are those of its last checkpoint",
                    end.stage
                );
                self.ok(Claim::Lineage, name, &evidence, detail);
            }
            Some(found) => {
                let detail = format!(
                    "the final weights of {} are recorded as {}, but its last checkpoint has \
                     {found}",
                    end.stage, end.weights_sha256
                );
                self.failed(Claim::Lineage, name, &evidence, detail);
            }
            None => {
                let detail = format!(
                    "{} ends with step {}, which is not the last checkpoint recorded",
                    end.stage, end.step
                );
                self.failed(Claim::Lineage, name, &evidence, detail);
            }
        }
        self.finals.push(end);
    }

    fn eval(&mut self, name: &str, eval: &Eval) {
        let mut known = self.points.iter().chain(&self.abandoned);
        match known
            .find(|point| point.weights_sha256 == eval.weights_sha256)
            .map(Point::name)
        {
            Some(point) => {
                let detail = format!(
                    "{} gave {} for the weights of {point}",
                    eval.suite, eval.score
                );
                self.ok(Claim::Evaluation, name, &[], detail);
            }
            None => {
                let detail = format!(
                    "it measured {}, no weights of this run until then",
                    eval.weights_sha256
                );
                self.failed(Claim::Evaluation, name, &[], detail);
            }
        }
    }

    fn end(mut self) -> Option<String> {
        self.regenerate();
        for (is_there, claim, what) in [
            (
                !self.points.is_empty(),
                Claim::RandomStart,
                "a start (init)",
            ),
            (self.data.is_some(), Claim::Data, "training data"),
            (self.tokenizer.is_some(), Claim::Tokenizer, "a tokenizer"),
            (self.points.len() > 1, Claim::Lineage, "a checkpoint"),
        ] {
            if !is_there {
                self.missing(claim, "ledger.jsonl", format!("{what} was never recorded"));
            }
        }
        let last = self.points.last().cloned()?;
        let last_stage = last.at?.0;
        if self.num_links > 0 {
            let n = self.num_links;
            let detail = format!("{n} checkpoints name the weights before them as their origin");
            self.ok(Claim::Lineage, "checkpoints", &[], detail);
        }
        let end = self.finals.last().filter(|end| end.stage == last_stage);
        if end.is_none_or(|end| Some((end.stage, end.step)) != last.at) {
            let detail =
                format!("{last_stage} has not come to its end: its final record is missing");
            self.missing(Claim::Lineage, last_stage.name(), detail);
            return None;
        }
        Some(last.weights_sha256)
    }

    // Findings.

    /// True when the record names this file with this digest, else a failure is noted.
    /// That the file has it, `files` has tested.
    fn must_have(
        &mut self,
        claim: Claim,
        name: &str,
        record: &Record,
        path: &str,
        sha256: &str,
    ) -> bool {
        let detail = match record
            .artefacts
            .iter()
            .find(|artefact| artefact.path == path)
        {
            Some(artefact) if artefact.sha256 == sha256 => return true,
            Some(artefact) => {
                let found = &artefact.sha256;
                format!("{path} is recorded with SHA-256 {found}, where {sha256} is expected")
            }
            None => format!("{path} is not among its files"),
        };
        self.failed(claim, name, &[path.to_string()], detail);
        false
    }

    fn ok(&mut self, claim: Claim, component: &str, evidence: &[String], detail: String) {
        self.findings.ok(
            &At {
                claim,
                component,
                evidence,
            },
            detail,
        );
    }

    fn failed(&mut self, claim: Claim, component: &str, evidence: &[String], detail: String) {
        self.findings.failed(
            &At {
                claim,
                component,
                evidence,
            },
            detail,
        );
    }

    fn missing(&mut self, claim: Claim, component: &str, detail: String) {
        self.findings.missing(
            &At {
                claim,
                component,
                evidence: &[],
            },
            detail,
        );
    }

    fn not_tested(&mut self, claim: Claim, component: &str, detail: String) {
        self.findings.not_tested(
            &At {
                claim,
                component,
                evidence: &[],
            },
            detail,
        );
    }
}

impl Point {
    fn name(&self) -> String {
        match self.at {
            None => "the start".to_string(),
            Some((stage, step)) => format!("{stage} step {step}"),
        }
    }
}

/// A path built from names of ours, as the ledger spells it.
fn inside(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
