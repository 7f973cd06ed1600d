//! Products against exact sums, on every instruction set, at sizes around the borders of tiles.

use super::{Packed, matmul, matmul_tn, streamed_bytes};
use crate::aligned::Aligned;
use crate::grouped_gemm::{grouped_matmul, grouped_matmul_tn};
use crate::{Compute, Cpu, Isa, Store};
use half::bf16;
use numerics::Philox;

const GUARD: f32 = -777.25;
const COMPUTES: [Compute; 2] = [Compute::F32, Compute::Bf16];

fn values(len: usize, name: &str) -> Vec<f32> {
    let philox = Philox::new(7, name);
    (0..len).map(|i| philox.normal(i as u64)).collect()
}

/// The factor as the product sees it.
fn factor(compute: Compute, x: f32) -> f64 {
    match compute {
        Compute::F32 => f64::from(x),
        Compute::Bf16 => f64::from(bf16::from_f32(x).to_f32()),
    }
}

/// Sum over `depth` of a b with the bound on the error of any chain of f32 multiply-adds: one rounding
/// a term (two, where they are not fused) and one for what it is added to, each half a unit in the last
/// place of a partial sum, which is at most the sum of absolute values.
fn exact(
    compute: Compute,
    old: f32,
    depth: usize,
    a: impl Fn(usize) -> f32,
    b: impl Fn(usize) -> f32,
) -> (f64, f64) {
    let (mut sum, mut size) = (f64::from(old), f64::from(old.abs()));
    for i in 0..depth {
        let term = factor(compute, a(i)) * factor(compute, b(i));
        sum += term;
        size += term.abs();
    }
    (
        sum,
        (2 * depth + 2) as f64 * size * 0.5 * f64::from(f32::EPSILON),
    )
}

/// A buffer of `len` values between guards.
struct Guarded {
    data: Vec<f32>,
    len: usize,
}

impl Guarded {
    const MARGIN: usize = 40;

    fn new(inner: &[f32]) -> Guarded {
        let mut data = vec![GUARD; inner.len() + 2 * Self::MARGIN];
        data[Self::MARGIN..][..inner.len()].copy_from_slice(inner);
        Guarded {
            data,
            len: inner.len(),
        }
    }

    fn inner(&mut self) -> &mut [f32] {
        &mut self.data[Self::MARGIN..][..self.len]
    }

    fn check(&self) {
        let (before, rest) = self.data.split_at(Self::MARGIN);
        assert!(
            before.iter().chain(&rest[self.len..]).all(|&v| v == GUARD),
            "guard overwritten"
        );
    }
}

fn packed(cpu: &Cpu, compute: Compute, w: &[f32], n: usize, k: usize) -> Packed {
    let mut b = Packed::new(cpu.isa(), compute, n, k);
    b.pack(cpu, w);
    b
}

/// Sizes around the borders of tiles (4, 6, 8, 12 rows), of vectors and panels (4 to 32 columns) and of
/// passes over the depth (1024 to 4096 values), more rows than a block of two passes, odd ones, and real ones.
const SIZES: [(usize, usize, usize); 20] = [
    (1, 1, 1),
    (1, 640, 384),
    (2, 3, 2),
    (3, 16, 5),
    (5, 31, 7),
    (6, 32, 8),
    (7, 33, 9),
    (11, 17, 33),
    (12, 48, 31),
    (13, 64, 64),
    (14, 8, 127),
    (25, 15, 511),
    (24, 47, 512),
    (29, 65, 513),
    (9, 20, 1024),
    (4, 34, 1027),
    (200, 36, 130),
    (37, 384, 192),
    (480, 9, 1100),
    (5, 33, 4200),
];

#[test]
fn products_equal_the_exact_product_of_the_rounded_factors() {
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 2);
        for (compute, (m, n, k)) in COMPUTES.into_iter().flat_map(|c| SIZES.map(|s| (c, s))) {
            let (x, w, old) = (values(m * k, "x"), values(n * k, "w"), values(m * n, "y"));
            let b = packed(&cpu, compute, &w, n, k);
            for store in [Store::Overwrite, Store::Add] {
                let mut y = Guarded::new(&old);
                matmul(&cpu, y.inner(), &x, &b, store);
                y.check();
                for (at, &got) in y.inner().iter().enumerate() {
                    let (i, j) = (at / n, at % n);
                    let old = if store == Store::Add { old[at] } else { 0.0 };
                    let (want, bound) = exact(compute, old, k, |d| x[i * k + d], |d| w[j * k + d]);
                    assert!(
                        (f64::from(got) - want).abs() <= bound,
                        "{} {compute:?} {m}x{n}x{k} {store:?} at ({i}, {j}): {got} for {want}",
                        isa.name()
                    );
                }
            }
        }
    }
}

#[test]
fn both_ways_of_packing_give_the_same_panels() {
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 2);
        for (compute, (m, n, k)) in COMPUTES.into_iter().flat_map(|c| SIZES.map(|s| (c, s))) {
            let mut w = values(n * k, "w");
            // Ties, values below the normal range, and what is not a number.
            for (i, odd) in [
                1.003_906_3,
                1.011_718_8,
                1e-40,
                f32::NAN,
                f32::INFINITY,
                3.4e38,
            ]
            .into_iter()
            .enumerate()
            {
                if w.len() > 8 {
                    w[i] = odd;
                }
            }
            let x = values(m * k, "x");
            let wt: Vec<f32> = (0..n * k).map(|at| w[at % n * k + at / n]).collect();
            let (mut y, mut yt) = (vec![0.0; m * n], vec![0.0; m * n]);
            let mut b = packed(&cpu, compute, &values(n * k, "other"), n, k);
            b.pack_transposed(&cpu, &wt);
            matmul(&cpu, &mut yt, &x, &b, Store::Overwrite);
            b.pack(&cpu, &w);
            matmul(&cpu, &mut y, &x, &b, Store::Overwrite);
            assert_eq!(
                bits(&y),
                bits(&yt),
                "{} {compute:?} {m}x{n}x{k}",
                isa.name()
            );
        }
    }
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter()
        .map(|v| {
            if v.is_nan() {
                f32::NAN.to_bits()
            } else {
                v.to_bits()
            }
        })
        .collect()
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_company() {
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 1);
        for (compute, k) in COMPUTES.into_iter().flat_map(|c| [(c, 75), (c, 1100)]) {
            let (m, n) = (67, 43);
            let (x, w, old) = (values(m * k, "x"), values(n * k, "w"), values(m * n, "y"));
            let b = packed(&cpu, compute, &w, n, k);
            let mut all = old.clone();
            matmul(&cpu, &mut all, &x, &b, Store::Add);
            for rows in [1, 2, 5, 13, 24] {
                for start in (0..m - rows).step_by(rows) {
                    let mut some = old[start * n..(start + rows) * n].to_vec();
                    matmul(
                        &cpu,
                        &mut some,
                        &x[start * k..(start + rows) * k],
                        &b,
                        Store::Add,
                    );
                    assert_eq!(some, all[start * n..(start + rows) * n], "{} rows", rows);
                }
            }
        }
    }
}

#[test]
fn rows_that_are_packed_meanwhile_have_the_bits_of_rows_alone() {
    // Several blocks for each thread, of one stretch of depth and of two; rows that fill their cache lines, or do not,
    // or not even one; panels that are whole, and one that is not.
    let (m, n) = (700, 107);
    for isa in Isa::available() {
        for (compute, k) in COMPUTES
            .into_iter()
            .flat_map(|c| [(c, 11), (c, 150), (c, 384), (c, 2100)])
        {
            let (x, w) = (values(m / 2 * k, "x"), values(n * k, "w"));
            let gather: Vec<u32> = (0..m as u32).map(|i| i * 29 % (m as u32 / 2)).collect();
            let run = |threads, rows: &[u32]| {
                let cpu = Cpu::new(isa, threads);
                let b = Some(packed(&cpu, compute, &w, n, k));
                let mut y = vec![GUARD; rows.len() * n];
                let borders = [0, rows.len() as u32];
                let store = Store::Overwrite;
                grouped_matmul(&cpu, &mut y, &x, Some(rows), &borders, &[b], store);
                y
            };
            let all = run(1, &gather);
            assert!(run(2, &gather) == all, "{} {compute:?} {k}", isa.name());
            for row in [0, 1, 95, 133, 349, 350, 523, 699] {
                assert!(
                    run(1, &gather[row..=row]) == all[row * n..][..n],
                    "{} {compute:?} {k}, row {row}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn an_output_that_is_written_past_the_caches_has_the_bits_of_a_small_one() {
    // Half of the last panel is missing where panels have 32 columns. The output is aligned, as it has to be for this.
    let (n, k) = (528, 40);
    let m = streamed_bytes().div_ceil(4 * n) + 100;
    for isa in Isa::available() {
        for compute in COMPUTES {
            let (x, w) = (values(m * k, "x"), values(n * k, "w"));
            let cpu = Cpu::new(isa, 2);
            let b = packed(&cpu, compute, &w, n, k);
            let mut y = Aligned::zeroed(m * n);
            y.fill(GUARD);
            matmul(&cpu, &mut y, &x, &b, Store::Overwrite);
            for rows in [0..40, m / 2 - 20..m / 2 + 20, m - 40..m] {
                let mut few = vec![GUARD; rows.len() * n];
                let x = &x[rows.start * k..rows.end * k];
                matmul(&cpu, &mut few, x, &b, Store::Overwrite);
                assert!(
                    few == y[rows.start * n..rows.end * n],
                    "{} {compute:?}, rows {rows:?}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn products_have_the_same_bits_on_any_number_of_threads() {
    for isa in Isa::available() {
        for (compute, m) in COMPUTES
            .into_iter()
            .flat_map(|c| [(c, 1), (c, 30), (c, 301)])
        {
            let (n, k) = (77, 150);
            let (x, w, g) = (values(m * k, "x"), values(n * k, "w"), values(m * n, "g"));
            let run = |threads| {
                let cpu = Cpu::new(isa, threads);
                let b = packed(&cpu, compute, &w, n, k);
                let (mut y, mut c) = (vec![0.0; m * n], values(n * k, "c"));
                matmul(&cpu, &mut y, &x, &b, Store::Overwrite);
                matmul_tn(&cpu, compute, &mut c, &g, &x, m);
                (y, c)
            };
            let one = run(1);
            for threads in [2, 3, 8, 16] {
                assert!(
                    run(threads) == one,
                    "{} {compute:?} {m} rows, {threads}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn gradients_of_weights_equal_the_exact_sums() {
    let sizes = [
        (1, 1, 1),
        (2, 5, 3),
        (3, 12, 32),
        (7, 13, 33),
        (64, 31, 17),
        (255, 12, 16),
        (256, 25, 64),
        (257, 6, 48),
        (511, 8, 31),
        (512, 14, 8),
        (513, 100, 20),
        (1030, 9, 700),
        // More than is packed at a time, of both sides and by each of two threads; and several stretches of each.
        (2, 1120, 400),
        (530, 520, 210),
        (200, 1120, 40),
        // More panels than are kept, and columns that meet them in turns.
        (3, 210, 4300),
    ];
    for isa in Isa::available() {
        for (compute, (m, p, q)) in COMPUTES.into_iter().flat_map(|c| sizes.map(|s| (c, s))) {
            let cpu = Cpu::new(isa, 2);
            let (a, b, old) = (values(m * p, "a"), values(m * q, "b"), values(p * q, "c"));
            let mut c = Guarded::new(&old);
            matmul_tn(&cpu, compute, c.inner(), &a, &b, m);
            c.check();
            for (at, &got) in c.inner().iter().enumerate() {
                let (i, j) = (at / q, at % q);
                let (want, bound) = exact(compute, old[at], m, |d| a[d * p + i], |d| b[d * q + j]);
                assert!(
                    (f64::from(got) - want).abs() <= bound,
                    "{} {compute:?} {m}x{p}x{q} at ({i}, {j}): {got} for {want}",
                    isa.name()
                );
            }
        }
    }
}

/// Borders of groups of the given sizes.
fn borders(sizes: &[usize]) -> Vec<u32> {
    std::iter::once(0)
        .chain(sizes.iter().scan(0, |end, &size| {
            *end += size as u32;
            Some(*end)
        }))
        .collect()
}

const GROUPS: [&[usize]; 5] = [
    &[1, 0, 2, 1],
    &[0, 0, 9],
    &[40, 3, 0, 100, 17],
    &[0],
    &[300, 1, 520],
];

#[test]
fn a_grouped_product_is_the_product_of_each_group_bit_for_bit() {
    for isa in Isa::available() {
        for (compute, sizes) in COMPUTES.into_iter().flat_map(|c| GROUPS.map(|g| (c, g))) {
            let (n, k, tokens, offsets) = (45, 70, 23, borders(sizes));
            let total = offsets[sizes.len()] as usize;
            let x = values(tokens * k, "x");
            let old = values(total * n, "y");
            let rows: Vec<u32> = (0..total).map(|i| (i * 7 % tokens) as u32).collect();
            let serial = Cpu::new(isa, 1);
            let b: Vec<Option<Packed>> = (0..sizes.len())
                .map(|e| {
                    let w = values(n * k, &format!("w{e}"));
                    (sizes[e] > 0).then(|| packed(&serial, compute, &w, n, k))
                })
                .collect();
            let gathered: Vec<f32> = rows
                .iter()
                .flat_map(|&r| &x[r as usize * k..][..k])
                .copied()
                .collect();
            let mut want = old.clone();
            for (e, b) in b.iter().enumerate() {
                let Some(b) = b else { continue };
                let group = offsets[e] as usize..offsets[e + 1] as usize;
                let y = &mut want[group.start * n..group.end * n];
                matmul(
                    &serial,
                    y,
                    &gathered[group.start * k..group.end * k],
                    b,
                    Store::Add,
                );
            }
            for threads in [1, 2, 3] {
                let cpu = Cpu::new(isa, threads);
                let mut y = Guarded::new(&old);
                grouped_matmul(&cpu, y.inner(), &x, Some(&rows), &offsets, &b, Store::Add);
                y.check();
                assert!(
                    y.inner() == want,
                    "{} {compute:?} {sizes:?} {threads}",
                    isa.name()
                );
                y.inner().copy_from_slice(&old);
                grouped_matmul(&cpu, y.inner(), &gathered, None, &offsets, &b, Store::Add);
                assert!(
                    y.inner() == want,
                    "{} {compute:?} {sizes:?} {threads}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn a_grouped_gradient_is_the_gradient_of_each_group_bit_for_bit() {
    for isa in Isa::available() {
        for (compute, sizes) in COMPUTES.into_iter().flat_map(|c| GROUPS.map(|g| (c, g))) {
            let (p, q, tokens, offsets) = (29, 70, 23, borders(sizes));
            let total = offsets[sizes.len()] as usize;
            let (a, x) = (values(total * p, "a"), values(tokens * q, "x"));
            let rows: Vec<u32> = (0..total).map(|i| (i * 7 % tokens) as u32).collect();
            let gathered: Vec<f32> = rows
                .iter()
                .flat_map(|&r| &x[r as usize * q..][..q])
                .copied()
                .collect();
            let old = values(sizes.len() * p * q, "c");
            let mut want = old.clone();
            for e in 0..sizes.len() {
                let group = offsets[e] as usize..offsets[e + 1] as usize;
                matmul_tn(
                    &Cpu::new(isa, 1),
                    compute,
                    &mut want[e * p * q..(e + 1) * p * q],
                    &a[group.start * p..group.end * p],
                    &gathered[group.start * q..group.end * q],
                    group.len(),
                );
            }
            for threads in [1, 2, 3, 4] {
                let cpu = Cpu::new(isa, threads);
                let mut c = Guarded::new(&old);
                let b_rows = Some(&rows[..]);
                grouped_matmul_tn(
                    &cpu,
                    compute,
                    c.inner(),
                    &a,
                    None,
                    &x,
                    b_rows,
                    &offsets,
                    p,
                    q,
                );
                c.check();
                assert!(
                    c.inner() == want,
                    "{} {compute:?} {sizes:?} {threads}",
                    isa.name()
                );
            }
        }
    }
}
