//! A provider, or the way to it, that stands still: what arrived meanwhile is read when it goes on, also
//! from connections that are closed. Never over a ceiling all the same, and the ceiling is used again
//! soon.
#![allow(clippy::print_stdout, reason = "figures to quote")]

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use crate::support::virtual_time::{virtual_time, worst_second};
use fastrand::Rng;
use proptest::prelude::*;
use tokio::time::{Instant, sleep, sleep_until};
use tollgate::ceiling::{Ceiling, Class, Left, Read, Start};
use tollgate::config::{Ceilings, Unanswered};

const SECOND: Duration = Duration::from_secs(1);
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the provider takes to read what has arrived, once it goes on.
const READS: Duration = Duration::from_millis(900);

fn ceilings(account: u32) -> Ceilings {
    Ceilings {
        account: Some(account),
        egress_ip: None,
        retry_share: 0.2,
        unanswered: Unanswered { min: Duration::from_secs(10), max: Duration::from_mins(5) },
    }
}

/// When the provider reads nothing, from the start of the run.
#[derive(Debug, Clone)]
struct Stall {
    time: Range<Duration>,
    /// Only one of the four backends behind its address.
    backend: bool,
}

/// What is to happen.
#[derive(Debug, Clone)]
struct Plan {
    n: u32,
    stalls: Vec<Stall>,
    /// When the process is killed and starts again.
    kills: Vec<Duration>,
    /// Of a thousand calls without a late answer, because their connections are gone.
    reset: u32,
    /// Of a thousand answers that are lost.
    lost: u32,
    /// What the ledger of a killed process counts too much.
    room: usize,
    until: Duration,
    seed: u64,
}

/// The provider, which has no mercy: it reads everything that has arrived.
struct World {
    plan: Plan,
    start: Instant,
    rng: RefCell<Rng>,
    read: RefCell<Vec<Duration>>,
    /// What the ledger knows.
    ledger: RefCell<Ledger>,
}

/// As the meter's: it never hears of late answers, and keeps room for calls that are about to begin.
#[derive(Default)]
struct Ledger {
    under_way: usize,
    /// When calls ended without an answer.
    unanswered: Vec<Instant>,
    /// When the latest call with an answer had been sent.
    answered: Option<Instant>,
}

impl Ledger {
    /// What the next process is told after a kill, with room for so many calls more.
    fn left(&mut self, room: usize) -> Vec<Left> {
        let now = Instant::now();
        let left = |sent: &Instant| Left {
            ago: now.saturating_duration_since(*sent),
            calls: 1,
            under_way: 0,
            later_answered: self.answered.is_some_and(|answered| answered > *sent),
        };
        let mut all: Vec<_> = self.unanswered.iter().map(left).collect();
        let calls = self.under_way + room;
        all.push(Left { ago: Duration::ZERO, calls, under_way: calls, later_answered: false });
        // From now on they are calls of which it is not known how they ended.
        self.unanswered.extend(std::iter::repeat_n(now, calls));
        self.under_way = 0;
        all
    }
}

impl World {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// When a call that leaves now is answered.
    fn reads(&self) -> Instant {
        let mut rng = self.rng.borrow_mut();
        let (now, backend) = (self.now(), rng.u32(..4) == 0);
        let mut at = now + Duration::from_micros(rng.u64(500..4_000));
        for stall in &self.plan.stalls {
            if stall.time.contains(&at) && (backend || !stall.backend) {
                at = stall.time.end + READS.mul_f64(rng.f64());
            }
        }
        self.read.borrow_mut().push(at);
        let answer = at + Duration::from_micros(rng.u64(500..4_000));
        self.start + answer
    }

    fn one_in(&self, thousandth: u32) -> bool {
        self.rng.borrow_mut().u32(..1_000) < thousandth
    }

    /// A caller of this life of the process: it calls again and again.
    async fn calls(self: Rc<Self>, ceiling: Ceiling, life: Rc<RefCell<bool>>) {
        while *life.borrow() && self.now() < self.plan.until {
            let deadline = Instant::now() + SECOND * 5;
            let Ok(ticket) = ceiling.request(Class::Fresh, deadline) else {
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(permit) = ticket.permit().await else { continue };
            if !*life.borrow() {
                return permit.unsent();
            }
            let sent = Instant::now();
            let gives_up = sent + CALL_TIMEOUT;
            let answer = self.reads();
            self.ledger.borrow_mut().under_way += 1;
            let lost = self.one_in(self.plan.lost);
            if answer < gives_up && !lost {
                sleep_until(answer).await;
                let ledger = &mut *self.ledger.borrow_mut();
                ledger.under_way -= 1;
                ledger.answered = ledger.answered.max(Some(sent));
                permit.answered();
                continue;
            }
            sleep_until(gives_up).await;
            {
                let ledger = &mut *self.ledger.borrow_mut();
                ledger.under_way -= 1;
                ledger.unanswered.push(Instant::now());
            }
            if self.one_in(self.plan.reset) || lost {
                permit.lost(Read::Possible);
            } else if let Some(mut pending) = permit.unanswered() {
                tokio::task::spawn_local(async move {
                    tokio::select! {
                        () = sleep_until(answer) => pending.answered(),
                        () = pending.tells_nothing() => {}
                    }
                });
            }
        }
    }
}

/// When calls were read, in order.
fn run(plan: &Plan) -> Vec<Duration> {
    virtual_time(async {
        let world = Rc::new(World {
            start: Instant::now(),
            rng: RefCell::new(Rng::with_seed(plan.seed)),
            plan: plan.clone(),
            read: RefCell::default(),
            ledger: RefCell::default(),
        });
        let mut start = Start::Alone;
        for end in plan.kills.iter().copied().chain([plan.until]) {
            let ceiling = Ceiling::start(&ceilings(plan.n), 1, 100_000, start);
            let life = Rc::new(RefCell::new(true));
            let callers = (0..3 * plan.n).map(|_| {
                let calls = Rc::clone(&world).calls(ceiling.clone(), Rc::clone(&life));
                tokio::task::spawn_local(calls)
            });
            let callers: Vec<_> = callers.collect();
            sleep_until(world.start + end).await;
            *life.borrow_mut() = false;
            callers.iter().for_each(tokio::task::JoinHandle::abort);
            for caller in callers {
                drop(caller.await);
            }
            let left = world.ledger.borrow_mut().left(plan.room);
            start = Start::After { left, call_timeout: CALL_TIMEOUT };
        }
        let mut read = world.read.take();
        read.sort_unstable();
        read
    })
}

/// Of the ceiling, in these seconds.
fn used(plan: &Plan, read: &[Duration], time: Range<Duration>) -> f64 {
    let calls = read.iter().filter(|at| time.contains(*at)).count();
    calls as f64 / time.end.saturating_sub(time.start).as_secs_f64() / f64::from(plan.n)
}

/// Stalls of the whole provider, each of which has its end: it then goes on for a second at least. Or
/// one of a backend, not longer than is assumed.
fn stalls() -> impl Strategy<Value = Vec<Stall>> {
    let milliseconds = |from, long| Duration::from_millis(from)..Duration::from_millis(from + long);
    let whole =
        prop::collection::vec((500..20_000_u64, 100..30_000_u64), 1..4).prop_map(move |stalls| {
            let mut end = 1_000;
            let stalls = stalls.into_iter().map(|(after, long)| {
                let time = milliseconds(end + after, long);
                end += after + long + 1_000;
                Stall { time, backend: false }
            });
            stalls.collect()
        });
    let backend = (1_000..40_000_u64, 100..9_000_u64).prop_map(move |(from, long)| {
        vec![Stall { time: milliseconds(from, long), backend: true }]
    });
    prop_oneof![3 => whole, 1 => backend]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn a_stall_is_never_over(
        n in prop::sample::select(vec![1_u32, 7, 100, 300, 1_000]),
        stalls in stalls(),
        kills in prop::collection::vec(3_000..60_000_u64, 0..4),
        reset in prop::sample::select(vec![0, 300, 1_000]),
        lost in prop::sample::select(vec![0, 1, 50]),
        room in prop::sample::select(vec![0, 4, 40, 400]),
        seed in any::<u64>(),
    ) {
        let mut kills: Vec<_> = kills.into_iter().map(Duration::from_millis).collect();
        kills.sort_unstable();
        let until = Duration::from_secs(75);
        let plan = Plan { n, stalls, kills, reset, lost, room, until, seed };
        let worst = worst_second(&run(&plan));
        prop_assert!(worst <= n as usize, "{worst} of {n}");
    }
}

/// A ledger that counts more than the ceiling, as after a kill with many topics at work, does not close it.
#[test]
fn a_count_above_the_ceiling_leaves_one_to_probe() {
    virtual_time(async {
        let left = Left { ago: Duration::ZERO, calls: 120, under_way: 120, later_answered: false };
        let start = Start::After { left: vec![left], call_timeout: CALL_TIMEOUT };
        let ceiling = Ceiling::start(&ceilings(100), 1, 1_000, start);
        let begun = Instant::now();
        for _ in 0..100 {
            let ticket = ceiling.request(Class::Fresh, begun + SECOND * 60).unwrap();
            ticket.permit().await.unwrap().answered();
        }
        assert!(begun.elapsed() < SECOND * 30, "{:?}", begun.elapsed());
    });
}

/// Saturated, the provider stands still for so long; then the ceiling is used again within fifteen
/// seconds, also by connections that are gone and tell nothing.
#[test]
fn after_a_stall_the_ceiling_is_used_again() {
    for n in [7, 100, 300, 1_000] {
        for long in [2, 5, 20, 120].map(Duration::from_secs) {
            for reset in [0, 1_000] {
                let from = Duration::from_secs(5);
                let stalls = vec![Stall { time: from..from + long, backend: false }];
                let until = from + long + SECOND * 40;
                let plan =
                    Plan { n, stalls, kills: Vec::new(), reset, lost: 0, room: 0, until, seed: 7 };
                let read = run(&plan);
                let worst = worst_second(&read);
                let after = from + long + SECOND * 15;
                let used = used(&plan, &read, after..after + SECOND * 20);
                println!("{n}, {long:?}, {reset}: worst {worst}, {used:.3} used");
                assert!(worst <= n as usize, "{worst} of {n}");
                // Where connections are gone, probes find out, and the more of them, the sooner.
                if reset == 0 || long <= SECOND * 20 && n >= 300 || n == 1_000 {
                    assert!(used >= 0.95 || n < 20 && used >= 0.8, "{used} of {n}, {long:?}");
                }
            }
        }
    }
}

/// One backend of four stands still, and the other three answer.
#[test]
fn after_a_backends_stall_the_ceiling_is_used_again() {
    for long in [2, 5, 8].map(Duration::from_secs) {
        let from = Duration::from_secs(5);
        let stalls = vec![Stall { time: from..from + long, backend: true }];
        let until = from + long + SECOND * 40;
        let plan =
            Plan { n: 300, stalls, kills: Vec::new(), reset: 0, lost: 0, room: 0, until, seed: 7 };
        let read = run(&plan);
        let worst = worst_second(&read);
        let after = from + long + SECOND * 15;
        let used = used(&plan, &read, after..after + SECOND * 20);
        println!("a backend, {long:?}: worst {worst}, {used:.3} used");
        assert!(worst <= 300 && used >= 0.95, "{worst}, {used}");
    }
}

/// One time-out in a thousand calls costs less than 2 % of the ceiling.
#[test]
fn what_time_outs_cost() {
    let plan = |lost| Plan {
        n: 1_000,
        stalls: Vec::new(),
        kills: Vec::new(),
        reset: 1_000,
        lost,
        room: 0,
        until: SECOND * 60,
        seed: 7,
    };
    let used = |lost| used(&plan(lost), &run(&plan(lost)), SECOND * 30..SECOND * 60);
    let (without, with) = (used(0), used(1));
    println!("{without:.4} used, {with:.4} with one time-out in a thousand");
    assert!(with > without * 0.98, "{with} of {without}");
}
