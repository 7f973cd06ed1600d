//! Whether guessing tokens pays, and how many at a time.
//!
//! A step with n rows, of B sequences of P positions, is worth what it must read and do, all in bytes read:
//!
//! step(n) = dense + head + experts (1 - (1 - A/E)^n) + kv P (B + (n - B) / 4) + MADD n madds + LAYER L
//!
//! that is: dense weights and the head once; of the experts those that n rows meet, each row A of E at random;
//! keys and values once for each sequence, and for further rows of it from a nearer cache; multiply-adds, which
//! few rows hide behind the reading of weights but not for ever; and what starting the ops of a layer takes. A
//! pass of the draft layer is a step of one layer without experts, with the head.
//!
//! Guessing k tokens costs k passes and k rows more of the next step, and yields with a_i, the share of the
//! i-th guesses that were right where all before them were:
//!
//! tokens(k) = B (1 + a_1 + a_1 a_2 + .. + a_1 .. a_k)      k = argmax tokens(k) / (step(B (1 + k)) + passes(k))
//!
//! The a_i are running means over the engine's life that forget: of about the last hundred guesses. So that a
//! depth that once did not pay is tried again, every 32nd choice is one deeper.
//!
//! There is no clock in it: the same requests are run by the same steps on any machine. A wrong price makes
//! answers slower, never other ones. MADD and LAYER are what makes the formula agree with the ratio of steps
//! measured on one core with AVX-512 (docs/LOG.md, the entry on guessed tokens).

/// A multiply-add of a row, in bytes read.
const MADD: f64 = 0.25;

/// What starting the ops of a layer takes, in bytes read.
const LAYER: f64 = 100_000.0;

/// Every so many choices one goes deeper than pays.
const PROBE_EVERY: u64 = 32;

/// Guesses that a mean remembers at most.
const MEMORY: f64 = 128.0;

/// What steps of a model read and do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepCost {
    /// Bytes of weights that every step reads: all but experts and head.
    pub dense_bytes: f64,
    /// Bytes of all experts of all layers.
    pub expert_bytes: f64,
    /// Share of the experts of a layer that a row visits.
    pub expert_share: f64,
    /// Bytes of the head.
    pub head_bytes: f64,
    /// Bytes of keys and values of a position that a row reads, of all layers without a window.
    pub kv_bytes: f64,
    /// Multiply-adds of a row, those of the head included.
    pub row_madds: f64,
    /// Layers.
    pub num_layers: f64,
    /// The draft layer: its weights without the head.
    pub draft_bytes: f64,
    /// Its keys and values of a position.
    pub draft_kv_bytes: f64,
    /// Its multiply-adds of a row, those of the head included.
    pub draft_row_madds: f64,
}

/// Who takes part in the next step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    pub(crate) num_seqs: usize,      // B, that may guess
    pub(crate) num_positions: usize, // of all of them
    pub(crate) other_rows: usize,    // of prompts
}

impl StepCost {
    /// A step in which each sequence brings `rows` rows.
    fn step(&self, load: &Load, rows: usize) -> f64 {
        let n = (load.num_seqs * rows + load.other_rows) as f64;
        let visited = 1.0 - (1.0 - self.expert_share).powf(n);
        self.dense_bytes
            + self.head_bytes
            + self.expert_bytes * visited
            + self.kv_bytes * read_positions(load, rows)
            + MADD * n * self.row_madds
            + LAYER * self.num_layers
    }

    /// A pass of the draft layer with `rows` rows of each sequence.
    fn pass(&self, load: &Load, rows: usize) -> f64 {
        self.draft_bytes
            + self.head_bytes
            + self.draft_kv_bytes * read_positions(load, rows)
            + MADD * (load.num_seqs * rows) as f64 * self.draft_row_madds
            + LAYER
    }
}

/// Positions that the rows of a step read: those of a sequence once, and again at a quarter of the price.
fn read_positions(load: &Load, rows: usize) -> f64 {
    load.num_positions as f64 * (1.0 + 0.25 * (rows.saturating_sub(1)) as f64)
}

/// How often guesses were right.
#[derive(Clone, Copy, Debug)]
struct Rate {
    right: f64,
    tried: f64,
}

/// The depth of guessing, from prices and from what became of guesses.
#[derive(Clone, Debug)]
pub(crate) struct DepthChoice {
    cost: StepCost,
    rates: Vec<Rate>, // of the guesses of each depth
    num_choices: u64,
}

impl DepthChoice {
    /// At most `max_depth` tokens. It begins with the belief that three of four guesses are right.
    pub(crate) fn new(cost: StepCost, max_depth: usize) -> DepthChoice {
        let believed = Rate {
            right: 3.0,
            tried: 4.0,
        };
        DepthChoice {
            cost,
            rates: vec![believed; max_depth],
            num_choices: 0,
        }
    }

    /// Tokens to guess for each sequence.
    pub(crate) fn choose(&mut self, load: &Load) -> usize {
        if load.num_seqs == 0 {
            return 0;
        }
        self.num_choices += 1;
        let mut best = (0, self.worth(load, 0));
        for depth in 1..=self.rates.len() {
            let worth = self.worth(load, depth);
            if worth > best.1 {
                best = (depth, worth);
            }
        }
        let deeper = usize::from(self.num_choices.is_multiple_of(PROBE_EVERY));
        (best.0 + deeper).min(self.rates.len())
    }

    /// Of `num_tried` guesses of one sequence, one after another, the first `num_right` were right.
    pub(crate) fn note(&mut self, num_tried: usize, num_right: usize) {
        for (i, rate) in self.rates.iter_mut().enumerate().take(num_tried) {
            rate.right += f64::from(u8::from(i < num_right));
            rate.tried += 1.0;
            if rate.tried > MEMORY {
                rate.right /= 2.0;
                rate.tried /= 2.0;
            }
        }
    }

    /// Tokens by cost.
    fn worth(&self, load: &Load, depth: usize) -> f64 {
        let (mut tokens, mut all_right) = (1.0, 1.0);
        for rate in &self.rates[..depth] {
            all_right *= rate.right / rate.tried;
            tokens += all_right;
        }
        // The first pass brings the layer up to date with every token of the step before.
        let passes = match depth {
            0 => 0.0,
            _ => {
                let first = self.cost.pass(load, 1 + depth / 2);
                first + (depth - 1) as f64 * self.cost.pass(load, 1)
            }
        };
        tokens * load.num_seqs as f64 / (self.cost.step(load, 1 + depth) + passes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// K-EXAONE in bf16.
    fn large() -> StepCost {
        StepCost {
            dense_bytes: 2.0 * 7.6e9,
            expert_bytes: 2.0 * 227.1e9,
            expert_share: 8.0 / 128.0,
            head_bytes: 2.0 * 0.944e9,
            kv_bytes: 49_152.0,
            row_madds: 22.7e9,
            num_layers: 48.0,
            draft_bytes: 2.0 * 0.53e9,
            draft_kv_bytes: 4096.0,
            draft_row_madds: 1.5e9,
        }
    }

    /// No experts: a further row is nearly for nothing.
    fn dense() -> StepCost {
        StepCost {
            expert_bytes: 0.0,
            expert_share: 0.0,
            row_madds: 8.5e9,
            ..large()
        }
    }

    fn load(num_seqs: usize) -> Load {
        Load {
            num_seqs,
            num_positions: 100 * num_seqs,
            other_rows: 0,
        }
    }

    /// After many guesses of which at each depth so many of four were right.
    fn after(cost: StepCost, right_of_four: f64) -> DepthChoice {
        let mut choice = DepthChoice::new(cost, 3);
        choice.rates.fill(Rate {
            right: 25.0 * right_of_four,
            tried: 100.0,
        });
        choice
    }

    /// What is chosen when nothing is probed.
    fn depth(choice: &DepthChoice, load: &Load) -> usize {
        choice.clone().choose(load)
    }

    #[test]
    fn right_guesses_make_it_deep_and_wrong_ones_end_it() {
        assert_eq!(depth(&after(dense(), 4.0), &load(1)), 3);
        assert_eq!(depth(&after(dense(), 0.0), &load(1)), 0);
        let some = depth(&after(dense(), 1.0), &load(1));
        assert!(some < 3, "{some}");
    }

    #[test]
    fn experts_that_must_be_read_make_a_row_dear() {
        let one_in_two = after(large(), 2.0);
        assert!(depth(&one_in_two, &load(1)) < depth(&after(dense(), 2.0), &load(1)));
        // Where a prompt or many sequences have read all experts already, rows are cheap again.
        let beside_a_prompt = Load {
            other_rows: 200,
            ..load(1)
        };
        let (alone, beside) = (
            one_in_two.cost.step(&load(1), 2) / one_in_two.cost.step(&load(1), 1),
            one_in_two.cost.step(&beside_a_prompt, 2) / one_in_two.cost.step(&beside_a_prompt, 1),
        );
        assert!(alone > 1.5 && beside < 1.1, "{alone} {beside}");
    }

    #[test]
    fn the_expected_number_of_experts_is_that_of_random_choices() {
        let only_experts = StepCost {
            expert_bytes: 1.0,
            expert_share: 0.25,
            ..StepCost::default()
        };
        let of = |rows| only_experts.step(&load(1), rows);
        assert_eq!(of(1), 0.25);
        assert_eq!(of(2), 0.25 + 0.75 * 0.25);
        assert_eq!(of(3), 1.0 - 0.75f64.powi(3));
    }

    #[test]
    fn what_does_not_pay_is_tried_again_and_comes_back() {
        let mut choice = after(dense(), 0.0);
        let mut probes = 0;
        for _ in 0..PROBE_EVERY * 4 {
            probes += choice.choose(&load(1));
        }
        assert_eq!(probes, 4);
        let mut steps = 0;
        while depth(&choice, &load(1)) == 0 {
            let depth = choice.choose(&load(1));
            choice.note(depth, depth);
            steps += 1;
            assert!(steps < 10_000, "it never comes back");
        }
    }

    #[test]
    fn a_mean_remembers_about_the_last_hundred() {
        let mut choice = DepthChoice::new(dense(), 2);
        (0..1000).for_each(|_| choice.note(2, 0));
        (0..1000).for_each(|_| choice.note(2, 1));
        let share = |rate: Rate| rate.right / rate.tried;
        assert!(share(choice.rates[0]) > 0.99 && share(choice.rates[1]) < 0.01);
        assert!(choice.rates.iter().all(|rate| rate.tried <= MEMORY));
    }

    #[test]
    fn without_sequences_nothing_is_guessed() {
        let mut choice = DepthChoice::new(dense(), 3);
        assert_eq!(choice.choose(&load(0)), 0);
        assert_eq!(DepthChoice::new(dense(), 0).choose(&load(1)), 0);
    }
}
