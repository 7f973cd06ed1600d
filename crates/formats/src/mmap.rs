//! The system calls that need `unsafe`: a file as read-only memory, what will be read of it, and the free
//! space of a disk.
//!
//! Whoever shortens a file while it is mapped ends this process with SIGBUS. Files of this project
//! are written under a temporary name and renamed, never changed in place, so that only foreign
//! programs could do that; the ledger and metrics files, which do grow, are read and not mapped.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::FileError;

/// At least the size of a page on the systems that are known; with a smaller one less is released.
const PAGE: usize = 1 << 16;

/// The bytes of a file, mapped read-only.
#[derive(Debug)]
pub struct Mmap {
    map: Option<memmap2::Mmap>, // None: an empty file, which cannot be mapped
    is_file: bool,              // and not a copy in memory
}

/// What will become of a part of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// It will be read soon: the disk may begin.
    WillNeed,
    /// It will not be read for a while: this process need not hold its pages. Reading it is still right.
    Release,
}

impl Mmap {
    /// Maps the whole of `path`.
    pub fn open(path: &Path) -> Result<Mmap, FileError> {
        // Asked before opening: opening a named pipe would wait for its writer.
        let found = std::fs::metadata(path).map_err(|e| FileError::io("read", path, e))?;
        if !found.is_file() {
            return Err(FileError::NotAFile {
                path: path.to_path_buf(),
            });
        }
        let file = File::open(path).map_err(|e| FileError::io("read", path, e))?;
        let len = file
            .metadata()
            .map_err(|e| FileError::io("read", path, e))?
            .len();
        if len == 0 {
            return Ok(Mmap {
                map: None,
                is_file: true,
            });
        }
        // SAFETY: the map is read-only and private; that nobody shortens or rewrites the file
        // meanwhile is the convention told in the module header.
        let map = unsafe { memmap2::Mmap::map(&file) };
        Ok(Mmap {
            map: Some(map.map_err(|e| FileError::io("map", path, e))?),
            is_file: true,
        })
    }

    /// As a map of a file that has these bytes.
    pub fn of_bytes(bytes: &[u8]) -> io::Result<Mmap> {
        if bytes.is_empty() {
            return Ok(Mmap {
                map: None,
                is_file: false,
            });
        }
        let mut map = memmap2::MmapMut::map_anon(bytes.len())?;
        map.copy_from_slice(bytes);
        Ok(Mmap {
            map: Some(map.make_read_only()?),
            is_file: false,
        })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// Tells the system what will become of the pages of `range` (in bytes). A request that it refuses is
    /// forgotten: only speed and memory depend on it.
    pub fn advise(&self, range: Range<usize>, advice: Advice) {
        let Some(bytes) = self.bytes().get(range).filter(|_| self.is_file) else {
            return;
        };
        let start = bytes.as_ptr() as usize;
        // Whole pages: of what is needed all that it touches, of what is released those that hold nothing else.
        let (start, end, advice) = match advice {
            Advice::WillNeed => {
                let first = self.bytes().as_ptr() as usize;
                let page = (start & !(PAGE - 1)).max(first);
                (page, start + bytes.len(), libc::MADV_WILLNEED)
            }
            Advice::Release => {
                let end = (start + bytes.len()) & !(PAGE - 1);
                (start.next_multiple_of(PAGE), end, libc::MADV_DONTNEED)
            }
        };
        if start < end {
            // SAFETY: pages of a read-only map of a file; the system reads them from it again when they are touched.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, advice) };
        }
    }

    /// `range` (in bytes) as little-endian words; None when out of bounds or not on word borders.
    pub fn u32s(&self, range: Range<usize>) -> Option<&[u32]> {
        // SAFETY: every bit pattern is a u32; `align_to` sees to alignment.
        let (before, words, after) = unsafe { self.bytes().get(range)?.align_to::<u32>() };
        (before.is_empty() && after.is_empty()).then_some(words)
    }

    /// As [`Mmap::u32s`], for words of eight bytes.
    pub fn u64s(&self, range: Range<usize>) -> Option<&[u64]> {
        // SAFETY: every bit pattern is a u64; `align_to` sees to alignment.
        let (before, words, after) = unsafe { self.bytes().get(range)?.align_to::<u64>() };
        (before.is_empty() && after.is_empty()).then_some(words)
    }
}

/// Bytes that this process may still write on the disk of `path`, which must exist.
pub fn free_bytes(path: &Path) -> Result<u64, FileError> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| FileError::io("look at", path, io::ErrorKind::InvalidInput.into()))?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `name` ends with NUL and `stat` is writable memory of the right type.
    let answer = unsafe { libc::statvfs(name.as_ptr(), stat.as_mut_ptr()) };
    if answer != 0 {
        return Err(FileError::io("look at", path, io::Error::last_os_error()));
    }
    // SAFETY: the call succeeded and filled it in; all-zero would be valid too.
    let stat = unsafe { stat.assume_init() };
    #[expect(
        clippy::unnecessary_cast,
        reason = "both fields are narrower on some systems"
    )]
    Ok((stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_maps_to_no_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let map = Mmap::open(file.path()).unwrap();
        assert!(map.bytes().is_empty());
        assert_eq!(map.u32s(0..0), Some(&[][..]));
        assert!(map.u32s(0..4).is_none());
    }

    #[test]
    fn what_was_released_is_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..5 * PAGE).map(|i| (i / 1000) as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        for map in [
            Mmap::open(file.path()).unwrap(),
            Mmap::of_bytes(&bytes).unwrap(),
        ] {
            for range in [3..bytes.len() - 7, 0..bytes.len(), 0..0, 5..bytes.len() + 1] {
                map.advise(range.clone(), Advice::WillNeed);
                map.advise(range, Advice::Release);
                assert!(map.bytes() == bytes);
            }
        }
    }

    #[test]
    fn words_off_their_borders_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [1u8, 0, 0, 0, 2, 0, 0, 0, 9]).unwrap();
        let map = Mmap::open(file.path()).unwrap();
        assert_eq!(map.u32s(0..8), Some(&[1u32, 2][..]));
        assert!(map.u32s(1..5).is_none() && map.u32s(0..7).is_none() && map.u64s(4..12).is_none());
    }

    #[test]
    fn a_directory_is_not_a_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Mmap::open(dir.path()),
            Err(FileError::NotAFile { .. })
        ));
    }

    #[test]
    fn the_disk_of_a_directory_has_a_free_figure() {
        assert!(free_bytes(&std::env::temp_dir()).unwrap() > 0);
        assert!(
            free_bytes(Path::new("/no/such/place"))
                .unwrap_err()
                .is_not_found()
        );
    }
}
