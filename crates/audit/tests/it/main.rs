//! The audit of whole run directories.

mod verify;
