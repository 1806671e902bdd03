//! The bill of a fleet: what all sidecars have counted, in the fleet's Redis.
//!
//! A sidecar adds [what it has counted](journal) since its last write to the sums of all, and leaves room for calls that
//! Redis does not know yet. The [writer] is a task of its own: no call waits for Redis. The [reader] makes the bill of
//! the sums, which are also of sidecars that are gone.

mod changes;
mod client;
mod journal;
mod reader;
mod room;
mod stored;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::labels::Billed;
use super::ledger::SeriesName;
use super::parts::Parts;
use crate::config;
use crate::message::InstanceId;
use journal::Journal;
pub use reader::fleet_bill;

/// How long the last write of a process may take.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// Counts this sidecar's messages for the bill of its fleet.
#[derive(Debug)]
pub(super) struct FleetRecorder {
    shared: Arc<RecorderInner>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct RecorderInner {
    /// Of this process; no other has it.
    id: String,
    journal: Mutex<Journal>,
    wake: Notify,
}

impl RecorderInner {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FleetRecorder {
    /// One that writes to this fleet's Redis. On a runtime.
    pub(super) fn start(
        fleet: &config::Fleet,
        ceiling: u32,
        parts: Arc<Parts>,
        instances: impl IntoIterator<Item = InstanceId>,
        second: i64,
    ) -> Self {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let random = || getrandom::u64().unwrap_or_else(|_| fastrand::u64(..));
        let numbers = fastrand::Rng::with_seed(random());
        let journal = Journal::new(name, second, instances, parts, ceiling, numbers);
        let shared = Arc::new(RecorderInner {
            id: format!("{:016x}{:016x}", random(), random()),
            journal: Mutex::new(journal),
            wake: Notify::new(),
        });
        let writer = tokio::spawn(writer::run(Arc::clone(&shared), fleet.clone()));
        Self { shared, writer: Mutex::new(Some(writer)) }
    }

    /// A call of a series is about to leave, which is counted under this number.
    pub(super) fn begin(&self, series: usize, name: &SeriesName) {
        let wakes = self.shared.journal().begin(series, name);
        if wakes {
            self.shared.wake.notify_one();
        }
    }

    /// A part of a shared budget is nearly used up, or a message waits for one.
    pub(super) fn urge(&self) {
        self.shared.journal().urge();
        self.shared.wake.notify_one();
    }

    pub(super) fn set_ceiling(&self, ceiling: u32) {
        self.shared.journal().set_ceiling(ceiling);
    }

    /// It has ended, in this Unix second.
    pub(super) fn end(&self, series: usize, billed: Billed, second: i64) {
        self.shared.journal().end(series, billed, second);
    }

    /// Writes the rest, and that no calls follow; but does not wait for long.
    pub(super) async fn close(&self) {
        self.shared.journal().close();
        self.shared.wake.notify_one();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut writer) = writer else { return };
        if timeout(LAST_WRITE, &mut writer).await.is_err() {
            writer.abort();
            tracing::warn!(
                "Redis has not answered in time: the fleet's bill lacks the last messages of this sidecar, and has \
                 them as uncertain"
            );
        }
    }
}
