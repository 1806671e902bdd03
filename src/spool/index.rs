//! What is known of every message without touching the disk.
//!
//! Callers see a change here as soon as it is noted. Where its bytes lie, [`Location`], follows when it
//! is durable: until then what it replaces must not be given up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

use super::destination::{Destination, Destinations};
use super::record::{Brief, Change, Claim, DAMAGED_CODE, Death, Reason, Receipt, Record, State};
use super::{HeldCounts, Share, Usage};
use crate::message::{Message, MessageId, Payload, TraceId};

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) segment: u32,
    pub(super) offset: u32,
    pub(super) len: u32,
}

/// One message. There may be many: this is small.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) destination: Arc<Destination>,
    pub(super) kept_at: Timestamp,
    pub(super) attempts: u32,
    /// Calls whose outcome is unknown.
    pub(super) unknown: u32,
    /// A call for it may have arrived.
    pub(super) doubt: bool,
    /// The bytes it takes, as soon as all that was noted is durable.
    pub(super) size: u32,
    pub(super) location: Location,
    pub(super) claim: Option<Box<Claim>>,
    pub(super) trace: Option<Box<TraceId>>,
    /// The digest of its body, where records have MACs.
    pub(super) digest: Option<Box<[u8; 32]>>,
    pub(super) stage: Stage,
}

/// [`State`], small.
#[derive(Debug, Clone)]
pub(super) enum Stage {
    Queued { calling: bool },
    Dead(Box<Death>),
    Delivered(Box<Receipt>),
    Dropped(Box<Timestamp>),
}

impl Entry {
    /// A message that nothing has happened to yet.
    pub(super) fn new(destination: Arc<Destination>, kept_at: Timestamp) -> Self {
        Self {
            destination,
            kept_at,
            attempts: 0,
            unknown: 0,
            doubt: false,
            size: 0,
            location: Location { segment: 0, offset: 0, len: 0 },
            claim: None,
            trace: None,
            digest: None,
            stage: Stage::Queued { calling: false },
        }
    }

    /// The message as callers see it.
    pub(super) fn brief(&self, id: MessageId) -> Brief {
        Brief {
            id,
            lane: self.destination.lane.clone(),
            topic: self.destination.topic.clone(),
            kept_at: self.kept_at,
            attempts: self.attempts,
            unknown: self.unknown,
            doubt: self.doubt,
            claim: self.claim.as_deref().copied(),
            trace: self.trace.as_deref().copied(),
            state: match &self.stage {
                Stage::Queued { calling } => State::Queued { calling: *calling },
                Stage::Dead(death) => State::Dead(Death::clone(death)),
                Stage::Delivered(receipt) => State::Delivered(Receipt::clone(receipt)),
                Stage::Dropped(at) => State::Dropped(**at),
            },
        }
    }

    /// The message, with its body where it still has one.
    pub(super) fn record(&self, id: MessageId, body: Bytes) -> Record {
        let message = Message {
            id,
            instance: self.destination.lane.instance.clone(),
            topic: self.destination.topic.clone(),
            payload: Payload::kept(body),
            trace: self.trace.as_deref().copied(),
        };
        Record { message, brief: self.brief(id) }
    }

    /// What the store holds of the message, as soon as all that was noted is durable.
    pub(super) fn content(&self) -> Content {
        if self.is_receipt() { Content::Receipt } else { Content::Message }
    }

    /// Whether only a receipt is left: of a message that was delivered or dropped.
    pub(super) fn is_receipt(&self) -> bool {
        self.receipt_at().is_some()
    }

    /// When the message ended of which only a receipt is left.
    fn receipt_at(&self) -> Option<Timestamp> {
        match &self.stage {
            Stage::Queued { .. } | Stage::Dead(_) => None,
            Stage::Delivered(receipt) => Some(receipt.at),
            Stage::Dropped(at) => Some(**at),
        }
    }

    /// Whether `change` says anything new to a message in this stage. An end is final, but for a
    /// dead letter's; and a call that was under way when its message was dropped decides what became
    /// of it.
    fn takes(&self, change: &Change) -> bool {
        match (&self.stage, change) {
            (Stage::Queued { .. }, Change::Replayed(_))
            | (Stage::Dead(_), Change::Calling | Change::Tried(_))
            | (Stage::Queued { .. } | Stage::Dead(_), Change::Decided { .. })
            | (Stage::Delivered(_), _) => false,
            (Stage::Dropped(_), change) => {
                matches!(change, Change::Delivered(..) | Change::Decided { .. })
            }
            (Stage::Queued { .. } | Stage::Dead(_), _) => true,
        }
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Calling => self.stage = Stage::Queued { calling: true },
            Change::Tried(tries) => {
                (self.attempts, self.unknown) = (tries.calls, tries.unknown);
                self.doubt |= tries.unknown > 0;
                self.stage = Stage::Queued { calling: false };
            }
            Change::Delivered(attempts, receipt) => {
                self.attempts = *attempts;
                self.stage = Stage::Delivered(Box::new(receipt.clone()));
            }
            Change::Dead(attempts, death) => {
                self.attempts = *attempts;
                // Of what damage has hit, only the record is in doubt.
                let damaged = death.code.as_deref() == Some(DAMAGED_CODE);
                self.doubt |= death.reason == Reason::Unknown && !damaged;
                self.stage = Stage::Dead(Box::new(death.clone()));
            }
            Change::Replayed(at) => {
                (self.kept_at, self.unknown) = (*at, 0);
                self.stage = Stage::Queued { calling: false };
            }
            Change::Dropped { at, doubt } => {
                self.doubt |= *doubt
                    || match &self.stage {
                        Stage::Queued { calling } => *calling,
                        Stage::Dead(death) => death.reason == Reason::Unknown,
                        Stage::Delivered(_) | Stage::Dropped(_) => false,
                    };
                self.stage = Stage::Dropped(Box::new(*at));
            }
            Change::Decided { doubt } => self.doubt = *doubt,
            Change::Forgotten => {}
        }
    }
}

/// What a record holds that says all about its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// The message with its body.
    Message,
    /// The receipt that is left of it.
    Receipt,
}

/// What entries need of a segment of the log. Its file is known to the disk alone.
#[derive(Debug, Default)]
struct Occupancy {
    /// Bytes in it that are still needed.
    live: u64,
    /// Messages whose records in it were needed when they were written.
    ids: Vec<MessageId>,
}

/// All messages.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: BTreeMap<MessageId, Entry>,
    /// By age.
    queued: BTreeSet<(Timestamp, MessageId)>,
    /// By age.
    receipts: BTreeSet<(Timestamp, MessageId)>,
    /// The same, by the moment from which they may give way to new messages.
    spare: BTreeSet<(Timestamp, MessageId)>,
    /// How long the receipt of a message with a claim does not give way.
    keep_claims: Duration,
    /// Queued, dead, delivered.
    shares: [Share; 3],
    /// By segment; `None` where the store has none.
    segments: Option<BTreeMap<u32, Occupancy>>,
    pub(super) destinations: Destinations,
    /// What is being written.
    reserved: Share,
    pub(super) damaged: u64,
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

    /// Receipts of messages with a claim do not give way for `keep_claims` after their end.
    pub(super) fn set_keep_claims(&mut self, keep_claims: Duration) {
        let all: Vec<_> = self.receipts.iter().map(|(_, id)| *id).collect();
        let all: Vec<_> = all.into_iter().filter_map(|id| Some((id, self.take(id)?))).collect();
        self.keep_claims = keep_claims;
        for (id, entry) in all {
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
        while let Some((at, id)) = self.receipts.first().copied() {
            if !expired(at, keep, now) {
                return;
            }
            self.remove(id);
        }
    }

    /// Receipts that may give way now, best first.
    pub(super) fn spare(&self, now: Timestamp) -> impl Iterator<Item = (MessageId, Share)> {
        let spare = self.spare.iter().take_while(move |(from, _)| *from <= now);
        spare.filter_map(|(_, id)| {
            let bytes = self.entries.get(id)?.size.into();
            Some((*id, Share { messages: 1, bytes }))
        })
    }

    /// From when a receipt may give way: where its message has a claim, the next request with its
    /// key is to be answered from it.
    fn spare_from(&self, entry: &Entry, at: Timestamp) -> Timestamp {
        let keep = if entry.claim.is_some() { self.keep_claims } else { Duration::ZERO };
        at.checked_add(keep).unwrap_or(Timestamp::MAX)
    }

    pub(super) fn receipts(&self) -> Share {
        self.shares[2]
    }

    /// All that is kept or being written.
    pub(super) fn total(&self) -> Share {
        let mut total = self.reserved;
        for share in self.shares {
            total.messages += share.messages;
            total.bytes += share.bytes;
        }
        total
    }

    /// Holds room for a record of this length until it is written, or refused.
    pub(super) fn reserve(&mut self, len: u32) {
        self.reserved.messages += 1;
        self.reserved.bytes += u64::from(len);
    }

    pub(super) fn unreserve(&mut self, len: u32) {
        self.reserved.messages -= 1;
        self.reserved.bytes -= u64::from(len);
    }

    pub(super) fn usage(&self) -> Usage {
        let [queued, dead, receipts] = self.shares;
        Usage {
            queued,
            dead,
            receipts,
            oldest: self.queued.first().map(|(at, _)| *at),
            damaged: self.damaged,
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
        let share = match &entry.stage {
            Stage::Queued { .. } => {
                self.queued.insert((entry.kept_at, id));
                0
            }
            Stage::Dead(_) => 1,
            Stage::Delivered(_) | Stage::Dropped(_) => 2,
        };
        if let Some(at) = entry.receipt_at() {
            self.receipts.insert((at, id));
            self.spare.insert((self.spare_from(&entry, at), id));
        }
        self.shares[share].messages += 1;
        self.shares[share].bytes += u64::from(entry.size);
        self.entries.insert(id, entry);
    }

    fn take(&mut self, id: MessageId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        let share = match &entry.stage {
            Stage::Queued { .. } => {
                self.queued.remove(&(entry.kept_at, id));
                0
            }
            Stage::Dead(_) => 1,
            Stage::Delivered(_) | Stage::Dropped(_) => 2,
        };
        if let Some(at) = entry.receipt_at() {
            self.receipts.remove(&(at, id));
            self.spare.remove(&(self.spare_from(&entry, at), id));
        }
        self.shares[share].messages -= 1;
        self.shares[share].bytes -= u64::from(entry.size);
        Some(entry)
    }
}

/// Whether a receipt of this moment has ended. One from the future has not.
fn expired(at: Timestamp, keep: Duration, now: Timestamp) -> bool {
    let age = now.duration_since(at);
    Duration::try_from(age).is_ok_and(|age| age >= keep)
}
