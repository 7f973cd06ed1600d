//! Tests of the permutation and the combination.

use super::*;
use crate::check::*;

const SHAPES: [(usize, usize, usize, usize); 5] = [
    (1, 1, 1, 1),
    (3, 4, 2, 5),
    (17, 9, 3, 33),
    (5, 128, 8, 100),
    (300, 16, 4, 384),
];

/// A distinct experts for each token.
fn choices(t: usize, e: usize, a: usize) -> Vec<u32> {
    let first = below(t, e, "first");
    first
        .iter()
        .flat_map(|&f| (0..a as u32).map(move |i| (f + i * i + i) % e as u32))
        .collect()
}

fn sorted(cpu: &Cpu, ids: &[u32], e: usize, a: usize) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let out = |len| Guarded::new(&vec![u32::MAX; len], 0xdead);
    let (mut offsets, mut rows, mut pos) = (out(e + 1), out(ids.len()), out(ids.len()));
    permute(cpu, &mut offsets, &mut rows, &mut pos, ids, e, a);
    (offsets.finish(), rows.finish(), pos.finish())
}

#[test]
fn permute_is_a_stable_sort_by_expert() {
    let cpu = Cpu::new(crate::Isa::Portable, 1);
    for (t, e, a, _) in SHAPES {
        let ids = choices(t, e, a);
        let (offsets, rows, pos) = sorted(&cpu, &ids, e, a);
        let mut order: Vec<usize> = (0..t * a).collect();
        order.sort_by_key(|&choice| ids[choice]);
        for (row, &choice) in order.iter().enumerate() {
            assert_eq!((rows[row], pos[choice]), ((choice / a) as u32, row as u32));
        }
        for expert in 0..=e {
            let before = ids.iter().filter(|&&id| (id as usize) < expert).count();
            assert_eq!(offsets[expert], before as u32);
        }
    }
}

#[test]
fn combine_and_unpermute_agree_with_f64() {
    on_every_isa(|cpu| {
        for (t, e, a, d) in SHAPES {
            let (_, _, pos) = sorted(cpu, &choices(t, e, a), e, a);
            let (out, w) = (normal(t * a * d, "out"), normal(t * a, "w"));
            let expected = |weight: &dyn Fn(usize) -> f64, start: &[f32]| -> Vec<f64> {
                let at = |i: usize, c: usize| f64::from(out[pos[c] as usize * d + i % d]);
                let sum = |i: usize| -> f64 {
                    (i / d * a..(i / d + 1) * a)
                        .map(|c| weight(c) * at(i, c))
                        .sum()
                };
                (0..t * d).map(|i| sum(i) + f64::from(start[i])).collect()
            };
            let (zeros, old) = (vec![0.0; t * d], normal(t * d, "old"));
            let by_weight = |c: usize| f64::from(w[c]);

            let mut y = output(t * d);
            combine(cpu, &mut y, &out, &pos, &w, d, Store::Overwrite);
            assert_close(&y.finish(), &expected(&by_weight, &zeros), "combine");
            let mut y = added(&old);
            combine(cpu, &mut y, &out, &pos, &w, d, Store::Add);
            assert_close(&y.finish(), &expected(&by_weight, &old), "combine, added");
            let mut dx = added(&old);
            unpermute_add(cpu, &mut dx, &out, &pos, a, d);
            assert_close(&dx.finish(), &expected(&|_| 1.0, &old), "unpermute_add");
        }
    });
}

#[test]
fn combine_backward_agrees_with_finite_differences() {
    on_every_isa(|cpu| {
        for (t, e, a, d) in [(1, 1, 1, 1), (3, 4, 2, 5), (2, 9, 3, 33)] {
            let (_, _, pos) = sorted(cpu, &choices(t, e, a), e, a);
            let (out, w, dy) = (
                normal(t * a * d, "out"),
                normal(t * a, "w"),
                normal(t * d, "dy"),
            );
            let total = |out: &[f64], w: &[f64]| -> f64 {
                let term = |c: usize, j: usize| {
                    w[c] * out[pos[c] as usize * d + j] * f64::from(dy[c / a * d + j])
                };
                (0..t * a)
                    .flat_map(|c| (0..d).map(move |j| (c, j)))
                    .map(|(c, j)| term(c, j))
                    .sum()
            };
            let (out64, w64) = (to_f64(&out), to_f64(&w));
            let (mut dout, mut dw) = (output(t * a * d), output(t * a));
            combine_backward(cpu, &mut dout, &mut dw, &dy, &out, &pos, &w, d);
            let expected = finite_difference(&out64, |out| total(out, &w64));
            assert_close(&dout.finish(), &expected, "dout");
            let expected = finite_difference(&w64, |w| total(&out64, w));
            assert_close(&dw.finish(), &expected, "dw");
        }
    });
}

#[test]
fn a_token_has_the_same_bits_alone_and_on_any_number_of_threads() {
    let (t, e, a, d) = (100, 16, 4, 203);
    let portable = Cpu::new(crate::Isa::Portable, 1);
    let (_, _, pos) = sorted(&portable, &choices(t, e, a), e, a);
    let (out, w, dy) = (
        normal(t * a * d, "out"),
        normal(t * a, "w"),
        normal(t * d, "dy"),
    );
    same_bits_on_any_number_of_threads(|cpu| {
        let (mut y, mut dx) = (vec![0.0; t * d], normal(t * d, "dx"));
        combine(cpu, &mut y, &out, &pos, &w, d, Store::Overwrite);
        unpermute_add(cpu, &mut dx, &out, &pos, a, d);
        let (mut dout, mut dw) = (vec![0.0; t * a * d], vec![0.0; t * a]);
        combine_backward(cpu, &mut dout, &mut dw, &dy, &out, &pos, &w, d);
        // Token 57 alone, its rows in the order of its choices.
        let rows = &pos[57 * a..58 * a];
        let own = |x: &[f32]| -> Vec<f32> {
            rows.iter()
                .flat_map(|&row| x[row as usize * d..][..d].to_vec())
                .collect()
        };
        let (own_pos, own_w) = ([0, 1, 2, 3], &w[57 * a..58 * a]);
        let (mut y1, mut dout1, mut dw1) = (vec![0.0; d], vec![0.0; a * d], vec![0.0; a]);
        combine(
            cpu,
            &mut y1,
            &own(&out),
            &own_pos,
            own_w,
            d,
            Store::Overwrite,
        );
        let own_dy = &dy[57 * d..58 * d];
        combine_backward(
            cpu,
            &mut dout1,
            &mut dw1,
            own_dy,
            &own(&out),
            &own_pos,
            own_w,
            d,
        );
        assert_eq!(bits(&y1), bits(&y[57 * d..58 * d]));
        assert_eq!(bits(&dout1), bits(&own(&dout)));
        assert_eq!(bits(&dw1), bits(&dw[57 * a..58 * a]));
        [y, dx, dout, dw].concat()
    });
}

#[test]
#[should_panic(expected = "pos is not a permutation of the rows")]
fn two_choices_of_one_row_are_refused() {
    let cpu = Cpu::new(crate::Isa::Portable, 1);
    let (mut dout, mut dw) = ([0.0; 2], [0.0; 2]);
    combine_backward(
        &cpu,
        &mut dout,
        &mut dw,
        &[1.0; 2],
        &[1.0; 2],
        &[1, 1],
        &[1.0; 2],
        1,
    );
}
