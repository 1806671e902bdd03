//! What is known of every message without touching the disk.
//!
//! Callers see a change here as soon as it is noted. Where its bytes lie, [`Location`], follows when it
//! is durable: until then what it replaces must not be given up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::destination::Destinations;
use super::entry::{Content, Entry, Location};
use super::record::{Change, DropReason};
use super::tally::Tally;
use super::{Affected, HeldCounts, KeepError, RefusedKeeps, Share, Usage};
use crate::message::MessageId;

/// What entries need of a segment of the log. Its file is known to the disk alone.
#[derive(Debug, Default)]
struct Occupancy {
    /// Bytes in it that are still needed.
    live: u64,
    /// Messages whose records in it were needed when they were written.
    ids: Vec<MessageId>,
}

/// Dead letters that were dropped by themselves.
#[derive(Debug, Default)]
pub(super) struct GivenUp {
    counts: [u64; DropReason::ALL.len()],
    last_for_room: Option<Timestamp>,
    /// Those for room that are not in the audit log yet.
    pub(super) unrecorded: Affected,
}

impl GivenUp {
    /// One more. What was dropped for age, its caller records.
    pub(super) fn add(&mut self, id: MessageId, reason: DropReason, now: Timestamp) {
        self.counts[reason as usize] += 1;
        if reason == DropReason::Room {
            self.last_for_room = Some(now);
            self.unrecorded.add(id);
        }
    }
}

/// All messages.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: BTreeMap<MessageId, Entry>,
    pub(super) tally: Tally,
    /// By segment; `None` where the store has none.
    segments: Option<BTreeMap<u32, Occupancy>>,
    pub(super) destinations: Destinations,
    pub(super) damaged: u64,
    pub(super) given_up: GivenUp,
    pub(super) refused: RefusedKeeps,
    pub(super) failure: Option<Arc<str>>,
}

impl Index {
    /// An index of records that lie in segments.
    pub(super) fn of_segments() -> Self {
        Self { segments: Some(BTreeMap::new()), ..Self::default() }
    }

    /// Bytes of a segment that are still needed.
    pub(super) fn live_bytes(&self, segment: u32) -> u64 {
        self.segments.as_ref().and_then(|all| all.get(&segment)).map_or(0, |found| found.live)
    }

    /// Bytes of all segments that are still needed.
    pub(super) fn all_live_bytes(&self) -> u64 {
        self.segments.iter().flat_map(BTreeMap::values).map(|segment| segment.live).sum()
    }

    /// Messages whose record lies in the segment, until they have about so many bytes.
    pub(super) fn entries_in(&mut self, segment: u32, bytes: u64) -> Vec<(MessageId, Entry)> {
        let Some(occupancy) = self.segments.as_mut().and_then(|all| all.get_mut(&segment)) else {
            return Vec::new();
        };
        let mut found = BTreeMap::new();
        let mut size = 0;
        while size < bytes
            && let Some(id) = occupancy.ids.pop()
        {
            let entry = self.entries.get(&id).filter(|entry| entry.location.segment == segment);
            if let Some(entry) = entry
                && found.insert(id, entry.clone()).is_none()
            {
                size += u64::from(entry.location.len);
            }
        }
        // They stay here until they have moved.
        occupancy.ids.extend(found.keys());
        found.into_iter().collect()
    }

    /// Keys are taken for `keep_claims` after the end of their messages.
    pub(super) fn set_keep_claims(&mut self, keep_claims: Duration) {
        let ended = [&self.tally.receipts, &self.tally.dead];
        let ended: Vec<_> =
            ended.iter().flat_map(|ended| &ended.by_end).map(|(_, id)| *id).collect();
        let taken: Vec<_> = ended.into_iter().filter_map(|id| Some((id, self.take(id)?))).collect();
        self.tally.keep_claims = keep_claims;
        for (id, entry) in taken {
            self.put(id, entry);
        }
    }

    pub(super) fn get(&self, id: MessageId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// All messages after `after`, in order.
    pub(super) fn after(
        &self,
        after: Option<MessageId>,
    ) -> impl Iterator<Item = (&MessageId, &Entry)> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.entries.range((after.map_or(Unbounded, Excluded), Unbounded))
    }

    /// A message whose frame is durable.
    pub(super) fn insert(&mut self, id: MessageId, entry: Entry) {
        self.remove(id);
        self.hold(id, entry.location);
        self.put(id, entry);
    }

    /// Nothing of it is needed any more.
    pub(super) fn remove(&mut self, id: MessageId) -> Option<Entry> {
        let entry = self.take(id)?;
        self.release(entry.location);
        Some(entry)
    }

    /// Notes a change, and asks `size` for the bytes of a receipt. Returns whether there
    /// was anything to note.
    pub(super) fn change(
        &mut self,
        id: MessageId,
        change: &Change,
        size: impl FnOnce(&Entry) -> u32,
    ) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.takes(change))
            && self.replay(id, change, size)
    }

    /// Replays a logged change without checking the transition, because earlier records may be lost
    /// to corruption. A receipt stays one.
    pub(super) fn replay(
        &mut self,
        id: MessageId,
        change: &Change,
        size: impl FnOnce(&Entry) -> u32,
    ) -> bool {
        if *change == Change::Forgotten {
            return self.remove(id).is_some();
        }
        let ends = matches!(change, Change::Delivered(..) | Change::Decided { .. });
        if self.entries.get(&id).is_none_or(|entry| entry.is_receipt() && !ends) {
            return false;
        }
        let Some(mut entry) = self.take(id) else { return false };
        entry.apply(change);
        if entry.is_receipt() {
            entry.size = size(&entry);
        }
        self.put(id, entry);
        true
    }

    /// A record with all that is known of a message is durable at a new location.
    pub(super) fn relocate(&mut self, id: MessageId, location: Location, content: Content) {
        let Some(mut entry) = self.take(id) else { return };
        self.release(entry.location);
        entry.location = location;
        if entry.content() == content {
            entry.size = location.len;
        }
        self.hold(id, location);
        self.put(id, entry);
    }

    /// Receipts end after a while. Nothing needs to be written: time passes after a restart, too.
    pub(super) fn expire(&mut self, keep: Duration, now: Timestamp) {
        while let Some((at, id)) = self.tally.receipts.by_end.first().copied() {
            if !expired(at, keep, now) {
                return;
            }
            self.remove(id);
        }
    }

    /// Dead letters that ended at least `keep` ago, oldest first.
    pub(super) fn dead_since(
        &self,
        keep: Duration,
        now: Timestamp,
    ) -> impl Iterator<Item = MessageId> {
        let by_end = self.tally.dead.by_end.iter();
        by_end.take_while(move |(at, _)| expired(*at, keep, now)).map(|(_, id)| *id)
    }

    /// Counts a new message that was refused because of a bound.
    pub(super) fn count_refusal(&mut self, error: Option<&KeepError>) {
        match error {
            Some(KeepError::Full) => self.refused.full += 1,
            Some(KeepError::TopicShare) => self.refused.topic_share += 1,
            Some(KeepError::CallerShare) => self.refused.caller_share += 1,
            _ => {}
        }
    }

    pub(super) fn usage(&self) -> Usage {
        let tally = &self.tally;
        Usage {
            queued: tally.queued.share,
            dead: tally.dead.share,
            receipts: tally.receipts.share,
            oldest: tally.queued.by_age.first().map(|(at, _)| *at),
            damaged: self.damaged,
            dropped_dead: self.given_up.counts,
            last_dropped_for_room: self.given_up.last_for_room,
            refused: self.refused,
            failure: self.failure.clone(),
            max: Share::default(),
            account: None,
            left: HeldCounts::default(),
        }
    }

    fn hold(&mut self, id: MessageId, location: Location) {
        if let Some(segments) = &mut self.segments {
            let segment = segments.entry(location.segment).or_default();
            segment.live += u64::from(location.len);
            segment.ids.push(id);
        }
    }

    fn release(&mut self, location: Location) {
        let Some(segments) = &mut self.segments else { return };
        if let Some(segment) = segments.get_mut(&location.segment) {
            segment.live -= u64::from(location.len);
            if segment.live == 0 {
                segments.remove(&location.segment);
            }
        }
    }

    fn put(&mut self, id: MessageId, entry: Entry) {
        self.tally.add(id, &entry);
        self.entries.insert(id, entry);
    }

    fn take(&mut self, id: MessageId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.tally.remove(id, &entry);
        Some(entry)
    }
}

/// Whether what ended at this moment has been kept for so long. What ended in the future has not.
fn expired(at: Timestamp, keep: Duration, now: Timestamp) -> bool {
    let age = now.duration_since(at);
    Duration::try_from(age).is_ok_and(|age| age >= keep)
}
