//! Writing: version 3, alignment 32, every tensor padded with zeros to it.
//!
//! Other readers want the tensors in order and without holes, names shorter than 64 bytes, and
//! rows of whole blocks; what they would refuse is not written.

use std::collections::BTreeSet;
use std::error::Error;
use std::io::{self, Write};
use std::path::Path;

use numerics::BlockType;

use super::value::put_str;
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, GgufError, MAGIC, MAX_DIMS, MAX_KEY_BYTES, Value};
use crate::atomic;
use crate::error::FileError;
use crate::hash::{FileHash, HashingWriter};

const VERSION: u32 = 3;
/// Longest name of a tensor that ggml reads.
const MAX_NAME_BYTES: usize = 63;

/// Why the bytes of a tensor cannot be had.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Writes the bytes of a tensor to where it is told.
pub type TensorBytes<'a> = Box<dyn Fn(&mut dyn Write) -> Result<(), BoxError> + 'a>;

/// A tensor to be written.
pub struct GgufTensorSource<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Slowest dimension first, 1 to 4 of them, the last of whole blocks.
    pub shape: &'a [usize],
    /// How its elements are stored.
    pub block_type: BlockType,
    /// Writes its blocks, in pieces of any size. Called once, when all tensors before are written.
    pub data: TensorBytes<'a>,
}

/// Writes a file in one step, after checking that it fits on the disk; returns its size and digest.
///
/// Metadata and tensors are written in the order given; of the data, one piece at a time is in memory.
///
/// # Errors
/// When keys, names or shapes contradict the format or one another, when a source fails or gives
/// another number of bytes than its shape says, or when the file cannot be written. Nothing is
/// left behind, and a file that was there before stays.
pub fn write_gguf(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[GgufTensorSource<'_>],
) -> Result<FileHash, GgufError> {
    let refuse = |what| GgufError::Write {
        path: path.to_path_buf(),
        what,
    };
    let (header, sizes) = plan(metadata, tensors).map_err(refuse)?;
    let total = sizes
        .iter()
        .try_fold(header.len() as u64, |sum, size| {
            sum.checked_add(padded(*size)?)
        })
        .ok_or_else(|| refuse("the tensors have more bytes than can be counted".to_string()))?;
    atomic::require_free(path, total)?;
    let failed = |e| FileError::io("write", path, e);
    let mut writer = HashingWriter::new(atomic::AtomicFile::create(path)?);
    writer.write_all(&header).map_err(failed)?;
    for (tensor, size) in tensors.iter().zip(sizes) {
        let mut counted = Counted {
            inner: &mut writer,
            bytes: 0,
            broken: None,
        };
        let outcome = (tensor.data)(&mut counted);
        let (bytes, broken) = (counted.bytes, counted.broken);
        // An error of the file itself is told as such, however the source wrapped it.
        if let Some(e) = broken {
            return Err(failed(e).into());
        }
        outcome.map_err(|cause| GgufError::Source {
            path: path.to_path_buf(),
            name: tensor.name.to_string(),
            cause,
        })?;
        if bytes != size {
            let name = tensor.name;
            return Err(refuse(format!(
                "tensor {name:?}: expected {size} bytes, got {bytes}"
            )));
        }
        let zeros = [0; DEFAULT_ALIGNMENT as usize];
        let padding = (size.next_multiple_of(DEFAULT_ALIGNMENT) - size) as usize;
        writer.write_all(&zeros[..padding]).map_err(failed)?;
    }
    let (file, hash) = writer.finish();
    file.commit()?;
    Ok(hash)
}

fn padded(size: u64) -> Option<u64> {
    size.checked_next_multiple_of(DEFAULT_ALIGNMENT)
}

/// The bytes before the data, padded, and the size of each tensor.
fn plan(
    metadata: &[(String, Value)],
    tensors: &[GgufTensorSource<'_>],
) -> Result<(Vec<u8>, Vec<u64>), String> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    out.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
    let mut keys = BTreeSet::new();
    for (key, value) in metadata {
        check_name("key", key, MAX_KEY_BYTES, &mut keys)?;
        if key == ALIGNMENT_KEY && value.as_u64() != Some(DEFAULT_ALIGNMENT) {
            return Err(format!(
                "key {key:?} is {}; expected {DEFAULT_ALIGNMENT}",
                value.described()
            ));
        }
        put_str(&mut out, key);
        value.encode(&mut out);
    }
    let (mut names, mut sizes, mut offset) = (BTreeSet::new(), Vec::new(), 0u64);
    for tensor in tensors {
        check_name("tensor", tensor.name, MAX_NAME_BYTES, &mut names)?;
        let size = size_of(tensor)?;
        put_str(&mut out, tensor.name);
        out.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
        for dim in tensor.shape.iter().rev() {
            out.extend_from_slice(&(*dim as u64).to_le_bytes());
        }
        out.extend_from_slice(&tensor.block_type.ggml_type().to_le_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
        offset = padded(size)
            .and_then(|size| offset.checked_add(size))
            .ok_or("the tensors have more bytes than can be counted")?;
        sizes.push(size);
    }
    out.resize(out.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
    Ok((out, sizes))
}

fn check_name<'a>(
    kind: &str,
    name: &'a str,
    max_bytes: usize,
    taken: &mut BTreeSet<&'a str>,
) -> Result<(), String> {
    if name.is_empty() || name.len() > max_bytes {
        let bytes = name.len();
        return Err(format!(
            "{kind} {name:?} has a name of {bytes} bytes; expected 1 to {max_bytes}"
        ));
    }
    if !taken.insert(name) {
        return Err(format!("{kind} {name:?} is there twice"));
    }
    Ok(())
}

fn size_of(tensor: &GgufTensorSource<'_>) -> Result<u64, String> {
    let GgufTensorSource {
        name,
        shape,
        block_type,
        ..
    } = tensor;
    let &[.., row] = *shape else {
        return Err(format!(
            "tensor {name:?} has no dimension; expected 1 to {MAX_DIMS}"
        ));
    };
    if shape.len() > MAX_DIMS || shape.contains(&0) {
        return Err(format!(
            "tensor {name:?} has shape {shape:?}; expected 1 to {MAX_DIMS} dimensions, none of them 0"
        ));
    }
    let elements = shape
        .iter()
        .try_fold(1usize, |n, dim| n.checked_mul(*dim))
        .ok_or_else(|| format!("tensor {name:?} has more elements than can be counted"))?;
    let told = |e| format!("a row of tensor {name:?}: {e}");
    block_type.bytes_for(row).map_err(told)?;
    Ok(block_type.bytes_for(elements).map_err(told)? as u64)
}

/// Passes bytes on, counts them, and keeps the error of the file.
struct Counted<'a> {
    inner: &'a mut dyn Write,
    bytes: u64,
    broken: Option<io::Error>,
}

impl Write for Counted<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self.inner.write(buf) {
            Ok(n) => {
                self.bytes += n as u64;
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                let kind = e.kind();
                self.broken = Some(e);
                Err(kind.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
