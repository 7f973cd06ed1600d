//! Dialogues for instruction tuning: questions of the training side, one or several to a conversation.

use numerics::Rng;

use crate::{
    Area, Lang, Role, World,
    arithmetic::{self, Side},
    conduct::Exchange,
    document::ask,
    story::{self, Story},
};

/// A conversation whose assistant turns are to be learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialogue {
    /// Area of its last exchange.
    pub area: Area,
    /// Its language.
    pub lang: Lang,
    /// User and assistant in turns, the user first.
    pub messages: Vec<(Role, String)>,
    /// `world/<area>`.
    pub source: &'static str,
}

/// How often each area comes up, of 100.
const SHARES: [(Area, usize); 4] = [
    (Area::Knowledge, 42),
    (Area::Mathematics, 34),
    (Area::ReliabilitySafety, 14),
    (Area::LongDocument, 10),
];

impl World {
    /// `count` conversations drawn from `seed`.
    pub fn training_dialogues(&self, seed: u64, count: usize) -> Vec<Dialogue> {
        let mut rng = Rng::new(seed, "world/dialogues");
        (0..count).map(|_| self.dialogue(&mut rng)).collect()
    }

    fn dialogue(&self, rng: &mut Rng) -> Dialogue {
        let lang = Lang::ALL[rng.below(2)];
        let mut area = draw_area(rng);
        let mut messages = Vec::new();
        let mut add = |request: String, reply: String| {
            messages.push((Role::User, request));
            messages.push((Role::Assistant, reply));
        };
        if area == Area::LongDocument {
            let Story {
                passage,
                mut queries,
            } = Story::draw(self, Side::Train, lang, rng);
            rng.shuffle(&mut queries);
            let mut queries = queries.into_iter();
            if let Some(first) = queries.next() {
                add(story::prompt(lang, &passage, &first.question), first.answer);
            }
            // Further questions cost little where the passage has been read.
            for query in queries.take(rng.below(4)) {
                add(query.question, query.answer);
            }
        } else {
            // One in four conversations goes on.
            let turns = if rng.below(4) == 0 {
                2 + rng.below(2)
            } else {
                1
            };
            for turn in 0..turns {
                if turn > 0 {
                    area = loop {
                        let next = draw_area(rng);
                        if next != Area::LongDocument {
                            break next;
                        }
                    };
                }
                let (request, reply) = self.exchange(area, lang, rng);
                add(request, reply);
            }
        }
        Dialogue {
            area,
            lang,
            messages,
            source: area.source(),
        }
    }

    fn exchange(&self, area: Area, lang: Lang, rng: &mut Rng) -> (String, String) {
        match area {
            Area::Mathematics => {
                let (_, question, answer) = arithmetic::exercise(self, Side::Train, lang, rng);
                (question, answer)
            }
            Area::Knowledge | Area::LongDocument => {
                let fact = loop {
                    let fact = rng.pick(self.facts());
                    if !fact.held_out {
                        break fact;
                    }
                };
                (ask(self, fact, lang, rng).0, fact.answer(lang))
            }
            Area::ReliabilitySafety => {
                let exchange = Exchange::any(self, lang, rng);
                (exchange.request, exchange.reply)
            }
        }
    }
}

fn draw_area(rng: &mut Rng) -> Area {
    let mut left = rng.below(SHARES.iter().map(|(_, weight)| weight).sum());
    for (area, weight) in SHARES {
        if left < weight {
            return area;
        }
        left -= weight;
    }
    unreachable!("the weights sum to the bound of the draw")
}
