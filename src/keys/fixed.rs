//! A key that is known already.

use super::error::KeyError;
use super::key::Key;
use super::source::{Pace, Source};

/// A lasting key that a profile holds, to be taken once.
pub(super) struct FixedKey(pub(super) Option<Key>);

impl Source for FixedKey {
    fn as_str(&self) -> &'static str {
        "fixed"
    }

    fn place(&self) -> String {
        String::new()
    }

    fn pace(&self) -> Pace {
        Pace::BeforeExpiry
    }

    async fn load(&mut self) -> Result<Key, KeyError> {
        self.0.take().ok_or(KeyError::NotLoaded)
    }
}
