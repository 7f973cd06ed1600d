//! Hugging Face checkpoints in the forms that are found: experts in one tensor, other names, FP8, several
//! files, other types; and what is wrong with them.

use dokja_checkpoint::Checkpoint;
use dokja_checkpoint::write::{Float, write_hugging_face};
use formats::safetensors::{TensorData, TensorSource, write_safetensors};
use model::{Layout, ModelConfig};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use testkit::tiny_model::{self, tiny};

/// Named tensors on their way to a file.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors_of(config: &ModelConfig, params: &[f32]) -> Tensors {
    let specs = Layout::new(config).tensors.into_iter();
    let entry =
        |t: model::weights::TensorSpec| (t.name, (t.shape, params[t.span.range()].to_vec()));
    specs.map(entry).collect()
}

fn write(dir: &Path, config: &Value, tensors: &Tensors) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let sources: Vec<TensorSource> = tensors
        .iter()
        .map(|(name, (shape, data))| TensorSource {
            name,
            shape,
            data: TensorData::F32(data),
        })
        .collect();
    write_safetensors(&dir.join("model.safetensors"), &sources, &BTreeMap::new()).unwrap();
}

fn fixture() -> (ModelConfig, Vec<f32>, Tensors) {
    let config = tiny();
    let params = tiny_model::params(&config, &Layout::new(&config));
    let tensors = tensors_of(&config, &params);
    (config, params, tensors)
}

fn open(config: &Value, tensors: &Tensors) -> Result<Checkpoint, String> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), config, tensors);
    Checkpoint::open(dir.path()).map_err(|e| e.to_string())
}

#[test]
fn experts_in_one_tensor_and_other_names_are_the_same_model() {
    let (config, params, mut tensors) = fixture();
    let (e, d, f) = (
        config.num_experts,
        config.hidden_size,
        config.moe_intermediate_size,
    );
    for l in 1..config.num_hidden_layers {
        let base = format!("model.layers.{l}.mlp");
        let (mut gate_up, mut down) = (vec![], vec![]);
        for expert in 0..e {
            let mut take = |name: &str| {
                let name = format!("{base}.experts.{expert}.{name}.weight");
                tensors.remove(&name).unwrap().1
            };
            gate_up.extend(take("gate_proj"));
            gate_up.extend(take("up_proj"));
            down.extend(take("down_proj"));
        }
        let name = |tensor: &str| format!("{base}.experts.{tensor}");
        tensors.insert(name("gate_up_proj"), (vec![e, 2 * f, d], gate_up));
        tensors.insert(name("down_proj"), (vec![e, d, f], down));
        let bias = tensors.remove(&format!("{base}.e_score_correction_bias"));
        tensors.insert(
            format!("{base}.gate.e_score_correction_bias"),
            bias.unwrap(),
        );
    }
    let checkpoint = open(&config.to_json(), &tensors).unwrap();
    assert_eq!(checkpoint.weights().unwrap(), params);

    // Inside a model that also sees.
    let inside = tensors.into_iter().map(|(name, tensor)| {
        let name = match name.strip_prefix("model.") {
            Some(rest) => format!("model.language_model.{rest}"),
            None => name,
        };
        (name, tensor)
    });
    let mut inside: Tensors = inside.collect();
    inside.insert("model.visual.patch.weight".into(), (vec![1], vec![0.0]));
    let checkpoint = open(&config.to_json(), &inside).unwrap();
    assert_eq!(checkpoint.weights().unwrap(), params);
}

#[test]
fn exaone_3_is_llama_under_other_names() {
    use model::config::Architecture;
    let of = |architecture| {
        let config = tiny_model::llama(architecture);
        let params = tiny_model::params(&config, &Layout::new(&config));
        (config, params)
    };
    let ((exaone, _), (llama, params)) = (of(Architecture::Exaone), of(Architecture::Llama));
    let tensors = tensors_of(&exaone, &params);
    assert!(tensors.contains_key("transformer.h.3.mlp.c_fc_1.weight"));
    let exaone = open(&exaone.to_json(), &tensors).unwrap();
    let llama = open(&llama.to_json(), &tensors_of(&llama, &params)).unwrap();
    assert_eq!(exaone.weights().unwrap(), llama.weights().unwrap());
}

#[test]
fn what_is_missing_superfluous_or_misshapen_is_named() {
    let (config, _, tensors) = fixture();
    let json = config.to_json();
    let without = |name: &str| {
        let mut tensors = tensors.clone();
        tensors.remove(name);
        open(&json, &tensors).err().unwrap()
    };
    for name in [
        "lm_head.weight",
        "model.layers.2.mlp.experts.6.up_proj.weight",
    ] {
        assert!(without(name).contains(name), "{}", without(name));
    }
    let mut more = tensors.clone();
    more.insert("model.layers.9.extra".into(), (vec![1], vec![0.0]));
    assert!(
        open(&json, &more)
            .err()
            .unwrap()
            .contains("model.layers.9.extra")
    );
    // A prediction layer that the configuration does not describe is passed over: nothing depends on it.
    let mut without = json.clone();
    without["num_nextn_predict_layers"] = 0.into();
    let checkpoint = open(&without, &tensors).unwrap();
    assert_eq!(checkpoint.config.num_nextn_predict_layers, 0);

    let mut other = tensors.clone();
    other.insert("model.norm.weight".into(), (vec![2], vec![0.0; 2]));
    let error = open(&json, &other).err().unwrap();
    assert!(
        error.contains("model.norm.weight is [2], but [24]"),
        "{error}"
    );
}

/// Writes a safetensors file with FP8 tensors, which our own writer does not make.
fn write_fp8(path: &Path, tensors: &[(&str, &str, Vec<usize>, Vec<u8>)]) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        let info = serde_json::json!({
            "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()],
        });
        header.insert((*name).to_string(), info);
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let bytes = [&(text.len() as u64).to_le_bytes(), text.as_slice(), &data].concat();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn fp8_weights_are_values_times_scales() {
    let config = ModelConfig {
        vocab_size: 3,
        ..tiny_model::llama(model::config::Architecture::Llama)
    };
    let mut json = config.to_json();
    json["quantization_config"] = serde_json::json!({
        "quant_method": "fp8", "weight_block_size": [8, 16],
    });
    let layout = Layout::new(&config);
    // 0x38 is 1, 0xb8 is -1, 0x40 is 2, 0x01 the smallest there is.
    let codes = [
        (0x38u8, 1.0f32),
        (0xb8, -1.0),
        (0x40, 2.0),
        (0x01, 1.0 / 512.0),
    ];
    for form in ["blocks", "rows", "whole"] {
        let mut tensors = Vec::new();
        let mut expected = vec![0.0f32; layout.len];
        for spec in &layout.tensors {
            let values = &mut expected[spec.span.range()];
            let is_fp8 = spec.name.ends_with("q_proj.weight");
            if !is_fp8 {
                values.fill(1.0);
                let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                tensors.push((spec.name.clone(), "F32", spec.shape.clone(), bytes));
                continue;
            }
            let (rows, cols) = (spec.shape[0], spec.shape[1]);
            let bytes: Vec<u8> = (0..rows * cols).map(|i| codes[i % 4].0).collect();
            tensors.push((spec.name.clone(), "F8_E4M3", spec.shape.clone(), bytes));
            let shape = match form {
                "blocks" => vec![rows.div_ceil(8), cols.div_ceil(16)],
                "rows" => vec![rows, 1],
                _ => vec![],
            };
            let n: usize = shape.iter().product();
            let scales: Vec<f32> = (0..n).map(|i| 0.5 + i as f32).collect();
            for (i, value) in values.iter_mut().enumerate() {
                let (r, c) = (i / cols, i % cols);
                let scale = match form {
                    "blocks" => scales[r / 8 * cols.div_ceil(16) + c / 16],
                    "rows" => scales[r],
                    _ => scales[0],
                };
                *value = codes[i % 4].1 * scale;
            }
            let suffix = if form == "blocks" {
                "_scale_inv"
            } else {
                "_scale"
            };
            let bytes = scales.iter().flat_map(|x| x.to_le_bytes()).collect();
            tensors.push((format!("{}{suffix}", spec.name), "F32", shape, bytes));
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
        let refs: Vec<_> = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                (name.as_str(), *dtype, shape.clone(), bytes.clone())
            })
            .collect();
        write_fp8(&dir.path().join("model.safetensors"), &refs);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.weights().unwrap(), expected, "{form}");
        // From the middle of a tensor on, the scales of those rows.
        let spec = layout
            .tensors
            .iter()
            .find(|t| t.name.ends_with("q_proj.weight"));
        let spec = spec.unwrap();
        let mut rows = vec![0.0; 2 * spec.shape[1]];
        checkpoint.read(spec, 7, &mut rows).unwrap();
        let start = spec.span.start + 7 * spec.shape[1];
        assert_eq!(rows, expected[start..start + rows.len()], "{form}");
    }
    json["quantization_config"] = serde_json::json!({ "quant_method": "awq" });
    let error = ModelConfig::from_json(&json.to_string()).unwrap_err();
    assert!(error.to_string().contains("quantization_config"));
}

/// A model whose routed experts are FP8 and in one tensor a projection, with scales of `shape`, which is
/// given experts, rows and columns. Returns what opening it says, and the weights that are expected.
fn fused_fp8(
    block: [usize; 2],
    shape: impl Fn(usize, usize, usize) -> Vec<usize>,
    suffix: &str,
) -> (Result<Checkpoint, String>, Vec<f32>) {
    let config = tiny();
    let (e, d, f) = (
        config.num_experts,
        config.hidden_size,
        config.moe_intermediate_size,
    );
    let layout = Layout::new(&config);
    let mut expected = tiny_model::params(&config, &layout);
    let mut json = config.to_json();
    json["quantization_config"] = serde_json::json!({
        "quant_method": "fp8", "weight_block_size": block,
    });
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut tensors: Vec<(String, &str, Vec<usize>, Vec<u8>)> = Vec::new();
    for spec in &layout.tensors {
        if !spec.name.contains(".experts.") {
            let data = bytes(&expected[spec.span.range()]);
            tensors.push((spec.name.clone(), "F32", spec.shape.clone(), data));
        }
    }
    for layer in 1..config.num_hidden_layers {
        for (name, rows, cols) in [("gate_up_proj", 2 * f, d), ("down_proj", d, f)] {
            // 0x30 + i are 0.5, 0.5625, ..: eighths of a power of two.
            let code = |i: usize| 0x30 + (i % 23) as u8;
            let value = |i: usize| {
                let (exponent, eighths) = (code(i) >> 3, code(i) & 7);
                (1.0 + f32::from(eighths) / 8.0) * f32::from(exponent).exp2() / 128.0
            };
            let shape = shape(e, rows, cols);
            let scales: Vec<f32> = (0..shape.iter().product())
                .map(|i: usize| 0.25 + i as f32)
                .collect();
            let scale = |expert: usize, r: usize, c: usize| {
                let of_one = &shape[1.min(shape.len())..];
                let across = cols.div_ceil(block[1]);
                let blocks = [rows.div_ceil(block[0]), across];
                let each: usize = of_one.iter().product();
                let within = match of_one {
                    one if *one == blocks => r / block[0] * across + c / block[1],
                    one if one.first() == Some(&rows) => r,
                    _ => 0,
                };
                match shape.first() == Some(&e) {
                    true => scales[expert * each + within],
                    false => scales[0],
                }
            };
            for expert in 0..e {
                let parts = match name {
                    "down_proj" => vec![("down_proj", 0)],
                    _ => vec![("gate_proj", 0), ("up_proj", f)],
                };
                for (part, first) in parts {
                    let part = format!("model.layers.{layer}.mlp.experts.{expert}.{part}.weight");
                    let spec = layout.tensors.iter().find(|t| t.name == part).unwrap();
                    for (i, out) in expected[spec.span.range()].iter_mut().enumerate() {
                        let (r, c) = (first + i / cols, i % cols);
                        *out = value((expert * rows + r) * cols + c) * scale(expert, r, c);
                    }
                }
            }
            let name = format!("model.layers.{layer}.mlp.experts.{name}");
            let codes = (0..e * rows * cols).map(code).collect();
            tensors.push((name.clone(), "F8_E4M3", vec![e, rows, cols], codes));
            tensors.push((format!("{name}{suffix}"), "F32", shape, bytes(&scales)));
        }
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    let refs: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name.as_str(), *dtype, shape.clone(), data.clone()))
        .collect();
    write_fp8(&dir.path().join("model.safetensors"), &refs);
    let opened = Checkpoint::open(dir.path()).map_err(|error| error.to_string());
    (opened, expected)
}

#[test]
fn fp8_experts_in_one_tensor_have_scales_of_their_own() {
    // Rows of 18 and 24, columns of 24 and 9: whole blocks, blocks that are cut, one block that is all.
    for block in [[6, 3], [4, 7], [128, 128]] {
        let blocks = |rows: usize, cols: usize| (rows.div_ceil(block[0]), cols.div_ceil(block[1]));
        type Shape<'a> = Box<dyn Fn(usize, usize, usize) -> Vec<usize> + 'a>;
        let forms: [(&str, Shape); 6] = [
            (
                "_scale_inv",
                Box::new(|e, rows, cols| vec![e, blocks(rows, cols).0, blocks(rows, cols).1]),
            ),
            ("_scale", Box::new(|e, rows, _| vec![e, rows, 1])),
            ("_scale", Box::new(|e, rows, _| vec![e, rows])),
            ("_scale", Box::new(|e, _, _| vec![e, 1, 1])),
            ("_scale", Box::new(|e, _, _| vec![e])),
            ("_scale", Box::new(|_, _, _| vec![])),
        ];
        for (suffix, shape) in forms {
            let told = shape(7, 18, 24);
            let (checkpoint, expected) = fused_fp8(block, shape, suffix);
            let checkpoint = checkpoint.unwrap();
            assert_eq!(
                checkpoint.weights().unwrap(),
                expected,
                "{block:?} {told:?}"
            );
            // From the middle of an expert's tensor on, the scales of those rows.
            let name = "model.layers.2.mlp.experts.5.up_proj.weight";
            let mut specs = checkpoint.layout.tensors.iter();
            let spec = specs.find(|t| t.name == name).unwrap();
            let mut rows = vec![0.0; 2 * spec.shape[1]];
            checkpoint.read(spec, 5, &mut rows).unwrap();
            let start = spec.span.start + 5 * spec.shape[1];
            assert_eq!(rows, expected[start..start + rows.len()], "{told:?}");
        }
    }
}

#[test]
fn fp8_scales_that_do_not_fit_keep_a_model_from_opening() {
    type Shape = fn(usize, usize, usize) -> Vec<usize>;
    let shapes: [Shape; 5] = [
        |e, rows, _| vec![e, rows - 1, 1],
        |e, rows, cols| vec![e, rows, cols],
        |e, _, _| vec![e + 1],
        |e, rows, _| vec![e * rows],
        |_, _, _| vec![1, 1, 1, 1],
    ];
    for shape in shapes {
        let (opened, _) = fused_fp8([128, 128], shape, "_scale");
        let error = opened.err().unwrap();
        let told = format!("with scales {:?}, expected one", shape(7, 18, 24));
        assert!(error.contains("gate_up_proj is [7, 18, 24]"), "{error}");
        assert!(error.contains(&told), "{error}");
    }
    let (opened, _) = fused_fp8([128, 128], |e, _, _| vec![e], "_other");
    let error = opened.err().unwrap();
    assert!(
        error.contains("gate_up_proj has no scale beside it"),
        "{error}"
    );
}

#[test]
fn weights_of_a_type_that_is_not_read_keep_a_model_from_opening() {
    let (config, _, tensors) = fixture();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_json().to_string()).unwrap();
    let all: Vec<_> = tensors
        .iter()
        .map(|(name, (shape, data))| {
            let dtype = if name == "model.norm.weight" {
                "I32"
            } else {
                "F32"
            };
            let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
            (name.as_str(), dtype, shape.clone(), bytes)
        })
        .collect();
    write_fp8(&dir.path().join("model.safetensors"), &all);
    let error = Checkpoint::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("model.norm.weight"), "{error}");
}

#[test]
fn what_is_written_is_read_again_in_every_type() {
    let (config, params, tensors) = fixture();
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("in"), &config.to_json(), &tensors);
    let original = Checkpoint::open(&dir.path().join("in")).unwrap();
    for (float, rounded) in [
        (Float::F32, (|x| x) as fn(f32) -> f32),
        (Float::Bf16, |x| half::bf16::from_f32(x).to_f32()),
        (Float::F16, |x| half::f16::from_f32(x).to_f32()),
    ] {
        let out = dir.path().join(format!("{float:?}"));
        let extra = [("tokenizer.json", b"{}".to_vec())];
        let done = std::cell::Cell::new(0);
        let progress = |bytes| {
            done.set(bytes);
            Ok(())
        };
        let written = write_hugging_face(&original, &out, float, &extra, &progress).unwrap();
        assert_eq!(written.tensors, tensors.len());
        assert!(done.get() <= written.bytes && done.get() > 0);
        let again = Checkpoint::open(&out).unwrap();
        let is_bf16 = again.config.compute == model::config::Compute::Bf16;
        assert_eq!(is_bf16, float == Float::Bf16);
        for spec in &original.layout.tensors {
            let mut got = vec![0.0; spec.span.len];
            again.read(spec, 0, &mut got).unwrap();
            let is_bias = spec.role == model::weights::Role::RouterBias;
            let expected: Vec<f32> = params[spec.span.range()]
                .iter()
                .map(|&x| if is_bias { x } else { rounded(x) })
                .collect();
            assert_eq!(got, expected, "{} as {float:?}", spec.name);
        }
        assert_eq!(std::fs::read(out.join("tokenizer.json")).unwrap(), b"{}");
        let again = write_hugging_face(&original, &out, float, &[], &progress);
        assert!(again.unwrap_err().to_string().contains("already there"));
    }
    let stopped = write_hugging_face(&original, &dir.path().join("no"), Float::F32, &[], &|_| {
        Err(std::io::Error::other("stopped"))
    });
    assert!(stopped.is_err() && !dir.path().join("no").exists());
}
