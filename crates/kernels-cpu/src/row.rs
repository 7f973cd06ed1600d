//! Sweeps over one row, shared by the ops that are bound by memory.
//!
//! A row of `len` values is walked in steps of `LANES`; the tail takes the same instructions
//! through `load_partial` and `store_partial`. A reduction runs in four chains, so that the latency
//! of an addition is hidden, and its order follows from `len` and the instruction set alone.
//!
//! The sweeps are macros and not functions of a closure: a closure is a function of its own without
//! the caller's target features, and whether it is inlined is up to the optimizer.

use crate::simd::Simd;
use std::cell::RefCell;
use std::thread::LocalKey;

/// Runs the body for each step of `n <= LANES` values at `i`, all full but the last.
macro_rules! for_lanes {
    ($s:ident, $len:expr, |$i:ident, $n:ident| $body:block) => {{
        let len: usize = $len;
        let mut at = 0;
        while at + <$s as $crate::simd::Simd>::LANES <= len {
            let ($i, $n) = (at, <$s as $crate::simd::Simd>::LANES);
            $body
            at += <$s as $crate::simd::Simd>::LANES;
        }
        if at < len {
            let ($i, $n) = (at, len - at);
            $body
        }
    }};
}

/// Folds a row in four chains, each starting from `init`; the body returns the next value of `acc`.
/// Steps that are left after the last group of four go to the first chain.
macro_rules! fold_lanes {
    ($s:ident, $len:expr, $init:expr, |$acc:ident, $i:ident, $n:ident| $body:block) => {{
        let len: usize = $len;
        let lanes = <$s as $crate::simd::Simd>::LANES;
        let mut chains = [<$s as $crate::simd::Simd>::splat($init); 4];
        let mut at = 0;
        while at + 4 * lanes <= len {
            for (idx, chain) in chains.iter_mut().enumerate() {
                let ($acc, $i, $n) = (*chain, at + idx * lanes, lanes);
                *chain = $body;
            }
            at += 4 * lanes;
        }
        while at + lanes <= len {
            let ($acc, $i, $n) = (chains[0], at, lanes);
            chains[0] = $body;
            at += lanes;
        }
        if at < len {
            let ($acc, $i, $n) = (chains[0], at, len - at);
            chains[0] = $body;
        }
        chains
    }};
}

pub(crate) use {fold_lanes, for_lanes};

/// Values below which a second thread costs more than it brings: at some 20 GB/s a core they take
/// as long as waking a spinning thread, about a microsecond or two.
const MIN_VALUES_PER_THREAD: usize = 8192;

/// Rows of `width` values that a thread takes at least.
pub(crate) fn grain(width: usize) -> usize {
    (MIN_VALUES_PER_THREAD / width.max(1)).max(1)
}

/// Columns that a thread takes at least of `rows` rows: whole cache lines of 16 values.
pub(crate) fn column_grain(rows: usize) -> usize {
    grain(rows).next_multiple_of(16)
}

/// Runs `f` on `len` values of kept memory, whatever was in it.
pub(crate) fn with_scratch<T: Copy + Default, R>(
    key: &'static LocalKey<RefCell<Vec<T>>>,
    len: usize,
    f: impl FnOnce(&mut [T]) -> R,
) -> R {
    key.with_borrow_mut(|scratch| {
        if scratch.len() < len {
            scratch.resize(len, T::default());
        }
        f(&mut scratch[..len])
    })
}

/// Reads `n <= LANES` values; the other lanes are zero.
///
/// # Safety
/// As for [`Simd`]; `n` values are readable at `p`.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd>(p: *const f32, n: usize) -> S::V {
    // SAFETY: forwarded to the caller.
    unsafe {
        if n == S::LANES {
            S::load(p)
        } else {
            S::load_partial(p, n)
        }
    }
}

/// Writes the first `n <= LANES` values.
///
/// # Safety
/// As for [`Simd`]; `n` values are writable at `p`.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(p: *mut f32, v: S::V, n: usize) {
    // SAFETY: forwarded to the caller.
    unsafe {
        if n == S::LANES {
            S::store(p, v)
        } else {
            S::store_partial(p, v, n)
        }
    }
}

/// The first `n` lanes of `v`, `fill` in the others.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn keep<S: Simd>(v: S::V, n: usize, fill: f32) -> S::V {
    const IDX: [f32; 16] = [
        0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.,
    ];
    const { assert!(S::LANES <= IDX.len()) };
    // SAFETY: forwarded to the caller; `IDX` has at least `LANES` values.
    unsafe {
        if n == S::LANES {
            v
        } else {
            S::select_lt(S::load(IDX.as_ptr()), S::splat(n as f32), v, S::splat(fill))
        }
    }
}

/// The sum of the four chains of `fold_lanes!`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn sum<S: Simd>(chains: [S::V; 4]) -> f32 {
    // SAFETY: forwarded to the caller.
    unsafe {
        let [a, b, c, d] = chains;
        S::reduce_add(S::add(S::add(a, b), S::add(c, d)))
    }
}

/// The largest value in the four chains of `fold_lanes!`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn largest<S: Simd>(chains: [S::V; 4]) -> f32 {
    // SAFETY: forwarded to the caller.
    unsafe {
        let [a, b, c, d] = chains;
        S::reduce_max(S::max(S::max(a, b), S::max(c, d)))
    }
}

/// dst += src.
///
/// # Safety
/// As for [`Simd`]; the lengths are equal.
#[inline(always)]
pub(crate) unsafe fn add_assign<S: Simd>(dst: &mut [f32], src: &[f32]) {
    debug_assert_eq!(dst.len(), src.len());
    let (len, dst, src) = (dst.len(), dst.as_mut_ptr(), src.as_ptr());
    // SAFETY: `i + n <= len`.
    unsafe {
        for_lanes!(S, len, |i, n| {
            store::<S>(
                dst.add(i),
                S::add(load::<S>(dst.add(i), n), load::<S>(src.add(i), n)),
                n,
            );
        });
    }
}
