//! The built-in world: Yunseul, a small town by the sea, and arithmetic with small numbers.
//!
//! From a seed, the crate draws a town (who lives where, who works as what, what the bakery is known
//! for) and writes, in Korean and English, documents that state every fact many times, dialogues that
//! ask for some, and held-out questions that ask for the rest. All text is composed here from sentences
//! written for this project; no third-party text is involved.
//!
//! ```text
//! World::new(seed) -> documents(seed, bytes)         facts, exercises, stories, pages of questions
//!                  -> training_dialogues(seed, n)    questions of the training side, chat form
//!                  -> heldout::questions(&world, n)  questions of the other side, with a checker
//! ```
//!
//! What is disjoint, by construction and by the scan in `tests/disjoint.rs`: the facts asked about, the operand
//! pairs, the passages, the combinations of requests. What is shared: the wordings.
//!
//! It is sized for models of a few million parameters that read a few million tokens: 360 facts,
//! numbers below a hundred, one passage of at most forty sentences. It does not try to be a benchmark
//! of anything larger.

pub mod arithmetic;
pub mod conduct;
pub mod dialogue;
pub mod document;
pub mod facts;
pub mod heldout;
pub mod korean;
mod lexicon;
mod phrases;
pub mod story;
mod template;

pub use dialogue::Dialogue;
pub use document::{Document, Documents};
pub use facts::{Attribute, Fact, Subject, Value, World};
pub use lexicon::Name;

/// Languages of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lang {
    /// `ko`
    Korean,
    /// `en`
    English,
}

impl Lang {
    /// Both.
    pub const ALL: [Lang; 2] = [Lang::Korean, Lang::English];

    /// ISO 639-1 code.
    pub fn as_str(self) -> &'static str {
        match self {
            Lang::Korean => "ko",
            Lang::English => "en",
        }
    }
}

/// Areas of the national evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Area {
    /// Arithmetic.
    Mathematics,
    /// Facts of the town.
    Knowledge,
    /// Questions about a passage in the prompt.
    LongDocument,
    /// Refusing harm, helping otherwise, and saying what is not known.
    ReliabilitySafety,
}

impl Area {
    /// All four.
    pub const ALL: [Area; 4] = [
        Area::Mathematics,
        Area::Knowledge,
        Area::LongDocument,
        Area::ReliabilitySafety,
    ];

    /// Name in identifiers and files.
    pub fn as_str(self) -> &'static str {
        match self {
            Area::Mathematics => "mathematics",
            Area::Knowledge => "knowledge",
            Area::LongDocument => "long_document",
            Area::ReliabilitySafety => "reliability_safety",
        }
    }

    fn source(self) -> &'static str {
        match self {
            Area::Mathematics => "world/mathematics",
            Area::Knowledge => "world/knowledge",
            Area::LongDocument => "world/long_document",
            Area::ReliabilitySafety => "world/reliability_safety",
        }
    }
}

/// Who speaks in a dialogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// Name of the role in chat formats.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}
