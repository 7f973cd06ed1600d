//! Writing: the same tensors give the same bytes, whatever the order they are handed over in.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use half::bf16;
use serde_json::{Map, Value, json};

use super::{Dtype, SafeTensorsError};
use crate::atomic;
use crate::error::FileError;
use crate::hash::{FileHash, HashingWriter};

/// The elements of a tensor to be written; nothing is copied but blocks on their way to the disk.
#[derive(Clone, Copy)]
pub enum TensorData<'a> {
    /// As they are.
    F32(&'a [f32]),
    /// Rounded to the nearest bf16, ties to even.
    Bf16(&'a [f32]),
    /// As they are.
    I64(&'a [i64]),
    /// Made when their turn comes, for a model that does not fit into memory.
    Made {
        /// Their type.
        dtype: Dtype,
        /// Their number.
        len: usize,
        /// Writes their bytes, little-endian.
        write: &'a dyn Fn(&mut dyn Write) -> io::Result<()>,
    },
}

impl std::fmt::Debug for TensorData<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} elements of {}", self.len(), self.dtype())
    }
}

impl TensorData<'_> {
    /// The element type on disk.
    pub fn dtype(&self) -> Dtype {
        match self {
            TensorData::F32(_) => Dtype::F32,
            TensorData::Bf16(_) => Dtype::Bf16,
            TensorData::I64(_) => Dtype::I64,
            TensorData::Made { dtype, .. } => *dtype,
        }
    }

    fn len(&self) -> usize {
        match self {
            TensorData::F32(v) | TensorData::Bf16(v) => v.len(),
            TensorData::I64(v) => v.len(),
            TensorData::Made { len, .. } => *len,
        }
    }

    fn write(&self, w: &mut dyn Write) -> io::Result<()> {
        match self {
            TensorData::F32(v) => write_elements(w, v, |x| x.to_le_bytes()),
            TensorData::Bf16(v) => write_elements(w, v, |x| bf16::from_f32(x).to_le_bytes()),
            TensorData::I64(v) => write_elements(w, v, |x| x.to_le_bytes()),
            TensorData::Made { dtype, len, write } => {
                let mut counted = Counted { inner: w, bytes: 0 };
                write(&mut counted)?;
                match counted.bytes == len * dtype.size() {
                    true => Ok(()),
                    false => Err(io::Error::other(format!(
                        "{} bytes were made for {len} elements of {dtype}",
                        counted.bytes
                    ))),
                }
            }
        }
    }
}

/// Counts what passes.
struct Counted<'a> {
    inner: &'a mut dyn Write,
    bytes: usize,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.bytes += n;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn write_elements<T: Copy, const N: usize>(
    w: &mut dyn Write,
    values: &[T],
    bytes_of: impl Fn(T) -> [u8; N],
) -> io::Result<()> {
    let mut block = Vec::with_capacity(N << 14);
    for chunk in values.chunks(1 << 14) {
        block.clear();
        block.extend(chunk.iter().flat_map(|x| bytes_of(*x)));
        w.write_all(&block)?;
    }
    Ok(())
}

/// A tensor to be written.
#[derive(Clone, Copy, Debug)]
pub struct TensorSource<'a> {
    /// Its name in the checkpoint.
    pub name: &'a str,
    /// Slowest dimension first.
    pub shape: &'a [usize],
    /// Its elements.
    pub data: TensorData<'a>,
}

/// Writes a file in one step, after checking that it fits on the disk; returns its size and digest.
///
/// The order of `tensors` does not matter. Metadata is written sorted by key.
pub fn write_safetensors(
    path: &Path,
    tensors: &[TensorSource<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<FileHash, SafeTensorsError> {
    let (header, sorted, data_bytes) = plan(tensors, metadata)?;
    atomic::require_free(path, (header.len() + data_bytes) as u64)?;
    let failed = |e| FileError::io("write", path, e);
    let mut writer = HashingWriter::new(atomic::AtomicFile::create(path)?);
    write_planned(&mut writer, &header, &sorted).map_err(failed)?;
    let (file, hash) = writer.finish();
    file.commit()?;
    Ok(hash)
}

/// The digest of the file that [`write_safetensors`] would write.
pub fn sha256_of_tensors(
    tensors: &[TensorSource<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<String, SafeTensorsError> {
    let (header, sorted, _) = plan(tensors, metadata)?;
    let mut writer = HashingWriter::new(io::sink());
    write_planned(&mut writer, &header, &sorted).expect("a sink takes everything");
    Ok(writer.finish().1.sha256)
}

fn write_planned(w: &mut dyn Write, header: &[u8], sorted: &[&TensorSource<'_>]) -> io::Result<()> {
    w.write_all(header)?;
    sorted.iter().try_for_each(|tensor| tensor.data.write(w))
}

type Plan<'a, 'b> = (Vec<u8>, Vec<&'a TensorSource<'b>>, usize);

fn plan<'a, 'b>(
    tensors: &'a [TensorSource<'b>],
    metadata: &BTreeMap<String, String>,
) -> Result<Plan<'a, 'b>, SafeTensorsError> {
    let refuse = |name: &str, what| SafeTensorsError::Write {
        name: name.to_string(),
        what,
    };
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by_key(|t| {
        (
            std::cmp::Reverse(t.data.dtype().size()),
            t.data.dtype(),
            t.name,
        )
    });
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_string(), json!(metadata));
    }
    let mut end = 0;
    for tensor in &sorted {
        if tensor.shape.iter().product::<usize>() != tensor.data.len() {
            return Err(refuse(
                tensor.name,
                "its shape and its number of elements differ",
            ));
        }
        let start = end;
        end += tensor.data.len() * tensor.data.dtype().size();
        let info = json!({
            "dtype": tensor.data.dtype().name(),
            "shape": tensor.shape,
            "data_offsets": [start, end],
        });
        if header.insert(tensor.name.to_string(), info).is_some() || tensor.name == "__metadata__" {
            return Err(refuse(tensor.name, "its name is already taken"));
        }
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    Ok((bytes, sorted, end))
}
