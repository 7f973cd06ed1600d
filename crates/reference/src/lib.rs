//! The whole model in plain loops: forward, backward, losses, optimizers, sampling.
//!
//! This crate says what the other crates compute. It is `exaone_moe`, the architecture of K-EXAONE
//! (arXiv:2601.01739), in f64, with gradients written by hand beside each function; with other answers to
//! four questions ([`Config`]) it is `exaone4` (arXiv:2507.11407), and `llama` with its twin, EXAONE 3.x.
//! It is the oracle of every kernel and of the model; it is slow, and meant to be read in one sitting, in
//! this order:
//!
//! - this file: the sizes ([`Config`]) and the weights ([`Tensors`]);
//! - [`ops`]: the operations (products, norms, rotary positions, attention, routing), each followed by
//!   its derivative;
//! - [`layers`]: attention, feed-forward, experts, and the block made of them, with weights by name;
//! - [`loss`]: what a sequence is to teach, and what is minimised;
//! - [`model`]: a sequence of tokens from embedding to logits, the layer that predicts a second token,
//!   and the way back;
//! - [`optim`]: what is done with the gradients: clipping, Muon, AdamW, the experts' biases, the learning
//!   rate over a run;
//! - [`sample`]: from logits to a token.
//!
//! One sequence passes through the model at a time: sequences of a batch meet in the sum of their
//! gradients and nowhere else. There is no cache, no packing, no mixed precision, no thread. Wrong
//! sizes and missing weights panic: the callers are tests. Every derivative is held against differences
//! (the tests below each file), the whole against what an independent implementation computed
//! (`tests/published.rs`).
//!
//! Letters: T tokens of a sequence, D `hidden_size`, H query heads, G key-value heads, K `head_dim`,
//! F intermediate size, E experts, A experts per token, V vocabulary, B sequences.
//!
//! # Example
//!
//! A model of one layer and five tokens takes ten steps along its gradient and knows its text better:
//!
//! ```
//! use dokja_reference::loss::{Objective, Sequence};
//! use dokja_reference::{Config, MlpLayerType, Tensor, model::forward_backward};
//!
//! let cfg = Config {
//!     vocab_size: 5,
//!     hidden_size: 4,
//!     intermediate_size: 6,
//!     sliding_windows: vec![None],
//!     mlp_layer_types: vec![MlpLayerType::Dense],
//!     num_attention_heads: 2,
//!     num_key_value_heads: 1,
//!     head_dim: 4,
//!     rms_norm_eps: 1e-5,
//!     rope_theta: 1e4,
//!     rope_scaling: None,
//!     full_attention_rope: false,
//!     norm_placement: dokja_reference::NormPlacement::Before,
//!     has_qk_norm: true,
//!     tie_word_embeddings: false,
//!     num_experts: 0,
//!     num_experts_per_tok: 0,
//!     moe_intermediate_size: 0,
//!     num_shared_experts: 0,
//!     norm_topk_prob: true,
//!     routed_scaling_factor: 1.0,
//!     num_nextn_predict_layers: 0,
//!     mtp_sliding_window: None,
//!     swiglu_limits: vec![None],
//! };
//! let mut weights = dokja_reference::Tensors::new();
//! for (seed, (name, shape)) in cfg.tensors().into_iter().enumerate() {
//!     let len: usize = shape.iter().product();
//!     let data = (0..len).map(|i| ((i * i + 7 * seed) as f64).sin()).collect();
//!     weights.insert(name, Tensor { shape, data });
//! }
//! let text = [Sequence::text(&[0, 1, 2, 3, 4, 0, 1, 2, 3, 4])];
//! let objective = Objective { mtp_weight: 0.0, balance_alpha: 0.0 };
//! let mut losses = Vec::new();
//! for _ in 0..10 {
//!     let (output, grads) = forward_backward(&cfg, &weights, &text, &objective);
//!     losses.push(output.losses.total);
//!     for (name, weight) in &mut weights {
//!         dokja_reference::ops::add_scaled(&mut weight.data, &grads[name].data, -0.1);
//!     }
//! }
//! assert!(losses[9] < 0.9 * losses[0], "{losses:?}");
//! ```

pub mod ops;

pub mod layers;

pub mod loss;

pub mod model;

pub mod optim;

pub mod sample;

#[cfg(test)]
mod check;

use std::collections::BTreeMap;

/// Where the two norms of a layer stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// On what attention and the feed-forward half read.
    Before,
    /// On what they add to the stream.
    After,
}

/// Rotary frequencies stretched for longer texts than those of the first training: `rope_type` `llama3`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeScaling {
    /// Long waves become this many times longer.
    pub factor: f64,
    /// A wave is long that turns fewer times than this within the original length.
    pub low_freq_factor: f64,
    /// A wave is short, and stays, that turns more often than this.
    pub high_freq_factor: f64,
    /// The original length.
    pub original_max_position_embeddings: usize,
}

/// What a layer's second half is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpLayerType {
    /// One feed-forward network of `intermediate_size`.
    Dense,
    /// A router, experts of `moe_intermediate_size`, and a shared expert.
    Sparse,
}

/// The sizes, named as in the published `config.json`.
#[derive(Clone, Debug)]
pub struct Config {
    /// V.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    /// F of dense layers.
    pub intermediate_size: usize,
    /// One entry for each of `num_hidden_layers`: keys that a query of a sliding layer sees, itself
    /// included; `None` where it sees all tokens before.
    pub sliding_windows: Vec<Option<usize>>,
    /// One entry for each of `num_hidden_layers`.
    pub mlp_layer_types: Vec<MlpLayerType>,
    /// H; H * K may differ from D.
    pub num_attention_heads: usize,
    /// G, a divisor of H.
    pub num_key_value_heads: usize,
    /// K, even.
    pub head_dim: usize,
    /// Added to the mean square in every norm.
    pub rms_norm_eps: f64,
    /// `rope_parameters.rope_theta`.
    pub rope_theta: f64,
    /// How the frequencies are stretched.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether layers without a window have rotary positions; those with one always have.
    pub full_attention_rope: bool,
    /// Where the norms of a layer stand.
    pub norm_placement: NormPlacement,
    /// Whether each head's query and key are normed.
    pub has_qk_norm: bool,
    /// Whether the embedding is the head too.
    pub tie_word_embeddings: bool,
    /// E.
    pub num_experts: usize,
    /// A.
    pub num_experts_per_tok: usize,
    /// F of one expert; the shared expert has `num_shared_experts` times that.
    pub moe_intermediate_size: usize,
    /// Experts that every token passes through, held as one wide network; 0 for none.
    pub num_shared_experts: usize,
    /// Whether the weights of a token's experts are made to sum to one before scaling.
    pub norm_topk_prob: bool,
    /// Factor on the weights of a token's experts.
    pub routed_scaling_factor: f64,
    /// Layers that predict the token after the next: 0 or 1.
    pub num_nextn_predict_layers: usize,
    /// The window of that layer.
    pub mtp_sliding_window: Option<usize>,
    /// Where the SwiGLUs of a layer cut their gates and ups: one entry for each of `num_hidden_layers`,
    /// and perhaps one for the layer that predicts.
    pub swiglu_limits: Vec<Option<f64>>,
}

impl Config {
    /// The names of a layer's norms, that of attention first.
    pub fn norm_names(&self) -> [&'static str; 2] {
        match self.norm_placement {
            // As published: the norm before the feed-forward half is named after what comes before it.
            NormPlacement::Before => ["input_layernorm", "post_attention_layernorm"],
            NormPlacement::After => ["post_attention_layernorm", "post_feedforward_layernorm"],
        }
    }

    /// Where the SwiGLUs of a layer cut; the layer that predicts comes after the last.
    pub fn swiglu_limit(&self, layer: usize) -> Option<f64> {
        self.swiglu_limits.get(layer).copied().flatten()
    }

    /// The name of the head.
    pub fn head_name(&self) -> &'static str {
        match self.tie_word_embeddings {
            true => model::EMBED,
            false => model::HEAD,
        }
    }

    /// Every tensor of a checkpoint: its name and its shape, `[outputs, inputs]` for a matrix.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (v, d) = (self.vocab_size, self.hidden_size);
        let mut all = vec![(model::EMBED.to_string(), vec![v, d])];
        for (l, &mlp_type) in self.mlp_layer_types.iter().enumerate() {
            self.block_tensors(&format!("model.layers.{l}"), mlp_type, &mut all);
        }
        all.push(("model.norm.weight".into(), vec![d]));
        if !self.tie_word_embeddings {
            all.push((model::HEAD.into(), vec![v, d]));
        }
        if self.num_nextn_predict_layers > 0 {
            all.push(("mtp.fc.weight".into(), vec![d, 2 * d]));
            for norm in ["pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"] {
                all.push((format!("mtp.{norm}.weight"), vec![d]));
            }
            self.block_tensors("mtp.layers.0", MlpLayerType::Dense, &mut all);
        }
        all
    }

    fn block_tensors(&self, at: &str, mlp: MlpLayerType, all: &mut Vec<(String, Vec<usize>)>) {
        let (d, k, e) = (self.hidden_size, self.head_dim, self.num_experts);
        let (q, kv) = (self.num_attention_heads * k, self.num_key_value_heads * k);
        let mut add =
            |name: &str, shape: &[usize]| all.push((format!("{at}.{name}"), shape.to_vec()));
        for norm in self.norm_names() {
            add(&format!("{norm}.weight"), &[d]);
        }
        add("self_attn.q_proj.weight", &[q, d]);
        add("self_attn.k_proj.weight", &[kv, d]);
        add("self_attn.v_proj.weight", &[kv, d]);
        add("self_attn.o_proj.weight", &[d, q]);
        if self.has_qk_norm {
            add("self_attn.q_norm.weight", &[k]);
            add("self_attn.k_norm.weight", &[k]);
        }
        let mut swiglu = |name: &str, f: usize| {
            add(&format!("{name}.gate_proj.weight"), &[f, d]);
            add(&format!("{name}.up_proj.weight"), &[f, d]);
            add(&format!("{name}.down_proj.weight"), &[d, f]);
        };
        if mlp == MlpLayerType::Dense {
            return swiglu("mlp", self.intermediate_size);
        }
        for expert in 0..e {
            swiglu(&format!("mlp.experts.{expert}"), self.moe_intermediate_size);
        }
        if self.num_shared_experts > 0 {
            let f = self.num_shared_experts * self.moe_intermediate_size;
            swiglu("mlp.shared_experts", f);
        }
        add("mlp.gate.weight", &[e, d]);
        add("mlp.e_score_correction_bias", &[e]);
    }
}

/// A shape and its values, the last index running fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// `[outputs, inputs]` for a matrix.
    pub shape: Vec<usize>,
    /// As many as the product of the shape.
    pub data: Vec<f64>,
}

/// Weights, or their gradients, under the names of the checkpoint.
pub type Tensors = BTreeMap<String, Tensor>;
