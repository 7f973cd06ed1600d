//! Block types against known answers, and the loss of storing normal values in them.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use dokja_numerics as numerics;
use numerics::{BlockError, BlockType, Philox, nmse};

/// The types whose blocks share scales, and which are written.
const SHARED: [BlockType; 6] = [
    BlockType::Q8_0,
    BlockType::Q6K,
    BlockType::Q5K,
    BlockType::Q4K,
    BlockType::Q4_1,
    BlockType::Q4_0,
];

fn normal(len: usize, name: &str) -> Vec<f32> {
    let philox = Philox::new(5, name);
    (0..len as u64).map(|i| philox.normal(i)).collect()
}

fn stored(block_type: BlockType, values: &[f32]) -> Vec<u8> {
    // Every byte has to be written: what was there before must not shine through.
    let mut bytes = vec![0xa5; block_type.bytes_for(values.len()).unwrap()];
    block_type.quantise(values, &mut bytes).unwrap();
    bytes
}

fn values_of(block_type: BlockType, bytes: &[u8]) -> Vec<f32> {
    let len = bytes.len() / block_type.block_bytes() * block_type.block_values();
    let mut values = vec![f32::NAN; len];
    block_type.dequantise(bytes, &mut values).unwrap();
    values
}

/// Root of the mean-square error, relative to that of the values.
fn loss(block_type: BlockType, values: &[f32]) -> f64 {
    let read = values_of(block_type, &stored(block_type, values));
    nmse(&read, values).sqrt()
}

/// Bytes without a pattern, with finite halves of both signs where a block has them.
fn known_bytes(block_type: BlockType) -> Vec<u8> {
    let halves: &[usize] = match block_type {
        BlockType::F32 | BlockType::Bf16 => &[],
        BlockType::F16 | BlockType::Q8_0 | BlockType::Q4_0 => &[0],
        BlockType::Q4_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
        BlockType::Q2K => &[80, 82],
        BlockType::Q3K => &[108],
        BlockType::Q6K => &[208],
    };
    let size = block_type.block_bytes();
    let blocks = if size > 10 { 4 } else { 16 };
    let mut bytes = Vec::new();
    for k in 0..blocks {
        let start = bytes.len();
        let byte = |i| (((i * i * 37 + 11 * i + 5 + 91 * k) * 2_654_435_761) >> 13) as u8;
        bytes.extend((0..size as u64).map(byte));
        for (j, at) in halves.iter().enumerate() {
            let half = (0x1c01 + 0x123 * k as u16 + 0x431 * j as u16) | (k as u16 & 1) << 15;
            bytes[start + at..start + at + 2].copy_from_slice(&half.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn known_blocks_have_the_values_that_others_read_in_them() {
    // FNV-1a of the little-endian f32, computed by the Python package `gguf` 0.19.
    let known = [
        (BlockType::F32, 0x39e2_8f3d_00ac_c835),
        (BlockType::F16, 0x40e3_08cc_463b_11da),
        (BlockType::Bf16, 0xa4ee_6fbf_56cd_0f65),
        (BlockType::Q8_0, 0x4056_db5b_af27_0078),
        (BlockType::Q4_0, 0xd454_ef41_3f37_377f),
        (BlockType::Q4_1, 0xf654_1f8f_fea0_ee2e),
        (BlockType::Q2K, 0x3a8a_9101_3f74_db0f),
        (BlockType::Q3K, 0x54ce_2cb0_b050_98c5),
        (BlockType::Q4K, 0xa312_a0e7_d205_1669),
        (BlockType::Q5K, 0x75cb_4518_1f1b_a2b1),
        (BlockType::Q6K, 0x8b86_4f00_b68d_9715_u64),
    ];
    for (block_type, expected) in known {
        let values = values_of(block_type, &known_bytes(block_type));
        let bytes = values.iter().flat_map(|x| x.to_le_bytes());
        let got = bytes.fold(0xcbf2_9ce4_8422_2325u64, |h, byte| {
            (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        assert_eq!(got, expected, "{block_type}: {:?}", &values[..4]);
    }
}

#[test]
fn names_and_numbers_lead_back_to_their_types() {
    for block_type in BlockType::ALL {
        assert_eq!(BlockType::from_name(block_type.name()), Some(block_type));
        let id = block_type.ggml_type();
        assert_eq!(BlockType::from_ggml_type(id), Some(block_type));
    }
    assert_eq!(BlockType::from_name("q4_k"), Some(BlockType::Q4K));
    assert_eq!(BlockType::from_name("Q4_K_M"), None);
    // Q5_0 and Q8_K of ggml.
    assert_eq!(BlockType::from_ggml_type(6), None);
    assert_eq!(BlockType::from_ggml_type(15), None);
}

#[test]
fn normal_values_lose_no_more_than_they_must() {
    // (loss, of the root mean square), each a little above what a good search reaches.
    let bounds = [
        (BlockType::F32, 0.0),
        (BlockType::F16, 0.0003),
        (BlockType::Bf16, 0.002),
        (BlockType::Q8_0, 0.0055),
        (BlockType::Q6K, 0.0181),
        (BlockType::Q5K, 0.0364),
        (BlockType::Q4K, 0.0730),
        (BlockType::Q4_1, 0.0799),
        (BlockType::Q4_0, 0.0875),
    ];
    let values = normal(1 << 16, "loss");
    for (block_type, bound) in bounds {
        for scale in [1.0, 0.02, -300.0] {
            let scaled: Vec<f32> = values.iter().map(|x| x * scale).collect();
            let loss = loss(block_type, &scaled);
            assert!(loss <= bound, "{block_type}, values of {scale}: {loss:.5}");
        }
    }
}

#[test]
fn values_of_one_sign_and_of_a_narrow_range_are_stored_well() {
    // Offsets reach below zero only: of positive values, fewer steps are left.
    for (block_type, bound) in [(BlockType::Q4K, 0.05), (BlockType::Q5K, 0.025)] {
        let noise = normal(1 << 14, "noise");
        let below: Vec<f32> = noise.iter().map(|x| 0.1 * x - 3.0).collect();
        let above: Vec<f32> = below.iter().map(|x| -x).collect();
        for values in [below, above] {
            let loss = loss(block_type, &values);
            assert!(loss <= bound, "{block_type}: {loss:.5}");
        }
    }
}

#[test]
fn what_was_read_from_a_block_is_stored_as_the_same_values() {
    let values = normal(1 << 14, "again");
    for block_type in BlockType::ALL.into_iter().filter(|t| t.is_written()) {
        let once = values_of(block_type, &stored(block_type, &values));
        let twice = values_of(block_type, &stored(block_type, &once));
        match block_type {
            // The fit may find other scales that are as good.
            BlockType::Q4K | BlockType::Q5K | BlockType::Q6K => {
                let first = nmse(&once, &values).sqrt();
                let again = nmse(&twice, &once).sqrt();
                assert!(again < first / 4.0, "{block_type}: {first:.5}, {again:.5}");
            }
            BlockType::Q4_1 => assert!(nmse(&twice, &once).sqrt() < 1e-3, "{block_type}"),
            _ => assert!(once == twice, "{block_type}"),
        }
    }
}

#[test]
fn zeros_stay_zeros_and_so_does_what_is_too_small() {
    for block_type in SHARED {
        for tiny in [0.0, f32::from_bits(1), 1e-30, -2e-9] {
            let read = values_of(block_type, &stored(block_type, &[tiny; 256]));
            assert!(read.iter().all(|x| *x == 0.0), "{block_type}: {tiny}");
            // Beside a zero, and beside a value that is stored.
            let mut mixed = [tiny; 256];
            mixed[1] = 0.0;
            mixed[64..96].fill(1.0);
            let read = values_of(block_type, &stored(block_type, &mixed));
            let near = |(x, y): (&f32, &f32)| (x - y).abs() < 0.009;
            assert!(read.iter().zip(&mixed).all(near), "{block_type}: {tiny}");
        }
    }
}

#[test]
fn a_constant_block_keeps_its_constant() {
    for block_type in SHARED {
        for constant in [1.0f32, -1.0, 0.037, -5000.0] {
            let read = values_of(block_type, &stored(block_type, &[constant; 256]));
            let close = |x: &f32| (x / constant - 1.0).abs() < 0.009;
            assert!(
                read.iter().all(close),
                "{block_type}: {constant}, {:?}",
                &read[..2]
            );
        }
    }
}

#[test]
fn one_huge_value_is_kept_and_the_rest_of_its_block_stays_finite() {
    for block_type in SHARED {
        for huge in [1000.0, -1000.0, 60_000.0] {
            let mut values = normal(512, "huge");
            values[77] = huge;
            let read = values_of(block_type, &stored(block_type, &values));
            assert!(
                (read[77] / huge - 1.0).abs() < 0.07,
                "{block_type}: {}",
                read[77]
            );
            let others = read.iter().enumerate().filter(|(i, _)| *i != 77);
            let largest = others.fold(0.0f32, |max, (_, x)| max.max(x.abs()));
            assert!(largest <= huge.abs() / 7.0, "{block_type}: {largest}");
            // The other block does not know of it.
            let far = nmse(&read[256..], &values[256..]).sqrt();
            assert!(far < 0.1, "{block_type}: {far}");
        }
    }
}

#[test]
fn nan_is_stored_as_zero_and_infinities_as_large_numbers() {
    for block_type in SHARED {
        for bad in [
            f32::NAN,
            -f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::MIN,
        ] {
            let mut values = normal(256, "bad");
            values[9] = bad;
            let read = values_of(block_type, &stored(block_type, &values));
            assert!(read.iter().all(|x| x.is_finite()), "{block_type}: {bad}");
            if bad.is_nan() {
                assert!(read[9].abs() < 0.35, "{block_type}: {}", read[9]);
            } else {
                assert!(
                    read[9] / bad.signum() > 60_000.0,
                    "{block_type}: {}",
                    read[9]
                );
            }
            let all = values_of(block_type, &stored(block_type, &[bad; 256]));
            assert!(all.iter().all(|x| x.is_finite()), "{block_type}: {bad}");
        }
    }
}

#[test]
fn floats_of_sixteen_bits_keep_nan_and_infinities_and_round_to_even() {
    for block_type in [BlockType::F16, BlockType::Bf16] {
        let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -0.0];
        let read = values_of(block_type, &stored(block_type, &values));
        assert!(read[0].is_nan() && read[1] == f32::INFINITY && read[2] == f32::NEG_INFINITY);
        assert_eq!(read[3], f32::INFINITY);
        assert!(read[4] == 0.0 && read[4].is_sign_negative());
    }
    // Half a step above 1 goes down to the even neighbour, one and a half steps go up.
    for (block_type, step) in [
        (BlockType::F16, 1.0 / 1024.0),
        (BlockType::Bf16, 1.0 / 128.0),
    ] {
        let read = values_of(
            block_type,
            &stored(block_type, &[1.0 + step / 2.0, 1.0 + 1.5 * step]),
        );
        assert_eq!(read, [1.0, 1.0 + 2.0 * step], "{block_type}");
    }
}

#[test]
fn any_bytes_can_be_read() {
    let philox = Philox::new(1, "any bytes");
    for block_type in BlockType::ALL {
        let len = 64 * block_type.block_bytes();
        let bytes: Vec<u8> = (0..len as u32)
            .map(|i| philox.block([i, 0, 0, 0])[0] as u8)
            .collect();
        assert_eq!(
            values_of(block_type, &bytes).len(),
            64 * block_type.block_values()
        );
    }
}

#[test]
fn sizes_that_do_not_fit_are_told() {
    let q4_k = BlockType::Q4K;
    assert_eq!(q4_k.bytes_for(512), Ok(288));
    assert_eq!(q4_k.bytes_for(0), Ok(0));
    let cut = q4_k.dequantise(&[0; 144], &mut [0.0; 255]).unwrap_err();
    assert!(
        cut.to_string().contains("255 values") && cut.to_string().contains("256"),
        "{cut}"
    );
    let short = q4_k.quantise(&[0.0; 256], &mut [0; 143]).unwrap_err();
    assert!(
        matches!(
            short,
            BlockError::Bytes {
                expected: 144,
                got: 143,
                ..
            }
        ),
        "{short}"
    );
    let many = BlockType::F32.bytes_for(usize::MAX).unwrap_err();
    assert!(matches!(many, BlockError::TooMany { .. }), "{many}");
    for block_type in [BlockType::Q2K, BlockType::Q3K] {
        let mut bytes = vec![0; block_type.block_bytes()];
        let told = block_type.quantise(&[0.0; 256], &mut bytes).unwrap_err();
        assert_eq!(told, BlockError::NotWritten { block_type });
        assert!(!block_type.is_written());
    }
}
