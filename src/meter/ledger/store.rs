//! The store: a day of seconds and ninety days of minutes, by series.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};

use super::book::{Cell, Cells, Image, Name, SeriesId};
use crate::message::InstanceId;

/// What is shown of a store that fails.
pub(super) type Failure = Box<redb::Error>;

/// Instance and parent topic, with a line's end between them; a topic that is empty stands for the
/// whole instance.
const SERIES: TableDefinition<SeriesId, &str> = TableDefinition::new("series");
/// Billable and uncertain messages by Unix second.
const SECONDS: TableDefinition<(i64, SeriesId), (u64, u64)> = TableDefinition::new("seconds");
/// Billable and uncertain messages by Unix minute, and the minute's largest second.
const MINUTES: TableDefinition<(i64, SeriesId), (u64, u64, u64)> = TableDefinition::new("minutes");
/// Calls that may be under way.
const ROOM: TableDefinition<SeriesId, u64> = TableDefinition::new("room");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const GENERATION: &str = "generation";
const VERSION: &str = "version";
const THIS_VERSION: u64 = 1;

/// Beside a few bytes for each row, this is what the store takes of memory.
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
pub(super) struct Store {
    database: Shelf,
    path: Option<PathBuf>,
    names: Vec<Name>,
    /// The series that stands for the whole of an instance.
    wholes: BTreeMap<InstanceId, SeriesId>,
}

/// The database as readers find it, which is another one after a failure.
#[derive(Debug, Clone)]
pub(super) struct Shelf(Arc<Mutex<Arc<Database>>>);

impl Shelf {
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

/// What is found where a store is opened.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) generation: u64,
    pub(super) names: Vec<Name>,
    pub(super) room: BTreeMap<SeriesId, u64>,
}

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("{0}")]
    Failed(#[from] Failure),
    #[error("it was written by a newer tollgate (format {0})")]
    Newer(u64),
}

impl Store {
    pub(super) fn in_memory() -> Result<Self, Failure> {
        Self::new(memory()?, None)
    }

    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        Self::new(on_disk(path)?, Some(path.to_owned()))
    }

    fn new(database: Database, path: Option<PathBuf>) -> Result<Self, Failure> {
        let (names, wholes) = (Vec::new(), BTreeMap::new());
        let store = Self { database: Shelf::new(database), path, names, wholes };
        store.prepare().map_err(Box::new)?;
        Ok(store)
    }

    pub(super) fn shelf(&self) -> Shelf {
        self.database.clone()
    }

    /// Known twice is known once: an image may be added again.
    fn know<'a>(&mut self, names: impl IntoIterator<Item = (SeriesId, &'a Name)>) {
        for (id, name) in names {
            if name.topic.is_empty() {
                self.wholes.insert(Arc::clone(&name.instance), id);
            }
            if usize::from(id) == self.names.len() {
                self.names.push(name.clone());
            }
        }
    }

    fn whole(&self, id: SeriesId) -> Option<SeriesId> {
        self.wholes.get(&self.names.get(usize::from(id))?.instance).copied()
    }

    /// After a failure the database refuses everything until it is opened anew.
    pub(super) fn reopen(&self) -> Result<(), Failure> {
        let Some(path) = &self.path else { return Ok(()) };
        // The file's lock goes with the old one, as soon as nobody reads it any more.
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
            write.open_table(ROOM)?;
            let mut meta = write.open_table(META)?;
            if meta.get(VERSION)?.is_none() {
                meta.insert(VERSION, THIS_VERSION)?;
                meta.insert(GENERATION, 0)?;
            }
        }
        write.commit()?;
        Ok(())
    }

    pub(super) fn found(&mut self) -> Result<Found, StoreError> {
        let read = self.database.database();
        let found = || -> Result<(u64, Found), redb::Error> {
            let read = read.begin_read()?;
            let meta = read.open_table(META)?;
            let number = |key| -> Result<u64, redb::Error> {
                Ok(meta.get(key)?.map_or(0, |value| value.value()))
            };
            let mut found = Found { generation: number(GENERATION)?, ..Found::default() };
            for row in read.open_table(SERIES)?.range::<SeriesId>(..)? {
                let (_, name) = row?;
                let (instance, topic) = name.value().split_once('\n').unwrap_or_default();
                found.names.push(Name { instance: instance.into(), topic: topic.into() });
            }
            for row in read.open_table(ROOM)?.range::<SeriesId>(..)? {
                let (id, room) = row?;
                found.room.insert(id.value(), room.value());
            }
            Ok((number(VERSION)?, found))
        };
        match found().map_err(Box::new)? {
            (THIS_VERSION, found) => {
                self.know((0..).zip(&found.names));
                Ok(found)
            }
            (version, _) => Err(StoreError::Newer(version)),
        }
    }

    /// How many images were added.
    pub(super) fn generation(&self) -> Result<u64, Failure> {
        let generation = || -> Result<u64, redb::Error> {
            let meta = self.database.database().begin_read()?.open_table(META)?;
            Ok(meta.get(GENERATION)?.map_or(0, |value| value.value()))
        };
        generation().map_err(Box::new)
    }

    /// Adds what an image has, all or nothing: the next one, and each once.
    pub(super) fn add(&mut self, image: &Image) -> Result<(), Failure> {
        self.know(image.names.iter().map(|(id, name)| (*id, name)));
        self.try_add(image).map_err(Box::new)
    }

    fn try_add(&self, image: &Image) -> Result<(), redb::Error> {
        let mut write = self.database.database().begin_write()?;
        // So that a start after a crash takes milliseconds, not a look at every page.
        write.set_quick_repair(true);
        {
            let mut meta = write.open_table(META)?;
            // None: what stands in for a file that could not be opened anew.
            let generation = meta.get(GENERATION)?.map(|value| value.value());
            if generation.is_none_or(|generation| generation + 1 != image.generation) {
                let order = format!("image {} after {generation:?}", image.generation);
                return Err(redb::Error::Corrupted(order));
            }
            meta.insert(GENERATION, image.generation)?;
            let mut series = write.open_table(SERIES)?;
            for (id, name) in &image.names {
                series.insert(id, format!("{}\n{}", name.instance, name.topic).as_str())?;
            }
            let mut room = write.open_table(ROOM)?;
            room.retain(|_, _| false)?;
            for (id, open) in &image.room {
                room.insert(id, open)?;
            }
            let mut cells = image.cells.clone();
            for ((second, id), cell) in &image.cells {
                let Some(whole) = self.whole(*id) else { continue };
                let whole = cells.entry((*second, whole)).or_default();
                whole.billable += cell.billable;
                whole.uncertain += cell.uncertain;
            }
            let mut seconds = write.open_table(SECONDS)?;
            let mut minutes = write.open_table(MINUTES)?;
            add_cells(&cells, &mut seconds, &mut minutes)?;
            let most = if self.path.is_some() { MAX_ROWS } else { MAX_ROWS_IN_MEMORY };
            forget(&mut seconds, image.second - SECONDS_KEPT, most)?;
            forget(&mut minutes, image.second.div_euclid(60) - MINUTES_KEPT, most)?;
        }
        write.commit()?;
        Ok(())
    }
}

impl Shelf {
    /// Messages from a Unix second on, in order of time, by series.
    pub(super) fn seconds_since(
        &self,
        second: i64,
        mut each: impl FnMut(i64, SeriesId, Cell),
    ) -> Result<(), Failure> {
        let mut read = || -> Result<(), redb::Error> {
            let table = self.database().begin_read()?.open_table(SECONDS)?;
            for row in table.range((second, 0)..)? {
                let (key, value) = row?;
                let ((second, id), (billable, uncertain)) = (key.value(), value.value());
                each(second, id, Cell { billable, uncertain });
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
    ) -> Result<(), Failure> {
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

fn add_cells(
    cells: &Cells,
    seconds: &mut Seconds<'_>,
    minutes: &mut Minutes<'_>,
) -> Result<(), redb::Error> {
    for ((second, id), cell) in cells {
        let key = (*second, *id);
        let before = seconds.get(key)?.map_or((0, 0), |value| value.value());
        let (billable, uncertain) = (before.0 + cell.billable, before.1 + cell.uncertain);
        seconds.insert(key, (billable, uncertain))?;
        let key = (second.div_euclid(60), *id);
        let before = minutes.get(key)?.map_or((0, 0, 0), |value| value.value());
        let sums = (before.0 + cell.billable, before.1 + cell.uncertain, before.2.max(billable));
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

fn memory() -> Result<Database, Failure> {
    redb::Builder::new().create_with_backend(InMemoryBackend::new()).map_err(failed)
}

fn on_disk(path: &Path) -> Result<Database, Failure> {
    redb::Builder::new().set_cache_size(CACHE).create(path).map_err(failed)
}

#[expect(clippy::unnecessary_box_returns, reason = "redb's errors are large")]
fn failed(error: impl Into<redb::Error>) -> Failure {
    Box::new(error.into())
}

#[cfg(test)]
mod tests {
    use super::super::book::Cell;
    use super::*;

    fn image(generation: u64, second: i64, cells: &[(i64, SeriesId)]) -> Image {
        let cell = Cell { billable: 2, uncertain: 1 };
        let cells = cells.iter().map(|key| (*key, cell)).collect();
        Image { generation, second, cells, ..Image::default() }
    }

    fn names() -> Vec<(SeriesId, Name)> {
        let name = |topic: &str| Name { instance: "x".into(), topic: topic.into() };
        vec![(0, name("")), (1, name("TopicA")), (2, name("TopicB"))]
    }

    fn minutes(store: &Store) -> Vec<(i64, SeriesId, Minute)> {
        let mut all = Vec::new();
        store.shelf().minutes(0..i64::MAX, |at, id, minute| all.push((at, id, minute))).unwrap();
        all
    }

    #[test]
    fn minutes_have_sums_and_the_largest_second_of_a_topic_and_of_all() {
        let mut store = Store::in_memory().unwrap();
        store.found().unwrap();
        let first = Image { names: names(), ..image(1, 70, &[(60, 1), (60, 2), (61, 1)]) };
        store.add(&first).unwrap();
        // A second may come in two images.
        store.add(&image(2, 70, &[(61, 1), (119, 2)])).unwrap();
        let minute = |billable, uncertain, peak| Minute { billable, uncertain, peak };
        let expected = [(1, 0, minute(10, 5, 4)), (1, 1, minute(6, 3, 4)), (1, 2, minute(4, 2, 2))];
        assert_eq!(minutes(&store), expected);
        // Each image once, and in order.
        assert!(store.add(&image(2, 70, &[(61, 1)])).is_err());
        assert!(store.add(&image(4, 70, &[(61, 1)])).is_err());
        assert_eq!((store.generation().unwrap(), minutes(&store)), (2, expected.to_vec()));
    }

    #[test]
    fn a_file_that_cannot_be_opened_anew_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.redb");
        let mut store = Store::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(store.reopen().is_err());
        let first = Image { names: names(), ..image(1, 70, &[(60, 1)]) };
        assert!(store.add(&first).is_err(), "nothing is stored in what ends with the process");
        std::fs::remove_dir(&path).unwrap();
        drop(Store::open(&path).unwrap());
        store.reopen().unwrap();
        store.add(&first).unwrap();
        assert_eq!(minutes(&store).len(), 2);
    }

    #[test]
    fn the_old_go_and_a_clock_that_jumps_does_not_empty_it() {
        let mut store = Store::in_memory().unwrap();
        store.found().unwrap();
        let cells: Vec<_> = (0..20_000).map(|minute| (minute * 60, 1)).collect();
        let first = Image { names: names(), ..image(1, 20_000 * 60, &cells) };
        store.add(&first).unwrap();
        // A year ahead: a part of it goes, and the clock may be set right in the meantime.
        store.add(&image(2, 365 * 86_400, &[])).unwrap();
        assert!(minutes(&store).len() >= 2 * 20_000 - 2 * MAX_FORGOTTEN);
        let oldest = (MINUTES_KEPT + 19_990) * 60;
        for generation in 3..20 {
            store.add(&image(generation, oldest, &[])).unwrap();
        }
        assert_eq!(minutes(&store).first().map(|(at, ..)| *at), Some(19_990));
    }
}
