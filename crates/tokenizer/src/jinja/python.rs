//! What Python writes: values as text, values as JSON, times.

use super::bounds::{MAX_VALUE_BYTES, too_much};
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};
use std::fmt::Write;

/// Deepest value that is written.
const MAX_DEPTH: usize = 128;

fn error(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// `str(value)`: of a string itself, of what is not there nothing.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        _ => {
            let mut out = String::new();
            repr(value, 0, &mut out)?;
            Ok(out)
        }
    }
}

/// `repr(value)`.
fn repr(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(error("a value nested more than 128 deep cannot be written"));
    }
    if out.len() > MAX_VALUE_BYTES {
        return Err(too_much(MAX_VALUE_BYTES));
    }
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                repr(&item, depth + 1, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                repr(&key, depth + 1, out)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// A string in quotes: single ones, unless only those stand in it.
fn quote(text: &str, out: &mut String) {
    let quote = match text.contains('\'') && !text.contains('"') {
        true => '"',
        false => '\'',
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if u32::from(c) < 0x20 || u32::from(c) == 0x7F => {
                out.push_str(&format!("\\x{:02x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A number: the shortest digits that name it, `1.0` rather than `1`, exponents as Python has them.
fn number(value: &Value) -> String {
    let float = match value.is_integer() {
        true => None,
        false => f64::try_from(value.clone()).ok(),
    };
    let Some(float) = float else {
        return value.to_string();
    };
    if float.is_nan() {
        return "nan".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    match (-4..16).contains(&exponent) {
        true if float.fract() == 0.0 => format!("{float:.1}"),
        true => float.to_string(),
        false => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
    }
}

/// The options of `json.dumps`.
#[derive(Default)]
pub(super) struct Layout {
    pub(super) indent: Option<usize>,
    pub(super) ensure_ascii: bool,
    pub(super) sort_keys: bool,
    pub(super) separators: Option<(String, String)>, // between items, and after a key
}

/// `json.dumps(value)`.
pub(super) fn json(value: &Value, layout: &Layout) -> Result<String, Error> {
    let mut out = String::new();
    write_json(value, layout, 0, &mut out)?;
    Ok(out)
}

fn write_json(value: &Value, layout: &Layout, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(error("a value nested more than 128 deep cannot be written"));
    }
    if out.len() > MAX_VALUE_BYTES {
        return Err(too_much(MAX_VALUE_BYTES));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(match number(value).as_str() {
            "nan" => "NaN",
            "inf" => "Infinity",
            "-inf" => "-Infinity",
            number => number,
        }),
        ValueKind::String => json_string(value.as_str().unwrap_or_default(), layout, out),
        ValueKind::Seq | ValueKind::Iterable => {
            // One more than could be written in the bytes that there are for it.
            let items: Vec<Value> = value.try_iter()?.take(MAX_VALUE_BYTES / 2).collect();
            let write = |item: &Value, out: &mut String| write_json(item, layout, depth + 1, out);
            write_items(('[', ']'), &items, layout, depth, out, &write)?;
        }
        ValueKind::Map => {
            let mut entries = Vec::new();
            for key in value.try_iter()? {
                let name = match key.kind() {
                    ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                    ValueKind::Number | ValueKind::Bool | ValueKind::None => json(&key, layout)?,
                    kind => return Err(error(format!("a key of the kind {kind} is no JSON"))),
                };
                entries.push((name, value.get_item(&key)?));
            }
            if layout.sort_keys {
                entries.sort_by(|(left, _), (right, _)| left.cmp(right));
            }
            let separator = layout.separators.as_ref().map_or(": ", |(_, key)| key);
            let write = |(name, value): &(String, Value), out: &mut String| {
                json_string(name, layout, out);
                out.push_str(separator);
                write_json(value, layout, depth + 1, out)
            };
            write_items(('{', '}'), &entries, layout, depth, out, &write)?;
        }
        kind => return Err(error(format!("a value of the kind {kind} is no JSON"))),
    }
    Ok(())
}

/// Writes one item of a list or an object.
type WriteItem<'a, T> = dyn Fn(&T, &mut String) -> Result<(), Error> + 'a;

fn write_items<T>(
    (open, close): (char, char),
    items: &[T],
    layout: &Layout,
    depth: usize,
    out: &mut String,
    write: &WriteItem<'_, T>,
) -> Result<(), Error> {
    let separator = match (&layout.separators, layout.indent) {
        (Some((item, _)), _) => item,
        (None, None) => ", ",
        (None, Some(_)) => ",",
    };
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = layout.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent.min(64) * depth));
        }
    };
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(separator);
        }
        new_line(out, depth + 1);
        write(item, out)?;
    }
    if !items.is_empty() {
        new_line(out, depth);
    }
    out.push(close);
    Ok(())
}

fn json_string(text: &str, layout: &Layout, out: &mut String) {
    out.push('"');
    escape(text, layout.ensure_ascii, out);
    out.push('"');
}

/// The inside of a JSON string.
pub(super) fn escape(text: &str, ensure_ascii: bool, out: &mut String) {
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{C}' => out.push_str("\\f"),
            c if u32::from(c) < 0x20 || ensure_ascii && !c.is_ascii() => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
}

const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `datetime.now().strftime(format)`, `now` being seconds since the start of 1970.
pub(super) fn strftime(format: &str, now: Option<i64>) -> Result<String, Error> {
    let Some(now) = now else {
        return Err(error("strftime_now: the conversation has no time"));
    };
    let (day, second) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let (year, month, date, day_of_year) = calendar(day);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = WEEKDAYS[(day + 4).rem_euclid(7) as usize];
    let month_name = MONTHS[month - 1];
    let hour_of_twelve = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut kind = chars.next();
        let is_bare = kind == Some('-');
        if is_bare {
            kind = chars.next();
        }
        let padded = |number: i64, width: usize| match is_bare {
            true => number.to_string(),
            false => format!("{number:0width$}"),
        };
        out.push_str(&match kind {
            Some('Y') => year.to_string(),
            Some('y') => padded(year.rem_euclid(100), 2),
            Some('m') => padded(month as i64, 2),
            Some('d') => padded(date, 2),
            Some('e') => format!("{date:2}"),
            Some('j') => padded(day_of_year, 3),
            Some('H') => padded(hour, 2),
            Some('I') => padded(hour_of_twelve, 2),
            Some('M') => padded(minute, 2),
            Some('S') => padded(second, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('F') => format!("{year}-{month:02}-{date:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".to_owned(),
            other => {
                let kind = other.map_or_else(String::new, String::from);
                return Err(error(format!("strftime_now: %{kind} is not known")));
            }
        });
    }
    Ok(out)
}

/// Year, month and date, both from 1, and the day of the year, from 1, of a day since 1970.
fn calendar(day: i64) -> (i64, usize, i64, i64) {
    // Days of 400 years; within them every rule of leap years has come up.
    let (cycle, mut rest) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let mut year = 1970 + 400 * cycle;
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_year = |year: i64| if is_leap(year) { 366 } else { 365 };
    while rest >= days_of_year(year) {
        rest -= days_of_year(year);
        year += 1;
    }
    let day_of_year = rest + 1;
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if rest < days {
            break;
        }
        rest -= days;
        month += 1;
    }
    (year, month, rest + 1, day_of_year)
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::context;

    #[test]
    fn numbers_are_written_as_python_writes_them() {
        let cases = [
            (1.0, "1.0"),
            (-0.5, "-0.5"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (1e-4, "0.0001"),
            (1.25e-5, "1.25e-05"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (float, expected) in cases {
            assert_eq!(number(&Value::from(float)), expected);
        }
        assert_eq!(
            number(&Value::from(12_345_678_901_234_567_i64)),
            "12345678901234567"
        );
    }

    #[test]
    fn json_has_the_spacing_of_python_and_keeps_what_is_not_ascii() {
        let list = [Value::from(1), Value::from(2.0)];
        let value = context!(b => list, a => "한\n\"", c => context!(), d => ());
        let write = |layout: &Layout| json(&value, layout).unwrap();
        let plain = Layout::default();
        assert_eq!(
            write(&plain),
            r#"{"b": [1, 2.0], "a": "한\n\"", "c": {}, "d": null}"#
        );
        let indented = Layout {
            indent: Some(2),
            sort_keys: true,
            ..Layout::default()
        };
        assert_eq!(
            write(&indented),
            "{\n  \"a\": \"한\\n\\\"\",\n  \"b\": [\n    1,\n    2.0\n  ],\n  \"c\": {},\n  \"d\": null\n}"
        );
        let tight = Layout {
            ensure_ascii: true,
            separators: Some((",".to_owned(), ":".to_owned())),
            ..Layout::default()
        };
        assert_eq!(
            write(&tight),
            r#"{"b":[1,2.0],"a":"\ud55c\n\"","c":{},"d":null}"#
        );
        let emoji = json(&Value::from("\u{1F600}\u{1}"), &tight).unwrap();
        assert_eq!(emoji, r#""\ud83d\ude00\u0001""#);
        assert!(json(&Value::UNDEFINED, &plain).is_err());
    }

    #[test]
    fn values_are_printed_as_python_prints_them() {
        let list = [true.into(), Value::from(()), "it's".into(), "\"'\n".into()];
        let value = context!(a => list, b => 1);
        assert_eq!(
            text(&value).unwrap(),
            r#"{'a': [True, None, "it's", '"\'\n'], 'b': 1}"#
        );
        assert_eq!(text(&Value::UNDEFINED).unwrap(), "");
        assert_eq!(text(&Value::from("as it is")).unwrap(), "as it is");
    }

    #[test]
    fn a_time_is_told_in_the_usual_forms() {
        // 2024-02-29, a Thursday, 13:05:09.
        let now = Some(1_709_211_909);
        let tell = |format| strftime(format, now).unwrap();
        assert_eq!(tell("%d %b %Y"), "29 Feb 2024");
        assert_eq!(
            tell("%A, %B %-d, %y; day %j"),
            "Thursday, February 29, 24; day 060"
        );
        assert_eq!(
            tell("%H:%M:%S %I %p %F %T %%"),
            "13:05:09 01 PM 2024-02-29 13:05:09 %"
        );
        assert_eq!(strftime("%F %a", Some(-1)).unwrap(), "1969-12-31 Wed");
        assert_eq!(strftime("%F", Some(4_107_542_400)).unwrap(), "2100-03-01");
        assert!(strftime("%Q", now).is_err() && strftime("%", now).is_err());
        assert!(strftime("%d", None).is_err());
    }
}
