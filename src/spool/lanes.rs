//! What each lane holds of the spool, and which lanes are in use.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Share;
use crate::message::Lane;

/// A lane is in use for so long after a message for it came in.
const IN_USE: Duration = Duration::from_hours(1);

/// The lanes that hold something, and the two that were published to last: those are enough to know
/// of any lane whether another one is in use.
#[derive(Debug, Default)]
pub(super) struct LaneShares {
    /// Queued messages, dead letters, and what is being written.
    held: BTreeMap<Lane, Share>,
    last: Option<(Lane, Instant)>,
    last_other: Option<(Lane, Instant)>,
}

impl LaneShares {
    pub(super) fn add(&mut self, lane: &Lane, share: Share) {
        match self.held.get_mut(lane) {
            Some(held) => *held += share,
            None => drop(self.held.insert(lane.clone(), share)),
        }
    }

    pub(super) fn remove(&mut self, lane: &Lane, share: Share) {
        let Some(held) = self.held.get_mut(lane) else { return };
        *held -= share;
        if held.messages == 0 {
            self.held.remove(lane);
        }
    }

    pub(super) fn held(&self, lane: &Lane) -> Share {
        self.held.get(lane).copied().unwrap_or_default()
    }

    /// A message for this lane has come in.
    pub(super) fn published(&mut self, lane: &Lane, now: Instant) {
        match &mut self.last {
            Some((last, at)) if last == lane => *at = now,
            last => self.last_other = last.replace((lane.clone(), now)),
        }
    }

    /// Whether another lane than this one is in use.
    pub(super) fn others_in_use(&self, lane: &Lane, now: Instant) -> bool {
        let others = self.held.len() - usize::from(self.held.contains_key(lane));
        let recent = |(other, at): &(Lane, Instant)| {
            other != lane && now.saturating_duration_since(*at) < IN_USE
        };
        others > 0 || [&self.last, &self.last_other].into_iter().flatten().any(recent)
    }
}
