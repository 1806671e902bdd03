//! What there is of each kind of message, and in which order they end or give way. Changed with each
//! entry: nothing here is counted by looking at all.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Share;
use super::entry::{Entry, Stage};
use super::lanes::{HeldShares, LaneShares};
use crate::message::{CallerName, MessageId};

/// Counts and orders of the entries.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) queued: QueuedTally,
    pub(super) dead: Ended,
    pub(super) receipts: Ended,
    /// How long the key of a message with a claim is taken after its end.
    pub(super) keep_claims: Duration,
    /// What is being written.
    pub(super) reserved: Share,
    pub(super) lanes: LaneShares,
    pub(super) callers: HeldShares<CallerName>,
}

/// Messages that are to be delivered.
#[derive(Debug, Default)]
pub(super) struct QueuedTally {
    pub(super) share: Share,
    pub(super) by_age: BTreeSet<(Timestamp, MessageId)>,
    /// By the end of their time to live; those that have one.
    pub(super) by_expiry: BTreeSet<(Instant, MessageId)>,
}

/// Messages that have ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    pub(super) share: Share,
    /// By the moment of their end.
    pub(super) by_end: BTreeSet<(Timestamp, MessageId)>,
    /// By the moment from which no key needs them: in this order they give way to new messages.
    pub(super) by_key: BTreeSet<(Timestamp, MessageId)>,
}

impl Ended {
    fn add(&mut self, id: MessageId, at: Timestamp, key_until: Timestamp, share: Share) {
        self.share += share;
        self.by_end.insert((at, id));
        self.by_key.insert((key_until, id));
    }

    fn remove(&mut self, id: MessageId, at: Timestamp, key_until: Timestamp, share: Share) {
        self.share -= share;
        self.by_end.remove(&(at, id));
        self.by_key.remove(&(key_until, id));
    }
}

impl Tally {
    pub(super) fn add(&mut self, id: MessageId, entry: &Entry) {
        let (share, at) = (entry.share(), entry.ended_at());
        match &entry.stage {
            Stage::Queued { .. } => {
                self.queued.share += share;
                self.queued.by_age.insert((entry.kept_at, id));
                self.queued.by_expiry.extend(entry.expiry.as_ref().map(|expiry| (expiry.at(), id)));
            }
            Stage::Dead(_) => self.dead.add(id, at, self.key_until(entry, at), share),
            Stage::Delivered(_) | Stage::Dropped(_) | Stage::Expired(_) => {
                return self.receipts.add(id, at, self.key_until(entry, at), share);
            }
        }
        self.hold(entry);
    }

    pub(super) fn remove(&mut self, id: MessageId, entry: &Entry) {
        let (share, at) = (entry.share(), entry.ended_at());
        match &entry.stage {
            Stage::Queued { .. } => {
                self.queued.share -= share;
                self.queued.by_age.remove(&(entry.kept_at, id));
                if let Some(expiry) = &entry.expiry {
                    self.queued.by_expiry.remove(&(expiry.at(), id));
                }
            }
            Stage::Dead(_) => self.dead.remove(id, at, self.key_until(entry, at), share),
            Stage::Delivered(_) | Stage::Dropped(_) | Stage::Expired(_) => {
                return self.receipts.remove(id, at, self.key_until(entry, at), share);
            }
        }
        self.release(entry);
    }

    fn hold(&mut self, entry: &Entry) {
        let (destination, share) = (&entry.destination, entry.share());
        self.lanes.held.add(&destination.lane, share);
        if let Some(caller) = &destination.caller {
            self.callers.add(caller, share);
        }
    }

    fn release(&mut self, entry: &Entry) {
        let (destination, share) = (&entry.destination, entry.share());
        self.lanes.held.remove(&destination.lane, share);
        if let Some(caller) = &destination.caller {
            self.callers.remove(caller, share);
        }
    }

    /// Holds room for a new message until it is written, or refused.
    pub(super) fn reserve(&mut self, entry: &Entry) {
        self.reserved += entry.share();
        self.hold(entry);
    }

    pub(super) fn unreserve(&mut self, entry: &Entry) {
        self.reserved -= entry.share();
        self.release(entry);
    }

    /// All that is kept or being written.
    pub(super) fn total(&self) -> Share {
        self.queued.share + self.dead.share + self.receipts.share + self.reserved
    }

    /// Until when the next request with the key of a message that ended at this moment is to be
    /// answered from it.
    fn key_until(&self, entry: &Entry, at: Timestamp) -> Timestamp {
        let keep = if entry.claim.is_some() { self.keep_claims } else { Duration::ZERO };
        at.checked_add(keep).unwrap_or(Timestamp::MAX)
    }
}
