//! How far a long command is, on stderr: a bar on a terminal, plain lines otherwise (for logs).
//!
//! ```text
//! training  [######----------]  120 of 1,000 steps (12 %), 3.2 steps/s, 4m 35s to go; loss 3.21
//! ```
//!
//! The rate is that of the last half minute or so, so that a slow start or a pause does not spoil the time to go.

use indicatif::{ProgressBar, ProgressStyle};
use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Between two drawings of the bar.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// What the rate looks back on.
const WINDOW: Duration = Duration::from_secs(30);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bytes, shown as kB, MB, GB.
    Bytes,
    /// Things, by their plural: "steps", "documents".
    Of(&'static str),
}

/// One long command, or one part of it. Dropped without [`Progress::finish`] (an error, Ctrl-C) it leaves the
/// terminal clean for the message that follows.
pub(crate) struct Progress {
    what: String,
    unit: Unit,
    first: u64, // done before this process began
    done: u64,
    total: u64,
    note: String,
    began: Instant,
    shown: Option<Instant>,
    window: VecDeque<(Instant, u64)>,
    bar: Option<ProgressBar>, // on a terminal
    is_finished: bool,
}

impl Progress {
    /// Begins with `done` of `total`: more than 0 where something is resumed.
    pub(crate) fn new(what: &str, unit: Unit, done: u64, total: u64) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total.max(1));
            // A template that is wrong would show in the first use of any command.
            let style = ProgressStyle::with_template("{prefix}  [{bar:24}]  {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=> "));
            bar.set_prefix(what.to_owned());
            bar
        });
        let now = Instant::now();
        let mut progress = Progress {
            what: what.to_owned(),
            unit,
            first: done,
            done,
            total,
            note: String::new(),
            began: now,
            shown: None,
            window: VecDeque::from([(now, done)]),
            bar,
            is_finished: false,
        };
        progress.show(now);
        progress
    }

    /// Says how much is done; cheap enough to call at every step.
    pub(crate) fn set(&mut self, done: u64) {
        self.done = done;
        let now = Instant::now();
        let every = match self.bar {
            Some(_) => DRAW_EVERY,
            None => LINE_EVERY,
        };
        if self.shown.is_none_or(|shown| now - shown >= every) {
            self.show(now);
        }
    }

    /// What stands at the end of the line from now on: "loss 3.21".
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.note = note.into();
    }

    /// Corrects the total, where it was an estimate.
    pub(crate) fn set_total(&mut self, total: u64) {
        self.total = total;
        if let Some(bar) = &self.bar {
            bar.set_length(total.max(1));
        }
    }

    /// Ends with a line that stays: how much in how long.
    pub(crate) fn finish(mut self) {
        self.is_finished = true;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.began.elapsed().as_secs_f64();
        let done = self.done - self.first.min(self.done);
        let mut line = format!(
            "{}: {} in {}",
            self.what,
            amount(done, self.unit),
            duration(seconds)
        );
        if seconds > 0.0 && done > 0 {
            line.push_str(&format!(", {}", rate(done as f64 / seconds, self.unit)));
        }
        if !self.note.is_empty() {
            line.push_str(&format!("; {}", self.note));
        }
        tell(&line);
    }

    fn show(&mut self, now: Instant) {
        self.shown = Some(now);
        self.window.push_back((now, self.done));
        while self.window.len() > 2 && now - self.window[1].0 >= WINDOW {
            self.window.pop_front();
        }
        let (since, before) = self.window[0];
        let seconds = (now - since).as_secs_f64();
        let per_second = match seconds > 0.0 {
            true => self.done.saturating_sub(before) as f64 / seconds,
            false => 0.0,
        };
        let state = state(self.done, self.total, self.unit, per_second, &self.note);
        match &self.bar {
            Some(bar) => {
                bar.set_message(state);
                bar.set_position(self.done);
            }
            None => tell(&format!("{}: {state}", self.what)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.as_ref().filter(|_| !self.is_finished) {
            bar.finish_and_clear();
        }
    }
}

/// A line on stderr. A reader that has gone away is not an error.
pub(crate) fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// `120 of 1,000 steps (12 %), 3.2 steps/s, 4m 35s to go; loss 3.21`
fn state(done: u64, total: u64, unit: Unit, per_second: f64, note: &str) -> String {
    let share = 100.0 * done as f64 / total.max(1) as f64;
    let of = match unit {
        Unit::Bytes => format!("{} of {}", bytes(done), bytes(total)),
        Unit::Of(name) => format!("{} of {} {name}", grouped(done), grouped(total)),
    };
    let mut line = format!("{of} ({:.0} %)", share.min(100.0).floor());
    if per_second > 0.0 {
        line.push_str(&format!(", {}", rate(per_second, unit)));
        if done < total {
            let left = (total - done) as f64 / per_second;
            line.push_str(&format!(", {} to go", duration(left)));
        }
    }
    if !note.is_empty() {
        line.push_str(&format!("; {note}"));
    }
    line
}

fn amount(count: u64, unit: Unit) -> String {
    match unit {
        Unit::Bytes => bytes(count),
        Unit::Of(name) => format!("{} {name}", grouped(count)),
    }
}

fn rate(per_second: f64, unit: Unit) -> String {
    let name = match unit {
        Unit::Bytes => return format!("{}/s", bytes(per_second as u64)),
        Unit::Of(name) => name,
    };
    match per_second {
        r if r >= 100.0 => format!("{} {name}/s", grouped(r as u64)),
        r if r >= 0.1 => format!("{r:.1} {name}/s"),
        r => format!("{:.1} {name}/min", 60.0 * r),
    }
}

/// `12,345`
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `12.3 MB`
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `4m 35s`
pub(crate) fn duration(seconds: f64) -> String {
    if seconds < 10.0 {
        return format!("{:.1}s", seconds.max(0.0));
    }
    // A time to go may be without bound; nobody waits for more than years.
    let seconds = seconds.min(1e10) as u64;
    let (d, h, m, s) = (
        seconds / 86_400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m {s:02}s"),
        (0, _, _) => format!("{h}h {m:02}m"),
        _ => format!("{d}d {h:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_is_done_and_left_how_fast_and_how_long_yet() {
        let steps = Unit::Of("steps");
        assert_eq!(
            state(120, 1000, steps, 3.2, "loss 3.21"),
            "120 of 1,000 steps (12 %), 3.2 steps/s, 4m 35s to go; loss 3.21"
        );
        assert_eq!(
            state(1000, 1000, steps, 250.0, ""),
            "1,000 of 1,000 steps (100 %), 250 steps/s"
        );
        assert_eq!(state(0, 1000, steps, 0.0, ""), "0 of 1,000 steps (0 %)");
        assert_eq!(state(0, 0, steps, 0.0, ""), "0 of 0 steps (0 %)");
        assert_eq!(
            state(999, 1000, steps, 0.01, ""),
            "999 of 1,000 steps (99 %), 0.6 steps/min, 1m 40s to go"
        );
        assert_eq!(
            state(5_000_000, 20_000_000, Unit::Bytes, 1_500_000.0, ""),
            "5.0 MB of 20.0 MB (25 %), 1.5 MB/s, 10s to go"
        );
    }

    #[test]
    fn figures_are_written_for_people() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [0, 999, 1000, 999_949, 999_950, u64::MAX].map(bytes),
            ["0 B", "999 B", "1.0 kB", "999.9 kB", "1.0 MB", "18446.7 PB"]
        );
        assert_eq!(
            [0.04, 59.9, 60.0, 3600.0, 90_000.0, f64::INFINITY].map(duration),
            ["0.0s", "59s", "1m 00s", "1h 00m", "1d 01h", "115740d 17h"]
        );
    }
}
