//! Which tensors a model has, and where they lie.
//!
//! All parameters live in one flat f32 array, gradients and optimizer moments in others of the same
//! layout. [`Layout`] lists the checkpoint's tensors in the order in which they lie there; tensors that
//! one matrix product uses together (q, k, v; gate and up; the experts of a layer) are neighbours, so
//! that a fused matrix is a [`Span`] over several of them. This file alone knows on-disk names.
//!
//! Names: those of the published checkpoint (one tensor per expert and projection).

use crate::config::{MlpType, ModelConfig};
use std::ops::Range;

/// A contiguous range of the flat parameter array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First element.
    pub start: usize,
    /// Number of elements.
    pub len: usize,
}

impl Span {
    /// As a range of indices.
    pub fn range(self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

/// How a tensor is initialised and trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Embedding and head: normal at the start, AdamW.
    Embedding,
    /// A matrix inside the network: normal at the start, Muon.
    Matrix,
    /// The gain of a norm: one at the start, AdamW without decay.
    Gain,
    /// The router's selection bias: zero at the start, moved by the load, never by a gradient.
    RouterBias,
}

/// One tensor of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name on disk.
    pub name: String,
    /// Rows and columns, or one length.
    pub shape: Vec<usize>,
    /// Where it lies.
    pub span: Span,
    /// How it is treated.
    pub role: Role,
}

/// Attention weights of a layer.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSpans {
    /// q, k, v rows one after another: ((H+2G)*K, D).
    pub qkv_proj: Span,
    /// (D, H*K).
    pub o_proj: Span,
    /// (K).
    pub q_norm: Span,
    /// (K).
    pub k_norm: Span,
}

/// A SwiGLU.
#[derive(Clone, Copy, Debug)]
pub struct SwigluSpans {
    /// gate rows, then up rows: (2F, D).
    pub gate_up_proj: Span,
    /// (D, F).
    pub down_proj: Span,
}

/// What follows attention.
#[derive(Clone, Copy, Debug)]
pub enum MlpSpans {
    /// One SwiGLU.
    Dense(SwigluSpans),
    /// Router, experts, shared expert.
    Sparse {
        /// (E, D).
        router: Span,
        /// (E).
        router_bias: Span,
        /// gate_up (E, 2F, D), down (E, D, F).
        experts: SwigluSpans,
        /// The always-on expert.
        shared: SwigluSpans,
    },
}

/// One decoder layer.
#[derive(Clone, Copy, Debug)]
pub struct BlockSpans {
    /// (D), before attention.
    pub input_layernorm: Span,
    /// Attention.
    pub attention: AttentionSpans,
    /// (D), before the feed-forward part, despite its published name.
    pub post_attention_layernorm: Span,
    /// Feed-forward part.
    pub mlp: MlpSpans,
}

/// The multi-token-prediction layer.
#[derive(Clone, Copy, Debug)]
pub struct MtpSpans {
    /// (D, 2D).
    pub fc: Span,
    /// (D).
    pub pre_fc_norm_embedding: Span,
    /// (D).
    pub pre_fc_norm_hidden: Span,
    /// Dense, full attention.
    pub block: BlockSpans,
    /// (D).
    pub norm: Span,
}

/// All tensors of a model, and its parts as spans.
#[derive(Clone, Debug)]
pub struct Layout {
    /// In the order of the flat array.
    pub tensors: Vec<TensorSpec>,
    /// (V, D).
    pub embed_tokens: Span,
    /// L layers.
    pub layers: Vec<BlockSpans>,
    /// (D).
    pub norm: Span,
    /// (V, D).
    pub lm_head: Span,
    /// The multi-token-prediction layer, where there is one.
    pub mtp: Option<MtpSpans>,
    /// Length of the flat array.
    pub len: usize,
}

struct Builder {
    tensors: Vec<TensorSpec>,
    len: usize,
}

impl Builder {
    fn add(&mut self, name: String, shape: &[usize], role: Role) -> Span {
        let span = Span {
            start: self.len,
            len: shape.iter().product(),
        };
        self.len += span.len;
        self.tensors.push(TensorSpec {
            name,
            shape: shape.to_vec(),
            span,
            role,
        });
        span
    }

    fn gain(&mut self, name: String, d: usize) -> Span {
        self.add(name, &[d], Role::Gain)
    }

    fn matrix(&mut self, name: String, rows: usize, cols: usize) -> Span {
        self.add(name, &[rows, cols], Role::Matrix)
    }

    fn swiglu(&mut self, prefix: &str, f: usize, d: usize) -> SwigluSpans {
        let gate = self.matrix(format!("{prefix}.gate_proj.weight"), f, d);
        let up = self.matrix(format!("{prefix}.up_proj.weight"), f, d);
        let down_proj = self.matrix(format!("{prefix}.down_proj.weight"), d, f);
        SwigluSpans {
            gate_up_proj: join(gate, up),
            down_proj,
        }
    }

    fn experts(&mut self, prefix: &str, e: usize, f: usize, d: usize) -> SwigluSpans {
        let first = self.len;
        for i in 0..e {
            self.matrix(format!("{prefix}.{i}.gate_proj.weight"), f, d);
            self.matrix(format!("{prefix}.{i}.up_proj.weight"), f, d);
        }
        let gate_up_proj = Span {
            start: first,
            len: self.len - first,
        };
        let first = self.len;
        for i in 0..e {
            self.matrix(format!("{prefix}.{i}.down_proj.weight"), d, f);
        }
        SwigluSpans {
            gate_up_proj,
            down_proj: Span {
                start: first,
                len: self.len - first,
            },
        }
    }

    fn block(&mut self, prefix: &str, config: &ModelConfig, mlp: MlpType) -> BlockSpans {
        let (d, k) = (config.hidden_size, config.head_dim);
        let (q_size, kv_size) = (config.q_size(), config.kv_size());
        let input_layernorm = self.gain(format!("{prefix}.input_layernorm.weight"), d);
        let attn = format!("{prefix}.self_attn");
        let q = self.matrix(format!("{attn}.q_proj.weight"), q_size, d);
        let keys = self.matrix(format!("{attn}.k_proj.weight"), kv_size, d);
        let values = self.matrix(format!("{attn}.v_proj.weight"), kv_size, d);
        let attention = AttentionSpans {
            qkv_proj: join(join(q, keys), values),
            o_proj: self.matrix(format!("{attn}.o_proj.weight"), d, q_size),
            q_norm: self.gain(format!("{attn}.q_norm.weight"), k),
            k_norm: self.gain(format!("{attn}.k_norm.weight"), k),
        };
        let post_attention_layernorm =
            self.gain(format!("{prefix}.post_attention_layernorm.weight"), d);
        let base = format!("{prefix}.mlp");
        let mlp = match mlp {
            MlpType::Dense => MlpSpans::Dense(self.swiglu(&base, config.intermediate_size, d)),
            MlpType::Sparse => {
                let (e, f) = (config.num_experts, config.moe_intermediate_size);
                MlpSpans::Sparse {
                    router: self.matrix(format!("{base}.gate.weight"), e, d),
                    router_bias: self.add(
                        format!("{base}.e_score_correction_bias"),
                        &[e],
                        Role::RouterBias,
                    ),
                    experts: self.experts(&format!("{base}.experts"), e, f, d),
                    shared: self.swiglu(&format!("{base}.shared_experts"), config.shared_size(), d),
                }
            }
        };
        BlockSpans {
            input_layernorm,
            attention,
            post_attention_layernorm,
            mlp,
        }
    }
}

fn join(a: Span, b: Span) -> Span {
    assert_eq!(a.start + a.len, b.start, "fused tensors are neighbours");
    Span {
        start: a.start,
        len: a.len + b.len,
    }
}

impl Layout {
    /// The layout that a configuration implies.
    pub fn new(config: &ModelConfig) -> Layout {
        let (v, d) = (config.vocab_size, config.hidden_size);
        let mut b = Builder {
            tensors: Vec::new(),
            len: 0,
        };
        let embed_tokens = b.add("model.embed_tokens.weight".into(), &[v, d], Role::Embedding);
        let layers = (0..config.num_hidden_layers)
            .map(|l| {
                b.block(
                    &format!("model.layers.{l}"),
                    config,
                    config.mlp_layer_types[l],
                )
            })
            .collect();
        let norm = b.gain("model.norm.weight".into(), d);
        let lm_head = b.add("lm_head.weight".into(), &[v, d], Role::Embedding);
        let mtp = (config.num_nextn_predict_layers == 1).then(|| MtpSpans {
            fc: b.matrix("mtp.fc.weight".into(), d, 2 * d),
            pre_fc_norm_embedding: b.gain("mtp.pre_fc_norm_embedding.weight".into(), d),
            pre_fc_norm_hidden: b.gain("mtp.pre_fc_norm_hidden.weight".into(), d),
            block: b.block("mtp.layers.0", config, MlpType::Dense),
            norm: b.gain("mtp.norm.weight".into(), d),
        });
        Layout {
            tensors: b.tensors,
            embed_tokens,
            layers,
            norm,
            lm_head,
            mtp,
            len: b.len,
        }
    }

    /// The tensor of a name.
    pub fn find(&self, name: &str) -> Option<&TensorSpec> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// Spans of the router biases, layer by layer.
    pub fn router_biases(&self) -> Vec<Span> {
        self.layers
            .iter()
            .filter_map(|l| match l.mlp {
                MlpSpans::Sparse { router_bias, .. } => Some(router_bias),
                MlpSpans::Dense(_) => None,
            })
            .collect()
    }
}
