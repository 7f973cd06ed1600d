//! Line charts over the course of a stage: raw values light, their smoothed course strong, names at the ends
//! of lines instead of a legend, grid lines only where a value is named.
//!
//! A large chart is drawn twice, for wide and for narrow screens, and the style sheet shows one of them:
//! scaling one drawing would shrink its text. A small chart has the width of a phone and fits both.

use std::fmt::Write;

use serde_json::json;

use crate::html::{Escaped, attribute};
use crate::plot::{Scale, extent, figure, path, peaks, px, smooth, spread, tick};

/// Values under the pointer: as many places along the line.
const HOVER_POINTS: usize = 160;
/// Points of a raw line at most, lows and highs.
const RAW_POINTS: usize = 700;
/// Points of a strong line at most.
const LINE_POINTS: usize = 300;
/// Steps from which a line is smoothed.
const SMOOTH_FROM: usize = 12;
/// Width of a figure at the size of ticks, at most.
const GLYPH: f64 = 6.6;
/// Baselines of two names at the end of lines.
const LABEL_GAP: f64 = 34.0;

/// One line.
pub(crate) struct Series<'a> {
    pub(crate) name: &'a str,
    pub(crate) class: &'static str, // colour: a, b or c
    pub(crate) values: Vec<f64>,    // one for each x
}

/// How large, and so how detailed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// The width of the page.
    Large,
    /// One of several beside each other; one series.
    Small,
}

/// A line chart.
pub(crate) struct Lines<'a> {
    pub(crate) title: &'a str,
    pub(crate) note: String, // what the reader should see
    pub(crate) unit: &'a str,
    pub(crate) x: &'a [f64],
    pub(crate) x_unit: &'a str,
    pub(crate) series: Vec<Series<'a>>,
    pub(crate) is_log: bool,
    pub(crate) from_zero: bool,
    pub(crate) is_smoothed: bool,
    pub(crate) guide: Option<(f64, String)>, // a value to compare with, and its name
    pub(crate) size: Size,
}

impl Lines<'_> {
    /// The chart as an HTML figure; empty where there is nothing to draw.
    pub(crate) fn figure(&self) -> String {
        let all = self.series.iter().flat_map(|s| s.values.iter().copied());
        let Some(range) = extent(all.filter(|v| !self.is_log || *v > 0.0)) else {
            return String::new();
        };
        let range = self.range(range);
        let last = self
            .series
            .first()
            .and_then(|s| last_finite(&self.course(&s.values)));
        let (class, drawings) = match self.size {
            Size::Large => (
                "chart large",
                self.svg(range, [1040.0, 380.0], "wide")
                    + &self.svg(range, [360.0, 300.0], "narrow"),
            ),
            Size::Small => ("chart small", self.svg(range, [340.0, 170.0], "any")),
        };
        let now = match self.size {
            Size::Large => String::new(),
            Size::Small => last.map_or(String::new(), |v| {
                format!(
                    "<span class=now>{} {}</span>",
                    figure(v),
                    Escaped(self.unit)
                )
            }),
        };
        format!(
            "<figure class=\"{class}\" data-hover=\"{}\"><figcaption><b>{}</b>{now}<span>{}</span></figcaption>\
             {drawings}</figure>\n",
            attribute(&self.hover()),
            Escaped(self.title),
            Escaped(&self.note),
        )
    }

    /// The line that is drawn strong.
    fn course(&self, values: &[f64]) -> Vec<f64> {
        match self.is_smoothed && values.len() > SMOOTH_FROM {
            true => smooth(values, (values.len() / 24).max(5)),
            false => values.to_vec(),
        }
    }

    fn range(&self, [low, high]: [f64; 2]) -> [f64; 2] {
        let high = self.guide.as_ref().map_or(high, |guide| high.max(guide.0));
        if self.is_log {
            return [low / 1.06, high * 1.06];
        }
        let low = if self.from_zero { low.min(0.0) } else { low };
        let room = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-12);
        [if self.from_zero { low } else { low - room }, high + room]
    }

    /// What the script shows under the pointer.
    fn hover(&self) -> String {
        let at = spread(self.x.len(), HOVER_POINTS);
        let series: Vec<_> = self
            .series
            .iter()
            .map(|s| {
                let shown: Vec<String> = at.iter().map(|i| figure(s.values[*i])).collect();
                json!({"n": s.name, "c": s.class, "v": shown})
            })
            .collect();
        let x: Vec<String> = at.iter().map(|i| figure(self.x[*i])).collect();
        json!({"x": x, "u": self.x_unit, "unit": self.unit, "s": series}).to_string()
    }

    fn svg(&self, range: [f64; 2], [width, height]: [f64; 2], class: &str) -> String {
        let is_small = self.size == Size::Small;
        let right = match (is_small, width > 600.0) {
            (true, _) => width - 8.0,
            (false, true) => width - 118.0,
            (false, false) => width - 88.0,
        };
        let (top, bottom) = (18.0, height - 24.0);
        let last_x = self.x.last().copied().unwrap_or(1.0);
        let y = match self.is_log {
            true => Scale::log(range, [bottom, top]),
            false => Scale::linear(range, [bottom, top]),
        };
        let ticks = y.ticks(if is_small { 3 } else { 6 });
        let longest = ticks.iter().map(|v| tick(*v).chars().count()).max();
        let left = (longest.unwrap_or(1) as f64 * GLYPH).ceil() + 10.0;
        let x = Scale::linear([0.0, last_x.max(1e-9)], [left, right]);
        let mut out = format!(
            "<svg class={class} viewBox=\"0 0 {width} {height}\" data-box=\"{} {right} {top} {bottom}\" \
             role=img aria-label=\"{}\">",
            px(x.at(self.x.first().copied().unwrap_or(0.0))),
            attribute(&format!("{}: {}", self.title, self.note))
        );
        self.draw_axes(&mut out, x, y, &ticks, [left, right, bottom]);
        for series in &self.series {
            let on = |i: usize, values: &[f64]| (x.at(self.x[i]), y.at(values[i]));
            let (values, class) = (&series.values, series.class);
            if self.is_smoothed && values.len() > SMOOTH_FROM {
                let raw = path(peaks(values, RAW_POINTS).into_iter().map(|i| on(i, values)));
                let _ = write!(out, "<path class=\"raw {class}\" d=\"{raw}\"/>");
            }
            let course = self.course(values);
            let points = spread(course.len(), LINE_POINTS).into_iter();
            let line = path(points.map(|i| on(i, &course)));
            let _ = write!(out, "<path class=\"line {class}\" d=\"{line}\"/>");
        }
        self.draw_ends(&mut out, x, y, right, [top, bottom]);
        out.push_str("</svg>");
        out
    }

    fn draw_axes(&self, out: &mut String, x: Scale, y: Scale, ticks: &[f64], frame: [f64; 3]) {
        let [left, right, bottom] = frame;
        for value in ticks {
            let at = px(y.at(*value));
            let _ = write!(
                out,
                "<path class=grid d=\"M{left} {at}H{right}\"/><text class=tick x={} y={at} dy=4 \
                 text-anchor=end>{}</text>",
                left - 8.0,
                tick(*value)
            );
        }
        if let Some((value, name)) = &self.guide {
            let at = px(y.at(*value));
            let _ = write!(
                out,
                "<path class=guide d=\"M{left} {at}H{right}\"/>\
                 <text class=\"tick on-guide\" x={right} y={at} dy=-5>{}</text>",
                Escaped(name)
            );
        }
        let _ = write!(out, "<path class=axis d=\"M{left} {bottom}H{right}\"/>");
        let mut labels: Vec<(f64, String)> = x
            .ticks(if right > 600.0 { 6 } else { 4 })
            .into_iter()
            .filter(|value| *value > 0.0)
            .map(|value| (x.at(value), tick(value)))
            .collect();
        let Some((last_at, last)) = labels.pop() else {
            return;
        };
        // The last one bears the unit and stays inside; those that would touch it are left out.
        let last = format!("{last} {}", self.x_unit);
        let half = |text: &str| text.chars().count() as f64 * GLYPH / 2.0;
        let last_at = last_at.min(right - half(&last));
        labels.retain(|(at, text)| at + half(text) + 8.0 < last_at - half(&last));
        labels.push((last_at, last));
        for (at, text) in labels {
            let _ = write!(
                out,
                "<text class=tick x={} y={bottom} dy=16 text-anchor=middle>{}</text>",
                px(at),
                Escaped(&text)
            );
        }
    }

    /// A dot where each line ends, and on a large chart its name and last value.
    fn draw_ends(&self, out: &mut String, x: Scale, y: Scale, right: f64, [top, bottom]: [f64; 2]) {
        let mut ends: Vec<(f64, &Series<'_>, f64)> = Vec::new(); // height, series, value
        for series in &self.series {
            let course = self.course(&series.values);
            let Some(at) = course.iter().rposition(|v| v.is_finite()) else {
                continue;
            };
            let (cx, cy) = (x.at(self.x[at]), y.at(course[at]));
            let _ = write!(
                out,
                "<circle class=\"dot {}\" cx={} cy={} r=3.5 />",
                series.class,
                px(cx),
                px(cy)
            );
            ends.push((cy, series, course[at]));
        }
        if self.size == Size::Small {
            return;
        }
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut places: Vec<f64> = ends.iter().map(|end| end.0.max(top + 8.0)).collect();
        for i in 1..places.len() {
            places[i] = places[i].max(places[i - 1] + LABEL_GAP);
        }
        // What was pushed out below is pushed back up.
        let mut limit = bottom - 6.0;
        for place in places.iter_mut().rev() {
            *place = place.min(limit);
            limit = *place - LABEL_GAP;
        }
        for ((_, series, value), place) in ends.iter().zip(places) {
            let _ = write!(
                out,
                "<text class=\"end {}\" x={} y={}>{}<tspan class=value x={} dy=15>{}</tspan></text>",
                series.class,
                px(right + 12.0),
                px(place - 3.0),
                Escaped(series.name),
                px(right + 12.0),
                figure(*value)
            );
        }
    }
}

pub(crate) fn last_finite(values: &[f64]) -> Option<f64> {
    values.iter().rev().copied().find(|v| v.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(values: Vec<f64>, x: &[f64]) -> String {
        Lines {
            title: "loss <b>",
            note: String::new(),
            unit: "nats",
            x,
            x_unit: "tokens",
            series: vec![Series {
                name: "next \"token\"",
                class: "a",
                values,
            }],
            is_log: true,
            from_zero: false,
            is_smoothed: true,
            guide: None,
            size: Size::Large,
        }
        .figure()
    }

    #[test]
    fn a_chart_survives_gaps_single_points_and_nothing() {
        let x: Vec<f64> = (0..30).map(f64::from).collect();
        let mut values = x.iter().map(|x| 9.0 - x / 5.0).collect::<Vec<_>>();
        values[7] = f64::NAN;
        let html = lines(values, &x);
        assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
        assert!(html.contains("loss &lt;b&gt;") && html.contains("next &quot;token&quot;"));
        assert!(!lines(vec![2.0], &x[..1]).contains("NaN"));
        assert_eq!(lines(vec![f64::NAN; 3], &x[..3]), "");
        assert_eq!(lines(vec![], &[]), "");
    }
}
