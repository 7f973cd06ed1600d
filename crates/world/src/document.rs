//! Documents: what a model reads before anyone asks it anything.
//!
//! Kinds are mixed by shares of estimated tokens. Whom a document is about comes from decks that are
//! shuffled and dealt to the end before anyone comes up again, so that facts are stated about equally
//! often. Pages of questions hold training questions only.

use numerics::Rng;

use crate::{
    Lang, World,
    arithmetic::{self, Side},
    conduct::Exchange,
    facts::{Attribute, Fact, Subject},
    lexicon::TOWN,
    phrases::{PAIRS, phrases},
    story::Story,
    template::{fill, pick},
};

/// A text of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The text, without trailing newline.
    pub text: String,
    /// Its language.
    pub lang: Lang,
    /// `world/people`, `world/places`, `world/festivals`, `world/lists`, `world/talk`,
    /// `world/questions`, `world/mathematics`, `world/stories` or `world/conduct`.
    pub source: &'static str,
}

#[derive(Clone, Copy)]
enum Kind {
    People,
    Places,
    Festivals,
    Lists,
    Talk,
    Questions,
    Mathematics,
    Stories,
    Conduct,
}

/// Kinds with their share of the estimated tokens, in percent.
const SHARES: [(Kind, &str, u64); 9] = [
    (Kind::People, "world/people", 26),
    (Kind::Places, "world/places", 6),
    (Kind::Festivals, "world/festivals", 2),
    (Kind::Lists, "world/lists", 5),
    (Kind::Talk, "world/talk", 3),
    (Kind::Questions, "world/questions", 17),
    (Kind::Mathematics, "world/mathematics", 24),
    (Kind::Stories, "world/stories", 11),
    (Kind::Conduct, "world/conduct", 6),
];

/// An endless pack of cards `0..len`, reshuffled each time it is used up.
struct Deck {
    cards: Vec<usize>,
    next: usize,
}

impl Deck {
    fn new(len: usize) -> Deck {
        Deck {
            cards: (0..len).collect(),
            next: len,
        }
    }

    fn deal(&mut self, rng: &mut Rng) -> usize {
        if self.next == self.cards.len() {
            rng.shuffle(&mut self.cards);
            self.next = 0;
        }
        self.next += 1;
        self.cards[self.next - 1]
    }
}

/// The documents of [`World::documents`].
pub struct Documents<'a> {
    world: &'a World,
    rng: Rng,
    left_bytes: u64,
    used: [u64; SHARES.len()],
    decks: [[Deck; 4]; 2],
}

const PEOPLE_DECK: usize = 0;
const PLACES_DECK: usize = 1;
const FESTIVALS_DECK: usize = 2;
const QUESTIONS_DECK: usize = 3;

impl World {
    /// Documents of about `bytes` bytes of text together, drawn from `seed`.
    pub fn documents(&self, seed: u64, bytes: u64) -> Documents<'_> {
        let (people, places) = (self.people.len(), self.places.len());
        let festivals = crate::lexicon::FESTIVALS.len();
        let asked = self.facts().iter().filter(|fact| !fact.held_out).count();
        let decks = || [people, places, festivals, asked].map(Deck::new);
        Documents {
            world: self,
            rng: Rng::new(seed, "world/documents"),
            left_bytes: bytes,
            used: [0; SHARES.len()],
            decks: [decks(), decks()],
        }
    }
}

/// Digits and symbols are tokens of their own; a token of words has about four and a half bytes in a
/// vocabulary of two thousand trained on this text.
fn estimated_tenths_of_tokens(text: &str) -> u64 {
    let single = text
        .bytes()
        .filter(|b| b.is_ascii_digit() || b"+-=".contains(b))
        .count();
    (single * 10 + (text.len() - single) * 10 * 2 / 9) as u64
}

impl Iterator for Documents<'_> {
    type Item = Document;

    fn next(&mut self) -> Option<Document> {
        if self.left_bytes == 0 {
            return None;
        }
        // The kind that is furthest behind its share.
        let idx = (0..SHARES.len())
            .min_by_key(|&idx| self.used[idx] * 1000 / SHARES[idx].2)
            .expect("there are kinds");
        let (kind, source, _) = SHARES[idx];
        let lang = Lang::ALL[self.rng.below(2)];
        let text = self.write(kind, lang).trim_end().to_owned();
        self.used[idx] += estimated_tenths_of_tokens(&text);
        self.left_bytes = self.left_bytes.saturating_sub(text.len() as u64);
        Some(Document { text, lang, source })
    }
}

impl Documents<'_> {
    fn write(&mut self, kind: Kind, lang: Lang) -> String {
        let world = self.world;
        match kind {
            Kind::People => {
                let person = self.deal(PEOPLE_DECK, lang);
                self.biography(Subject::Person(person), lang)
            }
            Kind::Places => {
                let place = self.deal(PLACES_DECK, lang);
                self.place(place, lang)
            }
            Kind::Festivals => {
                // Two facts make a short text: three festivals to a page.
                let mut page = Vec::new();
                for _ in 0..3 {
                    let festival = self.deal(FESTIVALS_DECK, lang);
                    page.push(self.biography(Subject::Festival(festival), lang));
                }
                page.join("\n")
            }
            Kind::Lists => self.list(lang),
            Kind::Talk => self.talk(lang),
            Kind::Questions => self.questions(lang),
            Kind::Mathematics => arithmetic::page(world, lang, &mut self.rng),
            Kind::Stories => self.story(lang),
            Kind::Conduct => {
                let rng = &mut self.rng;
                (0..3 + rng.below(4))
                    .map(|_| {
                        let exchange = Exchange::any(world, lang, rng);
                        question_line(lang, &exchange.request, &exchange.reply)
                    })
                    .collect()
            }
        }
    }

    fn deal(&mut self, deck: usize, lang: Lang) -> usize {
        self.decks[lang as usize][deck].deal(&mut self.rng)
    }

    /// All facts about one subject in one register, some of them two to a sentence.
    fn biography(&mut self, subject: Subject, lang: Lang) -> String {
        let rng = &mut self.rng;
        let mut facts = self.world.facts_of(subject);
        rng.shuffle(&mut facts);
        let register = Register::draw(lang, rng);
        let mut sentences = Vec::new();
        if let Some(title) = title(subject, &facts, lang, rng) {
            sentences.push(title);
        }
        while let Some(fact) = facts.pop() {
            let pair = PAIRS.iter().find(|pair| pair.first == fact.attribute);
            let partner = pair.and_then(|p| facts.iter().position(|f| f.attribute == p.second));
            match (pair, partner) {
                (Some(pair), Some(idx)) if rng.below(3) == 0 => {
                    let second = facts.remove(idx);
                    sentences.push(fill(
                        match register {
                            Register::Plain => pair.ko_plain,
                            Register::Polite => pair.ko_polite,
                            Register::English => pair.en,
                        },
                        &[
                            ("p", fact.name.text(lang)),
                            ("v", &fact.value.text(lang)),
                            ("w", &second.value.text(lang)),
                        ],
                    ));
                }
                _ => sentences.push(register.sentence(fact, rng)),
            }
        }
        sentences.join(" ")
    }

    /// A place, then the people who work there, one or two facts of each.
    fn place(&mut self, place: usize, lang: Lang) -> String {
        let rng = &mut self.rng;
        let register = Register::draw(lang, rng);
        let mut facts = self.world.facts_of(Subject::Place(place));
        rng.shuffle(&mut facts);
        let mut sentences: Vec<String> = facts
            .iter()
            .map(|fact| register.sentence(fact, rng))
            .collect();
        for idx in 0..self.world.people.len() {
            if self.world.people[idx].place == place {
                let mut about = self.world.facts_of(Subject::Person(idx));
                about.retain(|f| matches!(f.attribute, Attribute::Workplace | Attribute::Holder));
                sentences.extend(about.iter().map(|fact| register.sentence(fact, rng)));
            }
        }
        sentences.join(" ")
    }

    /// One attribute of eight subjects, one to a line.
    fn list(&mut self, lang: Lang) -> String {
        let rng = &mut self.rng;
        let attribute = *rng.pick(&Attribute::ALL);
        let mut facts: Vec<&Fact> = self
            .world
            .facts()
            .iter()
            .filter(|f| f.attribute == attribute)
            .collect();
        rng.shuffle(&mut facts);
        facts.truncate(8);
        // Lists by year show order in time.
        if attribute.is_year() {
            facts.sort_by_key(|fact| fact.value.text(lang));
        }
        let forms = phrases(attribute);
        let mut text = match lang {
            Lang::Korean => format!("{}\n", forms.list_ko),
            Lang::English => format!("{}\n", forms.list_en),
        };
        for fact in facts {
            text.push_str(&fact.say("- {p}: {v}\n", lang));
        }
        text
    }

    /// Two people tell each other things, without asking.
    fn talk(&mut self, lang: Lang) -> String {
        let world = self.world;
        let first = self.deal(PEOPLE_DECK, lang);
        let rng = &mut self.rng;
        let second = (first + 1 + rng.below(world.people.len() - 1)) % world.people.len();
        let (openers, replies): (&[&'static str], &[&'static str]) = match lang {
            Lang::Korean => (
                &["있잖아,", "내가 들었는데,", "너도 알지?", "그거 알아?"],
                &["맞아,", "그렇구나.", "나도 들었어.", "그리고"],
            ),
            Lang::English => (
                &[
                    "Listen.",
                    "I heard something.",
                    "It is true.",
                    "Here is some news.",
                ],
                &["Yes.", "I see.", "I heard that too.", "And there is more."],
            ),
        };
        let mut text = String::new();
        for turn in 0..4 + rng.below(4) {
            let speaker = world.people[if turn % 2 == 0 { first } else { second }].name;
            // Nobody speaks of oneself in the third person.
            let fact = loop {
                let fact = rng.pick(world.facts());
                let own = fact.subject == Subject::Person(first)
                    || fact.subject == Subject::Person(second);
                if !own {
                    break fact;
                }
            };
            let start = pick(rng, if turn == 0 { openers } else { replies });
            let forms = phrases(fact.attribute);
            let template = match lang {
                Lang::Korean => pick(rng, forms.ko_casual),
                Lang::English => pick(rng, forms.en),
            };
            let said = fact.say(template, lang);
            text.push_str(&format!("{}: {start} {said}\n", speaker.text(lang)));
        }
        text
    }

    /// A page of training questions with their answers.
    fn questions(&mut self, lang: Lang) -> String {
        let mut text = String::new();
        for _ in 0..5 + self.rng.below(6) {
            let idx = self.deal(QUESTIONS_DECK, lang);
            let fact = (self.world.facts().iter().filter(|fact| !fact.held_out))
                .nth(idx)
                .expect("the deck counts the facts that are asked");
            let (question, _) = ask(self.world, fact, lang, &mut self.rng);
            text.push_str(&question_line(lang, &question, &fact.answer(lang)));
        }
        text
    }

    /// A passage and three questions on it.
    fn story(&mut self, lang: Lang) -> String {
        let story = Story::draw(self.world, Side::Train, lang, &mut self.rng);
        let mut queries = story.queries;
        self.rng.shuffle(&mut queries);
        let mut text = format!("{}\n", story.passage);
        for query in queries.iter().take(4) {
            text.push_str(&question_line(lang, &query.question, &query.answer));
        }
        text
    }
}

/// A question for a fact, one time in four with four values to choose from; the values if so.
pub(crate) fn ask(
    world: &World,
    fact: &Fact,
    lang: Lang,
    rng: &mut Rng,
) -> (String, Option<Vec<String>>) {
    let question = rng.pick(&fact.questions(lang)).clone();
    if rng.below(4) != 0 {
        return (question, None);
    }
    let value = fact.value.text(lang);
    let mut others = world.values(fact.attribute, lang);
    others.retain(|other| *other != value);
    rng.shuffle(&mut others);
    others.truncate(3);
    others.push(value);
    rng.shuffle(&mut others);
    let listed = others.join(", ");
    let question = match lang {
        Lang::Korean => format!("{question} 보기: {listed}"),
        Lang::English => format!("{question} Choose one: {listed}"),
    };
    (question, Some(others))
}

/// A question and its answer as two lines of a document.
pub(crate) fn question_line(lang: Lang, question: &str, answer: &str) -> String {
    match lang {
        Lang::Korean => format!("문: {question}\n답: {answer}\n"),
        Lang::English => format!("Q: {question}\nA: {answer}\n"),
    }
}

#[derive(Clone, Copy)]
enum Register {
    Plain,
    Polite,
    English,
}

impl Register {
    fn draw(lang: Lang, rng: &mut Rng) -> Register {
        match lang {
            Lang::English => Register::English,
            Lang::Korean if rng.below(3) == 0 => Register::Plain,
            Lang::Korean => Register::Polite,
        }
    }

    /// The first polite and the first English form are what answers say: two sentences in five
    /// take them, so that a question only has to find a sentence that has been read many times.
    fn sentence(self, fact: &Fact, rng: &mut Rng) -> String {
        let forms = phrases(fact.attribute);
        let (forms, lang) = match self {
            Register::Plain => (forms.ko_plain, Lang::Korean),
            Register::Polite => (forms.ko_polite, Lang::Korean),
            Register::English => (forms.en, Lang::English),
        };
        let form = if rng.below(5) < 2 {
            forms[0]
        } else {
            pick(rng, forms)
        };
        fact.say(form, lang)
    }
}

fn title(subject: Subject, facts: &[&Fact], lang: Lang, rng: &mut Rng) -> Option<String> {
    if rng.below(3) != 0 {
        return None;
    }
    let name = facts
        .iter()
        .find(|fact| fact.attribute != Attribute::Holder)?
        .name
        .text(lang);
    let town = TOWN.text(lang);
    Some(match (subject, lang) {
        (Subject::Person(_), Lang::Korean) => format!("{town} 사람 {name} 이야기."),
        (Subject::Person(_), Lang::English) => format!("About {name} of {town}."),
        (_, Lang::Korean) => format!("{town} 안내, {name}."),
        (_, Lang::English) => format!("A guide to {town}: {name}."),
    })
}
