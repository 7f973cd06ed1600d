//! A model at hand, as a target: an engine, and the tokenizer that turns text into its ids and back.
//!
//! All questions are in the engine at once; it takes as many as it has room for. The chat format is that of
//! `tokenizer::chat`, the same that instruction tuning trains on.

use std::collections::HashMap;
use std::sync::Arc;

use infer::{
    Completion, Engine, FinishReason, Request, RequestId, SamplingParams, ScoreWindow, SubmitError,
};
use tokenizer::chat::{ChatOptions, Message};
use tokenizer::{ChatError, ChatFormat, Tokenizer};
use unicode_normalization::UnicodeNormalization;

use crate::server::without_thinking;
use crate::target::{
    AnswerOptions, Identity, Problem, Reply, ScoredText, Stretch, Target, TargetError,
};

/// Window over texts where nothing is known of training.
const DEFAULT_WINDOW: usize = 4096;

/// Half windows that are scored between two reports of progress. The window before them is read again for
/// each piece: one part in so many.
const HALF_WINDOWS: usize = 32;

/// An engine with its tokenizer.
pub struct Local {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    chat_format: ChatFormat,
    identity: Identity,
    stop_ids: Vec<u32>,
    document_start: u32,
    training_len: Option<usize>,
}

impl Local {
    /// `stop_ids` end an answer; `document_start` begins a text; `training_len` is the number of tokens that
    /// the model saw at once in training, where that is known.
    pub fn new(
        engine: Engine,
        tokenizer: Arc<Tokenizer>,
        identity: Identity,
        stop_ids: Vec<u32>,
        document_start: u32,
        training_len: Option<usize>,
    ) -> Local {
        Local {
            engine,
            tokenizer,
            chat_format: ChatFormat::built_in(),
            identity,
            stop_ids,
            document_start,
            training_len,
        }
    }

    /// The same, asked in another format than the built-in one.
    pub fn with_chat_format(self, chat_format: ChatFormat) -> Local {
        Local {
            chat_format,
            ..self
        }
    }

    /// Tokens that can be seen at once.
    pub(crate) fn max_context(&self) -> usize {
        self.engine.max_context()
    }

    /// A text as the training loader has it: `separator, id, id, ...`.
    pub(crate) fn document(&self, text: &str) -> Vec<u32> {
        let mut ids = vec![self.document_start];
        ids.extend(self.tokenizer.encode_ordinary(text));
        ids
    }

    /// The logits (T, V) after each of the ids.
    pub(crate) fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>, TargetError> {
        Ok(self.engine.logits(ids)?)
    }

    fn request(&self, prompt: &str, options: &AnswerOptions) -> Result<Request, ChatError> {
        let how = ChatOptions {
            enable_thinking: options.thinking,
            add_generation_prompt: true,
            tools: &[],
        };
        let message = [Message::user(prompt)];
        let prompt = self.chat_format.prompt(&self.tokenizer, &message, &how)?;
        Ok(Request {
            prompt_ids: prompt.ids,
            max_tokens: options.max_tokens,
            sampling: SamplingParams::greedy(),
            stop_ids: self.stop_ids.clone(),
            budget: None,
        })
    }

    fn reply(&self, completion: &Completion, options: &AnswerOptions) -> Reply {
        let text = self.tokenizer.decode(&completion.ids, true);
        let is_still_thinking = options.thinking && !text.contains("</think>");
        Reply {
            text: match is_still_thinking {
                true => String::new(),
                false => without_thinking(&text).to_owned(),
            },
            problem: match completion.finish_reason {
                FinishReason::Stop => None,
                FinishReason::Length => Some(Problem::Cut),
                FinishReason::NotFinite => Some(Problem::NotFinite),
            },
        }
    }
}

impl Target for Local {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn answer(
        &mut self,
        prompts: &[&str],
        options: &AnswerOptions,
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Reply>, TargetError> {
        let mut replies = vec![Reply::default(); prompts.len()];
        let mut running: HashMap<RequestId, (usize, Vec<u32>)> = HashMap::new();
        let mut num_done = 0;
        let mut next = 0;
        loop {
            while let Some(prompt) = prompts.get(next) {
                match self.engine.submit(self.request(prompt, options)?) {
                    Ok(id) => {
                        running.insert(id, (next, Vec::new()));
                    }
                    Err(SubmitError::QueueFull { .. }) => break,
                    Err(error @ SubmitError::PromptTooLong { .. }) => {
                        replies[next].problem = Some(Problem::NotAsked(error.to_string()));
                        num_done += 1;
                    }
                    Err(error) => {
                        for id in running.into_keys() {
                            self.engine.abort(id);
                        }
                        return Err(error.into());
                    }
                }
                next += 1;
            }
            if self.engine.is_idle() {
                done(num_done);
                return Ok(replies);
            }
            for event in self.engine.step() {
                // Another user of the engine may have left a request behind; its tokens are not ours.
                let Some((idx, ids)) = running.get_mut(&event.id) else {
                    continue;
                };
                if let Some(token) = event.token
                    && event.finish_reason != Some(FinishReason::Stop)
                {
                    ids.push(token.id);
                }
                if let Some(finish_reason) = event.finish_reason {
                    let completion = Completion {
                        ids: std::mem::take(ids),
                        logprobs: Vec::new(),
                        finish_reason,
                    };
                    let idx = *idx;
                    running.remove(&event.id);
                    replies[idx] = self.reply(&completion, options);
                    num_done += 1;
                    done(num_done);
                }
            }
        }
    }

    fn score_text(
        &mut self,
        text: &str,
        window: Option<usize>,
        done: &mut dyn FnMut(usize, usize),
    ) -> Result<ScoredText, TargetError> {
        let ids = self.document(text);
        let is_changed = check_lossless(text, &self.tokenizer.decode(&ids[1..], false))?;
        let window = window.unwrap_or_else(|| {
            let suits = self.training_len.unwrap_or(DEFAULT_WINDOW);
            suits.min(self.engine.max_context())
        });
        let stride = (window / 2).max(1);
        let how = ScoreWindow {
            max_context: window,
            stride,
        };
        let total = ids.len() - 1;
        let mut nats = Vec::with_capacity(total);
        while nats.len() < total {
            let first = nats.len();
            let last = total.min(first + HALF_WINDOWS * stride);
            let from = first.saturating_sub(stride);
            let scores = self.engine.score(&ids[from..=last], how)?;
            nats.extend_from_slice(&scores[first - from..]);
            done(last, total);
        }
        let stretches = ids[1..].chunks(stride).zip(nats.chunks(stride));
        let stretches = stretches.map(|(ids, nats)| {
            let bytes = ids.iter().filter_map(|id| self.tokenizer.token_bytes(*id));
            Stretch {
                bytes: bytes.map(|bytes| bytes.len() as u64).sum(),
                bits: -nats.iter().sum::<f64>() / std::f64::consts::LN_2,
            }
        });
        Ok(ScoredText {
            tokens: total as u64,
            stretches: stretches.collect(),
            window,
            is_changed,
        })
    }
}

/// Whether the tokenizer composed the text (NFC); an error where it did anything else to it.
fn check_lossless(text: &str, decoded: &str) -> Result<bool, TargetError> {
    if decoded == text {
        return Ok(false);
    }
    let composed: String = text.nfc().collect();
    if decoded == composed {
        return Ok(true);
    }
    let same = composed.bytes().zip(decoded.bytes());
    Err(TargetError::Lossy {
        at: same.take_while(|(a, b)| a == b).count(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use infer::{EngineConfig, KvGroup, Runner, StepBatch};
    use std::sync::LazyLock;

    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
        let trainer = tokenizer::Trainer {
            vocab_size: 400,
            ..tokenizer::Trainer::default()
        };
        Arc::new(trainer.train(["one two one two"], &mut |_| {}).unwrap())
    });

    /// Repeats the last user message, and then ends its turn. In a text, what follows the n-th token of a
    /// window has the probability 2^-n.
    struct Echo {
        seen: HashMap<u32, Vec<u32>>, // by the first slot of a sequence: what it was sent so far
    }

    impl Echo {
        const VOCAB: usize = 512;

        fn next(ids: &[u32]) -> u32 {
            let special = TOKENIZER.specials().unwrap();
            let at = |id| ids.iter().position(|other| *other == id);
            let (Some(start), Some(end)) = (at(special.user), at(special.endofturn)) else {
                return special.endofturn;
            };
            let said = &ids[start + 2..end];
            let prompt = ids.iter().rposition(|id| *id == special.think_end);
            let answered = ids.len() - prompt.unwrap_or(0);
            // After `</think>` comes a line break or two before the answer.
            let skip = TOKENIZER.encode_ordinary("\n\n").len() + 1;
            let spoken = answered.saturating_sub(skip);
            said.get(spoken).copied().unwrap_or(special.endofturn)
        }
    }

    impl Runner for Echo {
        fn vocab_size(&self) -> usize {
            Self::VOCAB
        }

        fn max_positions(&self) -> usize {
            100
        }

        fn layer_windows(&self) -> &[Option<usize>] {
            &[None]
        }

        fn init_kv(&mut self, _groups: &[KvGroup]) {}

        fn forward(&mut self, batch: &StepBatch, logits: &mut [f32]) {
            let mut rows = logits.chunks_exact_mut(Self::VOCAB);
            for (idx, part) in batch.sequences.iter().enumerate() {
                let seen = self.seen.entry(batch.block_table(idx, 0)[0]).or_default();
                seen.truncate(part.first_pos as usize);
                for row in part.rows.clone() {
                    seen.push(batch.ids[row]);
                    if !batch.logit_rows.contains(&(row as u32)) {
                        continue;
                    }
                    let z = rows.next().unwrap();
                    z.fill(-100.0);
                    z[Self::next(seen) as usize] = 0.0;
                }
            }
        }

        fn losses(&mut self, batch: &StepBatch, targets: &[u32], losses: &mut [f32]) {
            assert_eq!(targets.len(), losses.len());
            for (loss, row) in losses.iter_mut().zip(&batch.logit_rows) {
                let bits = 1 + batch.positions[*row as usize];
                *loss = bits as f32 * std::f32::consts::LN_2;
            }
        }
    }

    fn local(max_num_seqs: usize) -> Local {
        let config = EngineConfig {
            max_num_seqs,
            max_num_waiting: 2,
            ..EngineConfig::default()
        };
        let echo = Echo {
            seen: HashMap::new(),
        };
        let identity = Identity {
            model: "echo".to_owned(),
            weights_sha256: None,
        };
        Local::new(
            Engine::new(Box::new(echo), config).unwrap(),
            TOKENIZER.clone(),
            identity,
            vec![TOKENIZER.specials().unwrap().endofturn],
            TOKENIZER.specials().unwrap().eos,
            Some(8),
        )
    }

    const OPTIONS: AnswerOptions = AnswerOptions {
        max_tokens: 6,
        thinking: false,
    };

    #[test]
    fn every_question_gets_its_own_answer_whatever_the_room_in_the_engine() {
        let long = "x".repeat(200);
        let prompts = [
            "one two",
            "two",
            "",
            "one two one two one two one two",
            &long,
            "x",
        ];
        for max_num_seqs in [1, 3, 16] {
            let mut heard = Vec::new();
            let mut local = local(max_num_seqs);
            let replies = local.answer(&prompts, &OPTIONS, &mut |n| heard.push(n));
            let replies = replies.unwrap();
            let texts: Vec<&str> = replies.iter().map(|reply| reply.text.as_str()).collect();
            assert_eq!(texts[..3], ["one two", "two", ""]);
            assert!("one two one two one two".starts_with(texts[3]) && !texts[3].is_empty());
            assert_eq!(replies[3].problem, Some(Problem::Cut));
            let told = replies[4].problem.as_ref().unwrap().to_string();
            assert!(told.starts_with("not asked: the prompt has"), "{told}");
            assert_eq!(texts[5], "x");
            assert_eq!(heard.last(), Some(&prompts.len()));
        }
    }

    #[test]
    fn a_text_is_scored_token_by_token_in_windows_of_the_training_length() {
        let text = "one two three four five six seven. ".repeat(60);
        let ids = TOKENIZER.encode_ordinary(&text);
        // The first window of 8 scores all its tokens, each later one those of its second half.
        let place = |i: usize| if i < 8 { i } else { 4 + i % 4 };
        let expected = (0..ids.len()).map(|i| 1 + place(i)).sum::<usize>() as f64;
        let mut heard = Vec::new();
        let scored = local(1)
            .score_text(&text, None, &mut |done, of| heard.push((done, of)))
            .unwrap();
        assert_eq!((scored.window, scored.is_changed), (8, false));
        assert_eq!(scored.tokens, ids.len() as u64);
        let bits: f64 = scored.stretches.iter().map(|stretch| stretch.bits).sum();
        assert!((bits - expected).abs() < 1e-3, "{bits} {expected}");
        let bytes: u64 = scored.stretches.iter().map(|stretch| stretch.bytes).sum();
        assert_eq!(bytes, text.len() as u64);
        assert!(heard.len() > 1 && heard.last() == Some(&(ids.len(), ids.len())));
        let too_long = local(1).score_text(&text, Some(101), &mut |_, _| {});
        assert!(too_long.unwrap_err().to_string().contains("1 to 100"));
    }

    #[test]
    fn composed_text_is_said_to_be_changed() {
        let scored = local(1).score_text("\u{1112}\u{1161}\u{11ab}", None, &mut |_, _| {});
        let scored = scored.unwrap();
        assert!(scored.is_changed);
        assert_eq!(scored.stretches.iter().map(|s| s.bytes).sum::<u64>(), 3);
        assert!(
            check_lossless("ab", "ax")
                .unwrap_err()
                .to_string()
                .contains("byte 1")
        );
    }
}
