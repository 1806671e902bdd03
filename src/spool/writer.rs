//! Group commit: the writer takes what waits and makes all of it durable with one write.
//!
//! It is a task that runs only while there is something to do. No caller can cancel it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::KeepError;
use super::backend::{Backend, Job};
use super::core::{Core, refuse_keeps};
use super::entry::Location;
use super::facts::{Progress, Reported, Residue, WriteError, WriteResult};
use super::frame::{PendingRecord, RecordKind};
use super::queue::{WriteOp, WriteQueue};
use super::view::IndexView;
use crate::log_limiter::LogLimiter;
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
    /// Messages that may have been written although their callers were refused. Locked by whatever
    /// calls the writing half of the backend, until the reported facts are applied.
    rollbacks: Mutex<Vec<MessageId>>,
    /// Notified when the writer ends.
    idle: Notify,
    /// A disk that is nearly full fails and takes writes by turns.
    failure_lines: LogLimiter,
}

impl Engine {
    /// In the runtime that the writer is to run in.
    pub(super) fn new(core: Core, backend: Arc<dyn Backend>) -> Arc<Self> {
        let core = Arc::new(core);
        let view = IndexView::new(&core);
        let (runtime, rollbacks, idle) = (Handle::current(), Mutex::default(), Notify::new());
        let failure_lines = LogLimiter::each_minute(1);
        Arc::new(Self { core, backend, view, runtime, rollbacks, idle, failure_lines })
    }

    /// Starts the writer, unless it runs.
    pub(super) fn wake(self: &Arc<Self>) {
        if !std::mem::replace(&mut self.core.queue().writing, true) {
            let writer = GroupCommit { engine: Arc::clone(self), stopped: false };
            drop(self.spawn(writer.run()));
        }
    }

    /// Runs what uses the writing half of the backend, on a thread that it may block.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        job: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        if !self.backend.blocks() {
            return self.runtime.spawn(job);
        }
        // One change of threads for all that waits, not one for each commit.
        let runtime = self.runtime.clone();
        self.runtime.spawn_blocking(move || runtime.block_on(job))
    }

    /// Waits until the writer has nothing to do, or nothing that the store takes now.
    pub(super) async fn settle(&self) {
        loop {
            let idle = self.idle.notified();
            // Not the writer alone uses the backend.
            drop(self.rollbacks.lock().await);
            if !self.core.queue().writing {
                return;
            }
            idle.await;
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
    /// Goes on to its end if it is dropped.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        job: Job<'static, Reported<T>>,
    ) -> Result<T, WriteError> {
        let engine = Arc::clone(self);
        let done = self.spawn(async move {
            let _alone = engine.rollbacks.lock().await;
            engine.apply(job.await).await
        });
        let failed = |error| Err(WriteError::new(&error, Residue::Possible));
        done.await.unwrap_or_else(failed)
    }

    async fn apply<T>(&self, outcome: Reported<T>) -> Result<T, WriteError> {
        for fact in outcome.facts {
            if let Some(damaged) = self.core.apply(fact) {
                self.backend.quarantine(damaged).await;
            }
        }
        outcome.result
    }

    /// Drops a message whose record is damaged, and then sets the bytes aside.
    pub(super) async fn lose(&self, id: MessageId, at: Location) {
        if self.core.lose(id, at) {
            self.backend.quarantine(at).await;
        }
    }

    /// Has the backend write a batch, and notes whether it did.
    pub(super) async fn commit(
        &self,
        batch: Vec<PendingRecord>,
    ) -> Result<Vec<WriteResult>, WriteError> {
        let committed = self.backend.commit(batch, &self.view).await;
        self.note_failure(self.apply(committed).await)
    }

    fn note_failure<T>(&self, result: Result<T, WriteError>) -> Result<T, WriteError> {
        result.inspect_err(|WriteError { error, .. }| {
            if self.core.write_failed(Arc::clone(error)) && self.failure_lines.next().is_some() {
                let store = self.backend.name();
                tracing::warn!(%error, "writes to the spool ({store}) fail: tollgate answers 503 to messages that must be stored, and retries");
            }
        })
    }
}

/// The one that writes, from when something waits until nothing does.
struct GroupCommit {
    engine: Arc<Engine>,
    stopped: bool,
}

impl Drop for GroupCommit {
    /// Should writing ever panic, the next operation starts another writer.
    fn drop(&mut self) {
        if !self.stopped {
            let engine = Arc::clone(&self.engine);
            self.stop(&mut engine.core.queue());
            engine.wake_later();
        }
    }
}

impl GroupCommit {
    fn stop(&mut self, queue: &mut WriteQueue) {
        (queue.writing, queue.since) = (false, None);
        self.stopped = true;
        self.engine.idle.notify_waiters();
    }

    async fn run(mut self) {
        let engine = Arc::clone(&self.engine);
        loop {
            let mut rollbacks = engine.rollbacks.lock().await;
            let ops = engine.core.queue().next_batch(engine.backend.limits());
            engine.core.index().expire(engine.core.options.keep_receipts, Timestamp::now());
            let idle = ops.is_empty() && rollbacks.is_empty();
            let written =
                if idle { self.probe().await } else { self.write(&mut rollbacks, ops).await };
            if let Err(error) = written {
                drop(rollbacks);
                return self.give_up(&error);
            }
            let maintained = engine.backend.maintain(&engine.view).await;
            let maintained = engine.apply(maintained).await;
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
    async fn probe(&self) -> Result<(), Arc<str>> {
        if self.engine.core.index().failure.is_none() {
            return Ok(());
        }
        let none = PendingRecord::bare(RecordKind::Forgotten, MessageId::from_u128(0));
        self.engine.commit(vec![none]).await.map(drop).map_err(|failed| failed.error)
    }

    /// Refuses new messages; notes are tried again later.
    fn give_up(&mut self, error: &Arc<str>) {
        let refusal = self.engine.backend.refusal(Arc::clone(error));
        let engine = Arc::clone(&self.engine);
        let core = &engine.core;
        // Both at once, so that nothing comes in between and waits for the timer.
        let mut index = core.index();
        let mut queue = core.queue();
        let ops = std::mem::take(&mut queue.ops);
        queue.ops = refuse_keeps(&mut index, ops, &refusal).into();
        queue.coalesce();
        self.stop(&mut queue);
        drop(queue);
        drop(index);
        engine.wake_later();
    }

    async fn write(
        &self,
        rollbacks: &mut Vec<MessageId>,
        ops: Vec<WriteOp>,
    ) -> Result<(), Arc<str>> {
        let engine = &self.engine;
        // First what must not come back. As long as that is not written nothing else is tried, so
        // that failures do not pile up.
        if !rollbacks.is_empty() {
            let deletions =
                rollbacks.iter().map(|id| PendingRecord::bare(RecordKind::Forgotten, *id));
            match engine.commit(deletions.collect()).await {
                Ok(_) => rollbacks.clear(),
                Err(WriteError { error, .. }) => {
                    let refusal = engine.backend.refusal(Arc::clone(&error));
                    return Err(self.put_back(ops, &refusal, error));
                }
            }
        }
        let batch: Vec<_> = ops.iter().filter_map(WriteOp::record).cloned().collect();
        let committed = if batch.is_empty() { Ok(Vec::new()) } else { engine.commit(batch).await };
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
