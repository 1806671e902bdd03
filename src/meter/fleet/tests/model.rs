//! Sidecars whose calls, processes and clocks, and a Redis that does what it likes with their writes. What Redis has is
//! never more than the truth; with what is uncertain it is never less, unless Redis has lost what nobody can write again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use crate::meter::fleet::journal::{FleetWrite, Journal, WriteAnswer};
use crate::meter::fleet::stored::SidecarRecord;
use crate::meter::labels::Billed;
use crate::meter::ledger::SeriesName;

const INSTANCE: &str = "post-cn-1";

#[derive(Debug, Clone)]
enum Step {
    Begin(usize, usize),
    End(usize, usize, u8),
    Write(usize, Fate),
    Seconds(i64),
    ClockBack(i64),
    Crash(usize),
    Close(usize),
    Flush,
    Save,
    RollBack,
    Late(usize),
}

/// What becomes of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    AnswerLost,
    /// It may come later.
    Lost,
}

fn step() -> impl Strategy<Value = Step> {
    let any = any::<usize>;
    prop_oneof![
        12 => (any(), 0..3_usize).prop_map(|(of, series)| Step::Begin(of, series)),
        10 => (any(), any(), 0..3_u8).prop_map(|(of, nth, billed)| Step::End(of, nth, billed)),
        8 => any().prop_map(|of| Step::Write(of, Fate::Done)),
        1 => any().prop_map(|of| Step::Write(of, Fate::AnswerLost)),
        1 => any().prop_map(|of| Step::Write(of, Fate::Lost)),
        2 => (1..3_i64).prop_map(Step::Seconds),
        1 => (60..3_000_i64).prop_map(Step::Seconds),
        1 => (1..2_000_i64).prop_map(Step::ClockBack),
        1 => any().prop_map(Step::Crash),
        1 => any().prop_map(Step::Close),
        1 => Just(Step::Flush),
        1 => Just(Step::Save),
        1 => Just(Step::RollBack),
        1 => any().prop_map(Step::Late),
    ]
}

/// Billable and uncertain messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sums {
    billable: u64,
    uncertain: u64,
}

/// As bill.lua does it. Sums are by sidecar here, so that each is held against its own truth.
#[derive(Debug, Clone, Default)]
struct TestRedis {
    records: BTreeMap<u64, (u64, SidecarRecord)>,
    sums: BTreeMap<u64, Sums>,
    losses: usize,
}

impl TestRedis {
    fn write(&mut self, id: u64, write: &FleetWrite) -> u64 {
        let stored = self.records.get(&id).map_or(0, |(number, _)| *number);
        if stored != write.after {
            return stored;
        }
        self.records.insert(id, (write.number, write.record.clone()));
        let sums = self.sums.entry(id).or_default();
        for change in write.changes.rows.values() {
            sums.billable += change.billable;
            sums.uncertain += change.uncertain;
        }
        self.losses += usize::from(write.lost_since.is_some());
        write.number
    }
}

struct Sidecar {
    id: u64,
    journal: Journal,
    open: Vec<usize>,
    begun: u64,
    /// Redis has room for so many begun calls; and will have, once it has the write that is under way.
    covered: u64,
    covered_next: Option<u64>,
    truth: Sums,
}

struct Simulation {
    redis: TestRedis,
    saved: TestRedis,
    sidecars: Vec<Sidecar>,
    /// Those that are gone, and whether they had more calls than room when they died.
    gone: Vec<(Sidecar, bool)>,
    /// Redis has lost something. What is older than a quarter of an hour is not written again.
    has_lost: bool,
    begun_at: Instant,
    late: Vec<(u64, Arc<FleetWrite>)>,
    ids: u64,
    second: i64,
    at: Instant,
}

impl Simulation {
    fn new() -> Self {
        let mut simulation = Self {
            redis: TestRedis::default(),
            saved: TestRedis::default(),
            sidecars: Vec::new(),
            gone: Vec::new(),
            has_lost: false,
            begun_at: Instant::now(),
            late: Vec::new(),
            ids: 0,
            second: 1_800_000_000,
            at: Instant::now(),
        };
        simulation.start();
        simulation.start();
        simulation
    }

    fn start(&mut self) {
        self.ids += 1;
        let numbers = fastrand::Rng::with_seed(self.ids);
        let (name, parts) = ("pod".to_owned(), Arc::default());
        let journal = Journal::new(name, self.second, [INSTANCE.into()], parts, 1_000, numbers);
        self.sidecars.push(Sidecar {
            id: self.ids,
            journal,
            open: Vec::new(),
            begun: 0,
            covered: 0,
            covered_next: None,
            truth: Sums::default(),
        });
    }

    fn write(&mut self, of: usize, fate: Fate) {
        let sidecar = &mut self.sidecars[of];
        let write = sidecar.journal.next(self.at, self.second);
        let ended = sidecar.begun - sidecar.open.len() as u64;
        let room: u64 = write.record.room.values().sum();
        let ended = if write.after == 0 { 0 } else { ended };
        let covered = *sidecar.covered_next.get_or_insert(ended + room);
        if fate == Fate::Lost {
            self.late.push((sidecar.id, write));
            return;
        }
        let number = self.redis.write(sidecar.id, &write);
        let answer = WriteAnswer { number, now: self.second * 1_000, ..WriteAnswer::default() };
        if fate == Fate::AnswerLost {
            self.late.push((sidecar.id, write));
            return;
        }
        sidecar.covered_next = None;
        if sidecar.journal.answered(&answer, self.at) {
            sidecar.covered = covered;
        }
    }

    /// Until Redis has all.
    fn settle(&mut self) {
        for of in 0..self.sidecars.len() {
            for _ in 0..4 {
                self.write(of, Fate::Done);
            }
        }
    }

    fn step(&mut self, step: &Step) {
        let count = self.sidecars.len();
        match *step {
            Step::Begin(of, series) => {
                let sidecar = &mut self.sidecars[of % count];
                let name = SeriesName::of_all(&INSTANCE.into(), &format!("topic{series}"));
                sidecar.journal.begin(series, &name);
                sidecar.open.push(series);
                sidecar.begun += 1;
            }
            Step::End(of, nth, billed) => {
                let sidecar = &mut self.sidecars[of % count];
                if sidecar.open.is_empty() {
                    return;
                }
                let series = sidecar.open.swap_remove(nth % sidecar.open.len());
                let billed = [Billed::Yes, Billed::No, Billed::Uncertain][usize::from(billed)];
                sidecar.truth.billable += u64::from(billed == Billed::Yes);
                sidecar.truth.uncertain += u64::from(billed == Billed::Uncertain);
                sidecar.journal.end(series, billed, self.second);
            }
            Step::Write(of, fate) => self.write(of % count, fate),
            Step::Seconds(seconds) => {
                self.second += seconds;
                self.at += Duration::from_secs(seconds.unsigned_abs());
            }
            Step::ClockBack(seconds) => self.second -= seconds,
            Step::Crash(of) => {
                let sidecar = self.sidecars.swap_remove(of % count);
                let uncovered = sidecar.begun > sidecar.covered;
                self.gone.push((sidecar, uncovered));
                self.start();
            }
            Step::Close(of) => {
                let of = of % count;
                self.sidecars[of].journal.close();
                for _ in 0..5 {
                    self.write(of, Fate::Done);
                }
                let sidecar = self.sidecars.swap_remove(of);
                assert!(sidecar.journal.is_closed());
                let (_, record) = &self.redis.records[&sidecar.id];
                let room: u64 = record.room.values().sum();
                assert_eq!((record.ended, room), (true, sidecar.open.len() as u64));
                self.gone.push((sidecar, false));
                self.start();
            }
            Step::Flush => {
                self.redis = TestRedis::default();
                self.has_lost = true;
            }
            Step::Save => self.saved = self.redis.clone(),
            Step::RollBack => {
                // And perhaps forth again, later.
                std::mem::swap(&mut self.redis, &mut self.saved);
                self.has_lost = true;
            }
            Step::Late(nth) => {
                if !self.late.is_empty() {
                    let (id, write) = self.late.swap_remove(nth % self.late.len());
                    self.redis.write(id, &write);
                }
            }
        }
    }

    /// Nothing is counted twice.
    fn never_more(&self) {
        for sidecar in self.sidecars.iter().chain(self.gone.iter().map(|(sidecar, _)| sidecar)) {
            let stored = self.redis.sums.get(&sidecar.id).copied().unwrap_or_default();
            let truth = sidecar.truth;
            assert!(stored.billable <= truth.billable, "{}: {stored:?} of {truth:?}", sidecar.id);
            assert!(stored.uncertain <= truth.uncertain, "{}: {stored:?} of {truth:?}", sidecar.id);
        }
    }

    /// Nothing is missing.
    fn never_less(&mut self) {
        self.settle();
        self.never_more();
        let is_old = self.has_lost && self.at - self.begun_at > Duration::from_mins(15);
        let all = self.sidecars.iter().filter(|_| !is_old);
        for sidecar in all {
            assert_eq!(self.redis.sums.get(&sidecar.id), Some(&sidecar.truth), "{}", sidecar.id);
        }
        for (sidecar, uncovered) in &self.gone {
            if self.has_lost || *uncovered {
                continue;
            }
            let stored = self.redis.sums.get(&sidecar.id).copied().unwrap_or_default();
            let record = self.redis.records.get(&sidecar.id).map(|(_, record)| record);
            let room: u64 = record.iter().flat_map(|record| record.room.values()).sum();
            // A call that had not ended may have been billed.
            let all = sidecar.truth.billable + sidecar.truth.uncertain + sidecar.open.len() as u64;
            assert!(all <= stored.billable + stored.uncertain + room, "{}: {stored:?}", sidecar.id);
        }
        assert!(self.has_lost || self.redis.losses == 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 2_000 }))]

    #[test]
    fn what_redis_has(steps in proptest::collection::vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut simulation = Simulation::new();
            for step in &steps {
                simulation.step(step);
                simulation.never_more();
            }
            simulation.never_less();
        });
    }
}
