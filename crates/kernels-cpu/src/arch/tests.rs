//! Every method of [`Simd`] against what it means for one lane, on every instruction set of this processor: at
//! values where instruction sets could part, and exhaustively where a lane has 16 bits or fewer.

use crate::Isa;
use crate::factor::{Words, as_floats};
use crate::simd::{Simd, end_streams, exp, exp_of_negative, sigmoid};
use half::{bf16, f16};
use numerics::Philox;

/// The most lanes there are.
const MOST: usize = 16;

/// Zeros, ties, the ends of the range, what is denormal, what is not finite.
const EDGES: [f32; 24] = [
    0.0,
    -0.0,
    0.5,
    -0.5,
    1.0,
    -1.0,
    1.5,
    -2.5,
    3.0,
    -1.0 / 3.0,
    0.499_999_97,
    8_388_607.5,
    -8_388_609.0,
    1e-40,
    -1e-45,
    f32::MIN_POSITIVE,
    -1.175_494_2e-38,
    f32::MAX,
    f32::MIN,
    1e20,
    -1e-20,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
];

/// Runs `f` on every instruction set.
macro_rules! on_every_isa {
    ($f:ident) => {
        for isa in Isa::available() {
            dispatch!(isa, $f());
        }
    };
}

/// The lanes of a vector.
unsafe fn lanes<S: Simd>(v: S::V) -> Vec<f32> {
    let mut out = vec![0.0; S::LANES];
    // SAFETY: room for the lanes (so for every block of this file, where nothing else is said: pointers are to
    // arrays of at least the lanes that are read or written, and `dispatch!` chose the instruction set).
    unsafe { S::store(out.as_mut_ptr(), v) };
    out
}

/// The lanes of a vector of integers.
unsafe fn ints<S: Simd>(v: S::I) -> Vec<i32> {
    assert_eq!(size_of::<S::I>(), 4 * S::LANES);
    let mut out = vec![0i32; S::LANES];
    // SAFETY: as many bytes as the vector has.
    unsafe { out.as_mut_ptr().cast::<S::I>().write_unaligned(v) };
    out
}

/// The same bits, or both no numbers.
#[track_caller]
fn same<S: Simd>(what: &str, of: &[f32], got: f32, expected: f32) {
    let is_same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
    let isa = S::ISA.name();
    assert!(is_same, "{isa} {what} of {of:?}: {got:e}, not {expected:e}");
}

/// Edges and values of every size, `MOST` times as many as there are edges.
fn values(name: &str) -> Vec<f32> {
    let mut rng = Philox::new(3, name).rng();
    let random = |_| f32::from_bits((rng.below(1 << 16) << 16 | rng.below(1 << 16)) as u32);
    let mut values: Vec<f32> = (0..EDGES.len() * (MOST - 1)).map(random).collect();
    values.extend(EDGES);
    values
}

#[inline(always)]
unsafe fn arithmetic<S: Simd>() {
    let (a, b, c) = (values("a"), values("b"), values("c"));
    // Each edge meets each edge.
    let edges = EDGES.map(|a| EDGES.map(|b| (a, b))).concat();
    let pairs = a.iter().copied().zip(b).chain(edges);
    let triples: Vec<[f32; 3]> = pairs
        .zip(c.iter().cycle())
        .map(|((a, b), &c)| [a, b, c])
        .collect();
    for triples in triples.chunks_exact(S::LANES) {
        let column = |i: usize| -> Vec<f32> { triples.iter().map(|triple| triple[i]).collect() };
        let (a, b, c) = (column(0), column(1), column(2));
        // SAFETY: see `lanes`.
        unsafe {
            let (va, vb, vc) = (
                S::load(a.as_ptr()),
                S::load(b.as_ptr()),
                S::load(c.as_ptr()),
            );
            let check = |what: &str, got: S::V, expected: &dyn Fn([f32; 3]) -> f32| {
                for (got, &of) in lanes::<S>(got).into_iter().zip(triples) {
                    same::<S>(what, &of, got, expected(of));
                }
            };
            check("splat", S::splat(a[0]), &|_| a[0]);
            check("add", S::add(va, vb), &|[a, b, _]| a + b);
            check("sub", S::sub(va, vb), &|[a, b, _]| a - b);
            check("mul", S::mul(va, vb), &|[a, b, _]| a * b);
            check("div", S::div(va, vb), &|[a, b, _]| a / b);
            check("sqrt", S::sqrt(va), &|[a, ..]| a.sqrt());
            check("round", S::round(va), &|[a, ..]| a.round_ties_even());
            check("fma", S::fma(va, vb, vc), &|[a, b, c]| match S::ISA {
                Isa::Portable => a * b + c,
                _ => a.mul_add(b, c),
            });
            check("select_lt", S::select_lt(va, vb, vc, va), &|[a, b, c]| {
                if a < b { c } else { a }
            });
            // Which zero is larger, and what is larger than no number, is left open.
            let is_open = |[a, b, _]: [f32; 3]| a == b || a.is_nan() || b.is_nan();
            let (max, min) = (lanes::<S>(S::max(va, vb)), lanes::<S>(S::min(va, vb)));
            for ((max, min), &of) in max.into_iter().zip(min).zip(triples) {
                if !is_open(of) {
                    same::<S>("max", &of, max, of[0].max(of[1]));
                    same::<S>("min", &of, min, of[0].min(of[1]));
                }
            }
        }
    }
}

#[test]
fn arithmetic_is_that_of_each_lane() {
    on_every_isa!(arithmetic);
}

#[inline(always)]
unsafe fn reductions<S: Simd>() {
    let x: Vec<f32> = crate::check::normal(MOST * 64, "x");
    for x in x.chunks_exact(S::LANES) {
        let mut tree = x.to_vec();
        while tree.len() > 1 {
            let (low, high) = tree.split_at(tree.len() / 2);
            tree = low.iter().zip(high).map(|(a, b)| a + b).collect();
        }
        let largest = x.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
        // SAFETY: see `lanes`.
        unsafe {
            let v = S::load(x.as_ptr());
            same::<S>("reduce_add", x, S::reduce_add(v), tree[0]);
            same::<S>("reduce_max", x, S::reduce_max(v), largest);
        }
    }
}

#[test]
fn a_vector_is_summed_by_halves() {
    on_every_isa!(reductions);
}

#[inline(always)]
unsafe fn parts<S: Simd>() {
    for n in 0..=S::LANES {
        let x: Vec<f32> = (1..=n).map(|i| i as f32).collect();
        // SAFETY: see `lanes`; there are `n` values, and room for as many between sentinels.
        unsafe {
            let v = S::load_partial(x.as_ptr(), n);
            let got = lanes::<S>(v);
            assert!(got[..n] == x && got[n..].iter().all(|x| x.to_bits() == 0));
            let mut out = vec![-7.0; n + 2];
            S::store_partial(out.as_mut_ptr().add(1), S::add(v, S::splat(1.0)), n);
            let stored = out[1..=n].iter().zip(&x);
            assert!(stored.into_iter().all(|(got, x)| *got == x + 1.0));
            assert_eq!((out[0], out[n + 1]), (-7.0, -7.0), "{} {n}", S::ISA.name());
        }
    }
}

#[test]
fn parts_of_a_vector_leave_the_rest_alone() {
    on_every_isa!(parts);
}

/// A vector that was written `at` words from the start arrived, and nothing else.
fn is_alone<S: Simd>(mut out: Words, at: usize, vector: &[f32]) {
    for (idx, got) in as_floats(&mut out).iter().enumerate() {
        let expected = idx.checked_sub(at).and_then(|lane| vector.get(lane));
        assert_eq!(
            got.to_bits(),
            expected.map_or(0, |x| x.to_bits()),
            "{} {idx}",
            S::ISA.name()
        );
    }
}

#[inline(always)]
unsafe fn streamed<S: Simd>() {
    let mut out = Words::zeroed(3 * MOST);
    // SAFETY: see `lanes`; the words start at a cache line, and the vector in the middle at a multiple of its lanes.
    unsafe {
        let x = S::load(values("stream").as_ptr());
        S::stream(out.as_mut_ptr().cast::<f32>().add(MOST), x);
        end_streams();
        is_alone::<S>(out, MOST, &lanes::<S>(x)[..S::LANES]);
    }
}

#[test]
fn what_goes_past_the_caches_arrives() {
    on_every_isa!(streamed);
}

#[inline(always)]
unsafe fn copied<S: Simd>() {
    let (mut out, from) = (Words::zeroed(3 * MOST), values("copy"));
    // SAFETY: see `lanes`; there are as many values after the first.
    unsafe {
        let from = &from[1..=S::LANES];
        S::copy_aside(out.as_mut_ptr().cast::<f32>().add(MOST + 1), from.as_ptr());
        is_alone::<S>(out, MOST + 1, from);
    }
}

#[test]
fn what_is_copied_aside_arrives() {
    on_every_isa!(copied);
}

/// Rounded to bf16, or zero where that is allowed.
#[track_caller]
fn is_factor<S: Simd>(what: &str, x: f32, got: bf16) {
    let expected = bf16::from_f32(x);
    let is_zero = x.abs() < f32::MIN_POSITIVE && got.to_f32() == 0.0;
    let got_bits = got.to_bits();
    let isa = S::ISA.name();
    assert!(
        is_zero || got_bits == expected.to_bits(),
        "{isa} {what} {x:e}: {got}"
    );
}

#[inline(always)]
unsafe fn roundings<S: Simd>() {
    // Below, at and above the tie, for every upper half.
    for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
        let bits = (0..1u32 << 16).map(|high| high << 16 | low);
        let x: Vec<f32> = bits.map(f32::from_bits).collect();
        for x in x.chunks_exact(S::LANES) {
            let [mut halves, mut factors] = [(); 2].map(|_| vec![bf16::ZERO; S::LANES]);
            let mut pairs = vec![bf16::ZERO; 2 * S::LANES];
            // SAFETY: see `lanes`.
            let (rounded, back) = unsafe {
                let v = S::load(x.as_ptr());
                S::store_bf16(halves.as_mut_ptr(), v);
                S::store_factors(factors.as_mut_ptr(), v);
                let paired = S::pair_up(v, S::sub(S::splat(0.0), v));
                S::store(pairs.as_mut_ptr().cast(), paired);
                let back = S::load_bf16(halves.as_ptr());
                (lanes::<S>(S::round_bf16(v)), lanes::<S>(back))
            };
            for i in 0..S::LANES {
                let expected = bf16::from_f32(x[i]);
                let isa = S::ISA.name();
                assert_eq!(
                    halves[i].to_bits(),
                    expected.to_bits(),
                    "{isa} store_bf16 {:e}",
                    x[i]
                );
                same::<S>("round_bf16", &x[i..=i], rounded[i], expected.to_f32());
                same::<S>("load_bf16", &x[i..=i], back[i], expected.to_f32());
                is_factor::<S>("store_factors", x[i], factors[i]);
                if !x[i].is_nan() {
                    is_factor::<S>("pair_up", x[i], pairs[2 * i]);
                    is_factor::<S>("pair_up", 0.0 - x[i], pairs[2 * i + 1]);
                }
            }
        }
    }
}

#[test]
fn every_bf16_is_read_and_the_nearest_is_written() {
    on_every_isa!(roundings);
}

#[inline(always)]
unsafe fn pairs<S: Simd>() {
    let whole = |i: usize| bf16::from_f32((i * 37 % 61) as f32 - 30.0);
    let right: Vec<bf16> = (0..2 * S::LANES).map(whole).collect();
    let left = [whole(100), whole(101)];
    // SAFETY: see `lanes`; a part of the left operand is a pair, or a value as f32.
    unsafe {
        let mut sums = S::splat(5.0);
        for part in 0..S::PAIR_PARTS {
            let value = left[part].to_f32();
            let word: *const bf16 = match S::PAIR_PARTS {
                1 => left.as_ptr(),
                _ => (&raw const value).cast(),
            };
            let b = S::load_pairs(right.as_ptr(), part);
            sums = S::dot_pairs(sums, S::splat_pair(word), b);
        }
        for (i, got) in lanes::<S>(sums).into_iter().enumerate() {
            let product = |j: usize| left[j].to_f32() * right[2 * i + j].to_f32();
            same::<S>("dot_pairs", &[i as f32], got, 5.0 + product(0) + product(1));
        }
        let of = |j: usize| -> Vec<f32> {
            right
                .iter()
                .skip(j)
                .step_by(2)
                .map(|x| x.to_f32())
                .collect()
        };
        let (first, second) = (of(0), of(1));
        let zipped = S::zip_bf16(S::load(first.as_ptr()), S::load(second.as_ptr()));
        let mut out = vec![bf16::ZERO; 2 * S::LANES];
        S::store(out.as_mut_ptr().cast(), zipped);
        assert!(out == right, "{} zip_bf16", S::ISA.name());
        let [unzipped_first, unzipped_second] = S::unzip_bf16(S::load(right.as_ptr().cast()));
        assert_eq!(lanes::<S>(unzipped_first), first, "{}", S::ISA.name());
        assert_eq!(lanes::<S>(unzipped_second), second, "{}", S::ISA.name());
    }
}

#[test]
fn pairs_of_bf16_are_joined_and_multiplied() {
    on_every_isa!(pairs);
}

#[inline(always)]
unsafe fn bytes<S: Simd>() {
    let all: Vec<u8> = (0..=255).collect();
    for b in all.chunks_exact(4 * S::LANES) {
        let stored = |v: S::B| -> Vec<u8> {
            let mut out = vec![0; 4 * S::LANES];
            // SAFETY: see `lanes`.
            unsafe { S::store_bytes(out.as_mut_ptr(), v) };
            out
        };
        macro_rules! bits {
            ($($shift:literal)*) => {$(
                let mask = 0xff >> $shift & 0b1101_1011;
                let expected: Vec<u8> = b.iter().map(|b| b >> $shift & mask).collect();
                // SAFETY: see `lanes`.
                let got = unsafe { stored(S::bits::<$shift>(S::load_bytes(b.as_ptr()), mask)) };
                assert_eq!(got, expected, "{} bits {}", S::ISA.name(), $shift);
            )*};
        }
        bits!(0 1 2 3 4 5 6 7);
        macro_rules! join {
            ($($shift:literal)*) => {$(
                let expected: Vec<u8> = b.iter().map(|b| b & 3 | (b >> $shift) << $shift).collect();
                // SAFETY: see `lanes`.
                let got = unsafe {
                    let v = S::load_bytes(b.as_ptr());
                    let high = S::bits::<$shift>(v, 0xff >> $shift);
                    stored(S::join_bits::<$shift>(S::bits::<0>(v, 3), high))
                };
                assert_eq!(got, expected, "{} join {}", S::ISA.name(), $shift);
            )*};
        }
        join!(2 4);
    }
}

#[test]
fn bits_of_bytes_are_taken_and_joined() {
    on_every_isa!(bytes);
}

#[inline(always)]
unsafe fn products<S: Simd>() {
    // Fours of the ends of both ranges, then any: all that could leave 16 bits on the way.
    const W: [u8; 4] = [0, 127, 128, 255];
    const X: [i8; 4] = [-128, -1, 1, 127];
    let mut rng = Philox::new(3, "bytes").rng();
    let mut of = |i: usize| -> ([u8; 4], [i8; 4]) {
        if i < 1 << 16 {
            let digit = |j: usize| i >> (2 * j) & 3;
            let (w, x) = ([0, 1, 2, 3].map(digit), [4, 5, 6, 7].map(digit));
            return (w.map(|i| W[i]), x.map(|i| X[i]));
        }
        (
            [0; 4].map(|_: i32| rng.below(256) as u8),
            [0; 4].map(|_: i32| rng.below(256) as u8 as i8),
        )
    };
    for first in (0..(1 << 16) + 4096).step_by(S::LANES) {
        let lanes: Vec<([u8; 4], [i8; 4])> = (first..first + S::LANES).map(&mut of).collect();
        let w: Vec<u8> = lanes.iter().flat_map(|(w, _)| *w).collect();
        let small: Vec<u8> = w.iter().map(|w| w & 127).collect();
        let x: Vec<u8> = lanes.iter().flat_map(|(_, x)| x.map(|x| x as u8)).collect();
        // The same four in every lane.
        let one = lanes[S::LANES / 2].1;
        // SAFETY: see `lanes`.
        let [got, of_small, of_one] = unsafe {
            let (acc, x) = (S::splat_int(-1000), S::load_bytes(x.as_ptr()));
            let (w, small) = (S::load_bytes(w.as_ptr()), S::load_bytes(small.as_ptr()));
            [
                S::dot_bytes::<false>(acc, w, x),
                S::dot_bytes::<true>(acc, small, x),
                S::dot_bytes::<false>(acc, w, S::splat_bytes(one.as_ptr())),
            ]
            .map(|v| ints::<S>(v))
        };
        let mut pairs = vec![0i16; 2 * S::LANES];
        // SAFETY: as above.
        unsafe {
            let (w, x) = (S::load_bytes(small.as_ptr()), S::load_bytes(x.as_ptr()));
            S::store_bytes(pairs.as_mut_ptr().cast(), S::dot_pairs_of_bytes(w, x));
        }
        for (i, (w, x)) in lanes.into_iter().enumerate() {
            for (j, pair) in pairs[2 * i..][..2].iter().enumerate() {
                let product = |i: usize| i16::from(w[i] & 127) * i16::from(x[i]);
                let sum = product(2 * j) + product(2 * j + 1);
                assert_eq!(*pair, sum, "{} {w:?} {x:?} pair {j}", S::ISA.name());
            }
            let sum = |w: [u8; 4], x: [i8; 4]| -> i32 {
                let products = w
                    .into_iter()
                    .zip(x)
                    .map(|(w, x)| i32::from(w) * i32::from(x));
                products.sum::<i32>() - 1000
            };
            let what = format!("{} {w:?} {x:?}", S::ISA.name());
            assert_eq!(got[i], sum(w, x), "{what}");
            assert_eq!(of_small[i], sum(w.map(|w| w & 127), x), "{what} small");
            assert_eq!(of_one[i], sum(w, one), "{what} with {one:?}");
        }
    }
}

#[test]
fn products_of_bytes_are_exact_at_the_ends_of_their_ranges() {
    on_every_isa!(products);
}

#[inline(always)]
unsafe fn words<S: Simd>() {
    let name = S::ISA.name();
    let all: Vec<u8> = (0..=255).collect();
    for b in all.chunks_exact(4 * S::LANES) {
        let mut got = [vec![0i16; 2 * S::LANES], vec![0i16; 2 * S::LANES]];
        // SAFETY: see `lanes` (so for every block below).
        unsafe {
            let [lower, upper] = S::to_words(S::load_bytes(b.as_ptr()));
            S::store_bytes(got[0].as_mut_ptr().cast(), lower);
            S::store_bytes(got[1].as_mut_ptr().cast(), upper);
        }
        for (first, got) in [0, 2].into_iter().zip(got) {
            let expected = b
                .chunks(4)
                .flat_map(|b| [b[first].into(), b[first + 1].into()]);
            assert!(got.into_iter().eq(expected), "{name} words from {first}");
        }
    }
    const ENDS: [i16; 5] = [i16::MIN, -1, 0, 1, i16::MAX];
    let (a, b): (Vec<i16>, Vec<i16>) = (0..625 * 16)
        .map(|i| (ENDS[i % 5], ENDS[i / 5 % 5]))
        .unzip();
    for (a, b) in a
        .chunks_exact(2 * S::LANES)
        .zip(b.chunks_exact(2 * S::LANES))
    {
        let mut sums = vec![0i16; 2 * S::LANES];
        let mut less = vec![0i32; S::LANES];
        let starts: Vec<i32> = (0..S::LANES as i32).map(|i| i32::MAX - i).collect();
        // SAFETY: as above.
        let dots = unsafe {
            let (a, b) = (
                S::load_bytes(a.as_ptr().cast()),
                S::load_bytes(b.as_ptr().cast()),
            );
            S::store_bytes(sums.as_mut_ptr().cast(), S::add_words(a, b));
            let start = S::load_int(starts.as_ptr());
            S::store_int(less.as_mut_ptr(), S::sub_int(S::splat_int(-3), start));
            ints::<S>(S::dot_words(start, a, b))
        };
        for (i, (&a, &b)) in a.iter().zip(b).enumerate() {
            assert_eq!(sums[i], a.wrapping_add(b), "{name} {a} + {b}");
        }
        for (i, start) in starts.into_iter().enumerate() {
            let product = |word: usize| i32::from(a[2 * i + word]) * i32::from(b[2 * i + word]);
            let dot = start.wrapping_add(product(0)).wrapping_add(product(1));
            assert_eq!(
                dots[i],
                dot,
                "{name} {:?} {:?}",
                &a[2 * i..][..2],
                &b[2 * i..][..2]
            );
            assert_eq!(less[i], (-3i32).wrapping_sub(start), "{name} -3 - {start}");
        }
    }
    let values: Vec<f32> = (0..S::LANES)
        .map(|i| [-32_768.0, 32_767.0, -1.0, 0.0][i % 4])
        .collect();
    let mut stored = vec![7i16; S::LANES + 1];
    // SAFETY: as above.
    unsafe { S::store_words(stored.as_mut_ptr(), S::load(values.as_ptr())) };
    assert_eq!(stored.pop(), Some(7), "{name}");
    assert!(
        stored.into_iter().map(f32::from).eq(values),
        "{name} stored words"
    );
}

#[test]
fn words_are_made_added_and_multiplied_and_wrap() {
    on_every_isa!(words);
}

#[inline(always)]
unsafe fn sums_of_words<S: Simd>() {
    let mut rng = Philox::new(3, "words").rng();
    let mut random =
        |len: usize| -> Vec<i16> { (0..len).map(|_| rng.below(1 << 16) as u16 as i16).collect() };
    macro_rules! shapes {
        ($($rows:literal by $steps:literal),*) => {$(
            if $rows > S::TILE_ROWS / 2 {
                return;
            }
            // Rows lie a word further apart than they are long.
            let (length, stride) = (4 * $steps, 4 * $steps + 2);
            let rows = random($rows * stride);
            let columns = random($steps * 8 * S::LANES);
            // SAFETY: see `lanes`.
            let got = unsafe {
                let mut sums = [[S::splat_int(9); 2]; $rows];
                let (rows, columns) = (rows.as_ptr().cast(), columns.as_ptr().cast());
                S::dot_sums::<$rows, $steps>(&mut sums, rows, stride / 2, columns);
                sums
            };
            for (r, got) in got.into_iter().enumerate() {
                for (half, got) in got.into_iter().enumerate() {
                    // SAFETY: as above.
                    let got = unsafe { ints::<S>(got) };
                    for lane in 0..S::LANES {
                        let mut expected = 9i32;
                        for i in 0..length {
                            let (step, word) = (i / 4, i % 4);
                            if word >= 2 {
                                continue;
                            }
                            // Of the columns: two lower words of both halves, and two upper ones.
                            let column = |upper: usize| {
                                let vector = 4 * step + 2 * upper + half;
                                columns[2 * (S::LANES * vector + lane) + word]
                            };
                            let row = |i: usize| rows[r * stride + i];
                            let sum = |x: i16, w: i16| i32::from(x.wrapping_add(w));
                            let product = sum(row(i), column(1)) * sum(row(i + 2), column(0));
                            expected = expected.wrapping_add(product);
                        }
                        assert_eq!(got[lane], expected, "{} row {r} of {}", S::ISA.name(), $rows);
                    }
                }
            }
        )*};
    }
    shapes!(1 by 4, 1 by 8, 2 by 4, 2 by 8, 3 by 4, 3 by 8);
    shapes!(4 by 4, 4 by 8, 5 by 4, 5 by 8, 6 by 4, 6 by 8);
}

#[test]
fn sums_of_words_are_multiplied_in_any_number_of_rows() {
    on_every_isa!(sums_of_words);
}

#[inline(always)]
unsafe fn sums_of_bytes<S: Simd>() {
    let mut rng = Philox::new(3, "sums of bytes").rng();
    let mut random = |len: usize| -> Vec<u8> { (0..len).map(|_| rng.below(256) as u8).collect() };
    macro_rules! shapes {
        ($($rows:literal by $steps:literal),*) => {$(
            if $rows > S::TILE_ROWS / 2 {
                return;
            }
            let stride = 4 * $steps + 4;
            let rows = random($rows * stride);
            let mut columns = random($steps * 8 * S::LANES);
            columns.iter_mut().for_each(|w| *w &= 127);
            // SAFETY: see `lanes`.
            let got = unsafe {
                let mut sums = [[S::load_bytes(columns.as_ptr()); 2]; $rows];
                let (rows, columns) = (rows.as_ptr().cast(), columns.as_ptr());
                S::dot_bytes_to_words::<$rows, $steps>(&mut sums, rows, stride / 4, columns);
                sums
            };
            for (r, got) in got.into_iter().enumerate() {
                for (half, sums) in got.into_iter().enumerate() {
                    let mut got = vec![0i16; 2 * S::LANES];
                    // SAFETY: as above.
                    unsafe { S::store_bytes(got.as_mut_ptr().cast(), sums) };
                    for (i, got) in got.into_iter().enumerate() {
                        let (lane, pair) = (i / 2, i % 2);
                        let mut expected = 0i16;
                        for (step, byte) in (0..$steps).flat_map(|step| [(step, 0), (step, 1)]) {
                            let byte = 2 * pair + byte;
                            let w = columns[4 * (S::LANES * (2 * step + half) + lane) + byte];
                            let x = rows[r * stride + 4 * step + byte] as i8;
                            expected = expected.wrapping_add(i16::from(w) * i16::from(x));
                        }
                        assert_eq!(got, expected, "{} row {r} of {}", S::ISA.name(), $rows);
                    }
                }
            }
        )*};
    }
    shapes!(1 by 2, 1 by 4, 1 by 8, 2 by 2, 2 by 4, 2 by 8, 3 by 2, 3 by 4, 3 by 8);
    shapes!(4 by 2, 4 by 4, 4 by 8, 5 by 2, 5 by 4, 5 by 8, 6 by 2, 6 by 4, 6 by 8);
}

#[test]
fn products_of_bytes_are_added_up_as_words() {
    on_every_isa!(sums_of_bytes);
}

#[inline(always)]
unsafe fn conversions<S: Simd>() {
    for x in [
        0,
        1,
        -1,
        255,
        -32_768,
        16_777_217,
        -16_777_219,
        1 << 30,
        i32::MAX,
        i32::MIN,
    ] {
        // SAFETY: see `lanes`.
        let float = unsafe { lanes::<S>(S::to_float(S::splat_int(x))) };
        same::<S>("to_float", &[x as f32], float[S::LANES - 1], x as f32);
    }
    for x in [0, 1, -1, 127 * 127 * 32, -128 * 255 * 32] {
        // SAFETY: see `lanes`.
        let next = unsafe { ints::<S>(S::next_byte(S::splat_int(x), S::splat_int(-77))) };
        assert_eq!(next, vec![256 * x - 77; S::LANES], "{}", S::ISA.name());
    }
    let small: Vec<i8> = (-128..=127).collect();
    for x in small.chunks_exact(S::LANES) {
        let floats: Vec<f32> = x.iter().map(|&x| f32::from(x)).collect();
        let mut out = vec![99i8; S::LANES + 1];
        // SAFETY: see `lanes`.
        let (signed, unsigned) = unsafe {
            S::store_ints(out.as_mut_ptr(), S::load(floats.as_ptr()));
            (
                lanes::<S>(S::load_i8(x.as_ptr())),
                lanes::<S>(S::load_u8(x.as_ptr().cast())),
            )
        };
        assert!(
            out[..S::LANES] == *x && out[S::LANES] == 99,
            "{} store_ints",
            S::ISA.name()
        );
        for i in 0..S::LANES {
            same::<S>("load_i8", &[floats[i]], signed[i], floats[i]);
            same::<S>("load_u8", &[floats[i]], unsigned[i], f32::from(x[i] as u8));
        }
    }
    let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    for x in halves.chunks_exact(S::LANES) {
        // SAFETY: see `lanes`.
        let got = unsafe { lanes::<S>(S::load_halves(x.as_ptr())) };
        for (got, x) in got.into_iter().zip(x) {
            same::<S>("load_halves", &[x.to_f32()], got, x.to_f32());
        }
    }
    let exponents: Vec<f32> = (-126..=127).chain([0, 0]).map(|n| n as f32).collect();
    for n in exponents.chunks_exact(S::LANES) {
        // SAFETY: see `lanes`.
        let got = unsafe { lanes::<S>(S::pow2(S::load(n.as_ptr()))) };
        for (got, &n) in got.into_iter().zip(n) {
            same::<S>("pow2", &[n], got, n.exp2());
        }
    }
}

#[test]
fn integers_halves_and_powers_become_floats() {
    on_every_isa!(conversions);
}

#[inline(always)]
unsafe fn exponentials<S: Simd>() {
    let x: Vec<f32> = (0..16_000).map(|i| (i - 8000) as f32 * 0.010_9).collect();
    let isa = S::ISA.name();
    for x in x.chunks_exact(S::LANES) {
        // SAFETY: see `lanes`.
        let [e, of_negative, s] = unsafe {
            let v = S::load(x.as_ptr());
            [exp::<S>(v), exp_of_negative::<S>(v), sigmoid::<S>(v)].map(|v| lanes::<S>(v))
        };
        for i in 0..S::LANES {
            let exact = f64::from(x[i]).exp();
            let check = |what: &str, got: f32, exact: f64, bound: f64| {
                let off = (f64::from(got) / exact - 1.0).abs();
                assert!(
                    off < bound,
                    "{isa} {what} {}: {got} is off by {off:e}",
                    x[i]
                );
            };
            check("exp", e[i], exact, 2.6e-7);
            if x[i] <= 0.0 {
                check("exp_of_negative", of_negative[i], exact, 2.6e-7);
            }
            check("sigmoid", s[i], 1.0 / (1.0 + 1.0 / exact), 5e-7);
        }
    }
    let ends = [f32::NEG_INFINITY, f32::INFINITY];
    // SAFETY: see `lanes`.
    let [low, high] = unsafe { ends.map(|x| lanes::<S>(exp::<S>(S::splat(x)))[0]) };
    assert!((0.0..2e-38).contains(&low) && high.is_finite() && high > 2e38);
    for x in (874..1100)
        .map(|i| i as f32 * -0.1)
        .chain(ends[..1].iter().copied())
    {
        // SAFETY: see `lanes`.
        let got = unsafe { lanes::<S>(exp_of_negative::<S>(S::splat(x)))[0] };
        assert!((0.0..=1.7e-38).contains(&got), "{isa} {x}: {got:e}");
    }
    for n in -150..=0 {
        for x in [0.5f32, 0.7, 1.0, 1.4, 1.9] {
            let exact = f64::from(x) * f64::from(n).exp2();
            // SAFETY: see `lanes`.
            let got = unsafe { lanes::<S>(S::scale_down(S::splat(x), S::splat(n as f32)))[0] };
            let is_right = match exact < f64::from(f32::MIN_POSITIVE) {
                true => (0.0..=2.0 * f32::MIN_POSITIVE).contains(&got),
                false => f64::from(got) == exact,
            };
            assert!(is_right, "{isa} {x} 2^{n}: {got:e}");
        }
    }
}

#[test]
fn exponentials_are_as_near_as_they_say() {
    on_every_isa!(exponentials);
}
