//! One file per subcommand: its arguments, and `run`.

pub(crate) mod audit;
pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod convert;
pub(crate) mod data;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod plan;
pub(crate) mod prefer;
pub(crate) mod pretrain;
pub(crate) mod quickstart;
pub(crate) mod rl;
pub(crate) mod serve;
pub(crate) mod sft;
pub(crate) mod tokenizer;
