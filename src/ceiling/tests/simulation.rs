//! Sidecars of a fleet against the model of the script, in virtual time, over a network that delays,
//! loses and cuts off, with members that crash and a Redis that stops or comes back empty.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use fastrand::Rng;
use proptest::prelude::*;
use tokio::time::Instant;

use crate::ceiling::leases::{Ask, Given, Lease, Leases, Reply};
use crate::ceiling::model::{self, Back, Gets, Kept};

const MS: i64 = 1_000;
const SECOND: i64 = 1_000_000;
const CALL_TIMEOUT: i64 = 3 * SECOND;
/// How long a member waits for an answer before it takes the connection for dead.
const PATIENCE: i64 = 10 * SECOND;
const BEGIN: i64 = 1_795_451_930_000_000;

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Redis does nothing, and then all that came meanwhile.
    Stopped,
    /// Redis is gone, and empty after.
    Killed,
    /// Its keys are gone at once.
    Flushed,
    /// A member and Redis do not hear each other; requests or answers on their way are lost.
    CutOff(usize),
    /// A member dies and starts again after the fault.
    Crashed(usize),
    /// A replica takes over that is as far behind as the trouble is long, up to 3 s, with a clock that
    /// is so much off the first one's.
    Failover { clock: i64 },
    /// Calls freeze on their way to the provider, and then arrive at once.
    Frozen,
}

#[derive(Debug, Clone)]
struct Trouble {
    fault: Fault,
    from: i64,
    to: i64,
}

/// What becomes of what Redis knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    LastCopy,
    Empty,
    New,
    Promoted { clock: i64 },
}

enum Event {
    Member(usize),
    Request { member: usize, connection: u64, ask: model::Ask },
    Reply { member: usize, connection: u64, gets: Gets },
    Ended { member: usize, life: u64, lease: Lease, sent: bool },
}

struct Member {
    leases: Leases,
    life: u64,
    connection: u64,
    asked: Option<i64>,
    /// Calls a second that its callers want.
    demand: i64,
    waiting: f64,
    up: bool,
}

struct Fleet {
    rng: Rng,
    base: Instant,
    now: i64,
    figures: Vec<i64>,
    events: BTreeMap<(i64, u64), Event>,
    number: u64,
    redis: Vec<Kept>,
    run: u64,
    /// How far the server's clock is off.
    clock: i64,
    members: Vec<Member>,
    troubles: Vec<Trouble>,
    arrivals: Vec<i64>,
    /// What members take for their number: more of them is fewer core permits.
    expected: usize,
    /// When each permit of the account last stopped to count, as far as its users know.
    users: HashMap<u32, i64>,
}

impl Fleet {
    fn at(&self) -> Instant {
        self.base + Duration::from_micros(u64::try_from(self.now).unwrap())
    }

    fn push(&mut self, after: i64, event: Event) {
        self.number += 1;
        self.events.insert((self.now + after, self.number), event);
    }

    fn trouble(&self, hit: impl Fn(Fault) -> bool) -> Option<i64> {
        let now = self.now;
        let on = |t: &&Trouble| hit(t.fault) && (t.from..t.to).contains(&now);
        self.troubles.iter().filter(on).map(|t| t.to).max()
    }

    fn cut_off(&self, member: usize) -> bool {
        self.trouble(|f| matches!(f, Fault::CutOff(m) if m == member)).is_some()
            || self.trouble(|f| matches!(f, Fault::Killed)).is_some()
    }

    fn delay(&mut self) -> i64 {
        match self.rng.u32(..100) {
            0 => self.rng.i64(100 * MS..3_000 * MS),
            1..10 => self.rng.i64(5 * MS..100 * MS),
            _ => self.rng.i64(100..2 * MS),
        }
    }

    fn new_leases(&self) -> Leases {
        let figures = self.figures.iter().map(|n| u32::try_from(*n).unwrap()).collect();
        let timeout = Duration::from_micros(CALL_TIMEOUT.unsigned_abs());
        Leases::new(figures, timeout, u32::try_from(self.expected).unwrap(), self.at())
    }

    fn run(&mut self, until: i64) {
        while let Some((&(at, number), _)) = self.events.first_key_value() {
            if at > until {
                return;
            }
            self.now = at;
            let event = self.events.remove(&(at, number)).unwrap();
            self.happens(event);
        }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Member(member) => self.turn(member),
            Event::Request { member, connection, ask } => self.request(member, connection, ask),
            Event::Reply { member, connection, gets } => {
                let at = self.at();
                let cut = self.cut_off(member);
                let this = &mut self.members[member];
                if this.up && !cut && this.connection == connection {
                    this.asked = None;
                    this.leases.answered(reply(gets), at);
                }
            }
            Event::Ended { member, life, lease, sent } => {
                let at = self.at();
                let this = &mut self.members[member];
                if this.up && this.life == life {
                    this.leases.ended(lease, sent, at);
                }
            }
        }
    }

    /// A member looks, once a millisecond: calls first, then Redis.
    fn turn(&mut self, member: usize) {
        self.push(MS, Event::Member(member));
        let crashed = self.trouble(|f| matches!(f, Fault::Crashed(m) if m == member)).is_some();
        let fresh = self.new_leases();
        let (at, now) = (self.at(), self.now);
        let this = &mut self.members[member];
        if crashed {
            this.up = false;
            return;
        }
        if !this.up {
            (this.leases, this.up, this.asked) = (fresh, true, None);
            this.life += 1;
            this.connection += 1;
        }
        this.waiting = (this.waiting + this.demand as f64 / 1e3).min(400.0);
        while self.members[member].waiting >= 1.0 {
            let Some(lease) = self.members[member].leases.take(at) else { break };
            self.members[member].waiting -= 1.0;
            self.call(member, lease);
        }
        let this = &mut self.members[member];
        if this.asked.is_some_and(|asked| now > asked + PATIENCE) {
            this.asked = None;
            this.connection += 1;
            this.leases.lost(at);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
        let waiting = this.waiting as usize;
        let Some(ask) = this.leases.ask(at, waiting) else { return };
        this.asked = Some(now);
        let connection = this.connection;
        if !self.cut_off(member) {
            let delay = self.delay();
            self.push(delay, Event::Request { member, connection, ask: asked(&ask) });
        }
    }

    fn request(&mut self, member: usize, connection: u64, ask: model::Ask) {
        if let Some(until) = self.trouble(|f| matches!(f, Fault::Stopped)) {
            // Late in any order with what else waits there.
            let after = until - self.now + self.rng.i64(0..MS);
            return self.push(after, Event::Request { member, connection, ask });
        }
        if self.cut_off(member) {
            return;
        }
        let now = BEGIN + self.now + self.clock;
        let gets = model::serve(&mut self.redis, &ask, &self.run.to_string(), now);
        let delay = self.delay();
        self.push(delay, Event::Reply { member, connection, gets });
    }

    /// One call: arrives some time between its sending and its end.
    fn call(&mut self, member: usize, lease: Lease) {
        assert!(lease.holds(self.at()));
        let free = self.users.get(&lease.ids[0]).copied().unwrap_or(i64::MIN);
        assert!(free <= self.now, "permit {} has another user until {free}", lease.ids[0]);
        let life = self.members[member].life;
        if self.rng.u32(..50) == 0 {
            self.users.insert(lease.ids[0], self.now);
            return self.push(MS, Event::Ended { member, life, lease, sent: false });
        }
        let mut there = self.rng.i64(MS..4 * MS);
        if let Some(until) = self.trouble(|f| matches!(f, Fault::Frozen)) {
            there += until - self.now;
        }
        let slow = self.rng.u32(..200) == 0;
        let back = if slow { self.rng.i64(0..CALL_TIMEOUT) } else { self.rng.i64(MS..4 * MS) };
        let took = (there + back).min(CALL_TIMEOUT);
        self.arrivals.push(self.now + there.min(CALL_TIMEOUT));
        // The next user comes a second after the answer; a member that dies takes its calls along
        // no later than they would have ended.
        self.users.insert(lease.ids[0], self.now + took + SECOND);
        self.push(took, Event::Ended { member, life, lease, sent: true });
    }
}

fn asked(ask: &Ask) -> model::Ask {
    let back = ask.back.iter().map(|back| Back {
        ids: back.ids.iter().map(|id| i64::from(*id)).collect(),
        nonce: i64::try_from(back.nonce).unwrap(),
        free_in: i64::try_from(back.free_in.as_micros()).unwrap(),
    });
    model::Ask {
        figures: ask.figures.iter().map(|n| i64::from(*n)).collect(),
        want: ask.want,
        core: ask.core,
        park: ask.park,
        back: back.collect(),
    }
}

fn reply(gets: Gets) -> Reply {
    let number = |n: i64| u64::try_from(n).unwrap();
    let ids = |ids: Vec<i64>| ids.iter().map(|id| u32::try_from(*id).unwrap()).collect();
    Reply {
        now: number(gets.now),
        learn_in: number(gets.learn_in),
        scarce: gets.scarce > 0,
        ask_in: number(gets.ask_in),
        figures: ids(gets.figures),
        parked: usize::try_from(gets.parked).unwrap(),
        owed: usize::try_from(gets.owed).unwrap(),
        out: gets
            .out
            .into_iter()
            .map(|out| Given {
                ids: ids(out.ids),
                nonce: number(out.nonce),
                ready_in: number(out.ready_in),
            })
            .collect(),
    }
}

/// Runs a fleet that begins on an empty Redis, and returns when calls arrived.
fn fleet(
    figures: &[i64],
    members: usize,
    expected: usize,
    demand: i64,
    troubles: &[Trouble],
    seed: u64,
    until: i64,
) -> Vec<i64> {
    let base = Instant::now();
    let mut fleet = Fleet {
        rng: Rng::with_seed(seed),
        base,
        now: 0,
        figures: figures.to_vec(),
        events: BTreeMap::new(),
        number: 0,
        redis: Vec::new(),
        run: 0,
        clock: 0,
        members: Vec::new(),
        troubles: troubles.to_vec(),
        arrivals: Vec::new(),
        expected,
        users: HashMap::new(),
    };
    for member in 0..members {
        let leases = fleet.new_leases();
        let demand = demand / i64::try_from(members).unwrap() + 1;
        fleet.members.push(Member {
            leases,
            life: 0,
            connection: 0,
            asked: None,
            demand,
            waiting: 0.0,
            up: true,
        });
        fleet.push(i64::try_from(member).unwrap() * 137, Event::Member(member));
    }
    // Redis forgets at the end of a kill, and at once in a flush.
    let mut turns = Vec::new();
    for trouble in troubles {
        match trouble.fault {
            Fault::Killed => turns.push((trouble.to, Turn::New)),
            Fault::Flushed => turns.push((trouble.from, Turn::Empty)),
            Fault::Failover { clock } => {
                let behind = (trouble.to - trouble.from).min(3 * SECOND);
                turns.push((trouble.from - behind, Turn::LastCopy));
                turns.push((trouble.from, Turn::Promoted { clock }));
            }
            _ => {}
        }
    }
    turns.sort_unstable();
    let mut copy = Vec::new();
    for (at, turn) in turns {
        fleet.run(at);
        match turn {
            Turn::LastCopy => copy = fleet.redis.clone(),
            Turn::Empty => fleet.redis.clear(),
            Turn::New => {
                fleet.redis.clear();
                fleet.run += 1;
            }
            Turn::Promoted { clock } => {
                fleet.redis.clone_from(&copy);
                fleet.run += 1;
                fleet.clock = clock;
            }
        }
    }
    fleet.run(until);
    fleet.arrivals.sort_unstable();
    fleet.arrivals
}

/// The most arrivals in any half-open second.
fn worst(arrivals: &[i64]) -> usize {
    let mut first = 0;
    let mut worst = 0;
    for (i, at) in arrivals.iter().enumerate() {
        while at - arrivals[first] >= SECOND {
            first += 1;
        }
        worst = worst.max(i + 1 - first);
    }
    worst
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let fault = prop_oneof![
        Just(Fault::Stopped),
        Just(Fault::Killed),
        Just(Fault::Flushed),
        (0..4_usize).prop_map(Fault::CutOff),
        (0..4_usize).prop_map(Fault::Crashed),
        Just(Fault::Frozen),
        // Two servers' clocks, each of them less than a second apart.
        (-490 * MS..490 * MS).prop_map(|clock| Fault::Failover { clock }),
    ];
    (fault, 30 * SECOND..65 * SECOND, 1..14_000_i64).prop_map(|(fault, from, ms)| {
        let long = match fault {
            Fault::Frozen => ms.min(2_500),
            // Longer than any lease.
            Fault::CutOff(_) => ms * 3,
            _ => ms,
        };
        Trouble { fault, from, to: from + long * MS }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 8, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn a_fleet_is_never_over(
        n in prop::sample::select(vec![1_i64, 7, 300, 1_000]),
        egress in any::<bool>(),
        members in 1..5_usize,
        expected in 1..12_usize,
        troubles in prop::collection::vec(trouble(), 0..5),
        seed in any::<u64>(),
    ) {
        let figures = if egress { vec![n, (n * 2 / 3).max(1)] } else { vec![n] };
        let least = *figures.last().unwrap();
        let arrivals = fleet(&figures, members, expected, 3 * n, &troubles, seed, 90 * SECOND);
        let worst = worst(&arrivals);
        prop_assert!(worst <= usize::try_from(least).unwrap(), "{worst} of {least}");
    }
}

#[test]
fn a_fleet_uses_its_ceiling() {
    for n in [7_i64, 300, 1_000] {
        let arrivals = fleet(&[n], 4, 4, 3 * n, &[], 7, 60 * SECOND);
        let (from, to) = (40 * SECOND, 60 * SECOND);
        let calls = arrivals.iter().filter(|at| (from..to).contains(*at)).count();
        let most = usize::try_from(n).unwrap();
        assert!(worst(&arrivals) <= most);
        assert!(calls * 100 >= most * 20 * 90, "{calls} of {} calls", most * 20);
    }
}

/// To a server that takes over with a clock that is behind, a lease that has ended, and whose permit
/// went to somebody else, seems to live: what is left of it must be more than that.
#[test]
fn a_claim_needs_a_lease_that_lasts() {
    let ask = |want, back| model::Ask { figures: vec![1], want, back, ..model::Ask::default() };
    let mut redis = Vec::new();
    model::serve(&mut redis, &ask(0, Vec::new()), "first", BEGIN);
    let gets = model::serve(&mut redis, &ask(1, Vec::new()), "first", BEGIN + 31 * SECOND);
    let nonce = gets.out[0].nonce;
    for (left, counts) in [(SECOND, false), (SECOND + 1, true)] {
        let mut next = redis.clone();
        let now = nonce - left;
        let back = Back { ids: vec![0], nonce, free_in: 0 };
        model::serve(&mut next, &ask(0, vec![back]), "second", now);
        assert_eq!(next[0].permits[&0] == now, counts);
    }
}
