//! Where a message is between its tries, and which are held.

use std::collections::BTreeSet;
use std::ops::Bound;

use tokio::time::Instant;

use super::lane::RetryItem;
use super::signal::HoldReason;
use crate::message::{self, MessageId};
use crate::spool::HeldCounts;

/// What is to wait in a lane, and until when.
pub(super) type Push = (message::Lane, RetryItem, Instant);

#[derive(Debug, Default)]
pub(super) enum Position {
    /// In no lane.
    #[default]
    NoLane,
    /// Queued, and in no lane.
    Held(HoldReason),
    /// In its lane. `newer`: what a later push knows of it.
    InLane { newer: Option<RetryItem> },
    /// Handed out, or a fresh call for it is under way. `next`: it was pushed meanwhile.
    UnderWay { next: Option<Box<Push>> },
}

/// Messages whose position is [`Position::Held`]: each change of a position goes through here.
#[derive(Debug, Default)]
pub(super) struct HeldMessages {
    ids: BTreeSet<MessageId>,
    counts: HeldCounts,
}

impl HeldMessages {
    /// Gives a message another position, and returns the one before.
    pub(super) fn moves(&mut self, id: MessageId, from: &mut Position, to: Position) -> Position {
        let before = std::mem::replace(from, to);
        if let Position::Held(reason) = before {
            self.ids.remove(&id);
            *self.count(reason) -= 1;
        }
        if let Position::Held(reason) = *from {
            self.ids.insert(id);
            *self.count(reason) += 1;
        }
        before
    }

    fn count(&mut self, reason: HoldReason) -> &mut u64 {
        match reason {
            HoldReason::NotAllowed => &mut self.counts.not_allowed,
            HoldReason::Unverified => &mut self.counts.unverified,
        }
    }

    pub(super) fn counts(&self) -> HeldCounts {
        self.counts
    }

    pub(super) fn contains(&self, id: MessageId) -> bool {
        self.ids.contains(&id)
    }

    /// At most so many, in the order of their ids, from behind this one.
    pub(super) fn page(&self, after: Option<MessageId>, most: usize) -> Vec<MessageId> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.ids.range((from, Bound::Unbounded)).take(most).copied().collect()
    }
}
