//! dokja.
fn main() {}
