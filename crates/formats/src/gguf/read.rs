//! Reading: from bytes that nobody vouches for to checked metadata and tensors.
//!
//! A number of things is compared with what the bytes that are left can hold of the smallest such
//! things; pairs and tensors take memory one by one as they are read.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::path::Path;

use numerics::BlockType;

use super::value::id;
use super::{
    ALIGNMENT_KEY, Array, DEFAULT_ALIGNMENT, Entry, Gguf, GgufError, MAGIC, MAX_DIMS,
    MAX_KEY_BYTES, Strings, Value,
};
use crate::mmap::Mmap;

/// Largest alignment.
const MAX_ALIGNMENT: u64 = 1 << 16;
/// Longest name of a tensor; the format's description says 64, some programs write longer ones.
const MAX_NAME_BYTES: usize = 255;
/// Length of a key, one byte of it, a type, one byte of a value.
const MIN_PAIR_BYTES: usize = 8 + 1 + 4 + 1;
/// Length of a name, one byte of it, number of dimensions, one dimension, type, offset.
const MIN_TENSOR_BYTES: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// Checks what a file at `path` maps to.
pub(super) fn read(path: &Path, map: Mmap) -> Result<Gguf, GgufError> {
    let mut cursor = Cursor {
        path,
        bytes: map.bytes(),
        at: 0,
    };
    let version = read_version(&mut cursor)?;
    let num_tensors = cursor.count(MIN_TENSOR_BYTES, "tensors")?;
    let num_pairs = cursor.count(MIN_PAIR_BYTES, "pairs of metadata")?;
    let mut alignment = DEFAULT_ALIGNMENT;
    let mut metadata = Vec::new();
    let mut keys = BTreeMap::new();
    for i in 0..num_pairs {
        let at = cursor.at;
        let key = cursor.text(MAX_KEY_BYTES, "a key")?;
        if key.is_empty() {
            return Err(cursor.invalid(at, "an empty key".to_string()));
        }
        if keys.insert(key, i).is_some() {
            return Err(cursor.invalid(at, format!("key {key:?} is there twice")));
        }
        let value = read_value(&mut cursor, key)?;
        if key == ALIGNMENT_KEY {
            alignment = match value.as_u64() {
                Some(n) if n.is_power_of_two() && n <= MAX_ALIGNMENT => n,
                _ => {
                    let what = format!(
                        "key {key:?} is {}; expected a power of two up to {MAX_ALIGNMENT}",
                        value.described()
                    );
                    return Err(cursor.invalid(at, what));
                }
            };
        }
        if key == "split.count"
            && let Some(count) = value.as_u64()
            && count > 1
        {
            let path = path.to_path_buf();
            return Err(GgufError::Split { path, count });
        }
        metadata.push((key.to_string(), value));
    }
    let by_key = keys.into_values().collect();
    let (tensors, by_name) = read_tensors(&mut cursor, num_tensors, alignment)?;
    Ok(Gguf {
        path: path.to_path_buf(),
        version,
        metadata,
        by_key,
        tensors,
        by_name,
        map,
    })
}

fn read_version(cursor: &mut Cursor<'_>) -> Result<u32, GgufError> {
    let magic = cursor.array::<4>("the magic number")?;
    let refuse = |at, what: &str| Err(cursor.invalid(at, what.to_string()));
    if magic != *MAGIC {
        let reversed = magic.iter().eq(MAGIC.iter().rev());
        return refuse(
            0,
            if reversed {
                "its magic number is reversed: it is big-endian"
            } else {
                "it does not begin with GGUF"
            },
        );
    }
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => Ok(version),
        // The version of a big-endian file, read the wrong way round.
        v if v.swap_bytes() < 1 << 16 && v >= 1 << 16 => {
            Err(cursor.invalid(4, "it is big-endian".to_string()))
        }
        v => Err(cursor.invalid(4, format!("it has version {v}; expected 2 or 3"))),
    }
}

fn read_value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, GgufError> {
    let at = cursor.at;
    let what = "a value";
    Ok(match cursor.u32("a type")? {
        id::U8 => Value::U8(u8::from_le_bytes(cursor.array(what)?)),
        id::I8 => Value::I8(i8::from_le_bytes(cursor.array(what)?)),
        id::U16 => Value::U16(u16::from_le_bytes(cursor.array(what)?)),
        id::I16 => Value::I16(i16::from_le_bytes(cursor.array(what)?)),
        id::U32 => Value::U32(u32::from_le_bytes(cursor.array(what)?)),
        id::I32 => Value::I32(i32::from_le_bytes(cursor.array(what)?)),
        id::F32 => Value::F32(f32::from_le_bytes(cursor.array(what)?)),
        id::BOOL => {
            let at = cursor.at;
            let [byte] = cursor.array(what)?;
            Value::Bool(truth(cursor, at, byte)?)
        }
        id::STRING => Value::String(cursor.text(usize::MAX, what)?.to_string()),
        id::ARRAY => Value::Array(read_array(cursor, key)?),
        id::U64 => Value::U64(u64::from_le_bytes(cursor.array(what)?)),
        id::I64 => Value::I64(i64::from_le_bytes(cursor.array(what)?)),
        id::F64 => Value::F64(f64::from_le_bytes(cursor.array(what)?)),
        other => {
            let what = format!("key {key:?} has type {other}; expected one of 0 to 12");
            return Err(cursor.invalid(at, what));
        }
    })
}

fn read_array(cursor: &mut Cursor<'_>, key: &str) -> Result<Array, GgufError> {
    let at = cursor.at;
    Ok(match cursor.u32("the type of an array")? {
        id::U8 => Array::U8(cursor.numbers(u8::from_le_bytes)?),
        id::I8 => Array::I8(cursor.numbers(i8::from_le_bytes)?),
        id::U16 => Array::U16(cursor.numbers(u16::from_le_bytes)?),
        id::I16 => Array::I16(cursor.numbers(i16::from_le_bytes)?),
        id::U32 => Array::U32(cursor.numbers(u32::from_le_bytes)?),
        id::I32 => Array::I32(cursor.numbers(i32::from_le_bytes)?),
        id::F32 => Array::F32(cursor.numbers(f32::from_le_bytes)?),
        id::BOOL => {
            let bytes = cursor.numbers(u8::from_le_bytes)?;
            let start = cursor.at - bytes.len();
            let truths = bytes.iter().enumerate();
            let truths = truths.map(|(i, byte)| truth(cursor, start + i, *byte));
            Array::Bool(truths.collect::<Result<_, _>>()?)
        }
        id::STRING => Array::String(read_strings(cursor)?),
        id::U64 => Array::U64(cursor.numbers(u64::from_le_bytes)?),
        id::I64 => Array::I64(cursor.numbers(i64::from_le_bytes)?),
        id::F64 => Array::F64(cursor.numbers(f64::from_le_bytes)?),
        id::ARRAY => {
            let what = format!("key {key:?} is an array of arrays, which is not read");
            return Err(cursor.invalid(at, what));
        }
        other => {
            let what = format!("key {key:?} is an array of type {other}; expected one of 0 to 12");
            return Err(cursor.invalid(at, what));
        }
    })
}

fn read_strings(cursor: &mut Cursor<'_>) -> Result<Strings, GgufError> {
    let count = cursor.count(8, "texts")?;
    // One look at the lengths alone, so that the memory of all texts is taken once.
    let start = cursor.at;
    let mut bytes = 0;
    for _ in 0..count {
        let len = cursor.u64("the length of a text")?;
        bytes += cursor.take(len, "a text")?.len();
    }
    cursor.at = start;
    let mut strings = Strings::with_capacity(count, bytes);
    for _ in 0..count {
        strings.push(cursor.text(usize::MAX, "a text")?);
    }
    Ok(strings)
}

fn truth(cursor: &Cursor<'_>, at: usize, byte: u8) -> Result<bool, GgufError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(cursor.invalid(at, format!("a bool is {byte}; expected 0 or 1"))),
    }
}

/// The tensors in the order of the file, and their order by name.
fn read_tensors(
    cursor: &mut Cursor<'_>,
    count: usize,
    alignment: u64,
) -> Result<(Vec<Entry>, Vec<usize>), GgufError> {
    let mut tensors = Vec::new();
    let mut places = Vec::new(); // where each is told of
    let mut names = BTreeMap::new();
    for i in 0..count {
        let at = cursor.at;
        let name = cursor.text(MAX_NAME_BYTES, "a tensor's name")?;
        if name.is_empty() {
            return Err(cursor.invalid(at, "a tensor without a name".to_string()));
        }
        match names.entry(name) {
            btree_map::Entry::Vacant(free) => free.insert(i),
            btree_map::Entry::Occupied(_) => {
                return Err(cursor.invalid(at, format!("tensor {name:?} is there twice")));
            }
        };
        tensors.push(read_tensor(cursor, name, alignment)?);
        places.push(at);
    }
    let by_name = names.into_values().collect();
    place_tensors(cursor, &mut tensors, &places, alignment)?;
    Ok((tensors, by_name))
}

/// One tensor; `start` and `end` are its offset in the data and its least size.
fn read_tensor(cursor: &mut Cursor<'_>, name: &str, alignment: u64) -> Result<Entry, GgufError> {
    let at = cursor.at;
    let dims = cursor.u32("a number of dimensions")? as usize;
    if dims == 0 || dims > MAX_DIMS {
        let what = format!("tensor {name:?} has {dims} dimensions; expected 1 to {MAX_DIMS}");
        return Err(cursor.invalid(at, what));
    }
    let mut shape = [0; MAX_DIMS];
    let mut elements = 1usize;
    for dim in shape[..dims].iter_mut().rev() {
        let at = cursor.at;
        let ne = cursor.u64("a dimension")?;
        let product = usize::try_from(ne)
            .ok()
            .and_then(|ne| Some((ne, elements.checked_mul(ne)?)));
        match product {
            Some((ne, product)) if ne > 0 => (*dim, elements) = (ne, product),
            Some(_) => {
                let what = format!("a dimension of tensor {name:?} is 0");
                return Err(cursor.invalid(at, what));
            }
            None => {
                let what = format!(
                    "tensor {name:?} has more elements than can be counted (dimension {ne})"
                );
                return Err(cursor.invalid(at, what));
            }
        }
    }
    let at = cursor.at;
    let ggml_type = cursor.u32("a tensor's type")?;
    let size = match BlockType::from_ggml_type(ggml_type) {
        None => 1, // not known, but there is an element
        Some(block_type) => {
            let row = shape[dims - 1];
            let size = block_type
                .bytes_for(row)
                .and_then(|_| block_type.bytes_for(elements));
            size.map_err(|e| cursor.invalid(at, format!("a row of tensor {name:?}: {e}")))?
        }
    };
    let at = cursor.at;
    let offset = cursor.u64("a tensor's offset")?;
    if offset % alignment != 0 {
        let what =
            format!("tensor {name:?} is at offset {offset}; expected a multiple of {alignment}");
        return Err(cursor.invalid(at, what));
    }
    let Ok(start) = usize::try_from(offset) else {
        return Err(cursor.invalid(at, format!("tensor {name:?} is at offset {offset}")));
    };
    Ok(Entry {
        name: name.to_string(),
        shape,
        dims,
        ggml_type,
        start,
        end: size,
    })
}

/// From offsets in the data to places in the file, without overlap.
fn place_tensors(
    cursor: &Cursor<'_>,
    tensors: &mut [Entry],
    places: &[usize],
    alignment: u64,
) -> Result<(), GgufError> {
    let len = cursor.bytes.len();
    // alignment is at most 2^16 and a file much shorter than the address space.
    let data = cursor.at.next_multiple_of(alignment as usize);
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| (tensors[i].start, tensors[i].end));
    let mut next = len; // start of the tensor behind
    for &i in order.iter().rev() {
        let Entry {
            name, start, end, ..
        } = &mut tensors[i];
        let size = *end;
        let bounds = data
            .checked_add(*start)
            .and_then(|start| Some((start, start.checked_add(size)?)));
        let Some((from, to)) = bounds.filter(|(_, to)| *to <= len) else {
            let what = format!(
                "tensor {name:?} has {size} bytes at offset {start} of the data, which begins at \
                 byte {data}; the file has {len} bytes"
            );
            return Err(cursor.invalid(places[i], what));
        };
        if to > next {
            let what = format!("tensor {name:?} ends at byte {to}, within another tensor");
            return Err(cursor.invalid(places[i], what));
        }
        let known = BlockType::from_ggml_type(tensors[i].ggml_type).is_some();
        (tensors[i].start, tensors[i].end) = (from, if known { to } else { next });
        next = from;
    }
    Ok(())
}

/// A place in the bytes of a file.
struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn invalid(&self, at: usize, what: String) -> GgufError {
        GgufError::Invalid {
            path: self.path.to_path_buf(),
            offset: at as u64,
            what,
        }
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8], GgufError> {
        match usize::try_from(n) {
            Ok(n) if n <= self.left() => {
                let bytes = &self.bytes[self.at..self.at + n];
                self.at += n;
                Ok(bytes)
            }
            _ => {
                let what = format!("{what} of {n} bytes, with {} bytes left", self.left());
                Err(self.invalid(self.at, what))
            }
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A number of things of at least `min_bytes` each, all of which lie ahead.
    fn count(&mut self, min_bytes: usize, what: &str) -> Result<usize, GgufError> {
        let at = self.at;
        let n = self.u64("a number")?;
        match usize::try_from(n) {
            Ok(n) if n <= self.left() / min_bytes => Ok(n),
            _ => {
                let what = format!("{n} {what}, with {} bytes left", self.left());
                Err(self.invalid(at, what))
            }
        }
    }

    /// Length and text.
    fn text(&mut self, max_bytes: usize, what: &str) -> Result<&'a str, GgufError> {
        let at = self.at;
        let len = self.u64(what)?;
        if len > max_bytes as u64 {
            let what = format!("{what} of {len} bytes; expected at most {max_bytes}");
            return Err(self.invalid(at, what));
        }
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|e| {
            let at = self.at - bytes.len() + e.valid_up_to();
            self.invalid(at, format!("{what} is not UTF-8"))
        })
    }

    /// Number and elements.
    fn numbers<T, const N: usize>(
        &mut self,
        element: impl Fn([u8; N]) -> T,
    ) -> Result<Vec<T>, GgufError> {
        let count = self.count(N, "elements of an array")?;
        let bytes = self.take((count * N) as u64, "an array")?;
        let (elements, _) = bytes.as_chunks::<N>();
        Ok(elements.iter().map(|bytes| element(*bytes)).collect())
    }
}
