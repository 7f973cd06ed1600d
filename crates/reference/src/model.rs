//! A sequence of tokens from embedding to logits, and the way back.
//!
//! x = E[ids]    x = block_l(x) for each layer    h = norm(x)    logits = W_head h
//!
//! The multi-token-prediction layer, for rows t in 0..T-1, from the normed h and the next token n_t:
//!
//! u = W_fc [norm_e(E[n_t]) ; norm_h(h_t)]    u' = block(u)    mtp logits = W_head norm_m(u')
//!
//! Row t of the logits predicts token t + 1; row t of the mtp logits predicts token t + 2. Embedding and
//! head are the main model's, so the gradient of the second prediction reaches every weight but the bias
//! of the routers. K-EXAONE, arXiv:2601.01739, figure 2; DeepSeek-V3, arXiv:2412.19437, section 2.2.

use crate::layers::{
    BlockKept, add_grad, block, block_backward, linear, linear_backward, rms_norm,
    rms_norm_backward, tensor,
};
use crate::loss::{
    Losses, Objective, Sequence, balance_loss, cross_entropy, cross_entropy_backward,
};
use crate::ops::{add_scaled, dot, embedding, embedding_backward};
use crate::{Config, MlpLayerType, Tensor, Tensors};
use std::collections::BTreeMap;

pub(crate) const EMBED: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
pub(crate) const HEAD: &str = "lm_head.weight";
const MTP_FC: &str = "mtp.fc.weight";
const MTP_NORM_EMBEDDING: &str = "mtp.pre_fc_norm_embedding.weight";
const MTP_NORM_HIDDEN: &str = "mtp.pre_fc_norm_hidden.weight";
const MTP_BLOCK: &str = "mtp.layers.0";
const MTP_NORM: &str = "mtp.norm.weight";

/// What the model says about one sequence.
#[derive(Debug)]
pub struct SequenceOutput {
    /// (T, V).
    pub logits: Vec<f64>,
    /// (T-1, V); empty where the model has no such layer or the sequence one token.
    pub mtp_logits: Vec<f64>,
    /// By sparse layer: the experts of each token (T, A), best first.
    pub router_ids: BTreeMap<usize, Vec<u32>>,
    /// Everything on the way to the logits.
    pub kept: Kept,
}

/// What the model says about a batch.
#[derive(Debug)]
pub struct Output {
    /// In the order of the batch.
    pub sequences: Vec<SequenceOutput>,
    /// Over the whole batch.
    pub losses: Losses,
}

/// What one sequence keeps for the way back.
#[derive(Debug)]
pub struct Kept {
    /// Of each layer.
    pub blocks: Vec<BlockKept>,
    /// (T, D), the stream after the last block.
    pub x: Vec<f64>,
    /// (T, D), the same normed.
    pub h: Vec<f64>,
    /// Of the layer that predicts a second token.
    pub mtp: Option<MtpKept>,
}

/// What the layer that predicts a second token keeps.
#[derive(Debug)]
pub struct MtpKept {
    /// (T-1, D), E[n_t].
    pub embedded: Vec<f64>,
    /// (T-1, 2D), both inputs, normed.
    pub joined: Vec<f64>,
    /// Of its block.
    pub block: BlockKept,
    /// (T-1, D), the block's output.
    pub u: Vec<f64>,
    /// (T-1, D), the same normed.
    pub h: Vec<f64>,
}

/// One sequence, forward.
fn run(cfg: &Config, weights: &Tensors, ids: &[u32]) -> SequenceOutput {
    let mut x = embedding(&tensor(weights, EMBED).data, ids, cfg.hidden_size);
    let (mut blocks, mut router_ids) = (Vec::new(), BTreeMap::new());
    let layers = cfg.sliding_windows.iter().zip(&cfg.mlp_layer_types);
    for (l, (&window, &mlp)) in layers.enumerate() {
        let (at, limit) = (format!("model.layers.{l}"), cfg.swiglu_limit(l));
        let (x_out, kept) = block(cfg, weights, &at, window, mlp, limit, &x);
        if let Some(routing) = kept.routing() {
            router_ids.insert(l, routing.topk_ids.clone());
        }
        blocks.push(kept);
        x = x_out;
    }
    let h = rms_norm(cfg, weights, NORM, &x);
    let logits = linear(weights, cfg.head_name(), &h);
    let has_mtp = cfg.num_nextn_predict_layers > 0 && ids.len() > 1;
    let (mtp_logits, mtp) = if has_mtp {
        run_mtp(cfg, weights, ids, &h)
    } else {
        (vec![], None)
    };
    SequenceOutput {
        logits,
        mtp_logits,
        router_ids,
        kept: Kept { blocks, x, h, mtp },
    }
}

/// The second prediction from h (T, D): -> (T-1, V).
fn run_mtp(cfg: &Config, weights: &Tensors, ids: &[u32], h: &[f64]) -> (Vec<f64>, Option<MtpKept>) {
    let d = cfg.hidden_size;
    let embedded = embedding(&tensor(weights, EMBED).data, &ids[1..], d);
    let normed_embedding = rms_norm(cfg, weights, MTP_NORM_EMBEDDING, &embedded);
    let normed_hidden = rms_norm(cfg, weights, MTP_NORM_HIDDEN, &h[..embedded.len()]);
    let halves = normed_embedding
        .chunks_exact(d)
        .zip(normed_hidden.chunks_exact(d));
    let joined: Vec<f64> = halves.flat_map(|(e, g)| [e, g].concat()).collect();
    let u = linear(weights, MTP_FC, &joined);
    let (u, block) = block(
        cfg,
        weights,
        MTP_BLOCK,
        cfg.mtp_sliding_window,
        MlpLayerType::Dense,
        cfg.swiglu_limit(cfg.sliding_windows.len()),
        &u,
    );
    let h = rms_norm(cfg, weights, MTP_NORM, &u);
    let logits = linear(weights, cfg.head_name(), &h);
    (
        logits,
        Some(MtpKept {
            embedded,
            joined,
            block,
            u,
            h,
        }),
    )
}

/// One sequence, backward, from the gradients of both logits; `balance` weighs its balance losses.
fn run_backward(
    cfg: &Config,
    weights: &Tensors,
    grads: &mut Tensors,
    ids: &[u32],
    kept: &Kept,
    dlogits: &[f64],
    dmtp_logits: &[f64],
    balance: f64,
) {
    let mut dh = linear_backward(weights, grads, cfg.head_name(), dlogits, &kept.h);
    if let Some(mtp) = &kept.mtp {
        run_mtp_backward(cfg, weights, grads, ids, kept, mtp, dmtp_logits, &mut dh);
    }
    let mut dx = rms_norm_backward(cfg, weights, grads, NORM, &dh, &kept.x);
    for (l, block) in kept.blocks.iter().enumerate().rev() {
        let at = format!("model.layers.{l}");
        dx = block_backward(cfg, weights, grads, &at, &dx, block, balance);
    }
    add_grad(grads, EMBED, &embedding_backward(&dx, ids, cfg.vocab_size));
}

/// Adds the second prediction's share to dh (T, D) and to the gradient of the embedding.
fn run_mtp_backward(
    cfg: &Config,
    weights: &Tensors,
    grads: &mut Tensors,
    ids: &[u32],
    kept: &Kept,
    mtp: &MtpKept,
    dlogits: &[f64],
    dh: &mut [f64],
) {
    let (d, rows) = (cfg.hidden_size, mtp.embedded.len());
    let dnormed = linear_backward(weights, grads, cfg.head_name(), dlogits, &mtp.h);
    let du = rms_norm_backward(cfg, weights, grads, MTP_NORM, &dnormed, &mtp.u);
    // The block is dense: it has no balance loss.
    let du = block_backward(cfg, weights, grads, MTP_BLOCK, &du, &mtp.block, 0.0);
    let djoined = linear_backward(weights, grads, MTP_FC, &du, &mtp.joined);
    let half = |first: usize| -> Vec<f64> {
        djoined
            .chunks_exact(2 * d)
            .flat_map(|row| &row[first..first + d])
            .copied()
            .collect()
    };
    let (de, dg) = (half(0), half(d));
    let de = rms_norm_backward(cfg, weights, grads, MTP_NORM_EMBEDDING, &de, &mtp.embedded);
    add_grad(
        grads,
        EMBED,
        &embedding_backward(&de, &ids[1..], cfg.vocab_size),
    );
    let dg = rms_norm_backward(cfg, weights, grads, MTP_NORM_HIDDEN, &dg, &kept.h[..rows]);
    add_scaled(&mut dh[..rows], &dg, 1.0);
}

/// Both predictions and the losses of a batch. Sequences without tokens say nothing.
pub fn forward(
    cfg: &Config,
    weights: &Tensors,
    batch: &[Sequence],
    objective: &Objective,
) -> Output {
    pass(cfg, weights, batch, objective, None)
}

/// As [`forward`], with the gradient of the total loss for every weight.
pub fn forward_backward(
    cfg: &Config,
    weights: &Tensors,
    batch: &[Sequence],
    objective: &Objective,
) -> (Output, Tensors) {
    let zeros = |t: &Tensor| Tensor {
        shape: t.shape.clone(),
        data: vec![0.0; t.data.len()],
    };
    let mut grads = weights
        .iter()
        .map(|(name, t)| (name.clone(), zeros(t)))
        .collect();
    let output = pass(cfg, weights, batch, objective, Some(&mut grads));
    (output, grads)
}

fn pass(
    cfg: &Config,
    weights: &Tensors,
    batch: &[Sequence],
    objective: &Objective,
    mut grads: Option<&mut Tensors>,
) -> Output {
    // A loss is a mean over the batch: what it is divided by is known before the first sequence is run.
    let next_of = |sequence: &Sequence| sequence.targets(1, sequence.ids.len());
    let second_of = |sequence: &Sequence| sequence.targets(2, sequence.ids.len().saturating_sub(1));
    let next_scale = 1.0 / count(batch.iter().map(next_of));
    let mtp_scale = 1.0 / count(batch.iter().map(second_of));
    let alpha = objective.balance_alpha / batch.len() as f64;
    let (mut sequences, mut losses) = (Vec::new(), Losses::default());
    for sequence in batch {
        let output = run(cfg, weights, &sequence.ids);
        let has_tokens = !sequence.ids.is_empty();
        let next = next_of(sequence);
        let second = output
            .kept
            .mtp
            .as_ref()
            .map_or(vec![], |_| second_of(sequence));
        let worth = sequence.target_weights(next.len());
        losses.next_token += next_scale * dot(&worth, &cross_entropy(&output.logits, &next));
        losses.mtp += mtp_scale * sum(&cross_entropy(&output.mtp_logits, &second));
        let routings = output.kept.blocks.iter().filter_map(BlockKept::routing);
        for routing in routings.filter(|_| has_tokens) {
            let (scores, ids) = (&routing.scores, &routing.topk_ids);
            losses.balance += balance_loss(alpha, scores, ids, cfg.num_experts_per_tok);
        }
        if let Some(grads) = grads.as_deref_mut().filter(|_| has_tokens) {
            let scales: Vec<f64> = worth.iter().map(|worth| next_scale * worth).collect();
            let dlogits = cross_entropy_backward(&scales, &output.logits, &next);
            let scales = vec![objective.mtp_weight * mtp_scale; second.len()];
            let dmtp = cross_entropy_backward(&scales, &output.mtp_logits, &second);
            let (ids, kept) = (&sequence.ids, &output.kept);
            run_backward(cfg, weights, grads, ids, kept, &dlogits, &dmtp, alpha);
        }
        sequences.push(output);
    }
    losses.total = losses.next_token + objective.mtp_weight * losses.mtp + losses.balance;
    Output { sequences, losses }
}

/// The rows of a batch that have something to predict, at least 1.
fn count(targets: impl Iterator<Item = Vec<Option<u32>>>) -> f64 {
    targets.flatten().flatten().count().max(1) as f64
}

fn sum(x: &[f64]) -> f64 {
    x.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{assert_gradient, values};
    use crate::{NormPlacement, RopeScaling};
    use std::cell::RefCell;

    /// Every kind of layer; no two sizes alike.
    fn tiny() -> Config {
        Config {
            vocab_size: 11,
            hidden_size: 6,
            intermediate_size: 7,
            sliding_windows: vec![Some(3), Some(3), None],
            mlp_layer_types: vec![
                MlpLayerType::Dense,
                MlpLayerType::Sparse,
                MlpLayerType::Sparse,
            ],
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 2,
            rms_norm_eps: 0.1,
            rope_theta: 100.0,
            rope_scaling: None,
            full_attention_rope: false,
            norm_placement: NormPlacement::Before,
            has_qk_norm: true,
            tie_word_embeddings: false,
            num_experts: 4,
            num_experts_per_tok: 2,
            moe_intermediate_size: 3,
            num_shared_experts: 2,
            norm_topk_prob: true,
            routed_scaling_factor: 2.5,
            num_nextn_predict_layers: 1,
            mtp_sliding_window: None,
            swiglu_limits: vec![None; 3],
        }
    }

    /// Every question of the configuration answered the other way.
    fn otherwise() -> Config {
        Config {
            sliding_windows: vec![Some(2), None, Some(4)],
            mlp_layer_types: vec![MlpLayerType::Dense; 3],
            rope_scaling: Some(RopeScaling {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 32,
            }),
            full_attention_rope: true,
            norm_placement: NormPlacement::After,
            has_qk_norm: false,
            tie_word_embeddings: true,
            mtp_sliding_window: Some(3),
            swiglu_limits: vec![Some(0.3), None, Some(0.5), Some(0.4)],
            ..tiny()
        }
    }

    fn weights(cfg: &Config) -> Tensors {
        let tensor = |(seed, (name, shape)): (usize, (String, Vec<usize>))| {
            let around = if name.contains("norm") { 1.0 } else { 0.0 };
            let data = values(shape.iter().product(), seed);
            // A small bias, so that every expert is chosen by some token.
            let size = if name.contains("bias") { 0.15 } else { 0.5 };
            let data = data.iter().map(|x| around + size * x).collect();
            (name, Tensor { shape, data })
        };
        cfg.tensors().into_iter().enumerate().map(tensor).collect()
    }

    const OBJECTIVE: Objective = Objective {
        mtp_weight: 0.3,
        balance_alpha: 0.2,
    };

    /// Text, sequences too short for one prediction or the other, nothing, and a conversation.
    fn batch() -> Vec<Sequence> {
        vec![
            Sequence::text(&[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]),
            Sequence::text(&[6]),
            Sequence::text(&[5, 10]),
            Sequence::text(&[]),
            Sequence {
                ids: vec![7, 0, 3, 8, 8],
                is_target: vec![false, false, true, false, true],
                weights: vec![1.0, 1.0, 0.5, 1.0, -2.0],
            },
        ]
    }

    #[test]
    fn every_weight_has_the_gradient_of_finite_differences() {
        let without = Config {
            num_experts_per_tok: 3,
            norm_topk_prob: false,
            num_shared_experts: 0,
            num_nextn_predict_layers: 0,
            swiglu_limits: vec![Some(0.4), Some(0.2), Some(0.3)],
            ..tiny()
        };
        for cfg in [tiny(), without, otherwise()] {
            let (weights, batch) = (weights(&cfg), batch());
            let (_, grads) = forward_backward(&cfg, &weights, &batch, &OBJECTIVE);
            for (name, weight) in &weights {
                let grad = &grads[name].data;
                if name.ends_with("e_score_correction_bias") {
                    assert!(grad.iter().all(|&g| g == 0.0), "the choice has no gradient");
                    continue;
                }
                assert!(grad.iter().any(|&g| g != 0.0), "{name} takes part");
                let changed = RefCell::new(weights.clone());
                assert_gradient(name, grad, &weight.data, |data| {
                    if let Some(weight) = changed.borrow_mut().get_mut(name) {
                        weight.data.copy_from_slice(data);
                    }
                    forward(&cfg, &changed.borrow(), &batch, &OBJECTIVE)
                        .losses
                        .total
                });
            }
        }
    }

    #[test]
    fn the_total_is_the_weighted_sum_and_sequences_do_not_see_each_other() {
        let (cfg, batch) = (tiny(), batch());
        let weights = weights(&cfg);
        let together = forward(&cfg, &weights, &batch, &OBJECTIVE);
        let Losses {
            next_token,
            mtp,
            balance,
            total,
        } = together.losses;
        assert!((total - (next_token + 0.3 * mtp + balance)).abs() < 1e-12);
        let mut balances = 0.0;
        for (sequence, output) in batch.iter().zip(&together.sequences) {
            let alone = forward(&cfg, &weights, std::slice::from_ref(sequence), &OBJECTIVE);
            assert_eq!(alone.sequences[0].logits, output.logits);
            let rows = sequence.ids.len().saturating_sub(1);
            assert_eq!(output.mtp_logits.len(), rows * cfg.vocab_size);
            balances += alone.losses.balance / batch.len() as f64;
        }
        assert!((balances - balance).abs() < 1e-12, "a mean over sequences");
    }

    #[test]
    fn a_prompt_is_read_but_not_learned() {
        let (cfg, ids) = (tiny(), [7, 0, 3, 8, 8]);
        let weights = weights(&cfg);
        let loss = |is_target: [bool; 5]| {
            let sequence = Sequence {
                ids: ids.to_vec(),
                is_target: is_target.to_vec(),
                weights: vec![1.0; 5],
            };
            forward(&cfg, &weights, &[sequence], &OBJECTIVE)
                .losses
                .next_token
        };
        let all = loss([true; 5]);
        let (prompt, answer) = (
            loss([true, true, true, false, false]),
            loss([false, false, false, true, true]),
        );
        assert!((all - (prompt + answer) / 2.0).abs() < 1e-12, "two each");
        assert_eq!(
            loss([true, false, false, false, false]),
            0.0,
            "nothing before it"
        );
    }

    #[test]
    fn a_token_changes_no_logits_before_it() {
        let cfg = tiny();
        let weights = weights(&cfg);
        let logits = |ids: Vec<u32>| {
            let output = forward(&cfg, &weights, &[Sequence::text(&ids)], &OBJECTIVE);
            (
                output.sequences[0].logits.clone(),
                output.sequences[0].mtp_logits.clone(),
            )
        };
        let (a, mtp_a) = logits(vec![3, 1, 4, 1, 5]);
        let (b, mtp_b) = logits(vec![3, 1, 4, 2, 5]);
        let v = cfg.vocab_size;
        assert_eq!(a[..3 * v], b[..3 * v]);
        assert_ne!(a[3 * v..4 * v], b[3 * v..4 * v]);
        assert_eq!(mtp_a[..2 * v], mtp_b[..2 * v]);
        assert_ne!(
            mtp_a[2 * v..3 * v],
            mtp_b[2 * v..3 * v],
            "row 2 has seen token 3"
        );
    }
}
