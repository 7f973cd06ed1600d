//! The suites by name, and the settings of each: `key=value`, with a default or a reason to ask for one.

use std::collections::BTreeMap;
use std::str::FromStr;

use thiserror::Error;

/// What a suite is, for people who choose one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuiteInfo {
    /// As `--suite` takes it.
    pub name: &'static str,
    /// Scores of different versions are not comparable.
    pub version: u32,
    /// In a sentence.
    pub about: &'static str,
    /// What can be set.
    pub settings: &'static [Setting],
}

/// One key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As `--set` takes it.
    pub key: &'static str,
    /// Where it is not given; `None`: it must be given.
    pub default: Option<&'static str>,
    /// In a sentence.
    pub about: &'static str,
}

/// Every suite.
pub const SUITES: [SuiteInfo; 3] = [
    crate::builtin::INFO,
    crate::bits_per_byte::INFO,
    crate::drift::INFO,
];

/// The suite of this name.
///
/// # Errors
/// Names those that there are.
pub fn find(name: &str) -> Result<&'static SuiteInfo, SettingError> {
    SUITES
        .iter()
        .find(|suite| suite.name == name)
        .ok_or_else(|| SettingError::NoSuite {
            name: name.to_owned(),
            known: SUITES.map(|suite| suite.name).join(", "),
        })
}

/// A suite or a setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SettingError {
    /// No suite of this name.
    #[error("there is no suite {name:?}; there are: {known}")]
    NoSuite {
        /// As given.
        name: String,
        /// All names.
        known: String,
    },
    /// Not `key=value`.
    #[error("--set {text:?} is not of the form key=value")]
    Form {
        /// As given.
        text: String,
    },
    /// A key that the suite does not have.
    #[error("suite {suite} has no setting {key:?}; it has: {known}")]
    Unknown {
        /// The suite.
        suite: &'static str,
        /// As given.
        key: String,
        /// All keys.
        known: String,
    },
    /// A key without a default that was not given.
    #[error("suite {suite} needs --set {key}=...: {about}")]
    Missing {
        /// The suite.
        suite: &'static str,
        /// The key.
        key: &'static str,
        /// What it means.
        about: &'static str,
    },
    /// A value out of its range.
    #[error("{key}={value}: {allowed}")]
    Value {
        /// The key.
        key: &'static str,
        /// As given.
        value: String,
        /// What would have been accepted.
        allowed: String,
    },
}

/// The settings of one run of a suite, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    suite: &'static SuiteInfo,
    values: BTreeMap<String, String>,
}

impl Settings {
    /// From `key=value` texts; a later one replaces an earlier one.
    ///
    /// # Errors
    /// For a text without `=`, an unknown key, or a missing one.
    pub fn new<S: AsRef<str>>(
        suite: &'static SuiteInfo,
        given: &[S],
    ) -> Result<Settings, SettingError> {
        let mut values = BTreeMap::new();
        for text in given {
            let text = text.as_ref();
            let Some((key, value)) = text.split_once('=') else {
                return Err(SettingError::Form {
                    text: text.to_owned(),
                });
            };
            if !suite.settings.iter().any(|setting| setting.key == key) {
                let keys: Vec<&str> = suite.settings.iter().map(|s| s.key).collect();
                return Err(SettingError::Unknown {
                    suite: suite.name,
                    key: key.to_owned(),
                    known: keys.join(", "),
                });
            }
            values.insert(key.to_owned(), value.to_owned());
        }
        for setting in suite.settings {
            if !values.contains_key(setting.key) {
                let default = setting.default.ok_or(SettingError::Missing {
                    suite: suite.name,
                    key: setting.key,
                    about: setting.about,
                })?;
                values.insert(setting.key.to_owned(), default.to_owned());
            }
        }
        Ok(Settings { suite, values })
    }

    /// The suite they are of.
    pub fn suite(&self) -> &'static SuiteInfo {
        self.suite
    }

    /// All values by key.
    pub fn values(&self) -> &BTreeMap<String, String> {
        &self.values
    }

    pub(crate) fn text(&self, key: &'static str) -> &str {
        &self.values[key]
    }

    /// The value as a `T` for which `is_allowed` holds.
    pub(crate) fn value<T: FromStr>(
        &self,
        key: &'static str,
        allowed: &str,
        is_allowed: impl Fn(&T) -> bool,
    ) -> Result<T, SettingError> {
        let text = self.text(key);
        text.parse()
            .ok()
            .filter(is_allowed)
            .ok_or_else(|| self.refused(key, format!("it takes {allowed}")))
    }

    pub(crate) fn refused(&self, key: &'static str, allowed: String) -> SettingError {
        SettingError::Value {
            key,
            value: self.text(key).to_owned(),
            allowed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_known_and_has_a_value() {
        let builtin = find("builtin").unwrap();
        let told = |given: &[&str]| Settings::new(builtin, given).map_err(|e| e.to_string());
        let settings = told(&["per_area=3", "per_area=5"]).unwrap();
        assert_eq!(settings.text("per_area"), "5");
        assert_eq!(settings.values().len(), builtin.settings.len());
        assert!(told(&["per_area"]).unwrap_err().contains("key=value"));
        assert!(told(&["seeds=1"]).unwrap_err().contains("it has: areas"));
        let files = Settings::new(find("bits-per-byte").unwrap(), &[] as &[&str]);
        assert!(files.unwrap_err().to_string().contains("--set files="));
        let none = find("mmlu").unwrap_err().to_string();
        assert!(none.contains("builtin, bits-per-byte"), "{none}");
    }
}
