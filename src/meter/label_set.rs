//! Label values that come from outside: the first so many have series of their own, the rest
//! share one.

use std::collections::HashSet;
use std::sync::Arc;

/// What all later values are called.
pub const OTHER: &str = "other";
/// No topic or code is longer.
const MAX_LENGTH: usize = 64;

#[derive(Debug)]
pub(super) struct LabelSet {
    known: HashSet<Arc<str>>,
    other: Arc<str>,
    max: usize,
}

impl LabelSet {
    pub(super) fn new(max: usize) -> Self {
        Self { known: HashSet::new(), other: OTHER.into(), max }
    }

    pub(super) fn get(&mut self, value: &str) -> Arc<str> {
        if value == OTHER {
            return Arc::clone(&self.other);
        }
        if let Some(known) = self.known.get(value) {
            return Arc::clone(known);
        }
        let plain = value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.%".contains(&b));
        if self.known.len() >= self.max || value.is_empty() || value.len() > MAX_LENGTH || !plain {
            return Arc::clone(&self.other);
        }
        let value = Arc::<str>::from(value);
        self.known.insert(Arc::clone(&value));
        value
    }
}
