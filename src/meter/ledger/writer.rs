//! The thread that writes the ledger.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::reservations::{LedgerSnapshot, Phase, Stored};
use super::snapshot_file::SnapshotFile;
use super::store::LedgerStore;
use super::{LedgerInner, now};

/// From one write to the next.
const PACE: Duration = Duration::from_millis(25);
/// Writes of the snapshot file before the store is written: five seconds.
const WRITES: u32 = 200;
/// From one try to the next while the disk takes nothing.
const FAILING_PACE: Duration = Duration::from_secs(1);

pub(super) struct LedgerWriter {
    store: LedgerStore,
    /// `None`: the ledger is in memory.
    file: Option<SnapshotFile>,
    shared: Arc<LedgerInner>,
    /// Writes of the snapshot file since the store was written.
    writes: u32,
}

/// What to write, and the tasks that wait for it.
struct Task {
    snapshot: LedgerSnapshot,
    /// Whether the store is written, too.
    store: bool,
    waiting: Vec<oneshot::Sender<()>>,
    flushing: Vec<oneshot::Sender<()>>,
    closing: bool,
}

impl LedgerWriter {
    pub(super) fn new(
        store: LedgerStore,
        file: Option<SnapshotFile>,
        shared: Arc<LedgerInner>,
    ) -> Self {
        Self { store, file, shared, writes: 0 }
    }

    pub(super) fn run(mut self) {
        loop {
            let task = self.next();
            let written = if task.store {
                self.writes = 0;
                self.add(&task.snapshot)
            } else {
                self.writes += 1;
                Ok(())
            };
            let stored = if task.store && written.is_ok() { Stored::Yes } else { Stored::No };
            let file = match &mut self.file {
                Some(file) if stored == Stored::No => {
                    file.write(&task.snapshot).map_err(|error| error.to_string())
                }
                _ => Ok(()),
            };
            let closing = task.closing;
            self.done(task, stored, written.and(file).err());
            if closing {
                return;
            }
        }
    }

    fn add(&mut self, snapshot: &LedgerSnapshot) -> Result<(), String> {
        let Err(error) = self.store.add(snapshot) else { return Ok(()) };
        // After an error the database refuses everything until it is reopened. The snapshot may have
        // been written all the same.
        match self.store.reopen().and_then(|()| self.store.generation()) {
            Ok(generation) if generation == snapshot.generation => Ok(()),
            _ => Err(error.to_string()),
        }
    }

    fn next(&mut self) -> Task {
        let mut state = self.shared.state();
        let urgent = |state: &super::LedgerState| {
            state.closing || !state.waiting.is_empty() || !state.flushing.is_empty()
        };
        while !urgent(&state) && !state.reservations.wants_writing() {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let pace = if state.failure.is_some() { FAILING_PACE } else { PACE };
        let paced = self.shared.changed.wait_timeout_while(state, pace, |state| !urgent(state));
        let (mut state, _) = paced.unwrap_or_else(PoisonError::into_inner);
        let phase = if state.closing { Phase::Closing } else { Phase::Running };
        let snapshot = state.reservations.snapshot(now(), phase);
        let store = state.closing
            || !state.flushing.is_empty()
            || self.writes >= WRITES
            // The snapshot file has little room, and many new series at once take much of it.
            || snapshot.is_large()
            || state.reservations.is_quiet();
        Task {
            snapshot,
            store,
            waiting: std::mem::take(&mut state.waiting),
            flushing: std::mem::take(&mut state.flushing),
            closing: state.closing,
        }
    }

    fn done(&self, task: Task, stored: Stored, failure: Option<String>) {
        let mut state = self.shared.state();
        state.reservations.written(&task.snapshot, stored);
        match (&state.failure, &failure) {
            (None, Some(error)) => {
                tracing::error!(
                    error,
                    "the ledger cannot be written: counting continues in memory"
                );
            }
            (Some(_), None) => tracing::info!("the ledger is written again"),
            _ => {}
        }
        state.failure = failure;
        state.stalled = false;
        drop(state);
        for waiter in task.waiting.into_iter().chain(task.flushing) {
            // It may have stopped waiting.
            waiter.send(()).ok();
        }
    }
}
