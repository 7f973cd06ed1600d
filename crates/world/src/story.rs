//! Long passages: one day in the town, who put what where, who gave what to whom, at what hour, how many.
//!
//! Every answer stands in the passage and nowhere else: objects and errands are drawn anew for each
//! passage and are not facts of the world. A passage belongs to the held-out side when the hash of its
//! text is 0 modulo [`HELD_OUT_ONE_IN`]; training draws again until it is not, held-out questions until
//! it is, so the two sides are disjoint whatever the random streams.

use numerics::{Philox, Rng};

use crate::{
    Lang, World,
    arithmetic::Side,
    lexicon::{COUNTABLES, Name, THINGS},
    template::{fill, pick},
};

/// One passage in so many is reserved for held-out questions.
pub const HELD_OUT_ONE_IN: u64 = 8;

/// A passage with the questions that it answers.
pub(crate) struct Story {
    pub(crate) passage: String,
    pub(crate) queries: Vec<Query>,
}

/// A question about a passage.
#[derive(Clone)]
pub(crate) struct Query {
    pub(crate) question: String,
    /// The answer as a sentence.
    pub(crate) answer: String,
    pub(crate) value: Found,
}

/// The value that the passage gives.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Found {
    Number(u32),
    /// One name among all of its kind that a guesser would think of.
    Name {
        value: String,
        kind: Vec<String>,
    },
}

struct Event {
    sentence: String,
    query: Query,
}

const FILLERS_KO: &[&str] = &[
    "바다는 잔잔했다.",
    "갈매기가 지붕 위에서 울었다.",
    "바람에 소금 냄새가 실려 왔다.",
    "골목에서 빵 굽는 냄새가 났다.",
    "멀리 돛단배 하나가 지나갔다.",
    "아이들이 모래밭에서 웃었다.",
    "구름 사이로 햇살이 비쳤다.",
    "파도가 방파제를 두드렸다.",
    "고양이 한 마리가 담장 위에서 졸았다.",
    "빨래가 바람에 펄럭였다.",
    "종소리가 천천히 울렸다.",
    "누군가 휘파람을 불었다.",
    "물때가 바뀌고 있었다.",
    "젖은 돌길이 반짝였다.",
];

const FILLERS_EN: &[&str] = &[
    "The sea was calm.",
    "Gulls cried on the roofs.",
    "The wind smelled of salt.",
    "Somewhere bread was baking.",
    "A sail went by far out.",
    "Children laughed on the sand.",
    "Sunlight came through the clouds.",
    "Waves knocked at the breakwater.",
    "A cat slept on the wall.",
    "Washing flapped in the wind.",
    "A bell rang slowly.",
    "Someone whistled a tune.",
    "The tide was turning.",
    "The wet stones shone.",
];

const OPENINGS_KO: &[&str] = &[
    "윤슬마을의 하루 이야기다.",
    "그날 윤슬마을에서는 여러 일이 있었다.",
    "다음은 어느 날 마을에서 있었던 일이다.",
];

const OPENINGS_EN: &[&str] = &[
    "This is the story of one day in Yunseul.",
    "Many things happened in Yunseul that day.",
    "Here is what happened in the town one day.",
];

impl Story {
    /// Draws a passage of 15 to 40 sentences of one side of the split.
    pub(crate) fn draw(world: &World, side: Side, lang: Lang, rng: &mut Rng) -> Story {
        loop {
            let story = Story::draw_any(world, lang, rng);
            if passage_is_held_out(world.seed, &story.passage) == (side == Side::HeldOut) {
                return story;
            }
        }
    }

    fn draw_any(world: &World, lang: Lang, rng: &mut Rng) -> Story {
        let mut people: Vec<Name> = world.people.iter().map(|person| person.name).collect();
        rng.shuffle(&mut people);
        people.truncate(4 + rng.below(4));
        let mut things = THINGS;
        rng.shuffle(&mut things);
        let mut things = things.into_iter();
        let mut countables = COUNTABLES;
        rng.shuffle(&mut countables);
        let mut countables = countables.into_iter();
        let mut hours: Vec<u32> = (6..=20).collect();
        rng.shuffle(&mut hours);
        let num_events = 8 + rng.below(7);
        hours.truncate(num_events / 4);
        hours.sort_unstable();
        let mut hours = hours.into_iter();
        let mut visits: Vec<(Name, Name)> = Vec::new();

        let mut events: Vec<Event> = Vec::new();
        for idx in 0..num_events {
            let person = *rng.pick(&people);
            let place = *rng.pick(&world.places);
            let event = match idx % 4 {
                0 => things
                    .next()
                    .map(|thing| put(world, lang, person, thing, place)),
                1 => {
                    let mut others = people.clone();
                    others.retain(|other| *other != person);
                    let other = *rng.pick(&others);
                    things
                        .next()
                        .map(|thing| give(world, lang, person, thing, other))
                }
                2 => countables
                    .next()
                    .map(|(thing, counter)| count(lang, person, thing, counter, 2 + rng.below(8))),
                // The hour alone would be ambiguous if somebody came to a place twice.
                _ if visits.contains(&(person, place)) => None,
                _ => hours.next().map(|hour| {
                    visits.push((person, place));
                    visit(lang, person, place, hour)
                }),
            };
            events.extend(event);
        }
        // Visits carry rising hours; the other events fall between them.
        let is_visit = |event: &Event| event.query.question.contains(HOUR_MARK[lang as usize]);
        let (in_order, mut rest): (Vec<Event>, Vec<Event>) = events.into_iter().partition(is_visit);
        rng.shuffle(&mut rest);
        let mut events = rest;
        let mut slots: Vec<usize> = in_order
            .iter()
            .map(|_| rng.below(events.len() + 1))
            .collect();
        slots.sort_unstable();
        for (offset, (slot, event)) in slots.into_iter().zip(in_order).enumerate() {
            events.insert(slot + offset, event);
        }

        let (openings, fillers) = match lang {
            Lang::Korean => (OPENINGS_KO, FILLERS_KO),
            Lang::English => (OPENINGS_EN, FILLERS_EN),
        };
        let mut passage = pick(rng, openings).to_owned();
        let mut fillers = fillers.to_vec();
        rng.shuffle(&mut fillers);
        let mut fillers = fillers.into_iter();
        let mut sentences = 1;
        for (idx, event) in events.iter().enumerate() {
            passage.push(' ');
            passage.push_str(&event.sentence);
            sentences += 1;
            let missing = 15usize.saturating_sub(sentences + (events.len() - idx - 1));
            if missing > 0 || rng.below(2) == 0 {
                for filler in fillers.by_ref().take(1 + rng.below(2)) {
                    passage.push(' ');
                    passage.push_str(filler);
                    sentences += 1;
                }
            }
        }
        Story {
            passage,
            queries: events.into_iter().map(|event| event.query).collect(),
        }
    }
}

/// What only a question about an hour holds, by language.
const HOUR_MARK: [&str; 2] = ["몇 시", "what hour"];

fn passage_is_held_out(seed: u64, passage: &str) -> bool {
    Philox::new(seed, passage)
        .rng()
        .next_u64()
        .is_multiple_of(HELD_OUT_ONE_IN)
}

fn names(list: impl Iterator<Item = Name>, lang: Lang) -> Vec<String> {
    list.map(|name| name.text(lang).to_owned()).collect()
}

/// Sentence, question and answer share their words up to the value, in both languages.
fn event(lang: Lang, templates: [[&str; 3]; 2], slots: &[(&str, &str)], value: Found) -> Event {
    let [sentence, question, answer] = templates[lang as usize].map(|t| fill(t, slots));
    Event {
        sentence,
        query: Query {
            question,
            answer,
            value,
        },
    }
}

fn put(world: &World, lang: Lang, person: Name, thing: Name, place: Name) -> Event {
    event(
        lang,
        [
            [
                "{p:은} {t:을} {v}에 두었다.",
                "{p:은} {t:을} 어디에 두었나요?",
                "{p:은} {t:을} {v}에 두었어요.",
            ],
            [
                "{p} left the {t} at {v}.",
                "Where did {p} leave the {t}?",
                "{p} left the {t} at {v}.",
            ],
        ],
        &[
            ("p", person.text(lang)),
            ("t", thing.text(lang)),
            ("v", place.text(lang)),
        ],
        Found::Name {
            value: place.text(lang).to_owned(),
            kind: names(world.places.iter().copied(), lang),
        },
    )
}

fn give(world: &World, lang: Lang, person: Name, thing: Name, other: Name) -> Event {
    let others = world
        .people
        .iter()
        .map(|p| p.name)
        .filter(|name| *name != person);
    event(
        lang,
        [
            [
                "{p:은} {t:을} {v}에게 주었다.",
                "{p:은} {t:을} 누구에게 주었나요?",
                "{p:은} {t:을} {v}에게 주었어요.",
            ],
            [
                "{p} gave the {t} to {v}.",
                "To whom did {p} give the {t}?",
                "{p} gave the {t} to {v}.",
            ],
        ],
        &[
            ("p", person.text(lang)),
            ("t", thing.text(lang)),
            ("v", other.text(lang)),
        ],
        Found::Name {
            value: other.text(lang).to_owned(),
            kind: names(others, lang),
        },
    )
}

fn count(lang: Lang, person: Name, thing: Name, counter: &str, amount: usize) -> Event {
    let number = amount.to_string();
    event(
        lang,
        [
            [
                "{p:은} {t:을} {v}{c} 얻었다.",
                "{p:은} {t:을} 몇 {c} 얻었나요?",
                "{p:은} {t:을} {v}{c} 얻었어요.",
            ],
            [
                "{p} got {v} {t}.",
                "How many {t} did {p} get?",
                "{p} got {v} {t}.",
            ],
        ],
        &[
            ("p", person.text(lang)),
            ("t", thing.text(lang)),
            ("c", counter),
            ("v", number.as_str()),
        ],
        Found::Number(amount as u32),
    )
}

fn visit(lang: Lang, person: Name, place: Name, hour: u32) -> Event {
    let number = hour.to_string();
    event(
        lang,
        [
            [
                "{p:은} {t}에 {v}시에 들렀다.",
                "{p:은} {t}에 몇 시에 들렀나요?",
                "{p:은} {t}에 {v}시에 들렀어요.",
            ],
            [
                "{p} came to {t} at {v} o'clock.",
                "At what hour did {p} come to {t}?",
                "{p} came to {t} at {v} o'clock.",
            ],
        ],
        &[
            ("p", person.text(lang)),
            ("t", place.text(lang)),
            ("v", number.as_str()),
        ],
        Found::Number(hour),
    )
}

/// How a passage and a question are put together, in prompts and documents alike.
pub(crate) fn prompt(lang: Lang, passage: &str, question: &str) -> String {
    match lang {
        Lang::Korean => format!("다음 글을 읽고 물음에 답해 주세요.\n{passage}\n{question}"),
        Lang::English => {
            format!("Read the passage and answer the question.\n{passage}\n{question}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passages_have_15_to_40_sentences_and_hold_their_answers() {
        let world = World::new(1);
        let mut rng = Rng::new(1, "test");
        for idx in 0..300 {
            let lang = Lang::ALL[idx % 2];
            let story = Story::draw(&world, Side::Train, lang, &mut rng);
            let sentences = story.passage.matches('.').count();
            assert!(
                (15..=40).contains(&sentences),
                "{sentences}: {}",
                story.passage
            );
            assert!(story.queries.len() >= 7);
            for query in &story.queries {
                let value = match &query.value {
                    Found::Number(number) => number.to_string(),
                    Found::Name { value, .. } => value.clone(),
                };
                assert!(story.passage.contains(&value) && query.answer.contains(&value));
                let same = story
                    .queries
                    .iter()
                    .filter(|q| q.question == query.question)
                    .count();
                assert_eq!(same, 1, "{}", query.question);
            }
        }
    }

    #[test]
    fn the_hours_of_a_day_rise() {
        let world = World::new(2);
        let mut rng = Rng::new(2, "test");
        let story = Story::draw(&world, Side::HeldOut, Lang::English, &mut rng);
        let hours: Vec<u32> = story
            .passage
            .split(". ")
            .filter(|s| s.contains("o'clock"))
            .filter_map(|s| s.split(' ').rev().nth(1)?.parse().ok())
            .collect();
        assert!(hours.len() >= 2 && hours.is_sorted(), "{hours:?}");
    }
}
