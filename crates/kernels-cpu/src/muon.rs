//! Muon: momentum, made orthogonal by Newton-Schulz steps, for the matrices of the network.
//!
//! m = mu m + g   u = g + mu m (Nesterov) or m   X = u / |u|_F
//! X <- a X + (b A + c A^2) X, A = X X^T, five times, (a, b, c) = (3.4445, -4.7750, 2.0315)
//! w -= lr (0.2 sqrt(max(rows, cols)) X + wd w)
//!
//! Source: Jordan et al. 2024 (Muon); Liu et al. 2025, arXiv 2502.16982, sections 2.1-2.2 for the update's
//! scale. Each matrix is computed whole by one thread, so the bits do not depend on their number.

use crate::Cpu;
use crate::Store;
use crate::gemm::{Compute, Packed, matmul};
use std::sync::Mutex;

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
    let threads = cpu.pool.threads();
    // Longest first to the least loaded thread: fixed by the sizes alone.
    let mut order: Vec<usize> = (0..matrices.len()).collect();
    let cost = |m: &Matrix| m.rows * m.cols * m.rows.min(m.cols);
    order.sort_by_key(|&i| std::cmp::Reverse(cost(&matrices[i])));
    let (mut load, mut parts) = (vec![0usize; threads], Vec::new());
    parts.resize_with(threads, Vec::new);
    let mut thread_of = vec![0; matrices.len()];
    for i in order {
        let thread = (0..threads).min_by_key(|&t| load[t]).unwrap_or(0);
        load[thread] += cost(&matrices[i]);
        thread_of[i] = thread;
    }
    for (matrix, thread) in matrices.iter_mut().zip(thread_of) {
        parts[thread].push(matrix);
    }
    let parts: Vec<Mutex<Vec<&mut Matrix>>> = parts.into_iter().map(Mutex::new).collect();
    cpu.pool.run(&|thread| {
        let serial = Cpu::serial(isa);
        let mut part = parts[thread]
            .lock()
            .expect("each thread locks its own part, once");
        for matrix in part.iter_mut() {
            update(&serial, matrix, grad_scale, params);
        }
    });
}

fn update(cpu: &Cpu, matrix: &mut Matrix, grad_scale: f32, params: &Muon) {
    let (rows, cols) = (matrix.rows, matrix.cols);
    let mu = params.momentum;
    let mut u = vec![0.0f32; rows * cols];
    for ((u, m), &g) in u
        .iter_mut()
        .zip(matrix.momentum.iter_mut())
        .zip(matrix.grad)
    {
        let g = g * grad_scale;
        *m = mu * *m + g;
        *u = if params.nesterov { g + mu * *m } else { *m };
    }
    let x = orthogonalise(cpu, u, rows, cols, params.ns_steps);
    let scale = params.lr * 0.2 * (rows.max(cols) as f32).sqrt();
    let keep = 1.0 - params.lr * params.weight_decay;
    for (w, &x) in matrix.w.iter_mut().zip(&x) {
        *w = *w * keep - scale * x;
    }
}

/// The Newton-Schulz iterate of u (rows, cols): singular values pushed towards one.
fn orthogonalise(cpu: &Cpu, u: Vec<f32>, rows: usize, cols: usize, steps: usize) -> Vec<f32> {
    let norm = u
        .iter()
        .map(|&v| f64::from(v) * f64::from(v))
        .sum::<f64>()
        .sqrt() as f32
        + 1e-7;
    let wide = rows <= cols;
    let (s, l) = (rows.min(cols), rows.max(cols));
    let mut x = if wide { u } else { transpose(&u, rows, cols) };
    for v in &mut x {
        *v /= norm;
    }
    let isa = cpu.isa();
    let mut by_rows = Packed::new(isa, Compute::F32, s, l); // x as (n, k): products with x^T
    let mut by_cols = Packed::new(isa, Compute::F32, l, s); // x as (k, n): products with x
    let mut gram_packed = Packed::new(isa, Compute::F32, s, s);
    let (mut gram, mut square) = (vec![0.0f32; s * s], vec![0.0f32; s * s]);
    let mut next = vec![0.0f32; s * l];
    for _ in 0..steps {
        by_rows.pack(cpu, &x);
        matmul(cpu, &mut gram, &x, &by_rows, Store::Overwrite);
        gram_packed.pack(cpu, &gram); // symmetric: its own transpose
        matmul(cpu, &mut square, &gram, &gram_packed, Store::Overwrite);
        for (q, &g) in square.iter_mut().zip(&gram) {
            *q = B * g + C * *q;
        }
        by_cols.pack_transposed(cpu, &x);
        matmul(cpu, &mut next, &square, &by_cols, Store::Overwrite);
        for (x, &n) in x.iter_mut().zip(&next) {
            *x = A * *x + n;
        }
    }
    if wide { x } else { transpose(&x, s, l) }
}

/// (rows, cols) -> (cols, rows).
fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    for r in 0..rows {
        for c in 0..cols {
            y[c * rows + r] = x[r * cols + c];
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use numerics::Philox;

    #[test]
    fn newton_schulz_brings_singular_values_near_one() {
        for (rows, cols) in [(16, 40), (40, 16), (1, 9), (17, 17)] {
            let philox = Philox::new(1, "muon");
            let u: Vec<f32> = (0..rows * cols).map(|i| philox.normal(i as u64)).collect();
            let x = orthogonalise(&Cpu::serial(Isa::detect()), u, rows, cols, 5);
            // Trace of x x^T is the sum of the squared singular values.
            let trace: f32 = x.iter().map(|v| v * v).sum();
            let mean = trace / rows.min(cols) as f32;
            assert!((0.4..1.5).contains(&mean), "{rows}x{cols}: {mean}");
        }
    }
}
