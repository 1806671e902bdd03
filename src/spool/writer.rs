//! Group commit: the writer takes what waits and makes all of it durable with one write.
//!
//! It runs on a thread for blocking work, only while there is something to do. While it does,
//! tokio's paused clock stands still, so that tests with paused time are exact.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::KeepError;
use super::backend::Backend;
use super::core::{Core, refuse_keeps};
use super::facts::{Fact, Progress, Reported, Residue, WriteError, WriteResult};
use super::frame::{Kind, PendingRecord};
use super::index::Location;
use super::queue::{WriteOp, WriteQueue};
use super::view::IndexView;
use crate::message::MessageId;

/// How long to wait after a failure, if nothing new comes meanwhile.
const RETRY: Duration = Duration::from_secs(1);

/// The core, the backend, and the writer between them.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) core: Arc<Core>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) view: IndexView,
    runtime: Handle,
    /// Messages that may have been written although their callers were refused. Held by the writer
    /// as long as it writes.
    rollbacks: Mutex<Vec<MessageId>>,
}

impl Engine {
    pub(super) fn new(core: Core, backend: Arc<dyn Backend>, runtime: Handle) -> Arc<Self> {
        let core = Arc::new(core);
        let view = IndexView::new(&core);
        Arc::new(Self { core, backend, view, runtime, rollbacks: Mutex::default() })
    }

    /// The right to call the backend's writing half.
    fn writer(&self) -> MutexGuard<'_, Vec<MessageId>> {
        self.rollbacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the writer, unless it runs.
    pub(super) fn wake(self: &Arc<Self>) {
        let mut queue = self.core.queue();
        if !queue.writing {
            queue.writing = true;
            drop(queue);
            let engine = Arc::clone(self);
            self.runtime
                .spawn_blocking(move || GroupCommit { engine: &engine, stopped: false }.run());
        }
    }

    fn wake_later(self: &Arc<Self>) {
        if std::mem::replace(&mut self.core.queue().retrying, true) {
            return;
        }
        let engine = Arc::downgrade(self);
        self.runtime.spawn(async move {
            sleep(RETRY).await;
            if let Some(engine) = engine.upgrade() {
                engine.core.queue().retrying = false;
                engine.wake();
            }
        });
    }

    /// Has the backend do something while the writer does not write, and applies what it reports.
    /// Blocks.
    pub(super) fn run<T>(
        &self,
        job: impl FnOnce(&IndexView) -> Reported<T>,
    ) -> Result<T, WriteError> {
        let _writer = self.writer();
        self.apply(job(&self.view))
    }

    fn apply<T>(&self, outcome: Reported<T>) -> Result<T, WriteError> {
        for fact in outcome.facts {
            match fact {
                Fact::Damaged { id, at } => self.lose(id, at),
                fact => self.core.apply(fact),
            }
        }
        outcome.result
    }

    /// Drops a message whose record is damaged, and then sets the bytes aside. Blocks.
    pub(super) fn lose(&self, id: MessageId, at: Location) {
        if self.core.lose(id, at) {
            self.backend.quarantine(at);
        }
    }

    /// Has the backend write a batch, and notes whether it did. Blocks.
    pub(super) fn commit(&self, batch: &[&PendingRecord]) -> Result<Vec<WriteResult>, WriteError> {
        let committed = self.apply(self.backend.commit(batch, &self.view));
        self.note_failure(committed)
    }

    fn note_failure<T>(&self, result: Result<T, WriteError>) -> Result<T, WriteError> {
        result.inspect_err(|WriteError { error, .. }| {
            if self.core.write_failed(Arc::clone(error)) {
                let store = self.backend.name();
                tracing::warn!(%error, "{store} does not take what is to be kept");
            }
        })
    }
}

/// The one that writes, from when something waits until nothing does.
struct GroupCommit<'a> {
    engine: &'a Arc<Engine>,
    stopped: bool,
}

impl Drop for GroupCommit<'_> {
    /// Should writing ever panic, the next operation starts another writer.
    fn drop(&mut self) {
        if !self.stopped {
            self.stop(&mut self.engine.core.queue());
        }
    }
}

impl GroupCommit<'_> {
    fn stop(&mut self, queue: &mut WriteQueue) {
        (queue.writing, queue.since) = (false, None);
        self.stopped = true;
    }

    fn run(mut self) {
        let engine = self.engine;
        loop {
            let mut rollbacks = engine.writer();
            let ops = engine.core.queue().next_batch(engine.backend.limits());
            engine.core.index().expire(engine.core.options.keep_receipts, Timestamp::now());
            let idle = ops.is_empty() && rollbacks.is_empty();
            let written = if idle { self.probe() } else { self.write(&mut rollbacks, ops) };
            if let Err(error) = written {
                drop(rollbacks);
                return self.give_up(&error);
            }
            let maintained = engine.apply(engine.backend.maintain(&engine.view));
            drop(rollbacks);
            let progress = engine.note_failure(maintained).unwrap_or(Progress::Later);
            if progress == Progress::Later {
                engine.wake_later();
            }
            let mut queue = engine.core.queue();
            if progress != Progress::More && queue.ops.is_empty() {
                return self.stop(&mut queue);
            }
        }
    }

    /// After a failure, finds out whether the store works again: as long as it seems not to,
    /// perhaps nothing else comes that would be written.
    fn probe(&self) -> Result<(), Arc<str>> {
        if self.engine.core.index().failure.is_none() {
            return Ok(());
        }
        let none = PendingRecord::bare(Kind::Forgotten, MessageId::from_u128(0));
        self.engine.commit(&[&none]).map(drop).map_err(|failed| failed.error)
    }

    /// Refuses new messages; notes are tried again later.
    fn give_up(&mut self, error: &Arc<str>) {
        let refusal = self.engine.backend.refusal(Arc::clone(error));
        let core = &self.engine.core;
        // Both at once, so that nothing comes in between and waits for the timer.
        let mut index = core.index();
        let mut queue = core.queue();
        let ops = std::mem::take(&mut queue.ops);
        queue.ops = refuse_keeps(&mut index, ops, &refusal).into();
        queue.coalesce();
        self.stop(&mut queue);
        drop(queue);
        drop(index);
        self.engine.wake_later();
    }

    fn write(&self, rollbacks: &mut Vec<MessageId>, ops: Vec<WriteOp>) -> Result<(), Arc<str>> {
        let engine = self.engine;
        // First what must not come back. As long as that is not written nothing else is tried, so
        // that failures do not pile up.
        if !rollbacks.is_empty() {
            let deletions: Vec<_> =
                rollbacks.iter().map(|id| PendingRecord::bare(Kind::Forgotten, *id)).collect();
            match engine.commit(&deletions.iter().collect::<Vec<_>>()) {
                Ok(_) => rollbacks.clear(),
                Err(WriteError { error, .. }) => {
                    let refusal = engine.backend.refusal(Arc::clone(&error));
                    return Err(self.put_back(ops, &refusal, error));
                }
            }
        }
        let batch: Vec<&PendingRecord> = ops.iter().filter_map(WriteOp::record).collect();
        let committed = if batch.is_empty() { Ok(Vec::new()) } else { engine.commit(&batch) };
        match committed {
            Ok(results) => {
                engine.core.complete(ops, &results);
                Ok(())
            }
            Err(WriteError { error, residue: Residue::None }) => {
                let refusal = engine.backend.refusal(Arc::clone(&error));
                Err(self.put_back(ops, &refusal, error))
            }
            Err(WriteError { error, residue: Residue::Possible }) => {
                let keeps = ops.iter().filter(|op| matches!(op, WriteOp::Keep { .. }));
                rollbacks.extend(keeps.filter_map(WriteOp::record).map(|record| record.id));
                Err(self.put_back(ops, &KeepError::Unsure(Arc::clone(&error)), error))
            }
        }
    }

    fn put_back(&self, ops: Vec<WriteOp>, refusal: &KeepError, error: Arc<str>) -> Arc<str> {
        let rest = refuse_keeps(&mut self.engine.core.index(), ops, refusal);
        self.engine.core.queue().put_back(rest);
        error
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(ownership) = &self.core.ownership {
            ownership.close();
        }
    }
}
