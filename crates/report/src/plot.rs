//! What all drawings share: scales, ticks, smoothing, paths, figures in words.

use std::fmt::Write;

/// How values become places.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scale {
    from: f64,
    to: f64,
    start: f64, // in pixels
    end: f64,
    is_log: bool,
}

impl Scale {
    pub(crate) fn linear(values: [f64; 2], pixels: [f64; 2]) -> Scale {
        Scale::new(values, pixels, false)
    }

    /// Equal factors are equal distances; `values` above 0.
    pub(crate) fn log(values: [f64; 2], pixels: [f64; 2]) -> Scale {
        Scale::new(values, pixels, true)
    }

    fn new([from, to]: [f64; 2], [start, end]: [f64; 2], is_log: bool) -> Scale {
        Scale {
            from,
            to,
            start,
            end,
            is_log,
        }
    }

    pub(crate) fn at(&self, value: f64) -> f64 {
        let place = |v: f64| if self.is_log { v.max(1e-300).ln() } else { v };
        let (from, to) = (place(self.from), place(self.to));
        let share = match to > from {
            true => (place(value) - from) / (to - from),
            false => 0.5,
        };
        self.start + share * (self.end - self.start)
    }

    /// About `count` round values within; on a logarithmic scale as many as find room.
    pub(crate) fn ticks(&self, count: usize) -> Vec<f64> {
        let step = round_step((self.to - self.from) / count.max(1) as f64);
        let is_within = |v: &f64| *v >= self.from - 1e-9 * step && *v <= self.to + 1e-9 * step;
        if self.is_log && self.to / self.from > 3.0 {
            let decades = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
            let of = |multiples: &[f64]| -> Vec<f64> {
                let powers = decades.clone().map(|e| 10f64.powi(e));
                let all = powers.flat_map(|p| multiples.iter().map(move |m| m * p));
                all.filter(is_within).collect()
            };
            let has_room = |ticks: &Vec<f64>| {
                let gaps = ticks
                    .windows(2)
                    .map(|w| (self.at(w[1]) - self.at(w[0])).abs());
                gaps.fold(f64::INFINITY, f64::min) >= TICK_GAP
            };
            let mut choices = LOG_TICKS.iter().map(|multiples| of(multiples));
            return choices.find(has_room).unwrap_or_else(|| of(&[1.0]));
        }
        let first = (self.from / step).ceil();
        let all = (0..=2 * count).map(|i| (first + i as f64) * step);
        // Minus nought is nought.
        all.filter(is_within).map(|v| v + 0.0).collect()
    }
}

/// Ticks of a logarithmic scale, the finest first: multiples of powers of ten.
const LOG_TICKS: [&[f64]; 4] = [
    &[1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
    &[1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0],
    &[1.0, 2.0, 3.0, 5.0],
    &[1.0, 2.0, 5.0],
];

/// Pixels between ticks at least.
const TICK_GAP: f64 = 26.0;

/// The nearest of 1, 2 and 5 times powers of ten.
pub(crate) fn round_step(wanted: f64) -> f64 {
    if !(wanted > 0.0 && wanted.is_finite()) {
        return 1.0;
    }
    let power = 10f64.powf(wanted.log10().floor());
    let multiples = [1.0, 2.0, 5.0, 10.0].map(|m| m * power);
    let distance = |m: &f64| (m / wanted).ln().abs();
    let nearest = multiples
        .into_iter()
        .min_by(|a, b| distance(a).total_cmp(&distance(b)));
    nearest.unwrap_or(power)
}

/// Smallest and largest of the finite values; None without any.
pub(crate) fn extent(values: impl IntoIterator<Item = f64>) -> Option<[f64; 2]> {
    let finite = values.into_iter().filter(|v| v.is_finite());
    finite.fold(None, |extent, v| match extent {
        None => Some([v, v]),
        Some([low, high]) => Some([low.min(v), high.max(v)]),
    })
}

/// The mean over a window around each value. It shrinks evenly at the start, where curves are steep, and is
/// cut off at the end, where they are noisy. Gaps (no number) stay out of it.
pub(crate) fn smooth(values: &[f64], window: usize) -> Vec<f64> {
    let mut sums = vec![(0.0, 0u32)];
    for value in values {
        let (sum, count) = sums[sums.len() - 1];
        sums.push(match value.is_finite() {
            true => (sum + value, count + 1),
            false => (sum, count),
        });
    }
    (0..values.len())
        .map(|at| {
            let reach = (window / 2).min(at);
            let (low, high) = (sums[at - reach], sums[values.len().min(at + reach + 1)]);
            match high.1 > low.1 {
                true => (high.0 - low.0) / f64::from(high.1 - low.1),
                false => f64::NAN,
            }
        })
        .collect()
}

/// At most `count` indices of `0..len`, evenly spread, the first and the last among them.
pub(crate) fn spread(len: usize, count: usize) -> Vec<usize> {
    if len <= count {
        return (0..len).collect();
    }
    let last = count.max(2) - 1;
    (0..=last).map(|i| i * (len - 1) / last).collect()
}

/// Indices at which a line of `len` points shows its lows and highs, at most about `count` of them.
pub(crate) fn peaks(values: &[f64], count: usize) -> Vec<usize> {
    if values.len() <= count {
        return (0..values.len()).collect();
    }
    let piece = values.len().div_ceil(count / 2);
    let mut chosen = Vec::with_capacity(count + 2);
    for start in (0..values.len()).step_by(piece) {
        let of_piece = start..values.len().min(start + piece);
        let finite = of_piece.filter(|i| values[*i].is_finite());
        let low = finite
            .clone()
            .min_by(|a, b| values[*a].total_cmp(&values[*b]));
        let high = finite.max_by(|a, b| values[*a].total_cmp(&values[*b]));
        chosen.extend(low);
        chosen.extend(high);
    }
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

/// The `d` of a path through the points; a gap where one is no number.
pub(crate) fn path(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    let mut d = String::new();
    let mut is_drawing = false;
    for (x, y) in points {
        if !x.is_finite() || !y.is_finite() {
            is_drawing = false;
            continue;
        }
        let command = if is_drawing { 'L' } else { 'M' };
        let _ = write!(d, "{command}{} {}", px(x), px(y));
        is_drawing = true;
    }
    d
}

/// A place with one decimal at most.
pub(crate) fn px(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// `1.23 M`, `45.6 k`, `0.012`: three significant figures.
pub(crate) fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "not a number".to_owned();
    }
    let size = value.abs();
    let (scaled, unit) = match size {
        s if s >= 999.5e9 => (value / 1e12, " T"),
        s if s >= 999.5e6 => (value / 1e9, " B"),
        s if s >= 999.5e3 => (value / 1e6, " M"),
        s if s >= 9.995e3 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    format!("{}{unit}", significant(scaled, 3))
}

/// As many figures as asked for, without an exponent down to a millionth.
pub(crate) fn significant(value: f64, figures: i32) -> String {
    if value == 0.0 || !value.is_finite() {
        return "0".to_owned();
    }
    let exponent = value.abs().log10().floor() as i32;
    if exponent < -3 {
        let mantissa = value / 10f64.powi(exponent);
        return format!("{mantissa:.1} \u{b7} 10{}", superscript(exponent));
    }
    let decimals = (figures - 1 - exponent).clamp(0, 9) as usize;
    format!("{value:.decimals$}")
}

fn superscript(exponent: i32) -> String {
    let digits = exponent.to_string();
    let raised = |c| match c {
        '-' => '\u{207b}',
        '1' => '\u{b9}',
        '2' => '\u{b2}',
        '3' => '\u{b3}',
        c => char::from_u32(0x2070 + c as u32 - '0' as u32).unwrap_or(c),
    };
    digits.chars().map(raised).collect()
}

/// `12,345`
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A tick without needless noughts: `2`, `0.5`, `1 M`.
pub(crate) fn tick(value: f64) -> String {
    let text = match value.abs() {
        // Beside ticks in thousands, thousands.
        1e3..9.995e3 => format!("{} k", significant(value / 1e3, 3)),
        _ => figure(value),
    };
    let (number, unit) = text.split_once(' ').unwrap_or((&text, ""));
    if unit.starts_with('\u{b7}') {
        let short = number.trim_end_matches('0').trim_end_matches('.');
        return format!("{short} {unit}");
    }
    let number = match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => number,
    };
    match unit {
        "" => number.to_owned(),
        unit => format!("{number} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        let scale = Scale::linear([0.0, 97.0], [0.0, 100.0]);
        assert_eq!(scale.ticks(2), [0.0, 50.0]);
        assert_eq!(scale.ticks(5), [0.0, 20.0, 40.0, 60.0, 80.0]);
        assert_eq!(scale.at(48.5), 50.0);
        let log = |height| Scale::log([0.9, 11.0], [0.0, height]);
        assert_eq!(log(100.0).ticks(4), [1.0, 2.0, 5.0, 10.0]);
        assert_eq!(
            log(300.0).ticks(4),
            [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0]
        );
        assert!((log(1.0).at(11.0f64.sqrt() * 0.9f64.sqrt()) - 0.5).abs() < 1e-12);
        // A range of nothing has a middle and does not divide by it.
        let flat = Scale::linear([3.0, 3.0], [0.0, 10.0]);
        assert_eq!(flat.at(3.0), 5.0);
        assert!(flat.ticks(3).len() < 10);
    }

    #[test]
    fn smoothing_keeps_a_line_and_passes_over_gaps() {
        let line: Vec<f64> = (0..50).map(f64::from).collect();
        assert_eq!(smooth(&line, 9)[..46], line[..46]);
        assert_eq!(smooth(&line, 9)[49], 47.0);
        assert_eq!(smooth(&[1.0, f64::NAN, 3.0, 5.0], 3), [1.0, 2.0, 4.0, 4.0]);
        assert!(smooth(&[f64::NAN], 3)[0].is_nan());
        assert!(smooth(&[], 3).is_empty());
    }

    #[test]
    fn thinning_keeps_ends_and_peaks() {
        assert_eq!(spread(3, 10), [0, 1, 2]);
        assert_eq!(spread(101, 3), [0, 50, 100]);
        let mut values = vec![0.0; 1000];
        values[617] = 9.0;
        values[3] = f64::NAN;
        let kept = peaks(&values, 100);
        assert!(kept.contains(&617) && kept.len() <= 102 && !kept.contains(&3));
    }

    #[test]
    fn paths_have_gaps_where_there_is_no_number() {
        let points = [(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.25), (3.0, 4.0)];
        assert_eq!(path(points), "M0 1M2 3.2L3 4");
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(figure(1_234_567.0), "1.23 M");
        assert_eq!(figure(0.0), "0");
        assert_eq!(figure(0.0123), "0.0123");
        assert_eq!(figure(3e-4), "3.0 \u{b7} 10\u{207b}\u{2074}");
        assert_eq!(figure(f64::NAN), "not a number");
        assert_eq!(figure(-2.5), "-2.50");
        assert_eq!(tick(2_000_000.0), "2 M");
        assert_eq!(tick(0.5), "0.5");
        assert_eq!(tick(100.0), "100");
        assert_eq!([tick(5000.0), tick(10_000.0)], ["5 k", "10 k"]);
        assert_eq!(tick(2e-4), "2 \u{b7} 10\u{207b}\u{2074}");
        assert_eq!(grouped(1_234_567), "1,234,567");
    }
}
