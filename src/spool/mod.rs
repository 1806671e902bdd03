//! Accepted messages that survive: on this machine's disk, or in the Redis of a fleet.
//!
//! `core` has the index and the queue; `writer` makes what waits durable through a `backend`, which is
//! `disk` or `redis`; `open` is the only place that knows which.
//!
//! [`Spool::keep`] returns once a message is durable, and concurrent calls share one write to the
//! disk. What becomes of a message afterwards is noted with [`Spool::note`].

mod adoption;
mod backend;
mod core;
mod destination;
mod disk;
mod entry;
mod expiry;
mod facts;
mod fleet;
mod frame;
mod handover;
mod index;
mod lanes;
mod mac;
mod meta;
mod open;
mod ownership;
mod queue;
mod record;
mod redis;
mod room;
mod selection;
mod share;
mod tally;
#[cfg(test)]
pub(crate) mod tests;
mod view;
mod writer;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::oneshot;

pub use adoption::{AdoptionRules, HeldCounts};
pub use expiry::Expiring;
pub use fleet::{Adoptions, NotOurs};
pub use mac::{MacFileError, MacKeys};
pub use ownership::Durability;
pub use record::{
    Brief, Change, Claim, Death, Doubt, DropReason, Expired, Reason, Receipt, Record, State, Tries,
};
pub use selection::{Affected, Listed, Picked, Selection, SelectionError, Which};
pub use share::Share;

use self::core::Core;
use crate::config::{Lifetime, MacFile};
use crate::message::{CallerName, Message, MessageId};
use backend::BodyError;
use destination::Destination;
use entry::Entry;
use frame::{PendingRecord, RecordKind};
use index::Index;
use queue::WriteOp;
use room::Bound;
use writer::Engine;

/// Where and how much is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder; made if need be. One process holds it.
    pub path: PathBuf,
    /// How long the folder lives.
    pub lifetime: Lifetime,
    /// The most bytes of messages, dead letters and receipts, as they lie on the disk.
    pub max_bytes: u64,
    /// The most messages, dead letters and receipts: each has its place in memory.
    pub max_messages: usize,
    /// The most of them in the memory of this process: fewer, where it is small. In Redis those of all
    /// sidecars together may be more.
    pub max_in_memory: usize,
    /// How long the receipt of a delivered message is kept.
    pub keep_receipts: Duration,
    /// So long, but no longer than receipts are kept, the receipt of a message with a claim does not
    /// give way to new messages: its key is taken.
    pub keep_claims: Duration,
    /// The part of the spool that a caller may fill, 0 to 1; one that is not named may fill all of it.
    pub caller_shares: Arc<BTreeMap<CallerName, f64>>,
    /// In Redis: the keys that sign and verify records.
    pub mac: Option<MacFile>,
    /// In Redis: what is taken over from others.
    pub adopts: AdoptionRules,
}

/// Why a spool does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds it.
    #[error("another process holds the spool at {0}")]
    Taken(PathBuf),
    /// Redis is not to be used as it is.
    #[error("the spool in Redis cannot be used: {0}")]
    Redis(String),
    /// Messages are to be kept in Redis, and there are some on the disk, which would never be delivered.
    #[error("the disk's spool at {path} still holds {messages} messages")]
    Left {
        /// Where.
        path: PathBuf,
        /// Queued ones and dead letters.
        messages: u64,
    },
    /// The keys for the MACs of records cannot be read.
    #[error("spool.mac_file {path}: {error}")]
    MacFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: MacFileError,
    },
    /// The folder cannot be read or written.
    #[error("the spool at {path} cannot be used: {error}")]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

impl OpenError {
    /// What to do.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Taken(_) => "stop the other tollgate process, or set another spool.path",
            Self::Io { .. } => "make spool.path writable for this user, or set another spool.path",
            Self::MacFile { .. } => {
                "write a file that this user can read: each line a key, base64 of at least 32 random bytes"
            }
            Self::Redis(_) => "correct the problem, or set spool.store = \"disk\"",
            Self::Left { .. } => {
                "start once with spool.store = \"disk\" and drain.handoff = true, and stop"
            }
        }
    }
}

/// Why a message was not kept. Except for [`Unsure`](Self::Unsure), the message is guaranteed
/// absent, even after a restart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeepError {
    /// `spool.max_bytes` or `spool.max_messages` is reached.
    #[error("the spool is full")]
    Full,
    /// Its parent topic holds as much of the spool as it may while others are in use.
    #[error("its topic holds its share of the spool")]
    TopicShare,
    /// Its caller holds as much of the spool as it may (`callers.spool_share`).
    #[error("its caller holds its share of the spool")]
    CallerShare,
    /// The disk has no room or does not write.
    #[error("the disk does not take it: {0}")]
    Disk(Arc<str>),
    /// Redis has no room, does not write or does not answer.
    #[error("Redis does not take it: {0}")]
    Redis(Arc<str>),
    /// The write failed and could not be rolled back; a restart or a peer may still find the message.
    #[error("it is unknown whether it was written: {0}")]
    Unsure(Arc<str>),
    /// It is in Redis, and may belong to another sidecar.
    #[error("it is kept already")]
    Already,
}

/// Why a message cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// There is no such message.
    #[error("there is no such message")]
    Absent,
    /// Its bytes have changed on the disk. It was set aside and counted, and is no longer kept.
    #[error("its bytes are damaged")]
    Damaged,
    /// Its body is not the one that its MAC is about: it is not to be sent.
    #[error("its body is not the one that was stored")]
    Unverified,
    /// The disk does not read; it may later.
    #[error("the disk does not read: {0}")]
    Disk(Arc<str>),
    /// Redis does not answer; it may later.
    #[error("Redis does not answer: {0}")]
    Redis(Arc<str>),
}

/// What is kept now.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Messages to be delivered.
    pub queued: Share,
    /// Dead letters.
    pub dead: Share,
    /// Receipts of delivered messages.
    pub receipts: Share,
    /// When the oldest of those to be delivered was kept.
    pub oldest: Option<Timestamp>,
    /// Damaged records found since the start.
    pub damaged: u64,
    /// Dead letters that were dropped without an operator since the start, by [`DropReason`].
    pub dropped_dead: [u64; DropReason::ALL.len()],
    /// When one was dropped last for a new message.
    pub last_dropped_for_room: Option<Timestamp>,
    /// New messages that were refused since the start.
    pub refused: RefusedKeeps,
    /// The error of the last write, if it failed, or that the store does not answer.
    pub failure: Option<Arc<str>>,
    /// The most that may be kept of all together.
    pub max: Share,
    /// What all sidecars of the account keep without receipts, where they share a spool.
    pub account: Option<Share>,
    /// What this sidecar has not taken over of what dead ones have left.
    pub left: HeldCounts,
}

/// New messages that were refused for a bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RefusedKeeps {
    /// That of the spool.
    pub full: u64,
    /// That of their topic.
    pub topic_share: u64,
    /// That of their caller.
    pub caller_share: u64,
}

/// A change that was noted. Resolves once it is durable, or refused.
#[derive(Debug)]
pub struct Noted {
    /// Whether it changed anything here: what was changed before does not change again.
    pub changed: bool,
    durable: oneshot::Receiver<Effect>,
}

/// What came of a change that was noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is durable.
    Made,
    /// The message had ended before.
    Unchanged,
    /// Redis has refused it: the message belongs to a peer by now.
    NotOwned,
}

impl Future for Noted {
    type Output = Effect;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Effect> {
        let effect = Pin::new(&mut self.durable).poll(context);
        // Closed: the process ends.
        effect.map(|effect| effect.unwrap_or(Effect::Unchanged))
    }
}

/// The spool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spool {
    engine: Arc<Engine>,
}

/// The longest frame: far more than a message can have.
const MAX_FRAME: usize = 16 * 1024 * 1024;

/// How many messages are looked at without letting others have a look.
const LISTED: usize = 256;

impl Spool {
    /// Keeps a message. Durable once this returns; once it has failed, the message is not kept.
    /// Goes on to its end if it is dropped.
    pub async fn keep(&self, message: &Message, claim: Option<Claim>) -> Result<(), KeepError> {
        self.keep_tried(message, claim, Tries::default()).await
    }

    /// The same with a message for which calls were made.
    pub async fn keep_tried(
        &self,
        message: &Message,
        claim: Option<Claim>,
        tries: Tries,
    ) -> Result<(), KeepError> {
        let done = self.submit(message, claim, tries)?;
        self.engine.wake();
        // The writer panicked, or the process ends: perhaps after the write.
        let stopped = || KeepError::Unsure("the writer was stopped".into());
        done.await.unwrap_or_else(|_| Err(stopped()))
    }

    fn submit(
        &self,
        message: &Message,
        claim: Option<Claim>,
        tries: Tries,
    ) -> Result<oneshot::Receiver<Result<(), KeepError>>, KeepError> {
        if message.payload.as_bytes().len() > MAX_FRAME {
            return Err(KeepError::Full);
        }
        let destination = self.destination(message);
        let entry = Entry {
            attempts: tries.calls,
            unknown: tries.unknown,
            doubt: tries.unknown > 0,
            claim: claim.map(Box::new),
            trace: message.trace.map(Box::new),
            form: message.payload.form(),
            expiry: message.terms.expiry().map(Box::new),
            urgency: message.terms.urgency,
            ..Entry::new(destination, Timestamp::now())
        };
        self.enqueue(message, entry, Bound::SpoolAndShares)
    }

    fn destination(&self, message: &Message) -> Arc<Destination> {
        let Message { instance, topic, caller, .. } = message;
        let destinations = &mut self.engine.core.index().destinations;
        destinations.get(Arc::clone(instance), topic.clone(), caller.clone())
    }

    fn enqueue(
        &self,
        message: &Message,
        mut entry: Entry,
        bound: Bound,
    ) -> Result<oneshot::Receiver<Result<(), KeepError>>, KeepError> {
        // The words of a record in Redis are what is signed.
        if let Core { ownership: Some(_), options: Options { mac: Some(_), .. }, .. } =
            &*self.engine.core
        {
            entry.digest = Some(Box::new(mac::digest(message.payload.as_bytes())));
        }
        // The body is shared, and nothing is encoded under the lock.
        let record = meta::whole(message.id, &entry, message.payload.clone().into_bytes());
        entry.size = record.len();
        let mut index = self.engine.core.fresh_index();
        let admitted = self.admit(&mut index, &entry, bound);
        index.count_refusal(admitted.as_ref().err());
        admitted?;
        index.tally.reserve(&entry);
        let (done, kept) = oneshot::channel();
        self.engine.core.queue().ops.push_back(WriteOp::Keep { record, entry, done });
        Ok(kept)
    }

    /// Notes what became of a kept message; resolves once that is durable. [`Spool::find`] knows of
    /// it at once. Goes on to its end if it is dropped: what the disk does not take is written when
    /// it does. What comes too late, after an end that is final, changes nothing.
    #[allow(clippy::needless_pass_by_value, reason = "a change is noted once")]
    pub fn note(&self, id: MessageId, change: Change) -> Noted {
        let mut index = self.engine.core.index();
        let noted = self.note_in(&mut index, id, &change);
        if change.leaves_receipt() {
            // A receipt may be longer than what it replaces; it is not refused, so others go.
            self.trim_receipts(&mut index, id);
        }
        drop(index);
        self.engine.wake();
        noted
    }

    fn note_in(&self, index: &mut Index, id: MessageId, change: &Change) -> Noted {
        let (done, durable) = oneshot::channel();
        let backend = &self.engine.backend;
        let mut record =
            (*change == Change::Forgotten).then(|| PendingRecord::bare(RecordKind::Forgotten, id));
        let changed = index
            .change(id, change, |entry| record.insert(backend.record(id, change, entry)).len());
        if changed && record.is_none() {
            record = index.get(id).map(|entry| backend.record(id, change, entry));
        }
        let op = match record {
            Some(record) if changed => WriteOp::Note { record, done: Some(done) },
            _ => WriteOp::Fence { done },
        };
        self.engine.core.queue().ops.push_back(op);
        Noted { changed, durable }
    }

    /// A kept message, whole.
    pub async fn read(&self, id: MessageId) -> Result<Record, ReadError> {
        let Engine { core, backend, .. } = &*self.engine;
        let mut before = None;
        loop {
            let entry = core.index().get(id).cloned().ok_or(ReadError::Absent)?;
            if entry.is_receipt() {
                return Ok(entry.record(id, Bytes::new()));
            }
            match backend.body(id, entry.location).await {
                Ok(body) => {
                    let holds = |digest: &[u8; 32]| mac::digest(&body) == *digest;
                    if entry.digest.as_deref().is_some_and(|digest| !holds(digest)) {
                        return Err(ReadError::Unverified);
                    }
                    return Ok(entry.record(id, body));
                }
                Err(BodyError::Absent) => return Err(ReadError::Absent),
                // Then it lies elsewhere now.
                Err(BodyError::Moved) if before != Some(entry.location) => {
                    before = Some(entry.location);
                }
                Err(BodyError::Moved) => {
                    return Err(backend.unreadable("its file is not there".into()));
                }
                Err(BodyError::Damaged) => {
                    self.engine.lose(id, entry.location).await;
                    self.engine.wake();
                    return Err(ReadError::Damaged);
                }
                Err(BodyError::Failed(error)) => return Err(backend.unreadable(error)),
            }
        }
    }

    /// The bytes that a message takes in the store; 0 if it is not there.
    pub fn size(&self, id: MessageId) -> u64 {
        self.engine.core.index().get(id).map_or(0, |entry| entry.size.into())
    }

    /// What is known of a message without reading it.
    pub fn find(&self, id: MessageId) -> Option<Brief> {
        self.engine.core.fresh_index().get(id).map(|entry| entry.brief(id))
    }

    /// At most `limit` messages that `wanted` takes, in the order in which they were made, from
    /// the first after `after`.
    pub fn list(
        &self,
        after: Option<MessageId>,
        limit: usize,
        wanted: &mut dyn FnMut(&Brief) -> bool,
    ) -> Vec<Brief> {
        let (mut after, mut found) = (after, Vec::new());
        while found.len() < limit {
            // A few at a time: `wanted` may take long, or ask the spool.
            let index = self.engine.core.fresh_index();
            let few = index.after(after).take(LISTED).map(|(id, entry)| entry.brief(*id));
            let few: Vec<_> = few.collect();
            drop(index);
            let Some(last) = few.last() else { break };
            after = Some(last.id);
            let room = limit - found.len();
            found.extend(few.into_iter().filter(|brief| wanted(brief)).take(room));
        }
        found
    }

    /// What is kept now.
    pub fn usage(&self) -> Usage {
        let core = &self.engine.core;
        let account = core.ownership.as_ref().map(|ownership| ownership.account());
        let left = core.ownership.as_ref().map(|ownership| ownership.left()).unwrap_or_default();
        let mut usage = Usage { max: self.max(), account, left, ..core.fresh_index().usage() };
        if usage.failure.is_none() && core.queue().hangs() {
            usage.failure = Some("it does not answer".into());
        }
        usage
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.engine.core.options.path
    }

    /// How long commits took.
    pub fn commits(&self) -> &prometheus::Histogram {
        &self.engine.core.commits
    }

    /// Waits until everything noted is durable.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        self.engine.core.queue().ops.push_back(WriteOp::Fence { done });
        self.engine.wake();
        drop(written.await);
    }

    /// Waits until nothing is being written: all is, or the store takes nothing now. What is still to
    /// be written then is lost with the runtime.
    pub async fn settle(&self) {
        self.engine.settle().await;
    }
}
