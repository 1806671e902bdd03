//! Sidecars of a fleet against the model of the script, in virtual time, over a network that delays,
//! loses and cuts off, with members that crash, stand still, leave and come back, and a Redis that
//! stops, fails over or comes back empty.

mod run;

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;

pub(super) use run::run;

use super::plan::{Fault, MS, Plan, SECOND, Trouble, Who};
use super::words::{asked, reply};
use crate::ceiling::lease::{Lease, Sent};
use crate::ceiling::leases::Leases;
use crate::ceiling::model::{self, Gets, Kept};
use crate::ceiling::unanswered::{Bounds, CallKey, UnansweredCalls, Way};

pub(super) const CALL_TIMEOUT: i64 = 3 * SECOND;
/// How long a call without an answer counts.
pub(super) const BOUNDS: Bounds =
    Bounds { min: Duration::from_secs(10), max: Duration::from_mins(5) };
/// The provider's address.
const PROVIDER: Way = (0, SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 80)));
/// How long the provider takes to read what arrived while it stood still.
const READS: i64 = 900 * MS;
/// How long a member waits for an answer before it takes the connection for dead.
const PATIENCE: i64 = 10 * SECOND;
/// By the server's clock.
pub(super) const BEGIN: i64 = 1_795_451_930_000_000;
/// How often a member looks, at most and at least, and how soon after something has happened.
const SOONEST: i64 = MS;
const LATEST: i64 = 100 * MS;
const THEN: i64 = 20 * MS;
/// Waiting callers of a member, at most.
const ROOM: f64 = 400.0;

enum Event {
    /// Unless another look was planned since.
    Member {
        member: usize,
        plan: u64,
    },
    Request {
        member: usize,
        connection: u64,
        ask: model::Ask,
    },
    Reply {
        member: usize,
        connection: u64,
        gets: Gets,
    },
    Ended {
        member: usize,
        life: u64,
        lease: Lease,
        end: End,
    },
    /// The answer to a call that had ended without one.
    Late {
        member: usize,
        life: u64,
        key: CallKey,
    },
}

/// How a call ends for its member.
#[derive(Debug, Clone, Copy)]
enum End {
    Unsent,
    /// It had been sent then.
    Answered(i64),
    /// Its connection is kept open, and the answer comes then, if at all.
    Unanswered(Option<i64>),
}

struct Member {
    leases: Leases,
    unanswered: UnansweredCalls<Lease>,
    life: u64,
    connection: u64,
    asked: Option<i64>,
    waiting: f64,
    looked: i64,
    /// The next look, and its number.
    looks: (i64, u64),
    up: bool,
    leaving: bool,
}

impl Member {
    fn read(&mut self, lease: Lease, at: Instant) {
        self.leases.unanswered_over(&lease);
        self.leases.ended(lease, Sent::Yes, self.waiting(), at);
    }

    fn settle(&mut self, at: Instant) {
        while let Some(lease) = self.unanswered.pop_due(at) {
            self.read(lease, at);
        }
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most ROOM")]
    fn waiting(&self) -> usize {
        self.waiting as usize
    }
}

/// Ceilings as the server keeps them: the account's of all regions and of one, then those of groups.
type Server = Vec<Kept>;

/// When calls arrived at the provider, in order.
pub(super) struct Seen {
    pub(super) arrivals: Vec<i64>,
    pub(super) by_group: Vec<Vec<i64>>,
}

struct Fleet {
    plan: Plan,
    rng: Rng,
    base: Instant,
    now: i64,
    events: BTreeMap<(i64, u64), Event>,
    number: u64,
    redis: Server,
    run: u64,
    /// How far the server's clock is off.
    clock: i64,
    members: Vec<Member>,
    seen: Seen,
    /// When each permit of the account last stopped to count, as far as its users know.
    users: HashMap<u32, i64>,
}

impl Fleet {
    fn new(plan: Plan) -> Self {
        let groups = plan.groups;
        let seen = Seen { arrivals: Vec::new(), by_group: vec![Vec::new(); groups] };
        let mut fleet = Self {
            rng: Rng::with_seed(plan.seed),
            base: Instant::now(),
            now: 0,
            events: BTreeMap::new(),
            number: 0,
            redis: vec![Kept::default(); groups + 2],
            run: 0,
            clock: 0,
            members: Vec::new(),
            seen,
            users: HashMap::new(),
            plan,
        };
        if fleet.plan.begun {
            let mut kept = model::at_rest(&fleet.plan.figures, "0", BEGIN);
            if kept.len() > 1 {
                fleet.redis.fill(kept.remove(1));
            }
            fleet.redis[0] = kept.remove(0);
            fleet.redis[1] = Kept::default();
        }
        for member in 0..fleet.plan.members {
            let leases = fleet.new_leases();
            // Callers of different members do not march in step.
            let waiting = fleet.rng.f64();
            fleet.members.push(Member {
                leases,
                unanswered: UnansweredCalls::new(BOUNDS),
                life: 0,
                connection: 0,
                asked: None,
                waiting,
                looked: 0,
                looks: (0, 0),
                up: true,
                leaving: false,
            });
            fleet.looks(member, i64::try_from(member).unwrap() * 137);
        }
        fleet
    }

    fn at(&self) -> Instant {
        self.base + Duration::from_micros(u64::try_from(self.now).unwrap())
    }

    fn push(&mut self, after: i64, event: Event) {
        self.number += 1;
        self.events.insert((self.now + after, self.number), event);
    }

    fn looks(&mut self, member: usize, after: i64) {
        let this = &mut self.members[member];
        let plan = this.looks.1 + 1;
        this.looks = (self.now + after, plan);
        self.push(after, Event::Member { member, plan });
    }

    fn trouble(&self, hit: impl Fn(Fault) -> bool) -> Option<i64> {
        let now = self.now;
        let on = |t: &&Trouble| hit(t.fault) && (t.from..t.to).contains(&now);
        self.plan.troubles.iter().filter(on).map(|t| t.to).max()
    }

    fn cut_off(&self, member: usize) -> bool {
        let hit = |f| match f {
            Fault::CutOff((from, to)) => (from..to).contains(&member),
            Fault::Killed => true,
            _ => false,
        };
        self.trouble(hit).is_some()
    }

    fn stands(&self, member: usize) -> Option<i64> {
        self.trouble(|f| matches!(f, Fault::Stood((from, to)) if (from..to).contains(&member)))
    }

    fn delay(&mut self) -> i64 {
        match self.rng.u32(..100) {
            _ if self.plan.calm => self.rng.i64(100..MS),
            0 => self.rng.i64(100 * MS..3_000 * MS),
            1..10 => self.rng.i64(5 * MS..100 * MS),
            _ => self.rng.i64(100..2 * MS),
        }
    }

    fn new_leases(&self) -> Leases {
        let figures = self.plan.figures.iter().map(|n| u32::try_from(*n).unwrap()).collect();
        let timeout = Duration::from_micros(CALL_TIMEOUT.unsigned_abs());
        let expected = u32::try_from(self.plan.expected).unwrap();
        Leases::new(figures, timeout, BOUNDS, expected, self.at())
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
        if let Event::Member { member, .. }
        | Event::Reply { member, .. }
        | Event::Ended { member, .. }
        | Event::Late { member, .. } = &event
            && let Some(until) = self.stands(*member)
        {
            return self.push(until - self.now, event);
        }
        match event {
            Event::Member { member, plan } if plan == self.members[member].looks.1 => {
                self.turn(member);
            }
            Event::Member { .. } => {}
            Event::Request { member, connection, ask } => self.request(member, connection, ask),
            Event::Reply { member, connection, gets } => {
                let at = self.at();
                let cut = self.cut_off(member);
                let this = &mut self.members[member];
                if this.up && !cut && this.connection == connection {
                    this.asked = None;
                    this.leases.answered(reply(gets), at);
                    self.looks(member, SOONEST);
                }
            }
            Event::Ended { member, life, lease, end } => {
                if self.members[member].up && self.members[member].life == life {
                    self.ended(member, lease, end);
                }
            }
            Event::Late { member, life, key } => {
                let at = self.at();
                let this = &mut self.members[member];
                if this.up
                    && this.life == life
                    && let Some(lease) = this.unanswered.remove(key)
                {
                    this.leases.answered_call(at);
                    this.read(lease, at);
                }
            }
        }
    }

    fn ended(&mut self, member: usize, lease: Lease, end: End) {
        let (at, base) = (self.at(), self.base);
        let pushed_back =
            self.trouble(|f| matches!(f, Fault::PushedBack)).is_some() && self.rng.u32(..20) == 0;
        let this = &mut self.members[member];
        match end {
            End::Unsent => this.leases.ended(lease, Sent::No, this.waiting(), at),
            End::Answered(sent) => {
                if pushed_back {
                    this.leases.push_back();
                }
                this.leases.answered_call(at);
                this.leases.ended(lease, Sent::Yes, this.waiting(), at);
                let sent = base + Duration::from_micros(sent.unsigned_abs());
                this.unanswered.answered(PROVIDER, sent, at);
            }
            End::Unanswered(late) => {
                this.leases.unanswered(&lease, at);
                let (key, _) = this.unanswered.add(PROVIDER, lease, at);
                let life = this.life;
                if let Some(late) = late {
                    self.push(late - self.now, Event::Late { member, life, key });
                }
            }
        }
        if self.members[member].looks.0 > self.now + THEN {
            self.looks(member, THEN);
        }
    }

    /// A member looks: calls first, then Redis.
    fn turn(&mut self, member: usize) {
        let hits = |(from, to): Who| (from..to).contains(&member);
        let crashed = self.trouble(|f| matches!(f, Fault::Crashed(who) if hits(who))).is_some();
        let left = self.trouble(|f| matches!(f, Fault::Left(who) if hits(who))).is_some();
        let (at, now) = (self.at(), self.now);
        let rate = self.plan.rate(member, now);
        let fresh = self.new_leases();
        let this = &mut self.members[member];
        this.settle(at);
        if left && this.up && !this.leaving {
            this.leaving = true;
            this.leases.close(at);
        }
        let ended = this.leaving && this.leases.is_emptied();
        if crashed || left && ended {
            this.up = false;
        }
        if crashed || left && !this.up {
            return self.looks(member, LATEST);
        }
        if !this.up || this.leaving && !left {
            (this.leases, this.up, this.leaving, this.asked) = (fresh, true, false, None);
            this.unanswered = UnansweredCalls::new(BOUNDS);
            (this.looked, this.waiting) = (now, 0.0);
            this.life += 1;
            this.connection += 1;
        }
        this.waiting = (this.waiting + rate * (now - this.looked) as f64 / 1e6).min(ROOM);
        this.looked = now;
        while self.members[member].waiting >= 1.0 {
            let Some(lease) = self.members[member].leases.take(at) else { break };
            self.members[member].waiting -= 1.0;
            self.call(member, lease);
        }
        self.ask(member);
        let next = self.looks_next(member, rate);
        self.looks(member, next);
    }

    /// When a caller comes, a permit is ready for one that waits, or there is something to ask.
    fn looks_next(&self, member: usize, rate: f64) -> i64 {
        let this = &self.members[member];
        let waiting = this.waiting();
        let ready = this.leases.next().filter(|_| waiting > 0);
        let next = ready.into_iter().chain([this.leases.asks_next(waiting)]).min();
        let next = next.map_or(LATEST, |at| {
            i64::try_from(at.saturating_duration_since(self.at()).as_micros()).unwrap()
        });
        #[expect(clippy::cast_possible_truncation, reason = "clamped")]
        let comes = if waiting == 0 { ((1.0 - this.waiting) / rate * 1e6) as i64 } else { LATEST };
        next.min(comes).clamp(SOONEST, LATEST)
    }

    fn ask(&mut self, member: usize) {
        let (at, now) = (self.at(), self.now);
        let this = &mut self.members[member];
        if this.asked.is_some_and(|asked| now > asked + PATIENCE) {
            this.asked = None;
            this.connection += 1;
            this.leases.lost(at);
        }
        let waiting = this.waiting();
        let answered = this.unanswered.answered_everywhere(at);
        let Some(ask) = this.leases.ask(at, waiting, answered) else { return };
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
        let gets = self.serve(member, &ask, BEGIN + self.now + self.clock);
        let delay = self.delay();
        self.push(delay, Event::Reply { member, connection, gets });
    }

    /// The script runs on the account's keys and those of one group.
    fn serve(&mut self, member: usize, ask: &model::Ask, now: i64) -> Gets {
        let (group, run) = (self.plan.group(member) + 2, self.run.to_string());
        let knows_region = self.plan.knows_region(member, self.members[member].life);
        let own = usize::from(knows_region);
        let mut kept = vec![std::mem::take(&mut self.redis[own])];
        if self.plan.figures.len() > 1 {
            kept.push(std::mem::take(&mut self.redis[group]));
        }
        let gets = if knows_region {
            model::serve_region(&mut kept, &mut self.redis[0], ask, &run, now)
        } else {
            model::serve(&mut kept, ask, &run, now)
        };
        if self.plan.figures.len() > 1 {
            self.redis[group] = kept.remove(1);
        }
        self.redis[own] = kept.remove(0);
        gets
    }

    /// One call: the provider reads it some time between its sending and its answer, or once it goes
    /// on.
    fn call(&mut self, member: usize, lease: Lease) {
        assert!(lease.holds(self.at()));
        let free = self.users.get(&lease.ids[0]).copied().unwrap_or(i64::MIN);
        assert!(free <= self.now, "permit {} has another user until {free}", lease.ids[0]);
        let (life, sent) = (self.members[member].life, self.now);
        if self.rng.u32(..50) == 0 {
            self.users.insert(lease.ids[0], sent);
            return self.push(MS, Event::Ended { member, life, lease, end: End::Unsent });
        }
        let mut there = self.rng.i64(MS..4 * MS);
        if let Some(until) = self.trouble(|f| matches!(f, Fault::Frozen)) {
            there += until - sent;
        }
        let backend = self.rng.u32(..4) == 0;
        let stalled = self.trouble(|f| {
            matches!(f, Fault::Stalled) || backend && matches!(f, Fault::BackendStalled)
        });
        if let Some(until) = stalled {
            there = there.max(until - sent + self.rng.i64(0..READS));
        }
        let slow = !self.plan.calm && self.rng.u32(..200) == 0;
        let back = if slow { self.rng.i64(0..CALL_TIMEOUT) } else { self.rng.i64(MS..4 * MS) };
        let read = sent + there;
        self.seen.arrivals.push(read);
        self.seen.by_group[self.plan.group(member)].push(read);
        // The next user comes a second after the provider has read it.
        self.users.insert(lease.ids[0], read + SECOND);
        let lost = self.trouble(|f| matches!(f, Fault::AnswersLost)).is_some();
        let lost = lost && self.rng.u32(..10) == 0;
        if there + back <= CALL_TIMEOUT && !lost {
            let end = End::Answered(sent);
            return self.push(there + back, Event::Ended { member, life, lease, end });
        }
        let late = (!lost && self.rng.bool()).then_some(read + back);
        let end = End::Unanswered(late.map(|late| late.max(sent + CALL_TIMEOUT)));
        self.push(CALL_TIMEOUT, Event::Ended { member, life, lease, end });
    }
}
