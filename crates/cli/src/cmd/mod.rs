//! One file per subcommand: its arguments, and `run`.

pub(crate) mod inspect;
pub(crate) mod logits;
