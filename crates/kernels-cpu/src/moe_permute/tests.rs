//! Tests of the permutation and the combination.

use super::*;
use crate::check::*;

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
