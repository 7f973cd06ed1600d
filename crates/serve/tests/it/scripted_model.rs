//! A model that says what a script has for the last question of the conversation.
//!
//! | question | answer |
//! |---|---|
//! | `say X` | X |
//! | `talk on` | "말 " without end |
//! | `dice` | letters without end, `a` a little likelier than `b`, and so on |
//! | `panic` | the model panics |
//! | `nan` | logits that are no numbers |
//! | anything else | `You asked: ` and the question |
//!
//! A prompt that lets it think gets `It asks: ` and the question as reasoning first. A prompt without a
//! chat format is continued with the alphabet up to `z`.
//!
//! Its draft layer reads on in the script: it guesses right.

use infer::{DraftLayer, KV_BLOCK, KvGroup, Runner, StepBatch, StepCost};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use tokenizer::{Specials, Tokenizer, Trainer};

/// 268 single bytes and special tokens, and a few merges.
pub(crate) static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let trainer = Trainer {
        vocab_size: 290,
        ..Trainer::default()
    };
    let text = "You asked: the sea. 말 말 말 The answer is. ".repeat(8);
    Arc::new(trainer.train([text.as_str()], &mut |_| {}).unwrap())
});

/// Lets the model make a number of steps, so that a test decides how far an answer has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<(Mutex<u64>, Condvar)>);

impl Gate {
    /// Lets everything through.
    pub(crate) fn open() -> Gate {
        let gate = Gate::default();
        gate.allow(u64::MAX / 2);
        gate
    }

    pub(crate) fn closed() -> Gate {
        Gate::default()
    }

    pub(crate) fn allow(&self, steps: u64) {
        *self.0.0.lock().unwrap() += steps;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let steps = self.0.0.lock().unwrap();
        let mut steps = self.0.1.wait_while(steps, |steps| *steps == 0).unwrap();
        *steps -= 1;
    }
}

pub(crate) struct ScriptedModel {
    gate: Gate,
    special: Specials,
    silent: Vec<u32>,   // what follows <|assistant|> without thinking
    thinking: Vec<u32>, // and with
    ids: Vec<u32>,      // by slot
    hidden: Vec<f32>,   // (T, 1), of no use
}

impl ScriptedModel {
    pub(crate) const MAX_POSITIONS: usize = 4096;

    pub(crate) fn new(gate: Gate) -> ScriptedModel {
        ScriptedModel {
            gate,
            special: TOKENIZER.specials().unwrap(),
            silent: TOKENIZER.encode("\n<think>\n\n</think>\n\n"),
            thinking: TOKENIZER.encode("\n<think>\n"),
            ids: Vec::new(),
            hidden: Vec::new(),
        }
    }

    /// The logits after each row of a step that wants them, and, of guesses, after the id that follows it.
    fn continue_rows(&self, batch: &StepBatch, is_draft: bool, logits: &mut [f32]) {
        let rows = logits.chunks_exact_mut(TOKENIZER.vocab_size());
        for (&row, logits) in batch.logit_rows.iter().zip(rows) {
            let row = row as usize;
            let is_its = |seq: &infer::SeqRows| seq.rows.contains(&row);
            let seq = batch.sequences.iter().position(is_its).unwrap();
            let table = batch.block_table(seq, 0);
            let slot = |pos: usize| table[pos / KV_BLOCK] as usize * KV_BLOCK + pos % KV_BLOCK;
            let mut ids: Vec<u32> = (0..=batch.positions[row] as usize)
                .map(|pos| self.ids[slot(pos)])
                .collect();
            ids.extend(is_draft.then_some(batch.ids[row]));
            self.write_logits(&ids, logits);
        }
    }

    fn write_logits(&self, ids: &[u32], logits: &mut [f32]) {
        // Far enough apart that a draw at temperature 1 never leaves the script.
        const SURE: f32 = 60.0;
        logits.fill(0.0);
        let byte =
            |byte: u8| TOKENIZER.encode_ordinary(char::from(byte).encode_utf8(&mut [0; 4]))[0];
        let Some(assistant) = ids.iter().rposition(|&id| id == self.special.assistant) else {
            let last = ids.last().and_then(|&id| TOKENIZER.token_bytes(id)?.last());
            let next = match last {
                Some(b'z') => self.special.eos,
                Some(&last) => byte(last.wrapping_add(1).max(b'a') & 0x7f),
                None => self.special.eos,
            };
            logits[next as usize] = SURE;
            return;
        };
        let user = ids[..assistant]
            .iter()
            .rposition(|&id| id == self.special.user);
        let question = TOKENIZER.decode(&ids[user.map_or(assistant, |at| at + 1)..assistant], true);
        let question = question.trim();
        let after = &ids[assistant + 1..];
        let (thought, generated) = match after.strip_prefix(self.silent.as_slice()) {
            Some(generated) => (String::new(), generated),
            None => (
                format!("It asks: {question}\n</think>\n\n"),
                after
                    .strip_prefix(self.thinking.as_slice())
                    .expect("the prompt opens an answer"),
            ),
        };
        let answer = match question {
            "panic" => panic!("the script says so"),
            "nan" => return logits.fill(f32::NAN),
            "dice" => {
                for letter in b'a'..=b'z' {
                    logits[byte(letter) as usize] = SURE - f32::from(letter - b'a') / 64.0;
                }
                return;
            }
            "talk on" => "말 ".repeat(1 + generated.len()),
            _ => match question.strip_prefix("say ") {
                Some(words) => words.to_owned(),
                None => format!("You asked: {question}"),
            },
        };
        // Thoughts that were cut off are over all the same.
        let think_end = |id: &u32| *id == self.special.think_end && !thought.is_empty();
        let (script, at) = match generated.iter().position(think_end) {
            Some(end) => (format!("\n\n{answer}"), generated.len() - end - 1),
            None => (format!("{thought}{answer}"), generated.len()),
        };
        let script = TOKENIZER.encode(&script);
        let next = script.get(at).copied().unwrap_or(self.special.endofturn);
        logits[next as usize] = SURE;
    }
}

impl Runner for ScriptedModel {
    fn vocab_size(&self) -> usize {
        TOKENIZER.vocab_size()
    }

    fn max_positions(&self) -> usize {
        ScriptedModel::MAX_POSITIONS
    }

    fn layer_windows(&self) -> &[Option<usize>] {
        &[None]
    }

    fn init_kv(&mut self, groups: &[KvGroup]) {
        self.ids = vec![0; groups[0].num_blocks * KV_BLOCK];
    }

    fn forward(&mut self, batch: &StepBatch, logits: &mut [f32]) {
        self.gate.pass();
        for (&slot, &id) in batch.groups[0].slots.iter().zip(&batch.ids) {
            self.ids[slot as usize] = id;
        }
        self.hidden = vec![0.0; batch.ids.len()];
        self.continue_rows(batch, false, logits);
    }

    fn draft_layer(&self) -> Option<DraftLayer> {
        Some(DraftLayer {
            window: None,
            hidden_size: 1,
            cost: StepCost {
                num_layers: 10.0,
                ..StepCost::default()
            },
        })
    }

    fn hidden(&mut self) -> &[f32] {
        &self.hidden
    }

    fn draft(&mut self, batch: &StepBatch, _: &[f32], logits: &mut [f32], _: &mut [f32]) {
        // Where the id that follows will be, the next guess looks for it.
        for (seq, part) in batch.sequences.iter().enumerate() {
            let table = batch.block_table(seq, 0);
            for row in part.rows.clone() {
                let pos = batch.positions[row] as usize + 1;
                if let Some(&block) = table.get(pos / KV_BLOCK) {
                    self.ids[block as usize * KV_BLOCK + pos % KV_BLOCK] = batch.ids[row];
                }
            }
        }
        self.continue_rows(batch, true, logits);
    }
}
