//! Both ceilings together, behind one lock.

mod inherited;
mod queue;
mod status;

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

pub use status::{CeilingStatus, Decisions, Room, Status};

use super::CeilingKind;
use super::block::{BlockWatch, Load};
use super::call_end::{CallEnd, EndedCall, LateEnd, Read, TakenPermit};
use super::call_time::CallTime;
use super::lease::{Lease, Sent};
use super::leases::Leases;
use super::shaper::Shaper;
use super::unanswered::{CallKey, UnansweredCalls, Way};
use super::wait_queue::WaitQueue;
use super::window::Window;
use crate::config;

#[derive(Debug)]
pub(super) struct Limiter {
    account: Window,
    /// In the configuration's order.
    egress: Vec<Egress>,
    /// What the log calls them, in the same order.
    egress_names: Vec<String>,
    /// What is held of the ceilings that a fleet shares; the windows above hold all the same.
    pub(super) fleet: Option<Leases>,
    /// Which ceilings those are.
    kinds: Vec<CeilingKind>,
    /// Calls that ended without an answer and still count.
    unanswered: UnansweredCalls<HeldPermits>,
    shaper: Option<Shaper>,
    queue: WaitQueue,
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

/// What a call without an answer holds.
#[derive(Debug)]
enum HeldPermits {
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
    watch: BlockWatch,
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

impl Limiter {
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
                    watch: BlockWatch::default(),
                })
                .collect(),
            egress_names: (0..egress).map(|i| i.to_string()).collect(),
            fleet: None,
            kinds: Vec::new(),
            unanswered: UnansweredCalls::new(config.unanswered),
            shaper: None,
            queue: WaitQueue::new(config.retry_share),
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

    pub(super) fn name_egress(&mut self, names: Vec<String>) {
        self.egress_names = names;
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
        self.queue.retry_share = config.retry_share;
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
        kinds: Vec<CeilingKind>,
        call_timeout: Duration,
        expected: u32,
    ) {
        let figures = figures(config, &kinds);
        let bounds = self.unanswered.bounds();
        self.fleet = Some(Leases::new(figures, call_timeout, bounds, expected, Instant::now()));
        self.kinds = kinds;
    }

    /// Takes a permit of both ceilings and says from which egress address. Otherwise when to try
    /// again; `None`: when a call in flight has been answered.
    pub(super) fn take(&mut self, now: Instant) -> Result<TakenPermit, Option<Instant>> {
        self.expire_unanswered(now);
        let until = self.unanswered.next_due();
        let soonest = |next: Option<Instant>| next.into_iter().chain(until).min();
        self.take_now(now).map_err(soonest)
    }

    fn take_now(&mut self, now: Instant) -> Result<TakenPermit, Option<Instant>> {
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
        let is_near = egress.window.nearly_used(now);
        egress.watch.carries(now, if is_near { Load::NearCeiling } else { Load::Low });
        self.windows(chosen).into_iter().for_each(|window| window.take(now));
        self.turn = chosen + 1;
        Ok(TakenPermit { egress: chosen, lease })
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
        call: EndedCall,
        end: CallEnd,
        now: Instant,
    ) -> (bool, Option<(CallKey, oneshot::Receiver<()>)>) {
        self.expire_unanswered(now);
        let EndedCall { egress, lease, to, taken } = call;
        let waiting = self.queue.len();
        // Where only the reserve was left, any end may free a permit at once.
        let mut sooner = self.is_in_reserve(egress) | self.watch(egress, end, now);
        let mut pending = None;
        match end {
            CallEnd::Answered | CallEnd::Throttled => {
                if end == CallEnd::Throttled {
                    self.withhold(now);
                }
                self.windows(egress).into_iter().for_each(|window| window.answered(now));
                if let Some(fleet) = &mut self.fleet {
                    fleet.answered_call(now);
                }
                self.give_back(lease, Sent::Yes, waiting, now);
                sooner |= self.unanswered.answered((egress, to), taken, now);
            }
            CallEnd::ConnectionLost(Read::Over) => {
                self.windows(egress).into_iter().for_each(|window| window.over(now));
                self.give_back(lease, Sent::Yes, waiting, now);
            }
            CallEnd::Unsent | CallEnd::ConnectionLost(Read::Never) => {
                self.windows(egress).into_iter().for_each(|window| window.unsent(now));
                self.give_back(lease, Sent::No, waiting, now);
                sooner = true;
            }
            CallEnd::Unanswered | CallEnd::ConnectionLost(Read::Possible) => {
                self.windows(egress).into_iter().for_each(Window::unanswered);
                if let (Some(fleet), Some(lease)) = (&mut self.fleet, &lease) {
                    fleet.unanswered(lease, now);
                }
                pending = Some(self.unanswered.add(
                    (egress, to),
                    HeldPermits::Call { way: (egress, to), taken, lease },
                    now,
                ));
            }
        }
        // A permit may be free sooner than the dispatcher thought: now, or when this call has
        // cooled. In the steady state it looks far more often than that.
        let sooner = sooner || self.looks_at.is_none_or(|at| at > now + super::WINDOW);
        (!self.queue_is_empty() && sooner, pending)
    }

    /// A call has ended that had been given up. Says whether the dispatcher should look.
    pub(super) fn ended_late(&mut self, key: CallKey, late: LateEnd, now: Instant) -> bool {
        self.expire_unanswered(now);
        let Some(held) = self.unanswered.remove(key) else { return false };
        let sent = match &held {
            HeldPermits::Call { way, taken, .. } => Some((*way, *taken)),
            HeldPermits::Inherited { .. } | HeldPermits::Assumed { .. } => None,
        };
        self.read(held, now);
        if let (Some((way, taken)), LateEnd::Answered) = (sent, late) {
            self.windows(way.0).into_iter().for_each(|window| window.reopen(now));
            if let Some(fleet) = &mut self.fleet {
                fleet.answered_call(now);
            }
            self.unanswered.answered(way, taken, now);
        }
        !self.queue_is_empty()
    }

    /// Calls without an answer that have stopped to count by now.
    fn expire_unanswered(&mut self, now: Instant) {
        while let Some(held) = self.unanswered.pop_due(now) {
            self.read(held, now);
        }
    }

    /// The provider has read a call without an answer, as far as is known: it cools.
    fn read(&mut self, held: HeldPermits, now: Instant) {
        match held {
            HeldPermits::Inherited { ceiling, calls } => {
                self.window(ceiling).unanswered_over(calls, now);
            }
            HeldPermits::Assumed { ceiling, calls } => {
                self.window(ceiling).assumed_no_more(calls, now);
            }
            HeldPermits::Call { way: (egress, _), lease, .. } => {
                self.windows(egress).into_iter().for_each(|window| window.unanswered_over(1, now));
                if let (Some(fleet), Some(lease)) = (&mut self.fleet, &lease) {
                    fleet.unanswered_over(lease);
                }
                let waiting = self.queue.len();
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
    fn watch(&mut self, egress: usize, end: CallEnd, now: Instant) -> bool {
        let mut reopened = false;
        let mut watch = std::mem::take(&mut self.egress[egress].watch);
        let address = self.egress_names.get(egress).map(String::as_str);
        match end {
            CallEnd::Answered | CallEnd::Throttled => {
                reopened = watch.answered(now);
                if reopened {
                    tracing::info!(
                        address,
                        "the provider answers calls from this egress address again: tollgate uses it \
                         again"
                    );
                }
            }
            CallEnd::ConnectionLost(_) => {
                let others = |since| self.egress.iter().any(|e| e.watch.answered_since(since));
                if watch.lost(now, others) {
                    tracing::error!(
                        address,
                        "the provider probably blocks this egress address: tollgate sends nothing \
                         from it for 5 min, then probes with one call; look for other clients behind \
                         this address"
                    );
                }
            }
            CallEnd::Unanswered => watch.inconclusive(now),
            CallEnd::Unsent => reopened = watch.probe_again(now),
        }
        self.egress[egress].watch = watch;
        reopened
    }

    fn windows(&mut self, egress: usize) -> [&mut Window; 2] {
        [&mut self.account, &mut self.egress[egress].window]
    }

    /// The provider throttled a call. It throttles the account; an address over its own ceiling would
    /// be blocked, not throttled.
    fn withhold(&mut self, now: Instant) {
        match &mut self.fleet {
            // Redis parks for all; of whose account it is.
            Some(fleet) if self.kinds.contains(&CeilingKind::Account) => fleet.push_back(),
            _ => self.account.withhold(now),
        }
    }

    pub(super) fn call_took(&mut self, time: Duration) {
        self.call.observe(time);
    }

    /// When the latest call that was answered had been sent, at the earliest.
    pub(super) fn answered(&self, now: Instant) -> Option<Instant> {
        self.unanswered.answered_everywhere(now)
    }
}

fn figures(config: &config::Ceilings, kinds: &[CeilingKind]) -> Vec<u32> {
    let figure = |kind: &CeilingKind| match kind {
        CeilingKind::Account => config.account,
        CeilingKind::EgressIp => config.egress_ip,
    };
    kinds.iter().filter_map(figure).collect()
}
