//! Files and directories that appear whole or not at all, even under `kill -9` or a full disk.
//!
//! Bytes go to a sibling named `.dokja-tmp-PID-N-NAME`; it is flushed, forced to the disk, and then
//! renamed, which a POSIX file system does in one step; at last the directory is forced to the disk
//! so that the new name survives a power cut too. What was there before stays until the rename.
//! A process that dies leaves only such siblings behind; [`clean_leftovers`] removes them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::FileError;
use crate::mmap::free_bytes;

/// How the name of every temporary begins.
pub const TEMPORARY_PREFIX: &str = ".dokja-tmp-";

/// Writes a file through `fill`, replacing what was there in one step.
pub fn write(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), FileError> {
    write_sized(path, 0, fill)
}

/// As [`write`], after a check that `size_bytes` more fit on the disk.
pub fn write_sized(
    path: &Path,
    size_bytes: u64,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), FileError> {
    require_free(path, size_bytes)?;
    let mut file = AtomicFile::create(path)?;
    fill(&mut file).map_err(|e| FileError::io("write", path, e))?;
    file.commit()
}

/// Writes a file of known contents, replacing what was there in one step.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_sized(path, bytes.len() as u64, |w| w.write_all(bytes))
}

/// Builds a directory under a temporary name and renames it when `build` has succeeded.
///
/// `build` gets the temporary path. `size_bytes` is what it is about to write, or 0 if unknown.
///
/// # Errors
/// [`FileError::Exists`] when `path` is taken: a directory cannot be replaced in one step.
pub fn write_dir<T, E: From<FileError>>(
    path: &Path,
    size_bytes: u64,
    build: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(FileError::Exists {
            path: path.to_path_buf(),
        }
        .into());
    }
    require_free(path, size_bytes)?;
    let guard = Temporary {
        path: temporary_sibling(path)?,
    };
    fs::create_dir(&guard.path).map_err(|e| FileError::io("create", &guard.path, e))?;
    let made = build(&guard.path)?;
    sync_tree(&guard.path)?;
    fs::rename(&guard.path, path).map_err(|e| FileError::io("create", path, e))?;
    sync_dir(parent(path))?;
    Ok(made)
}

/// Removes a directory so that it is gone from its name at once: renamed first, then deleted.
pub fn remove_dir(path: &Path) -> Result<(), FileError> {
    let doomed = temporary_sibling(path)?;
    fs::rename(path, &doomed).map_err(|e| FileError::io("remove", path, e))?;
    sync_dir(parent(path))?;
    fs::remove_dir_all(&doomed).map_err(|e| FileError::io("remove", &doomed, e))
}

/// Removes what killed processes left in `dir` and below; returns the removed paths.
///
/// Only for a directory that no other process writes to (the caller holds the ledger's lock).
pub fn clean_leftovers(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut removed = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in list(&dir)? {
            // Symbolic links are not followed: what they point at is not ours.
            let kind = entry
                .file_type()
                .map_err(|e| FileError::io("read", &entry.path(), e))?;
            let path = entry.path();
            if !entry
                .file_name()
                .to_string_lossy()
                .starts_with(TEMPORARY_PREFIX)
            {
                if kind.is_dir() {
                    open.push(path);
                }
                continue;
            }
            let done = if kind.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            done.map_err(|e| FileError::io("remove", &path, e))?;
            removed.push(path);
        }
    }
    removed.sort();
    Ok(removed)
}

/// Fails when the disk of `path` has less than `size_bytes` left.
pub fn require_free(path: &Path, size_bytes: u64) -> Result<(), FileError> {
    if size_bytes == 0 {
        return Ok(());
    }
    let free_bytes = free_bytes(parent(path))?;
    if free_bytes < size_bytes {
        let path = path.to_path_buf();
        return Err(FileError::NoSpace {
            path,
            needed_bytes: size_bytes,
            free_bytes,
        });
    }
    Ok(())
}

/// A file being written under a temporary name; dropped without [`AtomicFile::commit`], it is gone.
pub struct AtomicFile {
    writer: BufWriter<File>,
    path: PathBuf,
    temporary: Temporary,
}

impl AtomicFile {
    /// Begins to write `path`.
    pub fn create(path: &Path) -> Result<AtomicFile, FileError> {
        let temporary = Temporary {
            path: temporary_sibling(path)?,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary.path);
        let file = file.map_err(|e| FileError::io("create", path, e))?;
        let writer = BufWriter::with_capacity(1 << 18, file);
        Ok(AtomicFile {
            writer,
            path: path.to_path_buf(),
            temporary,
        })
    }

    /// Forces the bytes to the disk and gives the file its name.
    pub fn commit(mut self) -> Result<(), FileError> {
        let failed = |e| FileError::io("write", &self.path, e);
        self.writer.flush().map_err(failed)?;
        self.writer.get_ref().sync_all().map_err(failed)?;
        fs::rename(&self.temporary.path, &self.path).map_err(failed)?;
        sync_dir(parent(&self.path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.writer.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.writer.seek(to)
    }
}

/// Removes its path when dropped; after the rename there is nothing left to remove.
struct Temporary {
    path: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if fs::remove_file(&self.path).is_err() {
            // A directory, or nothing. If this fails too, clean_leftovers finds it later.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn temporary_sibling(path: &Path) -> Result<PathBuf, FileError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let Some(name) = path.file_name() else {
        return Err(FileError::io(
            "write",
            path,
            io::ErrorKind::InvalidInput.into(),
        ));
    };
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut sibling =
        std::ffi::OsString::from(format!("{TEMPORARY_PREFIX}{}-{n}-", std::process::id()));
    sibling.push(name);
    Ok(parent(path).join(sibling))
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

pub(crate) fn list(dir: &Path) -> Result<Vec<fs::DirEntry>, FileError> {
    let failed = |e| FileError::io("read", dir, e);
    let mut entries = fs::read_dir(dir)
        .map_err(failed)?
        .collect::<Result<Vec<_>, _>>();
    if let Ok(entries) = &mut entries {
        entries.sort_by_key(fs::DirEntry::file_name);
    }
    entries.map_err(failed)
}

/// Forces the names in `dir` to the disk.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), FileError> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| FileError::io("write", dir, e))
}

fn sync_tree(dir: &Path) -> Result<(), FileError> {
    for entry in list(dir)? {
        let path = entry.path();
        let kind = entry
            .file_type()
            .map_err(|e| FileError::io("read", &path, e))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            File::open(&path)
                .and_then(|f| f.sync_all())
                .map_err(|e| FileError::io("write", &path, e))?;
        }
    }
    sync_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = list(dir).unwrap();
        entries
            .iter()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_bytes(&path, b"old").unwrap();
        let failed = write(&path, |w| {
            w.write_all(b"half of the new")?;
            Err(io::Error::from_raw_os_error(libc::ENOSPC))
        });
        let text = failed.unwrap_err().to_string();
        assert!(
            text.contains("a.txt") && text.contains("free space on that disk"),
            "{text}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[test]
    fn a_file_too_large_for_the_disk_is_refused_before_the_first_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge");
        let failed = write_sized(&path, u64::MAX, |_| unreachable!("nothing may be written"));
        assert!(matches!(
            failed,
            Err(FileError::NoSpace {
                needed_bytes: u64::MAX,
                ..
            })
        ));
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_directory_appears_only_when_its_builder_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("step");
        let failed: Result<(), FileError> = write_dir(&path, 0, |tmp| {
            write_bytes(&tmp.join("one"), b"1")?;
            assert!(!path.exists());
            Err(FileError::Exists {
                path: "made up".into(),
            })
        });
        assert!(failed.is_err());
        assert!(names(dir.path()).is_empty());

        let build = |tmp: &Path| write_bytes(&tmp.join("one"), b"1");
        write_dir(&path, 1, build).unwrap();
        assert_eq!(fs::read(path.join("one")).unwrap(), b"1");
        assert!(matches!(
            write_dir(&path, 0, build),
            Err(FileError::Exists { .. })
        ));
        remove_dir(&path).unwrap();
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn leftovers_of_a_killed_process_are_removed_at_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("pretrain/checkpoints");
        fs::create_dir_all(deep.join(".dokja-tmp-1-0-step-00000001/inner")).unwrap();
        fs::write(deep.join(".dokja-tmp-1-0-step-00000001/inner/x"), b"x").unwrap();
        fs::write(dir.path().join(".dokja-tmp-1-1-recipe.toml"), b"x").unwrap();
        fs::write(dir.path().join("kept"), b"x").unwrap();
        assert_eq!(clean_leftovers(dir.path()).unwrap().len(), 2);
        assert!(names(&deep).is_empty());
        assert_eq!(names(dir.path()), ["kept", "pretrain"]);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let text = write_bytes(Path::new("/no/such/dir/file"), b"x")
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("/no/such/dir") && text.contains("check the path"),
            "{text}"
        );
    }
}
