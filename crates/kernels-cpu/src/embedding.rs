//! Token embedding: rows of a table, chosen by id.
//!
//! forward   x_t = E[id_t]
//! backward  dE[v] += sum over t with id_t = v of dx_t, in the order of t
//!
//! Shapes: T tokens, D hidden_size, V vocab. Bound by memory: forward reads and writes 4TD bytes.
//! Backward divides the columns among threads, not the tokens: two tokens with one id then never
//! meet on two threads, and their order stays that of the sequence.
//! No scaling by sqrt(D), no padding id.

use crate::Cpu;
use crate::pool::SharedMut;
use crate::row;
use crate::simd::Simd;

/// table (V, D), ids (T) -> x (T, D).
///
/// # Panics
/// When an id is not below V.
pub fn forward(cpu: &Cpu, x: &mut [f32], table: &[f32], ids: &[u32], d: usize) {
    check(table, ids, d);
    assert_eq!(x.len(), ids.len() * d, "x is (T, D)");
    let x = SharedMut::new(x);
    cpu.pool.for_ranges(ids.len(), row::grain(d), &|tokens| {
        // SAFETY: ranges of tokens are disjoint.
        let x = unsafe { x.slice(tokens.start * d..tokens.end * d) };
        for (x, &id) in x.chunks_exact_mut(d).zip(&ids[tokens]) {
            x.copy_from_slice(&table[id as usize * d..][..d]);
        }
    });
}

/// dx (T, D), ids (T) -> dtable (V, D). Adds to dtable.
///
/// # Panics
/// When an id is not below V.
pub fn backward(cpu: &Cpu, dtable: &mut [f32], dx: &[f32], ids: &[u32], d: usize) {
    check(dtable, ids, d);
    assert_eq!(dx.len(), ids.len() * d, "dx is (T, D)");
    let isa = cpu.isa();
    let dtable = SharedMut::new(dtable);
    cpu.pool
        .for_ranges(d, row::column_grain(ids.len()), &|columns| {
            let (first, len) = (columns.start, columns.len());
            let dtable = dtable.ptr();
            dispatch!(isa, backward_columns(
                dtable: *mut f32, dx: &[f32], ids: &[u32], d: usize, first: usize, len: usize,
            ));
        });
}

fn check(table: &[f32], ids: &[u32], d: usize) {
    assert!(d > 0 && table.len() % d == 0, "the table is (V, D)");
    let largest = ids.iter().max();
    assert!(
        largest.is_none_or(|&id| (id as usize) < table.len() / d),
        "an id is not in the vocabulary"
    );
}

/// # Safety
/// dtable (V, D) with every id below V, dx (T, D), `first + len <= d`, and no other thread touches
/// these columns of dtable.
#[inline(always)]
unsafe fn backward_columns<S: Simd>(
    dtable: *mut f32,
    dx: &[f32],
    ids: &[u32],
    d: usize,
    first: usize,
    len: usize,
) {
    for (t, &id) in ids.iter().enumerate() {
        // SAFETY: by the contract above.
        unsafe {
            let row = std::slice::from_raw_parts_mut(dtable.add(id as usize * d + first), len);
            row::add_assign::<S>(row, &dx[t * d + first..][..len]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::*;

    const DIMS: [(usize, usize, usize); 4] = [(1, 1, 1), (7, 5, 3), (33, 20, 17), (300, 50, 384)];

    #[test]
    fn backward_adds_in_token_order() {
        on_every_isa(|cpu| {
            for (t, v, d) in DIMS {
                let (dx, ids, old) = (
                    normal(t * d, "dx"),
                    below(t, v, "ids"),
                    normal(v * d, "old"),
                );
                let mut expected = old.clone();
                for (dx, &id) in dx.chunks(d).zip(&ids) {
                    for (e, dx) in expected[id as usize * d..].iter_mut().zip(dx) {
                        *e += dx;
                    }
                }
                let mut dtable = added(&old);
                backward(cpu, &mut dtable, &dx, &ids, d);
                assert_eq!(bits(&dtable.finish()), bits(&expected));
            }
        });
    }

    #[test]
    fn backward_has_the_same_bits_on_any_number_of_threads() {
        let (t, v, d) = (1000, 9, 200);
        let (dx, ids) = (normal(t * d, "dx"), below(t, v, "ids"));
        same_bits_on_any_number_of_threads(|cpu| {
            let mut dtable = vec![0.0; v * d];
            backward(cpu, &mut dtable, &dx, &ids, d);
            dtable
        });
    }

    #[test]
    #[should_panic(expected = "an id is not in the vocabulary")]
    fn an_id_outside_the_vocabulary_is_refused() {
        let cpu = Cpu::new(crate::Isa::Portable, 1);
        forward(&cpu, &mut [0.0; 4], &[0.0; 8], &[4, 0], 2);
    }
}
