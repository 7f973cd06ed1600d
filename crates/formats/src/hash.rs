//! SHA-256 (FIPS 180-4) of bytes and files, as 64 lower-case hexadecimal digits.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::FileError;

/// Size and digest of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHash {
    /// Size in bytes.
    pub bytes: u64,
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// The digest of bytes in memory.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The digest of a file.
pub fn sha256_file(path: &Path) -> Result<String, FileError> {
    Ok(hash_file(path)?.sha256)
}

/// The size and digest of a file, read once.
pub fn hash_file(path: &Path) -> Result<FileHash, FileError> {
    hash_prefix(path, u64::MAX)
}

/// As [`hash_file`], of at most the first `limit` bytes.
pub fn hash_prefix(path: &Path, limit: u64) -> Result<FileHash, FileError> {
    let failed = |e| FileError::io("read", path, e);
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(FileError::NotAFile {
            path: path.to_path_buf(),
        });
    }
    let mut sink = HashingWriter::new(io::sink());
    let mut file = File::open(path).map_err(failed)?.take(limit);
    let mut block = vec![0u8; 1 << 18];
    loop {
        match file.read(&mut block) {
            Ok(0) => break,
            Ok(n) => sink.write_all(&block[..n]).map_err(failed)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(sink.finish().1)
}

/// True for 64 lower-case hexadecimal digits.
pub fn is_sha256_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Passes bytes on and takes their digest on the way, so that a file need not be read again.
pub struct HashingWriter<W> {
    inner: W,
    digest: Sha256,
    bytes: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Writes to `inner`.
    pub fn new(inner: W) -> Self {
        HashingWriter {
            inner,
            digest: Sha256::new(),
            bytes: 0,
        }
    }

    /// What was written, and where it went.
    pub fn finish(self) -> (W, FileHash) {
        let sha256 = hex::encode(self.digest.finalize());
        (
            self.inner,
            FileHash {
                bytes: self.bytes,
                sha256,
            },
        )
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.digest.update(&buf[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // FIPS 180-4 examples: the empty message and "abc".
    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn digests_are_the_published_ones() {
        assert_eq!(sha256_hex(b""), EMPTY);
        assert_eq!(sha256_hex(b"abc"), ABC);
        assert!(is_sha256_hex(ABC) && !is_sha256_hex("BA78") && !is_sha256_hex(&ABC[1..]));
    }

    #[test]
    fn a_file_and_its_prefix_hash_like_their_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"abcdef").unwrap();
        assert_eq!(sha256_file(file.path()).unwrap(), sha256_hex(b"abcdef"));
        let prefix = hash_prefix(file.path(), 3).unwrap();
        assert_eq!(
            prefix,
            FileHash {
                bytes: 3,
                sha256: ABC.into()
            }
        );
        assert!(
            sha256_file(Path::new("/no/such/file"))
                .unwrap_err()
                .is_not_found()
        );
    }

    #[test]
    fn a_hashing_writer_counts_what_it_passes_on() {
        let mut writer = HashingWriter::new(Vec::new());
        writer.write_all(b"a").unwrap();
        writer.write_all(b"bc").unwrap();
        let (bytes, hash) = writer.finish();
        assert_eq!(
            (bytes.as_slice(), hash.bytes, hash.sha256.as_str()),
            (&b"abc"[..], 3, ABC)
        );
    }
}
