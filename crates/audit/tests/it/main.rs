//! The audit of whole run directories.

mod compare;
mod verify;
