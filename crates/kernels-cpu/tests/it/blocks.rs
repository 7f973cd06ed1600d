//! Products with blocks of integers. The oracle rounds rows as the header of `gemm::blocks` says and
//! multiplies in f64 with the weights as `numerics` reads them: what is left is the order of sums in f32.

use super::{normal, on_every_isa};
use dokja_kernels_cpu::gemm::{Activations, Packed, Stored, matmul};
use dokja_kernels_cpu::grouped_gemm::grouped_matmul;
use dokja_kernels_cpu::{Compute, Store};
use numerics::BlockType;

const TYPES: [BlockType; 8] = [
    BlockType::Q8_0,
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q2K,
    BlockType::Q3K,
    BlockType::Q4K,
    BlockType::Q5K,
    BlockType::Q6K,
];

/// (m, n, blocks): one row, odd ones, around tiles, panels and passes; enough rows to make panels wide.
const SIZES: [(usize, usize, usize); 7] = [
    (1, 1, 1),
    (2, 33, 3),
    (5, 31, 2),
    (7, 64, 5),
    (40, 47, 3),
    (66, 80, 9),
    (1, 300, 33),
];

/// Rows of a matrix in blocks without a pattern, with finite scales, and their values.
fn blocks(block_type: BlockType, n: usize, k: usize) -> (Vec<u8>, Vec<f32>) {
    let w = normal(n * k, "w");
    let mut bytes = vec![0; block_type.bytes_for(n * k).unwrap()];
    if block_type.is_written() {
        block_type.quantise(&w, &mut bytes).unwrap();
    } else {
        let size = block_type.block_bytes();
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = ((i as u64 * 2_654_435_761) >> 11) as u8;
            // The halves, of both types last: small normal numbers of either sign.
            if i % size >= size - 4 {
                *byte = if i % 2 == 1 {
                    0x2c | *byte & 0x83
                } else {
                    *byte
                };
            }
        }
    }
    let mut values = vec![0.0; n * k];
    block_type.dequantise(&bytes, &mut values).unwrap();
    assert!(values.iter().all(|x| x.is_finite()), "{block_type}");
    (bytes, values)
}

const BOTH: [Activations; 2] = [Activations::Int8, Activations::Int16];

/// A row, each 32 values rounded to 8 or 16 bits.
fn rounded(activations: Activations, x: &[f32]) -> Vec<f64> {
    let limit = match activations {
        Activations::Int8 => 127.0,
        Activations::Int16 => 32512.0,
    };
    let group = |x: &[f32]| {
        let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        let (scale, inverse) = (largest * (1.0 / limit), limit / largest);
        let round = move |x: &f32| f64::from((x * inverse).round_ties_even()) * f64::from(scale);
        x.iter().map(round).collect::<Vec<_>>()
    };
    x.chunks(32).flat_map(group).collect()
}

#[test]
fn products_agree_with_f64_loops_over_the_same_integers() {
    for block_type in TYPES {
        for ((m, n, count), activations) in
            SIZES.into_iter().flat_map(|size| BOTH.map(|a| (size, a)))
        {
            let k = count * block_type.block_values();
            let (bytes, w) = blocks(block_type, n, k);
            let x = normal(m * k, "x");
            let xr: Vec<f64> = x.chunks(k).flat_map(|x| rounded(activations, x)).collect();
            // Each element with the sum of its products' magnitudes.
            let sums = xr.chunks(k).flat_map(|x| {
                w.chunks(k).map(move |w| {
                    let products = x.iter().zip(w).map(|(&x, &w)| x * f64::from(w));
                    products.fold((0.0, 0.0), |(s, a): (f64, f64), p| (s + p, a + p.abs()))
                })
            });
            let sums: Vec<(f64, f64)> = sums.collect();
            on_every_isa(2, |cpu| {
                let packed = Packed::of(
                    cpu,
                    Compute::F32,
                    activations,
                    k,
                    &[Stored::Blocks(block_type, &bytes)],
                );
                for store in [Store::Overwrite, Store::Add] {
                    let mut y = vec![7.5f32; m * n + 2];
                    matmul(cpu, &mut y[1..=m * n], &x, &packed, store);
                    assert_eq!((y[0], y[m * n + 1]), (7.5, 7.5), "sentinels");
                    let start = if store == Store::Add { 7.5 } else { 0.0 };
                    for (i, &(sum, absolute)) in sums.iter().enumerate() {
                        let (sum, absolute) = (start + sum, start + absolute);
                        // Three roundings for each group, and as many additions; the parts of a
                        // sum with a term cancel, so their size is that of q d, at most 4 times
                        // that of the value where a block holds both signs.
                        let bound = (4 * k / 16 + 8) as f64 * absolute * 2f64.powi(-23) + 1e-30;
                        let got = f64::from(y[1 + i]);
                        assert!(
                            (got - sum).abs() <= bound,
                            "{} {block_type} {m}x{n}x{k} ({}, {}): {got} against {sum}",
                            cpu.isa().name(),
                            i / n,
                            i % n
                        );
                    }
                }
            });
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_in_a_batch_in_a_group_and_beside_other_types() {
    on_every_isa(3, |cpu| {
        for (block_type, activations) in TYPES.into_iter().flat_map(|t| BOTH.map(|a| (t, a))) {
            let (m, n, k) = (97, 70, 1024);
            let (bytes, _) = blocks(block_type, n, k);
            let row = bytes.len() / n;
            let x = normal(m * k, "x");
            let of = |stored: &[Stored]| Packed::of(cpu, Compute::F32, activations, k, stored);
            let whole = of(&[Stored::Blocks(block_type, &bytes)]);
            let mut all = vec![0.0; m * n];
            matmul(cpu, &mut all, &x, &whole, Store::Overwrite);
            for i in [0, 1, 64, 96] {
                let mut alone = vec![0.0; n];
                let x = &x[i * k..(i + 1) * k];
                matmul(cpu, &mut alone, x, &whole, Store::Overwrite);
                assert!(alone == all[i * n..(i + 1) * n], "{block_type}, row {i}");
            }
            // Columns in three parts: blocks, values, blocks.
            let w = normal(5 * k, "w");
            let parts = of(&[
                Stored::Blocks(block_type, &bytes[..33 * row]),
                Stored::F32(&w),
                Stored::Blocks(block_type, &bytes[33 * row..]),
            ]);
            let mut beside = vec![0.0; m * (n + 5)];
            matmul(cpu, &mut beside, &x, &parts, Store::Overwrite);
            for (beside, all) in beside.chunks(n + 5).zip(all.chunks(n)) {
                assert!(beside[..33] == all[..33] && beside[38..] == all[33..]);
            }
            let group = [
                Some(of(&[Stored::Blocks(block_type, &bytes)])),
                Some(of(&[Stored::Blocks(block_type, &bytes)])),
            ];
            let rows: Vec<u32> = (0..m as u32).rev().collect();
            let mut grouped = vec![0.0; m * n];
            let offsets = [0, 40, m as u32];
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
        }
    });
}

#[test]
fn rows_of_zeros_give_zero_and_what_is_not_finite_gives_nan() {
    on_every_isa(1, |cpu| {
        for (block_type, activations) in TYPES.into_iter().flat_map(|t| BOTH.map(|a| (t, a))) {
            let (n, k) = (40, 512);
            let (bytes, _) = blocks(block_type, n, k);
            let packed = Packed::of(
                cpu,
                Compute::F32,
                activations,
                k,
                &[Stored::Blocks(block_type, &bytes)],
            );
            // Alone, and in a batch that makes panels wide.
            for m in [4, 40] {
                let mut x = vec![0.0; m * k];
                (x[k + 3], x[2 * k + 300]) = (f32::NAN, f32::NEG_INFINITY);
                x[3 * k] = f32::MIN_POSITIVE;
                let mut y = vec![7.5; m * n];
                matmul(cpu, &mut y, &x, &packed, Store::Overwrite);
                assert!(y[..n].iter().all(|&y| y == 0.0), "{block_type}");
                assert!(y[n..3 * n].iter().all(|y| y.is_nan()), "{block_type}");
                assert!(y[3 * n..].iter().all(|&y| y == 0.0), "{block_type}");
            }
        }
    });
}

#[test]
fn the_largest_integers_of_rows_and_columns_have_room() {
    let (m, n, k) = (40, 33, 64);
    // Blocks of 32: a scale of 1, and bytes at both ends.
    let mut bytes = Vec::new();
    for i in 0..n * k / 32 {
        bytes.extend(half::f16::ONE.to_le_bytes());
        bytes.extend((0..32).map(|j| if (i * j) % 3 == 0 { 0x80u8 } else { 0x7f }));
    }
    let x: Vec<f32> = (0..m * k)
        .map(|i| if i / 7 % 2 == 0 { 1.0 } else { -1.0 })
        .collect();
    let mut w = vec![0.0; n * k];
    BlockType::Q8_0.dequantise(&bytes, &mut w).unwrap();
    on_every_isa(2, |cpu| {
        for activations in BOTH {
            let stored = [Stored::Blocks(BlockType::Q8_0, &bytes)];
            let packed = Packed::of(cpu, Compute::F32, activations, k, &stored);
            let mut y = vec![0.0; m * n];
            matmul(cpu, &mut y, &x, &packed, Store::Overwrite);
            for (i, y) in y.into_iter().enumerate() {
                let (row, column) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                let sum: f32 = row.iter().zip(column).map(|(x, w)| x * w).sum();
                // The scale of a row is 1 / 127 or 1 / 32512, rounded.
                assert!(
                    (y - sum).abs() <= 64.0 * 128.0 * 2f32.powi(-22),
                    "{y} against {sum}"
                );
            }
        }
    });
}

#[test]
fn the_largest_sums_of_bytes_have_room() {
    let n = 33;
    for block_type in TYPES {
        let k = 2 * block_type.block_values().max(64);
        // Every q at its largest, halves of 1.
        let mut bytes = vec![0xffu8; block_type.bytes_for(n * k).unwrap()];
        let (first, halves) = match block_type {
            BlockType::Q2K => (80, 2),
            BlockType::Q3K => (108, 1),
            BlockType::Q6K => (208, 1),
            BlockType::Q4_1 | BlockType::Q4K | BlockType::Q5K => (0, 2),
            _ => (0, 1),
        };
        for block in bytes.chunks_exact_mut(block_type.block_bytes()) {
            for half in block[first..][..2 * halves].chunks_exact_mut(2) {
                half.copy_from_slice(&half::f16::ONE.to_le_bytes());
            }
        }
        let mut w = vec![0.0; n * k];
        block_type.dequantise(&bytes, &mut w).unwrap();
        // Rows of both signs, and of 16 bits with lower bytes of -128.
        let row = |r: usize| match r % 3 {
            0 => vec![1.0f32; k],
            1 => vec![-1.0; k],
            _ => (0..k)
                .map(|i| {
                    if i % 32 == 0 {
                        1.0
                    } else {
                        25_472.0 / 32_512.0
                    }
                })
                .collect(),
        };
        for (m, activations) in [1, 3, 8, 40].into_iter().flat_map(|m| BOTH.map(|a| (m, a))) {
            let x: Vec<f32> = (0..m).flat_map(|r| row(r + m)).collect();
            on_every_isa(2, |cpu| {
                let stored = [Stored::Blocks(block_type, &bytes)];
                let packed = Packed::of(cpu, Compute::F32, activations, k, &stored);
                let mut y = vec![0.0; m * n];
                matmul(cpu, &mut y, &x, &packed, Store::Overwrite);
                for (i, y) in y.into_iter().enumerate() {
                    let x = rounded(activations, &x[i / n * k..][..k]);
                    let products = x.iter().zip(&w[i % n * k..][..k]);
                    let sum: f64 = products.map(|(x, &w)| x * f64::from(w)).sum();
                    assert!(
                        (f64::from(y) - sum).abs() <= 1e-5 * sum.abs(),
                        "{} {block_type} {m} rows, {activations:?}, {i}: {y} against {sum}",
                        cpu.isa().name()
                    );
                }
            });
        }
    }
}
