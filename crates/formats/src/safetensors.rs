//! Weights on disk: named tensors in the safetensors format, in one file or in several.
//!
//! file   u64 n, little-endian | n bytes of JSON: name -> {dtype, shape, data_offsets} | data
//! Source: the format description of github.com/huggingface/safetensors. Its own library validates
//! every header (offsets without holes or overlap, sizes that match shapes). Before that, this
//! module refuses offsets beyond the end of the file, whose sum could wrap, and names given twice.
//!
//! Reading maps the files. Writing is deterministic: tensors sorted by decreasing size of their
//! type (so that each is aligned), then by name; the header padded with spaces to 8 bytes. The same
//! tensors therefore always give the same bytes, and [`sha256_of_tensors`] gives their digest
//! without writing them.
//!
//! It deliberately does not know which tensors a model has (`model::weights` does).

mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use thiserror::Error;

use crate::atomic;
use crate::error::FileError;
use crate::json::{self, JsonError};
use crate::mmap::{Advice, Mmap};

pub use write::{TensorData, TensorSource, sha256_of_tensors, write_safetensors};

/// The single-file name in a checkpoint directory.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The name of the index of a checkpoint in several files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Weights could not be read or written.
#[derive(Debug, Error)]
pub enum SafeTensorsError {
    /// The file itself failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The index of shards is not what it should be.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The header is damaged or not of this format.
    #[error(
        "{} is no valid safetensors file: {what}; it may be cut short, copy it again",
        path.display()
    )]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A shard name in the index leads elsewhere.
    #[error("{}: the index names {name:?}, which is not a plain file name", path.display())]
    ShardName {
        /// The index.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// Index and shards do not agree.
    #[error("{}: the index and its files disagree about tensor {name:?}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// Asked for a tensor that is not there.
    #[error("{} has no tensor {name:?}", path.display())]
    Missing {
        /// The file or index.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor is there, in a form that was not asked for.
    #[error("tensor {name:?} has type {found}; expected {expected}")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its type.
        found: String,
        /// What can be used.
        expected: &'static str,
    },
    /// A tensor is there, with another number of elements.
    #[error("tensor {name:?} has {found} elements; expected {expected}")]
    Len {
        /// The tensor.
        name: String,
        /// Its number of elements.
        found: usize,
        /// The number asked for.
        expected: usize,
    },
    /// What was to be written contradicts itself.
    #[error("cannot write tensor {name:?}: {what}")]
    Write {
        /// The tensor.
        name: String,
        /// Why.
        what: &'static str,
    },
}

/// Element types that the project reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// The upper half of a 32-bit float.
    Bf16,
    /// IEEE half precision.
    F16,
    /// 8-bit float with four bits of exponent and three of mantissa, without infinities (OCP).
    F8E4M3,
    /// Signed 64-bit.
    I64,
    /// Signed 32-bit.
    I32,
    /// Unsigned 32-bit.
    U32,
}

impl Dtype {
    /// Its name in the header.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::Bf16 => "BF16",
            Dtype::F16 => "F16",
            Dtype::F8E4M3 => "F8_E4M3",
            Dtype::I64 => "I64",
            Dtype::I32 => "I32",
            Dtype::U32 => "U32",
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
            Dtype::Bf16 | Dtype::F16 => 2,
            Dtype::F8E4M3 => 1,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of tensors in mapped files.
#[derive(Debug)]
pub struct SafeTensors {
    path: PathBuf,
    files: Vec<Mmap>,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Entry {
    file_idx: usize,
    range: Range<usize>, // in the file
    dtype: ::safetensors::Dtype,
    shape: Vec<usize>,
}

/// One tensor, in place.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub dtype: Dtype,
    /// Slowest dimension first; empty for a scalar.
    pub shape: &'a [usize],
    /// Little-endian elements, in row-major order; not necessarily aligned.
    pub bytes: &'a [u8],
}

impl SafeTensors {
    /// Opens a `.safetensors` file, an index of several, or a directory that holds either.
    pub fn open(path: &Path) -> Result<SafeTensors, SafeTensorsError> {
        if path.is_dir() {
            let index = path.join(INDEX_FILE);
            let single = path.join(SINGLE_FILE);
            return if single.exists() || !index.exists() {
                SafeTensors::open_files(&single, std::slice::from_ref(&single))
            } else {
                SafeTensors::open_index(&index)
            };
        }
        if path.extension().is_some_and(|e| e == "json") {
            return SafeTensors::open_index(path);
        }
        SafeTensors::open_files(path, &[path.to_path_buf()])
    }

    /// One file, of bytes in memory, which are copied. Errors call them `name`.
    pub fn from_bytes(name: &Path, bytes: &[u8]) -> Result<SafeTensors, SafeTensorsError> {
        let mut one = SafeTensors::empty(name);
        let map = Mmap::of_bytes(bytes).map_err(|e| FileError::io("map", name, e))?;
        one.add_file(name, map)?;
        Ok(one)
    }

    fn open_index(path: &Path) -> Result<SafeTensors, SafeTensorsError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>, // tensor -> file
        }
        let index: Index = json::read(path)?;
        let names: BTreeSet<&String> = index.weight_map.values().collect();
        for name in &names {
            // A shard lies beside its index; anything else could lead out of the checkpoint.
            if Path::new(name)
                .file_name()
                .is_none_or(|n| n != name.as_str())
            {
                let name = (*name).clone();
                return Err(SafeTensorsError::ShardName {
                    path: path.to_path_buf(),
                    name,
                });
            }
        }
        let dir = atomic::parent(path);
        let files: Vec<PathBuf> = names.iter().map(|n| dir.join(n)).collect();
        let opened = SafeTensors::open_files(path, &files)?;
        let disagrees = |name: &str| SafeTensorsError::Index {
            path: path.to_path_buf(),
            name: name.to_string(),
        };
        for (name, file) in &index.weight_map {
            let at = opened
                .tensors
                .get(name)
                .ok_or_else(|| disagrees(name))?
                .file_idx;
            if files[at].file_name().is_none_or(|n| n != file.as_str()) {
                return Err(disagrees(name));
            }
        }
        match opened
            .tensors
            .keys()
            .find(|n| !index.weight_map.contains_key(*n))
        {
            Some(name) => Err(disagrees(name)),
            None => Ok(opened),
        }
    }

    fn open_files(path: &Path, files: &[PathBuf]) -> Result<SafeTensors, SafeTensorsError> {
        let mut all = SafeTensors::empty(path);
        for file in files {
            all.add_file(file, Mmap::open(file)?)?;
        }
        Ok(all)
    }

    fn empty(path: &Path) -> SafeTensors {
        SafeTensors {
            path: path.to_path_buf(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
        }
    }

    /// Adds the tensors of a file that is mapped.
    fn add_file(&mut self, file: &Path, map: Mmap) -> Result<(), SafeTensorsError> {
        let (header, start) =
            read_header(map.bytes()).map_err(|what| SafeTensorsError::Header {
                path: file.to_path_buf(),
                what,
            })?;
        for (name, info) in header.tensors() {
            let (s, e) = info.data_offsets;
            let entry = Entry {
                file_idx: self.files.len(),
                range: start + s..start + e,
                dtype: info.dtype,
                shape: info.shape.clone(),
            };
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(SafeTensorsError::Index {
                    path: self.path.clone(),
                    name,
                });
            }
        }
        self.metadata
            .extend(header.metadata().clone().unwrap_or_default());
        self.files.push(map);
        Ok(())
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True when there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// True when there is a tensor of this name, of whatever type.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The free text that the writer added.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Type as the file names it, shape and bytes of a tensor, also where its type is not read.
    ///
    /// # Errors
    /// When it is not there.
    pub fn describe(&self, name: &str) -> Result<(String, &[usize], usize), SafeTensorsError> {
        let entry = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let dtype = format!("{:?}", entry.dtype);
        Ok((dtype, &entry.shape, entry.range.len()))
    }

    fn missing(&self, name: &str) -> SafeTensorsError {
        SafeTensorsError::Missing {
            path: self.path.clone(),
            name: name.into(),
        }
    }

    /// One tensor.
    ///
    /// # Errors
    /// When it is not there, or of an element type that the project does not read.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>, SafeTensorsError> {
        let entry = self.tensors.get_key_value(name);
        let (name, entry) = entry.ok_or_else(|| self.missing(name))?;
        use ::safetensors::Dtype as Stored;
        let dtype = match entry.dtype {
            Stored::F32 => Dtype::F32,
            Stored::BF16 => Dtype::Bf16,
            Stored::F16 => Dtype::F16,
            Stored::F8_E4M3 => Dtype::F8E4M3,
            Stored::I64 => Dtype::I64,
            Stored::I32 => Dtype::I32,
            Stored::U32 => Dtype::U32,
            other => {
                return Err(SafeTensorsError::Dtype {
                    name: name.clone(),
                    found: format!("{other:?}"),
                    expected: "F32, BF16, F16, F8_E4M3, I64, I32 or U32",
                });
            }
        };
        let bytes = &self.files[entry.file_idx].bytes()[entry.range.clone()];
        Ok(TensorView {
            name,
            dtype,
            shape: &entry.shape,
            bytes,
        })
    }

    /// Tells what will become of `range` (in bytes) of a tensor; nothing where there is no such range.
    pub fn advise(&self, name: &str, range: Range<usize>, advice: Advice) {
        if let Some(entry) = self.tensors.get(name)
            && range.end <= entry.range.len()
        {
            let start = entry.range.start;
            self.files[entry.file_idx].advise(start + range.start..start + range.end, advice);
        }
    }
}

impl TensorView<'_> {
    /// The number of elements.
    pub fn num_elements(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// The elements as f32, exactly.
    pub fn to_f32(&self) -> Result<Vec<f32>, SafeTensorsError> {
        let mut values = vec![0.0; self.num_elements()];
        self.copy_to_f32(&mut values)?;
        Ok(values)
    }

    /// As [`TensorView::to_f32`], into memory that is already there.
    pub fn copy_to_f32(&self, out: &mut [f32]) -> Result<(), SafeTensorsError> {
        if out.len() != self.num_elements() {
            return Err(SafeTensorsError::Len {
                name: self.name.to_string(),
                found: self.num_elements(),
                expected: out.len(),
            });
        }
        self.copy_range_to_f32(0, out)
    }

    /// As [`TensorView::copy_to_f32`], of the elements from `start` on that `out` has room for.
    pub fn copy_range_to_f32(&self, start: usize, out: &mut [f32]) -> Result<(), SafeTensorsError> {
        let size = self.dtype.size();
        let range = start
            .checked_add(out.len())
            .and_then(|end| Some(start.checked_mul(size)?..end.checked_mul(size)?));
        let Some(bytes) = range.and_then(|range| self.bytes.get(range)) else {
            return Err(SafeTensorsError::Len {
                name: self.name.to_string(),
                found: self.num_elements(),
                expected: start.saturating_add(out.len()),
            });
        };
        match self.dtype {
            Dtype::F32 => convert(out, bytes, f32::from_le_bytes),
            Dtype::Bf16 => convert(out, bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => convert(out, bytes, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::F8E4M3 => convert(out, bytes, |[b]| f8_e4m3(b)),
            Dtype::I64 | Dtype::I32 | Dtype::U32 => {
                return Err(self.wrong_type("F32, BF16, F16 or F8_E4M3"));
            }
        }
        Ok(())
    }

    /// The elements of an integer tensor.
    pub fn to_i64(&self) -> Result<Vec<i64>, SafeTensorsError> {
        let mut out = vec![0; self.num_elements()];
        match self.dtype {
            Dtype::I64 => convert(&mut out, self.bytes, i64::from_le_bytes),
            Dtype::I32 => convert(&mut out, self.bytes, |b| i32::from_le_bytes(b).into()),
            Dtype::U32 => convert(&mut out, self.bytes, |b| u32::from_le_bytes(b).into()),
            Dtype::F32 | Dtype::Bf16 | Dtype::F16 | Dtype::F8E4M3 => {
                return Err(self.wrong_type("I64, I32 or U32"));
            }
        }
        Ok(out)
    }

    fn wrong_type(&self, expected: &'static str) -> SafeTensorsError {
        let found = self.dtype.to_string();
        SafeTensorsError::Dtype {
            name: self.name.to_string(),
            found,
            expected,
        }
    }
}

fn convert<T, const N: usize>(out: &mut [T], bytes: &[u8], element: impl Fn([u8; N]) -> T) {
    let (chunks, _) = bytes.as_chunks::<N>();
    for (value, chunk) in out.iter_mut().zip(chunks) {
        *value = element(*chunk);
    }
}

/// The value of an E4M3 byte: sign, exponent with a bias of 7, mantissa; all ones is not a number.
/// Source: OCP 8-bit Floating Point Specification, revision 1.0.
fn f8_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let size = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte >> 7 == 1 { -size } else { size }
}

/// Header and start of the data.
fn read_header(bytes: &[u8]) -> Result<(::safetensors::tensor::Metadata, usize), String> {
    let Some((n, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("{} bytes are too few for a header", bytes.len()));
    };
    let n = u64::from_le_bytes(*n);
    let Some(header) = usize::try_from(n).ok().and_then(|n| rest.get(..n)) else {
        return Err(format!("its header of {n} bytes is longer than the file"));
    };
    let ends: Ends = serde_json::from_slice(header).map_err(|e| e.to_string())?;
    let data_bytes = rest.len() - header.len();
    if ends.furthest > data_bytes as u64 {
        let furthest = ends.furthest;
        return Err(format!(
            "a tensor ends at byte {furthest} of {data_bytes} bytes of data"
        ));
    }
    let (n, metadata) =
        ::safetensors::SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    Ok((metadata, 8 + n))
}

/// The first look at a header: where the last tensor ends, and that no name comes twice.
struct Ends {
    furthest: u64,
}

impl<'de> Deserialize<'de> for Ends {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ends, D::Error> {
        #[derive(Deserialize)]
        struct Offsets {
            data_offsets: (u64, u64),
        }
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Ends;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ends, A::Error> {
                let mut seen = BTreeSet::new();
                let mut furthest = 0;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let (start, end) = map.next_value::<Offsets>()?.data_offsets;
                        furthest = start.max(end).max(furthest);
                    }
                    if let Some(name) = seen.replace(name) {
                        return Err(serde::de::Error::custom(format!("{name:?} is there twice")));
                    }
                }
                Ok(Ends { furthest })
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}
