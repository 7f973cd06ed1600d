//! Opening a file, decompressed if its first bytes say so, with a bound on what comes out.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use formats::FileError;

use super::{ExtractError, Limits, Position};

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// A compressed file may have so many bytes whatever its expansion.
const FREE_BYTES: u64 = 64 << 20;
/// Window that a zstd frame may ask for: 128 MiB, what the format's own tool allows.
const ZSTD_WINDOW_LOG: u32 = 27;
const BUFFER_BYTES: usize = 256 << 10;

/// The decompressed bytes of a file.
pub(super) struct Input {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    pub(super) is_compressed: bool,
    pub(super) file_bytes: u64,
    read_bytes: u64,
    limit_bytes: u64,
}

/// A file that tells how far it has been read.
struct Counted {
    file: File,
    position: Position,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.position.advance(read as u64);
        Ok(read)
    }
}

/// What reading a line found.
pub(super) enum Line {
    End,
    /// Without its line end.
    Whole,
    /// Longer than allowed; the rest of it has been passed over.
    TooLong,
}

impl Input {
    pub(super) fn open(
        path: &Path,
        limits: &Limits,
        position: &Position,
    ) -> Result<Input, ExtractError> {
        let failed = |e| FileError::io("read", path, e);
        let file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(FileError::NotAFile {
                path: path.to_path_buf(),
            }
            .into());
        }
        let counted = Counted {
            file,
            position: position.clone(),
        };
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, counted);
        let start = reader.fill_buf().map_err(failed)?;
        let (is_gzip, is_zstd) = (start.starts_with(GZIP_MAGIC), start.starts_with(ZSTD_MAGIC));
        let reader: Box<dyn BufRead> = if is_gzip {
            let decoder = flate2::bufread::MultiGzDecoder::new(reader);
            Box::new(BufReader::with_capacity(BUFFER_BYTES, decoder))
        } else if is_zstd {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(reader).map_err(failed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(failed)?;
            Box::new(BufReader::with_capacity(BUFFER_BYTES, decoder))
        } else {
            Box::new(reader)
        };
        let is_compressed = is_gzip || is_zstd;
        let limit_bytes = if is_compressed {
            meta.len()
                .saturating_mul(limits.max_expansion)
                .saturating_add(FREE_BYTES)
        } else {
            u64::MAX
        };
        Ok(Input {
            path: path.to_path_buf(),
            reader,
            is_compressed,
            file_bytes: meta.len(),
            read_bytes: 0,
            limit_bytes,
        })
    }

    fn damaged(&self, cause: io::Error) -> ExtractError {
        ExtractError::Damaged {
            path: self.path.clone(),
            offset: self.read_bytes,
            cause,
        }
    }

    fn count(&mut self, bytes: usize) -> Result<(), ExtractError> {
        self.read_bytes += bytes as u64;
        if self.read_bytes > self.limit_bytes {
            let (path, limit_bytes) = (self.path.clone(), self.limit_bytes);
            return Err(ExtractError::TooLarge { path, limit_bytes });
        }
        Ok(())
    }

    /// Reads a line of at most `max_bytes` into `line`, replacing what was there.
    pub(super) fn line(
        &mut self,
        line: &mut Vec<u8>,
        max_bytes: usize,
    ) -> Result<Line, ExtractError> {
        line.clear();
        let (mut seen, mut too_long) = (false, false);
        loop {
            let (used, ends) = match self.reader.fill_buf() {
                Ok([]) => (0, true),
                Ok(buffer) => {
                    seen = true;
                    let end = buffer.iter().position(|&b| b == b'\n');
                    let part = &buffer[..end.unwrap_or(buffer.len())];
                    too_long |= line.len() + part.len() > max_bytes;
                    if !too_long {
                        line.extend_from_slice(part);
                    }
                    (part.len() + usize::from(end.is_some()), end.is_some())
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.damaged(e)),
            };
            self.reader.consume(used);
            self.count(used)?;
            if ends {
                return Ok(match (seen, too_long) {
                    (false, _) => Line::End,
                    (true, false) => Line::Whole,
                    (true, true) => Line::TooLong,
                });
            }
        }
    }

    /// Appends at most `max_bytes` to `bytes`; fewer only at the end of the input.
    pub(super) fn take(
        &mut self,
        bytes: &mut Vec<u8>,
        max_bytes: u64,
    ) -> Result<usize, ExtractError> {
        let before = bytes.len();
        let result = (&mut self.reader).take(max_bytes).read_to_end(bytes);
        let got = bytes.len() - before;
        self.count(got)?;
        match result {
            Ok(_) => Ok(got),
            Err(e) => Err(self.damaged(e)),
        }
    }
}
