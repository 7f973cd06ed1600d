//! Ctrl-C, and the signal that ends a service (SIGTERM).
//!
//! A command that has something to save calls [`listen`] and looks at [`is_asked`]: the first signal
//! asks it to save and stop, the second ends the process at once. A command that writes only when it
//! is done calls [`end_at_once`]. Either way the exit status is 130, and files are written so that
//! no half of one is left.

use anyhow::{Context, Result};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

static IS_ASKED: AtomicBool = AtomicBool::new(false);

/// Exit status of a command that was interrupted.
pub(crate) const STATUS: u8 = 130;

/// The error of a command that stopped because it was asked to; its text says what was kept.
#[derive(Debug, thiserror::Error)]
#[error("interrupted; {0}")]
pub(crate) struct Interrupted(pub(crate) String);

/// From now on a signal asks instead of ending.
pub(crate) fn listen() -> Result<()> {
    handle(|| {
        if IS_ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(STATUS));
        }
        crate::progress::tell("stopping; press Ctrl-C again to end at once");
    })
}

/// Whether somebody asked to stop.
pub(crate) fn is_asked() -> bool {
    IS_ASKED.load(Ordering::SeqCst)
}

/// Breaks where somebody asked to stop: what a long part of a library is told between two steps.
pub(crate) fn stop_if_asked() -> ControlFlow<()> {
    match is_asked() {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// Whether the next Ctrl-C asks, also after an earlier one (`true`), or ends the process at once. For a
/// command that goes on after it was stopped, and waits for input in between.
pub(crate) fn ask_first(asks: bool) {
    IS_ASKED.store(!asks, Ordering::SeqCst);
}

/// From now on a signal ends the process, which has written nothing yet.
pub(crate) fn end_at_once() -> Result<()> {
    handle(|| {
        crate::progress::tell("error: interrupted; nothing was written");
        std::process::exit(i32::from(STATUS));
    })
}

fn handle(handler: impl FnMut() + 'static + Send) -> Result<()> {
    match ctrlc::set_handler(handler) {
        // A command made of others has done so already.
        Ok(()) | Err(ctrlc::Error::MultipleHandlers) => Ok(()),
        Err(e) => Err(e).context("cannot listen for Ctrl-C"),
    }
}
