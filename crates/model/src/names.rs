//! What tensors are called on disk: in Hugging Face checkpoints and in GGUF files.
//!
//! A tensor of the model is a [`Part`]; where a file keeps it is a [`Stored`]. Hugging Face files have a
//! tensor for each expert and projection, or, as `transformers` holds them in memory, all experts of a
//! layer in one; GGUF files stack them in three. [`hugging_face`] gives first the name that is written, then
//! what else has been found in files.
//!
//! Sources: the published checkpoints of the family; `transformers` 5.23 (conversion_mapping.py); gguf-py
//! 0.19 (constants.py, tensor_mapping.py) and llama.cpp's loaders.

use crate::config::{Architecture, ModelConfig, NormPlacement};

/// A tensor, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The embedding.
    EmbedTokens,
    /// The norm before the head.
    Norm,
    /// The head.
    LmHead,
    /// Of a decoder layer.
    Layer(usize, LayerPart),
    /// Of the decoder layer that predicts the token after next.
    MtpLayer(LayerPart),
    /// What joins that layer's two inputs.
    MtpFc,
    /// The norm of the next token's embedding.
    MtpNormEmbedding,
    /// The norm of the main model's output.
    MtpNormHidden,
    /// The norm before the head.
    MtpNorm,
}

/// A tensor of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerPart {
    /// The norm of attention.
    AttentionNorm,
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Output of attention.
    O,
    /// The norm of queries.
    QNorm,
    /// The norm of keys.
    KNorm,
    /// The norm of the feed-forward part.
    MlpNorm,
    /// A dense feed-forward part.
    Mlp(Projection),
    /// The router.
    Router,
    /// Its bias.
    RouterBias,
    /// A routed expert.
    Expert(usize, Projection),
    /// The shared expert.
    Shared(Projection),
}

/// A matrix of a SwiGLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    /// What is gated with.
    Gate,
    /// What is gated.
    Up,
    /// Back to the stream.
    Down,
}

/// Where a file keeps a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The name in the file.
    pub name: String,
    /// The shape of what has this name, slowest dimension first.
    pub shape: Vec<usize>,
    /// The first element of the tensor in it.
    pub start: usize,
}

impl Stored {
    fn whole(name: String, shape: &[usize]) -> Stored {
        Stored {
            name,
            shape: shape.to_vec(),
            start: 0,
        }
    }
}

/// The places of a tensor of the given shape in Hugging Face files; the first is the one that is written.
pub fn hugging_face(config: &ModelConfig, part: Part, shape: &[usize]) -> Vec<Stored> {
    let name = published(config.architecture, part);
    let mut places = vec![Stored::whole(name.clone(), shape)];
    if let Part::Layer(_, LayerPart::RouterBias) = part {
        let other = name.replace(".e_score", ".gate.e_score");
        places.push(Stored::whole(other, shape));
    }
    if let (Part::Layer(l, LayerPart::Expert(expert, projection)), &[rows, cols]) = (part, shape) {
        let (tensor, rows_of_one, first) = match projection {
            Projection::Gate => ("gate_up_proj", 2 * rows, 0),
            Projection::Up => ("gate_up_proj", 2 * rows, rows),
            Projection::Down => ("down_proj", rows, 0),
        };
        places.push(Stored {
            name: format!("model.layers.{l}.mlp.experts.{tensor}"),
            shape: vec![config.num_experts, rows_of_one, cols],
            start: (expert * rows_of_one + first) * cols,
        });
    }
    // The text model inside one that also sees.
    let inside: Vec<Stored> = places
        .iter()
        .flat_map(|place| {
            let names = match place.name.strip_prefix("model.") {
                Some(rest) => vec![
                    format!("model.language_model.{rest}"),
                    format!("language_model.model.{rest}"),
                ],
                None => vec![format!("language_model.{}", place.name)],
            };
            names.into_iter().map(|name| Stored {
                name,
                ..place.clone()
            })
        })
        .collect();
    places.extend(inside);
    places
}

/// Whether a Hugging Face file may have this tensor although the model has no use for it: the part that
/// sees, frequencies that follow from the configuration, a head that repeats the tied embedding, a prediction
/// layer that the configuration does not describe.
pub fn is_redundant(config: &ModelConfig, name: &str) -> bool {
    let sees = ["model.visual.", "visual.", "model.vision_tower."];
    sees.iter().any(|prefix| name.starts_with(prefix))
        || name.ends_with("rotary_emb.inv_freq")
        || name.ends_with("attn.attention.rotary.inv_freq")
        || (config.tie_word_embeddings && name.ends_with("lm_head.weight"))
        || (config.num_nextn_predict_layers == 0 && name.starts_with("mtp."))
}

fn published(architecture: Architecture, part: Part) -> String {
    let is_exaone = architecture == Architecture::Exaone;
    let name = match part {
        Part::EmbedTokens if is_exaone => "transformer.wte",
        Part::EmbedTokens => "model.embed_tokens",
        Part::Norm if is_exaone => "transformer.ln_f",
        Part::Norm => "model.norm",
        Part::LmHead => "lm_head",
        Part::MtpFc => "mtp.fc",
        Part::MtpNormEmbedding => "mtp.pre_fc_norm_embedding",
        Part::MtpNormHidden => "mtp.pre_fc_norm_hidden",
        Part::MtpNorm => "mtp.norm",
        Part::Layer(l, part) if is_exaone => {
            return format!("transformer.h.{l}.{}", exaone_layer(part));
        }
        Part::Layer(l, part) => {
            return format!("model.layers.{l}.{}", published_layer(architecture, part));
        }
        Part::MtpLayer(part) => {
            return format!("mtp.layers.0.{}", published_layer(architecture, part));
        }
    };
    format!("{name}.weight")
}

fn published_layer(architecture: Architecture, part: LayerPart) -> String {
    let norms = match architecture.norm_placement() {
        // As published: the norm before the feed-forward part is named after what comes before it.
        NormPlacement::Before => ["input_layernorm", "post_attention_layernorm"],
        NormPlacement::After => ["post_attention_layernorm", "post_feedforward_layernorm"],
    };
    let proj = |projection| match projection {
        Projection::Gate => "gate_proj",
        Projection::Up => "up_proj",
        Projection::Down => "down_proj",
    };
    let name = match part {
        LayerPart::AttentionNorm => norms[0],
        LayerPart::Q => "self_attn.q_proj",
        LayerPart::K => "self_attn.k_proj",
        LayerPart::V => "self_attn.v_proj",
        LayerPart::O => "self_attn.o_proj",
        LayerPart::QNorm => "self_attn.q_norm",
        LayerPart::KNorm => "self_attn.k_norm",
        LayerPart::MlpNorm => norms[1],
        LayerPart::Mlp(projection) => return format!("mlp.{}.weight", proj(projection)),
        LayerPart::Router => "mlp.gate",
        LayerPart::RouterBias => return "mlp.e_score_correction_bias".into(),
        LayerPart::Expert(e, projection) => {
            return format!("mlp.experts.{e}.{}.weight", proj(projection));
        }
        LayerPart::Shared(projection) => {
            return format!("mlp.shared_experts.{}.weight", proj(projection));
        }
    };
    format!("{name}.weight")
}

/// EXAONE 3.x has names of its own; what it lacks is named as in the others.
fn exaone_layer(part: LayerPart) -> String {
    let name = match part {
        LayerPart::AttentionNorm => "ln_1",
        LayerPart::Q => "attn.attention.q_proj",
        LayerPart::K => "attn.attention.k_proj",
        LayerPart::V => "attn.attention.v_proj",
        LayerPart::O => "attn.attention.out_proj",
        LayerPart::MlpNorm => "ln_2",
        LayerPart::Mlp(Projection::Gate) => "mlp.c_fc_0",
        LayerPart::Mlp(Projection::Up) => "mlp.c_fc_1",
        LayerPart::Mlp(Projection::Down) => "mlp.c_proj",
        other => return published_layer(Architecture::Exaone, other),
    };
    format!("{name}.weight")
}

/// The place of a tensor of the given shape in GGUF files. The prediction layer is the block after the
/// last.
pub fn gguf(config: &ModelConfig, part: Part, shape: &[usize]) -> Stored {
    let mtp = config.num_hidden_layers;
    let name = match part {
        Part::EmbedTokens => "token_embd.weight".into(),
        Part::Norm => "output_norm.weight".into(),
        Part::LmHead => "output.weight".into(),
        Part::MtpFc => format!("blk.{mtp}.nextn.eh_proj.weight"),
        Part::MtpNormEmbedding => format!("blk.{mtp}.nextn.enorm.weight"),
        Part::MtpNormHidden => format!("blk.{mtp}.nextn.hnorm.weight"),
        Part::MtpNorm => format!("blk.{mtp}.nextn.shared_head_norm.weight"),
        Part::Layer(l, part) => return gguf_layer(config, l, part, shape),
        Part::MtpLayer(part) => return gguf_layer(config, mtp, part, shape),
    };
    Stored::whole(name, shape)
}

fn gguf_layer(config: &ModelConfig, block: usize, part: LayerPart, shape: &[usize]) -> Stored {
    let norms = match config.architecture.norm_placement() {
        NormPlacement::Before => ["attn_norm", "ffn_norm"],
        NormPlacement::After => ["post_attention_norm", "post_ffw_norm"],
    };
    let ffn = |projection| match projection {
        Projection::Gate => "ffn_gate",
        Projection::Up => "ffn_up",
        Projection::Down => "ffn_down",
    };
    let name = match part {
        LayerPart::AttentionNorm => norms[0].to_string(),
        LayerPart::Q => "attn_q".into(),
        LayerPart::K => "attn_k".into(),
        LayerPart::V => "attn_v".into(),
        LayerPart::O => "attn_output".into(),
        LayerPart::QNorm => "attn_q_norm".into(),
        LayerPart::KNorm => "attn_k_norm".into(),
        LayerPart::MlpNorm => norms[1].to_string(),
        LayerPart::Mlp(projection) => ffn(projection).into(),
        LayerPart::Router => "ffn_gate_inp".into(),
        LayerPart::RouterBias => {
            return Stored::whole(format!("blk.{block}.exp_probs_b.bias"), shape);
        }
        LayerPart::Shared(projection) => format!("{}_shexp", ffn(projection)),
        LayerPart::Expert(expert, projection) => {
            let one: usize = shape.iter().product();
            return Stored {
                name: format!("blk.{block}.{}_exps.weight", ffn(projection)),
                shape: [&[config.num_experts], shape].concat(),
                start: expert * one,
            };
        }
    };
    Stored::whole(format!("blk.{block}.{name}.weight"), shape)
}
