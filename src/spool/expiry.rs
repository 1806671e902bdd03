//! Messages whose time to live ends.

use std::ops::Bound::{Excluded, Included, Unbounded};

use tokio::time::Instant;

use super::Spool;
use crate::message::MessageId;

/// A message that is to be delivered, and when its time to live ends.
pub type Expiring = (Instant, MessageId);

impl Spool {
    /// At most so many messages whose time to live has ended by `now`, in the order of their ends, from the first
    /// behind `after`.
    pub fn expired(&self, after: Option<Expiring>, now: Instant, most: usize) -> Vec<Expiring> {
        let from = after.map_or(Unbounded, Excluded);
        let to = Included((now, MessageId::MAX));
        if after.is_some_and(|after| after >= (now, MessageId::MAX)) {
            return Vec::new();
        }
        let index = self.engine.core.index();
        index.tally.queued.by_expiry.range((from, to)).take(most).copied().collect()
    }

    /// When the next time to live ends after `now`.
    pub fn next_expiry(&self, now: Instant) -> Option<Instant> {
        let index = self.engine.core.index();
        let after = (Excluded((now, MessageId::MAX)), Unbounded);
        index.tally.queued.by_expiry.range(after).next().map(|(at, _)| *at)
    }
}
