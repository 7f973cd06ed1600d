//! Eight steps of a product, written out in assembler.
//!
//! A loop of one step, as it is compiled, has 2 to 4 % fewer multiply-adds a second: it counts and branches at each, and
//! there is no register for the strides of twelve rows. The compiler does not write steps out well (docs/LOG.md).

use crate::simd::Fetch;
use std::arch::asm;
use std::arch::x86_64::__m512;

/// Steps that are written out.
pub(super) const STEPS: usize = 8;

/// The steps of some rows: of each the two sums, and where its value lies. `at` is four bytes for each step.
macro_rules! steps {
    ($sums:ident, $rows:ident, $stride:ident, $columns:ident, $fetch:ident;
     $(($first:literal $second:literal $row:literal))*) => {{
        let (_b0, _b1, _x): (__m512, __m512, __m512);
        asm!(
            ".irp at, 0, 4, 8, 12, 16, 20, 24, 28",
            "vmovups {b0}, zmmword ptr [{columns} + 32 * \\at]",
            "vmovups {b1}, zmmword ptr [{columns} + 32 * \\at + 64]",
            $(
                concat!("vbroadcastss {x}, dword ptr [", $row, " + \\at]"),
                concat!("vfmadd231ps {", $first, "}, {b0}, {x}"),
                concat!("vfmadd231ps {", $second, "}, {b1}, {x}"),
            )*
            "prefetcht0 [{fetched}]",
            "add {fetched}, {bytes}",
            ".endr",
            "/* not all rows need {p1}, {p2}, {p3} and {s} */",
            $(
                inout(zmm_reg) $sums[$first / 2][0],
                inout(zmm_reg) $sums[$second / 2][1],
            )*
            // One pointer for three rows.
            p0 = in(reg) $rows,
            p1 = in(reg) $rows.wrapping_add(3 * $stride),
            p2 = in(reg) $rows.wrapping_add(6 * $stride),
            p3 = in(reg) $rows.wrapping_add(9 * $stride),
            s = in(reg) 4 * $stride,
            columns = in(reg) $columns,
            fetched = inout(reg) $fetch.ptr,
            bytes = in(reg) $fetch.bytes,
            b0 = out(zmm_reg) _b0,
            b1 = out(zmm_reg) _b1,
            x = out(zmm_reg) _x,
            options(nostack, readonly),
        );
    }};
}

/// See [`Simd::fma_steps`](crate::simd::Simd::fma_steps).
///
/// # Safety
/// As there; R is at most 12.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn fma_steps<const R: usize>(
    sums: &mut [[__m512; 2]; R],
    rows: *const f32,
    stride: usize,
    columns: *const f32,
    fetch: &mut Fetch,
) {
    macro_rules! by_rows {
        ($($count:literal: $row:tt)*) => { by_rows!(@ [] $($count: $row)*) };
        (@ [$($before:tt)*] $count:literal: $row:tt $($rest:tt)*) => {
            if R == $count {
                // SAFETY: R rows hold eight values each and the columns two vectors for each of them, by the contract;
                // nothing is written, and any address can be fetched.
                unsafe { steps!(sums, rows, stride, columns, fetch; $($before)* $row) }
            } else {
                by_rows!(@ [$($before)* $row] $($rest)*)
            }
        };
        (@ [$($before:tt)*]) => { debug_assert!(false, "a tile of {R} rows") };
    }
    by_rows!(
        1: (0 1 "{p0}")
        2: (2 3 "{p0} + 1 * {s}")
        3: (4 5 "{p0} + 2 * {s}")
        4: (6 7 "{p1}")
        5: (8 9 "{p1} + 1 * {s}")
        6: (10 11 "{p1} + 2 * {s}")
        7: (12 13 "{p2}")
        8: (14 15 "{p2} + 1 * {s}")
        9: (16 17 "{p2} + 2 * {s}")
        10: (18 19 "{p3}")
        11: (20 21 "{p3} + 1 * {s}")
        12: (22 23 "{p3} + 2 * {s}")
    );
}
