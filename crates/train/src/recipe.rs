//! A recipe: everything that determines a stage of training besides its data and tokenizer.
//!
//! TOML, in sections; what is left out takes the default that `docs/recipe.md` explains. An unknown key is
//! an error that lists the known ones. [`Recipe::to_toml`] writes every key out: that text, the resolved
//! recipe, is saved in the run and hashed into the ledger.

use std::collections::BTreeMap;
use std::path::PathBuf;

use formats::run_dir::Stage;
use model::ModelConfig;
use model::config::{Compute, ConfigError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use thiserror::Error;

/// What keeps a recipe from being used.
#[derive(Debug, Error)]
pub enum RecipeError {
    /// Not TOML, an unknown key, or a value of the wrong kind; the text says where.
    #[error("{0}")]
    Toml(String),
    /// A value out of range.
    #[error("{key} is {got}; it must be {expected}")]
    Value {
        /// The key, with its section.
        key: &'static str,
        /// What it holds.
        got: String,
        /// What it may hold.
        expected: String,
    },
    /// An override that cannot be read.
    #[error("--set {text:?} is not of the form section.key=value")]
    Set {
        /// As given.
        text: String,
    },
    /// The architecture.
    #[error("[model] does not describe a model: {0}")]
    Model(#[from] ConfigError),
    /// A stage that needs the section, or one that must not have it.
    #[error("{stage} {needs}", needs = if *.is_missing { "needs a [model] section" } else {
        "takes its architecture from the weights it starts from; remove the [model] section" })]
    ModelSection {
        /// The stage.
        stage: Stage,
        /// Whether it is missing, or there and must not be.
        is_missing: bool,
    },
}

fn wrong(key: &'static str, got: impl ToString, expected: impl ToString) -> RecipeError {
    RecipeError::Value {
        key,
        got: got.to_string(),
        expected: expected.to_string(),
    }
}

/// A resolved recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Of the initial weights and of the order of the data.
    pub seed: u64,
    /// The architecture; only where training starts from random weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// What is read.
    pub data: Data,
    /// How much is read at a time, and how often.
    pub train: Train,
    /// What is minimised.
    pub loss: Loss,
    /// How pairs of answers are learned from; only where some are preferred to others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefer: Option<Prefer>,
    /// What is asked and how often; only where a model learns from its own answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rl: Option<Rl>,
    /// How the weights follow the gradient.
    pub optim: Optim,
    /// How the learning rate moves.
    pub schedule: Schedule,
    /// When weights are saved.
    pub checkpoint: Checkpoint,
    /// When held-out text is measured.
    pub eval: Eval,
}

/// The architecture, with the published keys of `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// D.
    pub hidden_size: usize,
    /// F of the dense layers.
    pub intermediate_size: usize,
    /// L.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// G.
    pub num_key_value_heads: usize,
    /// K.
    pub head_dim: usize,
    /// Keys that a sliding layer sees.
    #[serde(default = "sliding_window")]
    pub sliding_window: usize,
    /// One layer in so many is global: the last of each group.
    #[serde(default = "sliding_window_pattern")]
    pub sliding_window_pattern: usize,
    /// Dense layers at the start.
    #[serde(default = "one")]
    pub first_k_dense_replace: usize,
    /// E.
    pub num_experts: usize,
    /// A.
    pub num_experts_per_tok: usize,
    /// F of an expert.
    pub moe_intermediate_size: usize,
    /// Always-on experts.
    #[serde(default = "one")]
    pub num_shared_experts: usize,
    /// Factor on the weights of the chosen experts.
    #[serde(default = "routed_scaling_factor")]
    pub routed_scaling_factor: f64,
    /// Multi-token-prediction layers, 0 or 1.
    #[serde(default = "one")]
    pub num_nextn_predict_layers: usize,
    /// Positions the model is meant for.
    #[serde(default = "max_position_embeddings")]
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    #[serde(default = "rope_theta")]
    pub rope_theta: f64,
    /// Added to mean squares in norms.
    #[serde(default = "rms_norm_eps")]
    pub rms_norm_eps: f64,
    /// Standard deviation of the initial matrices.
    #[serde(default = "initializer_range")]
    pub initializer_range: f64,
}

fn sliding_window() -> usize {
    128
}
fn sliding_window_pattern() -> usize {
    4
}
fn one() -> usize {
    1
}
fn routed_scaling_factor() -> f64 {
    2.5
}
fn max_position_embeddings() -> usize {
    4096
}
fn rope_theta() -> f64 {
    1e6
}
fn rms_norm_eps() -> f64 {
    1e-5
}
fn initializer_range() -> f64 {
    0.02
}

/// What is read.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// A data directory; without it, `data` in the run directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// A tokenizer.json; without it, that of the run directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Share of the rows by language; empty: documents as they come.
    pub mixture: BTreeMap<String, f64>,
    /// Rows of documents in each micro-step of instruction tuning, beside the dialogues.
    pub replay_rows: usize,
}

/// How much is read at a time, and how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Updates.
    pub steps: u64,
    /// Tokens of a row, T.
    pub seq_len: usize,
    /// Rows of an update.
    pub rows_per_step: usize,
    /// Rows computed at a time: the bound of memory. Divides `rows_per_step`.
    pub rows_per_micro_step: usize,
    /// Type that matrices are multiplied in; sums are f32.
    pub compute: Compute,
}

impl Default for Train {
    fn default() -> Train {
        Train {
            steps: 1000,
            seq_len: 512,
            rows_per_step: 8,
            rows_per_micro_step: 8,
            compute: Compute::Bf16,
        }
    }
}

/// What is minimised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Loss {
    /// Weight of the multi-token-prediction loss.
    pub mtp_weight: f32,
    /// Weight of the sequence-level balance loss.
    pub balance_alpha: f32,
    /// Step of the router biases, against the sign of the load error.
    pub router_bias_rate: f32,
}

impl Default for Loss {
    fn default() -> Loss {
        Loss {
            mtp_weight: 0.05,
            balance_alpha: 1e-4,
            router_bias_rate: 1e-4,
        }
    }
}

/// How pairs of answers are learned from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prefer {
    /// Pairs of a step.
    pub pairs_per_step: usize,
    /// How closely the weights are kept to those of the start: the larger, the closer.
    pub beta: f64,
}

impl Default for Prefer {
    fn default() -> Prefer {
        Prefer {
            pairs_per_step: 16,
            beta: 0.1,
        }
    }
}

/// What is asked in reinforcement learning, and how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rl {
    /// Questions of a step, P.
    pub prompts_per_step: usize,
    /// Answers to each, G.
    pub group_size: usize,
    /// Tokens of an answer at most.
    pub max_tokens: usize,
    /// Sources whose dialogues are asked about, by the beginning of their names; empty: all.
    pub sources: Vec<String>,
}

impl Default for Rl {
    fn default() -> Rl {
        Rl {
            prompts_per_step: 8,
            group_size: 8,
            max_tokens: 64,
            sources: Vec::new(),
        }
    }
}

/// Which optimizer moves the matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatrixOptimizer {
    /// Momentum made orthogonal.
    Muon,
    /// As everything else.
    Adamw,
}

/// How the weights follow the gradient.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optim {
    /// Of the matrices of the network; embedding, head and gains are moved by AdamW.
    pub matrices: MatrixOptimizer,
    /// Learning rate on the plateau.
    pub lr: f64,
    /// Factor on it for embedding, head and gains.
    pub adamw_lr_ratio: f64,
    /// Decoupled weight decay, of matrices, embedding and head.
    pub weight_decay: f32,
    /// mu of Muon.
    pub muon_momentum: f32,
    /// Newton-Schulz steps of Muon.
    pub muon_ns_steps: usize,
    /// Of AdamW.
    pub beta1: f32,
    /// Of AdamW.
    pub beta2: f32,
    /// Of AdamW.
    pub eps: f32,
    /// Longer gradients are shortened to it.
    pub max_grad_norm: f64,
}

impl Default for Optim {
    fn default() -> Optim {
        Optim {
            matrices: MatrixOptimizer::Muon,
            lr: 2e-3,
            adamw_lr_ratio: 1.0,
            weight_decay: 0.1,
            muon_momentum: 0.95,
            muon_ns_steps: 5,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            max_grad_norm: 1.0,
        }
    }
}

/// How the learning rate moves: up, level, down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// Steps until the plateau.
    pub warmup_steps: u64,
    /// Share of all steps in which it falls, at the end.
    pub decay_frac: f64,
    /// Where it falls to, as a share of the plateau.
    pub final_lr_frac: f64,
}

impl Default for Schedule {
    fn default() -> Schedule {
        Schedule {
            warmup_steps: 40,
            decay_frac: 0.4,
            final_lr_frac: 0.0,
        }
    }
}

/// When weights are saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Steps between checkpoints; 0: only at the end, and when asked to stop.
    pub every: u64,
}

impl Default for Checkpoint {
    fn default() -> Checkpoint {
        Checkpoint { every: 250 }
    }
}

/// When held-out text is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Eval {
    /// Steps between measurements; 0: only at the end.
    pub every: u64,
    /// Tokens measured at most.
    pub tokens: u64,
}

impl Default for Eval {
    fn default() -> Eval {
        Eval {
            every: 100,
            tokens: 32_768,
        }
    }
}

impl Recipe {
    /// Reads a recipe; each of `sets` is `section.key=value` and wins over the text.
    ///
    /// # Errors
    /// Where the text, a key, or a value is wrong.
    pub fn from_toml(text: &str, sets: &[String]) -> Result<Recipe, RecipeError> {
        let toml = |e: toml::de::Error| RecipeError::Toml(e.to_string().trim_end().to_string());
        // Read once as it stands, so that an error shows the line; then with the overrides.
        toml::from_str::<Recipe>(text).map_err(toml)?;
        let mut table: toml::Table = toml::from_str(text).map_err(toml)?;
        for set in sets {
            override_key(&mut table, set)?;
        }
        let recipe: Recipe = toml::Value::Table(table).try_into().map_err(toml)?;
        recipe.validate()?;
        Ok(recipe)
    }

    /// The recipe as a stage takes it. Where answers are weighed against one another, with that section, and without a
    /// loss of the prediction layer, which they say nothing about.
    pub fn of_stage(mut self, stage: Stage) -> Recipe {
        match stage {
            Stage::Pretrain | Stage::Sft => return self,
            Stage::Prefer => _ = self.prefer.get_or_insert_default(),
            Stage::Rl => _ = self.rl.get_or_insert_default(),
        }
        self.loss.mtp_weight = 0.0;
        self
    }

    /// Every key with its value.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("plain sections of plain values")
    }

    /// The configuration of the model: `[model]` with what follows from the tokenizer.
    ///
    /// # Errors
    /// When there is no `[model]`, or it does not fit together.
    pub fn config(&self, vocab_size: usize, ids: &SpecialIds) -> Result<ModelConfig, RecipeError> {
        let m = self.model.as_ref().ok_or(RecipeError::ModelSection {
            stage: Stage::Pretrain,
            is_missing: true,
        })?;
        let pattern = m.sliding_window_pattern.max(1);
        let layer_types: Vec<&str> = (1..=m.num_hidden_layers.min(10_000))
            .map(|l| match l % pattern {
                0 => "full_attention",
                _ => "sliding_attention",
            })
            .collect();
        let text = json!({
            "model_type": "exaone_moe",
            "vocab_size": vocab_size,
            "hidden_size": m.hidden_size,
            "intermediate_size": m.intermediate_size,
            "num_hidden_layers": m.num_hidden_layers,
            "num_attention_heads": m.num_attention_heads,
            "num_key_value_heads": m.num_key_value_heads,
            "head_dim": m.head_dim,
            "sliding_window": m.sliding_window,
            "layer_types": layer_types,
            "first_k_dense_replace": m.first_k_dense_replace,
            "num_experts": m.num_experts,
            "num_experts_per_tok": m.num_experts_per_tok,
            "moe_intermediate_size": m.moe_intermediate_size,
            "num_shared_experts": m.num_shared_experts,
            "norm_topk_prob": true,
            "routed_scaling_factor": m.routed_scaling_factor,
            "num_nextn_predict_layers": m.num_nextn_predict_layers,
            "max_position_embeddings": m.max_position_embeddings,
            "rope_parameters": { "rope_theta": m.rope_theta, "rope_type": "default" },
            "rms_norm_eps": m.rms_norm_eps,
            "initializer_range": m.initializer_range,
            "bos_token_id": ids.bos,
            "eos_token_id": ids.eos,
            "pad_token_id": ids.pad,
            "compute": self.train.compute,
        });
        Ok(ModelConfig::from_json(&text.to_string())?)
    }

    fn validate(&self) -> Result<(), RecipeError> {
        let Recipe {
            data,
            train,
            loss,
            prefer,
            rl,
            optim,
            schedule,
            ..
        } = self;
        let counts = [
            ("train.steps", train.steps, 1 << 40),
            ("train.seq_len", train.seq_len as u64, 1 << 20),
            ("train.rows_per_step", train.rows_per_step as u64, 1 << 20),
            (
                "train.rows_per_micro_step",
                train.rows_per_micro_step as u64,
                train.rows_per_step as u64,
            ),
            ("optim.muon_ns_steps", optim.muon_ns_steps as u64, 20),
        ];
        if let Some(prefer) = prefer {
            let (pairs, beta) = (prefer.pairs_per_step as u64, prefer.beta);
            if !(1..=1 << 12).contains(&pairs) {
                return Err(wrong("prefer.pairs_per_step", pairs, "from 1 to 4096"));
            }
            if !(beta > 0.0 && beta <= 100.0) {
                return Err(wrong("prefer.beta", beta, "above 0, at most 100"));
            }
        }
        let of_rl = rl.as_ref().map(|rl| {
            [
                ("rl.prompts_per_step", rl.prompts_per_step as u64, 1 << 12),
                ("rl.group_size", rl.group_size as u64, 1 << 6),
                ("rl.max_tokens", rl.max_tokens as u64, 1 << 20),
            ]
        });
        for (key, value, max) in counts.into_iter().chain(of_rl.into_iter().flatten()) {
            if value == 0 || value > max {
                return Err(wrong(key, value, format!("from 1 to {max}")));
            }
        }
        if !train
            .rows_per_step
            .is_multiple_of(train.rows_per_micro_step)
        {
            let expected = format!("a divisor of train.rows_per_step ({})", train.rows_per_step);
            return Err(wrong(
                "train.rows_per_micro_step",
                train.rows_per_micro_step,
                expected,
            ));
        }
        if data.replay_rows >= train.rows_per_micro_step {
            let expected = format!(
                "fewer than train.rows_per_micro_step ({})",
                train.rows_per_micro_step
            );
            return Err(wrong("data.replay_rows", data.replay_rows, expected));
        }
        let shares = [
            ("loss.mtp_weight", f64::from(loss.mtp_weight), 10.0),
            ("loss.balance_alpha", f64::from(loss.balance_alpha), 10.0),
            (
                "loss.router_bias_rate",
                f64::from(loss.router_bias_rate),
                1.0,
            ),
            ("optim.lr", optim.lr, 10.0),
            ("optim.adamw_lr_ratio", optim.adamw_lr_ratio, 1000.0),
            ("optim.weight_decay", f64::from(optim.weight_decay), 10.0),
            (
                "optim.muon_momentum",
                f64::from(optim.muon_momentum),
                0.9999,
            ),
            ("optim.beta1", f64::from(optim.beta1), 0.9999),
            ("optim.beta2", f64::from(optim.beta2), 0.999_999),
            ("optim.eps", f64::from(optim.eps), 1.0),
            ("schedule.decay_frac", schedule.decay_frac, 1.0),
            ("schedule.final_lr_frac", schedule.final_lr_frac, 1.0),
        ];
        for (key, value, max) in shares {
            if !(0.0..=max).contains(&value) {
                return Err(wrong(key, value, format!("from 0 to {max}")));
            }
        }
        if optim.max_grad_norm.is_nan() || optim.max_grad_norm <= 0.0 {
            return Err(wrong("optim.max_grad_norm", optim.max_grad_norm, "above 0"));
        }
        Ok(())
    }
}

/// Ids that the configuration takes over from the tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialIds {
    /// Stands between documents.
    pub bos: u32,
    /// Ends an answer.
    pub eos: u32,
    /// Fills a batch.
    pub pad: u32,
}

/// Puts `section.key=value` into a table. The value is TOML, or else a string.
fn override_key(table: &mut toml::Table, set: &str) -> Result<(), RecipeError> {
    let unreadable = || RecipeError::Set {
        text: set.to_string(),
    };
    let (path, text) = set.split_once('=').ok_or_else(unreadable)?;
    let value = match toml::from_str::<toml::Table>(&format!("value = {text}")) {
        Ok(mut parsed) if parsed.len() == 1 => parsed.remove("value").ok_or_else(unreadable)?,
        _ => toml::Value::String(text.to_string()),
    };
    let mut keys: Vec<&str> = path.trim().split('.').collect();
    let last = keys
        .pop()
        .filter(|key| !key.is_empty())
        .ok_or_else(unreadable)?;
    let mut at = table;
    for key in keys {
        let entry = at
            .entry(key.to_string())
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        at = entry.as_table_mut().ok_or_else(unreadable)?;
    }
    at.insert(last.to_string(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = "[model]\nhidden_size = 32\nintermediate_size = 64\nnum_hidden_layers = 5\n\
        num_attention_heads = 4\nnum_key_value_heads = 2\nhead_dim = 8\nnum_experts = 4\n\
        num_experts_per_tok = 2\nmoe_intermediate_size = 16\n";

    #[test]
    fn a_resolved_recipe_reads_back_as_itself() {
        let recipe = Recipe::from_toml(MODEL, &["optim.lr=0.01".into(), "seed=7".into()]).unwrap();
        assert_eq!((recipe.optim.lr, recipe.seed), (0.01, 7));
        let again = Recipe::from_toml(&recipe.to_toml(), &[]).unwrap();
        assert_eq!(again, recipe);
        assert_eq!(again.to_toml(), recipe.to_toml());
    }

    #[test]
    fn the_model_section_becomes_the_published_configuration() {
        let recipe = Recipe::from_toml(MODEL, &[]).unwrap();
        let ids = SpecialIds {
            bos: 1,
            eos: 53,
            pad: 0,
        };
        let config = recipe.config(300, &ids).unwrap();
        assert_eq!(config.vocab_size, 300);
        assert_eq!(config.eos_token_id, [53]);
        let windows: Vec<_> = (0..5).map(|l| config.window(l)).collect();
        assert_eq!(windows, [Some(128), Some(128), Some(128), None, Some(128)]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, sets, expected) in [
            ("[optim]\nlearning_rate = 1", vec![], "learning_rate"),
            ("[optim]\nlr = \"high\"", vec![], "line 2"),
            ("", vec!["optim.lr=-1"], "optim.lr is -1"),
            ("", vec!["optim.lr=nan"], "optim.lr is NaN"),
            (
                "",
                vec!["optim.learning_rate=1"],
                "unknown field `learning_rate`",
            ),
            ("", vec!["nonsense"], "--set \"nonsense\""),
            ("", vec!["seed.deep=1", "seed=2=3"], "invalid type"),
            ("seed = 1", vec!["seed.deep=1"], "--set \"seed.deep=1\""),
            ("", vec!["train.rows_per_micro_step=3"], "divisor"),
            ("", vec!["train.steps=0"], "train.steps is 0"),
            ("[model]\nhidden_size = 1", vec![], "intermediate_size"),
        ] {
            let sets: Vec<String> = sets.into_iter().map(String::from).collect();
            let error = Recipe::from_toml(text, &sets).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?} {sets:?}: {error}");
        }
    }
}
