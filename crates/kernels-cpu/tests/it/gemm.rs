//! Matrix products. Bounds: a sum of k products of standard normal factors, each rounded once, is off by
//! at most k * 2^-23 of its absolute sum; the factors of bf16 are rounded before the oracle sees them.

use super::{normal, on_every_isa};
use dokja_kernels_cpu::gemm::{Activations, Packed, Stored, matmul, matmul_tn};
use dokja_kernels_cpu::grouped_gemm::{grouped_matmul, grouped_matmul_tn};
use dokja_kernels_cpu::{Compute, Store};
use half::bf16;

/// (m, n, k): one, odd, around tile and panel borders, and one of a real layer.
const SIZES: [(usize, usize, usize); 8] = [
    (1, 1, 1),
    (3, 5, 7),
    (12, 32, 16),
    (13, 33, 17),
    (25, 31, 65),
    (1, 640, 384),
    (64, 100, 3),
    (130, 96, 384),
];

fn rounded(x: &[f32], compute: Compute) -> Vec<f64> {
    let round = |&v: &f32| match compute {
        Compute::F32 => f64::from(v),
        Compute::Bf16 => bf16::from_f32(v).to_f64(),
    };
    x.iter().map(round).collect()
}

fn close(got: f32, expected: f64, absolute: f64, k: usize, what: &str) {
    let bound = (k + 2) as f64 * absolute * 2f64.powi(-23) + 1e-30;
    assert!(
        (f64::from(got) - expected).abs() <= bound,
        "{what}: {got} against {expected}"
    );
}

#[test]
fn products_agree_with_f64_loops_and_stay_inside_their_output() {
    on_every_isa(2, |cpu| {
        for compute in [Compute::F32, Compute::Bf16] {
            for (m, n, k) in SIZES {
                let (x, w) = (normal(m * k, "x"), normal(n * k, "w"));
                let wt: Vec<f32> = (0..k * n).map(|i| w[i % n * k + i / n]).collect();
                let mut packed = Packed::new(cpu.isa(), compute, n, k);
                packed.pack(cpu, &w);
                let mut same = Packed::new(cpu.isa(), compute, n, k);
                same.pack_transposed(cpu, &wt);
                let (xr, wr) = (rounded(&x, compute), rounded(&w, compute));
                for store in [Store::Overwrite, Store::Add] {
                    let mut y = vec![7.5f32; m * n + 2];
                    matmul(cpu, &mut y[1..=m * n], &x, &packed, store);
                    assert_eq!((y[0], y[m * n + 1]), (7.5, 7.5), "sentinels");
                    let mut again = vec![7.5f32; m * n];
                    matmul(cpu, &mut again, &x, &same, store);
                    assert!(again == y[1..=m * n], "both packings give the same panels");
                    let start = if store == Store::Add { 7.5 } else { 0.0 };
                    for i in 0..m {
                        for j in 0..n {
                            let products = (0..k).map(|l| xr[i * k + l] * wr[j * k + l]);
                            let (sum, absolute) =
                                products.fold((start, start), |(s, a), p| (s + p, a + p.abs()));
                            let what = format!("{} {compute:?} {m}x{n}x{k}", cpu.isa().name());
                            close(y[1 + i * n + j], sum, absolute, k, &what);
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn a_row_has_the_same_bits_alone_in_a_batch_and_in_a_group() {
    on_every_isa(3, |cpu| {
        let (m, n, k) = (131, 70, 45);
        let (x, w) = (normal(m * k, "x"), normal(n * k, "w"));
        for compute in [Compute::F32, Compute::Bf16] {
            let mut packed = Packed::new(cpu.isa(), compute, n, k);
            packed.pack(cpu, &w);
            let mut all = vec![0.0; m * n];
            matmul(cpu, &mut all, &x, &packed, Store::Overwrite);
            for i in [0, 1, 64, 130] {
                let mut alone = vec![0.0; n];
                matmul(
                    cpu,
                    &mut alone,
                    &x[i * k..(i + 1) * k],
                    &packed,
                    Store::Overwrite,
                );
                assert!(alone == all[i * n..(i + 1) * n], "row {i}");
            }
            // The same rows, gathered in reverse into three groups of which one is empty.
            let mut other = Packed::new(cpu.isa(), compute, n, k);
            other.pack(cpu, &w);
            let rows: Vec<u32> = (0..m as u32).rev().collect();
            let offsets = [0, 40, 40, m as u32];
            let mut grouped = vec![0.0; m * n];
            let group = [Some(packed), None, Some(other)];
            grouped_matmul(
                cpu,
                &mut grouped,
                &x,
                Some(&rows),
                &offsets,
                &group,
                Store::Overwrite,
            );
            for i in 0..m {
                assert!(grouped[i * n..(i + 1) * n] == all[(m - 1 - i) * n..(m - i) * n]);
            }
            // The last group alone: what lies before its rows stays.
            let mut last = vec![7.0; m * n];
            let (part, offsets) = (&group[2..], &offsets[2..]);
            grouped_matmul(
                cpu,
                &mut last,
                &x,
                Some(&rows),
                offsets,
                part,
                Store::Overwrite,
            );
            assert!(last[..40 * n].iter().all(|&y| y == 7.0));
            assert!(last[40 * n..] == grouped[40 * n..]);
        }
    });
}

#[test]
fn an_output_larger_than_the_caches_has_the_bits_of_its_halves() {
    // 8.4 MB from the border of a cache line on, with half a panel at the edge, or in parts of which the second does
    // not start where a vector does; the halves are written as usual.
    let (m, n, k) = (44_000, 48, 20);
    let (x, w) = (normal(m * k, "x"), normal(n * k, "w"));
    on_every_isa(2, |cpu| {
        for (compute, in_first) in [
            (Compute::F32, n),
            (Compute::F32, 28),
            (Compute::Bf16, n),
            (Compute::Bf16, 28),
        ] {
            let (first, second) = w.split_at(in_first * k);
            let both = [Stored::F32(first), Stored::F32(second)];
            let stored = if second.is_empty() { &both[..1] } else { &both };
            let b = Packed::of(cpu, compute, Activations::Int16, k, stored);
            let mut memory = vec![7.0; m * n + 16];
            let start = memory.as_ptr().align_offset(64);
            let y = &mut memory[start..start + m * n];
            matmul(cpu, y, &x, &b, Store::Overwrite);
            let mut halves = vec![7.0; m * n];
            let of_x = x.chunks(m / 2 * k);
            for (y, x) in halves.chunks_mut(m / 2 * n).zip(of_x) {
                matmul(cpu, y, x, &b, Store::Overwrite);
            }
            assert!(*y == *halves, "{} {compute:?} {in_first}", cpu.isa().name());
        }
    });
}

#[test]
fn weight_gradients_add_the_product_of_each_row() {
    on_every_isa(2, |cpu| {
        for compute in [Compute::F32, Compute::Bf16] {
            for (m, p, q) in [(1, 1, 1), (5, 3, 7), (300, 13, 33), (513, 25, 40)] {
                let (a, b) = (normal(m * p, "a"), normal(m * q, "b"));
                let (ar, br) = (rounded(&a, compute), rounded(&b, compute));
                let mut c = vec![1.0; p * q];
                matmul_tn(cpu, compute, &mut c, &a, &b, m);
                let mut grouped = vec![1.0; 2 * p * q];
                let offsets = [0, m as u32, m as u32];
                grouped_matmul_tn(
                    cpu,
                    compute,
                    &mut grouped,
                    &a,
                    None,
                    &b,
                    None,
                    &offsets,
                    p,
                    q,
                );
                assert!(grouped[..p * q] == c && grouped[p * q..].iter().all(|&v| v == 1.0));
                for i in 0..p {
                    for j in 0..q {
                        let products = (0..m).map(|l| ar[l * p + i] * br[l * q + j]);
                        let (sum, absolute) =
                            products.fold((1.0, 1.0), |(s, a), p| (s + p, a + p.abs()));
                        close(c[i * q + j], sum, absolute, m, cpu.isa().name());
                    }
                }
            }
        }
    });
}
