//! Both ceilings together, behind one lock.

mod inherited;
mod status;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

pub use status::{CeilingStatus, Decisions, Status};

use super::block::Watch;
use super::call_time::CallTime;
use super::lanes::{Class, Lanes, Waiter};
use super::leases::{Lease, Leases, Sent};
use super::permit::{End, Late, Read};
use super::shaper::Shaper;
use super::unanswered::{Key, SETTLE, Unanswered, Way};
use super::window::Window;
use super::{Kind, Refused};
use crate::config;

/// How far an estimate of a wait may be off, as a part of it.
const DOUBT: u32 = 50;

#[derive(Debug)]
pub(super) struct State {
    account: Window,
    /// In the configuration's order.
    egress: Vec<Egress>,
    /// What is held of the ceilings that a fleet shares; the windows above hold all the same.
    pub(super) fleet: Option<Leases>,
    /// Which ceilings those are.
    kinds: Vec<Kind>,
    /// Calls that ended without an answer and still count.
    unanswered: Unanswered<Held>,
    shaper: Option<Shaper>,
    lanes: Lanes,
    max_waiting: usize,
    /// From permit to answer.
    call: CallTime,
    limits: [Option<u32>; 2],
    decisions: [Decisions; 2],
    /// For addresses without a ceiling of their own: whose turn it is.
    turn: usize,
    /// When the dispatcher looks next; `None`: when it is woken.
    pub(super) looks_at: Option<Instant>,
}

/// What a call needs.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) egress: usize,
    pub(super) lease: Option<Lease>,
}

/// A call that has ended, and what it held.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) egress: usize,
    pub(super) lease: Option<Lease>,
    pub(super) to: SocketAddr,
    /// When its permit was taken: it was sent no earlier.
    pub(super) taken: Instant,
}

/// What a call without an answer holds.
#[derive(Debug)]
enum Held {
    /// A permit of the account, one of an egress address, and perhaps a lease of them. `taken`: it was sent no earlier.
    Call { way: Way, taken: Instant, lease: Option<Lease> },
    /// So many permits of one ceiling, by calls of a process before this one.
    Inherited { ceiling: Whose, calls: usize },
    /// The same, of calls that are only assumed.
    Assumed { ceiling: Whose, calls: usize },
}

/// One of the ceilings: the account's, or that of an egress address.
#[derive(Debug, Clone, Copy)]
enum Whose {
    Account,
    Egress(usize),
}

/// One egress address.
#[derive(Debug)]
struct Egress {
    window: Window,
    watch: Watch,
}

impl Egress {
    /// Permits that could be taken now.
    fn free(&mut self, now: Instant) -> usize {
        if !self.watch.may_carry(now) {
            return 0;
        }
        self.window.free(now)
    }

    /// When one may be free; `None`: when a call in flight has ended.
    fn next(&mut self, now: Instant) -> Option<Instant> {
        let open = self.watch.next(now)?;
        self.window.next(now).map(|at| at.max(open))
    }
}

impl State {
    pub(super) fn new(
        config: &config::Ceilings,
        egress: usize,
        max_waiting: usize,
        opens: Instant,
    ) -> Self {
        let mut state = Self {
            account: Window::new(config.account, opens, config.unanswered.max),
            egress: (0..egress)
                .map(|_| Egress {
                    window: Window::new(config.egress_ip, opens, config.unanswered.max),
                    watch: Watch::default(),
                })
                .collect(),
            fleet: None,
            kinds: Vec::new(),
            unanswered: Unanswered::new(config.unanswered),
            shaper: None,
            lanes: Lanes::new(config.retry_share),
            max_waiting,
            call: CallTime::new(),
            limits: [None, None],
            decisions: [Decisions::default(); 2],
            turn: 0,
            looks_at: None,
        };
        state.pace(config);
        state
    }

    fn window(&mut self, ceiling: Whose) -> &mut Window {
        match ceiling {
            Whose::Account => &mut self.account,
            Whose::Egress(i) => &mut self.egress[i].window,
        }
    }

    /// Sets what follows from the figures: the totals, and the pace of the narrower one.
    fn pace(&mut self, config: &config::Ceilings) {
        let addresses = u32::try_from(self.egress.len()).unwrap_or(u32::MAX);
        let all_addresses = config.egress_ip.map(|n| n.saturating_mul(addresses));
        self.limits = [config.account, all_addresses];
        self.unanswered.limit(self.limits);
        self.shaper = self.limits.iter().flatten().min().map(|rate| Shaper::new(*rate));
    }

    pub(super) fn resize(&mut self, config: &config::Ceilings) {
        self.account.resize(config.account);
        for egress in &mut self.egress {
            egress.window.resize(config.egress_ip);
        }
        self.lanes.retry_share = config.retry_share;
        self.pace(config);
        if let Some(fleet) = &mut self.fleet {
            let figures = figures(config, &self.kinds);
            // A shared ceiling cannot go away while running.
            if figures.len() == self.kinds.len() {
                fleet.resize(figures, Instant::now());
            }
        }
    }

    /// From now on these ceilings are a fleet's.
    pub(super) fn share(
        &mut self,
        config: &config::Ceilings,
        kinds: Vec<Kind>,
        call_timeout: Duration,
        expected: u32,
    ) {
        let figures = figures(config, &kinds);
        let bounds = self.unanswered.bounds();
        self.fleet = Some(Leases::new(figures, call_timeout, bounds, expected, Instant::now()));
        self.kinds = kinds;
    }

    /// Takes a permit of both ceilings. Otherwise when to try again; `None`: when a call has ended.
    pub(super) fn take(&mut self, now: Instant) -> Result<Taken, Option<Instant>> {
        self.settle(now);
        let settles = self.unanswered.next_due();
        let soonest = |next: Option<Instant>| next.into_iter().chain(settles).min();
        self.take_settled(now).map_err(soonest)
    }

    fn take_settled(&mut self, now: Instant) -> Result<Taken, Option<Instant>> {
        if self.account.free(now) == 0 {
            return Err(self.account.next(now));
        }
        let chosen = self.freest(now)?;
        if let Some(fleet) = &self.fleet
            && let ready = fleet.begins_next()
            && ready.is_none_or(|ready| ready > now)
        {
            return Err(ready);
        }
        if let Some(shaper) = &self.shaper {
            shaper.pass().map_err(Some)?;
        }
        let lease = match &mut self.fleet {
            Some(fleet) => Some(fleet.take(now).ok_or_else(|| fleet.begins_next())?),
            None => None,
        };
        let egress = &mut self.egress[chosen];
        let near = egress.window.nearly_used(now);
        egress.watch.carries(now, near);
        self.windows(chosen).into_iter().for_each(|window| window.take(now));
        self.turn = chosen + 1;
        Ok(Taken { egress: chosen, lease })
    }

    /// The address with the most free permits, in turn where they are equal: so that all have
    /// room left when one of them loses its own.
    fn freest(&mut self, now: Instant) -> Result<usize, Option<Instant>> {
        let n = self.egress.len();
        let mut best: Option<(usize, usize)> = None;
        for i in (self.turn..self.turn + n).map(|i| i % n) {
            let free = self.egress[i].free(now);
            if free > best.map_or(0, |(_, most)| most) {
                best = Some((i, free));
            }
        }
        match best {
            Some((i, _)) => Ok(i),
            None => Err(self.egress.iter_mut().filter_map(|egress| egress.next(now)).min()),
        }
    }

    /// A call has ended. Says whether the dispatcher should look, and names a call that goes on
    /// counting.
    pub(super) fn ended(
        &mut self,
        call: Ended,
        end: End,
        now: Instant,
    ) -> (bool, Option<(Key, oneshot::Receiver<()>)>) {
        self.settle(now);
        let Ended { egress, lease, to, taken } = call;
        let waiting = self.lanes.len();
        // Where only the reserve was left, any end may free a permit at once.
        let mut sooner = self.is_in_reserve(egress) | self.watch(egress, end, now);
        let mut pending = None;
        match end {
            End::Answered | End::Throttled => {
                if end == End::Throttled {
                    self.park(now);
                }
                self.windows(egress).into_iter().for_each(|window| window.answered(now));
                if let Some(fleet) = &mut self.fleet {
                    fleet.answered_call(now);
                }
                self.give_back(lease, Sent::Yes, waiting, now);
                sooner |= self.unanswered.answered((egress, to), taken, now);
            }
            End::TransportError(Read::Over) => {
                self.windows(egress).into_iter().for_each(|window| window.over(now));
                self.give_back(lease, Sent::Yes, waiting, now);
            }
            End::Unsent | End::TransportError(Read::Never) => {
                self.windows(egress).into_iter().for_each(|window| window.unsent(now));
                self.give_back(lease, Sent::No, waiting, now);
                sooner = true;
            }
            End::Unanswered | End::TransportError(Read::Possible) => {
                self.windows(egress).into_iter().for_each(Window::unanswered);
                if let (Some(fleet), Some(lease)) = (&mut self.fleet, &lease) {
                    fleet.unanswered(lease, now);
                }
                pending = Some(self.unanswered.add(
                    (egress, to),
                    Held::Call { way: (egress, to), taken, lease },
                    now,
                ));
            }
        }
        // A permit may be free sooner than the dispatcher thought: now, or when this call has
        // cooled. In the steady state it looks far more often than that.
        let sooner = sooner || self.looks_at.is_none_or(|at| at > now + super::WINDOW);
        (!self.nobody_waits() && sooner, pending)
    }

    /// A call has ended that had been given up. Says whether the dispatcher should look.
    pub(super) fn ended_late(&mut self, key: Key, late: Late, now: Instant) -> bool {
        self.settle(now);
        let Some(held) = self.unanswered.remove(key) else { return false };
        let sent = match &held {
            Held::Call { way, taken, .. } => Some((*way, *taken)),
            Held::Inherited { .. } | Held::Assumed { .. } => None,
        };
        self.read(held, now);
        if let (Some((way, taken)), Late::Answered) = (sent, late) {
            self.windows(way.0).into_iter().for_each(|window| window.reopen(now));
            if let Some(fleet) = &mut self.fleet {
                fleet.answered_call(now);
            }
            self.unanswered.answered(way, taken, now);
        }
        !self.nobody_waits()
    }

    /// Calls without an answer that have stopped to count by now.
    fn settle(&mut self, now: Instant) {
        while let Some(held) = self.unanswered.pop_due(now) {
            self.read(held, now);
        }
    }

    /// The provider has read a call without an answer, as far as is known: it cools.
    fn read(&mut self, held: Held, now: Instant) {
        match held {
            Held::Inherited { ceiling, calls } => self.window(ceiling).settled(calls, now),
            Held::Assumed { ceiling, calls } => self.window(ceiling).assumed_no_more(calls, now),
            Held::Call { way: (egress, _), lease, .. } => {
                self.windows(egress).into_iter().for_each(|window| window.settled(1, now));
                if let (Some(fleet), Some(lease)) = (&mut self.fleet, &lease) {
                    fleet.settled(lease);
                }
                let waiting = self.lanes.len();
                self.give_back(lease, Sent::Yes, waiting, now);
            }
        }
    }

    fn is_in_reserve(&mut self, egress: usize) -> bool {
        let fleet = self.fleet.as_ref().is_some_and(Leases::is_in_reserve);
        fleet || self.windows(egress).iter().any(|window| window.is_in_reserve())
    }

    fn give_back(&mut self, lease: Option<Lease>, sent: Sent, waiting: usize, now: Instant) {
        if let (Some(fleet), Some(lease)) = (&mut self.fleet, lease) {
            fleet.ended(lease, sent, waiting, now);
        }
    }

    /// Says whether the address may carry calls sooner than was thought.
    fn watch(&mut self, address: usize, end: End, now: Instant) -> bool {
        let mut reopened = false;
        let mut watch = std::mem::take(&mut self.egress[address].watch);
        match end {
            End::Answered | End::Throttled => {
                reopened = watch.answered(now);
                if reopened {
                    tracing::info!(address, "the provider answers this egress address again");
                }
            }
            End::TransportError(_) => {
                let others = |since| self.egress.iter().any(|e| e.watch.answered_since(since));
                if watch.lost(now, others) {
                    tracing::error!(
                        address,
                        "the provider seems to block this egress address: it rests for five minutes"
                    );
                }
            }
            End::Unanswered => watch.told_nothing(now),
            End::Unsent => reopened = watch.probe_again(now),
        }
        self.egress[address].watch = watch;
        reopened
    }

    fn windows(&mut self, egress: usize) -> [&mut Window; 2] {
        [&mut self.account, &mut self.egress[egress].window]
    }

    /// The provider pushed back. It throttles the account; an address over its own ceiling would
    /// be blocked, not told.
    fn park(&mut self, now: Instant) {
        match &mut self.fleet {
            // Redis parks for all; of whose account it is.
            Some(fleet) if self.kinds.contains(&Kind::Account) => fleet.push_back(),
            _ => self.account.park(now),
        }
    }

    pub(super) fn call_took(&mut self, time: Duration) {
        self.call.observe(time);
    }

    // === the waiting room ===

    pub(super) fn nobody_waits(&self) -> bool {
        self.lanes.len() == 0
    }

    pub(super) fn waiting(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn enqueue(&mut self, class: Class, waiter: Waiter) {
        self.lanes.push(class, waiter);
    }

    pub(super) fn dequeue(&mut self) -> Option<Waiter> {
        self.lanes.pop()
    }

    pub(super) fn forget_the_late(&mut self, now: Instant) {
        self.lanes.forget_the_late(now);
    }

    /// By when a call must be sent to be answered by `deadline`. Half of a caller's patience at
    /// most goes to the call, so that a slow upstream alone never shuts the door.
    pub(super) fn send_by(&self, now: Instant, deadline: Instant) -> Instant {
        deadline - self.call.most().min((deadline - now) / 2)
    }

    /// Whether one more may wait to be sent by then, and for which ceiling.
    pub(super) fn admit(&mut self, now: Instant, send_by: Instant) -> Result<Kind, Refused> {
        if self.lanes.len() >= self.max_waiting {
            let (ceiling, _) = self.estimate(0, now);
            self.decisions[ceiling as usize].refused += 1;
            let (_, half) = self.estimate(self.max_waiting / 2, now);
            return Err(Refused::RoomFull { retry_after: half - now });
        }
        let (ceiling, turn) = self.estimate(self.lanes.len(), now);
        let turn = turn + (turn - now) / DOUBT;
        if turn > send_by {
            self.decisions[ceiling as usize].refused += 1;
            let retry_after = turn - send_by;
            return Err(Refused::WaitTooLong { ceiling, wait: turn - now, retry_after });
        }
        Ok(ceiling)
    }

    /// When the `k`th in line will have its permit, and which ceiling decides it.
    fn estimate(&mut self, k: usize, now: Instant) -> (Kind, Instant) {
        let call = self.call.mean();
        let spread = self.shaper.as_ref().map_or(Duration::ZERO, Shaper::period);
        let settles = self.settles(now);
        let account = self.account.estimate(k, now, call, spread, settles);
        let open = self.egress.iter().filter(|egress| !egress.watch.suspected()).count();
        let apart = spread.saturating_mul(u32::try_from(open).unwrap_or(u32::MAX));
        let egress = if open == 0 {
            self.egress.iter().map(|egress| egress.watch.reopens(now)).min()
        } else {
            let open_ones = self.egress.iter_mut().filter(|egress| !egress.watch.suspected());
            open_ones
                .map(|egress| egress.window.estimate(k / open, now, call, apart, settles))
                .max()
        };
        let egress = egress.unwrap_or(now);
        let narrower = match self.limits {
            [Some(account), Some(egress)] if egress < account => Kind::EgressIp,
            [None, Some(_)] => Kind::EgressIp,
            _ => Kind::Account,
        };
        let fleet = self.fleet.as_ref().map_or(now, |fleet| fleet.estimate(k, now, call));
        let kind = match egress.cmp(&account) {
            std::cmp::Ordering::Greater => Kind::EgressIp,
            std::cmp::Ordering::Less => Kind::Account,
            std::cmp::Ordering::Equal => narrower,
        };
        (kind, account.max(egress).max(fleet))
    }

    /// When calls without an answer may stop to count: when the next probe is answered, or by
    /// themselves.
    fn settles(&self, now: Instant) -> Instant {
        let Some(due) = self.unanswered.next_due() else { return now };
        let Some(probe) = self.account.probes_at() else { return due.max(now) };
        let probe = probe.max(now) + self.call.mean() + SETTLE;
        due.min(probe).max(now)
    }

    // === facts ===

    /// When the latest call that was answered had been sent, at the earliest.
    pub(super) fn answered(&self, now: Instant) -> Option<Instant> {
        self.unanswered.answered_everywhere(now)
    }

    pub(super) fn passed(&mut self) {
        self.decisions.iter_mut().for_each(|d| d.passed += 1);
    }

    pub(super) fn waited(&mut self, ceiling: Kind) {
        for kind in Kind::ALL {
            let decisions = &mut self.decisions[kind as usize];
            if kind == ceiling { decisions.waited += 1 } else { decisions.passed += 1 }
        }
    }
}

fn figures(config: &config::Ceilings, kinds: &[Kind]) -> Vec<u32> {
    let figure = |kind: &Kind| match kind {
        Kind::Account => config.account,
        Kind::EgressIp => config.egress_ip,
    };
    kinds.iter().filter_map(figure).collect()
}
