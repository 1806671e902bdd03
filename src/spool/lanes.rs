//! What each lane and each caller holds of the spool, and which lanes are in use.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Share;
use crate::message::Lane;

/// A lane is in use for so long after a message for it came in.
const IN_USE: Duration = Duration::from_hours(1);

/// Queued messages, dead letters and what is being written, by whose they are.
#[derive(Debug)]
pub(super) struct HeldShares<K>(BTreeMap<K, Share>);

impl<K> Default for HeldShares<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> HeldShares<K> {
    pub(super) fn add(&mut self, whose: &K, share: Share) {
        match self.0.get_mut(whose) {
            Some(held) => *held += share,
            None => drop(self.0.insert(whose.clone(), share)),
        }
    }

    pub(super) fn remove(&mut self, whose: &K, share: Share) {
        let Some(held) = self.0.get_mut(whose) else { return };
        *held -= share;
        if held.messages == 0 {
            self.0.remove(whose);
        }
    }

    pub(super) fn held(&self, whose: &K) -> Share {
        self.0.get(whose).copied().unwrap_or_default()
    }
}

/// The lanes that hold something, and the two that were published to last: those are enough to know
/// of any lane whether another one is in use.
#[derive(Debug, Default)]
pub(super) struct LaneShares {
    pub(super) held: HeldShares<Lane>,
    last: Option<(Lane, Instant)>,
    last_other: Option<(Lane, Instant)>,
}

impl LaneShares {
    /// A message for this lane has come in.
    pub(super) fn published(&mut self, lane: &Lane, now: Instant) {
        match &mut self.last {
            Some((last, at)) if last == lane => *at = now,
            last => self.last_other = last.replace((lane.clone(), now)),
        }
    }

    /// Whether another lane than this one is in use.
    pub(super) fn others_in_use(&self, lane: &Lane, now: Instant) -> bool {
        let others = self.held.0.len() - usize::from(self.held.0.contains_key(lane));
        let recent = |(other, at): &(Lane, Instant)| {
            other != lane && now.saturating_duration_since(*at) < IN_USE
        };
        others > 0 || [&self.last, &self.last_other].into_iter().flatten().any(recent)
    }
}
