//! What waits to be written.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::entry::Entry;
use super::frame::{PendingRecord, RecordKind};
use super::{Effect, KeepError};
use crate::message::MessageId;

/// Longer than a store takes that works.
const HANGS: Duration = Duration::from_secs(1);

/// Something that is to be written, and who waits for it.
#[derive(Debug)]
pub(super) enum WriteOp {
    /// A new message. Fails with its write.
    Keep { record: PendingRecord, entry: Entry, done: oneshot::Sender<Result<(), KeepError>> },
    /// What became of one. Written sooner or later.
    Note { record: PendingRecord, done: Option<oneshot::Sender<Effect>> },
    /// Writes nothing, and ends when all before it has ended.
    Fence { done: oneshot::Sender<Effect> },
}

impl WriteOp {
    pub(super) fn record(&self) -> Option<&PendingRecord> {
        match self {
            Self::Keep { record, .. } | Self::Note { record, .. } => Some(record),
            Self::Fence { .. } => None,
        }
    }

    /// A record that no caller waits for.
    pub(super) fn unobserved(record: PendingRecord) -> Self {
        Self::Note { record, done: None }
    }
}

/// The most that one commit may have; a record that is larger goes alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchLimits {
    pub(super) bytes: u64,
    pub(super) records: usize,
}

/// What waits to be written.
#[derive(Debug, Default)]
pub(super) struct WriteQueue {
    pub(super) ops: VecDeque<WriteOp>,
    /// The writer runs.
    pub(super) writing: bool,
    /// When the batch began that is being written.
    pub(super) since: Option<Instant>,
    /// The writer is started again by a timer.
    pub(super) retrying: bool,
}

impl WriteQueue {
    pub(super) fn delete(&mut self, id: MessageId) {
        self.ops.push_back(WriteOp::unobserved(PendingRecord::bare(RecordKind::Forgotten, id)));
    }

    /// Messages whose deletion waits to be written.
    pub(super) fn pending_deletions(&self) -> impl Iterator<Item = MessageId> {
        let records = self.ops.iter().filter_map(WriteOp::record);
        records.filter(|record| record.kind == RecordKind::Forgotten).map(|record| record.id)
    }

    /// Whether the store has not answered for long.
    pub(super) fn hangs(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= HANGS)
    }

    /// The next batch; it is being written from now on.
    pub(super) fn next_batch(&mut self, limits: BatchLimits) -> Vec<WriteOp> {
        self.since = Some(Instant::now());
        let mut bytes = 0;
        let mut ops = Vec::new();
        while let Some(op) = self.ops.front() {
            bytes += op.record().map_or(0, |record| u64::from(record.len()));
            if (bytes > limits.bytes && !ops.is_empty()) || ops.len() >= limits.records {
                break;
            }
            ops.extend(self.ops.pop_front());
        }
        ops
    }

    /// Puts a batch back that was not written.
    pub(super) fn put_back(&mut self, ops: Vec<WriteOp>) {
        for op in ops.into_iter().rev() {
            self.ops.push_front(op);
        }
    }

    /// Removes notes that a later one of the same message makes needless, where no caller waits: a
    /// store that takes nothing for days must not fill the memory.
    pub(super) fn coalesce(&mut self) {
        let mut seen = HashSet::new();
        let mut rest = VecDeque::with_capacity(self.ops.len());
        while let Some(op) = self.ops.pop_back() {
            let needless = match &op {
                WriteOp::Note { record, done }
                    if matches!(record.kind, RecordKind::Tried | RecordKind::Calling) =>
                {
                    !seen.insert(record.id) && done.as_ref().is_none_or(oneshot::Sender::is_closed)
                }
                WriteOp::Fence { done } => done.is_closed(),
                WriteOp::Keep { .. } | WriteOp::Note { .. } => false,
            };
            if !needless {
                rest.push_front(op);
            }
        }
        self.ops = rest;
    }
}
