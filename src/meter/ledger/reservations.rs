//! What is counted between two writes to the disk.
//!
//! A killed process leaves no record of how its last calls ended. So the disk has beforehand how many
//! may be under way: a reservation per series, for its open calls and for a few that may begin before
//! the next write. A call beyond the reservation waits for a write. After a crash, what is still
//! reserved counts as uncertain: never less than the truth, and more by a few at most.
//!
//! Pure: the caller passes the time, and nothing is written here.

use std::collections::BTreeMap;

use super::series_name::SeriesName;
use crate::meter::label_set::OTHER;
use crate::meter::labels::Billed;

/// A series' number in the ledger.
pub(crate) type SeriesId = u16;

/// Writes without a new call after which a series is no longer busy; without one of any series, none keeps a spare
/// reservation.
const IDLE_WRITES: u8 = 10;
/// Writes without a new call for which a series that is not busy keeps its one spare reservation: many callers that
/// each send about once a second cause no write of their own, and a crash makes one message of each uncertain.
const LAST_WRITES: u8 = 80;
/// Spare reservations of a busy series, one of which two calls began between two writes: calls that may begin before
/// the next write. A call beyond them causes a write at once.
const MIN_SPARE: u64 = 4;
const MAX_SPARE: u64 = 10_000;
/// The most buckets that wait for the store; more are merged into coarser ones.
const MAX_BUCKETS: usize = 4_096;
/// Half of what the snapshot file holds, in bytes.
const LARGE: usize = 96 * 1024;
/// Series that have names of their own: they are never forgotten, and some numbers are left for what counts the rest.
const MAX_SERIES: usize = 60_000;

/// Messages of one series in one second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) billable: u64,
    pub(crate) uncertain: u64,
}

/// By Unix second and series.
pub(super) type Buckets = BTreeMap<(i64, SeriesId), Bucket>;

/// What a write puts on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LedgerSnapshot {
    /// One more than that of the store that it continues.
    pub(super) generation: u64,
    /// When it was taken, Unix seconds.
    pub(super) second: i64,
    /// Series that the store does not know yet.
    pub(super) names: Vec<(SeriesId, SeriesName)>,
    /// Messages since the store was written.
    pub(super) buckets: Buckets,
    /// Calls that may be under way.
    pub(super) reserved: BTreeMap<SeriesId, u64>,
}

impl LedgerSnapshot {
    /// Whether the store should have it soon: the snapshot file does not hold many more, nor the buckets.
    pub(super) fn is_large(&self) -> bool {
        let name = |(_, name): &(SeriesId, SeriesName)| {
            32 + name.instance.len() + name.topic.len() + name.caller.len()
        };
        let names: usize = self.names.iter().map(name).sum();
        let bytes = names + 32 * self.buckets.len() + 16 * self.reserved.len();
        bytes > LARGE || self.buckets.len() > MAX_BUCKETS / 2
    }

    /// What an earlier process left in the store and the snapshot file: the snapshot to add to the
    /// store, and the calls that it did not record the end of.
    pub(super) fn recover(
        stored: u64,
        reserved: BTreeMap<SeriesId, u64>,
        file: Option<Self>,
        now: i64,
    ) -> (Self, BTreeMap<SeriesId, u64>) {
        // A snapshot that does not continue the store is already in it.
        let mut snapshot = file.filter(|file| file.generation == stored + 1).unwrap_or_else(|| {
            Self { generation: stored + 1, second: now, reserved, ..Self::default() }
        });
        let lost = std::mem::take(&mut snapshot.reserved);
        for (id, calls) in &lost {
            snapshot.buckets.entry((snapshot.second, *id)).or_default().uncertain += calls;
        }
        (snapshot, lost)
    }
}

#[derive(Debug)]
struct Reservation {
    name: SeriesName,
    begun: u64,
    ended: u64,
    /// The disk has reservations for this many of the begun calls, or more.
    covered: u64,
    /// Calls that had begun when the last snapshot was taken, and how many more it reserves.
    in_snapshot: u64,
    spare: u64,
    idle: u8,
}

impl Reservation {
    fn new(name: SeriesName) -> Self {
        Self { name, begun: 0, ended: 0, covered: 0, in_snapshot: 0, spare: 0, idle: 0 }
    }

    /// How many calls may begin before the next write, as it was lately.
    fn next_spare(&mut self) {
        let new = self.begun - self.in_snapshot;
        let was_busy = self.spare > 1;
        self.idle = if new > 0 { 0 } else { self.idle.saturating_add(1) };
        self.spare = match self.idle {
            0 if new > 1 || was_busy => new.clamp(MIN_SPARE, MAX_SPARE),
            0 => 1,
            idle if idle < IDLE_WRITES => self.spare,
            idle if idle < LAST_WRITES => self.spare.min(1),
            _ => 0,
        };
    }
}

#[derive(Debug)]
pub(super) struct Reservations {
    generation: u64,
    series: Vec<Reservation>,
    ids: BTreeMap<SeriesName, SeriesId>,
    /// How many of the series the store knows.
    stored: usize,
    buckets: Buckets,
    /// Whether a call began or ended since the last snapshot.
    changed: bool,
    /// Whether that snapshot has spare reservations.
    spare: bool,
    /// Writes since a call began.
    idle: u8,
}

/// Whether more snapshots follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Running,
    /// The last snapshot reserves nothing for calls that have not begun.
    Closing,
}

/// Whether the store has a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    Yes,
    /// Only the snapshot file has it, or the disk failed and calls no longer wait for it.
    No,
}

impl Reservations {
    /// Continues what a store holds.
    pub(super) fn new(generation: u64, names: Vec<SeriesName>) -> Self {
        let ids = names.iter().cloned().zip(0..).collect();
        let series: Vec<_> = names.into_iter().map(Reservation::new).collect();
        let (stored, buckets) = (series.len(), Buckets::new());
        Self { generation, series, ids, stored, buckets, changed: false, spare: false, idle: 0 }
    }

    /// The series of this name, and those that count its messages as well. Where there are nearly as many as can be
    /// numbered, the one that counts all other messages of its instance.
    pub(super) fn series(&mut self, name: &SeriesName) -> Option<SeriesId> {
        let others = SeriesName::of_all(&name.instance, OTHER);
        let is_new = !self.ids.contains_key(name) && *name != others && name.counts_messages();
        let name = if is_new && self.series.len() >= MAX_SERIES { others } else { name.clone() };
        for sum in name.sums() {
            self.number(&sum)?;
        }
        self.number(&name)
    }

    fn number(&mut self, name: &SeriesName) -> Option<SeriesId> {
        if let Some(id) = self.ids.get(name) {
            return Some(*id);
        }
        let id = SeriesId::try_from(self.series.len()).ok()?;
        self.series.push(Reservation::new(name.clone()));
        self.ids.insert(name.clone(), id);
        Some(id)
    }

    /// All series, by their numbers.
    pub(super) fn names(&self) -> Vec<SeriesName> {
        self.series.iter().map(|series| series.name.clone()).collect()
    }

    /// A call begins. Returns whether the disk has a reservation for it; otherwise it waits for a write.
    pub(super) fn begin(&mut self, id: SeriesId) -> bool {
        (self.changed, self.idle) = (true, 0);
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
        let bucket = self.buckets.entry((second, id)).or_default();
        bucket.billable += billable;
        bucket.uncertain += uncertain;
    }

    /// Whether a write would change anything.
    pub(super) fn wants_writing(&self) -> bool {
        self.changed || self.spare || !self.buckets.is_empty()
    }

    /// Whether there was no call lately: the writer may then be asleep.
    pub(super) fn is_quiet(&self) -> bool {
        !self.changed && !self.spare
    }

    /// What to write now. Until [`Reservations::written`], calls beyond its reservations wait.
    pub(super) fn snapshot(&mut self, second: i64, phase: Phase) -> LedgerSnapshot {
        self.coarsen(second);
        let mut reserved = BTreeMap::new();
        self.spare = false;
        let keeps_spare = phase == Phase::Running && self.idle < IDLE_WRITES;
        self.idle = self.idle.saturating_add(1);
        for (id, series) in (0..).zip(&mut self.series) {
            series.next_spare();
            if !keeps_spare {
                series.spare = 0;
            }
            series.in_snapshot = series.begun;
            series.covered = series.covered.min(series.begun + series.spare);
            self.spare |= series.spare > 0;
            let open = series.begun - series.ended + series.spare;
            if open > 0 {
                reserved.insert(id, open);
            }
        }
        self.changed = false;
        let unknown = (0..).zip(&self.series).skip(self.stored);
        let names = unknown.map(|(id, series)| (id, series.name.clone())).collect();
        LedgerSnapshot {
            generation: self.generation + 1,
            second,
            names,
            buckets: self.buckets.clone(),
            reserved,
        }
    }

    /// The write has ended.
    pub(super) fn written(&mut self, snapshot: &LedgerSnapshot, stored: Stored) {
        for series in &mut self.series {
            series.covered = series.covered.max(series.in_snapshot + series.spare);
        }
        if stored == Stored::No {
            return;
        }
        self.generation = snapshot.generation;
        self.stored += snapshot.names.len();
        for (key, done) in &snapshot.buckets {
            if let Some(bucket) = self.buckets.get_mut(key) {
                bucket.billable -= done.billable;
                bucket.uncertain -= done.uncertain;
            }
        }
        self.buckets.retain(|_, bucket| *bucket != Bucket::default());
    }

    /// A store that takes nothing for long must not fill the memory. The next process concludes from
    /// the seconds which calls the provider may still read: so a call without an answer never seems to
    /// be longer ago than it is, and an answered one never more recent.
    fn coarsen(&mut self, now: i64) {
        for grain in [60, 3_600, 86_400] {
            if self.buckets.len() <= MAX_BUCKETS {
                return;
            }
            for ((second, id), bucket) in std::mem::take(&mut self.buckets) {
                let first = second - second.rem_euclid(grain);
                let last = (first + grain - 1).min(now).max(second);
                for (second, billable, uncertain) in
                    [(first, bucket.billable, 0), (last, 0, bucket.uncertain)]
                {
                    if billable + uncertain > 0 {
                        let merged = self.buckets.entry((second, id)).or_default();
                        merged.billable += billable;
                        merged.uncertain += uncertain;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
