//! The thread that writes the ledger.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::book::Image;
use super::hot::Hot;
use super::store::Store;
use super::{Shared, now};

/// From one write to the next.
const PACE: Duration = Duration::from_millis(25);
/// Writes of the hot file before the store is written: five seconds.
const WRITES: u32 = 200;
/// From one try to the next while the disk takes nothing.
const FAILING_PACE: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    store: Store,
    /// `None`: nothing lasts.
    hot: Option<Hot>,
    shared: Arc<Shared>,
    /// Of the hot file, since the store's.
    writes: u32,
}

/// What to write, and who waits for it.
struct Task {
    image: Image,
    /// To the store.
    store: bool,
    waiting: Vec<oneshot::Sender<()>>,
    flushing: Vec<oneshot::Sender<()>>,
    closing: bool,
}

impl Writer {
    pub(super) fn new(store: Store, hot: Option<Hot>, shared: Arc<Shared>) -> Self {
        Self { store, hot, shared, writes: 0 }
    }

    pub(super) fn run(mut self) {
        loop {
            let task = self.next();
            let written = if task.store {
                self.writes = 0;
                self.add(&task.image)
            } else {
                self.writes += 1;
                Ok(())
            };
            let stored = task.store && written.is_ok();
            let hot = match &mut self.hot {
                Some(hot) if !stored => hot.write(&task.image).map_err(|error| error.to_string()),
                _ => Ok(()),
            };
            let closing = task.closing;
            self.done(task, stored, written.and(hot).err());
            if closing {
                return;
            }
        }
    }

    fn add(&mut self, image: &Image) -> Result<(), String> {
        let Err(error) = self.store.add(image) else { return Ok(()) };
        // It refuses everything until it is opened anew; and what it says has failed may have been
        // written after all.
        match self.store.reopen().and_then(|()| self.store.generation()) {
            Ok(generation) if generation == image.generation => Ok(()),
            _ => Err(error.to_string()),
        }
    }

    fn next(&mut self) -> Task {
        let mut state = self.shared.state();
        let urgent = |state: &super::State| {
            state.closing || !state.waiting.is_empty() || !state.flushing.is_empty()
        };
        while !urgent(&state) && !state.book.wants_writing() {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let pace = if state.failure.is_some() { FAILING_PACE } else { PACE };
        let paced = self.shared.changed.wait_timeout_while(state, pace, |state| !urgent(state));
        let (mut state, _) = paced.unwrap_or_else(PoisonError::into_inner);
        let closing = state.closing;
        let image = state.book.image(now(), closing);
        let store = state.closing
            || !state.flushing.is_empty()
            || self.writes >= WRITES
            || state.book.is_quiet();
        Task {
            image,
            store,
            waiting: std::mem::take(&mut state.waiting),
            flushing: std::mem::take(&mut state.flushing),
            closing: state.closing,
        }
    }

    fn done(&self, task: Task, stored: bool, failure: Option<String>) {
        let mut state = self.shared.state();
        state.book.written(&task.image, stored);
        match (&state.failure, &failure) {
            (None, Some(error)) => {
                tracing::error!(error, "the ledger cannot be written: counting goes on in memory");
            }
            (Some(_), None) => tracing::info!("the ledger is written again"),
            _ => {}
        }
        state.failure = failure;
        state.stalled = false;
        drop(state);
        for waiter in task.waiting.into_iter().chain(task.flushing) {
            // It may have gone on without.
            waiter.send(()).ok();
        }
    }
}
