//! Every op of the case tables.

mod ops;
