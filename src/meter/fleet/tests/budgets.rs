//! A budget that sidecars share through a real Redis, whose clock the test sets: sidecars that come, are cut off and die,
//! answers that are lost, and a Redis that loses everything or falls back. No message is ever over it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::meter::fleet::client::BillClient;
use crate::meter::fleet::journal::{FleetWrite, Journal};
use crate::meter::fleet::tests::with_redis::fleet;
use crate::meter::parts::{Part, Parts, WithoutPart};
use crate::meter::period::Span;
use crate::redis_client::server::Redis;

/// What all sidecars may send in a second.
const CEILING: u32 = 20;
const PERIOD: i64 = 3_600;
const CLOCK: &str = "tollgate:{shop}:test-clock";

struct Sidecar {
    id: String,
    journal: Journal,
    parts: Arc<Parts>,
    is_cut_off: bool,
    /// Calls that have not ended, by the second in which they began.
    open: Vec<i64>,
}

struct Simulation {
    redis: Redis,
    client: BillClient,
    rng: fastrand::Rng,
    limit: u64,
    sidecars: Vec<Sidecar>,
    born: u64,
    milliseconds: i64,
    start: Instant,
    /// Calls that were billed, or may be, in this period; and all that began in this second.
    sent: u64,
    in_second: (i64, u32),
    late: Vec<(String, Arc<FleetWrite>)>,
}

impl Simulation {
    async fn new(seed: u64, limit: u64) -> Self {
        let redis = Redis::start_with(&["--enable-debug-command", "yes"]);
        let mut client = BillClient::connect(&fleet(&redis)).await.unwrap();
        client.read_clock_from(CLOCK).await.unwrap();
        let mut simulation = Self {
            redis,
            client,
            rng: fastrand::Rng::with_seed(seed),
            limit,
            sidecars: Vec::new(),
            born: 0,
            milliseconds: 1_800_000_000_000,
            start: Instant::now(),
            sent: 0,
            in_second: (0, 0),
            late: Vec::new(),
        };
        for _ in 0..4 {
            simulation.bear();
        }
        simulation
    }

    fn second(&self) -> i64 {
        self.milliseconds.div_euclid(1_000)
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis((self.milliseconds - 1_800_000_000_000).unsigned_abs())
    }

    fn period(&self) -> Span {
        let start = self.second().div_euclid(PERIOD) * PERIOD;
        Span { start, end: start + PERIOD }
    }

    fn bear(&mut self) {
        self.born += 1;
        let parts = Arc::new(Parts::default());
        let (name, period) = ("daily".to_owned(), self.period());
        parts.add(Part::new(name, self.limit, period, WithoutPart::Refuse, self.now()));
        let numbers = fastrand::Rng::with_seed(self.rng.u64(..));
        let (pod, shared) = ("pod".to_owned(), Arc::clone(&parts));
        let journal = Journal::new(pod, self.second(), ["x".into()], shared, CEILING, numbers);
        let id = self.born.to_string();
        self.sidecars.push(Sidecar { id, journal, parts, is_cut_off: false, open: Vec::new() });
    }

    async fn write(&mut self, of: usize) {
        let (now, second) = (self.now(), self.second());
        self.redis.tell::<()>(&format!("SET {CLOCK} {}", self.milliseconds));
        let lost = self.rng.u8(..100);
        let sidecar = &mut self.sidecars[of];
        if sidecar.is_cut_off {
            return;
        }
        let write = sidecar.journal.next(now, second);
        if lost < 2 {
            // It may come later.
            self.late.push((sidecar.id.clone(), write));
            return;
        }
        let texts = BTreeMap::new();
        let answer = self.client.write(&sidecar.id, &write, now, &texts).await.unwrap();
        // A replica that lags has what was done until here.
        if self.rng.u8(..60) == 0 {
            self.redis.tell::<()>("SAVE");
        }
        if lost < 4 {
            self.late.push((sidecar.id.clone(), write));
            return;
        }
        sidecar.journal.answered(&answer, now);
    }

    /// A call of a sidecar, if the ceiling and the budget have a place. Returns whether it has begun.
    fn send(&mut self, of: usize) -> bool {
        let (now, second) = (self.now(), self.second());
        if self.in_second.0 != second {
            self.in_second = (second, 0);
        }
        if self.in_second.1 >= CEILING {
            return false;
        }
        let sidecar = &mut self.sidecars[of];
        if sidecar.parts.with(0, |part| part.take(now)).is_err() {
            return false;
        }
        sidecar.open.push(second);
        self.in_second.1 += 1;
        self.sent += 1;
        assert!(self.sent <= self.limit, "{} of {}", self.sent, self.limit);
        true
    }

    fn end(&mut self, of: usize) {
        let sidecar = &mut self.sidecars[of];
        if sidecar.open.is_empty() {
            return;
        }
        let begun = sidecar.open.swap_remove(self.rng.usize(..sidecar.open.len()));
        // One of five was not billed.
        if self.rng.u8(..5) == 0 {
            sidecar.parts.with(0, |part| part.give_back(begun));
            self.sent -= u64::from(self.period().contains(begun));
        }
    }

    /// A part of a second in which sidecars send as they can.
    async fn pass(&mut self, milliseconds: i64, demand: usize) {
        let before = self.period();
        self.milliseconds += milliseconds;
        if self.period() != before {
            self.sent = 0;
            let period = self.period();
            for sidecar in &self.sidecars {
                sidecar.parts.with(0, |part| part.begin(period));
            }
        }
        for _ in 0..demand {
            let of = self.rng.usize(..self.sidecars.len());
            self.send(of);
            if self.rng.bool() {
                self.end(of);
            }
        }
        for of in 0..self.sidecars.len() {
            let due = self.sidecars[of].journal.due();
            if due.is_none_or(|due| due <= self.now()) {
                self.write(of).await;
            }
        }
    }

    /// The first sidecar never dies: what all have forgotten, nobody can know.
    fn kill(&mut self) {
        if self.sidecars.len() > 1 {
            let of = self.rng.usize(1..self.sidecars.len());
            self.sidecars.swap_remove(of);
            self.bear();
        }
    }

    async fn fault(&mut self) {
        let of = self.rng.usize(..self.sidecars.len());
        match self.rng.u8(..12) {
            0..3 => self.kill(),
            3 | 4 => self.sidecars[of].is_cut_off = true,
            5..8 => {
                let now = self.now();
                for sidecar in &mut self.sidecars {
                    if std::mem::take(&mut sidecar.is_cut_off) {
                        sidecar.journal.connected(now);
                    }
                }
            }
            8 => {
                self.redis.tell::<()>("FLUSHALL");
                self.reconnect();
            }
            9 => self.redis.tell::<()>("SAVE"),
            10 => {
                // As after a failover: the server that takes over has another id, and not all notice it.
                self.redis.tell::<()>("DEBUG RELOAD NOSAVE");
                self.redis.tell::<()>("DEBUG CHANGE-REPL-ID");
                if self.rng.bool() {
                    self.reconnect();
                }
            }
            _ => {
                if let Some((id, write)) = self.late.pop() {
                    self.redis.tell::<()>(&format!("SET {CLOCK} {}", self.milliseconds));
                    self.client.write(&id, &write, self.now(), &BTreeMap::new()).await.unwrap();
                }
            }
        }
    }

    /// Another server, or the same after a restart: everyone connects again.
    fn reconnect(&mut self) {
        let now = self.now();
        for sidecar in self.sidecars.iter_mut().filter(|sidecar| !sidecar.is_cut_off) {
            sidecar.journal.connected(now);
        }
    }
}

#[tokio::test]
async fn no_message_is_over_a_shared_budget() {
    let mut used = 0;
    for seed in 0..12 {
        let mut simulation = Simulation::new(seed, 400).await;
        simulation.redis.tell::<()>("SAVE");
        for _ in 0..400 {
            let (ms, demand) = (simulation.rng.i64(20..400), simulation.rng.usize(..12));
            simulation.pass(ms, demand).await;
            if simulation.rng.u8(..12) == 0 {
                simulation.fault().await;
            }
        }
        used += simulation.sent;
        // Another period begins with nothing spent.
        simulation.pass(PERIOD * 1_000, 0).await;
        for _ in 0..200 {
            simulation.pass(100, 5).await;
        }
        assert!(simulation.sent > 0);
    }
    assert!(used > 0);
}

/// In calm times all of it is used, whichever sidecars need it, and however it is spread before.
#[tokio::test]
async fn all_of_a_shared_budget_can_be_used() {
    let mut simulation = Simulation::new(1, 600).await;
    for _ in 0..1_200 {
        simulation.pass(100, 2).await;
    }
    while simulation.sidecars.iter().any(|sidecar| !sidecar.open.is_empty()) {
        for of in 0..simulation.sidecars.len() {
            simulation.end(of);
        }
    }
    // One alone needs the rest; what the others have, they give back.
    for _ in 0..600 {
        simulation.pass(100, 0).await;
        simulation.send(0);
    }
    assert_eq!(simulation.sent, 600);
}

/// A tenth of the sidecars die, and Redis is emptied in calm moments between: nearly all can be used.
#[tokio::test]
async fn kills_and_an_emptied_redis_cost_little() {
    let mut simulation = Simulation::new(3, 4_000).await;
    for round in 0..3_000 {
        simulation.pass(100, 3).await;
        match round % 500 {
            100 => simulation.kill(),
            300 => {
                simulation.redis.tell::<()>("FLUSHALL");
                simulation.reconnect();
            }
            _ => {}
        }
    }
    println!("{} of 4,000", simulation.sent);
    assert!(simulation.sent >= 3_880, "{}", simulation.sent);
}

impl Simulation {
    /// So many seconds, in which only this sidecar sends, as much as it may.
    async fn sends(&mut self, of: usize, seconds: u32) {
        for _ in 0..10 * seconds {
            self.pass(100, 0).await;
            while self.send(of) {}
        }
    }
}

/// A server takes over that lacks the last moment, in which one sidecar has used up the budget; another, which knows nothing
/// of it, and whose own writes are all there, is the first that asks.
#[tokio::test]
async fn a_failover_that_loses_a_moment() {
    let mut simulation = Simulation::new(5, 200).await;
    simulation.sidecars.truncate(2);
    simulation.sends(0, 15).await;
    let sent = simulation.sent;
    assert!(sent < 100, "the first have to wait: {sent}");
    simulation.redis.tell::<()>("SAVE");
    simulation.sidecars[0].is_cut_off = true;
    simulation.sends(1, 5).await;
    assert!(simulation.sent > sent + 20, "{}", simulation.sent);
    simulation.redis.tell::<()>("DEBUG RELOAD NOSAVE");
    simulation.redis.tell::<()>("DEBUG CHANGE-REPL-ID");
    simulation.sidecars[0].is_cut_off = false;
    simulation.sidecars[1].is_cut_off = true;
    // Over a proxy that holds its connection: it notices nothing by itself.
    simulation.sends(0, 30).await;
}

/// The same, and the other sidecar is gone with the server: what it has sent, nobody knows.
#[tokio::test]
async fn a_sidecar_dies_with_the_server() {
    let mut simulation = Simulation::new(6, 200).await;
    simulation.sidecars.truncate(2);
    simulation.sends(0, 14).await;
    let known = simulation.sent;
    simulation.sidecars[0].is_cut_off = true;
    simulation.sends(1, 4).await;
    assert!(simulation.sent >= known + 20, "{} after {known}", simulation.sent);
    simulation.sidecars.truncate(1);
    simulation.redis.tell::<()>("FLUSHALL");
    simulation.sidecars[0].is_cut_off = false;
    simulation.sends(0, 30).await;
    assert!(simulation.sent >= 100, "not all is given up: {}", simulation.sent);
}
