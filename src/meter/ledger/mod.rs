//! The ledger: what was billed, and what may have been, by instance, parent topic and second. It
//! survives the process: each outcome is counted once, wherever the process dies.
//!
//! Calls report to the [`reservations`]; a thread writes a snapshot of them to the
//! [snapshot file](snapshot_file) forty times a second while there is something to write, and to the
//! [`store`] every five seconds. It is a thread of its own, so that a disk that hangs delays no
//! message.

mod reservations;
mod series_name;
mod snapshot_file;
mod store;
mod writer;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::labels::Billed;
pub(super) use reservations::{Bucket, SeriesId};
use reservations::{LedgerSnapshot, Reservations};
pub(super) use series_name::SeriesName;
use snapshot_file::SnapshotFile;
pub(super) use store::Minute;
use store::{LedgerStore, SharedDb};
use writer::LedgerWriter;

/// How long a call waits for its reservation on the disk. If the disk hangs, later calls do not wait:
/// counting must not delay messages.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a ledger does not open.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file or folder cannot be used.
    #[error("the ledger's folder {path} cannot be used: {error}")]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The store cannot be used.
    #[error("the ledger {path} cannot be used: {reason}")]
    Store {
        /// The file or folder.
        path: PathBuf,
        /// The reason, in words.
        reason: String,
    },
}

/// The Unix second in which a process ended, and the calls that had not ended then, at most.
type RecoveredCounts = (i64, BTreeMap<SeriesId, u64>);

/// The ledger. Cheap to clone; [`Ledger::close`] ends it.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    shared: Arc<LedgerInner>,
    database: SharedDb,
    /// What the process left whose ledger this one continues.
    recovered: Option<Arc<RecoveredCounts>>,
    writer: Arc<Mutex<Option<JoinHandle<()>>>>,
}

#[derive(Debug)]
struct LedgerInner {
    state: Mutex<LedgerState>,
    changed: Condvar,
}

#[derive(Debug)]
struct LedgerState {
    reservations: Reservations,
    /// Whether it outlives the process, so that calls need reservations on the disk.
    lasting: bool,
    /// Calls that wait for their reservation.
    waiting: Vec<oneshot::Sender<()>>,
    /// Readers that wait until the store has everything.
    flushing: Vec<oneshot::Sender<()>>,
    closing: bool,
    failure: Option<String>,
    /// A write takes longer than a call waits: calls no longer wait.
    stalled: bool,
    /// Why the configured ledger is in memory only.
    unkept: Option<String>,
}

impl LedgerInner {
    fn new(reservations: Reservations) -> Self {
        let state = LedgerState {
            reservations,
            lasting: false,
            waiting: Vec::new(),
            flushing: Vec::new(),
            closing: false,
            failure: None,
            stalled: false,
            unkept: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, LedgerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// One that ends with the process.
    pub(super) fn in_memory() -> Result<Self, LedgerError> {
        let path = PathBuf::from("(memory)");
        let store = LedgerStore::in_memory().map_err(|error| LedgerError::store(&path, &error))?;
        Self::start(store, None, Reservations::new(0, Vec::new()))
    }

    /// Opens the ledger in `folder`. Returns the messages that an earlier process left uncertain. Blocks.
    pub(super) fn open(folder: &Path) -> Result<(Self, BTreeMap<SeriesName, u64>), LedgerError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| LedgerError::Folder { path, error }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at(folder))?;
        let path = folder.join("ledger.redb");
        let wrong = |error: &dyn std::fmt::Display| LedgerError::store(&path, error);
        let mut store = match LedgerStore::open(&path) {
            Ok(store) => store,
            Err(error) if is_damage(&error) => set_aside(&path, &error)?,
            Err(error) => return Err(wrong(&error)),
        };
        let found = store.found().map_err(|error| wrong(&error))?;
        let file_path = folder.join("hot");
        let (file, snapshot) = SnapshotFile::open(&file_path).map_err(at(&file_path))?;
        let (snapshot, lost) =
            LedgerSnapshot::recover(found.generation, found.reserved, snapshot, now());
        let mut names = found.names;
        names.extend(snapshot.names.iter().map(|(_, name)| name.clone()));
        store.add(&snapshot).map_err(|error| wrong(&error))?;
        let recovered = (snapshot.second, lost.clone());
        let lost = lost.into_iter();
        let lost =
            lost.filter_map(|(id, calls)| Some((names.get(usize::from(id))?.clone(), calls)));
        let lost = lost.filter(|(name, _): &(SeriesName, u64)| name.counts_messages()).collect();
        let reservations = Reservations::new(snapshot.generation, names);
        let ledger = Self::start(store, Some(file), reservations)?;
        let recovered = (found.generation > 0).then(|| Arc::new(recovered));
        Ok((Self { recovered, ..ledger }, lost))
    }

    fn start(
        store: LedgerStore,
        file: Option<SnapshotFile>,
        reservations: Reservations,
    ) -> Result<Self, LedgerError> {
        let shared = Arc::new(LedgerInner::new(reservations));
        shared.state().lasting = file.is_some();
        let (database, its) = (store.database(), Arc::clone(&shared));
        let writer = std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || LedgerWriter::new(store, file, its).run())
            .map_err(|error| LedgerError::Folder { path: "(thread)".into(), error })?;
        Ok(Self { shared, database, recovered: None, writer: Arc::new(Mutex::new(Some(writer))) })
    }

    /// The series of this name, and those that count its messages as well.
    pub(super) fn series(&self, name: &SeriesName) -> Option<SeriesId> {
        let mut state = self.shared.state();
        state.reservations.series(name)
    }

    /// A call is about to be sent. Waits until the disk has its reservation, but not for long.
    pub(super) async fn begin(&self, id: SeriesId) {
        let wait = {
            let mut state = self.shared.state();
            let asleep = state.reservations.is_quiet();
            let begun = state.reservations.begin(id);
            let is_reserved = begun || !state.lasting || state.stalled || state.failure.is_some();
            let wait = (!is_reserved).then(|| {
                let (reserved, wait) = oneshot::channel();
                state.waiting.push(reserved);
                wait
            });
            if asleep || wait.is_some() {
                self.shared.changed.notify_one();
            }
            wait
        };
        if let Some(wait) = wait
            && timeout(PATIENCE, wait).await.is_err()
        {
            self.shared.state().stalled = true;
        }
    }

    /// The call has ended, in this Unix second.
    pub(super) fn end(&self, id: SeriesId, billed: Billed, second: i64) {
        let mut state = self.shared.state();
        let asleep = state.reservations.is_quiet();
        state.reservations.end(id, billed, second);
        if asleep {
            self.shared.changed.notify_one();
        }
    }

    /// Waits until the store has everything that has ended by now.
    pub(super) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        {
            let mut state = self.shared.state();
            if state.closing {
                // The writer stops: a flush would not be answered.
                return;
            }
            state.flushing.push(done);
        }
        self.shared.changed.notify_one();
        drop(flushed.await);
    }

    /// Calls from this Unix second on, by the second in which they ended, and how many of them had not ended when the
    /// last process did. Of other operations than `SendMessage`, those without an answer. `None` where the ledger
    /// begins with this process. Blocks for a moment.
    pub(super) fn seconds_since(&self, second: i64) -> Option<BTreeMap<i64, (Bucket, u64)>> {
        let (died, under_way) = &**self.recovered.as_ref()?;
        let names = self.shared.state().reservations.names();
        let mut found = BTreeMap::<_, (Bucket, u64)>::new();
        let is_own = |id: SeriesId| names.get(usize::from(id)).is_some_and(|n| !n.is_sum());
        let each = |second, id, bucket: Bucket| {
            if is_own(id) {
                let (sum, open) = found.entry(second).or_default();
                sum.billable += bucket.billable;
                sum.uncertain += bucket.uncertain;
                if second == *died {
                    *open += under_way.get(&id).copied().unwrap_or(0);
                }
            }
        };
        self.database.seconds_since(second, each).ok()?;
        Some(found)
    }

    /// Messages by minute, of this range of Unix minutes, in order of time. Blocks.
    pub(super) fn minutes(
        &self,
        range: Range<i64>,
        mut each: impl FnMut(i64, &SeriesName, Minute),
    ) -> Result<(), String> {
        let names = self.shared.state().reservations.names();
        let each = |minute, id: SeriesId, counts| {
            if let Some(name) = names.get(usize::from(id)).filter(|name| name.counts_messages()) {
                each(minute, name, counts);
            }
        };
        self.database.minutes(range, each).map_err(|error| error.to_string())
    }

    /// The configured ledger cannot be used, for this reason: this one is in memory.
    pub(super) fn fails(&self, why: String) {
        self.shared.state().unkept = Some(why);
    }

    /// The last error of the disk, while writes fail.
    pub(super) fn failure(&self) -> Option<String> {
        let state = self.shared.state();
        state.failure.clone().or_else(|| state.unkept.clone())
    }

    /// Stores everything and ends, but does not wait for a disk that hangs: the next process finds the
    /// rest in the snapshot file, or counts it as uncertain.
    pub(super) async fn close(&self) {
        self.shared.state().closing = true;
        self.shared.changed.notify_one();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A writer that has panicked has nothing more to store.
        let ended = tokio::task::spawn_blocking(|| drop(writer.map(JoinHandle::join)));
        if timeout(PATIENCE, ended).await.is_err() {
            tracing::warn!("the disk does not answer: the ledger is not closed");
        }
    }
}

impl LedgerError {
    pub(super) fn store(path: &Path, reason: &dyn std::fmt::Display) -> Self {
        Self::Store { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Whether the file itself is at fault, and not the disk or another process.
fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) => true,
        redb::Error::Io(error) => {
            matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
        }
        _ => false,
    }
}

/// A damaged ledger is kept for an operator to examine, and a new one begun: messages go on.
fn set_aside(path: &Path, error: &redb::Error) -> Result<LedgerStore, LedgerError> {
    let aside = path.with_extension(format!("damaged-{}", now()));
    fs::rename(path, &aside)
        .map_err(|error| LedgerError::Folder { path: path.to_owned(), error })?;
    let aside = aside.display().to_string();
    tracing::error!(%error, aside, "the ledger is damaged: it was set aside and a new one begun");
    LedgerStore::open(path).map_err(|error| LedgerError::store(path, &error))
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    /// One whose thread comes back only when the test ends does not hold up the end of the process.
    #[tokio::test]
    async fn a_disk_that_hangs_holds_up_no_end() {
        let shared = Arc::new(LedgerInner::new(Reservations::new(0, Vec::new())));
        shared.state().lasting = true;
        let database = LedgerStore::in_memory().unwrap().database();
        let (hangs, until) = std::sync::mpsc::channel::<()>();
        let writer = std::thread::spawn(move || until.recv().unwrap_or_default());
        let ledger = Ledger {
            shared,
            database,
            recovered: None,
            writer: Arc::new(Mutex::new(Some(writer))),
        };
        let bound = Duration::from_mins(1);
        timeout(bound, ledger.close()).await.expect("it ends");
        drop(hangs);
    }

    /// A ledger whose thread never comes back from its disk.
    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_waited_for_once() {
        let shared = Arc::new(LedgerInner::new(Reservations::new(0, Vec::new())));
        shared.state().lasting = true;
        let database = LedgerStore::in_memory().unwrap().database();
        let ledger = Ledger { shared, database, recovered: None, writer: Arc::default() };
        let id = ledger.series(&SeriesName::of_all(&"x".into(), "TopicA")).unwrap();
        let start = Instant::now();
        for _ in 0..100 {
            ledger.begin(id).await;
        }
        assert_eq!(start.elapsed().as_secs(), PATIENCE.as_secs());
        assert_eq!(
            ledger.shared.state().reservations.snapshot(0, reservations::Phase::Running).reserved
                [&id],
            100 + 100
        );
    }
}
