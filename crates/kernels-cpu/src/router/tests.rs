//! Tests of the router.

use super::*;
use crate::check::*;

fn shape(e: usize, a: usize, norm_topk_prob: bool) -> RouterShape {
    RouterShape {
        num_experts: e,
        num_experts_per_tok: a,
        norm_topk_prob,
        routed_scaling_factor: 2.5,
    }
}

const SHAPES: [(usize, usize, usize); 6] = [
    (1, 1, 1),
    (5, 3, 3),
    (33, 17, 4),
    (7, 40, 2),
    (200, 128, 8),
    (40, 257, 9),
];

type Forward = (Vec<f32>, Vec<u32>, Vec<f32>);

fn run(cpu: &Cpu, logits: &[f32], bias: &[f32], shape: RouterShape) -> Forward {
    let chosen = logits.len() / shape.num_experts * shape.num_experts_per_tok;
    let (mut scores, mut weights) = (output(logits.len()), output(chosen));
    let mut ids = Guarded::new(&vec![u32::MAX; chosen], 12_345);
    forward(
        cpu,
        &mut scores,
        &mut ids,
        &mut weights,
        logits,
        bias,
        shape,
    );
    (scores.finish(), ids.finish(), weights.finish())
}

#[test]
fn the_choice_is_that_of_a_stable_sort_by_score_plus_bias() {
    on_every_isa(|cpu| {
        for (t, e, a) in SHAPES {
            // Few distinct values, so that ties are common.
            let logits: Vec<f32> = below(t * e, 5, "z")
                .iter()
                .map(|&z| z as f32 - 2.0)
                .collect();
            let bias: Vec<f32> = below(e, 3, "bias").iter().map(|&b| b as f32).collect();
            let (scores, ids, _) = run(cpu, &logits, &bias, shape(e, a, true));
            for (s, ids) in scores.chunks(e).zip(ids.chunks(a)) {
                let mut order: Vec<u32> = (0..e as u32).collect();
                let value = |&i: &u32| s[i as usize] + bias[i as usize];
                order.sort_by(|x, y| value(y).total_cmp(&value(x)));
                assert_eq!(ids, &order[..a]);
            }
        }
    });
}

#[test]
fn the_bias_changes_the_choice_and_not_the_weights() {
    on_every_isa(|cpu| {
        let logits = [2.0, 1.0, 0.0, -1.0];
        let (_, ids, _) = run(cpu, &logits, &[0.0; 4], shape(4, 2, true));
        assert_eq!(ids, [0, 1]);
        let (s, ids, weights) = run(cpu, &logits, &[0.0, 0.0, 0.0, 5.0], shape(4, 2, true));
        assert_eq!(ids, [3, 0]);
        assert!((weights[0] - 2.5 * s[3] / (s[3] + s[0])).abs() < 1e-6);
    });
}

#[test]
fn ids_stay_distinct_experts_when_logits_are_not_numbers() {
    on_every_isa(|cpu| {
        let mut logits = normal(40, "z");
        for i in [0, 7, 39] {
            logits[i] = f32::NAN;
        }
        for logits in [logits, vec![f32::NAN; 40]] {
            let (_, mut ids, _) = run(cpu, &logits, &[0.0; 40], shape(40, 8, true));
            ids.sort_unstable();
            ids.dedup();
            assert!(ids.len() == 8 && ids.iter().all(|&id| id < 40), "{ids:?}");
        }
    });
}

#[test]
fn an_even_load_has_the_loss_alpha() {
    on_every_isa(|cpu| {
        let (shape, mut coeff) = (shape(4, 1, true), [0.0; 4]);
        let ids = [0, 1, 2, 3];
        let loss = balance_loss(cpu, &mut coeff, &[0.5; 16], &ids, &[0, 4], 0.25, shape);
        assert_eq!(loss, 0.25);
        let loss = balance_loss(cpu, &mut coeff, &[0.5; 16], &[2; 4], &[0, 4], 0.25, shape);
        assert_eq!((loss, coeff), (0.25, [0.0, 0.0, 0.25, 0.0]));
    });
}

#[test]
fn a_row_has_the_same_bits_alone_and_on_any_number_of_threads() {
    let (t, e, a) = (500, 131, 8);
    let shape = shape(e, a, true);
    let (logits, bias, dweights) = (normal(t * e, "z"), normal(e, "bias"), normal(t * a, "dw"));
    let cu_seqlens = [0, 100, 101, 101, 250, 500];
    same_bits_on_any_number_of_threads(|cpu| {
        let (scores, ids, weights) = run(cpu, &logits, &bias, shape);
        let (mut coeff, mut dlogits) = (vec![0.0; 5 * e], vec![0.0; t * e]);
        let loss = balance_loss(cpu, &mut coeff, &scores, &ids, &cu_seqlens, 0.01, shape);
        backward(
            cpu,
            &mut dlogits,
            &dweights,
            &scores,
            &ids,
            &coeff,
            &cu_seqlens,
            shape,
        );
        for (row, b) in [(0, 0), (100, 1), (101, 3), (499, 4)] {
            let (s1, ids1, w1) = run(cpu, &logits[row * e..][..e], &bias, shape);
            assert_eq!(bits(&s1), bits(&scores[row * e..][..e]));
            assert_eq!(ids1, ids[row * a..][..a]);
            assert_eq!(bits(&w1), bits(&weights[row * a..][..a]));
            let (mut d1, coeff) = (vec![0.0; e], &coeff[b * e..][..e]);
            let dw = &dweights[row * a..][..a];
            backward(cpu, &mut d1, dw, &s1, &ids1, coeff, &[0, 1], shape);
            assert_eq!(bits(&d1), bits(&dlogits[row * e..][..e]));
        }
        let ids: Vec<f32> = ids.iter().map(|&id| id as f32).collect();
        [scores, ids, weights, coeff, dlogits, vec![loss]].concat()
    });
}

#[test]
#[should_panic(expected = "cu_seqlens does not rise from 0 to T")]
fn sequences_that_do_not_cover_the_tokens_are_refused() {
    let cpu = Cpu::new(crate::Isa::Portable, 1);
    let shape = shape(2, 1, true);
    balance_loss(&cpu, &mut [0.0; 2], &[0.5; 4], &[0, 1], &[0, 1], 1.0, shape);
}
