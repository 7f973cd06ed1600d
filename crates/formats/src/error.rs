//! What went wrong at a file: the path, the cause, and what to do about it, in one sentence.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A file or directory could not be read, written, made or moved.
#[derive(Debug, Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}: {cause}; {}", path.display(), advice(cause))]
    Io {
        /// A verb: `read`, `write`, `create`, ...
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The operating system's answer; part of the message, hence not a `source`.
        cause: io::Error,
    },
    /// Found out before the first byte was written.
    #[error(
        "cannot write {}: it needs {needed_bytes} bytes and its disk has {free_bytes} free; free \
         space there or choose another directory (nothing was changed)",
        path.display()
    )]
    NoSpace {
        /// What was to be written.
        path: PathBuf,
        /// Its size.
        needed_bytes: u64,
        /// What is left on that disk.
        free_bytes: u64,
    },
    /// Something is already there and is not overwritten.
    #[error("{} is already there and is never overwritten; choose another name", path.display())]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// A directory, a device or a pipe stands where a file is expected.
    #[error("{} is not a regular file; give the path of a file", path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
}

impl FileError {
    /// Joins path and cause; `action` is a verb that reads after "cannot".
    pub fn io(action: &'static str, path: &Path, cause: io::Error) -> FileError {
        FileError::Io {
            action,
            path: path.to_path_buf(),
            cause,
        }
    }

    /// True when the path does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, FileError::Io { cause, .. } if cause.kind() == io::ErrorKind::NotFound)
    }
}

fn advice(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::PermissionDenied => "check who owns it and its permissions",
        io::ErrorKind::StorageFull => {
            "free space on that disk and run the same command again (what was there before is \
             untouched)"
        }
        io::ErrorKind::QuotaExceeded => {
            "your quota on that disk is used up; free space or choose another directory (what was \
             there before is untouched)"
        }
        io::ErrorKind::ReadOnlyFilesystem => "choose a directory on a disk that can be written",
        io::ErrorKind::AlreadyExists => "choose another name",
        io::ErrorKind::NotADirectory => "a file stands where a directory is expected",
        io::ErrorKind::IsADirectory => "give the path of a file",
        io::ErrorKind::UnexpectedEof => "the file is shorter than it says; copy it again",
        _ => "check the disk and the path, then run the same command again",
    }
}
