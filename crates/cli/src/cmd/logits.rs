//! `dokja logits`: what a model computes on given ids, for comparison with other implementations.

use crate::{env, open, print};
use anyhow::{Context, Result, bail};
use formats::safetensors::{SafeTensors, TensorData, TensorSource, write_safetensors};
use model::transformer::{Batch, Objective, Transformer};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tensor::ops::cross_entropy::{self, IGNORE};
use tensor::{Device, Tensor};

/// Reads tensor `ids` [B, T] i64; writes `logits` [B, T, V] and `loss` in f32, `mtp_logits` [B, T-1, V]
/// and `mtp_loss` where the model has the head, `router.<layer>` [B, T, k] i64 best first, and with
/// --grad every `grad.<tensor name>` of the loss.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A run directory, a checkpoint directory or a .gguf file.
    model: PathBuf,
    /// A safetensors file with the tensor `ids`.
    #[arg(long)]
    ids: PathBuf,
    /// The safetensors file to write.
    #[arg(long)]
    out: PathBuf,
    /// Also write the gradients of the loss.
    #[arg(long)]
    grad: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Tensors on their way to the file.
#[derive(Default)]
struct Output {
    floats: Vec<(String, Vec<usize>, Vec<f32>)>,
    ids: Vec<(String, Vec<usize>, Vec<i64>)>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let checkpoint = open::checkpoint(&args.model)?;
    let config = checkpoint.config.clone();
    let sequences = read_ids(&args.ids, config.vocab_size)?;
    let (b, t, v) = (sequences.len(), sequences[0].len(), config.vocab_size);
    let device = env::device()?;
    let mut model = Transformer::new(&device, config, &checkpoint.weights()?, args.grad);
    let batch = Batch::from_sequences(&sequences);
    let mut state = model.train_state(&device, batch.ids.len());

    let mut out = Output::default();
    let (logits, mtp_logits, routing) = model.logits(&device, &mut state, &batch);
    let loss = mean_loss(&device, &logits, &batch.targets);
    out.floats
        .push(("logits".into(), vec![b, t, v], logits.host().to_vec()));
    out.floats.push(("loss".into(), vec![], vec![loss]));
    if let Some(mtp_logits) = mtp_logits {
        let rows = mtp_logits.host().chunks_exact(t * v);
        let kept = rows.flat_map(|s| s[..(t - 1) * v].to_vec()).collect();
        out.floats
            .push(("mtp_logits".into(), vec![b, t - 1, v], kept));
        let loss = mean_loss(&device, &mtp_logits, &batch.mtp_targets);
        out.floats.push(("mtp_loss".into(), vec![], vec![loss]));
    }
    for (layer, chosen) in routing {
        let k = chosen.len() / (b * t);
        let chosen = chosen.into_iter().map(i64::from).collect();
        out.ids
            .push((format!("router.{layer}"), vec![b, t, k], chosen));
    }
    if args.grad {
        let objective = Objective {
            mtp_loss_weight: 0.0,
            balance_alpha: 0.0,
            num_targets: batch.num_targets(),
            num_mtp_targets: batch.num_mtp_targets(),
            micro_steps: 1,
        };
        model.forward_backward(&device, &mut state, &batch, &objective);
        for tensor in &checkpoint.layout.tensors {
            let grad = state.grads.host()[tensor.span.range()].to_vec();
            out.floats
                .push((format!("grad.{}", tensor.name), tensor.shape.clone(), grad));
        }
    }
    write(&args.out, &out)?;
    print(&if args.json {
        json!({ "loss": loss }).to_string()
    } else {
        format!(
            "loss {loss} over {b} x {t} tokens; written to {}",
            args.out.display()
        )
    });
    Ok(())
}

/// Sequences of one length, every id inside the vocabulary.
fn read_ids(path: &Path, vocab_size: usize) -> Result<Vec<Vec<u32>>> {
    let file = SafeTensors::open(path)?;
    let view = file.get("ids")?;
    let &[b, t] = view.shape else {
        bail!(
            "{}: tensor ids is {:?}, expected [B, T]",
            path.display(),
            view.shape
        );
    };
    if b == 0 || t < 2 {
        bail!(
            "{}: tensor ids is [{b}, {t}]; there must be a sequence of two tokens",
            path.display()
        );
    }
    let ids = view
        .to_i64()
        .with_context(|| format!("reading ids of {}", path.display()))?;
    if let Some(at) = ids.iter().position(|&id| id < 0 || id >= vocab_size as i64) {
        bail!(
            "{}: ids[{}, {}] is {}, outside the vocabulary of {vocab_size}",
            path.display(),
            at / t,
            at % t,
            ids[at]
        );
    }
    Ok(ids
        .chunks_exact(t)
        .map(|s| s.iter().map(|&id| id as u32).collect())
        .collect())
}

/// Mean cross-entropy over the rows that have a target.
fn mean_loss(device: &Device, logits: &Tensor, targets: &[u32]) -> f32 {
    let mut losses = Tensor::zeros(device, &[targets.len()]);
    let mut wanted = Tensor::zeros(device, &[targets.len()]);
    wanted.write(targets);
    cross_entropy::forward(device, losses.view_mut(), logits.view(), wanted.view());
    let count = targets.iter().filter(|&&t| t != IGNORE).count().max(1);
    let sum: f64 = losses.host().iter().map(|&l| f64::from(l)).sum();
    (sum / count as f64) as f32
}

fn write(path: &Path, out: &Output) -> Result<()> {
    let floats = out.floats.iter().map(|(name, shape, data)| TensorSource {
        name,
        shape,
        data: TensorData::F32(data),
    });
    let ids = out.ids.iter().map(|(name, shape, data)| TensorSource {
        name,
        shape,
        data: TensorData::I64(data),
    });
    let tensors: Vec<TensorSource> = floats.chain(ids).collect();
    write_safetensors(path, &tensors, &BTreeMap::new())?;
    Ok(())
}
