//! Some steps of a product, written out in assembler.
//!
//! A loop of one step, as it is compiled, has 2 to 5 % fewer multiply-adds a second: it counts and branches at each, and
//! there is no register for the strides of many rows. The compiler does not write steps out well (docs/LOG.md).

use super::rows::by_rows;
use crate::simd::Fetch;
use std::arch::asm;
use std::arch::x86_64::{__m256, __m512};

/// Steps that are written out, of vectors of 512 bits and of 256.
pub(super) const STEPS_512: usize = 8;
pub(super) const STEPS_256: usize = 4;

/// The steps of some rows: of each the two sums, and where its value lies. `at` is four bytes for each step, and for each
/// of these a step of the columns has `$scale` bytes; `$half` are those of a vector. One pointer is for three rows.
macro_rules! steps {
    ($vector:ident, $class:ident, at $ats:literal, $scale:literal, $half:literal, pointers $($pointer:ident $first_row:literal)*;
     $sums:ident, $rows:ident, $stride:ident, $columns:ident, $fetch:ident;
     $(($first:literal $second:literal $row:literal))*) => {{
        let (_b0, _b1, _x): ($vector, $vector, $vector);
        asm!(
            concat!(".irp at, ", $ats),
            concat!("vmovups {b0}, [{columns} + ", $scale, " * \\at]"),
            concat!("vmovups {b1}, [{columns} + ", $scale, " * \\at + ", $half, "]"),
            $(
                concat!("vbroadcastss {x}, dword ptr [", $row, " + \\at]"),
                concat!("vfmadd231ps {", $first, "}, {b0}, {x}"),
                concat!("vfmadd231ps {", $second, "}, {b1}, {x}"),
            )*
            "prefetcht0 [{fetched}]",
            "add {fetched}, {bytes}",
            ".endr",
            concat!("/* not all rows need {s}", $(" {", stringify!($pointer), "}",)* " */"),
            $(
                inout($class) $sums[$first / 2][0],
                inout($class) $sums[$second / 2][1],
            )*
            $($pointer = in(reg) $rows.wrapping_add($first_row * $stride),)*
            s = in(reg) 4 * $stride,
            columns = in(reg) $columns,
            fetched = inout(reg) $fetch.ptr,
            bytes = in(reg) $fetch.bytes,
            b0 = out($class) _b0,
            b1 = out($class) _b1,
            x = out($class) _x,
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
pub(super) unsafe fn of_512<const R: usize>(
    sums: &mut [[__m512; 2]; R],
    rows: *const f32,
    stride: usize,
    columns: *const f32,
    fetch: &mut Fetch,
) {
    // SAFETY: R rows hold a value for each step and the columns two vectors for each of them, by the contract; nothing is
    // written, and any address can be fetched.
    unsafe {
        by_rows!(R of 12, steps(
            __m512, zmm_reg, at "0, 4, 8, 12, 16, 20, 24, 28", "32", "64", pointers p0 0 p1 3 p2 6 p3 9;
            sums, rows, stride, columns, fetch
        ));
    }
}

/// See [`Simd::fma_steps`](crate::simd::Simd::fma_steps).
///
/// # Safety
/// As there; R is at most 6.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn of_256<const R: usize>(
    sums: &mut [[__m256; 2]; R],
    rows: *const f32,
    stride: usize,
    columns: *const f32,
    fetch: &mut Fetch,
) {
    // SAFETY: as above.
    unsafe {
        by_rows!(R of 6, steps(
            __m256, ymm_reg, at "0, 4, 8, 12", "16", "32", pointers p0 0 p1 3;
            sums, rows, stride, columns, fetch
        ));
    }
}
