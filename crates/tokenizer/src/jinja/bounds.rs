//! The memory of a template: every string and list that it makes is paid for before it is made.
//!
//! A rendering has a budget of bytes, and no value that goes into another may be longer than
//! `MAX_VALUE_BYTES`. What is dropped again is not paid back, so the budget is more than memory: what one
//! rendering holds at a time is at most the budget and one value.
//!
//! Filters and methods ask here first ([`install`]). The engine asks nobody before it joins, repeats or cuts;
//! those operators are marked in the source (`marks`) with the filters `_sum`, `_text` and `_times`, and loops
//! with `_spend`.
//!
//! Costs are bounds on the bytes of a result: a string its length, a list `ITEM_BYTES` an item.

use super::python;
use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use minijinja_contrib::pycompat;
use std::cell::Cell;

/// Longest string or list that goes into another: that of the longest text that a template may write.
pub(super) const MAX_VALUE_BYTES: usize = super::MAX_TEXT_BYTES;

/// Bytes of all strings and lists that one rendering makes. A thousand messages that are joined one by one
/// to a text of 256 KiB take half of it.
const MAX_BYTES: usize = 1 << 28;

/// Bytes of an item of a list.
const ITEM_BYTES: usize = size_of::<Value>();

thread_local! {
    /// What is left to the rendering of this thread; each has a thread of its own.
    static LEFT: Cell<usize> = const { Cell::new(MAX_BYTES) };
}

/// More than a template may make, on its way out of the engine.
#[derive(Debug, thiserror::Error)]
#[error("more than {0} bytes")]
pub(super) struct TooMuch(pub(super) usize);

pub(super) fn too_much(limit: usize) -> Error {
    Error::from(ErrorKind::InvalidOperation).with_source(TooMuch(limit))
}

/// Takes bytes from the budget.
pub(super) fn charge(bytes: usize) -> Result<(), Error> {
    LEFT.with(|left| {
        let rest = left.get().checked_sub(bytes);
        left.set(rest.ok_or_else(|| too_much(MAX_BYTES))?);
        Ok(())
    })
}

/// Pays for a value that goes into another.
fn charge_value(value: &Value) -> Result<(), Error> {
    let bytes = bytes_of(value);
    if bytes > MAX_VALUE_BYTES {
        return Err(too_much(MAX_VALUE_BYTES));
    }
    charge(bytes)
}

/// Of a string or a list; what it holds is shared and counts where it was made.
fn bytes_of(value: &Value) -> usize {
    match value.kind() {
        ValueKind::String => value.as_str().map_or(0, str::len),
        ValueKind::Bytes => value.as_bytes().map_or(0, <[u8]>::len),
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => items(value, ITEM_BYTES),
        _ => 0,
    }
}

/// `each` for every item; of a list that does not know its length at most a little more than a value may have.
fn items(value: &Value, each: usize) -> usize {
    let count = value.len().or_else(|| {
        let most = MAX_VALUE_BYTES / ITEM_BYTES + 1;
        Some(value.try_iter().ok()?.take(most).count())
    });
    count.unwrap_or(0).saturating_mul(each)
}

/// Bytes of a value as text.
fn text_bytes(value: &Value) -> Result<usize, Error> {
    match value.as_str() {
        Some(text) => Ok(text.len()),
        None => {
            let bytes = python::text(value)?.len();
            charge(bytes)?;
            Ok(bytes)
        }
    }
}

/// Makes every filter and method pay.
pub(super) fn install(environment: &mut Environment<'static>) {
    macro_rules! paying {
        ($($name:ident)*) => {
            $(add_paying(environment, stringify!($name), Value::from_function(filters::$name));)*
        };
    }
    paying! {
        attr batch capitalize chain default dictsort escape first float format groupby indent int items
        join last lines list lower map max min reject rejectattr replace reverse round select selectattr
        slice sort split sum title trim unique upper zip
    }
    add_paying(environment, "d", Value::from_function(filters::default));
    add_paying(environment, "e", Value::from_function(filters::escape));
    environment.add_filter("pprint", python::text);
    // What the engine tells of itself has no bound.
    environment.add_function("debug", || -> Result<Value, Error> {
        Err(Error::from(ErrorKind::UnknownFunction))
    });
    environment.set_unknown_method_callback(|state, value, method, args| {
        charge_value(value)?;
        for arg in args {
            charge_value(arg)?;
        }
        charge(made_by(method, value, args)?)?;
        pycompat::unknown_method_callback(state, value, method, args)
    });
    environment.add_filter("_sum", |value: &Value| -> Result<Value, Error> {
        charge_value(value)?;
        Ok(value.clone())
    });
    environment.add_filter("_text", |value: &Value| -> Result<Value, Error> {
        charge_value(value)?;
        match value.kind() {
            ValueKind::String => Ok(value.clone()),
            _ => Ok(Value::from(python::text(value)?)),
        }
    });
    environment.add_filter("_times", times);
    environment.add_filter("_spend", |bytes: usize| -> Result<bool, Error> {
        charge(bytes)?;
        Ok(false)
    });
}

/// A filter of the engine that pays first. It has no second name under which it would not.
fn add_paying(environment: &mut Environment<'static>, name: &'static str, filter: Value) {
    let paying = move |state: &State<'_, '_>, args: Rest<Value>| -> Result<Value, Error> {
        for arg in args.iter() {
            charge_value(arg)?;
        }
        if let [value, rest @ ..] = args.as_slice() {
            charge(made_by(name, value, rest)?)?;
        }
        filter.call(state, &args)
    };
    environment.add_filter(name, paying);
}

/// What a filter or method makes beyond the size of what it is given.
fn made_by(name: &str, value: &Value, args: &[Value]) -> Result<usize, Error> {
    let text = value.as_str();
    let arg = |index: usize| args.get(index).and_then(Value::as_str);
    Ok(match (name, text) {
        ("replace", Some(text)) => {
            let found = arg(0).map_or(0, |from| text.matches(from).count());
            found.saturating_mul(arg(1).map_or(0, str::len))
        }
        ("join", _) => {
            // A filter joins its value by its argument, a method its argument by its value.
            let (list, by) = match (text, args.first()) {
                (Some(by), Some(list)) if list.as_str().is_none() => (list, by.len()),
                (_, by) => (value, by.and_then(Value::as_str).map_or(0, str::len)),
            };
            let mut bytes = 0usize;
            for item in list.try_iter()? {
                bytes = bytes.saturating_add(text_bytes(&item)?).saturating_add(by);
                if bytes > MAX_VALUE_BYTES {
                    return Err(too_much(MAX_VALUE_BYTES));
                }
            }
            bytes
        }
        ("indent", Some(text)) => {
            let width = args.first().and_then(Value::as_usize).unwrap_or(4);
            text.split('\n').count().saturating_mul(width)
        }
        ("format" | "strftime", Some(text)) => formatted(text, args)?,
        ("split" | "splitlines" | "lines", Some(text)) => {
            let pieces = match (name, arg(0)) {
                ("split", Some(by)) => text.matches(by).count() + 1,
                ("split", None) => text.split_whitespace().count(),
                _ => text.split(['\n', '\r']).count(),
            };
            pieces.saturating_mul(ITEM_BYTES)
        }
        ("list" | "sort" | "unique" | "reverse" | "map" | "select" | "reject", Some(text)) => {
            text.len().saturating_mul(ITEM_BYTES)
        }
        ("batch" | "slice", _) => {
            let count = args.first().and_then(Value::as_usize).unwrap_or(0);
            items(value, ITEM_BYTES).saturating_add(count.saturating_mul(ITEM_BYTES))
        }
        // The longest escape has six characters.
        ("escape" | "e", Some(text)) => text.len().saturating_mul(5),
        _ => 0,
    })
}

/// What a format makes: every number in it may be a width, and every argument may stand at every place.
fn formatted(format: &str, args: &[Value]) -> Result<usize, Error> {
    let mut widths = 0usize;
    for digits in format.split(|c: char| !c.is_ascii_digit()) {
        if !digits.is_empty() {
            widths = widths.saturating_add(digits.parse().unwrap_or(usize::MAX));
        }
    }
    let mut largest = 32; // of a number
    for arg in args {
        largest = largest.max(text_bytes(arg)?);
        if format.contains('*') || format.contains(":{") {
            widths = widths.saturating_add(arg.as_usize().unwrap_or(0));
        }
    }
    let places = format.matches(['%', '{']).count();
    Ok(places.saturating_mul(largest.saturating_add(widths)))
}

/// left * right.
fn times(left: &Value, right: &Value) -> Result<Value, Error> {
    let wrong = |what: &'static str| Error::new(ErrorKind::InvalidOperation, what);
    let is_repeated = |value: &Value| {
        let kind = value.kind();
        matches!(
            kind,
            ValueKind::String | ValueKind::Seq | ValueKind::Iterable
        )
    };
    let (value, by) = match (is_repeated(left), is_repeated(right)) {
        (true, false) => (left, right),
        (false, true) => (right, left),
        (true, true) => return Err(wrong("only one side of * can be a string or a list")),
        (false, false) => return product(left, right),
    };
    let by = i64::try_from(by.clone())
        .map_err(|_| wrong("a string or a list times what is no number"))?;
    // As in Python, what is repeated less than once is empty.
    let by = usize::try_from(by.max(0)).unwrap_or(usize::MAX);
    let bytes = bytes_of(value).saturating_mul(by);
    if bytes > MAX_VALUE_BYTES {
        return Err(too_much(MAX_VALUE_BYTES));
    }
    charge(bytes)?;
    match value.as_str() {
        Some(text) => Ok(Value::from(text.repeat(by))),
        None => {
            let items: Vec<Value> = value.try_iter()?.collect();
            let len = items.len().saturating_mul(by);
            let repeated: Vec<Value> = items.iter().cycle().take(len).cloned().collect();
            Ok(Value::from(repeated))
        }
    }
}

/// The product of two numbers.
fn product(left: &Value, right: &Value) -> Result<Value, Error> {
    let is_whole = |value: &Value| value.is_integer() || value.kind() == ValueKind::Bool;
    let failed = || {
        let what = format!("{} * {} is no number", left.kind(), right.kind());
        Error::new(ErrorKind::InvalidOperation, what)
    };
    if is_whole(left) && is_whole(right) {
        let whole = |value: &Value| i128::try_from(value.clone());
        let product = whole(left)?.checked_mul(whole(right)?).ok_or_else(failed)?;
        return Ok(i64::try_from(product).map_or_else(|_| Value::from(product), Value::from));
    }
    let float = |value: &Value| match value.kind() {
        ValueKind::Bool => Ok(f64::from(u8::from(value.is_true()))),
        _ => f64::try_from(value.clone()).map_err(|_| failed()),
    };
    Ok(Value::from(float(left)? * float(right)?))
}
