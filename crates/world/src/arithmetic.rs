//! Sums, differences, products and comparisons of small numbers, bare and in stories of the town.
//!
//! The split. Every problem rests on an unordered pair {a, b}: a + b and (a + b) - a and (a + b) - b,
//! a * b, and "which is larger". A pair is *held out* when one of the two has two digits and the hash
//! of (world seed, pair) is 0 modulo [`HELD_OUT_ONE_IN`]; no training text then holds any problem of
//! it, in any operation, order, wording or language. Pairs of single digits are never held out: they
//! are the tables that the worked forms are made of.
//!
//! The worked form. An answer goes from the ones to the tens, so that each step is a look-up in a
//! table of single digits and the carry is written down before it is needed:
//! 47 + 38 -> `7+8=15, 4+3+1=8`; 62 - 38 -> `12-8=4, 6-1-3=2`; 23 * 4 -> `3×4=12, 2×4+1=9`.
//! (That working shown in the text is what makes carrying learnable by small models: Lee et al. 2023,
//! "Teaching Arithmetic to Small Transformers", arXiv 2307.03381; the form is ours.)

use numerics::{Philox, Rng};

use crate::{
    Lang, World,
    lexicon::{COUNTABLES, Name},
    template::{fill, pick},
};

/// One pair in so many is never used in training.
pub const HELD_OUT_ONE_IN: u32 = 8;

/// Results stay below this bound.
const BOUND: u32 = 100;

/// The operation of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Add,
    Subtract,
    Multiply,
    Larger,
    Smaller,
}

/// Two operands in the order in which they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) operation: Operation,
    pub(crate) a: u32,
    pub(crate) b: u32,
}

/// Which side of the split a problem is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Train,
    HeldOut,
}

impl World {
    /// True if no training text holds a problem of the unordered pair {a, b}.
    pub fn pair_is_held_out(&self, a: u32, b: u32) -> bool {
        let (low, high) = (a.min(b), a.max(b));
        (10..BOUND).contains(&high)
            && Philox::new(self.seed, "world/pairs").block([low, high, 0, 0])[0]
                .is_multiple_of(HELD_OUT_ONE_IN)
    }
}

impl Problem {
    /// The unordered pair on which the problem rests.
    pub(crate) fn pair(self) -> (u32, u32) {
        match self.operation {
            Operation::Subtract => (self.b, self.a - self.b),
            _ => (self.a, self.b),
        }
    }

    pub(crate) fn result(self) -> u32 {
        match self.operation {
            Operation::Add => self.a + self.b,
            Operation::Subtract => self.a - self.b,
            Operation::Multiply => self.a * self.b,
            Operation::Larger => self.a.max(self.b),
            Operation::Smaller => self.a.min(self.b),
        }
    }

    /// A problem of one side of the split.
    pub(crate) fn draw(world: &World, operation: Operation, side: Side, rng: &mut Rng) -> Problem {
        loop {
            let problem = Problem::draw_any(operation, rng);
            let (a, b) = problem.pair();
            if world.pair_is_held_out(a, b) == (side == Side::HeldOut) {
                return problem;
            }
        }
    }

    fn draw_any(operation: Operation, rng: &mut Rng) -> Problem {
        let bound = BOUND as usize;
        // One in eight stays among the single digits, so that the tables themselves are asked too.
        let small = rng.below(8) == 0;
        let (a, b) = match operation {
            Operation::Add | Operation::Subtract if small => (rng.below(10), rng.below(10)),
            Operation::Add | Operation::Subtract => loop {
                let (a, b) = (1 + rng.below(bound - 2), 1 + rng.below(bound - 2));
                if a + b < bound {
                    break (a, b);
                }
            },
            Operation::Multiply if small => (2 + rng.below(8), 2 + rng.below(8)),
            Operation::Multiply => loop {
                let (a, b) = (10 + rng.below(40), 2 + rng.below(8));
                if a * b < bound {
                    break if rng.below(2) == 0 { (a, b) } else { (b, a) };
                }
            },
            Operation::Larger | Operation::Smaller => loop {
                let (a, b) = (1 + rng.below(bound - 1), 1 + rng.below(bound - 1));
                if a != b {
                    break (a, b);
                }
            },
        };
        let (a, b) = (a as u32, b as u32);
        match operation {
            Operation::Subtract => Problem {
                operation,
                a: a + b,
                b,
            },
            _ => Problem { operation, a, b },
        }
    }

    /// The steps from the ones to the tens; empty for a comparison, one step for a table entry.
    pub(crate) fn working(self) -> String {
        let Problem { a, b, .. } = self;
        match self.operation {
            Operation::Add if a < 10 && b < 10 => format!("{a}+{b}={}", a + b),
            Operation::Add => {
                let ones = a % 10 + b % 10;
                let carry = if ones > 9 { "+1" } else { "" };
                let tens = a / 10 + b / 10 + ones / 10;
                format!(
                    "{}+{}={ones}, {}+{}{carry}={tens}",
                    a % 10,
                    b % 10,
                    a / 10,
                    b / 10
                )
            }
            Operation::Subtract if a < 20 && b < 10 && a - b < 10 => format!("{a}-{b}={}", a - b),
            Operation::Subtract => {
                let borrow = a % 10 < b % 10;
                let top = a % 10 + if borrow { 10 } else { 0 };
                let less = if borrow { "-1" } else { "" };
                let tens = a / 10 - b / 10 - u32::from(borrow);
                let (ones, a10, b10) = (top - b % 10, a / 10, b / 10);
                format!("{top}-{}={ones}, {a10}{less}-{b10}={tens}", b % 10)
            }
            Operation::Multiply if a < 10 && b < 10 => format!("{a}×{b}={}", a * b),
            Operation::Multiply => {
                let (wide, digit) = (a.max(b), a.min(b));
                let ones = wide % 10 * digit;
                let carry = if ones > 9 {
                    format!("+{}", ones / 10)
                } else {
                    String::new()
                };
                let tens = wide / 10 * digit + ones / 10;
                format!(
                    "{}×{digit}={ones}, {}×{digit}{carry}={tens}",
                    wide % 10,
                    wide / 10
                )
            }
            Operation::Larger | Operation::Smaller => String::new(),
        }
    }

    /// The answer in full: the steps, then the result as the last number.
    pub(crate) fn answer(self, lang: Lang) -> String {
        let (steps, result) = (self.working(), self.result().to_string());
        let slots = [("s", steps.as_str()), ("r", result.as_str())];
        fill(
            match (self.operation, lang) {
                (Operation::Larger, Lang::Korean) => "더 큰 수는 {r:이에요}.",
                (Operation::Larger, Lang::English) => "The larger number is {r}.",
                (Operation::Smaller, Lang::Korean) => "더 작은 수는 {r:이에요}.",
                (Operation::Smaller, Lang::English) => "The smaller number is {r}.",
                (_, Lang::Korean) => "{s}. 답은 {r:이에요}.",
                (_, Lang::English) => "{s}. The answer is {r}.",
            },
            &slots,
        )
    }

    /// `47 + 38`; for a comparison the two numbers.
    pub(crate) fn expression(self) -> String {
        let Problem { a, b, .. } = self;
        match self.operation {
            Operation::Add => format!("{a} + {b}"),
            Operation::Subtract => format!("{a} - {b}"),
            Operation::Multiply => format!("{a} × {b}"),
            Operation::Larger | Operation::Smaller => format!("{a}, {b}"),
        }
    }

    /// The problem as a bare question.
    pub(crate) fn question(self, lang: Lang, rng: &mut Rng) -> String {
        let expression = self.expression();
        let (a, b) = (self.a.to_string(), self.b.to_string());
        let slots = [
            ("e", expression.as_str()),
            ("a", a.as_str()),
            ("b", b.as_str()),
        ];
        let templates: &[&'static str] = match (self.operation, lang) {
            (Operation::Larger, Lang::Korean) => &[
                "{a:과} {b} 중에서 더 큰 수는 무엇인가요?",
                "{a:과} {b} 가운데 어느 쪽이 더 큰가요?",
            ],
            (Operation::Larger, Lang::English) => &[
                "Which is larger, {a} or {b}?",
                "Which number is bigger, {a} or {b}?",
            ],
            (Operation::Smaller, Lang::Korean) => &[
                "{a:과} {b} 중에서 더 작은 수는 무엇인가요?",
                "{a:과} {b} 가운데 어느 쪽이 더 작은가요?",
            ],
            (Operation::Smaller, Lang::English) => &[
                "Which is smaller, {a} or {b}?",
                "Which number is less, {a} or {b}?",
            ],
            (_, Lang::Korean) => &[
                "{e:은} 얼마인가요?",
                "{e:을} 계산해 주세요.",
                "{e}의 답은 무엇인가요?",
                "{e} = ?",
            ],
            (_, Lang::English) => &[
                "What is {e}?",
                "Work out {e}.",
                "How much is {e}?",
                "{e} = ?",
            ],
        };
        fill(pick(rng, templates), &slots)
    }

    /// The problem as a small story of the town; comparisons are of two people's finds.
    pub(crate) fn story(self, world: &World, lang: Lang, rng: &mut Rng) -> String {
        let first = rng.below(world.people.len());
        let second = (first + 1 + rng.below(world.people.len() - 1)) % world.people.len();
        let &(thing, counter) = rng.pick(&COUNTABLES);
        let name = |person: usize| -> Name { world.people[person].name };
        let (a, b) = (self.a.to_string(), self.b.to_string());
        let slots = [
            ("p", name(first).text(lang)),
            ("q", name(second).text(lang)),
            ("t", thing.text(lang)),
            ("c", counter),
            ("a", a.as_str()),
            ("b", b.as_str()),
        ];
        fill(pick(rng, stories(self.operation, lang)), &slots)
    }
}

fn stories(operation: Operation, lang: Lang) -> &'static [&'static str] {
    match (operation, lang) {
        (Operation::Add, Lang::Korean) => &[
            "{p:은} {t} {a}{c:을} 가지고 있었는데 {b}{c:을} 더 얻었어요. 모두 몇 {c}인가요?",
            "{p:은} {t} {a}{c:을}, {q:은} {b}{c:을} 모았어요. 두 사람이 모은 {t:은} 모두 몇 {c}인가요?",
            "바구니에 {t:이} {a}{c} 있어요. {p:이} {b}{c:을} 더 넣으면 몇 {c:이} 되나요?",
        ],
        (Operation::Add, Lang::English) => &[
            "{p} had {a} {t} and got {b} more. How many {t} are there now?",
            "{p} gathered {a} {t} and {q} gathered {b}. How many {t} do they have together?",
            "A basket holds {a} {t}. {p} puts in {b} more. How many {t} are in the basket?",
        ],
        (Operation::Subtract, Lang::Korean) => &[
            "{p:은} {t} {a}{c:을} 가지고 있었는데 {q}에게 {b}{c:을} 주었어요. 몇 {c:이} 남았나요?",
            "바구니에 {t:이} {a}{c} 있었는데 {p:이} {b}{c:을} 꺼냈어요. 남은 {t:은} 몇 {c}인가요?",
            "{p:은} {t} {a}{c:을}, {q:은} {b}{c:을} 모았어요. {p:은} {q}보다 몇 {c} 더 모았나요?",
        ],
        (Operation::Subtract, Lang::English) => &[
            "{p} had {a} {t} and gave {b} of them to {q}. How many {t} are left?",
            "A basket held {a} {t}. {p} took out {b}. How many {t} are left in the basket?",
            "{p} gathered {a} {t} and {q} gathered {b}. How many more {t} does {p} have?",
        ],
        (Operation::Multiply, Lang::Korean) => &[
            "상자 하나에 {t:이} {a}{c}씩 들어 있어요. 상자 {b}개에는 {t:이} 모두 몇 {c} 있나요?",
            "{p:은} 날마다 {t:을} {a}{c}씩 모아요. {b}일 동안 모으면 몇 {c}인가요?",
        ],
        (Operation::Multiply, Lang::English) => &[
            "Each box holds {a} {t}. How many {t} are in {b} boxes?",
            "{p} gathers {a} {t} every day. How many {t} is that in {b} days?",
        ],
        (Operation::Larger, Lang::Korean) => {
            &["{p:은} {t} {a}{c:을}, {q:은} {b}{c:을} 모았어요. 더 많은 쪽은 몇 {c}인가요?"]
        }
        (Operation::Larger, Lang::English) => {
            &["{p} has {a} {t} and {q} has {b}. How many {t} does the one with more have?"]
        }
        (Operation::Smaller, Lang::Korean) => {
            &["{p:은} {t} {a}{c:을}, {q:은} {b}{c:을} 모았어요. 더 적은 쪽은 몇 {c}인가요?"]
        }
        (Operation::Smaller, Lang::English) => {
            &["{p} has {a} {t} and {q} has {b}. How many {t} does the one with fewer have?"]
        }
    }
}

/// How often each operation is drawn, of 20.
const OPERATIONS: [(Operation, usize); 5] = [
    (Operation::Add, 7),
    (Operation::Subtract, 7),
    (Operation::Multiply, 3),
    (Operation::Larger, 2),
    (Operation::Smaller, 1),
];

pub(crate) fn any_operation(rng: &mut Rng) -> Operation {
    let mut left = rng.below(OPERATIONS.iter().map(|(_, weight)| weight).sum());
    for (operation, weight) in OPERATIONS {
        if left < weight {
            return operation;
        }
        left -= weight;
    }
    unreachable!("the weights sum to the bound of the draw")
}

/// A question and its answer, bare (two in three) or as a story.
pub(crate) fn exercise(
    world: &World,
    side: Side,
    lang: Lang,
    rng: &mut Rng,
) -> (Problem, String, String) {
    let operation = any_operation(rng);
    let problem = Problem::draw(world, operation, side, rng);
    let question = if rng.below(3) < 2 {
        problem.question(lang, rng)
    } else {
        problem.story(world, lang, rng)
    };
    (problem, question, problem.answer(lang))
}

/// A page of exercises, worked lines or plain equations of the training side.
pub(crate) fn page(world: &World, lang: Lang, rng: &mut Rng) -> String {
    let lines = 6 + rng.below(7);
    let kind = rng.below(5);
    let mut text = String::new();
    for _ in 0..lines {
        let line = match kind {
            0 => {
                let operation =
                    *rng.pick(&[Operation::Add, Operation::Subtract, Operation::Multiply]);
                let problem = Problem::draw(world, operation, Side::Train, rng);
                format!("{} = {}\n", problem.expression(), problem.result())
            }
            1 => {
                let operation =
                    *rng.pick(&[Operation::Add, Operation::Subtract, Operation::Multiply]);
                let problem = Problem::draw(world, operation, Side::Train, rng);
                let (e, s, r) = (problem.expression(), problem.working(), problem.result());
                format!("{e}: {s} → {r}\n")
            }
            _ => {
                let (_, question, answer) = exercise(world, Side::Train, lang, rng);
                crate::document::question_line(lang, &question, &answer)
            }
        };
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(operation: Operation, a: u32, b: u32) -> Problem {
        Problem { operation, a, b }
    }

    #[test]
    fn the_working_carries_and_borrows() {
        assert_eq!(problem(Operation::Add, 47, 38).working(), "7+8=15, 4+3+1=8");
        assert_eq!(problem(Operation::Add, 40, 5).working(), "0+5=5, 4+0=4");
        assert_eq!(
            problem(Operation::Subtract, 62, 38).working(),
            "12-8=4, 6-1-3=2"
        );
        assert_eq!(
            problem(Operation::Subtract, 66, 36).working(),
            "6-6=0, 6-3=3"
        );
        assert_eq!(
            problem(Operation::Multiply, 4, 23).working(),
            "3×4=12, 2×4+1=9"
        );
        assert_eq!(
            problem(Operation::Add, 7, 8).answer(Lang::Korean),
            "7+8=15. 답은 15예요."
        );
    }

    #[test]
    fn every_working_is_true() {
        let world = World::new(3);
        let mut rng = Rng::new(3, "test");
        for _ in 0..3000 {
            let problem = Problem::draw(&world, any_operation(&mut rng), Side::Train, &mut rng);
            let working = problem.working();
            let mut digits = String::new();
            for step in working.split(", ").filter(|s| !s.is_empty()) {
                let (left, right) = step.split_once('=').unwrap();
                assert_eq!(value(left), right.parse::<i64>().unwrap(), "{working}");
                digits = if digits.is_empty() {
                    right.to_owned()
                } else {
                    format!("{right}{}", &digits[digits.len() - 1..])
                };
            }
            if !digits.is_empty() {
                assert_eq!(
                    digits.parse::<u32>().unwrap(),
                    problem.result(),
                    "{problem:?}"
                );
            }
        }
    }

    /// Value of a chain such as `2×4+1` or `6-1-3`.
    fn value(chain: &str) -> i64 {
        let (mut total, mut sign) = (0i64, 1i64);
        let mut rest = chain;
        loop {
            let end = rest.find(['+', '-']).unwrap_or(rest.len());
            let product: i64 = rest[..end]
                .split('×')
                .map(|f| f.parse::<i64>().unwrap())
                .product();
            total += sign * product;
            if end == rest.len() {
                return total;
            }
            sign = if rest[end..].starts_with('+') { 1 } else { -1 };
            rest = &rest[end + 1..];
        }
    }

    #[test]
    fn a_difference_is_held_out_with_its_sum() {
        let world = World::new(1);
        assert_eq!(problem(Operation::Subtract, 62, 38).pair(), (38, 24));
        let held = (1..100u32).flat_map(|a| (a..100).map(move |b| (a, b)));
        let (mut held_out, mut all) = (0, 0);
        for (a, b) in held.filter(|(a, b)| a + b < 100) {
            assert_eq!(world.pair_is_held_out(a, b), world.pair_is_held_out(b, a));
            assert!(b > 9 || !world.pair_is_held_out(a, b));
            all += 1;
            held_out += u32::from(world.pair_is_held_out(a, b));
        }
        assert!((0.08..0.16).contains(&(f64::from(held_out) / f64::from(all))));
    }
}
