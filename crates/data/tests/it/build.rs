//! Build, manifest, token files, loader.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use dokja_data::{
    BuildError, BuildOptions, Builtin, Dialogue, Document, Encoder, IGNORE, Loader, LoaderOptions,
    Manifest, TokenData, build,
    build::Options,
    extract::SkipReason,
    loader::{LoaderError, sequential},
    manifest::{ManifestError, Split, verify},
    shard::records,
    tokenize,
    tokens::TokenizeError,
};
use tempfile::TempDir;

const SEPARATOR: u32 = 256;

/// A byte is a token; enough of a tokenizer for these tests.
fn encoder<'a>(encode: &'a (dyn Fn(&str) -> Vec<u32> + Sync)) -> Encoder<'a> {
    Encoder {
        encode,
        vocab_size: 257,
        sha256: "ab".repeat(32),
        separator: SEPARATOR,
    }
}

fn bytes_of(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn go_on(_: &dokja_data::Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn corpus(dir: &Path) -> PathBuf {
    let lines: String = (0..400)
        .map(|i| {
            let (text, lang) = if i % 4 == 0 {
                (
                    format!("{i}번 등대에는 등대지기가 산다. 밤마다 불을 켠다."),
                    "ko",
                )
            } else {
                (
                    format!("Lighthouse number {i} has a keeper who lights the lamp at night."),
                    "en",
                )
            };
            let line = serde_json::json!({ "text": text, "lang": lang, "source": "lamps" });
            format!("{line}\n")
        })
        .collect();
    let path = dir.join("lamps.jsonl");
    fs::write(
        &path,
        lines.clone() + "{\"text\":\"short\"}\nbroken\n" + &lines[..2000],
    )
    .unwrap();
    path
}

fn options(dir: &Path) -> BuildOptions {
    BuildOptions {
        corpus: vec![corpus(dir)],
        builtin: None,
        options: Options {
            heldout_fraction: 0.1,
            shard_bytes: 8_000,
            ..Options::default()
        },
    }
}

fn built() -> (TempDir, PathBuf, Manifest) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("data");
    let manifest = build(&out, &options(dir.path()), &mut go_on).unwrap();
    (dir, out, manifest)
}

fn tokens(out: &Path) -> TokenData {
    tokenize(out, &encoder(&bytes_of), 2, &mut |_, _| {
        ControlFlow::Continue(())
    })
    .unwrap()
}

#[test]
fn the_manifest_accounts_for_every_document() {
    let (_dir, out, manifest) = built();
    assert_eq!(manifest, Manifest::open(&out).unwrap());
    assert_eq!(manifest.kept_documents, 400);
    assert!(manifest.dropped.duplicates > 5);
    assert_eq!(manifest.dropped.too_short, 1);
    // The broken line and the last, cut one.
    assert_eq!(manifest.dropped.skipped.counts[&SkipReason::InvalidJson], 2);
    assert_eq!(
        manifest.documents,
        manifest.kept_documents + manifest.dropped.duplicates + manifest.dropped.too_short
    );
    let (ko, en) = (&manifest.languages["ko"], &manifest.languages["en"]);
    assert_eq!(ko.documents + ko.heldout_documents, 100);
    assert_eq!(en.documents + en.heldout_documents, 300);
    assert!((20..70).contains(&(ko.heldout_documents + en.heldout_documents)));
    assert_eq!(manifest.sources.keys().collect::<Vec<_>>(), ["lamps"]);
    let read: u64 = manifest.shards.iter().map(|shard| shard.documents).sum();
    assert_eq!(read, 400);
    assert!(manifest.shards_of(Split::Train).count() > 2);
    assert_eq!(manifest.inputs[0].documents, manifest.documents);
}

#[test]
fn splits_share_no_text_and_shards_keep_the_order() {
    let (_dir, out, _) = built();
    let texts = |split| -> Vec<String> {
        records::<Document>(&out, split)
            .unwrap()
            .map(|d| d.unwrap().text)
            .collect()
    };
    let (train, heldout) = (texts(Split::Train), texts(Split::Heldout));
    let seen: HashSet<&String> = train.iter().collect();
    assert!(heldout.iter().all(|text| !seen.contains(text)));
    assert_eq!(seen.len(), train.len());
    let numbers: Vec<u32> = train
        .iter()
        .map(|t| {
            t.chars()
                .filter(char::is_ascii_digit)
                .collect::<String>()
                .parse()
                .unwrap()
        })
        .collect();
    assert!(numbers.is_sorted());
}

#[test]
fn the_same_inputs_give_the_same_bytes_and_nothing_is_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let options = BuildOptions {
        builtin: Some(Builtin {
            world_seed: 1,
            text_seed: 2,
            bytes: 50_000,
            dialogues: 20,
        }),
        ..options(dir.path())
    };
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    build(&a, &options, &mut go_on).unwrap();
    build(&b, &options, &mut go_on).unwrap();
    assert_eq!(Manifest::sha256(&a).unwrap(), Manifest::sha256(&b).unwrap());
    let before = fs::read(a.join("manifest.json")).unwrap();
    let error = build(&a, &options, &mut go_on).unwrap_err();
    assert!(error.to_string().contains("never overwritten"), "{error}");
    assert_eq!(fs::read(a.join("manifest.json")).unwrap(), before);
    let manifest = verify(&a).unwrap();
    assert_eq!(manifest.dialogues, 20);
    assert_eq!(manifest.builtin.unwrap().generator, "dokja-world");
    assert!(manifest.sources.contains_key("world/mathematics"));
    let dialogues: Vec<Dialogue> = records(&a, Split::Dialogues)
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(dialogues.len(), 20);
    assert_eq!(dialogues[0].messages[0].role, "user");
}

#[test]
fn a_stopped_or_empty_build_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("data");
    let options = BuildOptions {
        builtin: Some(Builtin {
            world_seed: 1,
            text_seed: 2,
            bytes: 2_000_000,
            dialogues: 0,
        }),
        ..BuildOptions::default()
    };
    let error = build(&out, &options, &mut |_| ControlFlow::Break(())).unwrap_err();
    assert!(matches!(error, BuildError::Interrupted));
    let error = build(&out, &BuildOptions::default(), &mut go_on).unwrap_err();
    assert!(matches!(error, BuildError::Empty { .. }));
    let mut bad = options.clone();
    bad.options.heldout_fraction = 1.0;
    assert!(matches!(
        build(&out, &bad, &mut go_on),
        Err(BuildError::Fraction { .. })
    ));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_changed_shard_is_found() {
    let (_dir, out, manifest) = built();
    let path = out.join(&manifest.shards[0].file);
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(verify(&out), Err(ManifestError::Changed { .. })));
    let reading: Result<Vec<Document>, _> = records(&out, Split::Train).unwrap().collect();
    assert!(reading.is_err(), "the frame's checksum sees it too");
}

#[test]
fn token_files_are_cached_and_tied_to_their_data() {
    let (_dir, out, manifest) = built();
    let first = tokens(&out);
    let langs: Vec<_> = first
        .of(Split::Train)
        .map(|file| file.lang.as_str())
        .collect();
    assert_eq!(langs, ["en", "ko"]);
    let kept = first.text_bytes(Split::Train) + first.text_bytes(Split::Heldout);
    assert_eq!(kept, manifest.kept_bytes);
    assert_eq!(
        first.num_tokens(Split::Train),
        first.text_bytes(Split::Train)
    );

    let never = |_: &str| -> Vec<u32> { panic!("the cache is there") };
    let again = tokenize(&out, &encoder(&never), 1, &mut |_, _| {
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(
        again.num_tokens(Split::Train),
        first.num_tokens(Split::Train)
    );

    let mut text = fs::read(out.join("manifest.json")).unwrap();
    text.push(b'\n');
    fs::write(out.join("manifest.json"), text).unwrap();
    let stale = tokenize(&out, &encoder(&bytes_of), 1, &mut |_, _| {
        ControlFlow::Continue(())
    });
    assert!(matches!(
        stale,
        Err(TokenizeError::Stale {
            what: "manifest",
            ..
        })
    ));
}

#[test]
fn a_changed_token_file_is_found() {
    let (_dir, out, _) = built();
    let path = tokens(&out).files[0].path.clone();
    let honest = fs::read(&path).unwrap();
    for at in [80, honest.len() / 2, honest.len() - 1] {
        let mut bytes = honest.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let result = tokenize(&out, &encoder(&bytes_of), 1, &mut |_, _| {
            ControlFlow::Continue(())
        });
        assert!(
            matches!(result, Err(TokenizeError::Changed { .. })),
            "byte {at}"
        );
    }
}

#[test]
fn a_limit_keeps_a_sample_of_each_language() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    options.options.limit_bytes_per_language = Some(4000);
    let out = dir.path().join("data");
    let manifest = build(&out, &options, &mut go_on).unwrap();
    for tally in manifest.languages.values() {
        let bytes = tally.bytes + tally.heldout_bytes;
        assert!((3900..=4000).contains(&bytes), "{bytes}");
    }
    assert_eq!(manifest.kept_documents + manifest.dropped.over_limit, 400);
    assert!(manifest.sources["lamps"].heldout_documents > 0);
}

#[test]
fn languages_and_sources_without_end_are_counted_together() {
    let dir = tempfile::tempdir().unwrap();
    let lines: String = (0..1500u32)
        .map(|i| {
            let letter = |n: u32| char::from(b'a' + (n % 26) as u8);
            let lang: String = [letter(i / 676), letter(i / 26), letter(i)]
                .iter()
                .collect();
            let text = format!("text number {i}, long enough to be kept as a document");
            let line = serde_json::json!({ "text": text, "lang": lang, "source": format!("s{i}") });
            format!("{line}\n")
        })
        .collect();
    let path = dir.path().join("many.jsonl");
    fs::write(&path, lines).unwrap();
    let options = BuildOptions {
        corpus: vec![path],
        ..BuildOptions::default()
    };
    let out = dir.path().join("data");
    let manifest = build(&out, &options, &mut go_on).unwrap();
    assert_eq!(manifest.languages.len(), 201);
    let unknown = manifest.languages["und"];
    assert_eq!(unknown.documents + unknown.heldout_documents, 1300);
    assert_eq!(manifest.sources.len(), 1001);
    assert!(tokens(&out).files.len() <= 402);
}

#[test]
fn progress_reaches_into_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let line = |i: u32| format!("{{\"text\":\"{i} {}\"}}\n", "lamp ".repeat(100));
    let path = dir.path().join("a.jsonl");
    fs::write(&path, (0..8000).map(line).collect::<String>()).unwrap();
    let total = fs::metadata(&path).unwrap().len();
    let options = BuildOptions {
        corpus: vec![path],
        ..BuildOptions::default()
    };
    let mut seen = Vec::new();
    build(&dir.path().join("data"), &options, &mut |progress| {
        assert_eq!(progress.total_bytes, total);
        seen.push(progress.done_bytes);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(seen.len() >= 3 && seen.is_sorted() && seen[0] > 0 && *seen.last().unwrap() <= total);
}

#[test]
fn token_files_do_not_depend_on_the_number_of_threads() {
    let (_dir, out, _) = built();
    let digests = |threads| {
        let made = tokenize(&out, &encoder(&bytes_of), threads, &mut |_, _| {
            ControlFlow::Continue(())
        });
        let digests: Vec<String> = made
            .unwrap()
            .files
            .iter()
            .map(|f| f.sha256.clone())
            .collect();
        fs::remove_dir_all(out.join("tokens")).unwrap();
        digests
    };
    assert_eq!(digests(1), digests(5));
}

fn loader_options(seed: u64) -> LoaderOptions {
    LoaderOptions {
        seq_len: 100,
        rows_per_batch: 3,
        seed,
        mixture: BTreeMap::new(),
    }
}

#[test]
fn an_epoch_shows_every_token_once_less_a_row() {
    let (_dir, out, _) = built();
    let data = tokens(&out);
    let loader = Loader::new(
        &data,
        LoaderOptions {
            rows_per_batch: 1,
            ..loader_options(7)
        },
    );
    let loader = loader.unwrap();
    let documents = data
        .of(Split::Train)
        .map(|f| f.shard.num_documents() as u64)
        .sum::<u64>();
    let inputs = data.num_tokens(Split::Train) + documents;
    let rows = loader.rows_per_epoch();
    assert_eq!(rows, inputs / 100);
    let (mut shown, mut starts) = (0u64, 0u64);
    for step in 0..rows {
        let batch = loader.batch(step);
        assert_eq!(batch.num_tokens(), 100);
        assert_eq!(
            (batch.cu_seqlens[0], *batch.cu_seqlens.last().unwrap()),
            (0, 100)
        );
        assert!(batch.cu_seqlens.is_sorted_by(|a, b| a < b));
        shown += batch.num_targets() as u64;
        starts += batch.ids.iter().filter(|id| **id == SEPARATOR).count() as u64;
        for at in 0..100 {
            // A separator is an input only at the start of a segment.
            let is_start = batch.cu_seqlens.contains(&(at as u32));
            assert!(is_start || batch.ids[at] != SEPARATOR);
            let is_last = batch.cu_seqlens.contains(&(at as u32 + 1));
            if !is_last {
                assert_eq!(batch.targets[at], batch.ids[at + 1]);
                assert_eq!(batch.targets2[at], batch.targets[at + 1]);
            }
            assert_eq!(batch.targets2[at] == IGNORE, batch.targets[at] == SEPARATOR);
        }
    }
    assert_eq!(shown, rows * 100);
    assert!(documents - starts <= 2);

    // Id by id: none is shown more often than it is there, and less than a row is missing.
    let mut left: BTreeMap<u32, i64> = BTreeMap::from([(SEPARATOR, documents as i64)]);
    for file in data.of(Split::Train) {
        for id in file.shard.ids() {
            *left.entry(*id).or_default() += 1;
        }
    }
    for target in (0..rows).flat_map(|step| loader.batch(step).targets) {
        *left.get_mut(&target).unwrap() -= 1;
    }
    assert!(left.values().all(|count| *count >= 0));
    assert_eq!(left.values().sum::<i64>() as u64, inputs % 100);
}

#[test]
fn a_batch_is_a_function_of_seed_and_step() {
    let (_dir, out, _) = built();
    let data = tokens(&out);
    let loader = Loader::new(&data, loader_options(7)).unwrap();
    let far = loader.batch(1_000_000);
    let walked: Vec<_> = (0..200).map(|step| loader.batch(step)).collect();
    let fresh = Loader::new(&data, loader_options(7)).unwrap();
    assert_eq!(fresh.batch(137), walked[137]);
    assert_eq!(fresh.batch(1_000_000), far);
    assert_eq!(fresh.commitment(), loader.commitment());
    assert_eq!(fresh.batch(3).sha256(), walked[3].sha256());
    assert_ne!(fresh.batch(4).sha256(), walked[3].sha256());
    let other = Loader::new(&data, loader_options(8)).unwrap();
    assert_ne!(other.batch(0), walked[0]);
    assert_ne!(other.commitment(), loader.commitment());
    let epochs = loader.rows_per_epoch() / 3;
    assert_ne!(
        loader.batch(0),
        loader.batch(epochs),
        "epochs are shuffled anew"
    );
}

#[test]
fn a_mixture_gives_each_language_its_share() {
    let (_dir, out, _) = built();
    let data = tokens(&out);
    let mixture = BTreeMap::from([("ko".to_owned(), 3.0), ("en".to_owned(), 1.0)]);
    let options = LoaderOptions {
        mixture,
        rows_per_batch: 1,
        ..loader_options(7)
    };
    let loader = Loader::new(&data, options.clone()).unwrap();
    let korean = (0..400).filter(|step| {
        loader
            .batch(*step)
            .ids
            .iter()
            .any(|id| *id > 0x7f && *id < 256)
    });
    assert_eq!(korean.count(), 300);
    let plain = Loader::new(&data, loader_options(7)).unwrap();
    assert_ne!(plain.commitment(), loader.commitment());

    let with = |lang: &str, weight: f64| LoaderOptions {
        mixture: BTreeMap::from([(lang.to_owned(), weight)]),
        ..options.clone()
    };
    assert!(matches!(
        Loader::new(&data, with("fr", 1.0)),
        Err(LoaderError::Language { .. })
    ));
    assert!(matches!(
        Loader::new(&data, with("ko", -1.0)),
        Err(LoaderError::Weight { .. })
    ));
    assert!(matches!(
        Loader::new(&data, with("ko", 0.0)),
        Err(LoaderError::Weight { .. })
    ));
    let long = LoaderOptions {
        seq_len: 1 << 20,
        ..loader_options(7)
    };
    assert!(matches!(
        Loader::new(&data, long),
        Err(LoaderError::TooSmall { .. })
    ));
}

#[test]
fn measuring_shows_every_held_out_token_once_in_order() {
    let (_dir, out, _) = built();
    let data = tokens(&out);
    let documents: usize = data
        .of(Split::Heldout)
        .map(|f| f.shard.num_documents())
        .sum();
    let mut targets = Vec::new();
    for batch in sequential(data.of(Split::Heldout), 50, 4, SEPARATOR) {
        assert!(batch.num_tokens() <= 200);
        assert!(batch.cu_seqlens.windows(2).all(|w| w[1] - w[0] <= 50));
        targets.extend(batch.targets);
    }
    let mut expected = Vec::new();
    for file in data.of(Split::Heldout) {
        for idx in 0..file.shard.num_documents() {
            expected.extend_from_slice(file.shard.document(idx).unwrap());
            expected.push(SEPARATOR);
        }
    }
    assert_eq!(targets, expected);
    assert_eq!(
        targets.len() as u64,
        data.num_tokens(Split::Heldout) + documents as u64
    );
}

#[test]
fn dialogues_of_inputs_are_kept_once_where_they_are_whole_and_told_where_not() {
    let scratch = tempfile::tempdir().expect("a directory");
    let turn = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
    let line = |messages: &[serde_json::Value]| {
        format!(
            "{}\n",
            serde_json::json!({"messages": messages, "source": "chats"})
        )
    };
    let (hello, hi) = (
        turn("user", "Hello\u{7}  "),
        turn("assistant", "안녕하세요"),
    );
    let rejected = |rejected: &str| {
        let messages = [hello.clone(), hi.clone()];
        format!(
            "{}\n",
            serde_json::json!({"messages": messages, "rejected": rejected})
        )
    };
    let lines = [
        serde_json::json!({"text": "A text that is long enough to be kept as one."}).to_string()
            + "\n",
        line(&[hello.clone(), hi.clone()]),
        line(&[turn("user", "Hello"), hi.clone()]), // the same when it is clean
        line(&[
            turn("system", "Be brief."),
            hello.clone(),
            hi.clone(),
            hello.clone(),
            hi.clone(),
        ]),
        line(std::slice::from_ref(&hello)),
        line(&[hi.clone(), hello.clone()]),
        line(&[turn("tool", "x"), hi.clone()]),
        line(&[turn("user", " "), hi.clone()]),
        line(&[]),
        "{\"messages\": \"none\"}\n".to_owned(),
        "{\"text\": \"both\", \"messages\": []}\n".to_owned(),
        line(&[turn("user", "\u{7}"), hi.clone()]), // nothing is left of the turn
        rejected("Go away. "),
        rejected("안녕하세요 "), // the answer itself
        rejected(" "),
    ];
    let corpus = scratch.path().join("mixed.jsonl");
    fs::write(&corpus, lines.concat()).expect("a writable directory");
    let out = scratch.path().join("data");
    let what = BuildOptions {
        corpus: vec![corpus],
        builtin: None,
        options: Options::default(),
    };
    let manifest = build(&out, &what, &mut go_on).expect("built");
    assert_eq!((manifest.kept_documents, manifest.dialogues), (1, 3));
    assert_eq!(
        (manifest.dropped.duplicates, manifest.dropped.too_short),
        (1, 1)
    );
    let skipped = &manifest.dropped.skipped.counts;
    assert_eq!(skipped[&SkipReason::NoDialogue], 7);
    assert_eq!(skipped[&SkipReason::InvalidJson], 2);
    let kept: Vec<Dialogue> = records(&out, Split::Dialogues)
        .expect("shards")
        .map(|dialogue| dialogue.expect("a dialogue"))
        .collect();
    assert_eq!(kept[0].messages[0].content, "Hello");
    assert_eq!(
        (kept[0].source.as_str(), kept[1].messages.len()),
        ("chats", 5)
    );
    let worse = kept.iter().map(|dialogue| dialogue.rejected.as_deref());
    assert_eq!(worse.collect::<Vec<_>>(), [None, None, Some("Go away.")]);
    verify(&out).expect("digests as written");
}
