//! GGUF files that llama.cpp wrote, against what it computed from them; and our own, read again.

use dokja_checkpoint::Checkpoint;
use dokja_checkpoint::gguf::write_gguf_model;
use kernels_cpu::Isa;
use model::config::{Architecture, Compute};
use model::transformer::{Batch, Transformer};
use model::weights::Source;
use numerics::BlockType;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tensor::{Activations, Device};
use testkit::compare::{Tolerance, close_f32, to_f64};
use testkit::tiny_model;

/// The folder of a case, or a line that says why there is none.
fn case(name: &str) -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/reference");
    let root = std::env::var_os("DOKJA_REFERENCE_DIR").map_or(default, PathBuf::from);
    let folder = root.join(name);
    if folder.exists() {
        return Some(folder);
    }
    println!(
        "skipped: no {name} in {} (set DOKJA_REFERENCE_DIR)",
        root.display()
    );
    None
}

/// The logits after every token: of the model with all weights as f32, and of the model as it is served, its
/// weights in the blocks of the file. The same bits where there are no blocks.
fn logits_of(checkpoint: &Arc<Checkpoint>, ids: &[u32]) -> [Vec<f32>; 2] {
    let device = Device::cpu(Isa::detect(), 2);
    let config = || checkpoint.config.clone();
    let weights = checkpoint.weights().unwrap();
    let whole = Transformer::new(&device, config(), &weights, false);
    let load = |cache_bytes| {
        let activations = Activations::Int16;
        Transformer::load(&device, config(), activations, checkpoint, cache_bytes).unwrap()
    };
    let (served, paged) = (load(None), load(Some(40_000)));
    let batch = Batch::from_sequences(&[ids.to_vec()]);
    let [whole, served, paged]: [Vec<f32>; 3] = [whole, served, paged].map(|mut model| {
        let mut state = model.train_state(&device, ids.len());
        let (logits, ..) = model.logits(&device, &mut state, &batch);
        logits.host().to_vec()
    });
    assert!(served == paged, "the same bits, experts in memory or not");
    let mut tensors = checkpoint.layout.tensors.iter();
    let in_blocks = tensors.any(|spec| checkpoint.blocks(spec).unwrap().is_some());
    match in_blocks {
        // Rows are rounded to 16 bits.
        true => _ = close_f32(&served, &to_f64(&whole), Tolerance::Nmse(1e-6)).unwrap(),
        false => assert!(whole == served, "the same bits either way"),
    }
    [whole, served]
}

/// Bounds on the logits, as normalised mean-square error: the other side rounds activations to eight bits.
fn bound(file: &str) -> f64 {
    match file {
        "bf16.gguf" | "Q8_0.gguf" => 1e-3,
        _ => 2e-2,
    }
}

#[test]
fn llama_cpp_computes_the_same_from_its_files() {
    let Some(folder) = case("exaone_moe_256/gguf") else {
        return;
    };
    let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let numbers = |value: &Value| -> Vec<f64> {
        let all = value.as_array().unwrap().iter();
        all.map(|x| x.as_f64().unwrap()).collect()
    };
    let prompt: Vec<u32> = numbers(&expected["prompt_ids"])
        .iter()
        .map(|&x| x as u32)
        .collect();
    let published = Checkpoint::open(folder.parent().unwrap()).unwrap();
    let files = expected["files"].as_object().unwrap();
    assert!(files.len() >= 7);
    for (file, expected) in files {
        let checkpoint = Arc::new(Checkpoint::open(&folder.join(file)).unwrap());
        // The file does not say how weights began, nor how they were multiplied in training.
        let mut config = checkpoint.config.clone();
        (config.compute, config.initializer_range) = (Compute::F32, 0.02);
        assert_eq!(config, published.config, "{file}");

        let theirs = numbers(&expected["first_logits"]);
        let how = ["as values", "as served"];
        for (logits, how) in logits_of(&checkpoint, &prompt).iter().zip(how) {
            let last = &logits[logits.len() - config.vocab_size..];
            match close_f32(last, &theirs, Tolerance::Nmse(bound(file))) {
                Ok(error) => println!("{file} {how}: logits {error:e}"),
                Err(mismatch) => panic!("{file} {how}: {mismatch}"),
            }
        }
    }
}

/// Writes the weights of a tiny model as a Hugging Face checkpoint.
fn tiny(dir: &Path, config: &model::ModelConfig) -> Checkpoint {
    use formats::safetensors::{TensorData, TensorSource, write_safetensors};
    let layout = model::Layout::new(config);
    let params = tiny_model::params(config, &layout);
    let tensors: Vec<TensorSource> = layout
        .tensors
        .iter()
        .map(|t| TensorSource {
            name: &t.name,
            shape: &t.shape,
            data: TensorData::F32(&params[t.span.range()]),
        })
        .collect();
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_json().to_string()).unwrap();
    write_safetensors(
        &dir.join("model.safetensors"),
        &tensors,
        &Default::default(),
    )
    .unwrap();
    Checkpoint::open(dir).unwrap()
}

fn ignore(_: u64) -> std::io::Result<()> {
    Ok(())
}

#[test]
fn every_architecture_comes_back_from_a_gguf_file_bit_by_bit() {
    let all = tiny_model::variants().into_iter();
    let exaone = ("exaone", tiny_model::llama(Architecture::Exaone));
    let mut refused = Vec::new();
    for (name, config) in all.chain([exaone]) {
        let dir = tempfile::tempdir().unwrap();
        let original = tiny(&dir.path().join("hf"), &config);
        let file = dir.path().join("model.gguf");
        match write_gguf_model(&original, &file, BlockType::F32, vec![], &ignore) {
            Ok(_) => {}
            Err(error) => {
                refused.push((name, error.to_string()));
                continue;
            }
        }
        let again = Checkpoint::open(&file).unwrap();
        let mut expected = config.clone();
        // What a GGUF file does not say, or says with the tokenizer.
        expected.initializer_range = 0.02;
        expected.eos_token_id = vec![];
        (expected.bos_token_id, expected.pad_token_id) = (None, None);
        let scaling = (again.config.rope_scaling, expected.rope_scaling);
        assert_eq!(scaling.0.is_some(), scaling.1.is_some(), "{name}");
        expected.rope_scaling = again.config.rope_scaling;
        assert_eq!(again.config, expected, "{name}");
        assert_eq!(
            again.weights().unwrap(),
            original.weights().unwrap(),
            "{name}"
        );
    }
    let names: Vec<&str> = refused.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        [
            "one global dense layer",
            "only global layers",
            "windows of different widths",
            "limits in some layers",
            "positions in every layer",
            "exaone4 with windows",
        ],
        "{refused:?}"
    );
    assert!(
        refused
            .iter()
            .all(|(_, error)| error.contains("the format"))
    );
}

#[test]
fn a_smaller_type_is_written_and_read_as_its_own_rounding() {
    let mut config = tiny_model::llama(Architecture::Llama);
    // Rows of 256 and of 64 values: whole blocks of every type, and of the smaller blocks only.
    (config.hidden_size, config.intermediate_size) = (256, 64);
    let dir = tempfile::tempdir().unwrap();
    let original = tiny(&dir.path().join("hf"), &config);
    for block_type in [
        BlockType::Bf16,
        BlockType::F16,
        BlockType::Q8_0,
        BlockType::Q4_0,
        BlockType::Q4K,
        BlockType::Q5K,
        BlockType::Q6K,
    ] {
        let file = dir.path().join(format!("{}.gguf", block_type.name()));
        write_gguf_model(&original, &file, block_type, vec![], &ignore).unwrap();
        let again = Checkpoint::open(&file).unwrap();
        for spec in &original.layout.tensors {
            let (mut values, mut got) = (vec![0.0; spec.span.len], vec![0.0; spec.span.len]);
            original.read(spec, 0, &mut values).unwrap();
            again.read(spec, 0, &mut got).unwrap();
            let width = spec.width();
            let whole = |t: &BlockType| width % t.block_values() == 0;
            let chosen = match spec.shape.len() {
                1 => BlockType::F32,
                _ => [block_type, BlockType::Q8_0, BlockType::F16]
                    .into_iter()
                    .find(whole)
                    .unwrap(),
            };
            let mut expected = vec![0.0; values.len()];
            for (row, out) in values.chunks(width).zip(expected.chunks_mut(width)) {
                let mut bytes = vec![0; chosen.bytes_for(width).unwrap()];
                chosen.quantise(row, &mut bytes).unwrap();
                chosen.dequantise(&bytes, out).unwrap();
            }
            assert_eq!(got, expected, "{} of {}", spec.name, file.display());
        }
    }
    let refused = write_gguf_model(
        &original,
        &dir.path().join("x"),
        BlockType::Q2K,
        vec![],
        &ignore,
    );
    assert!(refused.unwrap_err().to_string().contains("Q2_K"));
}

#[test]
fn a_small_file_that_describes_a_huge_model_is_refused_before_its_tensors_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let with = |config: &model::ModelConfig, key: &str, value: u32| {
        let from = tiny(dir.path(), config);
        let path = dir.path().join("tiny.gguf");
        write_gguf_model(&from, &path, BlockType::F32, vec![], &ignore).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(key.len()).position(|at| at == key.as_bytes());
        let at = at.unwrap() + key.len() + 4; // behind the type
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let file = formats::gguf::Gguf::from_bytes(&path, &bytes).unwrap();
        Checkpoint::of_gguf(file).err().unwrap().to_string()
    };
    let (moe, llama) = (tiny_model::tiny(), tiny_model::llama(Architecture::Llama));
    let error = with(&moe, "exaone-moe.feed_forward_length", 1 << 20);
    assert!(error.contains("parameters in 4 layers, but has"), "{error}");
    let error = with(&llama, "llama.block_count", 9000);
    assert!(error.contains("in 9000 layers, but has"), "{error}");
    // Counts whose product has no number.
    let error = with(&moe, "exaone-moe.expert_shared_count", u32::MAX);
    assert!(
        error.contains("expert_shared_feed_forward_length"),
        "{error}"
    );
}
