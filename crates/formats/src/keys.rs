//! The signing key of a ledger: Ed25519 (RFC 8032), made at first use, kept in a file of mode 0600.
//!
//! The file has one line, `dokja-ed25519-secret:` and 64 hexadecimal digits. Who has it can sign as
//! its owner, so a file that others may read is refused. The library is told where it lies.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use thiserror::Error;

use crate::atomic;
use crate::error::FileError;

const PREFIX: &str = "dokja-ed25519-secret:";

/// The key could not be read or made.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file system failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Others may read it.
    #[error(
        "the signing key {} may be read by others (mode {mode:o}); run: chmod 600 {}",
        path.display(),
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a key.
    #[error(
        "{} is no signing key (one line, {PREFIX} and 64 hexadecimal digits); name another file, \
         or move this one away and a new key is made",
        path.display()
    )]
    Invalid {
        /// The file.
        path: PathBuf,
    },
    /// The operating system gives no random numbers.
    #[error("cannot make a signing key: the system's random numbers fail: {cause}")]
    Entropy {
        /// Its answer.
        cause: getrandom::Error,
    },
}

/// A secret key. Its `Debug` form shows the public half only.
#[derive(Clone)]
pub struct Key {
    secret: SigningKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.public_hex())
    }
}

impl Key {
    /// Reads the key at `path`, or makes one there.
    pub fn load_or_create(path: &Path) -> Result<Key, KeyError> {
        match Key::load(path) {
            Err(KeyError::File(e)) if e.is_not_found() => Key::create(path),
            other => other,
        }
    }

    /// Reads the key at `path`.
    pub fn load(path: &Path) -> Result<Key, KeyError> {
        let failed = |e| FileError::io("read the signing key", path, e);
        let found = fs::metadata(path).map_err(failed)?;
        let mode = found.permissions().mode() & 0o777;
        let invalid = || KeyError::Invalid {
            path: path.to_path_buf(),
        };
        if !found.is_file() || found.len() > 1024 {
            return Err(invalid());
        }
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed {
                path: path.to_path_buf(),
                mode,
            });
        }
        let text = fs::read(path).map_err(failed)?;
        let digits = text
            .trim_ascii_end()
            .strip_prefix(PREFIX.as_bytes())
            .ok_or_else(invalid)?;
        let mut secret = [0u8; 32];
        hex::decode_to_slice(digits, &mut secret).map_err(|_| invalid())?;
        Ok(Key::from_secret(secret))
    }

    /// The key of these secret bytes.
    pub fn from_secret(secret: [u8; 32]) -> Key {
        Key {
            secret: SigningKey::from_bytes(&secret),
        }
    }

    fn create(path: &Path) -> Result<Key, KeyError> {
        let mut secret = [0u8; 32];
        getrandom::getrandom(&mut secret).map_err(|cause| KeyError::Entropy { cause })?;
        let dir = atomic::parent(path);
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir);
        made.map_err(|e| FileError::io("create", dir, e))?;

        // A link to a finished file, not a rename: it fails where another process was first, whose
        // key must stay.
        let failed = |e| FileError::io("write the signing key", path, e);
        let draft = dir.join(format!(
            "{}key-{}",
            atomic::TEMPORARY_PREFIX,
            std::process::id()
        ));
        let mut open = fs::OpenOptions::new();
        let _ = fs::remove_file(&draft); // of a killed process that had the same number
        let mut file = open
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)
            .map_err(failed)?;
        let text = format!("{PREFIX}{}\n", hex::encode(secret));
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all());
        let linked = written.and_then(|()| fs::hard_link(&draft, path));
        let _ = fs::remove_file(&draft); // a second name of the key, or nothing
        match linked {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Key::load(path),
            other => other.map_err(failed)?,
        }
        atomic::sync_dir(dir)?;
        Ok(Key::from_secret(secret))
    }

    /// The public half, as 64 hexadecimal digits.
    pub fn public_hex(&self) -> String {
        hex::encode(self.secret.verifying_key().as_bytes())
    }

    /// The signature of `message`, as 128 hexadecimal digits.
    pub fn sign_hex(&self, message: &[u8]) -> String {
        hex::encode(self.secret.sign(message).to_bytes())
    }
}

/// True when `signature` of `message` was made with the secret half of `public`; both in lower-case
/// hexadecimal digits, the only spelling accepted.
pub fn is_signed_by(public: &str, message: &[u8], signature: &str) -> bool {
    let (mut key, mut sig) = ([0u8; 32], [0u8; 64]);
    if public
        .chars()
        .chain(signature.chars())
        .any(|c| c.is_ascii_uppercase())
        || hex::decode_to_slice(public, &mut key).is_err()
        || hex::decode_to_slice(signature, &mut sig).is_err()
    {
        return false;
    }
    // Strict: keys of small order and signatures with a second form are refused.
    VerifyingKey::from_bytes(&key).is_ok_and(|key| {
        key.verify_strict(message, &Signature::from_bytes(&sig))
            .is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_those_of_the_standard() {
        // RFC 8032, section 7.1, test 2.
        let mut secret = [0u8; 32];
        let text = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb";
        hex::decode_to_slice(text, &mut secret).unwrap();
        let key = Key::from_secret(secret);
        let public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
        assert_eq!(key.public_hex(), public);
        let signature = "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
                         085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00";
        assert_eq!(key.sign_hex(&[0x72]), signature);
        assert!(is_signed_by(public, &[0x72], signature));
        assert!(!is_signed_by(public, &[0x73], signature));
        assert!(!is_signed_by(public, &[0x72], &signature.to_uppercase()));
        assert!(!is_signed_by("zz", &[0x72], signature));
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/dir/key");
        let key = Key::load_or_create(&path).unwrap();
        assert_eq!(
            Key::load_or_create(&path).unwrap().public_hex(),
            key.public_hex()
        );
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let text = Key::load_or_create(&path).unwrap_err().to_string();
        assert!(text.contains("chmod 600"), "{text}");
    }

    #[test]
    fn a_file_that_is_no_key_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "something else").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(
            Key::load_or_create(&path),
            Err(KeyError::Invalid { .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), b"something else");
    }

    #[test]
    fn the_secret_is_not_shown() {
        let key = Key::from_secret([7; 32]);
        assert!(!format!("{key:?}").contains("0707"));
    }
}
