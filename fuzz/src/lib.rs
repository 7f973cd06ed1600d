//! What the fuzz targets share: seeds, and a budget of memory.
//!
//! A target claims that whatever the bytes, its reader answers: with what it read or with one error, without
//! a panic, without arithmetic that wraps, in bounded time, and within a budget of memory that grows with
//! the bytes. Overflow checks are on in these builds; time is the fuzzer's own `-timeout`; memory is
//! [`budget`].
//!
//! Seeds are valid inputs that this project writes. A target plants them in its corpus when it starts
//! ([`plant`]), so that no binary lies in the repository.

pub mod budget;

use std::path::Path;

/// Writes seeds into the corpus directory that the fuzzer was started with; does nothing where it was
/// started with files, to repeat them.
pub fn plant(seeds: &[Vec<u8>]) {
    let corpus = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .filter(|arg| Path::new(arg).is_dir());
    for (index, seed) in seeds.iter().enumerate() {
        if let Some(corpus) = &corpus {
            let file = Path::new(corpus).join(format!("seed-{index}"));
            std::fs::write(file, seed).expect("a corpus can be written");
        }
    }
}
