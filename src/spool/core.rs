//! The index and the queue of a spool, and what follows for them from what a backend reports.
//!
//! Locks are taken in the order of the fields, and none is held while a store works.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use prometheus::Histogram;
use tokio::sync::oneshot;

use super::entry::{Content, Entry, Location};
use super::facts::{Fact, StoredMessage, WriteResult};
use super::frame::RecordKind;
use super::index::Index;
use super::ownership::Ownership;
use super::queue::{WriteOp, WriteQueue};
use super::{Effect, KeepError, Options, meta};
use crate::histogram;
use crate::message::MessageId;

/// What all clones of a spool share, whatever stores its messages.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) options: Options,
    pub(super) commits: Histogram,
    /// `None` where no other process shares the store.
    pub(super) ownership: Option<Arc<Ownership>>,
    index: Mutex<Index>,
    queue: Mutex<WriteQueue>,
}

impl Core {
    pub(super) fn new(
        options: Options,
        mut index: Index,
        ownership: Option<Arc<Ownership>>,
    ) -> Self {
        index.set_keep_claims(options.keep_claims);
        index.expire(options.keep_receipts, Timestamp::now());
        Self {
            options,
            // From a tenth of a millisecond to two seconds.
            commits: histogram::exponential(0.000_1, 2.5, 12),
            ownership,
            index: Mutex::new(index),
            queue: Mutex::default(),
        }
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, WriteQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index without receipts that have ended.
    pub(super) fn fresh_index(&self) -> MutexGuard<'_, Index> {
        let mut index = self.index();
        index.expire(self.options.keep_receipts, Timestamp::now());
        index
    }

    // === what a backend reports ===

    /// Returns the place of damaged bytes that are to be set aside now.
    pub(super) fn apply(&self, fact: Fact) -> Option<Location> {
        match fact {
            Fact::Wrote(time) => {
                self.commits.observe(time.as_secs_f64());
                self.index().failure = None;
            }
            Fact::TakenOver(messages) => self.take_up(messages),
            Fact::OwnedByPeers(ids) => {
                let mut index = self.index();
                for id in ids {
                    index.remove(id);
                }
            }
            Fact::Vanished(ids) => {
                let mut index = self.index();
                for id in ids {
                    let lost = index.remove(id).is_some_and(|entry| !entry.is_receipt());
                    index.damaged += u64::from(lost);
                }
            }
            Fact::Outdated(ids) => {
                let index = self.index();
                let mut queue = self.queue();
                for id in ids {
                    if let Some(entry) = index.get(id) {
                        queue.ops.push_back(WriteOp::unobserved(meta::now(id, entry)));
                    }
                }
            }
            Fact::Moved { id, from, to, content } => {
                let mut index = self.index();
                if index.get(id).is_some_and(|entry| entry.location == from) {
                    index.relocate(id, to, content);
                }
            }
            Fact::Damaged { id, at } => return self.lose(id, at).then_some(at),
        }
        None
    }

    /// Takes messages into the index, and announces them: the one way in for what a predecessor or
    /// a peer has left, and for what this process had already when its connection broke.
    fn take_up(&self, messages: Vec<StoredMessage>) {
        let mut index = self.index();
        let mut ids = Vec::with_capacity(messages.len());
        for StoredMessage { id, bytes, meta } in messages {
            let location = Location { segment: 0, offset: 0, len: bytes };
            let Some(entry) = meta::entry(&meta, location, &mut index.destinations) else {
                tracing::error!(%id, "a record in Redis cannot be decoded: this message is lost");
                index.damaged += 1;
                continue;
            };
            let ended = index.get(id).filter(|known| known.is_receipt() && !entry.is_receipt());
            if let Some(ended) = ended {
                tracing::error!(message = %id, "Redis had an old record of a message that has ended: it is not sent again; find out who can write to Redis");
                self.queue().ops.push_back(WriteOp::unobserved(meta::now(id, ended)));
                continue;
            }
            index.insert(id, entry);
            ids.push(id);
        }
        drop(index);
        if let Some(ownership) = &self.ownership
            && !ids.is_empty()
        {
            ownership.announce(ids);
        }
    }

    /// Drops a message whose record is damaged. Returns whether the index still had it there.
    pub(super) fn lose(&self, id: MessageId, at: Location) -> bool {
        let mut index = self.index();
        if index.get(id).is_none_or(|entry| entry.location != at) {
            return false;
        }
        index.remove(id);
        index.damaged += 1;
        self.queue().delete(id);
        tracing::warn!(message = %id, "a kept message is damaged and lost");
        true
    }

    // === how writes end ===

    /// The batch is durable, but for the records that were refused.
    pub(super) fn complete(&self, ops: Vec<WriteOp>, results: &[WriteResult]) {
        let mut results = results.iter().copied();
        let mut index = self.index();
        let mut completions = Vec::with_capacity(ops.len());
        for op in ops {
            match op {
                WriteOp::Keep { record, mut entry, done } => {
                    index.tally.unreserve(&entry);
                    let kept = match results.next() {
                        Some(WriteResult::Stored(location)) => {
                            entry.location = location;
                            index.insert(record.id, entry);
                            Ok(())
                        }
                        Some(WriteResult::Full) => Err(KeepError::Full),
                        Some(WriteResult::NotOwned) => Err(KeepError::Already),
                        None => Err(KeepError::Unsure("the store gave no result".into())),
                    };
                    index.count_refusal(kept.as_ref().err());
                    completions.push(Completion::Keep(done, kept));
                }
                WriteOp::Note { record, done } => {
                    let is_receipt = index.get(record.id).is_some_and(Entry::is_receipt);
                    let result = results.next();
                    match result {
                        Some(WriteResult::Stored(location))
                            if record.kind == RecordKind::Delivered && is_receipt =>
                        {
                            index.relocate(record.id, location, Content::Receipt);
                        }
                        Some(WriteResult::NotOwned) if index.remove(record.id).is_some() => {
                            tracing::warn!(message = %record.id, "another sidecar has taken over a message");
                        }
                        _ => {}
                    }
                    let effect = match result {
                        Some(WriteResult::NotOwned) => Effect::NotOwned,
                        _ => Effect::Made,
                    };
                    completions.extend(done.map(|done| Completion::Note(done, effect)));
                }
                WriteOp::Fence { done } => {
                    completions.push(Completion::Note(done, Effect::Unchanged));
                }
            }
        }
        drop(index);
        for completion in completions {
            completion.send();
        }
    }

    /// A write failed. Returns whether the one before had not.
    pub(super) fn write_failed(&self, error: Arc<str>) -> bool {
        self.index().failure.replace(error).is_none()
    }
}

/// Refuses new messages. Returns the rest, which is written later.
pub(super) fn refuse_keeps(
    index: &mut Index,
    ops: impl IntoIterator<Item = WriteOp>,
    error: &KeepError,
) -> Vec<WriteOp> {
    let mut rest = Vec::new();
    for op in ops {
        match op {
            WriteOp::Keep { entry, done, .. } => {
                index.tally.unreserve(&entry);
                Completion::Keep(done, Err(error.clone())).send();
            }
            op => rest.push(op),
        }
    }
    rest
}

/// How an operation ended, and who waits for it.
enum Completion {
    Keep(oneshot::Sender<Result<(), KeepError>>, Result<(), KeepError>),
    Note(oneshot::Sender<Effect>, Effect),
}

impl Completion {
    /// A caller that has gone away needs no answer.
    fn send(self) {
        match self {
            Self::Keep(done, kept) => drop(done.send(kept)),
            Self::Note(done, effect) => drop(done.send(effect)),
        }
    }
}
