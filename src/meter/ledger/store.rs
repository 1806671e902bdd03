//! The store: a day of seconds and ninety days of minutes, by series.

use std::collections::BTreeMap;
use std::fs::{OpenOptions, Permissions};
use std::ops::Range;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use redb::backends::{FileBackend, InMemoryBackend};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

use super::reservations::{Bucket, Buckets, LedgerSnapshot, SeriesId};
use super::series_name::SeriesName;

/// Why the store failed.
pub(super) type StoreFailure = Box<redb::Error>;

/// Instance, parent topic and, if there is one, caller, separated by newlines; an empty topic stands for the whole
/// instance, or for all of a caller.
const SERIES: TableDefinition<SeriesId, &str> = TableDefinition::new("series");
/// Billable and uncertain messages by Unix second.
const SECONDS: TableDefinition<(i64, SeriesId), (u64, u64)> = TableDefinition::new("seconds");
/// Billable and uncertain messages by Unix minute, and the minute's largest second.
const MINUTES: TableDefinition<(i64, SeriesId), (u64, u64, u64)> = TableDefinition::new("minutes");
/// Calls that may be under way.
const RESERVED: TableDefinition<SeriesId, u64> = TableDefinition::new("room");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const GENERATION: &str = "generation";
const VERSION: &str = "version";
/// With callers in the names of series: an older tollgate would count their messages three times.
const THIS_VERSION: u64 = 2;
const WITHOUT_CALLERS: u64 = 1;

/// Memory for the database's cache, bytes.
const CACHE: usize = 1 << 20;
/// How long seconds and minutes are kept, and how many rows of each at most: the file then has
/// about 64 MiB.
const SECONDS_KEPT: i64 = 24 * 3_600;
const MINUTES_KEPT: i64 = 90 * 24 * 60;
const MAX_ROWS: u64 = 1_000_000;
/// Of a ledger in memory, which then has about 5 MiB.
const MAX_ROWS_IN_MEMORY: u64 = 50_000;
/// A clock that jumps ahead must not empty the ledger: no more rows than this go at once.
const MAX_FORGOTTEN: usize = 5_000;

/// Messages of one series in one minute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Minute {
    pub(crate) billable: u64,
    pub(crate) uncertain: u64,
    /// The largest second.
    pub(crate) peak: u64,
}

#[derive(Debug)]
pub(super) struct LedgerStore {
    database: SharedDb,
    path: Option<PathBuf>,
    names: Vec<SeriesName>,
    ids: BTreeMap<SeriesName, SeriesId>,
}

/// The open database, which readers share; a failure replaces it.
#[derive(Debug, Clone)]
pub(super) struct SharedDb(Arc<Mutex<Arc<Database>>>);

impl SharedDb {
    fn new(database: Database) -> Self {
        Self(Arc::new(Mutex::new(Arc::new(database))))
    }

    fn database(&self) -> Arc<Database> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn replace(&self, database: Database) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(database);
    }
}

/// What an opened store holds.
#[derive(Debug, Default)]
pub(super) struct StoreContents {
    pub(super) generation: u64,
    pub(super) names: Vec<SeriesName>,
    pub(super) reserved: BTreeMap<SeriesId, u64>,
}

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("{0}")]
    Failed(#[from] StoreFailure),
    #[error("it was written by a newer tollgate (format {0})")]
    Newer(u64),
}

impl LedgerStore {
    pub(super) fn in_memory() -> Result<Self, StoreFailure> {
        Self::new(memory()?, None)
    }

    pub(super) fn open(path: &Path) -> Result<Self, StoreFailure> {
        Self::new(on_disk(path)?, Some(path.to_owned()))
    }

    fn new(database: Database, path: Option<PathBuf>) -> Result<Self, StoreFailure> {
        let (names, ids) = (Vec::new(), BTreeMap::new());
        let store = Self { database: SharedDb::new(database), path, names, ids };
        store.prepare().map_err(Box::new)?;
        Ok(store)
    }

    pub(super) fn database(&self) -> SharedDb {
        self.database.clone()
    }

    /// Adding a snapshot again changes nothing.
    fn know<'a>(&mut self, names: impl IntoIterator<Item = (SeriesId, &'a SeriesName)>) {
        for (id, name) in names {
            if usize::from(id) == self.names.len() {
                self.ids.insert(name.clone(), id);
                self.names.push(name.clone());
            }
        }
    }

    /// The series that count the messages of this one as well.
    fn sums(&self, id: SeriesId) -> impl Iterator<Item = SeriesId> {
        let sums = self.names.get(usize::from(id)).map(SeriesName::sums);
        sums.into_iter().flatten().filter_map(|name| self.ids.get(&name).copied())
    }

    /// After an error the database refuses everything until it is reopened.
    pub(super) fn reopen(&self) -> Result<(), StoreFailure> {
        let Some(path) = &self.path else { return Ok(()) };
        // The file's lock is released when the last reader of the old database has finished.
        self.database.replace(memory()?);
        self.database.replace(on_disk(path)?);
        Ok(())
    }

    fn prepare(&self) -> Result<(), redb::Error> {
        let write = self.database.database().begin_write()?;
        {
            write.open_table(SERIES)?;
            write.open_table(SECONDS)?;
            write.open_table(MINUTES)?;
            write.open_table(RESERVED)?;
            let mut meta = write.open_table(META)?;
            if meta.get(VERSION)?.is_none() {
                meta.insert(VERSION, WITHOUT_CALLERS)?;
                meta.insert(GENERATION, 0)?;
            }
        }
        write.commit()?;
        Ok(())
    }

    pub(super) fn found(&mut self) -> Result<StoreContents, StoreError> {
        let read = self.database.database();
        let found = || -> Result<(u64, StoreContents), redb::Error> {
            let read = read.begin_read()?;
            let meta = read.open_table(META)?;
            let number = |key| -> Result<u64, redb::Error> {
                Ok(meta.get(key)?.map_or(0, |value| value.value()))
            };
            let mut found =
                StoreContents { generation: number(GENERATION)?, ..StoreContents::default() };
            for row in read.open_table(SERIES)?.range::<SeriesId>(..)? {
                let (_, name) = row?;
                let (instance, scope) = name.value().split_once('\n').unwrap_or_default();
                found.names.push(SeriesName::of_scope(instance, scope));
            }
            for row in read.open_table(RESERVED)?.range::<SeriesId>(..)? {
                let (id, reserved) = row?;
                found.reserved.insert(id.value(), reserved.value());
            }
            Ok((number(VERSION)?, found))
        };
        match found().map_err(Box::new)? {
            (WITHOUT_CALLERS | THIS_VERSION, found) => {
                self.know((0..).zip(&found.names));
                Ok(found)
            }
            (version, _) => Err(StoreError::Newer(version)),
        }
    }

    /// How many snapshots were added.
    pub(super) fn generation(&self) -> Result<u64, StoreFailure> {
        let generation = || -> Result<u64, redb::Error> {
            let meta = self.database.database().begin_read()?.open_table(META)?;
            Ok(meta.get(GENERATION)?.map_or(0, |value| value.value()))
        };
        generation().map_err(Box::new)
    }

    /// Adds a snapshot, all or nothing: only the next generation, and only once.
    pub(super) fn add(&mut self, snapshot: &LedgerSnapshot) -> Result<(), StoreFailure> {
        self.know(snapshot.names.iter().map(|(id, name)| (*id, name)));
        self.try_add(snapshot).map_err(Box::new)
    }

    fn try_add(&self, snapshot: &LedgerSnapshot) -> Result<(), redb::Error> {
        let mut write = self.database.database().begin_write()?;
        // So that a start after a crash takes milliseconds, and does not read every page.
        write.set_quick_repair(true);
        {
            let mut meta = write.open_table(META)?;
            // None: the empty database that stands in for a file that could not be reopened.
            let generation = meta.get(GENERATION)?.map(|value| value.value());
            if generation.is_none_or(|generation| generation + 1 != snapshot.generation) {
                let order = format!("snapshot {} after {generation:?}", snapshot.generation);
                return Err(redb::Error::Corrupted(order));
            }
            meta.insert(GENERATION, snapshot.generation)?;
            let mut series = write.open_table(SERIES)?;
            if snapshot.names.iter().any(|(_, name)| !name.caller.is_empty()) {
                meta.insert(VERSION, THIS_VERSION)?;
            }
            for (id, name) in &snapshot.names {
                series.insert(id, format!("{}\n{}", name.instance, name.scope()).as_str())?;
            }
            let mut reserved = write.open_table(RESERVED)?;
            reserved.retain(|_, _| false)?;
            for (id, open) in &snapshot.reserved {
                reserved.insert(id, open)?;
            }
            let mut buckets = snapshot.buckets.clone();
            for ((second, id), bucket) in &snapshot.buckets {
                for sum in self.sums(*id) {
                    let sum = buckets.entry((*second, sum)).or_default();
                    sum.billable += bucket.billable;
                    sum.uncertain += bucket.uncertain;
                }
            }
            let mut seconds = write.open_table(SECONDS)?;
            let mut minutes = write.open_table(MINUTES)?;
            add_buckets(&buckets, &mut seconds, &mut minutes)?;
            let most = if self.path.is_some() { MAX_ROWS } else { MAX_ROWS_IN_MEMORY };
            forget(&mut seconds, snapshot.second - SECONDS_KEPT, most)?;
            forget(&mut minutes, snapshot.second.div_euclid(60) - MINUTES_KEPT, most)?;
        }
        write.commit()?;
        Ok(())
    }
}

impl SharedDb {
    /// Messages from a Unix second on, in order of time, by series.
    pub(super) fn seconds_since(
        &self,
        second: i64,
        mut each: impl FnMut(i64, SeriesId, Bucket),
    ) -> Result<(), StoreFailure> {
        let mut read = || -> Result<(), redb::Error> {
            let table = self.database().begin_read()?.open_table(SECONDS)?;
            for row in table.range((second, 0)..)? {
                let (key, value) = row?;
                let ((second, id), (billable, uncertain)) = (key.value(), value.value());
                each(second, id, Bucket { billable, uncertain });
            }
            Ok(())
        };
        read().map_err(Box::new)
    }

    /// Minutes of a range of Unix minutes, in order of time, by series.
    pub(super) fn minutes(
        &self,
        range: Range<i64>,
        mut each: impl FnMut(i64, SeriesId, Minute),
    ) -> Result<(), StoreFailure> {
        let mut read = || -> Result<(), redb::Error> {
            let table = self.database().begin_read()?.open_table(MINUTES)?;
            for row in table.range((range.start, 0)..(range.end, 0))? {
                let (key, value) = row?;
                let ((minute, id), (billable, uncertain, peak)) = (key.value(), value.value());
                each(minute, id, Minute { billable, uncertain, peak });
            }
            Ok(())
        };
        read().map_err(Box::new)
    }
}

type Seconds<'a> = redb::Table<'a, (i64, SeriesId), (u64, u64)>;
type Minutes<'a> = redb::Table<'a, (i64, SeriesId), (u64, u64, u64)>;

fn add_buckets(
    buckets: &Buckets,
    seconds: &mut Seconds<'_>,
    minutes: &mut Minutes<'_>,
) -> Result<(), redb::Error> {
    for ((second, id), bucket) in buckets {
        let key = (*second, *id);
        let before = seconds.get(key)?.map_or((0, 0), |value| value.value());
        let (billable, uncertain) = (before.0 + bucket.billable, before.1 + bucket.uncertain);
        seconds.insert(key, (billable, uncertain))?;
        let key = (second.div_euclid(60), *id);
        let before = minutes.get(key)?.map_or((0, 0, 0), |value| value.value());
        let sums =
            (before.0 + bucket.billable, before.1 + bucket.uncertain, before.2.max(billable));
        minutes.insert(key, sums)?;
    }
    Ok(())
}

/// Forgets rows before this time, and the oldest of too many.
fn forget<V: redb::Value>(
    table: &mut redb::Table<'_, (i64, SeriesId), V>,
    before: i64,
    most: u64,
) -> Result<(), redb::Error> {
    for _ in 0..MAX_FORGOTTEN {
        let too_many = table.len()? > most;
        let oldest = table.first()?.map(|(key, _)| key.value());
        match oldest {
            Some((time, _)) if too_many || time < before => table.pop_first()?,
            _ => return Ok(()),
        };
    }
    Ok(())
}

fn memory() -> Result<Database, StoreFailure> {
    redb::Builder::new().create_with_backend(InMemoryBackend::new()).map_err(failed)
}

fn on_disk(path: &Path) -> Result<Database, StoreFailure> {
    // Whatever the umask is, and was when an older version created the file.
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(redb::StorageError::from).map_err(failed)?;
    // It fails for a file of another user, which this one may write all the same.
    drop(file.set_permissions(Permissions::from_mode(0o600)));
    let backend = FileBackend::new(file).map_err(failed)?;
    redb::Builder::new().set_cache_size(CACHE).create_with_backend(backend).map_err(failed)
}

#[expect(clippy::unnecessary_box_returns, reason = "redb's errors are large")]
fn failed(error: impl Into<redb::Error>) -> StoreFailure {
    Box::new(error.into())
}

#[cfg(test)]
mod tests {
    use super::super::reservations::Bucket;
    use super::*;

    fn snapshot(generation: u64, second: i64, buckets: &[(i64, SeriesId)]) -> LedgerSnapshot {
        let bucket = Bucket { billable: 2, uncertain: 1 };
        let buckets = buckets.iter().map(|key| (*key, bucket)).collect();
        LedgerSnapshot { generation, second, buckets, ..LedgerSnapshot::default() }
    }

    fn names() -> Vec<(SeriesId, SeriesName)> {
        let name = |topic: &str| SeriesName::of_all(&"x".into(), topic);
        vec![(0, name("")), (1, name("TopicA")), (2, name("TopicB"))]
    }

    fn minutes(store: &LedgerStore) -> Vec<(i64, SeriesId, Minute)> {
        let mut all = Vec::new();
        store.database().minutes(0..i64::MAX, |at, id, minute| all.push((at, id, minute))).unwrap();
        all
    }

    #[test]
    fn minutes_have_sums_and_the_largest_second_of_a_topic_and_of_all() {
        let mut store = LedgerStore::in_memory().unwrap();
        store.found().unwrap();
        let first =
            LedgerSnapshot { names: names(), ..snapshot(1, 70, &[(60, 1), (60, 2), (61, 1)]) };
        store.add(&first).unwrap();
        // A second may come in two snapshots.
        store.add(&snapshot(2, 70, &[(61, 1), (119, 2)])).unwrap();
        let minute = |billable, uncertain, peak| Minute { billable, uncertain, peak };
        let expected = [(1, 0, minute(10, 5, 4)), (1, 1, minute(6, 3, 4)), (1, 2, minute(4, 2, 2))];
        assert_eq!(minutes(&store), expected);
        // Each snapshot once, and in order.
        assert!(store.add(&snapshot(2, 70, &[(61, 1)])).is_err());
        assert!(store.add(&snapshot(4, 70, &[(61, 1)])).is_err());
        assert_eq!((store.generation().unwrap(), minutes(&store)), (2, expected.to_vec()));
    }

    /// An older tollgate does not open a ledger that has callers, and one that has none it does.
    #[test]
    fn the_version_of_a_ledger() {
        let mut store = LedgerStore::in_memory().unwrap();
        let version = |store: &LedgerStore| {
            let meta = store.database().database().begin_read().unwrap().open_table(META).unwrap();
            meta.get(VERSION).unwrap().unwrap().value()
        };
        let first = LedgerSnapshot { names: names(), ..snapshot(1, 70, &[(60, 1)]) };
        store.add(&first).unwrap();
        assert_eq!(version(&store), WITHOUT_CALLERS);
        let of_caller = SeriesName::of_scope("x", "TopicA\norders");
        let mut all = vec![(3, of_caller.clone())];
        all.extend((4..).zip(of_caller.sums().into_iter().skip(1)));
        store.add(&LedgerSnapshot { names: all, ..snapshot(2, 70, &[(60, 3)]) }).unwrap();
        assert_eq!(version(&store), THIS_VERSION);
        assert_eq!(store.found().unwrap().names.len(), 6);
        // Of the topic for all callers, and of the caller.
        let rows = minutes(&store).into_iter().filter(|(_, id, _)| *id >= 3);
        assert!(rows.clone().all(|(.., minute)| minute.billable == 2) && rows.count() == 3);
    }

    #[test]
    fn a_file_that_cannot_be_opened_anew_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        let mut store = LedgerStore::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(store.reopen().is_err());
        let first = LedgerSnapshot { names: names(), ..snapshot(1, 70, &[(60, 1)]) };
        assert!(store.add(&first).is_err(), "nothing is stored in what ends with the process");
        std::fs::remove_dir(&path).unwrap();
        drop(LedgerStore::open(&path).unwrap());
        store.reopen().unwrap();
        store.add(&first).unwrap();
        assert_eq!(minutes(&store).len(), 2);
    }

    #[test]
    fn the_old_go_and_a_clock_that_jumps_does_not_empty_it() {
        let mut store = LedgerStore::in_memory().unwrap();
        store.found().unwrap();
        let buckets: Vec<_> = (0..20_000).map(|minute| (minute * 60, 1)).collect();
        let first = LedgerSnapshot { names: names(), ..snapshot(1, 20_000 * 60, &buckets) };
        store.add(&first).unwrap();
        // A year ahead: a part of it goes, and the clock may be set right in the meantime.
        store.add(&snapshot(2, 365 * 86_400, &[])).unwrap();
        assert!(minutes(&store).len() >= 2 * 20_000 - 2 * MAX_FORGOTTEN);
        let oldest = (MINUTES_KEPT + 19_990) * 60;
        for generation in 3..20 {
            store.add(&snapshot(generation, oldest, &[])).unwrap();
        }
        assert_eq!(minutes(&store).first().map(|(at, ..)| *at), Some(19_990));
    }
}
