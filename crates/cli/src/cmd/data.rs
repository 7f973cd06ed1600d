//! `dokja data`: files become a data directory, and what is in one is told.

use crate::interrupt::{self, Interrupted};
use crate::print;
use crate::progress::{Progress, Unit, bytes, grouped};
use anyhow::{Context, Result};
use data::build::{BuildError, BuildOptions, Builtin, Options};
use data::manifest::{Manifest, Tally};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Documents for training: build a data directory, look into one.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Build(BuildArgs),
    Inspect(InspectArgs),
}

/// Turns files into clean, deduplicated, split and hashed shards.
///
/// Reads plain text, Markdown, HTML, JSON Lines (`text`, and `lang` and `source` if given) and Parquet (the
/// same columns), each plain, .gz or .zst; of a directory, all such files in it. A line of JSON Lines with
/// `messages` (each `role`: system, user or assistant, and `content`) instead of `text` is a dialogue, for
/// `dokja sft` and `dokja rl`. Every text is brought
/// to Unicode NFC and cleaned of control characters and stray white space, given a language, dropped if
/// it was there before, and put on one side of the train/held-out split by its hash. The directory
/// appears whole or not at all; the same inputs give the same bytes.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  dokja data build --out data --corpus articles.jsonl.zst --corpus books/
  dokja data build --out data --corpus books/ --corpus conversations.jsonl
  dokja data build --out data --builtin --builtin-bytes 8000000
      the built-in world alone: generated text in Korean and English, with dialogues")]
struct BuildArgs {
    /// The data directory to make; it must not be there yet.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A file or a directory of text; may be given several times.
    #[arg(long, value_name = "PATH", required_unless_present = "builtin")]
    corpus: Vec<PathBuf>,
    /// Include the built-in world: documents and instruction dialogues about an invented town.
    #[arg(long)]
    builtin: bool,
    /// Bytes of documents that the built-in world writes.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 8_000_000,
        requires = "builtin"
    )]
    builtin_bytes: u64,
    /// Instruction dialogues that the built-in world writes.
    #[arg(long, value_name = "N", default_value_t = 20_000, requires = "builtin")]
    builtin_dialogues: u64,
    /// Seed of the built-in world: of its facts and of its texts.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "builtin")]
    seed: u64,
    /// Share of the documents that is held out for measuring.
    #[arg(long, value_name = "SHARE", default_value_t = Options::default().heldout_fraction)]
    heldout: f64,
    /// Shorter texts are dropped.
    #[arg(long, value_name = "N", default_value_t = Options::default().min_document_bytes)]
    min_document_bytes: usize,
    /// Keep at most so much text of each language: a sample by the hash of the texts.
    #[arg(long, value_name = "N")]
    limit_bytes_per_language: Option<u64>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Says what is in a data directory, by language and source.
#[derive(clap::Args)]
#[command(after_help = "Example:
  dokja data inspect data --samples 2")]
struct InspectArgs {
    /// A data directory, or a run directory that has one.
    dir: PathBuf,
    /// Read every shard and compare its digest with the manifest's.
    #[arg(long)]
    verify: bool,
    /// Show the beginning of so many documents of each language.
    #[arg(long, value_name = "N", default_value_t = 0)]
    samples: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Build(args) => build(args),
        Command::Inspect(args) => inspect(args),
    }
}

fn build(args: &BuildArgs) -> Result<()> {
    interrupt::listen()?;
    let what = BuildOptions {
        corpus: args.corpus.clone(),
        builtin: args.builtin.then_some(Builtin {
            world_seed: args.seed,
            text_seed: args.seed,
            bytes: args.builtin_bytes,
            dialogues: args.builtin_dialogues,
        }),
        options: Options {
            heldout_fraction: args.heldout,
            min_document_bytes: args.min_document_bytes,
            limit_bytes_per_language: args.limit_bytes_per_language,
            ..Options::default()
        },
    };
    if let Some(above) = args.out.parent() {
        formats::run_dir::make_dir(above)?;
    }
    let mut bar = Progress::new("reading", Unit::Bytes, 0, 0);
    let built = data::build(&args.out, &what, &mut |progress| {
        bar.set_total(progress.total_bytes);
        bar.note(format!(
            "{} documents; {}",
            grouped(progress.documents),
            progress.input
        ));
        bar.set(progress.done_bytes);
        match interrupt::is_asked() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    let manifest = match built {
        Ok(manifest) => manifest,
        Err(BuildError::Interrupted) => {
            drop(bar);
            return Err(Interrupted("nothing was written".into()).into());
        }
        Err(e) => return Err(e).context("no data directory was made"),
    };
    bar.note("");
    bar.finish();
    let sha256 = Manifest::sha256(&args.out)?;
    print(&if args.json {
        json!({
            "dir": args.out,
            "documents": manifest.documents,
            "bytes": manifest.bytes,
            "kept_documents": manifest.kept_documents,
            "kept_bytes": manifest.kept_bytes,
            "heldout_documents": total(&manifest.languages).heldout_documents,
            "heldout_bytes": total(&manifest.languages).heldout_bytes,
            "dialogues": manifest.dialogues,
            "dropped": manifest.dropped,
            "languages": manifest.languages,
            "manifest_sha256": sha256,
        })
        .to_string()
    } else {
        let dir = args.out.display();
        format!(
            "{}\nnext: dokja tokenizer train --data {dir} --vocab-size 16384 --out tokenizer.json",
            describe(&args.out, &manifest, &sha256)
        )
    });
    Ok(())
}

fn inspect(args: &InspectArgs) -> Result<()> {
    let in_run = args.dir.join("data");
    let is_run = !args.dir.join(data::manifest::FILE_NAME).exists() && in_run.is_dir();
    let dir = if is_run { &in_run } else { &args.dir };
    let manifest = match args.verify {
        true => data::verify(dir)?,
        false => Manifest::open(dir)?,
    };
    let sha256 = Manifest::sha256(dir)?;
    let samples = samples(dir, args.samples)?;
    if args.json {
        let mut value = serde_json::to_value(&manifest)?;
        value["kind"] = json!("data");
        value["dir"] = json!(dir);
        value["manifest_sha256"] = json!(sha256);
        value["verified"] = json!(args.verify);
        if args.samples > 0 {
            value["samples"] = json!(samples);
        }
        print(&value.to_string());
        return Ok(());
    }
    let mut text = describe(dir, &manifest, &sha256);
    if args.verify {
        let _ = writeln!(
            text,
            "  verified   every shard has the digest of the manifest"
        );
    }
    text.push('\n');
    table(&mut text, "source", &manifest.sources);
    for (lang, texts) in samples {
        for sample in texts {
            let _ = write!(text, "\n[{lang}] {}\n", sample.replace('\n', "\n     "));
        }
    }
    print(text.trim_end());
    Ok(())
}

/// The beginnings of the first `count` training documents of each language.
fn samples(dir: &Path, count: usize) -> Result<BTreeMap<String, Vec<String>>> {
    const SHOWN_CHARS: usize = 280;
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    if count == 0 {
        return Ok(found);
    }
    for document in data::shard::records::<data::Document>(dir, data::manifest::Split::Train)? {
        let document = document?;
        let texts = found.entry(document.lang).or_default();
        if texts.len() < count {
            texts.push(document.text.chars().take(SHOWN_CHARS).collect());
        }
    }
    Ok(found)
}

fn total(tallies: &BTreeMap<String, Tally>) -> Tally {
    let mut sum = Tally::default();
    for tally in tallies.values() {
        sum.documents += tally.documents;
        sum.bytes += tally.bytes;
        sum.heldout_documents += tally.heldout_documents;
        sum.heldout_bytes += tally.heldout_bytes;
    }
    sum
}

fn describe(dir: &Path, manifest: &Manifest, sha256: &str) -> String {
    let mut text = format!("data directory {}\n", dir.display());
    let (sum, dropped) = (total(&manifest.languages), &manifest.dropped);
    let of = |documents: u64, size: u64| {
        format!("{} documents, {} of text", grouped(documents), bytes(size))
    };
    let _ = writeln!(
        text,
        "  read       {}",
        of(manifest.documents, manifest.bytes)
    );
    let _ = writeln!(text, "  training   {}", of(sum.documents, sum.bytes));
    let _ = writeln!(
        text,
        "  held out   {}",
        of(sum.heldout_documents, sum.heldout_bytes)
    );
    if manifest.dialogues > 0 {
        let _ = writeln!(text, "  dialogues  {}", grouped(manifest.dialogues));
    }
    let mut reasons = vec![
        format!(
            "{} duplicates ({})",
            grouped(dropped.duplicates),
            bytes(dropped.duplicate_bytes)
        ),
        format!("{} too short", grouped(dropped.too_short)),
    ];
    if dropped.over_limit > 0 {
        reasons.push(format!("{} over the limit", grouped(dropped.over_limit)));
    }
    let unusable = dropped.skipped.total();
    if unusable > 0 {
        let first = dropped.skipped.examples.first();
        let first = first.map_or(String::new(), |skip| {
            format!(", the first {} line {}", skip.path, skip.line)
        });
        reasons.push(format!("{} unusable{first}", grouped(unusable)));
    }
    let _ = writeln!(text, "  dropped    {}", reasons.join(", "));
    let _ = writeln!(text, "  shards     {}", manifest.shards.len());
    let _ = writeln!(text, "  manifest   {sha256}\n");
    table(&mut text, "language", &manifest.languages);
    text
}

/// Names by decreasing size; the smallest of many are summed up.
fn table(text: &mut String, what: &str, tallies: &BTreeMap<String, Tally>) {
    const ROWS: usize = 40;
    let mut rows: Vec<(&str, Tally)> = tallies.iter().map(|(n, t)| (n.as_str(), *t)).collect();
    rows.sort_by_key(|(_, tally)| std::cmp::Reverse(tally.bytes + tally.heldout_bytes));
    let rest: BTreeMap<String, Tally> = rows
        .drain(rows.len().min(ROWS)..)
        .map(|(name, tally)| (name.to_owned(), tally))
        .collect();
    let others = format!("{} others", rest.len());
    if !rest.is_empty() {
        rows.push((&others, total(&rest)));
    }
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .chain([what.len()])
        .max()
        .unwrap_or(0);
    let _ = writeln!(
        text,
        "  {what:<width$}  {:>10}  {:>9}  {:>6}  {:>9}",
        "documents", "text", "share", "held out"
    );
    let all = total(tallies).bytes.max(1);
    for (name, tally) in rows {
        let _ = writeln!(
            text,
            "  {name:<width$}  {:>10}  {:>9}  {:>5.1}%  {:>9}",
            grouped(tally.documents),
            bytes(tally.bytes),
            100.0 * tally.bytes as f64 / all as f64,
            bytes(tally.heldout_bytes),
        );
    }
}
