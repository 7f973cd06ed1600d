//! Weights with everything a program needs to know about them, in one file: GGUF.
//!
//! ```text
//! 0   4   magic "GGUF"
//! 4   4   version, 2 or 3
//! 8   8   number of tensors
//! 16  8   number of pairs of metadata
//! 24      pairs: key | type u32 | value
//!         tensors: name | number of dimensions u32 | dimensions u64, fastest first | type u32 |
//!                  offset u64 in the data
//!         zeros up to a multiple of the alignment, then the data
//! ```
//! All little-endian. Keys, names and texts are `length u64 | UTF-8`; an array is `type u32 | number
//! u64 | elements`. The alignment is the pair `general.alignment`, else 32.
//! Source: the format description of github.com/ggml-org/ggml (`docs/gguf.md`).
//!
//! Reading maps the file. [`Gguf::open`] checks everything but the elements: each number of things
//! against the bytes that are left before memory is taken for them, offsets for alignment, bounds and
//! overlap, shapes for overflow and whole blocks, and that no key or name comes twice. Refused are
//! big-endian files, version 1, arrays of arrays, and models in several files.
//!
//! Writing ([`write_gguf`]) takes the tensors in pieces and the order as given: the same arguments
//! give the same bytes.
//!
//! It deliberately does not know which keys and tensors a model has.

mod read;
mod value;
mod write;

use std::ops::Range;
use std::path::{Path, PathBuf};

use numerics::{BlockError, BlockType};
use thiserror::Error;

use crate::error::FileError;
use crate::mmap::{Advice, Mmap};

pub use value::{Array, Strings, Value};
pub use write::{BoxError, GgufTensorSource, TensorBytes, write_gguf};

const MAGIC: &[u8; 4] = b"GGUF";
/// The key of the alignment of tensors.
const ALIGNMENT_KEY: &str = "general.alignment";
/// The alignment without that key.
const DEFAULT_ALIGNMENT: u64 = 32;
/// Longest key, by the format's description.
const MAX_KEY_BYTES: usize = 65_535;
/// Most dimensions of a tensor, by the format's description.
const MAX_DIMS: usize = 4;

/// A GGUF file could not be read or written.
#[derive(Debug, Error)]
pub enum GgufError {
    /// The file itself failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not such a file, or a damaged one.
    #[error(
        "{} is no GGUF file that can be read: {what} (byte {offset}); it may be cut short or of \
         another kind",
        path.display()
    )]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// One of the files of a model in several.
    #[error(
        "{} is one of {count} files of a model; join them to one file first",
        path.display()
    )]
    Split {
        /// The file.
        path: PathBuf,
        /// How many there are.
        count: u64,
    },
    /// Asked for metadata that is not there.
    #[error("{} has no key {key:?}", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// Metadata is there, of another type or out of range.
    #[error("{}: key {key:?} is {found}; expected {expected}", path.display())]
    KeyType {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What its value is.
        found: String,
        /// What was asked for.
        expected: &'static str,
    },
    /// Asked for a tensor that is not there.
    #[error("{} has no tensor {name:?}", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor is there, of a type that the project does not read.
    #[error(
        "tensor {name:?} has ggml type {ggml_type}, which is not read; expected one of F32, F16, \
         BF16, Q8_0, Q4_0, Q4_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K"
    )]
    TensorType {
        /// The tensor.
        name: String,
        /// Its type.
        ggml_type: u32,
    },
    /// A tensor is there, and the memory for its elements has another size.
    #[error("tensor {name:?}: {cause}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What does not fit; part of the message, hence not a `source`.
        cause: BlockError,
    },
    /// What was to be written contradicts itself.
    #[error("cannot write {}: {what}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// The bytes of a tensor could not be had.
    #[error("cannot write {}: tensor {name:?}: {cause}", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What its source said; part of the message, hence not a `source`.
        cause: BoxError,
    },
}

/// A GGUF file in memory: metadata read, tensors mapped.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Mmap,
    version: u32,
    metadata: Vec<(String, Value)>, // as in the file
    by_key: Vec<usize>,             // into metadata
    tensors: Vec<Entry>,            // as in the file
    by_name: Vec<usize>,            // into tensors
}

#[derive(Debug)]
struct Entry {
    name: String,
    shape: [usize; MAX_DIMS], // slowest first, `dims` of them
    dims: usize,
    ggml_type: u32,
    start: usize, // in the file
    end: usize,
}

/// One tensor, in place.
#[derive(Clone, Copy, Debug)]
pub struct GgufTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Slowest dimension first: ggml's `ne` the other way round.
    pub shape: &'a [usize],
    /// How its elements are stored; None for the types that the project does not read.
    pub block_type: Option<BlockType>,
    /// The number of that type in the file.
    pub ggml_type: u32,
    /// Blocks row by row; of an unknown type, whatever lies before the next tensor.
    pub bytes: &'a [u8],
}

impl Gguf {
    /// Maps a file and checks it.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        read::read(path, Mmap::open(path)?)
    }

    /// As [`Gguf::open`], of bytes in memory, which are copied. Errors call them `name`.
    pub fn from_bytes(name: &Path, bytes: &[u8]) -> Result<Gguf, GgufError> {
        let map = Mmap::of_bytes(bytes).map_err(|e| FileError::io("map", name, e))?;
        read::read(name, map)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All metadata, in the order of the file.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// The value of a key, if it is there.
    pub fn value(&self, key: &str) -> Option<&Value> {
        let found = self
            .by_key
            .binary_search_by(|&i| self.metadata[i].0.as_str().cmp(key));
        Some(&self.metadata[self.by_key[found.ok()?]].1)
    }

    /// A number that is an integer of any width and not negative.
    pub fn u64(&self, key: &str) -> Result<u64, GgufError> {
        self.typed(key, "an integer that is not negative", Value::as_u64)
    }

    /// A number that is an f32 or f64.
    pub fn f64(&self, key: &str) -> Result<f64, GgufError> {
        self.typed(key, "an f32 or f64", Value::as_f64)
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<bool, GgufError> {
        self.typed(key, "a bool", Value::as_bool)
    }

    /// A text.
    pub fn str(&self, key: &str) -> Result<&str, GgufError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// An array of texts.
    pub fn strings(&self, key: &str) -> Result<&Strings, GgufError> {
        self.typed(key, "an array of strings", Value::as_strings)
    }

    /// An array of integers of any width, each within an i32.
    pub fn i32s(&self, key: &str) -> Result<Vec<i32>, GgufError> {
        self.typed(key, "an array of integers within 32 bits", Value::to_i32s)
    }

    /// An array of f32.
    pub fn f32s(&self, key: &str) -> Result<&[f32], GgufError> {
        self.typed(key, "an array of f32", Value::as_f32s)
    }

    /// An array of truth values.
    pub fn bools(&self, key: &str) -> Result<&[bool], GgufError> {
        self.typed(key, "an array of bool", Value::as_bools)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T, GgufError> {
        let Some(value) = self.value(key) else {
            return Err(GgufError::MissingKey {
                path: self.path.clone(),
                key: key.to_string(),
            });
        };
        read(value).ok_or_else(|| GgufError::KeyType {
            path: self.path.clone(),
            key: key.to_string(),
            found: value.described(),
            expected,
        })
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True when there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = GgufTensor<'_>> {
        self.tensors.iter().map(|entry| self.view(entry))
    }

    /// True when there is a tensor of this name, of whatever type.
    pub fn contains(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    /// One tensor.
    ///
    /// # Errors
    /// When it is not there.
    pub fn get(&self, name: &str) -> Result<GgufTensor<'_>, GgufError> {
        match self.entry(name) {
            Some(entry) => Ok(self.view(entry)),
            None => Err(GgufError::MissingTensor {
                path: self.path.clone(),
                name: name.to_string(),
            }),
        }
    }

    /// Tells what will become of `range` (in bytes) of a tensor; nothing where there is no such range.
    pub fn advise(&self, name: &str, range: Range<usize>, advice: Advice) {
        if let Some(entry) = self.entry(name)
            && range.end <= entry.end - entry.start
        {
            let range = entry.start + range.start..entry.start + range.end;
            self.map.advise(range, advice);
        }
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        let found = self
            .by_name
            .binary_search_by(|&i| self.tensors[i].name.as_str().cmp(name));
        Some(&self.tensors[self.by_name[found.ok()?]])
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> GgufTensor<'a> {
        GgufTensor {
            name: &entry.name,
            shape: &entry.shape[..entry.dims],
            block_type: BlockType::from_ggml_type(entry.ggml_type),
            ggml_type: entry.ggml_type,
            bytes: &self.map.bytes()[entry.start..entry.end],
        }
    }
}

impl GgufTensor<'_> {
    /// The number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// How its elements are stored.
    ///
    /// # Errors
    /// When the project does not read that type.
    pub fn known_type(&self) -> Result<BlockType, GgufError> {
        self.block_type.ok_or_else(|| GgufError::TensorType {
            name: self.name.to_string(),
            ggml_type: self.ggml_type,
        })
    }

    /// The elements as f32, the same that ggml computes.
    pub fn to_f32(&self) -> Result<Vec<f32>, GgufError> {
        self.known_type()?; // before any memory: an unknown type may claim any shape
        let mut values = vec![0.0; self.num_elements()];
        self.copy_to_f32(&mut values)?;
        Ok(values)
    }

    /// As [`GgufTensor::to_f32`], into memory that is already there.
    pub fn copy_to_f32(&self, out: &mut [f32]) -> Result<(), GgufError> {
        let dequantised = self.known_type()?.dequantise(self.bytes, out);
        dequantised.map_err(|cause| GgufError::Tensor {
            name: self.name.to_string(),
            cause,
        })
    }
}
