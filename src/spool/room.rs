//! Room in the spool: what gives way to a new message, and how much one topic may take.
//!
//! To a new message receipts give way first, then dead letters, of which so many stay as half of the
//! spool holds. Queued messages never do.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;

use super::entry::Entry;
use super::index::Index;
use super::record::{Change, DropReason};
use super::{Affected, Effect, KeepError, Noted, Share, Spool, meta};
use crate::fair_queue::leaves_room;
use crate::message::{Lane, MessageId};

/// The most dead letters that are looked at for one new message.
const LOOKED_AT: usize = 1_000;

/// Dead letters that are dropped for age between two waits for the store.
const PAGE: usize = 500;

/// Which bounds hold for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    /// That of the spool.
    Spool,
    /// That of the spool, and the shares of its topic and its caller.
    SpoolAndShares,
}

/// What gives way to a new message.
#[derive(Debug)]
struct GivesWay {
    receipts: Vec<MessageId>,
    dead: Vec<(MessageId, Change)>,
    room: Room,
}

/// Whether there is room for a new message once all of that has given way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Now,
    /// The spool is far over its bounds, as when they were lowered: more gives way for each new message.
    Later,
}

impl Spool {
    /// Makes room for a new message, or refuses it.
    pub(super) fn admit(
        &self,
        index: &mut Index,
        entry: &Entry,
        bound: Bound,
    ) -> Result<(), KeepError> {
        let (max, now) = (self.max(), Timestamp::now());
        let gives_way = index.gives_way(entry.share(), max, now).ok_or(KeepError::Full)?;
        if gives_way.room == Room::Later {
            self.give_way(index, gives_way, now);
            return Err(KeepError::Full);
        }
        if bound == Bound::SpoolAndShares {
            if !self.lets_caller_take(index, entry) {
                return Err(KeepError::CallerShare);
            }
            if !index.lets_take(&entry.destination.lane, max) {
                return Err(KeepError::TopicShare);
            }
        }
        self.give_way(index, gives_way, now);
        Ok(())
    }

    /// Whether the caller of a message holds less than its part of the spool.
    fn lets_caller_take(&self, index: &Index, entry: &Entry) -> bool {
        let Some(caller) = &entry.destination.caller else { return true };
        let parts = &self.engine.core.options.caller_shares;
        let Some(part) = parts.get(caller) else { return true };
        let held = index.tally.callers.held(caller) + entry.share();
        held.fits(self.max().part(*part))
    }

    fn give_way(&self, index: &mut Index, gives_way: GivesWay, now: Timestamp) {
        self.evict(index, gives_way.receipts);
        for (id, change) in gives_way.dead {
            // What the store does not take now is written before the new message.
            drop(self.note_in(index, id, &change));
            index.given_up.add(id, DropReason::Room, now);
        }
    }

    /// A receipt is not refused: others give way until there is room for all, but not this one.
    pub(super) fn trim_receipts(&self, index: &mut Index, but: MessageId) {
        let mut over = index.tally.total();
        let (max, mut gone) = (self.max(), Vec::new());
        for (id, share) in index.spare_receipts(Timestamp::now()).filter(|(id, _)| *id != but) {
            if over.fits(max) {
                break;
            }
            over -= share;
            gone.push(id);
        }
        self.evict(index, gone);
    }

    fn evict(&self, index: &mut Index, receipts: Vec<MessageId>) {
        for id in receipts {
            index.remove(id);
            self.engine.core.queue().delete(id);
        }
    }

    pub(super) fn max(&self) -> Share {
        let options = &self.engine.core.options;
        let messages = options.max_messages.min(options.max_in_memory);
        Share { messages: messages as u64, bytes: options.max_bytes }
    }

    /// A message for this lane has come in: its room is not for others alone.
    pub fn published(&self, lane: &Lane) {
        self.engine.core.index().tally.lanes.published(lane, Instant::now());
    }

    /// Drops dead letters that ended at least `keep` ago, oldest first, a page at most. A receipt stays
    /// of each. Returns which, once that is durable.
    pub async fn drop_dead_since(&self, keep: Duration, now: Timestamp) -> Affected {
        let noted: Vec<(MessageId, Noted)> = {
            let mut index = self.engine.core.index();
            let due: Vec<_> = index.dead_since(keep, now).take(PAGE).collect();
            let change = Change::Dropped { at: now, doubt: false };
            due.into_iter().map(|id| (id, self.note_in(&mut index, id, &change))).collect()
        };
        let mut dropped = Affected::default();
        if let Some((last, _)) = noted.last() {
            self.trim_receipts(&mut self.engine.core.index(), *last);
            self.engine.wake();
        }
        for (id, noted) in noted {
            if noted.await == Effect::Made {
                self.engine.core.index().given_up.add(id, DropReason::Age, now);
                dropped.add(id);
            }
        }
        dropped
    }

    /// Dead letters that have given way to new messages since the last call.
    pub fn take_given_way(&self) -> Affected {
        std::mem::take(&mut self.engine.core.index().given_up.unrecorded)
    }
}

impl Index {
    /// What is to give way so that one more message fits; `None`: all that may would not be enough, and
    /// nothing does.
    fn gives_way(&self, more: Share, max: Share, now: Timestamp) -> Option<GivesWay> {
        let (mut used, mut dead) = (self.tally.total() + more, self.tally.dead.share);
        let kept_dead = max.half();
        let at_most = if dead.fits(kept_dead) { Share::default() } else { dead };
        if !(used - self.tally.receipts.share - at_most).fits(max) {
            return None;
        }
        let is_over = !self.tally.total().fits(max);
        let mut gives_way = GivesWay { receipts: Vec::new(), dead: Vec::new(), room: Room::Now };
        for (id, share) in self.spare_receipts(now) {
            if used.fits(max) {
                break;
            }
            used -= share;
            gives_way.receipts.push(id);
        }
        for (key_until, id) in self.tally.dead.by_key.iter().take(LOOKED_AT) {
            if used.fits(max) {
                break;
            }
            let entry = self.get(*id)?;
            let (share, key_is_free) = (entry.share(), *key_until <= now);
            let change = if used.messages > max.messages {
                // Its place is needed: no receipt stays. The keys of all that follow are taken.
                if !key_is_free || dead.messages <= kept_dead.messages {
                    return None;
                }
                used -= share;
                Change::Forgotten
            } else if dead.bytes <= kept_dead.bytes {
                return None;
            } else {
                let left = receipt_of(*id, entry, now);
                if left.bytes < share.bytes {
                    used = used + left - share;
                    Change::Dropped { at: now, doubt: false }
                } else if key_is_free {
                    used -= share;
                    Change::Forgotten
                } else {
                    continue;
                }
            };
            dead -= share;
            gives_way.dead.push((*id, change));
        }
        if !used.fits(max) {
            gives_way.room = Room::Later;
        }
        let more =
            is_over && self.tally.dead.by_key.len() > LOOKED_AT && !gives_way.dead.is_empty();
        (used.fits(max) || more).then_some(gives_way)
    }

    /// Receipts that no key needs, oldest first.
    fn spare_receipts(&self, now: Timestamp) -> impl Iterator<Item = (MessageId, Share)> {
        let spare = self.tally.receipts.by_key.iter().take_while(move |(from, _)| *from <= now);
        spare.filter_map(|(_, id)| Some((*id, self.get(*id)?.share())))
    }

    /// Whether a lane may take more, while others are in use. What gives way is free.
    fn lets_take(&self, lane: &Lane, max: Share) -> bool {
        let tally = &self.tally;
        if !tally.lanes.others_in_use(lane, Instant::now()) {
            return true;
        }
        let taken = tally.queued.share + tally.reserved + tally.dead.share.min(max.half());
        let (free, held) = (max.minus(taken), tally.lanes.held.held(lane));
        leaves_room(held.messages, free.messages) && leaves_room(held.bytes, free.bytes)
    }
}

/// What stays of a dead letter that is dropped.
fn receipt_of(id: MessageId, entry: &Entry, now: Timestamp) -> Share {
    let mut dropped = entry.clone();
    dropped.apply(&Change::Dropped { at: now, doubt: false });
    Share { messages: 1, bytes: meta::whole(id, &dropped, Bytes::new()).len().into() }
}
