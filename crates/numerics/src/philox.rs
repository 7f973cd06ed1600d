//! Philox4x32-10: random numbers as a function of (key, counter).
//!
//! Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"; the test
//! vectors below are the published known answers of Random123.

/// The generator: a key, and no other state.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The generator of `seed`; `stream` separates uses of one seed from another.
    pub fn new(seed: u64, stream: &str) -> Philox {
        // FNV-1a of the stream's name, mixed into the seed by one round of the generator itself.
        let mut h = 0xcbf2_9ce4_8422_2325u64;
        for byte in stream.bytes() {
            h = (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let base = Philox {
            key: [seed as u32, (seed >> 32) as u32],
        };
        let block = base.block([h as u32, (h >> 32) as u32, 0x646f_6b6a, 0x61]);
        Philox {
            key: [block[0], block[1]],
        }
    }

    /// Four words for a counter.
    pub fn block(&self, counter: [u32; 4]) -> [u32; 4] {
        let (mut c, mut k) = (counter, self.key);
        for _ in 0..10 {
            let p0 = u64::from(c[0]) * 0xD251_1F53;
            let p1 = u64::from(c[2]) * 0xCD9E_8D57;
            c = [
                (p1 >> 32) as u32 ^ c[1] ^ k[0],
                p1 as u32,
                (p0 >> 32) as u32 ^ c[3] ^ k[1],
                p0 as u32,
            ];
            k = [
                k[0].wrapping_add(0x9E37_79B9),
                k[1].wrapping_add(0xBB67_AE85),
            ];
        }
        c
    }

    /// The `idx`-th value of the standard normal distribution (Box-Muller in f64, rounded to f32).
    pub fn normal(&self, idx: u64) -> f32 {
        let pair = idx / 2;
        let b = self.block([pair as u32, (pair >> 32) as u32, 0, 1]);
        // (0, 1]: the logarithm is finite.
        let u1 =
            (((u64::from(b[0]) << 21) ^ (u64::from(b[1]) >> 11)) + 1) as f64 / (1u64 << 53) as f64;
        let u2 = ((u64::from(b[2]) << 21) ^ (u64::from(b[3]) >> 11)) as f64 / (1u64 << 53) as f64;
        let radius = (-2.0 * libm::log(u1)).sqrt();
        let angle = std::f64::consts::TAU * u2;
        (if idx % 2 == 0 {
            radius * libm::cos(angle)
        } else {
            radius * libm::sin(angle)
        }) as f32
    }

    /// The draws of the generator one after another.
    pub fn rng(self) -> Rng {
        Rng {
            philox: self,
            next: 0,
        }
    }
}

/// A sequence of draws from a [`Philox`].
#[derive(Clone, Copy, Debug)]
pub struct Rng {
    philox: Philox,
    next: u64,
}

impl Rng {
    /// The draws of (seed, stream) from the start.
    pub fn new(seed: u64, stream: &str) -> Rng {
        Philox::new(seed, stream).rng()
    }

    /// Sixty-four random bits.
    pub fn next_u64(&mut self) -> u64 {
        let b = self
            .philox
            .block([self.next as u32, (self.next >> 32) as u32, 0, 0]);
        self.next += 1;
        u64::from(b[0]) << 32 | u64::from(b[1])
    }

    /// A number in `0..bound` (`bound > 0`), without bias.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "below: the bound is zero");
        let bound = bound as u64;
        loop {
            // Lemire 2019, "Fast random integer generation in an interval".
            let m = u128::from(self.next_u64()) * u128::from(bound);
            if m as u64 >= bound.wrapping_neg() % bound {
                return (m >> 64) as usize;
            }
        }
    }

    /// A number in [0, 1) with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// One element.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_published_known_answers() {
        let zero = Philox { key: [0, 0] };
        assert_eq!(
            zero.block([0; 4]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        let ones = Philox { key: [u32::MAX; 2] };
        assert_eq!(
            ones.block([u32::MAX; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let p = Philox::new(7, "test");
        let n = 200_000u64;
        let (mut sum, mut square) = (0.0, 0.0);
        for i in 0..n {
            let x = f64::from(p.normal(i));
            sum += x;
            square += x * x;
        }
        assert!((sum / n as f64).abs() < 0.01);
        assert!((square / n as f64 - 1.0).abs() < 0.01);
    }

    #[test]
    fn streams_and_seeds_differ_and_repeat() {
        let draw = |seed, stream| Rng::new(seed, stream).next_u64();
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
    }

    #[test]
    fn below_stays_below_and_reaches_all() {
        let mut rng = Rng::new(3, "below");
        let mut seen = [0; 7];
        for _ in 0..7000 {
            seen[rng.below(7)] += 1;
        }
        assert!(seen.iter().all(|&n| n > 800));
    }
}
