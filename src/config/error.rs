//! What is wrong with a configuration, and how to put it right.

use std::fmt;

use super::origin::Origin;

/// One thing wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where the wrong value came from.
    pub origin: Origin,
    /// The key as in the file, such as `publish.wait`; empty where a whole file is meant.
    pub key: String,
    /// The value as given, without secrets; `None` where there is none.
    pub value: Option<String>,
    /// What is wrong with it.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for ConfigError {
    /// Two lines: what is wrong and where, then what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origin != Origin::Default {
            write!(f, "{}: ", self.origin)?;
        }
        match &self.value {
            Some(value) if !self.key.is_empty() => write!(f, "{} = {value}: ", self.key)?,
            None if !self.key.is_empty() => write!(f, "{}: ", self.key)?,
            _ => {}
        }
        write!(f, "{}\n    {}", self.problem, self.remedy)
    }
}

/// Everything wrong with a configuration; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub(super) Vec<ConfigError>);

impl ConfigErrors {
    /// Each of them: unreadable files and unknown keys first, then key by key as documented.
    pub fn iter(&self) -> std::slice::Iter<'_, ConfigError> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a ConfigErrors {
    type Item = &'a ConfigError;
    type IntoIter = std::slice::Iter<'a, ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        let plural = if count == 1 { "mistake" } else { "mistakes" };
        write!(f, "{count} {plural} in the configuration")?;
        self.0.iter().try_for_each(|error| write!(f, "\n{error}"))
    }
}

/// What a value's reader found wrong, before the key and the origin are put to it.
#[derive(Debug)]
pub(super) struct ValueError {
    pub(super) problem: String,
    pub(super) remedy: String,
}

impl ValueError {
    pub(super) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: remedy.into() }
    }
}
