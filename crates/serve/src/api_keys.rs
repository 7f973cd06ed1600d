//! The keys that clients must show, if any.

use axum::http::{HeaderMap, header};
use thiserror::Error;

/// The accepted keys. None: everybody is let in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiKeys(Vec<String>);

/// A list of keys that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ApiKeysError {
    /// It would let nobody in.
    #[error("there is no key in it; write one key a line")]
    Empty,
    /// A header cannot carry it.
    #[error("line {line}: a key consists of visible ASCII characters, without spaces")]
    Unusable {
        /// Counted from 1.
        line: usize,
    },
}

impl ApiKeys {
    /// Lets everybody in.
    pub fn none() -> ApiKeys {
        ApiKeys::default()
    }

    /// Reads one key a line; empty lines and those that begin with `#` are left out.
    ///
    /// # Errors
    /// When there is no key, or one that a header cannot carry.
    pub fn parse(text: &str) -> Result<ApiKeys, ApiKeysError> {
        let mut keys = Vec::new();
        for (line, key) in (1..).zip(text.lines().map(str::trim)) {
            if key.is_empty() || key.starts_with('#') {
                continue;
            }
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(ApiKeysError::Unusable { line });
            }
            keys.push(key.to_owned());
        }
        if keys.is_empty() {
            return Err(ApiKeysError::Empty);
        }
        Ok(ApiKeys(keys))
    }

    /// Whether a request with these headers is let in.
    pub(crate) fn accept(&self, headers: &HeaderMap) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let shown = headers
            .get(header::AUTHORIZATION)
            .map(|value| value.as_bytes());
        let shown = shown.and_then(|value| value.split_at_checked("Bearer ".len()));
        let Some((scheme, shown)) = shown else {
            return false;
        };
        // Every key is compared to its end, so that the time tells nothing about it.
        let matches = self
            .0
            .iter()
            .filter(|key| is_same(key.as_bytes(), shown.trim_ascii()));
        scheme.eq_ignore_ascii_case(b"Bearer ") && matches.count() > 0
    }
}

fn is_same(key: &[u8], shown: &[u8]) -> bool {
    let differing = key.iter().zip(shown).fold(0, |bits, (a, b)| bits | (a ^ b));
    key.len() == shown.len() && differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn a_file_of_keys_is_read_line_by_line() {
        let keys = ApiKeys::parse("# for the lab\nalpha\n\n  beta  \r\n");
        assert_eq!(keys, Ok(ApiKeys(vec!["alpha".into(), "beta".into()])));
        assert_eq!(ApiKeys::parse("# none\n"), Err(ApiKeysError::Empty));
        assert_eq!(
            ApiKeys::parse("a\nb c\n"),
            Err(ApiKeysError::Unusable { line: 2 })
        );
    }

    #[test]
    fn only_a_whole_key_lets_in() {
        let keys = ApiKeys::parse("alpha\nbeta").unwrap();
        let accept = |value: &str| {
            let value = HeaderValue::from_str(value).unwrap();
            keys.accept(&HeaderMap::from_iter([(header::AUTHORIZATION, value)]))
        };
        assert!(accept("Bearer alpha") && accept("bearer beta"));
        for wrong in [
            "Bearer alph",
            "Bearer alphax",
            "Bearer ",
            "alpha",
            "Basic alpha",
        ] {
            assert!(!accept(wrong), "{wrong}");
        }
        assert!(!keys.accept(&HeaderMap::new()));
        assert!(ApiKeys::none().accept(&HeaderMap::new()));
    }
}
