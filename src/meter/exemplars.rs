//! Exemplars: for each bucket of the publish durations, the last sampled request in it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::labels::Published;
use crate::message::SpanContext;

/// A request that stands for others of its bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exemplar {
    /// Its span.
    pub span: SpanContext,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// When it was answered.
    pub at: Timestamp,
}

/// By outcome and bucket: as many as there are buckets at most.
#[derive(Debug, Default)]
pub(super) struct Exemplars(Mutex<BTreeMap<(usize, usize), Exemplar>>);

impl Exemplars {
    /// A sampled request was answered now. `bounds`: of the buckets, ascending.
    pub(super) fn observe(
        &self,
        outcome: Published,
        took: Duration,
        span: SpanContext,
        bounds: impl Iterator<Item = f64>,
    ) {
        let seconds = took.as_secs_f64();
        let bucket = bounds.take_while(|bound| *bound < seconds).count();
        let exemplar = Exemplar { span, seconds, at: Timestamp::now() };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert((outcome as usize, bucket), exemplar);
    }

    /// The one in the bucket at this place.
    pub(super) fn get(&self, outcome: Published, bucket: usize) -> Option<Exemplar> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&(outcome as usize, bucket)).copied()
    }
}
