//! A model that is compared: which tensors it has, what part of it each one is, and their values.
//!
//! What the project runs is read through `checkpoint`, in any of its layouts. Of other models in the Hugging Face layout
//! a tensor's part is told from the end of its name, which the field shares (`mlp.gate_proj`, `self_attn.v_proj`); what
//! ends otherwise is passed over. Layers of a part that sees or hears are a [`Tower`] of their own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use checkpoint::{Checkpoint, CheckpointError};
use formats::error::FileError;
use formats::run_dir;
use formats::safetensors::{Dtype, SafeTensors};
use model::names::{LayerPart, Part, Projection};
use serde_json::Value;

use super::CompareError;
use super::vocabulary::Vocabulary;

/// A model whose files have been opened; no weight is read before it is asked for.
pub struct Weights {
    path: PathBuf,
    known: Option<Checkpoint>,
    files: Option<SafeTensors>,
    /// The language model first.
    pub(super) towers: Vec<Tower>,
    pub(super) vocabulary: Option<Vocabulary>,
}

/// One network of layers, with what stands before and behind them.
pub(super) struct Tower {
    /// What the names of its layers begin with; nothing for the language model.
    pub(super) name: String,
    pub(super) tensors: BTreeMap<Part, Tensor>,
    /// How rows of queries, keys and values are heads, where it is known.
    pub(super) heads: Option<Heads>,
}

impl Tower {
    /// Dimensions of the stream: what every layer reads.
    pub(super) fn width(&self) -> Option<usize> {
        let reads = |part: &Part| {
            let reads = [
                LayerPart::V,
                LayerPart::Mlp(Projection::Up),
                LayerPart::Router,
            ];
            match part {
                Part::EmbedTokens => true,
                Part::Layer(_, part) => reads.contains(part),
                _ => false,
            }
        };
        let mut tensors = self.tensors.iter();
        tensors.find_map(|(part, tensor)| reads(part).then_some(tensor.cols))
    }

    /// Tokens that the embedding or the head has rows for.
    pub(super) fn token_rows(&self) -> usize {
        let parts = [Part::EmbedTokens, Part::LmHead];
        let found = parts.iter().find_map(|part| self.tensors.get(part));
        found.map_or(0, |tensor| tensor.rows)
    }
}

/// Where a tensor is, and its rows and columns; a vector is one row.
pub(super) struct Tensor {
    place: Place,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

enum Place {
    /// In the layout of the model that is known.
    Known(usize),
    /// Under this name in the files.
    File(String),
}

/// Heads of attention: of queries, of keys and values, and the rows of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heads {
    pub(super) query: usize,
    pub(super) key: usize,
    pub(super) dim: usize,
}

impl Weights {
    /// Opens what a command calls MODEL: a run directory, a checkpoint directory, or a GGUF file.
    ///
    /// # Errors
    /// When files are missing or damaged, or no part of a model is recognised in them.
    pub fn open(path: &Path) -> Result<Weights, CompareError> {
        let path = run_dir::resolve_model(path)?;
        let known = Checkpoint::open(&path);
        let files = match path.is_dir() {
            true => Some(SafeTensors::open(&path).map_err(CheckpointError::from)?),
            false => None,
        };
        let mut towers = match &files {
            Some(files) => towers_of(files, &config(&path)?),
            None => Vec::new(),
        };
        let vocabulary = match known.as_ref().ok().and_then(Checkpoint::gguf) {
            Some(gguf) => Vocabulary::of_gguf(gguf),
            None => Vocabulary::of_json(&path.join("tokenizer.json"))?,
        };
        let known = match (known, towers.is_empty()) {
            (Ok(checkpoint), _) => Some(checkpoint),
            (Err(_), false) => None,
            (Err(error), true) => return Err(error.into()),
        };
        if let Some(checkpoint) = &known {
            towers.retain(|tower| !tower.name.is_empty());
            towers.insert(0, tower_of(checkpoint));
        }
        Ok(Weights {
            path,
            known,
            files,
            towers,
            vocabulary,
        })
    }

    /// The directory or file whose weights are read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Values of a tensor from row `row` on; `out` has room for whole rows.
    pub(super) fn read(
        &self,
        tensor: &Tensor,
        row: usize,
        out: &mut [f32],
    ) -> Result<(), CompareError> {
        match (&tensor.place, &self.known, &self.files) {
            (Place::Known(idx), Some(checkpoint), _) => {
                checkpoint.read(&checkpoint.layout.tensors[*idx], row, out)?;
            }
            (Place::File(name), _, Some(files)) => {
                let view = files.get(name).map_err(CheckpointError::from)?;
                view.copy_range_to_f32(row * tensor.cols, out)
                    .map_err(CheckpointError::from)?;
            }
            _ => unreachable!("a tensor is in what it was found in"),
        }
        Ok(())
    }
}

/// The language model of a checkpoint that the project runs.
fn tower_of(checkpoint: &Checkpoint) -> Tower {
    let tensors = checkpoint.layout.tensors.iter().enumerate();
    let tensors = tensors.map(|(idx, spec)| {
        let tensor = Tensor {
            place: Place::Known(idx),
            rows: spec.span.len / spec.width(),
            cols: spec.width(),
        };
        (spec.part, tensor)
    });
    let config = &checkpoint.config;
    Tower {
        name: String::new(),
        tensors: tensors.collect(),
        heads: Some(Heads {
            query: config.num_attention_heads,
            key: config.num_key_value_heads,
            dim: config.head_dim,
        }),
    }
}

fn config(dir: &Path) -> Result<Value, CompareError> {
    let path = dir.join("config.json");
    let text = fs::read_to_string(&path).map_err(|e| FileError::io("read", &path, e))?;
    serde_json::from_str(&text).map_err(|source| CompareError::Config { path, source })
}

/// What can be told from names.
fn towers_of(files: &SafeTensors, config: &Value) -> Vec<Tower> {
    let mut towers: BTreeMap<String, Tower> = BTreeMap::new();
    for name in files.names() {
        let Some((tower, part)) = part_of(name) else {
            continue;
        };
        let Ok(view) = files.get(name) else {
            continue;
        };
        let is_float = !matches!(view.dtype, Dtype::I64 | Dtype::I32 | Dtype::U32);
        let (rows, cols) = match (view.shape, is_vector(part)) {
            (&[cols], true) => (1, cols),
            (&[rows, cols], false) => (rows, cols),
            _ => continue,
        };
        if !is_float || rows == 0 || cols == 0 {
            continue;
        }
        let tower = towers.entry(tower.clone()).or_insert_with(|| Tower {
            heads: tower.is_empty().then(|| heads_of(config)).flatten(),
            name: tower,
            tensors: BTreeMap::new(),
        });
        tower.tensors.entry(part).or_insert_with(|| Tensor {
            place: Place::File(name.to_owned()),
            rows,
            cols,
        });
    }
    towers.into_values().collect()
}

fn is_vector(part: Part) -> bool {
    match part {
        Part::Norm | Part::MtpNorm | Part::MtpNormEmbedding | Part::MtpNormHidden => true,
        Part::Layer(_, part) | Part::MtpLayer(part) => {
            matches!(part, LayerPart::AttentionNorm | LayerPart::MlpNorm)
        }
        Part::EmbedTokens | Part::LmHead | Part::MtpFc => false,
    }
}

/// The heads of the language model, from a configuration in the words of the field.
fn heads_of(config: &Value) -> Option<Heads> {
    let config = config.get("text_config").unwrap_or(config);
    // More than any model has, and few enough for their products.
    let sane = |value: &u64| (1..=1 << 20).contains(value);
    let number = |key: &str| Some(config.get(key)?.as_u64().filter(sane)? as usize);
    let query = number("num_attention_heads")?;
    let dim = number("head_dim").or_else(|| Some(number("hidden_size")? / query));
    Some(Heads {
        query,
        key: number("num_key_value_heads").unwrap_or(query),
        dim: dim.filter(|dim| *dim > 0)?,
    })
}

/// The tower of a tensor, and what part of it its name says it is.
fn part_of(name: &str) -> Option<(String, Part)> {
    let words: Vec<&str> = name.strip_suffix(".weight")?.split('.').collect();
    let first_number = words.iter().position(|word| word.parse::<usize>().is_ok());
    let Some(at) = first_number else {
        let part = match *words.last()? {
            "embed_tokens" | "wte" | "word_embeddings" => Part::EmbedTokens,
            "lm_head" => Part::LmHead,
            "norm" | "ln_f" if !is_other(&words[..words.len() - 1]) => Part::Norm,
            _ => return None,
        };
        return Some((String::new(), part));
    };
    let (before, layer, rest) = (&words[..at], words[at].parse().ok()?, &words[at + 1..]);
    let part = layer_part(rest)?;
    if before.first() == Some(&"mtp") {
        return (layer == 0).then_some((String::new(), Part::MtpLayer(part)));
    }
    let tower = match is_other(before) {
        true => before.join("."),
        false => String::new(),
    };
    Some((tower, Part::Layer(layer, part)))
}

/// Whether a name's beginning is that of a part that sees or hears.
fn is_other(words: &[&str]) -> bool {
    let senses = ["vis", "image", "audio", "speech"];
    (words.iter()).any(|word| senses.iter().any(|sense| word.contains(sense)))
}

fn layer_part(words: &[&str]) -> Option<LayerPart> {
    let (&last, before) = words.split_last()?;
    let within = |word: &str| before.contains(&word);
    let part = match last {
        "q_proj" => LayerPart::Q,
        "k_proj" => LayerPart::K,
        "v_proj" => LayerPart::V,
        "o_proj" | "out_proj" => LayerPart::O,
        "input_layernorm" | "ln_1" | "norm1" | "attention_norm" => LayerPart::AttentionNorm,
        "post_attention_layernorm" | "ln_2" | "norm2" | "ffn_norm" => LayerPart::MlpNorm,
        "gate" | "router" => LayerPart::Router,
        _ => {
            let projection = match last {
                "gate_proj" | "w1" | "c_fc_0" => Projection::Gate,
                "up_proj" | "w3" | "c_fc_1" | "fc1" | "linear_fc1" => Projection::Up,
                "down_proj" | "w2" | "c_proj" | "fc2" | "linear_fc2" => Projection::Down,
                _ => return None,
            };
            let expert = before.iter().find_map(|word| word.parse().ok());
            match expert {
                _ if within("shared_expert") || within("shared_experts") => {
                    LayerPart::Shared(projection)
                }
                Some(expert) => LayerPart::Expert(expert, projection),
                None => LayerPart::Mlp(projection),
            }
        }
    };
    Some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_come_from_a_configuration_that_makes_sense() {
        let heads = |json: &str| heads_of(&serde_json::from_str(json).unwrap());
        let all = r#"{"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}"#;
        let (query, dim) = (8, 16);
        assert_eq!(heads(all), Some(Heads { query, key: 2, dim }));
        let inside = r#"{"text_config": {"num_attention_heads": 8, "hidden_size": 128}}"#;
        assert_eq!(heads(inside), Some(Heads { query, key: 8, dim }));
        for wrong in [
            "{}",
            r#"{"num_attention_heads": 0, "head_dim": 16}"#,
            r#"{"num_attention_heads": -1, "head_dim": 16}"#,
            r#"{"num_attention_heads": 8, "hidden_size": 4}"#,
            r#"{"num_attention_heads": 18446744073709551615, "head_dim": 16}"#,
        ] {
            assert_eq!(heads(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn parts_are_told_from_the_names_that_the_field_uses() {
        let main = |part| Some((String::new(), part));
        let gate = Projection::Gate;
        for (name, expected) in [
            ("model.embed_tokens.weight", main(Part::EmbedTokens)),
            ("transformer.wte.weight", main(Part::EmbedTokens)),
            ("lm_head.weight", main(Part::LmHead)),
            ("model.norm.weight", main(Part::Norm)),
            (
                "model.layers.11.self_attn.v_proj.weight",
                main(Part::Layer(11, LayerPart::V)),
            ),
            (
                "transformer.h.3.mlp.c_fc_0.weight",
                main(Part::Layer(3, LayerPart::Mlp(gate))),
            ),
            (
                "model.layers.2.mlp.experts.17.gate_proj.weight",
                main(Part::Layer(2, LayerPart::Expert(17, gate))),
            ),
            (
                "model.layers.2.block_sparse_moe.experts.7.w2.weight",
                main(Part::Layer(2, LayerPart::Expert(7, Projection::Down))),
            ),
            (
                "model.layers.2.mlp.shared_experts.gate_proj.weight",
                main(Part::Layer(2, LayerPart::Shared(gate))),
            ),
            (
                "model.layers.2.mlp.gate.weight",
                main(Part::Layer(2, LayerPart::Router)),
            ),
            (
                "mtp.layers.0.self_attn.o_proj.weight",
                main(Part::MtpLayer(LayerPart::O)),
            ),
            (
                "visual.blocks.4.mlp.up_proj.weight",
                Some((
                    "visual.blocks".into(),
                    Part::Layer(4, LayerPart::Mlp(Projection::Up)),
                )),
            ),
            ("visual.patch_embed.proj.weight", None),
            ("model.layers.2.mlp.gate.e_score_correction_bias", None),
            ("model.layers.2.self_attn.qkv_proj.weight", None),
        ] {
            assert_eq!(part_of(name), expected, "{name}");
        }
    }
}
