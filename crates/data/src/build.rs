//! Building a data directory: extract, normalise, identify, deduplicate, split, write.
//!
//! The directory appears whole or not at all, is a function of its inputs and options, and is never
//! written over. Documents keep the order of the inputs (the loader shuffles); the built-in world comes
//! first.

use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use formats::{FileError, atomic, hash};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    Dialogue, Document, Message, Record,
    dedup::{ExactDedup, exact::TextHash},
    extract::{self, ExtractError, Limits, Position},
    language,
    manifest::{Dropped, FILE_NAME, FORMAT_VERSION, GeneratorEntry, InputEntry, Manifest, Split},
    normalise::normalise,
    sample::Sample,
    shard::SplitWriter,
};

/// The built-in world's part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Builtin {
    /// Seed of the world's facts.
    pub world_seed: u64,
    /// Seed of the texts.
    pub text_seed: u64,
    /// Bytes of documents.
    pub bytes: u64,
    /// Number of instruction dialogues.
    pub dialogues: u64,
}

/// What determines the result besides the inputs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// Share of documents held out, 0 to 1.
    pub heldout_fraction: f64,
    /// Shorter texts are dropped.
    pub min_document_bytes: usize,
    /// Most text that is kept of one language; of more, a sample by the hash of the texts.
    #[serde(default)]
    pub limit_bytes_per_language: Option<u64>,
    /// Bytes of text after which a new shard begins.
    pub shard_bytes: u64,
    /// Bounds on the inputs.
    pub limits: Limits,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            heldout_fraction: 0.005,
            min_document_bytes: 32,
            limit_bytes_per_language: None,
            shard_bytes: 32 << 20,
            limits: Limits::default(),
        }
    }
}

/// What to build from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BuildOptions {
    /// Files and directories.
    pub corpus: Vec<PathBuf>,
    /// The built-in world, if wanted.
    pub builtin: Option<Builtin>,
    /// The rest.
    pub options: Options,
}

/// How far a build is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Documents read.
    pub documents: u64,
    /// Bytes of text read.
    pub bytes: u64,
    /// Bytes of input files done with, of `total_bytes`.
    pub done_bytes: u64,
    /// Bytes of all input files, and of the built-in texts.
    pub total_bytes: u64,
    /// The input at hand.
    pub input: String,
}

/// A build that did not finish; nothing is left of it.
#[derive(Debug, Error)]
pub enum BuildError {
    /// An input.
    #[error(transparent)]
    Extract(#[from] ExtractError),
    /// The file system.
    #[error(transparent)]
    File(#[from] FileError),
    /// No input at all, or none with anything in it.
    #[error(
        "no document is left to build from ({dropped} dropped, {skipped} skipped); give files with \
         text, or the built-in world"
    )]
    Empty {
        /// Too short or duplicates.
        dropped: u64,
        /// Records that could not be used.
        skipped: u64,
    },
    /// An impossible share.
    #[error("the held-out fraction is {found}; it must be at least 0 and below 1")]
    Fraction {
        /// What was given.
        found: f64,
    },
    /// The caller asked to stop.
    #[error("stopped as asked; nothing was written")]
    Interrupted,
}

/// A hostile input may name a new source in every line; further names count as this one.
const OTHER_SOURCES: &str = "other";
const MAX_SOURCES: usize = 1000;
const MAX_SOURCE_BYTES: usize = 200;
/// And a new language, of which there are about so many with writing that one finds in files; each
/// has a file of its own later.
const MAX_LANGUAGES: usize = 200;
/// Bytes of text between two reports of progress.
const PROGRESS_EVERY_BYTES: u64 = 1 << 20;

/// Builds the data directory `out`, which must not exist. `progress` is told how far it is now and
/// then, and may stop it.
pub fn build(
    out: &Path,
    what: &BuildOptions,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Manifest, BuildError> {
    let fraction = what.options.heldout_fraction;
    if !(0.0..1.0).contains(&fraction) {
        return Err(BuildError::Fraction { found: fraction });
    }
    let files = extract::files(&what.corpus)?;
    atomic::write_dir(out, 0, |dir| {
        let mut builder = Builder::new(dir, what, progress);
        let mut sizes = Vec::with_capacity(files.len());
        for file in &files {
            let meta = std::fs::metadata(file).map_err(|e| FileError::io("read", file, e))?;
            sizes.push(meta.len());
        }
        builder.progress.total_bytes =
            sizes.iter().sum::<u64>() + what.builtin.map_or(0, |builtin| builtin.bytes);
        if let Some(builtin) = &what.builtin {
            builder.add_builtin(builtin)?;
        }
        for file in &files {
            builder.add_file(file)?;
        }
        builder.finish(dir)
    })
}

struct Builder<'a> {
    options: Options,
    report: &'a mut dyn FnMut(&Progress) -> ControlFlow<()>,
    progress: Progress,
    reported_bytes: u64,
    position: Position, // in the file at hand
    files_done_bytes: u64,
    dedup: ExactDedup,
    dialogue_dedup: ExactDedup,
    languages: BTreeSet<String>,
    sample: Option<Sample>,
    train: SplitWriter,
    heldout: SplitWriter,
    dialogues: SplitWriter,
    manifest: Manifest,
}

impl<'a> Builder<'a> {
    fn new(
        dir: &Path,
        what: &BuildOptions,
        report: &'a mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Builder<'a> {
        let writer = |split| SplitWriter::new(dir, split, what.options.shard_bytes.max(1));
        Builder {
            options: what.options,
            report,
            progress: Progress {
                documents: 0,
                bytes: 0,
                done_bytes: 0,
                total_bytes: 0,
                input: String::new(),
            },
            reported_bytes: 0,
            position: Position::default(),
            files_done_bytes: 0,
            dedup: ExactDedup::default(),
            dialogue_dedup: ExactDedup::default(),
            languages: BTreeSet::new(),
            sample: what.options.limit_bytes_per_language.map(Sample::new),
            train: writer(Split::Train),
            heldout: writer(Split::Heldout),
            dialogues: writer(Split::Dialogues),
            manifest: Manifest {
                format_version: FORMAT_VERSION,
                options: what.options,
                builtin: None,
                inputs: Vec::new(),
                documents: 0,
                bytes: 0,
                kept_documents: 0,
                kept_bytes: 0,
                dialogues: 0,
                dropped: Dropped::default(),
                languages: Default::default(),
                sources: Default::default(),
                shards: Vec::new(),
            },
        }
    }

    fn add_builtin(&mut self, builtin: &Builtin) -> Result<(), BuildError> {
        let world = world::World::new(builtin.world_seed);
        self.progress.input = "the built-in world".to_owned();
        for document in world.documents(builtin.text_seed, builtin.bytes) {
            let bytes = document.text.len() as u64;
            self.add(Document {
                text: document.text,
                lang: document.lang.as_str().to_owned(),
                source: document.source.to_owned(),
            })?;
            self.files_done_bytes += bytes;
        }
        for dialogue in world.training_dialogues(builtin.text_seed, builtin.dialogues as usize) {
            let messages: Vec<Message> = (dialogue.messages.into_iter())
                .map(|(role, content)| Message {
                    role: role.as_str().to_owned(),
                    content,
                })
                .collect();
            let bytes = messages
                .iter()
                .map(|message| message.content.len() as u64)
                .sum();
            let record = Dialogue {
                area: dialogue.area.as_str().to_owned(),
                lang: dialogue.lang.as_str().to_owned(),
                source: dialogue.source.to_owned(),
                messages,
                rejected: None,
            };
            self.dialogues.push(&record, bytes)?;
            self.manifest.dialogues += 1;
        }
        self.manifest.builtin = Some(GeneratorEntry {
            generator: "dokja-world".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            world_seed: builtin.world_seed,
            text_seed: builtin.text_seed,
            bytes: builtin.bytes,
            dialogues: builtin.dialogues,
        });
        Ok(())
    }

    fn add_file(&mut self, path: &Path) -> Result<(), BuildError> {
        self.progress.input = path.display().to_string();
        let hash = hash::hash_file(path)?;
        let before = self.manifest.documents;
        let limits = self.options.limits;
        self.position = Position::default();
        let position = self.position.clone();
        let add = &mut |record| match record {
            Record::Document(document) => self.add(document),
            Record::Dialogue(dialogue) => self.add_dialogue(dialogue),
        };
        let skips = extract::extract(path, &limits, &position, add)?;
        let dropped = &mut self.manifest.dropped.skipped;
        for (reason, count) in skips.counts {
            *dropped.counts.entry(reason).or_default() += count;
        }
        dropped.examples.extend(skips.examples);
        dropped.examples.truncate(extract::MAX_EXAMPLES);
        self.position = Position::default();
        self.files_done_bytes += hash.bytes;
        self.manifest.inputs.push(InputEntry {
            path: path.display().to_string(),
            bytes: hash.bytes,
            sha256: hash.sha256,
            documents: self.manifest.documents - before,
        });
        Ok(())
    }

    /// Reports now and then, when so many bytes more have been read.
    fn read(&mut self, bytes: usize) -> Result<(), BuildError> {
        self.progress.bytes += bytes as u64;
        if self.progress.bytes - self.reported_bytes >= PROGRESS_EVERY_BYTES {
            self.reported_bytes = self.progress.bytes;
            self.progress.done_bytes = self.files_done_bytes + self.position.bytes();
            if (self.report)(&self.progress).is_break() {
                return Err(BuildError::Interrupted);
            }
        }
        Ok(())
    }

    /// A dialogue of an input, cleaned as documents are.
    fn add_dialogue(&mut self, mut dialogue: Dialogue) -> Result<(), BuildError> {
        let mut text = String::new();
        for message in &mut dialogue.messages {
            message.content = normalise(&message.content);
            text.push_str(&message.role);
            text.push('\n');
            text.push_str(&message.content);
            text.push('\0'); // in no cleaned text
        }
        if let Some(rejected) = &mut dialogue.rejected {
            *rejected = normalise(rejected);
            text.push_str(rejected);
        }
        self.read(text.len())?;
        let dropped = &mut self.manifest.dropped;
        if !dialogue.is_whole() {
            dropped.too_short += 1; // nothing but white space in a turn
        } else if !self.dialogue_dedup.insert(&TextHash::of(&text)) {
            dropped.duplicates += 1;
            dropped.duplicate_bytes += text.len() as u64;
        } else {
            dialogue.lang = language::identify(&dialogue.lang, &text);
            self.dialogues.push(&dialogue, text.len() as u64)?;
            self.manifest.dialogues += 1;
        }
        Ok(())
    }

    fn add(&mut self, document: Document) -> Result<(), BuildError> {
        self.manifest.documents += 1;
        self.manifest.bytes += document.text.len() as u64;
        self.progress.documents = self.manifest.documents;
        self.read(document.text.len())?;
        let manifest = &mut self.manifest;
        let text = normalise(&document.text);
        if text.len() < self.options.min_document_bytes.max(1) {
            manifest.dropped.too_short += 1;
            return Ok(());
        }
        let hash = TextHash::of(&text);
        if !self.dedup.insert(&hash) {
            manifest.dropped.duplicates += 1;
            manifest.dropped.duplicate_bytes += text.len() as u64;
            return Ok(());
        }
        let mut lang = language::identify(&document.lang, &text);
        self.languages.insert(lang.clone());
        if self.languages.len() > MAX_LANGUAGES {
            self.languages.remove(&lang);
            lang = language::UNKNOWN.to_owned();
        }
        let document = Document {
            text,
            lang,
            source: document.source,
        };
        match &mut self.sample {
            Some(sample) => sample.add(&hash, document),
            None => self.keep(&hash, document)?,
        }
        Ok(())
    }

    /// Writes a document to its side of the split.
    fn keep(&mut self, hash: &TextHash, document: Document) -> Result<(), FileError> {
        let (manifest, text_bytes) = (&mut self.manifest, document.text.len() as u64);
        let (split, writer) = match hash.is_below(self.options.heldout_fraction) {
            true => (Split::Heldout, &mut self.heldout),
            false => (Split::Train, &mut self.train),
        };
        manifest.kept_documents += 1;
        manifest.kept_bytes += text_bytes;
        let of_lang = manifest.languages.entry(document.lang.clone());
        of_lang.or_default().add(text_bytes, split);
        let is_new = !manifest.sources.contains_key(&document.source);
        let is_too_much =
            manifest.sources.len() >= MAX_SOURCES || document.source.len() > MAX_SOURCE_BYTES;
        let source = match is_new && is_too_much {
            true => OTHER_SOURCES,
            false => &document.source,
        };
        let of_source = manifest.sources.entry(source.to_owned());
        of_source.or_default().add(text_bytes, split);
        writer.push(&document, text_bytes)
    }

    fn finish(mut self, dir: &Path) -> Result<Manifest, BuildError> {
        if let Some(sample) = self.sample.take() {
            let (kept, dropped) = sample.finish();
            self.manifest.dropped.over_limit = dropped;
            for (hash, document) in kept {
                self.keep(&hash, document)?;
            }
        }
        let mut manifest = self.manifest;
        if manifest.kept_documents == 0 {
            let dropped = manifest.dropped.duplicates + manifest.dropped.too_short;
            return Err(BuildError::Empty {
                dropped,
                skipped: manifest.dropped.skipped.total(),
            });
        }
        for writer in [self.train, self.heldout, self.dialogues] {
            manifest.shards.extend(writer.finish()?);
        }
        let mut text = serde_json::to_vec_pretty(&manifest).expect("a manifest is plain data");
        text.push(b'\n');
        atomic::write_bytes(&dir.join(FILE_NAME), &text)?;
        Ok(manifest)
    }
}
