//! Products of sums of words, written out in assembler.
//!
//! Compiled, the steps of several rows are mixed until registers are short, and columns are copied to the stack: a
//! tenth of the products a second (docs/LOG.md).

use crate::arch::rows::by_rows;
use std::arch::asm;
use std::arch::x86_64::__m512i;

/// Some steps of some rows: of each the two sums, and where its words lie. `at` is eight bytes for each step.
macro_rules! steps {
    ($steps:literal, $sums:ident, $rows:ident, $stride:ident, $columns:ident;
     $(($first:literal $second:literal $row:literal))*) => {{
        let (_w0, _w1, _w2, _w3): (__m512i, __m512i, __m512i, __m512i);
        let (_a, _b, _c, _d): (__m512i, __m512i, __m512i, __m512i);
        asm!(
            concat!(".irp at, ", $steps),
            "vmovdqu64 {w0}, zmmword ptr [{columns} + 32 * \\at]",
            "vmovdqu64 {w1}, zmmword ptr [{columns} + 32 * \\at + 64]",
            "vmovdqu64 {w2}, zmmword ptr [{columns} + 32 * \\at + 128]",
            "vmovdqu64 {w3}, zmmword ptr [{columns} + 32 * \\at + 192]",
            $(
                concat!("vpbroadcastd {a}, dword ptr [", $row, " + \\at]"),
                concat!("vpbroadcastd {b}, dword ptr [", $row, " + \\at + 4]"),
                "vpaddw {c}, {a}, {w2}",
                "vpaddw {d}, {b}, {w0}",
                concat!("vpdpwssd {", $first, "}, {c}, {d}"),
                "vpaddw {a}, {a}, {w3}",
                "vpaddw {b}, {b}, {w1}",
                concat!("vpdpwssd {", $second, "}, {a}, {b}"),
            )*
            ".endr",
            "/* not all rows need {p1} and {s} */",
            $(
                inout(zmm_reg) $sums[$first / 2][0],
                inout(zmm_reg) $sums[$second / 2][1],
            )*
            // One pointer for three rows.
            p0 = in(reg) $rows,
            p1 = in(reg) $rows.wrapping_add(3 * $stride),
            s = in(reg) 4 * $stride,
            columns = in(reg) $columns,
            w0 = out(zmm_reg) _w0,
            w1 = out(zmm_reg) _w1,
            w2 = out(zmm_reg) _w2,
            w3 = out(zmm_reg) _w3,
            a = out(zmm_reg) _a,
            b = out(zmm_reg) _b,
            c = out(zmm_reg) _c,
            d = out(zmm_reg) _d,
            options(nostack, readonly, preserves_flags),
        );
    }};
}

/// See [`Simd::dot_sums`](crate::simd::Simd::dot_sums).
///
/// # Safety
/// As there; R is at most 6.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn dot_sums<const R: usize, const STEPS: usize>(
    sums: &mut [[__m512i; 2]; R],
    rows: *const u32,
    stride: usize,
    columns: *const u8,
) {
    macro_rules! of {
        ($steps:literal) => {
            // SAFETY: R rows hold two words for each step and the columns four vectors, by the contract; nothing is
            // written.
            unsafe { by_rows!(R of 6, steps($steps, sums, rows, stride, columns)) }
        };
    }
    match STEPS {
        4 => of!("0, 8, 16, 24"),
        8 => of!("0, 8, 16, 24, 32, 40, 48, 56"),
        _ => debug_assert!(false, "{STEPS} steps"),
    }
}
