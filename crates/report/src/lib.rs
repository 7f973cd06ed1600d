//! `report.html`: one page that shows what became of a run. Self-contained: no script library, no font, no
//! image, nothing is loaded from anywhere, and a content policy in the page forbids it.
//!
//! In reading order:
//! - `run`: what there is to show, read from the run directory; what is missing is left out, what is
//!   unreadable is told
//! - `html`: escaping and figures in words; the frame of the page (`page.css`, `page.js`)
//! - `chart`: line charts; `plot`: scales, ticks and paths that all drawings share
//! - `scores`, `training`, `experts`, `answers`, `provenance`: the sections, in the order of the page
//!
//! All text that comes from a file (answers of a model above all) passes through `html::Escaped`.
//! The script only adds values under the pointer: without it the page is whole.

mod run;

mod html;
mod plot;

mod chart;

mod answers;
mod experts;
mod provenance;
mod scores;
mod training;

use std::path::{Path, PathBuf};

use formats::atomic;
use formats::error::FileError;
use formats::run_dir::RunDir;
use thiserror::Error;

use crate::run::Run;

/// The page could not be made.
#[derive(Debug, Error)]
pub enum ReportError {
    /// There is nothing to show.
    #[error(
        "{} holds no run (no ledger.jsonl, no metrics); give a run directory, as `dokja pretrain \
         --run-dir` makes it",
        path.display()
    )]
    NoRun {
        /// The directory.
        path: PathBuf,
    },
    /// The page could not be written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The page of a run.
///
/// # Errors
/// Only where there is no run at all.
pub fn render(run: &RunDir) -> Result<String, ReportError> {
    let run = Run::read(run)?;
    Ok(html::page(&run))
}

/// Writes `report.html` into the run directory, in place of an earlier one, and returns its path.
///
/// # Errors
/// As [`render`], and where the file cannot be written.
pub fn write(run: &RunDir) -> Result<PathBuf, ReportError> {
    let path = run.report();
    write_to(run, &path)?;
    Ok(path)
}

/// As [`write()`], to another place.
///
/// # Errors
/// As [`write()`].
pub fn write_to(run: &RunDir, path: &Path) -> Result<(), ReportError> {
    Ok(atomic::write_bytes(path, render(run)?.as_bytes())?)
}
