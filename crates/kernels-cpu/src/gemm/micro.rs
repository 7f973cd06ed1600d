//! The register tile: up to TILE_ROWS rows by two vectors, over all of k.

use super::pack::Packed;
use crate::Store;
use crate::simd::Simd;
use half::bf16;

/// How factors lie in memory and are multiplied: plain f32, or pairs of bf16.
pub(super) trait Factor<S: Simd> {
    type Elem: Copy;
    /// The vector loaded from a panel, or a broadcast factor.
    type Operand: Copy;
    /// Values of k that one instruction takes.
    const STEP: usize;

    unsafe fn load(p: *const Self::Elem) -> Self::Operand;
    unsafe fn splat(p: *const Self::Elem) -> Self::Operand;
    unsafe fn madd(acc: S::V, a: Self::Operand, b: Self::Operand) -> S::V;
    /// Where a panel starts.
    unsafe fn panel(b: &Packed, offset: usize) -> *const Self::Elem;
    /// Writes row `r` of a tile of `count` rows from k values; `line` has room for k + 2 vectors.
    unsafe fn pack_row(
        tile: *mut Self::Elem,
        r: usize,
        count: usize,
        x: *const f32,
        k: usize,
        line: *mut f32,
    );
    /// Writes step `i` of `width` columns from one or two rows of f32 (the second may be absent),
    /// zero beyond `cols`.
    unsafe fn pack_step(
        out: *mut Self::Elem,
        width: usize,
        rows: [Option<*const f32>; 2],
        cols: usize,
    );
}

pub(super) struct F32;
pub(super) struct Bf16;

impl<S: Simd> Factor<S> for F32 {
    type Elem = f32;
    type Operand = S::V;
    const STEP: usize = 1;

    #[inline(always)]
    unsafe fn load(p: *const f32) -> S::V {
        // SAFETY: by the contract of `Simd` (so for every block of this file).
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn splat(p: *const f32) -> S::V {
        // SAFETY: as above.
        unsafe { S::splat(*p) }
    }
    #[inline(always)]
    unsafe fn madd(acc: S::V, a: S::V, b: S::V) -> S::V {
        // SAFETY: as above.
        unsafe { S::fma(a, b, acc) }
    }
    #[inline(always)]
    unsafe fn panel(b: &Packed, offset: usize) -> *const f32 {
        // SAFETY: as above.
        unsafe { b.f32().as_ptr().add(offset) }
    }
    #[inline(always)]
    unsafe fn pack_row(
        tile: *mut f32,
        r: usize,
        count: usize,
        x: *const f32,
        k: usize,
        _: *mut f32,
    ) {
        for i in 0..k {
            // SAFETY: as above.
            unsafe { *tile.add(i * count + r) = *x.add(i) }
        }
    }
    #[inline(always)]
    unsafe fn pack_step(out: *mut f32, width: usize, rows: [Option<*const f32>; 2], cols: usize) {
        for j in 0..width {
            let value = match rows[0] {
                // SAFETY: as above.
                Some(row) if j < cols => unsafe { *row.add(j) },
                _ => 0.0,
            };
            // SAFETY: as above.
            unsafe { *out.add(j) = value }
        }
    }
}

impl<S: Simd> Factor<S> for Bf16 {
    type Elem = bf16;
    type Operand = S::P;
    const STEP: usize = 2;

    #[inline(always)]
    unsafe fn load(p: *const bf16) -> S::P {
        // SAFETY: as above.
        unsafe { S::load_pairs(p) }
    }
    #[inline(always)]
    unsafe fn splat(p: *const bf16) -> S::P {
        // SAFETY: as above.
        unsafe { S::splat_pair(p) }
    }
    #[inline(always)]
    unsafe fn madd(acc: S::V, a: S::P, b: S::P) -> S::V {
        // SAFETY: as above.
        unsafe { S::dot_pairs(acc, a, b) }
    }
    #[inline(always)]
    unsafe fn panel(b: &Packed, offset: usize) -> *const bf16 {
        // SAFETY: as above.
        unsafe { b.bf16().as_ptr().add(offset) }
    }
    #[inline(always)]
    unsafe fn pack_row(
        tile: *mut bf16,
        r: usize,
        count: usize,
        x: *const f32,
        k: usize,
        line: *mut f32,
    ) {
        // SAFETY: `line` has room for k bf16 values and one vector more; the rest as above.
        unsafe {
            let rounded = line.cast::<bf16>();
            let mut i = 0;
            while i < k {
                let n = (k - i).min(S::LANES);
                S::store_bf16(rounded.add(i), S::load_partial(x.add(i), n));
                i += S::LANES;
            }
            if k % 2 == 1 {
                *rounded.add(k) = bf16::ZERO;
            }
            let (pairs, tile) = (rounded.cast::<u32>(), tile.cast::<u32>());
            for i in 0..k.div_ceil(2) {
                *tile.add(i * count + r) = *pairs.add(i);
            }
        }
    }
    #[inline(always)]
    unsafe fn pack_step(out: *mut bf16, width: usize, rows: [Option<*const f32>; 2], cols: usize) {
        let mut even = [bf16::ZERO; 16];
        let mut odd = [bf16::ZERO; 16];
        let mut j = 0;
        while j < width {
            let n = cols.saturating_sub(j).min(S::LANES);
            // SAFETY: as above; a vector has at most 16 lanes.
            unsafe {
                for (row, half) in [(rows[0], &mut even), (rows[1], &mut odd)] {
                    let v = row.map_or(S::splat(0.0), |row| {
                        S::load_partial(row.add(j.min(cols)), n)
                    });
                    S::store_bf16(half.as_mut_ptr(), v);
                }
                for l in 0..S::LANES.min(width - j) {
                    *out.add(2 * (j + l)) = even[l];
                    *out.add(2 * (j + l) + 1) = odd[l];
                }
            }
            j += S::LANES;
        }
    }
}

/// Writes (or adds) `count` rows by `cols` columns to `out`, rows `ldc` apart.
///
/// # Safety
/// `count <= TILE_ROWS`, `cols <= 2 * LANES`; the tile and the panel hold `steps` steps.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, F: Factor<S>>(
    count: usize,
    steps: usize,
    a: *const F::Elem,
    b: *const F::Elem,
    out: *mut f32,
    ldc: usize,
    cols: usize,
    store: Store,
) {
    // SAFETY: forwarded; each arm has as many rows as it says.
    unsafe {
        match count {
            1 => tile_rows::<S, F, 1>(steps, a, b, out, ldc, cols, store),
            2 => tile_rows::<S, F, 2>(steps, a, b, out, ldc, cols, store),
            3 => tile_rows::<S, F, 3>(steps, a, b, out, ldc, cols, store),
            4 => tile_rows::<S, F, 4>(steps, a, b, out, ldc, cols, store),
            5 => tile_rows::<S, F, 5>(steps, a, b, out, ldc, cols, store),
            6 => tile_rows::<S, F, 6>(steps, a, b, out, ldc, cols, store),
            7 => tile_rows::<S, F, 7>(steps, a, b, out, ldc, cols, store),
            8 => tile_rows::<S, F, 8>(steps, a, b, out, ldc, cols, store),
            9 => tile_rows::<S, F, 9>(steps, a, b, out, ldc, cols, store),
            10 => tile_rows::<S, F, 10>(steps, a, b, out, ldc, cols, store),
            11 => tile_rows::<S, F, 11>(steps, a, b, out, ldc, cols, store),
            _ => tile_rows::<S, F, 12>(steps, a, b, out, ldc, cols, store),
        }
    }
}

#[inline(always)]
unsafe fn tile_rows<S: Simd, F: Factor<S>, const R: usize>(
    steps: usize,
    a: *const F::Elem,
    b: *const F::Elem,
    out: *mut f32,
    ldc: usize,
    cols: usize,
    store: Store,
) {
    // SAFETY: see `tile`.
    unsafe {
        let mut acc = [[S::splat(0.0); 2]; R];
        let (mut a, mut b) = (a, b);
        for _ in 0..steps {
            let b0 = F::load(b);
            let b1 = F::load(b.add(S::LANES * F::STEP));
            for r in 0..R {
                let x = F::splat(a.add(r * F::STEP));
                acc[r][0] = F::madd(acc[r][0], x, b0);
                acc[r][1] = F::madd(acc[r][1], x, b1);
            }
            a = a.add(R * F::STEP);
            b = b.add(2 * S::LANES * F::STEP);
        }
        let first = cols.min(S::LANES);
        let second = cols - first;
        for r in 0..R {
            let row = out.add(r * ldc);
            if cols == 2 * S::LANES {
                let (mut v0, mut v1) = (acc[r][0], acc[r][1]);
                if store == Store::Add {
                    v0 = S::add(S::load(row), v0);
                    v1 = S::add(S::load(row.add(S::LANES)), v1);
                }
                S::store(row, v0);
                S::store(row.add(S::LANES), v1);
            } else {
                let (mut v0, mut v1) = (acc[r][0], acc[r][1]);
                if store == Store::Add {
                    v0 = S::add(S::load_partial(row, first), v0);
                }
                S::store_partial(row, v0, first);
                if second > 0 {
                    if store == Store::Add {
                        v1 = S::add(S::load_partial(row.add(S::LANES), second), v1);
                    }
                    S::store_partial(row.add(S::LANES), v1, second);
                }
            }
        }
    }
}
