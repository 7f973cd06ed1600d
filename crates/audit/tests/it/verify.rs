//! A small synthetic run with every kind of record, whole and then damaged in every way: each
//! change must be found and named.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

use dokja_audit::{Certificate, Claim, Outcome, Report, Verdict, VerifyOptions, verify};
use formats::atomic::write_dir;
use formats::hash::{sha256_file, sha256_hex};
use formats::keys::Key;
use formats::ledger::records::{
    Batches, Checkpoint, Data, Eval, Final, Genesis, Inherit, Init, Machine, Recipe, Resume,
    Tokenizer,
};
use formats::ledger::{Event, Ledger};
use formats::run_dir::{RunDir, Stage, make_dir};

const CONFIG: &str = "{\"hidden_size\": 8}";
const SEED: u64 = 7;
const GENERATOR: &str = "test-1";

/// Stands in for the model's generator.
fn initial_weights(config: &str, seed: u64, generator: &str) -> Result<String, String> {
    if generator != GENERATOR {
        return Err(format!("unknown generator {generator}"));
    }
    Ok(sha256_hex(format!("{config}{seed}").as_bytes()))
}

struct Run {
    dir: tempfile::TempDir,
    ledger: Option<Ledger>,
    weights: String,
}

impl Run {
    fn begin(seed: u64) -> Run {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open_or_create(dir.path(), Key::from_secret([5; 32])).unwrap();
        let mut run = Run {
            dir,
            ledger: Some(ledger),
            weights: String::new(),
        };
        let machine = Machine {
            cpu: "test".into(),
            isa: "avx2".into(),
            cores: 2,
            memory_bytes: 8 << 30,
        };
        run.append(
            Event::Genesis(Genesis {
                dokja_version: "0.1.0".into(),
                code_commit: Some("0123abc".into()),
                machine,
                created: String::new(),
            }),
            &[],
        );
        let at = run.paths();
        make_dir(&at.data()).unwrap();
        fs::write(at.data().join("train-00000.jsonl.zst"), b"shard").unwrap();
        // The inputs lie elsewhere, or nowhere by now: they are no part of the run.
        let manifest = format!(
            r#"{{"inputs": [{{"path": "/corpus/a.jsonl", "sha256": "{}"}}],
            "shards": [{{"file": "train-00000.jsonl.zst", "sha256": "{}"}}]}}"#,
            sha256_hex(b"input"),
            sha256_hex(b"shard")
        );
        let manifest_path = at.data().join("manifest.json");
        fs::write(&manifest_path, &manifest).unwrap();
        let manifest_sha256 = sha256_hex(manifest.as_bytes());
        run.append(
            Event::Data(Data {
                manifest_sha256: manifest_sha256.clone(),
                location: "data".into(),
                train_documents: 3,
                heldout_documents: 1,
            }),
            &[manifest_path],
        );
        fs::write(at.tokenizer(), b"{\"tokenizer\": 1}").unwrap();
        run.append(
            Event::Tokenizer(Tokenizer {
                sha256: sha256_file(&at.tokenizer()).unwrap(),
                vocab_size: 300,
                trained_on_manifest_sha256: Some(manifest_sha256),
            }),
            &[at.tokenizer()],
        );
        run.weights = initial_weights(CONFIG, seed, GENERATOR).unwrap();
        let weights_sha256 = run.weights.clone();
        run.append(
            Event::Init(Init {
                seed: SEED,
                generator: GENERATOR.into(),
                weights_sha256,
                config_sha256: sha256_hex(CONFIG.as_bytes()),
            }),
            &[],
        );
        run
    }

    fn whole() -> Run {
        let mut run = Run::begin(SEED);
        run.stage(Stage::Pretrain, &[10, 20]);
        run.eval();
        run.stage(Stage::Sft, &[5]);
        run.eval();
        run.ledger = None;
        run
    }

    fn paths(&self) -> RunDir {
        RunDir::new(self.dir.path())
    }

    fn append(&mut self, event: Event, files: &[PathBuf]) {
        let ledger = self.ledger.as_mut().unwrap();
        let artefacts = files
            .iter()
            .map(|file| ledger.artefact(file).unwrap())
            .collect();
        ledger.append(&event, artefacts).unwrap();
    }

    fn stage_inputs(&mut self, stage: Stage) {
        let at = self.paths();
        at.create_stage(stage).unwrap();
        fs::write(at.recipe(stage), format!("stage = \"{stage}\"\n")).unwrap();
        let sha256 = sha256_file(&at.recipe(stage)).unwrap();
        self.append(Event::Recipe(Recipe { stage, sha256 }), &[at.recipe(stage)]);
        let commitment_sha256 = sha256_hex(stage.name().as_bytes());
        let batches = Batches {
            stage,
            commitment_sha256,
            seed: 1,
            order: "shuffled".into(),
        };
        self.append(Event::Batches(batches), &[]);
    }

    fn checkpoint(&mut self, stage: Stage, step: u64) {
        let at = self.paths();
        let dir = at.checkpoint(stage, step);
        let weights = format!("weights of {stage} {step} from {}", self.weights);
        write_dir(&dir, 0, |tmp| {
            for (name, text) in [
                ("config.json", CONFIG),
                ("model.safetensors", &weights),
                ("optimizer.safetensors", "moments"),
                ("tokenizer.json", "{\"tokenizer\": 1}"),
                ("trainer.json", "{}"),
            ] {
                formats::atomic::write_bytes(&tmp.join(name), text.as_bytes())?;
            }
            Ok::<(), formats::FileError>(())
        })
        .unwrap();
        let metrics = at.metrics(stage);
        let before = fs::read_to_string(&metrics).unwrap_or_default();
        fs::write(&metrics, format!("{before}{{\"step\":{step}}}\n")).unwrap();
        let parent_weights_sha256 =
            std::mem::replace(&mut self.weights, sha256_hex(weights.as_bytes()));
        let ledger = self.ledger.as_mut().unwrap();
        let mut artefacts = ledger.artefacts_in(&dir).unwrap();
        artefacts.push(ledger.growing_artefact(&metrics).unwrap());
        let event = Event::Checkpoint(Checkpoint {
            stage,
            step,
            tokens: step * 64,
            weights_sha256: self.weights.clone(),
            optimizer_sha256: sha256_hex(b"moments"),
            parent_weights_sha256,
        });
        ledger.append(&event, artefacts).unwrap();
    }

    fn stage(&mut self, stage: Stage, steps: &[u64]) {
        self.stage_inputs(stage);
        steps.iter().for_each(|step| self.checkpoint(stage, *step));
        let (step, weights_sha256) = (*steps.last().unwrap(), self.weights.clone());
        self.append(
            Event::Final(Final {
                stage,
                step,
                weights_sha256,
            }),
            &[],
        );
    }

    fn eval(&mut self) {
        let file = self.paths().eval(&format!("world-{}", &self.weights[..8]));
        make_dir(file.parent().unwrap()).unwrap();
        fs::write(&file, b"{\"score\": 81.5}").unwrap();
        let weights_sha256 = self.weights.clone();
        let eval = Eval {
            suite: "world".into(),
            weights_sha256,
            score: 81.5,
            ci95: Some([79.0, 84.0]),
        };
        self.append(Event::Eval(eval), &[file]);
    }

    fn ledger_bytes(&self) -> Vec<u8> {
        fs::read(self.paths().ledger()).unwrap()
    }

    fn report(&self) -> Report {
        report(self.dir.path())
    }
}

fn report(dir: &Path) -> Report {
    verify(
        dir,
        &VerifyOptions {
            initial_weights: Some(&initial_weights),
            ..Default::default()
        },
    )
}

fn failures(report: &Report) -> Vec<String> {
    let failed = report
        .findings
        .iter()
        .filter(|f| f.result == Outcome::Failed);
    failed
        .map(|f| format!("{}: {} {:?}", f.component, f.detail, f.evidence))
        .collect()
}

fn says(report: &Report, text: &str) -> bool {
    report
        .findings
        .iter()
        .any(|f| f.result != Outcome::Ok && f.detail.contains(text))
}

#[test]
fn an_untouched_run_is_valid_from_end_to_start() {
    let run = Run::whole();
    let report = run.report();
    assert_eq!(report.verdict, Verdict::Valid, "{:#?}", report.findings);
    assert_eq!(report.weights_sha256.as_deref(), Some(run.weights.as_str()));
    for claim in Claim::ALL {
        let is_tested = |f: &&dokja_audit::Finding| f.claim == claim && f.result == Outcome::Ok;
        assert!(report.findings.iter().any(|f| is_tested(&f)), "{claim:?}");
    }
}

#[test]
fn every_changed_byte_of_every_recorded_file_is_named() {
    let run = Run::whole();
    let chain = formats::ledger::verify_chain(run.dir.path()).unwrap();
    let mut paths: Vec<(String, u64)> = chain
        .records
        .iter()
        .flat_map(|c| {
            c.record
                .iter()
                .flat_map(|r| &r.artefacts)
                .map(|a| (a.path.clone(), c.position))
        })
        .collect();
    paths.push(("data/train-00000.jsonl.zst".into(), 1));
    assert!(paths.len() > 20);
    for (path, position) in paths {
        let full = run.dir.path().join(&path);
        let bytes = fs::read(&full).unwrap();
        // Every byte of what is small, which is most of it.
        for at in (0..bytes.len())
            .step_by(bytes.len().div_ceil(80))
            .chain([bytes.len() - 1])
        {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            fs::write(&full, &changed).unwrap();
            let report = run.report();
            let named = report.findings.iter().any(|f| {
                let is_placed = f.detail.contains("record ") || f.component.contains("record ");
                f.result == Outcome::Failed && f.evidence.contains(&path) && is_placed
            });
            assert!(
                named && report.verdict == Verdict::Broken,
                "{path} of record {position}, byte {at}"
            );
        }
        for changed in [&bytes[..bytes.len() - 1], &[]] {
            fs::write(&full, changed).unwrap();
            assert_eq!(
                run.report().verdict,
                Verdict::Broken,
                "{path} cut to {}",
                changed.len()
            );
        }
        fs::remove_file(&full).unwrap();
        assert!(
            failures(&run.report()).iter().any(|f| f.contains(&path)),
            "{path} removed"
        );
        fs::write(&full, &bytes).unwrap();
    }
    assert_eq!(run.report().verdict, Verdict::Valid);
}

#[test]
fn every_changed_byte_of_the_ledger_is_named() {
    let run = Run::whole();
    let bytes = run.ledger_bytes();
    let mut position = 0;
    for at in 0..bytes.len() {
        if at % 5 == 0 || bytes[at] == b'\n' {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 7);
            fs::write(run.paths().ledger(), &changed).unwrap();
            let report = run.report();
            assert_eq!(report.verdict, Verdict::Broken, "byte {at}");
            let name = format!("record {position}");
            let is_named = |f: &&dokja_audit::Finding| {
                f.result == Outcome::Failed
                    && f.claim == Claim::Ledger
                    && f.component.split(" (").next() == Some(&name)
            };
            assert!(
                report.findings.iter().any(|f| is_named(&f)),
                "byte {at} of {name}"
            );
        }
        position += usize::from(bytes[at] == b'\n');
    }
}

#[test]
fn records_removed_repeated_or_swapped_break_the_chain() {
    let run = Run::whole();
    let bytes = run.ledger_bytes();
    let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    let verdict = |lines: &[&[u8]]| {
        fs::write(run.paths().ledger(), lines.concat()).unwrap();
        run.report().verdict
    };
    for i in 0..lines.len() - 1 {
        let mut changed = lines.clone();
        changed.remove(i);
        assert_eq!(verdict(&changed), Verdict::Broken, "record {i} removed");
        let mut changed = lines.clone();
        changed.insert(i, lines[i]);
        assert_eq!(verdict(&changed), Verdict::Broken, "record {i} repeated");
        let mut changed = lines.clone();
        changed.swap(i, i + 1);
        assert_eq!(verdict(&changed), Verdict::Broken, "record {i} swapped");
    }
}

#[test]
fn records_removed_from_the_end_leave_the_run_incomplete_and_contradict_a_certificate() {
    let run = Run::whole();
    let certificate = Certificate::new(&run.report());
    let bytes = run.ledger_bytes();
    let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    for kept in 0..lines.len() {
        fs::write(run.paths().ledger(), lines[..kept].concat()).unwrap();
        assert_eq!(
            run.report().verdict,
            Verdict::Incomplete,
            "{kept} records kept"
        );
    }
    certificate.write(run.dir.path()).unwrap();
    let report = run.report();
    assert_eq!(report.verdict, Verdict::Broken);
    assert!(says(&report, "the head in certificate.json"));
    fs::write(run.paths().ledger(), &bytes).unwrap();
    assert_eq!(run.report().verdict, Verdict::Valid);
    assert_eq!(Certificate::read(run.dir.path()).unwrap(), certificate);
}

#[test]
fn a_ledger_cut_off_in_the_middle_of_a_line_is_incomplete() {
    let run = Run::whole();
    let bytes = run.ledger_bytes();
    fs::write(run.paths().ledger(), &bytes[..bytes.len() - 30]).unwrap();
    let report = run.report();
    assert_eq!(report.verdict, Verdict::Incomplete);
    assert!(says(&report, "the last line is cut off"));
}

#[test]
fn a_run_killed_between_checkpoint_and_record_is_incomplete() {
    let mut run = Run::begin(SEED);
    run.stage_inputs(Stage::Pretrain);
    run.checkpoint(Stage::Pretrain, 10);
    let recorded = run.ledger_bytes();
    run.checkpoint(Stage::Pretrain, 20);
    fs::write(run.paths().ledger(), recorded).unwrap();
    make_dir(
        &run.paths()
            .checkpoints_dir(Stage::Pretrain)
            .join(".dokja-tmp-1-1-step-00000030"),
    )
    .unwrap();
    let report = run.report();
    assert_eq!(
        report.verdict,
        Verdict::Incomplete,
        "{:?}",
        failures(&report)
    );
    assert!(says(
        &report,
        "the first pretrain/checkpoints/step-00000020/config.json"
    ));
    assert!(says(&report, "has not come to its end"));
}

#[test]
fn a_resumed_run_is_valid_also_from_an_earlier_checkpoint() {
    let mut run = Run::begin(SEED);
    run.stage_inputs(Stage::Pretrain);
    run.checkpoint(Stage::Pretrain, 10);
    let from = run.weights.clone();
    run.checkpoint(Stage::Pretrain, 20);
    run.append(
        Event::Resume(Resume {
            stage: Stage::Pretrain,
            step: 10,
        }),
        &[],
    );
    run.weights = from;
    formats::atomic::remove_dir(&run.paths().checkpoint(Stage::Pretrain, 20)).unwrap();
    run.checkpoint(Stage::Pretrain, 20);
    let (step, weights_sha256) = (20, run.weights.clone());
    run.append(
        Event::Final(Final {
            stage: Stage::Pretrain,
            step,
            weights_sha256,
        }),
        &[],
    );
    let report = run.report();
    assert_eq!(report.verdict, Verdict::Valid, "{:?}", failures(&report));

    run.append(
        Event::Resume(Resume {
            stage: Stage::Pretrain,
            step: 11,
        }),
        &[],
    );
    assert!(says(
        &run.report(),
        "goes on from pretrain step 11, which was never recorded"
    ));
}

#[test]
fn weights_from_elsewhere_break_the_lineage() {
    let mut run = Run::begin(SEED);
    run.stage_inputs(Stage::Pretrain);
    run.checkpoint(Stage::Pretrain, 10);
    run.weights = sha256_hex(b"somebody else's weights");
    run.checkpoint(Stage::Pretrain, 20);
    let report = run.report();
    assert_eq!(report.verdict, Verdict::Broken);
    assert!(says(
        &report,
        "as the weights it was trained from, but the weights before it"
    ));
}

#[test]
fn a_start_that_the_seed_does_not_give_is_found() {
    let mut run = Run::begin(SEED + 1);
    run.stage(Stage::Pretrain, &[10]);
    let report = run.report();
    assert_eq!(report.verdict, Verdict::Broken);
    let failed: Vec<_> = report
        .findings
        .iter()
        .filter(|f| f.result == Outcome::Failed)
        .collect();
    assert_eq!((failed.len(), failed[0].claim), (1, Claim::RandomStart));
}

#[test]
fn a_manifest_without_shards_or_with_names_that_lead_out_is_found() {
    for (manifest, says_what) in [
        (r#"{"shards": []}"#, "lists no shards"),
        (
            r#"{"shards": [{"file": "../tokenizer.json", "sha256": "00"}]}"#,
            "outside its directory",
        ),
        (
            r#"{"shards": [{"file": "absent", "sha256": "00"}]}"#,
            "absent",
        ),
        (r#"{"files": 3}"#, "shards"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open_or_create(dir.path(), Key::from_secret([5; 32])).unwrap();
        let data = dir.path().join("data");
        make_dir(&data).unwrap();
        fs::write(data.join("manifest.json"), manifest).unwrap();
        let artefact = ledger.artefact(&data.join("manifest.json")).unwrap();
        let event = Event::Data(Data {
            manifest_sha256: sha256_hex(manifest.as_bytes()),
            location: "data".into(),
            train_documents: 1,
            heldout_documents: 0,
        });
        ledger.append(&event, vec![artefact]).unwrap();
        let report = report(dir.path());
        assert_eq!(report.verdict, Verdict::Broken, "{manifest}");
        assert!(
            says(&report, says_what),
            "{manifest}: {:?}",
            failures(&report)
        );
    }
}

#[test]
fn a_second_start_and_a_start_from_another_run_are_told() {
    let mut run = Run::begin(SEED);
    let inherit = Inherit {
        path: "elsewhere".into(),
        ledger_head: "00".repeat(32),
        weights_sha256: sha256_hex(b"inherited"),
    };
    run.append(Event::Inherit(inherit), &[]);
    let report = run.report();
    assert!(says(&report, "a second start") && says(&report, "audit that one too"));
}

#[test]
fn a_checkpoint_before_its_recipe_or_batches_is_found() {
    let mut run = Run::begin(SEED);
    run.paths().create_stage(Stage::Pretrain).unwrap();
    run.checkpoint(Stage::Pretrain, 10);
    let report = run.report();
    assert!(says(
        &report,
        "no recipe of pretrain was recorded before it"
    ));
    assert!(says(
        &report,
        "no order of batches of pretrain was committed before it"
    ));
}

#[test]
fn final_weights_other_than_the_last_checkpoints_are_found() {
    let mut run = Run::begin(SEED);
    run.stage_inputs(Stage::Pretrain);
    run.checkpoint(Stage::Pretrain, 10);
    let weights_sha256 = sha256_hex(b"other");
    run.append(
        Event::Final(Final {
            stage: Stage::Pretrain,
            step: 10,
            weights_sha256,
        }),
        &[],
    );
    assert!(says(&run.report(), "but its last checkpoint has"));
}

#[test]
fn the_expected_key_and_a_noted_head_are_held_against_the_ledger() {
    let run = Run::whole();
    let head = run.report().ledger_head;
    let key = Key::from_secret([5; 32]).public_hex();
    let check = |key: &str, head: &str| {
        let (key, head) = (Some(key), Some(head));
        let initial_weights: Option<&dokja_audit::verify::InitialWeights<'_>> =
            Some(&initial_weights);
        verify(
            run.dir.path(),
            &VerifyOptions {
                initial_weights,
                key,
                head,
                data_dir: None,
            },
        )
        .verdict
    };
    assert_eq!(check(&key, &head), Verdict::Valid);
    assert_eq!(
        check(&Key::from_secret([6; 32]).public_hex(), &head),
        Verdict::Broken
    );
    assert_eq!(check(&key, &"11".repeat(32)), Verdict::Broken);
}

#[test]
fn without_a_generator_the_random_start_is_not_claimed() {
    let run = Run::whole();
    let report = verify(run.dir.path(), &VerifyOptions::default());
    assert_eq!(report.verdict, Verdict::Incomplete);
    let certificate = Certificate::new(&report);
    let start = certificate
        .claims
        .iter()
        .find(|c| c.claim == Claim::RandomStart)
        .unwrap();
    assert_eq!(start.result, Outcome::NotTested);
}

#[test]
fn the_story_tells_the_records_in_order_with_a_stage_as_one() {
    let story = Run::whole().report().story;
    let told: Vec<(&str, &str)> = story
        .iter()
        .map(|m| (m.title.as_str(), m.detail.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (
                "The run begins",
                "dokja 0.1.0 at commit 0123abc, on test (avx2, 2 cores, 9 GB)"
            ),
            ("Training data", "3 documents to learn from, 1 held out"),
            ("Tokenizer", "300 tokens, learned from this data"),
            ("Random start", "seed 7, generator test-1"),
            ("Pretraining", "20 steps, 1,280 tokens, 2 checkpoints"),
            (
                "Measured: world, after: Pretraining",
                "81.5 (79.0 to 84.0 with 95 % confidence)"
            ),
            ("Instruction tuning", "5 steps, 320 tokens, 1 checkpoint"),
            (
                "Measured: world, after: Instruction tuning",
                "81.5 (79.0 to 84.0 with 95 % confidence)"
            ),
        ]
    );
}

#[test]
fn a_certificate_is_a_page_that_shows_what_the_run_says_as_text_only() {
    let mut run = Run::whole();
    let hostile = "<script>alert('x')</script>\" onload=\"&";
    run.ledger = Some(Ledger::open_or_create(run.dir.path(), Key::from_secret([5; 32])).unwrap());
    let weights_sha256 = run.weights.clone();
    let eval = Eval {
        suite: hostile.into(),
        weights_sha256,
        score: 1.0,
        ci95: None,
    };
    run.append(Event::Eval(eval), &[]);
    fs::write(run.paths().tokenizer(), b"{\"tokenizer\": 2}").unwrap();
    let out = tempfile::tempdir().unwrap();
    let certificate = Certificate::new(&run.report());
    certificate.write(out.path()).unwrap();
    assert_eq!(Certificate::read(out.path()).unwrap(), certificate);
    let page = fs::read_to_string(out.path().join("certificate.html")).unwrap();
    for shown in [
        "<!doctype html>",
        "The record is contradicted",
        "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot; onload=&quot;&amp;",
        &run.weights,
        &certificate.ledger_head,
        "the file tokenizer.json was changed",
        "Random start",
        "That training began from these weights",
    ] {
        assert!(page.contains(shown), "{shown}");
    }
    for refused in ["<script", "http://", "https://", " onload=\"&", "url("] {
        assert!(!page.contains(refused), "{refused}");
    }
    assert!(page.len() < 100_000);
}

#[test]
fn an_empty_or_missing_directory_is_told_not_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(report(dir.path()).verdict, Verdict::Broken);
    fs::write(dir.path().join("ledger.jsonl"), b"").unwrap();
    assert_eq!(report(dir.path()).verdict, Verdict::Incomplete);
    assert_eq!(report(Path::new("/no/such/run")).verdict, Verdict::Broken);
}

#[test]
fn the_json_of_a_report_uses_the_words_of_the_command_line() {
    let run = Run::whole();
    fs::write(run.paths().tokenizer(), b"x").unwrap();
    let json = serde_json::to_value(run.report()).unwrap();
    assert_eq!(json["verdict"], "broken");
    assert_eq!(json["findings"][0]["result"], "failed");
    assert_eq!(json["findings"][0]["evidence"][0], "tokenizer.json");
}
