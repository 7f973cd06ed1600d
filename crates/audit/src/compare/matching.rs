//! Units of two models beside one another: which are alike, and which stand in the same place.

use std::ops::Range;

use numerics::Rng;
use tensor::ops::gemm::{Store, matmul};
use tensor::{Compute, Device, Packed, Tensor};

/// Units of A that are compared at a time.
const ROWS: usize = 256;

/// Units of a block, each with its values, in one or several kinds that are compared apart: of a neuron, say, what it
/// reads and what it writes.
pub(super) struct Units {
    pub(super) count: usize,
    pub(super) kinds: Vec<Values>,
}

/// Values of all units, (units, width).
pub(super) struct Values {
    pub(super) width: usize,
    pub(super) values: Vec<f32>,
}

/// What came out for one block, or for several together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Matching {
    /// Blocks with as many units in A as in B.
    pub(super) blocks: usize,
    /// Units of these.
    pub(super) units: usize,
    /// Units that are most alike the one in the same place.
    pub(super) matches: usize,
    /// The same when A's units are put into an order drawn by chance.
    pub(super) shuffled: usize,
    /// Units with all values the same, to the bit.
    pub(super) identical: usize,
    /// Sum of the likeness of units in the same place.
    pub(super) sum: f64,
    /// Its mean over all orders.
    pub(super) mean: f64,
    /// Its variance over all orders.
    pub(super) variance: f64,
    /// Blocks where the kinds were compared apart.
    pub(super) split: usize,
    /// Units of these, of the model that has fewer.
    pub(super) split_units: usize,
    /// Units for which both kinds name the same unit of the other model, wherever it stands.
    pub(super) agreeing: usize,
}

impl Matching {
    pub(super) fn add(&mut self, other: &Matching) {
        self.blocks += other.blocks;
        self.units += other.units;
        self.matches += other.matches;
        self.shuffled += other.shuffled;
        self.identical += other.identical;
        self.sum += other.sum;
        self.mean += other.mean;
        self.variance += other.variance;
        self.split += other.split;
        self.split_units += other.split_units;
        self.agreeing += other.agreeing;
    }

    /// How far the units in their place are more alike than in any order, in standard deviations.
    pub(super) fn z(&self) -> f64 {
        match self.variance > 0.0 {
            true => (self.sum - self.mean) / self.variance.sqrt(),
            false => 0.0,
        }
    }
}

/// Which unit of the other model is the most alike, and how much.
#[derive(Clone, Copy)]
struct Best {
    at: usize,
    likeness: f32,
}

impl Best {
    const NONE: Best = Best {
        at: usize::MAX,
        likeness: f32::NEG_INFINITY,
    };

    fn offer(&mut self, at: usize, likeness: f32) {
        if likeness > self.likeness {
            *self = Best { at, likeness };
        }
    }
}

/// The most alike units, seen from both models.
struct Pairs {
    of_a: Vec<Best>,
    of_b: Vec<Best>,
}

impl Pairs {
    fn new(a: usize, b: usize) -> Pairs {
        Pairs {
            of_a: vec![Best::NONE; a],
            of_b: vec![Best::NONE; b],
        }
    }

    fn offer(&mut self, i: usize, j: usize, likeness: f32) {
        self.of_a[i].offer(j, likeness);
        self.of_b[j].offer(i, likeness);
    }

    /// The unit of B that names `i` as it is named by it.
    fn mutual(&self, i: usize) -> Option<usize> {
        let j = self.of_a[i].at;
        (self.of_b.get(j)?.at == i).then_some(j)
    }
}

/// Both at the same time: reading and preparing units takes longer than comparing them.
pub(super) fn both<T: Send>(a: impl FnOnce() -> T + Send, b: impl FnOnce() -> T + Send) -> (T, T) {
    std::thread::scope(|scope| {
        let of_a = scope.spawn(a);
        let of_b = b();
        match of_a.join() {
            Ok(of_a) => (of_a, of_b),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Compares a block, and gives for each unit of A the unit of B that both kinds name, where they do.
///
/// Likeness is the correlation of two units' values after the mean unit of each model is taken away, the mean of all
/// kinds. Without that, everything that all units share (that gains are near one, that frequent tokens are far out) would
/// count as likeness.
pub(super) fn compare(device: &Device, a: Units, b: Units) -> (Matching, Vec<Option<usize>>) {
    let (m, n) = (a.count, b.count);
    let is_square = m == n;
    let identical = match is_square {
        true => (0..m).filter(|&i| is_identical(&a, &b, i)).count(),
        false => 0,
    };
    let (a, b) = both(|| a.standardised(), || b.standardised());
    let packed: Vec<Packed> = (b.kinds.iter())
        .map(|kind| packed(device, kind, n))
        .collect();
    let mut all = Pairs::new(m, n);
    let mut apart = [Pairs::new(m, n), Pairs::new(m, n)];
    let (mut rows, mut columns) = (vec![0.0f64; m], vec![0.0f64; n]);
    let (mut squares, mut diagonal) = (0.0f64, 0.0f64);
    let mut first = Tensor::zeros(device, &[ROWS, n]);
    let mut rest = Tensor::zeros(device, &[ROWS, n]);
    for start in (0..m).step_by(ROWS) {
        let chunk = start..m.min(start + ROWS);
        multiply(device, &mut first, &a.kinds[..1], &packed[..1], &chunk);
        multiply(device, &mut rest, &a.kinds[1..], &packed[1..], &chunk);
        let (first, rest) = (first.host(), rest.host());
        for i in chunk.clone() {
            let row = (i - start) * n..(i - start + 1) * n;
            for (j, (&x, &y)) in first[row.clone()].iter().zip(&rest[row]).enumerate() {
                let likeness = (x + y) / a.kinds.len() as f32;
                all.offer(i, j, likeness);
                apart[0].offer(i, j, x);
                apart[1].offer(i, j, y);
                let likeness = f64::from(likeness);
                rows[i] += likeness;
                columns[j] += likeness;
                squares += likeness * likeness;
                if i == j {
                    diagonal += likeness;
                }
            }
        }
    }
    let mut matching = Matching::default();
    if is_square && n > 0 {
        let place = |order: &[usize]| {
            let stands = |i: &usize| all.of_a[order[*i]].at == *i;
            (0..n).filter(stands).count()
        };
        let mut order: Vec<usize> = (0..n).collect();
        matching.matches = place(&order);
        Rng::new(0, "audit.compare").shuffle(&mut order);
        let sum = |sums: &[f64]| sums.iter().map(|s| s * s).sum::<f64>();
        let (total, units) = (rows.iter().sum::<f64>(), n as f64);
        let centred =
            squares - (sum(&rows) + sum(&columns)) / units + total * total / (units * units);
        matching = Matching {
            blocks: 1,
            units: n,
            shuffled: place(&order),
            identical,
            sum: diagonal,
            mean: total / units,
            variance: centred.max(0.0) / (units - 1.0).max(1.0),
            ..matching
        };
    }
    let mut same = vec![None; m];
    if a.kinds.len() > 1 {
        for (i, same) in same.iter_mut().enumerate() {
            *same = (apart[0].mutual(i)).filter(|_| apart[0].mutual(i) == apart[1].mutual(i));
        }
        matching.split = 1;
        matching.split_units = m.min(n);
        matching.agreeing = same.iter().flatten().count();
    }
    (matching, same)
}

fn is_identical(a: &Units, b: &Units, i: usize) -> bool {
    let mut kinds = a.kinds.iter().zip(&b.kinds);
    kinds.all(|(a, b)| {
        let row = i * a.width..(i + 1) * a.width;
        let (a, b) = (&a.values[row.clone()], &b.values[row]);
        a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
    })
}

fn packed(device: &Device, kind: &Values, units: usize) -> Packed {
    let mut values = Tensor::zeros(device, &[units, kind.width]);
    values.write(&kind.values);
    let mut packed = Packed::new(device, Compute::F32, units, kind.width);
    packed.pack(device, values.view());
    packed
}

/// Sums over kinds of what units of A in `chunk` have in common with all of B.
fn multiply(device: &Device, out: &mut Tensor, a: &[Values], b: &[Packed], chunk: &Range<usize>) {
    out.clear();
    for (kind, packed) in a.iter().zip(b) {
        let mut values = Tensor::zeros(device, &[chunk.len(), kind.width]);
        values.write(&kind.values[chunk.start * kind.width..chunk.end * kind.width]);
        let rows = out.rows_mut(chunk.len());
        matmul(device, rows, values.view(), packed, Store::Add);
    }
}

impl Units {
    /// Without the mean unit and each unit's own mean, and of length one. What is no number counts as zero.
    fn standardised(mut self) -> Units {
        for kind in &mut self.kinds {
            let width = kind.width;
            let mut mean = vec![0.0f64; width];
            for unit in kind.values.chunks_exact_mut(width) {
                for (mean, value) in mean.iter_mut().zip(unit) {
                    if !value.is_finite() {
                        *value = 0.0;
                    }
                    *mean += f64::from(*value) / self.count as f64;
                }
            }
            let mut centred = vec![0.0f64; width];
            for unit in kind.values.chunks_exact_mut(width) {
                for ((centred, value), mean) in centred.iter_mut().zip(&*unit).zip(&mean) {
                    *centred = f64::from(*value) - mean;
                }
                let own = centred.iter().sum::<f64>() / width as f64;
                let square = centred
                    .iter()
                    .map(|value| (value - own).powi(2))
                    .sum::<f64>();
                // A unit that is the mean unit has no direction: rounding must not give it one.
                let scale = match square > f64::from(f32::EPSILON).powi(2) * width as f64 {
                    true => 1.0 / square.sqrt(),
                    false => 0.0,
                };
                for (value, centred) in unit.iter_mut().zip(&centred) {
                    *value = ((centred - own) * scale) as f32;
                }
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use numerics::Philox;

    fn device() -> Device {
        Device::cpu(kernels_cpu::Isa::detect(), 2)
    }

    /// Units with values drawn by chance, all around the same mean.
    fn units(count: usize, widths: &[usize], seed: u64) -> Units {
        let kinds = widths.iter().enumerate().map(|(kind, &width)| {
            let philox = Philox::new(seed, &format!("kind {kind}"));
            let values = (0..count * width).map(|idx| 1.0 + 0.1 * philox.normal(idx as u64));
            Values {
                width,
                values: values.collect(),
            }
        });
        Units {
            count,
            kinds: kinds.collect(),
        }
    }

    fn reordered(units: &Units, order: &[usize]) -> Units {
        let kinds = units.kinds.iter().map(|kind| Values {
            width: kind.width,
            values: (order.iter())
                .flat_map(|&i| kind.values[i * kind.width..(i + 1) * kind.width].to_vec())
                .collect(),
        });
        Units {
            count: order.len(),
            kinds: kinds.collect(),
        }
    }

    #[test]
    fn units_of_one_model_are_found_in_their_place_and_in_another_order() {
        let device = device();
        let n = 300;
        let widths = [40, 30];
        let (matching, same) = compare(&device, units(n, &widths, 1), units(n, &widths, 1));
        assert_eq!((matching.matches, matching.identical), (n, n));
        assert_eq!(matching.agreeing, n);
        assert!(same.iter().enumerate().all(|(i, j)| *j == Some(i)));
        assert!((matching.sum - n as f64).abs() < 1e-3, "{matching:?}");
        assert!(matching.shuffled < 8, "{matching:?}");

        let mut order: Vec<usize> = (0..n).collect();
        Rng::new(3, "order").shuffle(&mut order);
        let other = reordered(&units(n, &widths, 1), &order);
        let (matching, same) = compare(&device, units(n, &widths, 1), other);
        assert!(matching.matches < 8, "{matching:?}");
        assert_eq!(matching.agreeing, n);
        assert!(order.iter().enumerate().all(|(j, i)| same[*i] == Some(j)));

        // Fewer units than the other has: no places to compare, but each is found.
        let fewer = reordered(&units(n, &widths, 1), &order[..100]);
        let (matching, _) = compare(&device, fewer, units(n, &widths, 1));
        assert_eq!((matching.blocks, matching.agreeing), (0, 100));
    }

    #[test]
    fn units_of_two_models_are_alike_by_chance_only() {
        let device = device();
        let (n, mut all) = (96, Matching::default());
        for seed in 0..100 {
            let (a, b) = (
                units(n, &[24, 16], 2 * seed),
                units(n, &[24, 16], 2 * seed + 1),
            );
            all.add(&compare(&device, a, b).0);
        }
        assert_eq!((all.blocks, all.units, all.identical), (100, 9600, 0));
        // One in each block by chance, with a variance of one; fewer that name one another in both kinds.
        for matches in [all.matches, all.shuffled] {
            assert!((60..140).contains(&matches), "{all:?}");
        }
        assert!(all.agreeing < 100, "{all:?}");
        assert!(all.z().abs() < 4.0, "{}", all.z());
    }

    #[test]
    fn mean_and_variance_are_those_of_all_orders() {
        let device = device();
        let (a, b) = (units(4, &[5], 1), units(4, &[5], 2));
        let (matching, _) = compare(&device, units(4, &[5], 1), units(4, &[5], 2));
        let (mut sums, mut all) = ([0.0, 0.0], 0.0);
        for code in 0..256usize {
            let order: Vec<usize> = (0..4).map(|i| code >> (2 * i) & 3).collect();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            if sorted != [0, 1, 2, 3] {
                continue;
            }
            let (one, _) = compare(&device, reordered(&a, &order), reordered(&b, &[0, 1, 2, 3]));
            sums[0] += one.sum;
            sums[1] += one.sum * one.sum;
            all += 1.0;
        }
        assert_eq!(all, 24.0);
        let mean = sums[0] / all;
        let variance = sums[1] / all - mean * mean;
        assert!((matching.mean - mean).abs() < 1e-6, "{matching:?} {mean}");
        assert!(
            (matching.variance - variance).abs() < 1e-6,
            "{matching:?} {variance}"
        );
    }

    #[test]
    fn what_is_not_a_number_is_like_nothing() {
        let device = device();
        let mut a = units(8, &[6], 1);
        a.kinds[0].values[7] = f32::NAN;
        a.kinds[0].values[20] = f32::INFINITY;
        let (matching, _) = compare(&device, a, units(8, &[6], 1));
        assert!(matching.sum.is_finite() && matching.variance.is_finite());
        assert_eq!(matching.identical, 6);
        let none = Units {
            count: 0,
            kinds: vec![Values {
                width: 3,
                values: Vec::new(),
            }],
        };
        let (matching, _) = compare(&device, none, units(8, &[3], 1));
        assert_eq!(matching, Matching::default());
    }
}
