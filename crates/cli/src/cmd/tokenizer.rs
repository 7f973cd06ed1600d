//! `dokja tokenizer`: learn one from a data directory; text to ids and back.

use crate::progress::{Progress, Unit, bytes, grouped};
use crate::{env, interrupt, print};
use ::tokenizer::train::Progress as Stage;
use ::tokenizer::{Tokenizer, Trainer};
use anyhow::{Context, Result, bail};
use data::Document;
use data::manifest::{Manifest, Split};
use serde_json::json;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The tokenizer: train one, encode text, decode ids.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Train(TrainArgs),
    Encode(EncodeArgs),
    Decode(DecodeArgs),
}

/// Learns a byte-level BPE vocabulary in the K-EXAONE form from a data directory's training documents.
///
/// Writes a tokenizer.json that the Hugging Face `tokenizers` library loads and encodes with
/// identically. Tokens are first learned inside words; a share of the vocabulary is then learned across words
/// ("superwords", as in K-EXAONE). The result depends on the documents and the options alone.
#[derive(clap::Args)]
#[command(after_help = "Example:
  dokja tokenizer train --data data --vocab-size 16384 --out tokenizer.json")]
struct TrainArgs {
    /// The data directory to learn from.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Size of the vocabulary: special tokens, the 256 bytes, and what is learned.
    #[arg(long, value_name = "N")]
    vocab_size: usize,
    /// The file to write; replaced in one step if it is there.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Share of what is learned that may span words, 0 to 1 [default: 0 for a vocabulary below 4096,
    /// 0.1 below 65536, else 0.2].
    #[arg(long, value_name = "SHARE")]
    superwords: Option<f64>,
    /// Text to learn from; of more, a sample of whole documents is taken.
    #[arg(long, value_name = "N", default_value_t = Trainer::default().max_bytes)]
    max_bytes: usize,
    /// Pairs seen less often are not merged.
    #[arg(long, value_name = "N", default_value_t = Trainer::default().min_frequency)]
    min_frequency: u64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Turns each line into a JSON array of token ids, one array a line.
///
/// Special tokens written out in the text become their ids, as in the `tokenizers` library; no token is
/// added. The newline that ends a line is not part of its text.
#[derive(clap::Args)]
#[command(after_help = "Example:
  echo 'Who keeps the lighthouse?' | dokja tokenizer encode tokenizer.json")]
struct EncodeArgs {
    /// A tokenizer.json, or a run or checkpoint directory that has one.
    tokenizer: PathBuf,
    /// The file to read instead of stdin.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Lines are JSON strings: for texts with line breaks in them.
    #[arg(long)]
    json_strings: bool,
    /// Take text as nothing but text: what looks like a special token becomes ordinary tokens.
    #[arg(long)]
    ordinary: bool,
    /// The output is JSON in any case; accepted as everywhere.
    #[arg(long)]
    json: bool,
}

/// Turns each line of stdin, a JSON array of token ids, into its text.
///
/// A text with line breaks takes several lines; with --json each text is one line, a JSON string, as
/// `dokja tokenizer encode --json-strings` reads it.
#[derive(clap::Args)]
#[command(after_help = "Example:
  dokja tokenizer encode tokenizer.json --file a.txt | dokja tokenizer decode tokenizer.json")]
struct DecodeArgs {
    /// A tokenizer.json, or a run or checkpoint directory that has one.
    tokenizer: PathBuf,
    /// Leave special tokens out of the text.
    #[arg(long)]
    skip_special: bool,
    /// Print each text as a JSON string.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Train(args) => train(args),
        Command::Encode(args) => ended_by_reader(encode(args)),
        Command::Decode(args) => ended_by_reader(decode(args)),
    }
}

fn train(args: &TrainArgs) -> Result<()> {
    interrupt::end_at_once()?;
    let began = Instant::now();
    let manifest = Manifest::open(&args.data)?;
    let text_bytes = manifest.shards_of(Split::Train).map(|s| s.text_bytes).sum();
    let trainer = Trainer {
        vocab_size: args.vocab_size,
        superword_fraction: args.superwords,
        min_frequency: args.min_frequency,
        max_bytes: args.max_bytes,
        threads: env::threads()?,
        ..Trainer::default()
    };
    let mut failed = None;
    let documents = texts(&args.data, Split::Train, &mut failed)?;
    let mut bar: Option<(u32, Progress)> = None;
    let trained = trainer.train(documents, &mut |stage| {
        let (number, what, unit, done, total) = match stage {
            Stage::Reading { bytes, .. } => (0, "reading", Unit::Bytes, bytes, text_bytes),
            Stage::Counting { stage, bytes } => {
                let what = ["counting words", "counting runs of words"][stage as usize - 1];
                (2 * stage, what, Unit::Bytes, 0, bytes)
            }
            Stage::Merging {
                stage,
                vocab_size,
                target,
            } => {
                let what = ["merging inside words", "merging across words"][stage as usize - 1];
                let (done, total) = (vocab_size as u64, target as u64);
                (2 * stage + 1, what, Unit::Of("tokens"), done, total)
            }
        };
        match &mut bar {
            Some((at, bar)) if *at == number => bar.set(done),
            _ => bar = Some((number, Progress::new(what, unit, done, total))),
        }
    });
    drop(bar);
    // Documents that could not be read look to the trainer like the end of the data.
    if let Some(e) = failed {
        return Err(e).context("no tokenizer was made");
    }
    let tokenizer = trained.with_context(|| match text_bytes {
        0 => format!("{} has no training documents", args.data.display()),
        _ => "no tokenizer was made".to_owned(),
    })?;
    tokenizer.save(&args.out)?;
    let seconds = began.elapsed().as_secs_f64();
    let (split, measured) = measure(&args.data, &manifest, &tokenizer)?;
    print(&if args.json {
        json!({
            "out": args.out,
            "vocab_size": tokenizer.vocab_size(),
            "bytes_per_token": measured,
            "measured_on": split.name(),
            "seconds": seconds,
            "sha256": formats::hash::sha256_file(&args.out)?,
        })
        .to_string()
    } else {
        let mut text = format!(
            "tokenizer {}\n  vocabulary       {} tokens\n  bytes per token  {measured:.3} on the {} \
             documents\n  trained          on {} of text in {seconds:.1} s",
            args.out.display(),
            grouped(tokenizer.vocab_size() as u64),
            split.name(),
            bytes((text_bytes).min(args.max_bytes as u64)),
        );
        if tokenizer.vocab_size() < args.vocab_size {
            text.push_str(
                "\n  note             smaller than asked for: the text has no more frequent pairs",
            );
        }
        text
    });
    Ok(())
}

/// The texts of a split; what ends them early is put into `failed`.
fn texts<'a>(
    dir: &Path,
    split: Split,
    failed: &'a mut Option<data::shard::ShardError>,
) -> Result<impl Iterator<Item = String> + use<'a>> {
    let mut records = data::shard::records::<Document>(dir, split)?;
    Ok(std::iter::from_fn(move || match records.next()? {
        Ok(document) => Some(document.text),
        Err(e) => {
            *failed = Some(e);
            None
        }
    }))
}

/// Bytes per token on the held-out documents, or the training documents where none are held out; on
/// the first of them, which tells enough.
fn measure(dir: &Path, manifest: &Manifest, tokenizer: &Tokenizer) -> Result<(Split, f64)> {
    const ENOUGH_BYTES: usize = 16 << 20;
    let split = match manifest.shards_of(Split::Heldout).next() {
        Some(_) => Split::Heldout,
        None => Split::Train,
    };
    let (mut num_bytes, mut num_tokens) = (0, 0);
    for document in data::shard::records::<Document>(dir, split)? {
        let text = document?.text;
        num_tokens += tokenizer.encode_ordinary(&text).len();
        num_bytes += text.len();
        if num_bytes > ENOUGH_BYTES {
            break;
        }
    }
    Ok((split, num_bytes as f64 / num_tokens.max(1) as f64))
}

/// Opens a tokenizer.json, also through the directory that holds it.
pub(crate) fn open(path: &Path) -> Result<Tokenizer> {
    let file = match path.is_dir() {
        true => path.join("tokenizer.json"),
        false => path.to_owned(),
    };
    Tokenizer::load(&file).with_context(|| format!("cannot use {}", file.display()))
}

/// Lines that are encoded together, spread over the threads.
const CHUNK_LINES: usize = 1024;
/// And no more than so many bytes of them, unless one line alone is longer.
const CHUNK_BYTES: usize = 4 << 20;

fn encode(args: &EncodeArgs) -> Result<()> {
    let tokenizer = open(&args.tokenizer)?;
    let threads = env::threads()?;
    let (name, mut input): (String, Box<dyn BufRead>) = match &args.file {
        Some(path) => {
            let file = File::open(path);
            let file = file.with_context(|| format!("cannot read {}", path.display()))?;
            (
                path.display().to_string(),
                Box::new(BufReader::with_capacity(1 << 18, file)),
            )
        }
        None => ("stdin".into(), Box::new(io::stdin().lock())),
    };
    let mut out = BufWriter::with_capacity(1 << 18, io::stdout().lock());
    let (mut lines, mut number) = (Vec::new(), 0);
    loop {
        lines.clear();
        let mut size = 0;
        while lines.len() < CHUNK_LINES && size < CHUNK_BYTES {
            let Some(line) = read_line(input.as_mut(), &name, number + 1)? else {
                break;
            };
            number += 1;
            size += line.len();
            lines.push(match args.json_strings {
                true => serde_json::from_str(&line)
                    .with_context(|| format!("{name} line {number} is no JSON string"))?,
                false => line,
            });
        }
        if lines.is_empty() {
            break;
        }
        let encoded = match args.ordinary {
            true => tokenizer.encode_ordinary_batch(&lines, threads),
            false => tokenizer.encode_batch(&lines, threads),
        };
        for ids in encoded {
            serde_json::to_writer(&mut out, &ids).map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
    }
    out.flush()?;
    Ok(())
}

fn decode(args: &DecodeArgs) -> Result<()> {
    let tokenizer = open(&args.tokenizer)?;
    let mut input = io::stdin().lock();
    let mut out = BufWriter::with_capacity(1 << 18, io::stdout().lock());
    let mut number = 0;
    while let Some(line) = read_line(&mut input, "stdin", number + 1)? {
        number += 1;
        let ids: Vec<u32> = serde_json::from_str(&line).with_context(|| {
            format!("stdin line {number} is no JSON array of token ids, such as [12, 7]")
        })?;
        if let Some(id) = ids.iter().find(|&&id| tokenizer.token_bytes(id).is_none()) {
            bail!(
                "stdin line {number} has the id {id}, which is no token of this vocabulary of {}",
                tokenizer.vocab_size()
            );
        }
        let text = tokenizer.decode(&ids, args.skip_special);
        match args.json {
            true => serde_json::to_writer(&mut out, &text).map_err(io::Error::from)?,
            false => out.write_all(text.as_bytes())?,
        }
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}

/// The next line without its newline.
fn read_line(input: &mut dyn BufRead, name: &str, number: usize) -> Result<Option<String>> {
    /// A longer line is a mistake: it is held in memory several times over.
    const MAX_BYTES: usize = 1 << 30;
    let mut bytes = Vec::new();
    let read = input
        .take(MAX_BYTES as u64 + 1)
        .read_until(b'\n', &mut bytes)
        .with_context(|| format!("cannot read {name}"))?;
    if read == 0 {
        return Ok(None);
    }
    if read > MAX_BYTES {
        bail!("{name} line {number} is longer than {MAX_BYTES} bytes");
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(e) => {
            let at = e.utf8_error().valid_up_to();
            bail!("{name} line {number} is not UTF-8 from byte {at} on");
        }
    }
}

/// A reader of the output that has gone away (`| head`) is not an error.
fn ended_by_reader(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if is_broken_pipe(&e) => Ok(()),
        other => other,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let of_io = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.downcast_ref::<io::Error>().is_some_and(of_io)
}
