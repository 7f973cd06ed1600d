//! Muon: momentum, made orthogonal by Newton-Schulz steps, for the matrices of the network.
//!
//! m = mu m + g   u = g + mu m (Nesterov) or m   X = u / |u|_F
//! X <- X (a I + b A + c A^2), A = X^T X, five times, (a, b, c) = (3.4445, -4.7750, 2.0315)
//! w -= lr (0.2 sqrt(max(rows, cols)) X + wd w)
//!
//! Source: Jordan et al. 2024 (Muon); Liu et al. 2025, arXiv 2502.16982, sections 2.1-2.2 for the update's
//! scale. Each matrix is computed whole by one thread, so the bits do not depend on their number.

use crate::gemm::{self, Packed, matmul, matmul_symmetric};
use crate::row::{for_lanes, load, store};
use crate::simd::Simd;
use crate::{Compute, Cpu, Isa, Store, elementwise};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Settings of one update.
#[derive(Clone, Copy, Debug)]
pub struct Muon {
    /// Learning rate.
    pub lr: f32,
    /// mu.
    pub momentum: f32,
    /// Whether the gradient is added once more to the momentum.
    pub nesterov: bool,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Newton-Schulz steps.
    pub ns_steps: usize,
}

/// One matrix with its momentum and gradient, all (rows, cols).
pub struct Matrix<'a> {
    /// Weights.
    pub w: &'a mut [f32],
    /// Momentum.
    pub momentum: &'a mut [f32],
    /// Gradient.
    pub grad: &'a [f32],
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
}

const A: f32 = 3.4445;
const B: f32 = -4.7750;
const C: f32 = 2.0315;

/// One update of every matrix; `grad_scale` multiplies the gradients.
pub fn step(cpu: &Cpu, matrices: &mut [Matrix], grad_scale: f32, params: &Muon) {
    let isa = cpu.isa();
    // Longest first, so that what is left at the end is short.
    let mut matrices: Vec<&mut Matrix> = matrices.iter_mut().collect();
    matrices.sort_by_key(|m| std::cmp::Reverse(m.rows * m.cols * m.rows.min(m.cols)));
    let matrices: Vec<Mutex<&mut Matrix>> = matrices.into_iter().map(Mutex::new).collect();
    let idle: Mutex<Vec<Work>> = Mutex::new(Vec::new());
    cpu.pool.for_each(matrices.len(), &|item| {
        let free = lock(&idle).pop();
        let mut work = free.unwrap_or_else(|| Work::new(isa));
        work.update(&mut lock(&matrices[item]), grad_scale, params);
        lock(&idle).push(work);
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Working memory for one matrix; it serves the next one again.
struct Work {
    cpu: Cpu,         // one thread
    u: Vec<f32>,      // (rows, cols), the update
    x: Vec<f32>,      // (l, s), l >= s: the iterate, or its transpose
    next: Vec<f32>,   // (l, s)
    gram: Vec<f32>,   // (s, s), x^T x
    square: Vec<f32>, // (s, s), its square, then the polynomial
    packed: Packed,   // (s, s)
}

impl Work {
    fn new(isa: Isa) -> Work {
        Work {
            cpu: Cpu::serial(isa),
            u: vec![],
            x: vec![],
            next: vec![],
            gram: vec![],
            square: vec![],
            packed: Packed::new(isa, Compute::F32, 1, 1),
        }
    }

    fn update(&mut self, matrix: &mut Matrix, grad_scale: f32, params: &Muon) {
        let (rows, cols, isa) = (matrix.rows, matrix.cols, self.cpu.isa());
        self.u.resize(rows * cols, 0.0);
        let (u, m, g) = (&mut self.u[..], &mut *matrix.momentum, matrix.grad);
        let (mu, nesterov) = (params.momentum, params.nesterov);
        assert!(m.len() == u.len() && g.len() == u.len() && matrix.w.len() == u.len());
        dispatch!(isa, momentum_in(
            u: &mut [f32], m: &mut [f32], g: &[f32], grad_scale: f32, mu: f32, nesterov: bool,
        ));
        self.orthogonalise(rows, cols, params.ns_steps);
        let scale = params.lr * 0.2 * (rows.max(cols) as f32).sqrt();
        let keep = 1.0 - params.lr * params.weight_decay;
        let (w, u) = (&mut *matrix.w, &self.u[..]);
        dispatch!(isa, apply_in(w: &mut [f32], u: &[f32], keep: f32, scale: f32));
    }

    /// The Newton-Schulz iterate of u (rows, cols), in its place: singular values pushed towards one.
    /// X X^T X = X (X^T X), so that the small square matrix may stand on the side that packs nothing
    /// but itself: x is tall, perhaps as the transpose.
    fn orthogonalise(&mut self, rows: usize, cols: usize, steps: usize) {
        let Work {
            cpu,
            u,
            x,
            next,
            gram,
            square,
            packed,
        } = self;
        let isa = cpu.isa();
        let norm = elementwise::sum_squares(cpu, u).sqrt() as f32 + 1e-7;
        elementwise::scale(cpu, u, 1.0 / norm);
        let (s, l) = (rows.min(cols), rows.max(cols));
        for (memory, len) in [
            (&mut *x, s * l),
            (next, s * l),
            (gram, s * s),
            (square, s * s),
        ] {
            memory.resize(len, 0.0);
        }
        packed.reshape(s, s);
        if rows < cols {
            transpose(x, u, rows, cols);
        } else {
            std::mem::swap(x, u);
        }
        for _ in 0..steps {
            gemm::gram(cpu, Compute::F32, gram, x, l);
            packed.pack_transposed(cpu, gram);
            matmul_symmetric(cpu, square, gram, packed);
            let (p, g) = (&mut square[..], &gram[..]);
            dispatch!(isa, polynomial_in(p: &mut [f32], g: &[f32]));
            for i in 0..s {
                square[i * s + i] += A;
            }
            packed.pack_transposed(cpu, square);
            matmul(cpu, next, x, packed, Store::Overwrite);
            std::mem::swap(x, next);
        }
        if rows < cols {
            transpose(u, x, cols, rows);
        } else {
            std::mem::swap(x, u);
        }
    }
}

/// m = mu m + g, u = g + mu m or m, of the scaled gradient.
///
/// # Safety
/// As for [`Simd`]; equal lengths.
#[inline(always)]
unsafe fn momentum_in<S: Simd>(
    u: &mut [f32],
    m: &mut [f32],
    g: &[f32],
    grad_scale: f32,
    mu: f32,
    nesterov: bool,
) {
    let (len, u, m, g) = (u.len(), u.as_mut_ptr(), m.as_mut_ptr(), g.as_ptr());
    // SAFETY: `i + n <= len`.
    unsafe {
        let (grad_scale, mu) = (S::splat(grad_scale), S::splat(mu));
        for_lanes!(S, len, |i, n| {
            let g = S::mul(load::<S>(g.add(i), n), grad_scale);
            let new = S::fma(mu, load::<S>(m.add(i), n), g);
            store::<S>(m.add(i), new, n);
            store::<S>(u.add(i), if nesterov { S::fma(mu, new, g) } else { new }, n);
        });
    }
}

/// w = keep w - scale u.
///
/// # Safety
/// As for [`Simd`]; equal lengths.
#[inline(always)]
unsafe fn apply_in<S: Simd>(w: &mut [f32], u: &[f32], keep: f32, scale: f32) {
    let (len, w, u) = (w.len(), w.as_mut_ptr(), u.as_ptr());
    // SAFETY: `i + n <= len`.
    unsafe {
        let (keep, minus_scale) = (S::splat(keep), S::splat(-scale));
        for_lanes!(S, len, |i, n| {
            let kept = S::mul(load::<S>(w.add(i), n), keep);
            store::<S>(
                w.add(i),
                S::fma(minus_scale, load::<S>(u.add(i), n), kept),
                n,
            );
        });
    }
}

/// p = b g + c p.
///
/// # Safety
/// As for [`Simd`]; equal lengths.
#[inline(always)]
unsafe fn polynomial_in<S: Simd>(p: &mut [f32], g: &[f32]) {
    let (len, p, g) = (p.len(), p.as_mut_ptr(), g.as_ptr());
    // SAFETY: `i + n <= len`.
    unsafe {
        let (b, c) = (S::splat(B), S::splat(C));
        for_lanes!(S, len, |i, n| {
            let square = S::mul(c, load::<S>(p.add(i), n));
            store::<S>(p.add(i), S::fma(b, load::<S>(g.add(i), n), square), n);
        });
    }
}

/// x (rows, cols) -> y (cols, rows), in squares that stay in the first-level cache.
fn transpose(y: &mut [f32], x: &[f32], rows: usize, cols: usize) {
    const SIDE: usize = 16;
    for top in (0..rows).step_by(SIDE) {
        for left in (0..cols).step_by(SIDE) {
            for c in left..cols.min(left + SIDE) {
                for r in top..rows.min(top + SIDE) {
                    y[c * rows + r] = x[r * cols + c];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use numerics::Philox;

    #[test]
    fn newton_schulz_brings_singular_values_near_one() {
        for (rows, cols) in [(16, 40), (40, 16), (1, 9), (17, 17)] {
            let philox = Philox::new(1, "muon");
            let u: Vec<f32> = (0..rows * cols).map(|i| philox.normal(i as u64)).collect();
            let mut work = Work {
                u,
                ..Work::new(Isa::detect())
            };
            work.orthogonalise(rows, cols, 5);
            let x = work.u;
            // Trace of x x^T is the sum of the squared singular values.
            let trace: f32 = x.iter().map(|v| v * v).sum();
            let mean = trace / rows.min(cols) as f32;
            assert!((0.4..1.5).contains(&mean), "{rows}x{cols}: {mean}");
        }
    }

    /// a (n, k) b (k, m), both given by their elements.
    fn product(
        (n, k, m): (usize, usize, usize),
        a: impl Fn(usize, usize) -> f64,
        b: impl Fn(usize, usize) -> f64,
    ) -> Vec<f64> {
        (0..n * m)
            .map(|at| (0..k).map(|d| a(at / m, d) * b(d, at % m)).sum())
            .collect()
    }

    /// One step from no momentum, in f64 and with X X^T on the left, as published.
    fn oracle(w: &[f32], g: &[f32], rows: usize, cols: usize, scale: f64, p: &Muon) -> Vec<f64> {
        let again = if p.nesterov {
            1.0 + f64::from(p.momentum)
        } else {
            1.0
        };
        let mut x: Vec<f64> = g.iter().map(|&g| again * scale * f64::from(g)).collect();
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        x.iter_mut().for_each(|x| *x /= norm);
        for _ in 0..p.ns_steps {
            let x_at = |i: usize, j: usize| x[i * cols + j];
            let gram = product((rows, cols, rows), x_at, |i, j| x_at(j, i));
            let gram_at = |i: usize, j: usize| gram[i * rows + j];
            let square = product((rows, rows, rows), gram_at, gram_at);
            let mixed = |i: usize, j: usize| {
                f64::from(B) * gram_at(i, j) + f64::from(C) * square[i * rows + j]
            };
            let moved = product((rows, rows, cols), mixed, x_at);
            x = x
                .iter()
                .zip(&moved)
                .map(|(x, m)| f64::from(A) * x + m)
                .collect();
        }
        let lr = f64::from(p.lr);
        let size = lr * 0.2 * (rows.max(cols) as f64).sqrt();
        let keep = 1.0 - lr * f64::from(p.weight_decay);
        w.iter()
            .zip(&x)
            .map(|(&w, x)| f64::from(w) * keep - size * x)
            .collect()
    }

    #[test]
    fn a_step_is_that_of_the_formulas_on_any_number_of_threads() {
        let shapes = [(5, 9), (33, 20), (16, 16), (1, 7), (40, 3)];
        for (isa, nesterov) in Isa::available()
            .into_iter()
            .flat_map(|i| [(i, true), (i, false)])
        {
            let p = Muon {
                lr: 0.1,
                momentum: 0.95,
                nesterov,
                weight_decay: 0.1,
                ns_steps: 5,
            };
            let normal = |len: usize, name: &str| -> Vec<f32> {
                (0..len)
                    .map(|i| Philox::new(3, name).normal(i as u64))
                    .collect()
            };
            let run = |threads| {
                let tensors = |name: &str| shapes.map(|(r, c)| normal(r * c, name));
                let (mut w, g) = (tensors("w"), tensors("g"));
                let mut momentum = shapes.map(|(r, c)| vec![0.0; r * c]);
                let mut matrices: Vec<Matrix> = (w.iter_mut().zip(&mut momentum))
                    .zip(g.iter().zip(shapes))
                    .map(|((w, momentum), (grad, (rows, cols)))| Matrix {
                        w,
                        momentum,
                        grad,
                        rows,
                        cols,
                    })
                    .collect();
                step(&Cpu::new(isa, threads), &mut matrices, 0.5, &p);
                w
            };
            let got = run(1);
            assert!(run(3) == got, "{}: other bits on three threads", isa.name());
            for (got, (rows, cols)) in got.iter().zip(shapes) {
                let (w, g) = (normal(rows * cols, "w"), normal(rows * cols, "g"));
                let want = oracle(&w, &g, rows, cols, 0.5, &p);
                // Five steps magnify a rounding of a small singular value by at most A^5 = 485.
                for (got, want) in got.iter().zip(want) {
                    assert!(
                        (f64::from(*got) - want).abs() < 1e-4,
                        "{rows}x{cols}: {got} for {want}"
                    );
                }
            }
        }
    }
}
