//! Metadata: numbers, texts and arrays of them.
//!
//! A file with a tokenizer has arrays of a hundred thousand texts, which lie in one piece of memory
//! ([`Strings`]).

use std::fmt;

/// What a key stands for.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Unsigned, 8 bits.
    U8(u8),
    /// Signed, 8 bits.
    I8(i8),
    /// Unsigned, 16 bits.
    U16(u16),
    /// Signed, 16 bits.
    I16(i16),
    /// Unsigned, 32 bits.
    U32(u32),
    /// Signed, 32 bits.
    I32(i32),
    /// Float, 32 bits.
    F32(f32),
    /// True or false.
    Bool(bool),
    /// Text.
    String(String),
    /// Several of one type.
    Array(Array),
    /// Unsigned, 64 bits.
    U64(u64),
    /// Signed, 64 bits.
    I64(i64),
    /// Float, 64 bits.
    F64(f64),
}

/// Several values of one type, which is no array.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Unsigned, 8 bits.
    U8(Vec<u8>),
    /// Signed, 8 bits.
    I8(Vec<i8>),
    /// Unsigned, 16 bits.
    U16(Vec<u16>),
    /// Signed, 16 bits.
    I16(Vec<i16>),
    /// Unsigned, 32 bits.
    U32(Vec<u32>),
    /// Signed, 32 bits.
    I32(Vec<i32>),
    /// Float, 32 bits.
    F32(Vec<f32>),
    /// True or false.
    Bool(Vec<bool>),
    /// Texts.
    String(Strings),
    /// Unsigned, 64 bits.
    U64(Vec<u64>),
    /// Signed, 64 bits.
    I64(Vec<i64>),
    /// Float, 64 bits.
    F64(Vec<f64>),
}

/// Texts, one after another in one piece of memory.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Strings {
    text: String,
    ends: Vec<usize>, // in text
}

/// The numbers of the types in a file.
pub(super) mod id {
    pub(in super::super) const U8: u32 = 0;
    pub(in super::super) const I8: u32 = 1;
    pub(in super::super) const U16: u32 = 2;
    pub(in super::super) const I16: u32 = 3;
    pub(in super::super) const U32: u32 = 4;
    pub(in super::super) const I32: u32 = 5;
    pub(in super::super) const F32: u32 = 6;
    pub(in super::super) const BOOL: u32 = 7;
    pub(in super::super) const STRING: u32 = 8;
    pub(in super::super) const ARRAY: u32 = 9;
    pub(in super::super) const U64: u32 = 10;
    pub(in super::super) const I64: u32 = 11;
    pub(in super::super) const F64: u32 = 12;
}

impl Value {
    /// An integer of any width, unless it is negative.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::U64(x) => Some(*x),
            other => other.as_i64()?.try_into().ok(),
        }
    }

    /// An integer of any width, unless it is beyond an i64.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Value::U8(x) => Some(x.into()),
            Value::I8(x) => Some(x.into()),
            Value::U16(x) => Some(x.into()),
            Value::I16(x) => Some(x.into()),
            Value::U32(x) => Some(x.into()),
            Value::I32(x) => Some(x.into()),
            Value::U64(x) => x.try_into().ok(),
            Value::I64(x) => Some(x),
            _ => None,
        }
    }

    /// A float of either width.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(x) => Some(x.into()),
            Value::F64(x) => Some(x),
            _ => None,
        }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(x) => Some(*x),
            _ => None,
        }
    }

    /// A text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(x) => Some(x),
            _ => None,
        }
    }

    /// An array of texts.
    pub fn as_strings(&self) -> Option<&Strings> {
        match self {
            Value::Array(Array::String(x)) => Some(x),
            _ => None,
        }
    }

    /// An array of f32.
    pub fn as_f32s(&self) -> Option<&[f32]> {
        match self {
            Value::Array(Array::F32(x)) => Some(x),
            _ => None,
        }
    }

    /// An array of truth values.
    pub fn as_bools(&self) -> Option<&[bool]> {
        match self {
            Value::Array(Array::Bool(x)) => Some(x),
            _ => None,
        }
    }

    /// An array of integers of any width, unless one of them is beyond an i32.
    pub fn to_i32s(&self) -> Option<Vec<i32>> {
        fn narrow<T: Copy + TryInto<i32>>(values: &[T]) -> Option<Vec<i32>> {
            values.iter().map(|x| (*x).try_into().ok()).collect()
        }
        let Value::Array(array) = self else {
            return None;
        };
        match array {
            Array::U8(v) => narrow(v),
            Array::I8(v) => narrow(v),
            Array::U16(v) => narrow(v),
            Array::I16(v) => narrow(v),
            Array::U32(v) => narrow(v),
            Array::I32(v) => narrow(v),
            Array::U64(v) => narrow(v),
            Array::I64(v) => narrow(v),
            Array::F32(_) | Array::F64(_) | Array::Bool(_) | Array::String(_) => None,
        }
    }

    /// Type and, where it is short, value: for messages.
    pub(super) fn described(&self) -> String {
        match self {
            Value::U8(x) => format!("u8 {x}"),
            Value::I8(x) => format!("i8 {x}"),
            Value::U16(x) => format!("u16 {x}"),
            Value::I16(x) => format!("i16 {x}"),
            Value::U32(x) => format!("u32 {x}"),
            Value::I32(x) => format!("i32 {x}"),
            Value::F32(x) => format!("f32 {x}"),
            Value::Bool(x) => format!("bool {x}"),
            Value::String(_) => "a string".to_string(),
            Value::Array(x) => format!("an array of {} {}", x.len(), x.element_name()),
            Value::U64(x) => format!("u64 {x}"),
            Value::I64(x) => format!("i64 {x}"),
            Value::F64(x) => format!("f64 {x}"),
        }
    }

    /// Appends the type's number and the value.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Value::U8(x) => put(out, id::U8, &x.to_le_bytes()),
            Value::I8(x) => put(out, id::I8, &x.to_le_bytes()),
            Value::U16(x) => put(out, id::U16, &x.to_le_bytes()),
            Value::I16(x) => put(out, id::I16, &x.to_le_bytes()),
            Value::U32(x) => put(out, id::U32, &x.to_le_bytes()),
            Value::I32(x) => put(out, id::I32, &x.to_le_bytes()),
            Value::F32(x) => put(out, id::F32, &x.to_le_bytes()),
            Value::Bool(x) => put(out, id::BOOL, &[u8::from(*x)]),
            Value::String(x) => {
                put(out, id::STRING, &[]);
                put_str(out, x);
            }
            Value::Array(x) => {
                put(out, id::ARRAY, &[]);
                x.encode(out);
            }
            Value::U64(x) => put(out, id::U64, &x.to_le_bytes()),
            Value::I64(x) => put(out, id::I64, &x.to_le_bytes()),
            Value::F64(x) => put(out, id::F64, &x.to_le_bytes()),
        }
    }
}

impl Array {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn element_name(&self) -> &'static str {
        match self {
            Array::U8(_) => "u8",
            Array::I8(_) => "i8",
            Array::U16(_) => "u16",
            Array::I16(_) => "i16",
            Array::U32(_) => "u32",
            Array::I32(_) => "i32",
            Array::F32(_) => "f32",
            Array::Bool(_) => "bool",
            Array::String(_) => "strings",
            Array::U64(_) => "u64",
            Array::I64(_) => "i64",
            Array::F64(_) => "f64",
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Array::U8(v) => put_all(out, id::U8, v, |x| x.to_le_bytes()),
            Array::I8(v) => put_all(out, id::I8, v, |x| x.to_le_bytes()),
            Array::U16(v) => put_all(out, id::U16, v, |x| x.to_le_bytes()),
            Array::I16(v) => put_all(out, id::I16, v, |x| x.to_le_bytes()),
            Array::U32(v) => put_all(out, id::U32, v, |x| x.to_le_bytes()),
            Array::I32(v) => put_all(out, id::I32, v, |x| x.to_le_bytes()),
            Array::F32(v) => put_all(out, id::F32, v, |x| x.to_le_bytes()),
            Array::Bool(v) => put_all(out, id::BOOL, v, |x| [u8::from(x)]),
            Array::String(v) => {
                put(out, id::STRING, &(v.len() as u64).to_le_bytes());
                v.iter().for_each(|text| put_str(out, text));
            }
            Array::U64(v) => put_all(out, id::U64, v, |x| x.to_le_bytes()),
            Array::I64(v) => put_all(out, id::I64, v, |x| x.to_le_bytes()),
            Array::F64(v) => put_all(out, id::F64, v, |x| x.to_le_bytes()),
        }
    }
}

fn put(out: &mut Vec<u8>, id: u32, value: &[u8]) {
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(value);
}

fn put_all<T: Copy, const N: usize>(
    out: &mut Vec<u8>,
    id: u32,
    values: &[T],
    bytes_of: impl Fn(T) -> [u8; N],
) {
    put(out, id, &(values.len() as u64).to_le_bytes());
    out.extend(values.iter().flat_map(|x| bytes_of(*x)));
}

/// Appends length and text.
pub(super) fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

impl Strings {
    /// No text, and room for `texts` of them with `bytes` together.
    pub fn with_capacity(texts: usize, bytes: usize) -> Strings {
        Strings {
            text: String::with_capacity(bytes),
            ends: Vec::with_capacity(texts),
        }
    }

    /// Appends a text.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    /// The number of texts.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True when there is no text.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// One text; None beyond the last.
    pub fn get(&self, idx: usize) -> Option<&str> {
        let end = *self.ends.get(idx)?;
        let start = match idx.checked_sub(1) {
            Some(before) => self.ends[before],
            None => 0,
        };
        Some(&self.text[start..end])
    }

    /// All texts, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let text = &self.text[start..*end];
            start = *end;
            text
        })
    }
}

impl<T: AsRef<str>> FromIterator<T> for Strings {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Strings {
        let mut strings = Strings::default();
        for text in texts {
            strings.push(text.as_ref());
        }
        strings
    }
}

impl fmt::Debug for Strings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
