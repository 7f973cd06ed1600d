//! What a stage is trained on, as ids: documents, dialogues, and the questions and pairs that are in them.

use crate::env;
use crate::interrupt::{self, Interrupted};
use crate::progress::{Progress, Unit};
use anyhow::{Context, Result, bail};
use data::manifest::{Manifest, Split};
use data::{Dialogue, Encoder, TokenData};
use formats::hash;
use formats::run_dir::RunDir;
use model::ModelConfig;
use posttrain::{Choice, Problem};
use std::path::PathBuf;
use tokenizer::chat::{ChatOptions, Message, Role, render};
use tokenizer::{Specials, Tokenizer};
use train::Recipe;
use train::recipe::SpecialIds;

/// The data, the tokenizer and the tokens of a stage.
pub(crate) struct Sources {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Manifest,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) tokenizer_json: Vec<u8>,
    pub(crate) specials: Specials,
}

impl Sources {
    /// Opens what a recipe names, or what the run directory has.
    pub(crate) fn open(run: &RunDir, recipe: &Recipe) -> Result<Sources> {
        let dir = recipe.data.dir.clone().unwrap_or_else(|| run.data());
        if !dir.exists() {
            bail!(
                "there is no data directory {}; make one with `dokja data build --out {}`, or name one \
                 with --set data.dir=DIR",
                dir.display(),
                dir.display()
            );
        }
        let manifest = Manifest::open(&dir)?;
        let path = recipe
            .data
            .tokenizer
            .clone()
            .unwrap_or_else(|| run.tokenizer());
        if !path.exists() {
            bail!(
                "there is no tokenizer {}; make one with `dokja tokenizer train --data {} --out {}`, or \
                 name one with --set data.tokenizer=FILE",
                path.display(),
                dir.display(),
                path.display()
            );
        }
        let tokenizer =
            Tokenizer::load(&path).with_context(|| format!("cannot use {}", path.display()))?;
        let specials = tokenizer
            .specials()
            .with_context(|| format!("cannot use {}", path.display()))?;
        let tokenizer_json =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Sources {
            dir,
            manifest,
            tokenizer,
            tokenizer_json,
            specials,
        })
    }

    /// The architecture that `[model]` and the tokenizer give.
    pub(crate) fn config(&self, recipe: &Recipe) -> Result<ModelConfig> {
        let ids = SpecialIds {
            bos: self.specials.bos,
            eos: self.specials.endofturn,
            pad: self.specials.pad,
        };
        Ok(recipe.config(self.tokenizer.vocab_size(), &ids)?)
    }

    /// The documents as ids, made once for each tokenizer.
    pub(crate) fn tokens(&self) -> Result<TokenData> {
        let encode = |text: &str| self.tokenizer.encode_ordinary(text);
        let encoder = Encoder {
            encode: &encode,
            vocab_size: self.tokenizer.vocab_size() as u32,
            sha256: hash::sha256_hex(&self.tokenizer_json),
            separator: self.specials.eos,
        };
        let mut bar: Option<Progress> = None;
        let tokens = data::tokenize(&self.dir, &encoder, env::threads()?, &mut |done, total| {
            let start = || Progress::new("encoding", Unit::Of("documents"), 0, total);
            bar.get_or_insert_with(start).set(done);
            interrupt::stop_if_asked()
        });
        match tokens {
            Ok(tokens) => Ok(tokens),
            Err(data::tokens::TokenizeError::Interrupted) => {
                Err(Interrupted("nothing was trained".into()).into())
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The dialogues as ids, with the assistant's words marked.
    pub(crate) fn dialogues(&self) -> Result<Vec<(Vec<u32>, Vec<bool>)>> {
        let mut all = Vec::new();
        for dialogue in data::shard::records::<Dialogue>(&self.dir, Split::Dialogues)? {
            let messages = self.messages(&dialogue?)?;
            let rendered = render(&self.tokenizer, &messages, &CHAT)?;
            all.push((rendered.ids, rendered.loss_mask));
        }
        Ok(all)
    }

    /// The last question of each dialogue whose source begins with one of `of` (all where there are none), and its
    /// answer.
    pub(crate) fn problems(&self, of: &[String]) -> Result<Vec<Problem>> {
        let mut all = Vec::new();
        for dialogue in data::shard::records::<Dialogue>(&self.dir, Split::Dialogues)? {
            let dialogue = dialogue?;
            if !of.is_empty() && !of.iter().any(|source| dialogue.source.starts_with(source)) {
                continue;
            }
            if let Some((prompt_ids, reference)) = self.last_exchange(&dialogue)? {
                all.push(Problem {
                    prompt_ids,
                    reference,
                });
            }
        }
        Ok(all)
    }

    /// The last question of each dialogue that has a rejected answer, with both.
    pub(crate) fn choices(&self) -> Result<Vec<Choice>> {
        let answer = |text: &str| {
            let mut ids = self.tokenizer.encode_ordinary(text);
            ids.push(self.specials.endofturn);
            ids
        };
        let mut all = Vec::new();
        for dialogue in data::shard::records::<Dialogue>(&self.dir, Split::Dialogues)? {
            let dialogue = dialogue?;
            if let Some(rejected) = &dialogue.rejected
                && let Some((prompt_ids, chosen)) = self.last_exchange(&dialogue)?
            {
                all.push(Choice {
                    prompt_ids,
                    chosen: answer(&chosen),
                    rejected: answer(rejected),
                });
            }
        }
        Ok(all)
    }

    /// A dialogue up to where its last answer begins, as ids, and that answer.
    fn last_exchange(&self, dialogue: &Dialogue) -> Result<Option<(Vec<u32>, String)>> {
        let messages = self.messages(dialogue)?;
        let Some((answer, asked)) = messages.split_last() else {
            return Ok(None);
        };
        if answer.role != Role::Assistant || asked.is_empty() {
            return Ok(None);
        }
        let options = ChatOptions {
            add_generation_prompt: true,
            ..CHAT
        };
        let prompt_ids = render(&self.tokenizer, asked, &options)?.ids;
        Ok(Some((prompt_ids, answer.content.clone())))
    }

    fn messages(&self, dialogue: &Dialogue) -> Result<Vec<Message>> {
        let messages = dialogue.messages.iter().map(|message| {
            let role = match message.role.as_str() {
                "system" => Role::System,
                "user" => Role::User,
                "assistant" => Role::Assistant,
                other => bail!(
                    "a dialogue of {} has a turn of {other:?}",
                    self.dir.display()
                ),
            };
            Ok(Message::new(role, message.content.clone()))
        });
        messages.collect()
    }

    /// Bytes of text that each id stands for; none for special tokens.
    pub(crate) fn token_bytes(&self) -> Vec<u32> {
        let ids = 0..self.tokenizer.vocab_size() as u32;
        ids.map(|id| match self.tokenizer.is_added(id) {
            true => 0,
            false => self.tokenizer.token_bytes(id).map_or(0, |b| b.len() as u32),
        })
        .collect()
    }
}

/// How dialogues are rendered to be learned from.
const CHAT: ChatOptions<'_> = ChatOptions {
    enable_thinking: false,
    add_generation_prompt: false,
    tools: &[],
};
