//! The world's entities and facts, and which facts may be asked about in training.
//!
//! A world is drawn from a seed: 32 people, 16 places, 8 festivals. Each person holds a job of one
//! place, so "works at" follows from "works as"; "who is the baker" is the same fact as "what does
//! Mina work as" and shares its side of the split. A fact is *held out* when the hash of (world seed,
//! subject, attribute) is 0 modulo [`HELD_OUT_ONE_IN`]: documents state it, but no training text ever
//! asks for it, in any wording or language.

use numerics::{Philox, Rng};

use crate::{
    Lang,
    lexicon::{self, Name},
    phrases::phrases,
    template::fill,
};

/// One fact in so many is never asked about in training.
pub const HELD_OUT_ONE_IN: u32 = 5;

/// What is said of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(
    missing_docs,
    reason = "the names are the documentation; `phrases` says each in full"
)]
pub enum Attribute {
    Job,
    Workplace,
    Home,
    BirthYear,
    Food,
    Hobby,
    Pet,
    PetName,
    /// The person who holds a job; the subject is the job.
    Holder,
    Quarter,
    Founded,
    Speciality,
    Month,
    Venue,
}

impl Attribute {
    /// Every attribute.
    pub const ALL: [Attribute; 14] = [
        Attribute::Job,
        Attribute::Workplace,
        Attribute::Home,
        Attribute::BirthYear,
        Attribute::Food,
        Attribute::Hobby,
        Attribute::Pet,
        Attribute::PetName,
        Attribute::Holder,
        Attribute::Quarter,
        Attribute::Founded,
        Attribute::Speciality,
        Attribute::Month,
        Attribute::Venue,
    ];

    /// True where the value is a year.
    pub(crate) fn is_year(self) -> bool {
        matches!(self, Attribute::BirthYear | Attribute::Founded)
    }
}

/// What a fact is about: an index into the world's people, places or festivals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A person.
    Person(usize),
    /// A place.
    Place(usize),
    /// A festival.
    Festival(usize),
}

/// The value of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// A name in both languages.
    Name(Name),
    /// A year.
    Year(u16),
}

impl Value {
    /// The value as written in `lang`, without article.
    pub fn text(&self, lang: Lang) -> String {
        match self {
            Value::Name(name) => name.text(lang).to_owned(),
            Value::Year(year) => year.to_string(),
        }
    }
}

impl Name {
    /// The name in `lang`.
    pub fn text(&self, lang: Lang) -> &'static str {
        match lang {
            Lang::Korean => self.ko,
            Lang::English => self.en,
        }
    }
}

/// One statement that is true in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is about.
    pub subject: Subject,
    /// Which property.
    pub attribute: Attribute,
    /// The subject's name in sentences (the job's, for [`Attribute::Holder`]).
    pub name: Name,
    /// The property's value.
    pub value: Value,
    /// True when no training text asks for it.
    pub held_out: bool,
}

impl Fact {
    /// The fact in the wording of `template`.
    pub(crate) fn say(&self, template: &str, lang: Lang) -> String {
        fill(
            template,
            &[("p", self.name.text(lang)), ("v", &self.value.text(lang))],
        )
    }

    /// The sentence that answers a question about the fact.
    pub fn answer(&self, lang: Lang) -> String {
        let forms = phrases(self.attribute);
        self.say(
            match lang {
                Lang::Korean => forms.ko_polite[0],
                Lang::English => forms.en[0],
            },
            lang,
        )
    }

    /// Every sentence in which documents state the fact alone.
    pub fn statements(&self, lang: Lang) -> Vec<String> {
        let forms = phrases(self.attribute);
        let templates: Vec<&str> = match lang {
            Lang::Korean => [forms.ko_plain, forms.ko_polite, forms.ko_casual].concat(),
            Lang::English => forms.en.to_vec(),
        };
        templates.into_iter().map(|t| self.say(t, lang)).collect()
    }

    /// Every wording of the question for the fact.
    pub fn questions(&self, lang: Lang) -> Vec<String> {
        let forms = phrases(self.attribute);
        match lang {
            Lang::Korean => {
                let all = forms.ask_ko.iter().copied().chain([forms.ask_ko_casual]);
                all.map(|t| self.say(t, lang)).collect()
            }
            Lang::English => forms.ask_en.iter().map(|t| self.say(t, lang)).collect(),
        }
    }
}

/// Someone who lives in the town.
#[derive(Clone, Copy, Debug)]
pub struct Person {
    /// Given name.
    pub name: Name,
    pub(crate) job: Name,
    pub(crate) place: usize,
}

/// The town and all that is true of it.
pub struct World {
    pub(crate) seed: u64,
    pub(crate) people: Vec<Person>,
    pub(crate) places: Vec<Name>,
    facts: Vec<Fact>,
}

/// Years between which people were born.
const BIRTH_YEARS: std::ops::Range<u16> = 1940..2006;
/// Years between which places opened.
const FOUNDING_YEARS: std::ops::Range<u16> = 1905..1999;

impl World {
    /// Draws the world of `seed`: the same seed, the same world.
    pub fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed, "world/facts");
        let mut jobs: Vec<(Name, usize)> = (lexicon::PLACES.iter().enumerate())
            .flat_map(|(idx, place)| place.jobs.map(|job| (job, idx)))
            .collect();
        rng.shuffle(&mut jobs);
        let people: Vec<Person> = (lexicon::PEOPLE.iter().zip(&jobs))
            .map(|(&name, &(job, place))| Person { name, job, place })
            .collect();
        let places: Vec<Name> = lexicon::PLACES.iter().map(|place| place.name).collect();

        let mut facts = Vec::new();
        let split = Philox::new(seed, "world/split");
        let mut add = |subject, attribute, name: Name, value| {
            let held_out = is_held_out(&split, subject, attribute);
            facts.push(Fact {
                subject,
                attribute,
                name,
                value,
                held_out,
            });
        };
        let mut pet_names = lexicon::PET_NAMES;
        rng.shuffle(&mut pet_names);
        let year = |rng: &mut Rng, years: std::ops::Range<u16>| {
            Value::Year(years.start + rng.below(years.len()) as u16)
        };
        for (idx, person) in people.iter().enumerate() {
            let (subject, name) = (Subject::Person(idx), person.name);
            add(subject, Attribute::Job, name, Value::Name(person.job));
            add(
                subject,
                Attribute::Workplace,
                name,
                Value::Name(places[person.place]),
            );
            add(
                subject,
                Attribute::Home,
                name,
                Value::Name(*rng.pick(&lexicon::QUARTERS)),
            );
            add(
                subject,
                Attribute::BirthYear,
                name,
                year(&mut rng, BIRTH_YEARS),
            );
            add(
                subject,
                Attribute::Food,
                name,
                Value::Name(*rng.pick(&lexicon::FOODS)),
            );
            add(
                subject,
                Attribute::Hobby,
                name,
                Value::Name(*rng.pick(&lexicon::HOBBIES)),
            );
            add(
                subject,
                Attribute::Pet,
                name,
                Value::Name(*rng.pick(&lexicon::PETS)),
            );
            add(
                subject,
                Attribute::PetName,
                name,
                Value::Name(pet_names[idx]),
            );
            add(subject, Attribute::Holder, person.job, Value::Name(name));
        }
        for (idx, place) in lexicon::PLACES.iter().enumerate() {
            let (subject, name) = (Subject::Place(idx), place.name);
            add(
                subject,
                Attribute::Quarter,
                name,
                Value::Name(*rng.pick(&lexicon::QUARTERS)),
            );
            add(
                subject,
                Attribute::Founded,
                name,
                year(&mut rng, FOUNDING_YEARS),
            );
            let speciality = *rng.pick(&place.specialities);
            add(
                subject,
                Attribute::Speciality,
                name,
                Value::Name(speciality),
            );
        }
        let mut venues: Vec<usize> = (0..places.len()).collect();
        rng.shuffle(&mut venues);
        let mut months = lexicon::MONTHS;
        rng.shuffle(&mut months);
        for (idx, &name) in lexicon::FESTIVALS.iter().enumerate() {
            let subject = Subject::Festival(idx);
            add(subject, Attribute::Month, name, Value::Name(months[idx]));
            add(
                subject,
                Attribute::Venue,
                name,
                Value::Name(places[venues[idx]]),
            );
        }
        World {
            seed,
            people,
            places,
            facts,
        }
    }

    /// The seed the world was drawn from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Every fact, people first.
    pub fn facts(&self) -> &[Fact] {
        &self.facts
    }

    /// The facts about one subject.
    pub(crate) fn facts_of(&self, subject: Subject) -> Vec<&Fact> {
        self.facts
            .iter()
            .filter(|fact| fact.subject == subject)
            .collect()
    }

    /// The different values of an attribute in the world, in `lang`: what a guesser would choose from.
    pub(crate) fn values(&self, attribute: Attribute, lang: Lang) -> Vec<String> {
        let mut values: Vec<String> = (self.facts.iter())
            .filter(|fact| fact.attribute == attribute)
            .map(|fact| fact.value.text(lang))
            .collect();
        values.sort();
        values.dedup();
        values
    }
}

fn is_held_out(split: &Philox, subject: Subject, attribute: Attribute) -> bool {
    // "Who is the baker?" asks for the same fact as "What does Mina work as?".
    let attribute = if attribute == Attribute::Holder {
        Attribute::Job
    } else {
        attribute
    };
    let (kind, idx) = match subject {
        Subject::Person(idx) => (0, idx),
        Subject::Place(idx) => (1, idx),
        Subject::Festival(idx) => (2, idx),
    };
    split.block([kind, idx as u32, attribute as u32, 0])[0].is_multiple_of(HELD_OUT_ONE_IN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_world() {
        assert_eq!(World::new(5).facts(), World::new(5).facts());
        assert_ne!(World::new(5).facts(), World::new(6).facts());
    }

    #[test]
    fn a_job_and_its_holder_are_on_the_same_side_of_the_split() {
        let world = World::new(1);
        for idx in 0..world.people.len() {
            let facts = world.facts_of(Subject::Person(idx));
            let side = |a| facts.iter().find(|f| f.attribute == a).map(|f| f.held_out);
            assert_eq!(side(Attribute::Job), side(Attribute::Holder));
        }
    }

    #[test]
    fn about_one_fact_in_five_is_held_out() {
        for seed in 0..20 {
            let world = World::new(seed);
            let held = world.facts().iter().filter(|f| f.held_out).count();
            let share = held as f64 / world.facts().len() as f64;
            assert!((0.13..0.28).contains(&share), "seed {seed}: {share}");
        }
    }

    #[test]
    fn values_of_one_kind_do_not_contain_each_other() {
        use crate::heldout::mentions;
        for seed in 0..8 {
            let world = World::new(seed);
            for attribute in Attribute::ALL {
                for lang in Lang::ALL {
                    let values = world.values(attribute, lang);
                    for a in &values {
                        for b in &values {
                            assert!(
                                a == b || !mentions(a, b),
                                "{attribute:?}: {a:?} holds {b:?}"
                            );
                        }
                    }
                }
            }
        }
    }
}
