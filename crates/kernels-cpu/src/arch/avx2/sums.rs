//! Sums of products of integers, written out in assembler.
//!
//! Compiled, words are added up in an order of the compiler's own, for which there are not enough registers: products
//! have 3 to 19 % less of the peak (docs/LOG.md).

use crate::arch::rows::by_rows;
use std::arch::asm;
use std::arch::x86_64::__m256i;

/// Steps of products of bytes, added up as words: the first starts them.
macro_rules! bytes {
    ($more:literal, $sums:ident, $rows:ident, $stride:ident, $columns:ident;
     $(($first:literal $second:literal $row:literal))*) => {{
        let (_w0, _w1, _x, _y): (__m256i, __m256i, __m256i, __m256i);
        asm!(
            "vmovdqu {w0}, [{columns}]",
            "vmovdqu {w1}, [{columns} + 32]",
            $(
                concat!("vpbroadcastd {x}, dword ptr [", $row, "]"),
                concat!("vpmaddubsw {", $first, "}, {w0}, {x}"),
                concat!("vpmaddubsw {", $second, "}, {w1}, {x}"),
            )*
            concat!(".irp at, ", $more),
            "vmovdqu {w0}, [{columns} + 16 * \\at]",
            "vmovdqu {w1}, [{columns} + 16 * \\at + 32]",
            $(
                concat!("vpbroadcastd {x}, dword ptr [", $row, " + \\at]"),
                "vpmaddubsw {y}, {w0}, {x}",
                "vpmaddubsw {x}, {w1}, {x}",
                concat!("vpaddw {", $first, "}, {", $first, "}, {y}"),
                concat!("vpaddw {", $second, "}, {", $second, "}, {x}"),
            )*
            ".endr",
            "/* not all rows need {s} */",
            $(
                out(ymm_reg) $sums[$first / 2][0],
                out(ymm_reg) $sums[$second / 2][1],
            )*
            p0 = in(reg) $rows,
            s = in(reg) 4 * $stride,
            columns = in(reg) $columns,
            w0 = out(ymm_reg) _w0,
            w1 = out(ymm_reg) _w1,
            x = out(ymm_reg) _x,
            y = out(ymm_reg) _y,
            options(nostack, readonly, preserves_flags),
        );
    }};
}

/// See [`Simd::dot_bytes_to_words`](crate::simd::Simd::dot_bytes_to_words).
///
/// # Safety
/// As there; R is at most 3.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn bytes_to_words<const R: usize, const STEPS: usize>(
    sums: &mut [[__m256i; 2]; R],
    rows: *const u32,
    stride: usize,
    columns: *const u8,
) {
    macro_rules! of {
        ($more:literal) => {
            // SAFETY: R rows hold a word for each step and the columns two vectors, by the contract; nothing is written.
            unsafe { by_rows!(R of 3, bytes($more, sums, rows, stride, columns)) }
        };
    }
    match STEPS {
        2 => of!("4"),
        4 => of!("4, 8, 12"),
        8 => of!("4, 8, 12, 16, 20, 24, 28"),
        _ => debug_assert!(false, "{STEPS} steps"),
    }
}

/// Some steps of some rows: of each the two sums, and where its words lie. `at` is eight bytes for each step.
macro_rules! words {
    ($steps:literal, $sums:ident, $rows:ident, $stride:ident, $columns:ident;
     $(($first:literal $second:literal $row:literal))*) => {{
        let (_w0, _w1, _w2, _w3): (__m256i, __m256i, __m256i, __m256i);
        let (_a, _b, _c, _d): (__m256i, __m256i, __m256i, __m256i);
        asm!(
            concat!(".irp at, ", $steps),
            "vmovdqu {w0}, [{columns} + 16 * \\at]",
            "vmovdqu {w1}, [{columns} + 16 * \\at + 32]",
            "vmovdqu {w2}, [{columns} + 16 * \\at + 64]",
            "vmovdqu {w3}, [{columns} + 16 * \\at + 96]",
            $(
                concat!("vpbroadcastd {a}, dword ptr [", $row, " + \\at]"),
                concat!("vpbroadcastd {b}, dword ptr [", $row, " + \\at + 4]"),
                "vpaddw {c}, {a}, {w2}",
                "vpaddw {d}, {b}, {w0}",
                "vpmaddwd {c}, {c}, {d}",
                "vpaddw {a}, {a}, {w3}",
                "vpaddw {b}, {b}, {w1}",
                "vpmaddwd {a}, {a}, {b}",
                concat!("vpaddd {", $first, "}, {", $first, "}, {c}"),
                concat!("vpaddd {", $second, "}, {", $second, "}, {a}"),
            )*
            ".endr",
            "/* not all rows need {s} */",
            $(
                inout(ymm_reg) $sums[$first / 2][0],
                inout(ymm_reg) $sums[$second / 2][1],
            )*
            p0 = in(reg) $rows,
            s = in(reg) 4 * $stride,
            columns = in(reg) $columns,
            w0 = out(ymm_reg) _w0,
            w1 = out(ymm_reg) _w1,
            w2 = out(ymm_reg) _w2,
            w3 = out(ymm_reg) _w3,
            a = out(ymm_reg) _a,
            b = out(ymm_reg) _b,
            c = out(ymm_reg) _c,
            d = out(ymm_reg) _d,
            options(nostack, readonly, preserves_flags),
        );
    }};
}

/// See [`Simd::dot_sums`](crate::simd::Simd::dot_sums).
///
/// # Safety
/// As there; R is at most 3.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn dot_sums<const R: usize, const STEPS: usize>(
    sums: &mut [[__m256i; 2]; R],
    rows: *const u32,
    stride: usize,
    columns: *const u8,
) {
    macro_rules! of {
        ($steps:literal) => {
            // SAFETY: R rows hold two words for each step and the columns four vectors, by the contract; nothing is
            // written.
            unsafe { by_rows!(R of 3, words($steps, sums, rows, stride, columns)) }
        };
    }
    match STEPS {
        4 => of!("0, 8, 16, 24"),
        8 => of!("0, 8, 16, 24, 32, 40, 48, 56"),
        _ => debug_assert!(false, "{STEPS} steps"),
    }
}
