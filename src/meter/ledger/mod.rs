//! The ledger: what was billed, and what may have been, by instance, parent topic and second. It
//! survives the process: what is told to a caller is counted once, whatever happens in between.
//!
//! Calls report to the [`book`]; a thread writes the book to the [`hot`] file forty times a
//! second while there is something to write, and to the [`store`] every five seconds. A thread of
//! its own, since a disk that hangs must hold up no message.

mod book;
mod hot;
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

use super::words::Billed;
use book::{Book, Image};
pub(super) use book::{Cell, Name, SeriesId};
use hot::Hot;
pub(super) use store::Minute;
use store::{Shelf, Store};
use writer::Writer;

/// How long a call waits for room on the disk. A disk that hangs is waited for once: counting must
/// not hold up messages.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a ledger does not open.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file or folder cannot be used.
    #[error("the ledger's folder {path} cannot be used: {error}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The store cannot be used.
    #[error("the ledger {path} cannot be used: {reason}")]
    Store {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The Unix second in which a process ended, and the calls that had not ended then, at most.
type Recovered = (i64, BTreeMap<SeriesId, u64>);

/// The ledger. Cheap to clone; [`Ledger::close`] ends it.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    shared: Arc<Shared>,
    shelf: Shelf,
    /// What the process left whose ledger this one continues.
    recovered: Option<Arc<Recovered>>,
    writer: Arc<Mutex<Option<JoinHandle<()>>>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    book: Book,
    /// Whether it outlives the process, so that calls need room on the disk.
    lasting: bool,
    /// Calls that wait for room.
    waiting: Vec<oneshot::Sender<()>>,
    /// Readers who want the store to have everything.
    flushing: Vec<oneshot::Sender<()>>,
    closing: bool,
    failure: Option<String>,
    /// A write takes longer than calls wait.
    stalled: bool,
    /// Why it is in memory, where it was not to be.
    unkept: Option<String>,
}

impl Shared {
    fn new(book: Book, lasting: bool) -> Self {
        let state = State {
            book,
            lasting,
            waiting: Vec::new(),
            flushing: Vec::new(),
            closing: false,
            failure: None,
            stalled: false,
            unkept: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// One that ends with the process.
    pub(super) fn in_memory() -> Result<Self, LedgerError> {
        let path = PathBuf::from("(memory)");
        let store = Store::in_memory().map_err(|error| LedgerError::store(&path, &error))?;
        Self::start(store, None, Book::new(0, Vec::new()), None)
    }

    /// Opens the one in `folder`, and says what an earlier process has left uncertain. Blocks.
    pub(super) fn open(folder: &Path) -> Result<(Self, BTreeMap<Name, u64>), LedgerError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| LedgerError::Folder { path, error }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at(folder))?;
        let path = folder.join("ledger.redb");
        let wrong = |error: &dyn std::fmt::Display| LedgerError::store(&path, error);
        let mut store = match Store::open(&path) {
            Ok(store) => store,
            Err(error) if is_damage(&error) => set_aside(&path, &error)?,
            Err(error) => return Err(wrong(&error)),
        };
        let found = store.found().map_err(|error| wrong(&error))?;
        let hot_path = folder.join("hot");
        let (hot, image) = Hot::open(&hot_path).map_err(at(&hot_path))?;
        let (image, lost) = Image::recover(found.generation, found.room, image, now());
        let mut names = found.names;
        names.extend(image.names.iter().map(|(_, name)| name.clone()));
        store.add(&image).map_err(|error| wrong(&error))?;
        let recovered = (image.second, lost.clone());
        let lost = lost.into_iter();
        let lost =
            lost.filter_map(|(id, calls)| Some((names.get(usize::from(id))?.clone(), calls)));
        let lost = lost.collect();
        let book = Book::new(image.generation, names);
        let before = (found.generation > 0).then_some(recovered);
        Ok((Self::start(store, Some(hot), book, before)?, lost))
    }

    fn start(
        store: Store,
        hot: Option<Hot>,
        book: Book,
        recovered: Option<Recovered>,
    ) -> Result<Self, LedgerError> {
        let shared = Arc::new(Shared::new(book, hot.is_some()));
        let (shelf, its) = (store.shelf(), Arc::clone(&shared));
        let writer = std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || Writer::new(store, hot, its).run())
            .map_err(|error| LedgerError::Folder { path: "(thread)".into(), error })?;
        Ok(Self {
            shared,
            shelf,
            recovered: recovered.map(Arc::new),
            writer: Arc::new(Mutex::new(Some(writer))),
        })
    }

    /// The series of this name, and the one that stands for its whole instance.
    pub(super) fn series(&self, name: &Name) -> Option<SeriesId> {
        let mut state = self.shared.state();
        let whole = Name { instance: Arc::clone(&name.instance), topic: "".into() };
        state.book.series(&whole)?;
        state.book.series(name)
    }

    /// A call is about to leave. Waits until the disk knows that it may, but not for long.
    pub(super) async fn begin(&self, id: SeriesId) {
        let wait = {
            let mut state = self.shared.state();
            let asleep = state.book.is_quiet();
            let begun = state.book.begin(id);
            let has_room = begun || !state.lasting || state.stalled || state.failure.is_some();
            let wait = (!has_room).then(|| {
                let (room, wait) = oneshot::channel();
                state.waiting.push(room);
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

    /// It has ended, in this Unix second.
    pub(super) fn end(&self, id: SeriesId, billed: Billed, second: i64) {
        let mut state = self.shared.state();
        let asleep = state.book.is_quiet();
        state.book.end(id, billed, second);
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
                // Nobody writes any more, or soon.
                return;
            }
            state.flushing.push(done);
        }
        self.shared.changed.notify_one();
        drop(flushed.await);
    }

    /// Messages from this Unix second on, by the second in which their calls ended, and how many of
    /// them had not ended when the last process did; `None` where the ledger begins with this process.
    /// Blocks for a moment.
    pub(super) fn seconds_since(&self, second: i64) -> Option<BTreeMap<i64, (Cell, u64)>> {
        let (died, under_way) = &**self.recovered.as_ref()?;
        let names = self.shared.state().book.names();
        let mut found = BTreeMap::<_, (Cell, u64)>::new();
        // An instance's own series counts what its topics' series count.
        let is_topic =
            |id: SeriesId| names.get(usize::from(id)).is_some_and(|n| !n.topic.is_empty());
        let each = |second, id, cell: Cell| {
            if is_topic(id) {
                let (sum, open) = found.entry(second).or_default();
                sum.billable += cell.billable;
                sum.uncertain += cell.uncertain;
                if second == *died {
                    *open += under_way.get(&id).copied().unwrap_or(0);
                }
            }
        };
        self.shelf.seconds_since(second, each).ok()?;
        Some(found)
    }

    /// Minutes of this range of Unix minutes, in order of time. Blocks.
    pub(super) fn minutes(
        &self,
        range: Range<i64>,
        mut each: impl FnMut(i64, &Name, Minute),
    ) -> Result<(), String> {
        let names = self.shared.state().book.names();
        let each = |minute, id: SeriesId, counts| {
            if let Some(name) = names.get(usize::from(id)) {
                each(minute, name, counts);
            }
        };
        self.shelf.minutes(range, each).map_err(|error| error.to_string())
    }

    /// It is in memory, for this reason.
    pub(super) fn fails(&self, why: String) {
        self.shared.state().unkept = Some(why);
    }

    /// What the disk said last, if it takes nothing.
    pub(super) fn failure(&self) -> Option<String> {
        let state = self.shared.state();
        state.failure.clone().or_else(|| state.unkept.clone())
    }

    /// Stores everything and ends. A disk that hangs holds up no end: what it has not stored, the next
    /// process finds in the hot file, or counts as uncertain.
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

/// A ledger that cannot be read is kept for those who can, and a new one begun: messages go on.
fn set_aside(path: &Path, error: &redb::Error) -> Result<Store, LedgerError> {
    let aside = path.with_extension(format!("damaged-{}", now()));
    fs::rename(path, &aside)
        .map_err(|error| LedgerError::Folder { path: path.to_owned(), error })?;
    let aside = aside.display().to_string();
    tracing::error!(%error, aside, "the ledger is damaged: it was set aside and a new one begun");
    Store::open(path).map_err(|error| LedgerError::store(path, &error))
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
        let shared = Arc::new(Shared::new(Book::new(0, Vec::new()), true));
        let shelf = Store::in_memory().unwrap().shelf();
        let (hangs, until) = std::sync::mpsc::channel::<()>();
        let writer = std::thread::spawn(move || until.recv().unwrap_or_default());
        let ledger =
            Ledger { shared, shelf, recovered: None, writer: Arc::new(Mutex::new(Some(writer))) };
        let bound = Duration::from_mins(1);
        timeout(bound, ledger.close()).await.expect("it ends");
        drop(hangs);
    }

    /// A ledger whose thread never comes back from its disk.
    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_waited_for_once() {
        let shared = Arc::new(Shared::new(Book::new(0, Vec::new()), true));
        let shelf = Store::in_memory().unwrap().shelf();
        let ledger = Ledger { shared, shelf, recovered: None, writer: Arc::default() };
        let id = ledger.series(&Name { instance: "x".into(), topic: "TopicA".into() }).unwrap();
        let start = Instant::now();
        for _ in 0..100 {
            ledger.begin(id).await;
        }
        assert_eq!(start.elapsed().as_secs(), PATIENCE.as_secs());
        assert_eq!(ledger.shared.state().book.image(0, false).room[&id], 100 + 100);
    }
}
