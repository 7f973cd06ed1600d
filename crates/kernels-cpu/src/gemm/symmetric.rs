//! Products that are symmetric: one triangle is computed, and mirrored.
//!
//! gram              c (n, n) = x (m, n)^T x
//! matmul_symmetric  y (n, n) = x (n, n) B      where x B is symmetric, as the square of a symmetric matrix is
//!
//! Element (i, j) is the chain of (j, i) with factors exchanged: the bits are those of the whole product.

use super::tn::{Half, groups_tn};
use super::{Chain, Next, Packed, Packer, Rows, rows_times};
use crate::pool::SharedMut;
use crate::{Compute, Cpu};
use std::ops::Range;

/// Rows that are multiplied with the same panels: those that the last of them needs.
const BLOCK: usize = 96;

/// c (n, n) = x (m, n)^T x; n follows from the length of c.
pub fn gram(cpu: &Cpu, compute: Compute, c: &mut [f32], x: &[f32], m: usize) {
    let n = side(c);
    assert_eq!(x.len(), m * n, "gram: x is not (m, n)");
    let x = Rows::in_order(x, n);
    c.fill(0.0);
    groups_tn(cpu, compute, c, x, x, 1, Half::Lower, |_| 0..m);
    mirror(c, n);
}

/// y (n, n) = x (n, n) times the packed matrix, which are such that y is symmetric.
pub fn matmul_symmetric(cpu: &Cpu, y: &mut [f32], x: &[f32], b: &Packed) {
    let (n, isa, width) = (b.n(), cpu.isa(), b.panel_width());
    assert_eq!(b.k(), n, "matmul_symmetric: the matrix is not square");
    assert_eq!(x.len(), n * n, "matmul_symmetric: x is not (n, n)");
    assert_eq!(y.len(), n * n, "matmul_symmetric: y is not (n, n)");
    let x = Rows::in_order(x, n);
    let block = |idx: usize| -> Range<usize> { idx * BLOCK..n.min((idx + 1) * BLOCK) };
    let (count, out, pool) = (n.div_ceil(BLOCK), SharedMut::new(y), &cpu.pool);
    pool.for_each_with(count, &|| Packer::new(x), &|packer, idx| {
        let rows = block(idx);
        let panels = 0..rows.end.div_ceil(width);
        let next = pool.next_of(idx, count).map(|idx| Next {
            rows: block(idx),
            b,
            panel: 0,
        });
        rows_times(isa, out, packer, rows, b, panels, Chain::Start, next);
    });
    mirror(y, n);
}

/// The side of a square matrix.
fn side(c: &[f32]) -> usize {
    let n = c.len().isqrt();
    assert_eq!(c.len(), n * n, "the matrix is not square");
    n
}

/// What is below the diagonal, above it; in squares that stay in the first-level cache.
fn mirror(c: &mut [f32], n: usize) {
    const SIDE: usize = 16;
    for top in (0..n).step_by(SIDE) {
        for left in (0..=top).step_by(SIDE) {
            for i in top..n.min(top + SIDE) {
                for j in left..i.min(left + SIDE) {
                    c[j * n + i] = c[i * n + j];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{matmul, matmul_tn};
    use crate::{Isa, Store};
    use numerics::Philox;

    #[test]
    fn a_triangle_and_its_mirror_have_the_bits_of_the_whole() {
        for isa in Isa::available() {
            for (threads, n, m) in [
                (1, 1, 1),
                (1, 37, 70),
                (3, 200, 33),
                (2, 97, 400),
                (1, 530, 40),
                (2, 530, 33),
            ] {
                let cpu = Cpu::new(isa, threads);
                let philox = Philox::new(7, "symmetric");
                let x: Vec<f32> = (0..m * n).map(|i| philox.normal(i as u64)).collect();
                for compute in [Compute::F32, Compute::Bf16] {
                    let (mut whole, mut half) = (vec![0.0; n * n], vec![f32::NAN; n * n]);
                    // The half first: what the whole leaves packed would do for it, too.
                    gram(&cpu, compute, &mut half, &x, m);
                    matmul_tn(&cpu, compute, &mut whole, &x, &x, m);
                    assert!(whole == half, "{} gram {n} {m}", isa.name());

                    let mut b = Packed::new(isa, compute, n, n);
                    b.pack(&cpu, &whole);
                    let (mut square, mut half) = (vec![0.0; n * n], vec![f32::NAN; n * n]);
                    matmul(&cpu, &mut square, &whole, &b, Store::Overwrite);
                    matmul_symmetric(&cpu, &mut half, &whole, &b);
                    assert!(square == half, "{} square {n}", isa.name());
                }
            }
        }
    }
}
