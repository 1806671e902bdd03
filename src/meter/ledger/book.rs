//! What is counted between two writes to the disk.
//!
//! A killed process cannot say how its last calls ended. So the disk knows beforehand how many may
//! be under way: each series has room there for the calls it has, and for a few that may begin
//! before the next write. What begins beyond its room waits for a write. After a crash, room that
//! no call has given back is uncertain: never less than the truth, and more by a few at most.
//!
//! Pure: it is told the time, and writes nothing itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::message::InstanceId;
use crate::meter::words::Billed;

/// A series' number in the ledger.
pub(crate) type SeriesId = u16;

/// Writes without a new call before a series gives its room back.
const IDLE_WRITES: u8 = 10;
/// Calls that may begin before the next write, while there are any; one more is written at once.
const MIN_ROOM: u64 = 4;
const MAX_ROOM: u64 = 10_000;
/// Cells that wait for the store; more are merged into coarser ones.
const MAX_CELLS: usize = 4_096;

/// Messages of one series in one second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) billable: u64,
    pub(crate) uncertain: u64,
}

/// By Unix second and series.
pub(super) type Cells = BTreeMap<(i64, SeriesId), Cell>;

/// Whose messages a series counts. The topic is a parent topic, or `other`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) instance: InstanceId,
    pub(crate) topic: Arc<str>,
}

/// What is to be on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Image {
    /// One more than that of the store that it continues.
    pub(super) generation: u64,
    /// When it was taken, Unix seconds.
    pub(super) second: i64,
    /// Series that the store does not know yet.
    pub(super) names: Vec<(SeriesId, Name)>,
    /// Messages since the store was written.
    pub(super) cells: Cells,
    /// Calls that may be under way.
    pub(super) room: BTreeMap<SeriesId, u64>,
}

impl Image {
    /// What a crash has left, from what the store and the hot file say: the image to add to the
    /// store, and the calls of which nobody knows how they ended.
    pub(super) fn recover(
        stored: u64,
        room: BTreeMap<SeriesId, u64>,
        hot: Option<Self>,
        now: i64,
    ) -> (Self, BTreeMap<SeriesId, u64>) {
        // A hot file that does not continue the store is in it.
        let mut image = hot.filter(|hot| hot.generation == stored + 1).unwrap_or_else(|| Self {
            generation: stored + 1,
            second: now,
            room,
            ..Self::default()
        });
        let lost = std::mem::take(&mut image.room);
        for (id, calls) in &lost {
            image.cells.entry((image.second, *id)).or_default().uncertain += calls;
        }
        (image, lost)
    }
}

#[derive(Debug)]
struct Series {
    name: Name,
    begun: u64,
    ended: u64,
    /// The disk has room for calls up to this one.
    covered: u64,
    /// Calls that had begun when the last image was taken, and how many more have room in it.
    imaged: u64,
    spare: u64,
    idle: u8,
}

impl Series {
    fn new(name: Name) -> Self {
        Self { name, begun: 0, ended: 0, covered: 0, imaged: 0, spare: 0, idle: 0 }
    }
}

#[derive(Debug)]
pub(super) struct Book {
    generation: u64,
    series: Vec<Series>,
    ids: BTreeMap<Name, SeriesId>,
    /// How many of the series the store knows.
    stored: usize,
    cells: Cells,
    changed: bool,
    spare: bool,
}

impl Book {
    /// Continues what a store holds.
    pub(super) fn new(generation: u64, names: Vec<Name>) -> Self {
        let ids = names.iter().cloned().zip(0..).collect();
        let series: Vec<_> = names.into_iter().map(Series::new).collect();
        let (stored, cells) = (series.len(), Cells::new());
        Self { generation, series, ids, stored, cells, changed: false, spare: false }
    }

    /// The series of this name; `None` when there are as many as can be numbered.
    pub(super) fn series(&mut self, name: &Name) -> Option<SeriesId> {
        if let Some(id) = self.ids.get(name) {
            return Some(*id);
        }
        let id = SeriesId::try_from(self.series.len()).ok()?;
        self.series.push(Series::new(name.clone()));
        self.ids.insert(name.clone(), id);
        Some(id)
    }

    /// All series, by their numbers.
    pub(super) fn names(&self) -> Vec<Name> {
        self.series.iter().map(|series| series.name.clone()).collect()
    }

    /// A call begins. Whether the disk has room for it; otherwise it waits for a write.
    pub(super) fn begin(&mut self, id: SeriesId) -> bool {
        self.changed = true;
        let series = &mut self.series[usize::from(id)];
        series.begun += 1;
        series.begun <= series.covered
    }

    /// A call has ended in this Unix second.
    pub(super) fn end(&mut self, id: SeriesId, billed: Billed, second: i64) {
        self.changed = true;
        self.series[usize::from(id)].ended += 1;
        let (billable, uncertain) = match billed {
            Billed::Yes => (1, 0),
            Billed::Uncertain => (0, 1),
            Billed::No => return,
        };
        let cell = self.cells.entry((second, id)).or_default();
        cell.billable += billable;
        cell.uncertain += uncertain;
    }

    /// Whether a write would change anything.
    pub(super) fn wants_writing(&self) -> bool {
        self.changed || self.spare || !self.cells.is_empty()
    }

    /// Whether nothing is under way or expected, so that the next may be a while off.
    pub(super) fn is_quiet(&self) -> bool {
        !self.changed && !self.spare
    }

    /// What to write now. Until [`Book::written`], no call begins without waiting that this has no
    /// room for.
    /// The `last` one has room for nothing that has not begun.
    pub(super) fn image(&mut self, second: i64, last: bool) -> Image {
        self.coarsen();
        let mut room = BTreeMap::new();
        self.spare = false;
        for (id, series) in (0..).zip(&mut self.series) {
            let new = series.begun - series.imaged;
            series.idle = if new > 0 { 0 } else { series.idle.saturating_add(1) };
            series.spare = match series.idle {
                _ if last => 0,
                0 => new.clamp(MIN_ROOM, MAX_ROOM),
                idle if idle < IDLE_WRITES => series.spare,
                _ => 0,
            };
            series.imaged = series.begun;
            series.covered = series.covered.min(series.begun + series.spare);
            self.spare |= series.spare > 0;
            let open = series.begun - series.ended + series.spare;
            if open > 0 {
                room.insert(id, open);
            }
        }
        self.changed = false;
        let unknown = (0..).zip(&self.series).skip(self.stored);
        let names = unknown.map(|(id, series)| (id, series.name.clone())).collect();
        Image { generation: self.generation + 1, second, names, cells: self.cells.clone(), room }
    }

    /// The image is on the disk, or the disk has failed and nobody is to wait for it; `stored`: in
    /// the store.
    pub(super) fn written(&mut self, image: &Image, stored: bool) {
        for series in &mut self.series {
            series.covered = series.covered.max(series.imaged + series.spare);
        }
        if !stored {
            return;
        }
        self.generation = image.generation;
        self.stored += image.names.len();
        for (key, done) in &image.cells {
            if let Some(cell) = self.cells.get_mut(key) {
                cell.billable -= done.billable;
                cell.uncertain -= done.uncertain;
            }
        }
        self.cells.retain(|_, cell| *cell != Cell::default());
    }

    /// A store that takes nothing for long must not fill the memory. Merged into the last second of a
    /// minute, or more: a call without an answer must not seem to be longer ago than it is.
    fn coarsen(&mut self) {
        for grain in [60, 3_600, 86_400] {
            if self.cells.len() <= MAX_CELLS {
                return;
            }
            for ((second, id), cell) in std::mem::take(&mut self.cells) {
                let last = second - second.rem_euclid(grain) + grain - 1;
                let merged = self.cells.entry((last, id)).or_default();
                merged.billable += cell.billable;
                merged.uncertain += cell.uncertain;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Begin(SeriesId),
        End(usize, u8),
        Write,
        Store,
        Tick,
        Crash,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..3_u16).prop_map(Step::Begin),
            5 => (any::<usize>(), 0..3_u8).prop_map(|(nth, billed)| Step::End(nth, billed)),
            4 => Just(Step::Write),
            2 => Just(Step::Store),
            1 => Just(Step::Tick),
            1 => Just(Step::Crash),
        ]
    }

    /// A disk that forgets nothing, and what was put on it.
    #[derive(Default)]
    struct Disk {
        generation: u64,
        names: Vec<Name>,
        cells: Cells,
        room: BTreeMap<SeriesId, u64>,
        hot: Option<Image>,
    }

    impl Disk {
        fn add(&mut self, image: &Image) {
            assert_eq!(image.generation, self.generation + 1);
            self.generation = image.generation;
            self.names.extend(image.names.iter().map(|(_, name)| name.clone()));
            self.room = image.room.clone();
            for (key, cell) in &image.cells {
                let sum = self.cells.entry(*key).or_default();
                sum.billable += cell.billable;
                sum.uncertain += cell.uncertain;
            }
        }

        fn sums(&self) -> (u64, u64) {
            let cells = self.cells.values();
            cells.fold((0, 0), |sum, cell| (sum.0 + cell.billable, sum.1 + cell.uncertain))
        }
    }

    fn name(id: SeriesId) -> Name {
        Name { instance: "post-cn-1".into(), topic: format!("topic{id}").into() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        /// Whatever happens: a call that is billed is billed once or uncertain, nothing else is
        /// billed, and after an ordered end the books agree exactly.
        #[test]
        fn nothing_is_forgotten_and_nothing_counted_twice(
            steps in prop::collection::vec(step(), 1..300),
        ) {
            let mut disk = Disk::default();
            let mut book = Book::new(0, Vec::new());
            // Calls that left, by series; and what the provider has billed, perhaps, or not.
            let mut out = Vec::<SeriesId>::new();
            let mut waiting = Vec::<SeriesId>::new();
            let (mut billed, mut unknown, mut lost, mut second) = (0_u64, 0_u64, 0_u64, 0);
            for step in steps {
                match step {
                    Step::Begin(id) => {
                        let id = book.series(&name(id)).unwrap();
                        if book.begin(id) { out.push(id) } else { waiting.push(id) }
                    }
                    Step::End(nth, kind) if !out.is_empty() => {
                        let id = out.swap_remove(nth % out.len());
                        let kind = Billed::ALL[usize::from(kind)];
                        billed += u64::from(kind == Billed::Yes);
                        unknown += u64::from(kind == Billed::Uncertain);
                        book.end(id, kind, second);
                    }
                    Step::End(..) => {}
                    Step::Write => {
                        let image = book.image(second, false);
                        disk.hot = Some(image.clone());
                        book.written(&image, false);
                        out.append(&mut waiting);
                    }
                    Step::Store => {
                        let image = book.image(second, false);
                        disk.add(&image);
                        book.written(&image, true);
                        out.append(&mut waiting);
                    }
                    Step::Tick => second += 1,
                    Step::Crash => {
                        // What had left may have been billed; what waited for room never left.
                        billed += out.len() as u64;
                        out.clear();
                        waiting.clear();
                        let hot = disk.hot.take();
                        let (image, room) =
                            Image::recover(disk.generation, disk.room.clone(), hot, second);
                        disk.add(&image);
                        lost += room.values().sum::<u64>();
                        book = Book::new(disk.generation, disk.names.clone());
                    }
                }
                let (sum, uncertain) = disk.sums();
                prop_assert!(sum <= billed);
                prop_assert!(uncertain <= unknown + lost);
            }
            out.append(&mut waiting);
            for id in out {
                billed += 1;
                book.end(id, Billed::Yes, second);
            }
            let image = book.image(second, true);
            disk.add(&image);
            prop_assert!(image.room.is_empty());
            let (sum, uncertain) = disk.sums();
            prop_assert!(sum <= billed && billed <= sum + uncertain, "{billed} {sum} {uncertain}");
            if lost == 0 {
                prop_assert_eq!((sum, uncertain), (billed, unknown));
            }
        }

        #[test]
        fn a_store_that_takes_nothing_does_not_fill_the_memory(
            calls in prop::collection::vec((0..3_u16, 0..10_000_000_i64), 1..300),
        ) {
            let mut book = Book::new(0, Vec::new());
            for (id, second) in &calls {
                for again in 0..40 {
                    let id = book.series(&name(*id)).unwrap();
                    book.begin(id);
                    book.end(id, Billed::Yes, second + again);
                }
            }
            let image = book.image(0, false);
            prop_assert!(image.cells.len() <= MAX_CELLS);
            let sum: u64 = image.cells.values().map(|cell| cell.billable).sum();
            prop_assert_eq!(sum, calls.len() as u64 * 40);
        }
    }
}
