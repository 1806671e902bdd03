//! What this process has to write for the bill of its fleet, and what it has written of late.
//!
//! A write adds differences, and is done only if Redis has the write that it follows: one that comes late or twice changes
//! nothing. Redis has each write whole or not at all. The journal is a log of changes, and the number of each write names a
//! place in it. So whichever write Redis has, be it an older one after a failover or a newer one that was taken for lost,
//! the next write has what comes after that place. Pure: the caller passes the time, and nothing is written here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::changes::{Changes, FleetSeriesId};
use super::room::{CallRoom, WriterPhase};
use super::stored::{SidecarRecord, series_text};
use crate::meter::OTHER;
use crate::meter::labels::Billed;
use crate::meter::ledger::SeriesName;
use crate::meter::parts::{BudgetClaim, ClaimPhase, Parts};

/// Between two writes while calls are made; where a write is urgent; and else, with shared budgets as often as with calls.
const PACE: Duration = Duration::from_secs(1);
const URGENT_PACE: Duration = Duration::from_millis(20);
const IDLE_PACE: Duration = Duration::from_secs(15);
/// While Redis grants nothing of a budget.
const DRY_PACE: Duration = Duration::from_millis(250);
/// Changes of so long can be written again, if they are no more rows than these.
const KEPT_AGAIN: Duration = Duration::from_mins(15);
const MOST_ROWS: usize = 20_000;
/// Where they are more, older ones are joined, up to as long a time.
const JOINED_AFTER: Duration = Duration::from_mins(1);
/// Writes whose places are known.
const MOST_PLACES: usize = 20_000;
/// So long after its first answer, or another connection, a sidecar claims nothing of a budget. The others, which write every
/// second, know of a new one by then, and miss it if it dies; and of a server that took over, all say what they know.
const REPORTS: Duration = Duration::from_secs(2);

/// One write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FleetWrite {
    /// The number of the write that Redis must have; 0: none.
    pub(super) after: u64,
    /// Random, so that an older state of Redis never has the number of a newer one.
    pub(super) number: u64,
    pub(super) record: SidecarRecord,
    /// Redis had an older write than it should: since when it has lost something, in milliseconds of its own clock.
    pub(super) lost_since: Option<i64>,
    pub(super) changes: Changes,
    pub(super) claims: Vec<BudgetClaim>,
    /// What Redis needs to find out what was granted if it has lost its data.
    pub(super) recall: Recall,
}

/// What a sidecar remembers of the last answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Recall {
    /// When the write was made that it was to; `None`: there was none.
    pub(super) of: Option<Instant>,
    /// How many sidecars wrote then.
    pub(super) members: u64,
    /// Calls a second that all sidecars may make.
    pub(super) ceiling: u32,
}

/// What Redis answers to a write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct WriteAnswer {
    /// The number of the write that it has now.
    pub(super) number: u64,
    /// Its time, milliseconds.
    pub(super) now: i64,
    /// How many sidecars have written within the last seconds.
    pub(super) members: u64,
    /// By claim, what it has granted, and what all sidecars have.
    pub(super) grants: Vec<(u64, u64)>,
}

/// Changes from one place of the log to another.
#[derive(Debug)]
struct Entry {
    from: u64,
    to: u64,
    at: Instant,
    changes: Changes,
}

/// What Redis has once it has a write.
#[derive(Debug, Clone, Copy)]
struct Place {
    number: u64,
    /// Everything before this place of the log.
    to: u64,
    made_at: Instant,
    /// In milliseconds of the clock of Redis; `None`: its answer is not known.
    stored_at: Option<i64>,
}

/// Where calls of one series are counted.
#[derive(Debug)]
struct CountedIn {
    room: usize,
    id: FleetSeriesId,
    sums: Vec<FleetSeriesId>,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Journal {
    name: String,
    /// The Unix second in which the process began.
    since: i64,
    /// By the number of the series that are counted.
    counted: Vec<Option<CountedIn>>,
    ids: BTreeMap<Arc<str>, FleetSeriesId>,
    /// As Redis has them, by id, each with the series of other topics.
    texts: Vec<(Arc<str>, FleetSeriesId)>,
    rooms: Vec<(Arc<str>, CallRoom)>,
    waiting: Changes,
    under_way: Option<Arc<FleetWrite>>,
    log: VecDeque<Entry>,
    /// The place after all entries.
    end: u64,
    /// The first is that of an empty Redis.
    places: VecDeque<Place>,
    /// The number of the write that Redis has, as far as is known.
    number: u64,
    numbers: fastrand::Rng,
    lost_since: Option<i64>,
    /// When Redis first had something of this process, by its clock.
    first_stored_at: Option<i64>,
    parts: Arc<Parts>,
    recall: Recall,
    /// There is another connection than before.
    reconnected_at: Option<Instant>,
    written_at: Option<Instant>,
    changed: bool,
    urgent: bool,
    phase: WriterPhase,
}

impl Journal {
    /// Of a process that begins now.
    pub(super) fn new(
        name: String,
        second: i64,
        instances: impl IntoIterator<Item = Arc<str>>,
        parts: Arc<Parts>,
        ceiling: u32,
        numbers: fastrand::Rng,
    ) -> Self {
        Self {
            name,
            since: second,
            counted: Vec::new(),
            ids: BTreeMap::new(),
            texts: Vec::new(),
            rooms: instances.into_iter().map(|name| (name, CallRoom::default())).collect(),
            waiting: Changes::default(),
            under_way: None,
            log: VecDeque::new(),
            end: 0,
            places: VecDeque::new(),
            number: 0,
            numbers,
            lost_since: None,
            first_stored_at: None,
            parts,
            recall: Recall { ceiling, ..Recall::default() },
            reconnected_at: None,
            written_at: None,
            changed: true,
            urgent: true,
            phase: WriterPhase::Running,
        }
    }

    // === calls ===

    /// A call of a series begins, which is counted under this number. Returns whether a write becomes due sooner.
    pub(super) fn begin(&mut self, series: usize, name: &SeriesName) -> bool {
        let known = self.counted.get(series).and_then(Option::as_ref).map(|counted| counted.room);
        let room = known.unwrap_or_else(|| self.learn(series, name));
        let was_quiet = !std::mem::replace(&mut self.changed, true);
        let is_due = self.rooms[room].1.begin();
        let becomes_urgent = is_due && !std::mem::replace(&mut self.urgent, true);
        was_quiet || becomes_urgent
    }

    /// It has ended, in this Unix second.
    pub(super) fn end(&mut self, series: usize, billed: Billed, second: i64) {
        // A call that has ended has begun.
        let Some(Some(CountedIn { room, id, sums })) = self.counted.get(series) else { return };
        self.rooms[*room].1.end();
        if billed != Billed::No {
            self.waiting.end(*id, sums, billed, second);
            self.waiting.bound(|id| self.texts[id as usize].1);
        }
    }

    /// Returns the place of its room.
    fn learn(&mut self, series: usize, name: &SeriesName) -> usize {
        let of_instance = |(instance, _): &(Arc<str>, _)| *instance == name.instance;
        let room = self.rooms.iter().position(of_instance).unwrap_or_else(|| {
            self.rooms.push((Arc::clone(&name.instance), CallRoom::default()));
            self.rooms.len() - 1
        });
        let id = self.id(name);
        let sums = name.sums().iter().map(|sum| self.id(sum)).collect();
        if self.counted.len() <= series {
            self.counted.resize_with(series + 1, || None);
        }
        self.counted[series] = Some(CountedIn { room, id, sums });
        room
    }

    fn id(&mut self, name: &SeriesName) -> FleetSeriesId {
        let text = series_text(name);
        if let Some(id) = self.ids.get(&*text) {
            return *id;
        }
        let others = name.of_others(OTHER);
        let others = if name.is_sum() || others == *name { None } else { Some(self.id(&others)) };
        // Labels are bounded, so there are never so many.
        let id = FleetSeriesId::try_from(self.texts.len()).unwrap_or(FleetSeriesId::MAX);
        let text = Arc::<str>::from(text);
        self.ids.insert(Arc::clone(&text), id);
        self.texts.push((text, others.unwrap_or(id)));
        id
    }

    /// A write is due soon.
    pub(super) fn urge(&mut self) {
        self.urgent = true;
    }

    pub(super) fn set_ceiling(&mut self, ceiling: u32) {
        self.recall.ceiling = ceiling;
    }

    /// A series as Redis has it.
    pub(super) fn text(&self, id: FleetSeriesId) -> &Arc<str> {
        &self.texts[id as usize].0
    }

    // === writes ===

    /// When the next write is due; `None`: now.
    pub(super) fn due(&self) -> Option<Instant> {
        let at = self.written_at.filter(|_| self.under_way.is_none())?;
        let shrinks = self.rooms.iter().any(|(_, room)| room.shrinks());
        let is_steady = self.changed || shrinks || !self.parts.is_empty();
        let pace = match (self.urgent, is_steady) {
            (true, _) if self.parts.is_dry() && !self.is_closing() => DRY_PACE,
            (true, _) => URGENT_PACE,
            (false, true) => PACE,
            (false, false) => IDLE_PACE,
        };
        Some(at + pace)
    }

    /// The write to make: the same one until Redis has answered it.
    pub(super) fn next(&mut self, now: Instant, second: i64) -> Arc<FleetWrite> {
        if let Some(write) = &self.under_way {
            return Arc::clone(write);
        }
        let phase = self.phase;
        // The first write adds nothing: if Redis loses its data, one that comes late must change nothing, either.
        let is_first = self.number == 0;
        let (place, changes) = if is_first {
            (0, Changes::default())
        } else {
            (self.end_of_log(now), self.after(self.place(self.number)))
        };
        let unwritten = self.unwritten(place);
        let is_closing = phase != WriterPhase::Running;
        let has_more = unwritten.iter().any(|calls| *calls > 0) || (is_first && is_closing);
        let rooms = self.rooms.iter_mut().zip(unwritten);
        let rooms = rooms.map(|((instance, room), unwritten)| {
            (instance.to_string(), room.take(now, phase) + unwritten)
        });
        let record = SidecarRecord {
            name: self.name.clone(),
            since: self.since,
            at: second,
            room: rooms.filter(|(_, room)| *room > 0).collect(),
            ended: is_closing && !is_first,
        };
        let is_new =
            self.reconnected_at.is_some_and(|at| now.saturating_duration_since(at) < REPORTS);
        let claim_phase = match phase {
            _ if is_first => ClaimPhase::First,
            WriterPhase::Running if is_new => ClaimPhase::Reconnected,
            WriterPhase::Running => ClaimPhase::Running,
            WriterPhase::Closing | WriterPhase::Closed => ClaimPhase::Closing,
        };
        let number = self.numbers.u64(1..);
        let write = Arc::new(FleetWrite {
            after: self.number,
            number,
            record,
            lost_since: self.lost_since,
            changes,
            claims: self.parts.claims(now, claim_phase),
            recall: self.recall,
        });
        self.places.push_back(Place { number, to: place, made_at: now, stored_at: None });
        if self.places.len() > MOST_PLACES {
            self.places.pop_front();
        }
        self.under_way = Some(Arc::clone(&write));
        self.written_at = Some(now);
        (self.changed, self.urgent) = (has_more, has_more);
        write
    }

    /// Takes what waits into the log, and returns the place after it.
    fn end_of_log(&mut self, now: Instant) -> u64 {
        if !self.waiting.rows.is_empty() {
            let changes = std::mem::take(&mut self.waiting);
            let from = self.end;
            self.end += 1;
            self.log.push_back(Entry { from, to: self.end, at: now, changes });
            self.join(now);
        }
        self.end
    }

    /// Forgets the oldest entries. Where there are too many, it joins old ones first: of these, what Redis falls back into is not
    /// written again.
    fn join(&mut self, now: Instant) {
        let age = |entry: &Entry| now.saturating_duration_since(entry.at);
        // What Redis does not have yet stays as it is.
        let stored = self.place(self.number);
        let mut rows: usize = self.log.iter().map(|entry| entry.changes.rows.len()).sum();
        if rows > MOST_ROWS {
            let mut joined: VecDeque<Entry> = VecDeque::new();
            for entry in self.log.drain(..) {
                match joined.back_mut() {
                    Some(last)
                        if entry.to <= stored
                            && age(&entry) > JOINED_AFTER
                            && entry.at - last.at < JOINED_AFTER =>
                    {
                        last.changes.merge(&entry.changes);
                        last.changes.settle_seconds();
                        last.to = entry.to;
                    }
                    _ => joined.push_back(entry),
                }
            }
            rows = joined.iter().map(|entry| entry.changes.rows.len()).sum();
            self.log = joined;
        }
        while let Some(first) = self.log.front()
            && first.to <= stored
            && (age(first) > KEPT_AGAIN || rows > MOST_ROWS)
        {
            rows -= first.changes.rows.len();
            self.log.pop_front();
        }
    }

    /// Up to where Redis has everything if it has the write with this number.
    fn place(&self, number: u64) -> u64 {
        if number == 0 {
            return 0;
        }
        let known = self.places.iter().rev().find(|place| place.number == number);
        // An older one than those that are known: of what came before these, it may have a part.
        known.or(self.places.front()).map_or(self.end, |place| place.to)
    }

    /// The changes after a place. Of an entry of which Redis has a part, nothing: nothing is counted twice.
    fn after(&self, place: u64) -> Changes {
        let mut changes = Changes::default();
        for entry in self.log.iter().filter(|entry| entry.from >= place) {
            changes.merge(&entry.changes);
        }
        changes.bound(|id| self.texts[id as usize].1);
        changes
    }

    /// Calls that have ended and are not in a write up to this place, by instance.
    fn unwritten(&self, place: u64) -> Vec<u64> {
        let mut calls = vec![0; self.rooms.len()];
        let logged = self.log.iter().filter(|entry| entry.from >= place);
        let rows = logged.map(|entry| &entry.changes).chain([&self.waiting]);
        for ((_, id), change) in rows.flat_map(|changes| &changes.rows) {
            let of_series = |(name, _): &(Arc<str>, _)| {
                self.texts[*id as usize].0.split('\n').next() == Some(&**name)
            };
            if let Some(at) = self.rooms.iter().position(of_series) {
                calls[at] += change.billable + change.uncertain;
            }
        }
        calls
    }

    /// Redis has answered the write. Returns whether it has done it.
    pub(super) fn answered(&mut self, answer: &WriteAnswer, now: Instant) -> bool {
        let Some(write) = self.under_way.take() else { return true };
        let WriteAnswer { number, now: stored_at, members, ref grants } = *answer;
        self.number = number;
        if number != write.number {
            self.fall_back(number);
            self.parts.undone(&write.claims);
            (self.changed, self.urgent) = (true, true);
            return false;
        }
        self.parts.granted(&write.claims, grants, now);
        let made_at = self.places.back_mut().map(|place| {
            place.stored_at = Some(stored_at);
            place.made_at
        });
        if self.recall.of.is_none() {
            self.reconnected_at = Some(now);
        }
        self.recall = Recall { of: made_at.or(self.recall.of), members, ..self.recall };
        self.lost_since = None;
        self.first_stored_at.get_or_insert(stored_at);
        if write.record.ended {
            self.phase = WriterPhase::Closed;
        }
        true
    }

    /// Redis has another write than it should: mostly an older one, or none.
    fn fall_back(&mut self, number: u64) {
        let mut older = self.places.iter().rev().skip_while(|place| place.number != number);
        let lost_since = older.find_map(|place| place.stored_at);
        let lost_since = lost_since.or(self.first_stored_at);
        self.lost_since = self.lost_since.into_iter().chain(lost_since).min();
    }

    /// Redis is reached over another connection: perhaps it is another server.
    pub(super) fn connected(&mut self, now: Instant) {
        // Before the first answer there is nothing that another could have lost.
        if self.recall.of.is_some() {
            self.reconnected_at = Some(now);
        }
        self.urgent = true;
    }

    /// Closed: the next write is the last one.
    pub(super) fn close(&mut self) {
        if self.phase == WriterPhase::Running {
            self.phase = WriterPhase::Closing;
        }
        (self.changed, self.urgent) = (true, true);
    }

    /// No calls follow.
    pub(super) fn is_closing(&self) -> bool {
        self.phase != WriterPhase::Running
    }

    /// Redis has the last write.
    pub(super) fn is_closed(&self) -> bool {
        self.phase == WriterPhase::Closed
    }
}
