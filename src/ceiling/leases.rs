//! What a sidecar of a fleet holds of the shared ceilings: permits, each with a lease.
//!
//! Redis counts a permit as out until its lease ends. This sidecar begins a call on it only while
//! that call is certain to have ended and cooled by then: until the lease's end less the longest
//! call, the window and the clocks' [slack](super::exchange::CallTimes), counted from before the
//! request was sent. So no other sidecar can have a permit while its last call still counts, however
//! this one ends. A lease that was granted back, or put into a request, is no longer held: a lost
//! answer costs a lease, never a call too many. No call begins without a lease: cut off from Redis,
//! calls stop when the last lease ends.

use std::time::Duration;

use tokio::time::Instant;

use super::Mode;
use super::exchange::{CallTimes, LeaseReply, LeaseRequest, ReturnedLease, Scope};
use super::free_leases::FreeLeases;
use super::lease::{Lease, Sent};
use super::redis_clock::RedisClock;
use super::reserve::{self, Reserve};
use super::unanswered::Bounds;
use super::unread::UnreadLeases;
use super::window::WINDOW;

/// A permit goes back when no call has used it for so long since it was ready: while sidecars
/// contend for permits, and otherwise.
const IDLE_CONTENDED: Duration = Duration::from_millis(50);
const IDLE: Duration = Duration::from_secs(1);
/// Held permits that become ready within this time count as available, so no new ones are requested.
/// The longer time holds under contention, when a permit from Redis comes no sooner.
const SOON: Duration = Duration::from_millis(5);
const SOON_CONTENDED: Duration = Duration::from_millis(500);
/// How long permits gather before they are returned in one request: under contention, and otherwise.
const GATHER_CONTENDED: Duration = Duration::from_millis(20);
const GATHER: Duration = Duration::from_millis(100);
/// Each sidecar sends a request at least so often: Redis shows who is cut off, and keeps the lowest
/// figures that were named lately.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The most permits that one request wants, and returns.
const MOST_WANTED: usize = 64;
const MOST_RETURNED: usize = 256;
/// Leases that last longer are long-lived: a sidecar keeps its share of the ceiling with them.
const LONG: Duration = Duration::from_secs(15);

/// Whether Redis answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Up,
    /// Since this moment.
    Down(Instant),
}

/// Every method takes the time, which never runs backwards.
#[derive(Debug)]
pub(super) struct Leases {
    /// Calls per second of each shared ceiling, the account's first: as configured here …
    figures: Vec<u32>,
    /// … and the lowest that a sidecar of the fleet has configured.
    limits: Vec<u32>,
    times: CallTimes,
    expected: u32,
    free: FreeLeases,
    long_lived_in_use: usize,
    /// Leases of calls in flight, and of `unanswered` ones that still count.
    in_use: usize,
    unanswered: UnreadLeases,
    reserve: Reserve,
    /// No longer held, and in no request yet.
    returns: Vec<Lease>,
    returns_since: Option<Instant>,
    /// Leases that ended in use: the next request replaces them before a caller waits for one.
    renew: usize,
    /// The provider pushed back, which the next request reports.
    push_back: bool,
    closing: bool,
    /// Whether a sidecar of the fleet got less than it wanted a moment ago.
    contended: bool,
    ask_at: Instant,
    /// When the warm-up of Redis ends, on its own clock: every epoch has another.
    warm_up_end: Option<u64>,
    /// Counts how often Redis was found to have forgotten what is out.
    epoch: u32,
    clock: RedisClock,
    /// Redis grants nothing before, as far as is known.
    opens: Instant,
    /// Permits that the fleet withholds, and those of them that are still at work.
    withheld: usize,
    debt: usize,
    scope: Scope,
    /// When the request was sent that has no answer yet.
    asked: Option<Instant>,
    /// When the next request is sent at the latest.
    heartbeat: Instant,
    link: Link,
}

impl Leases {
    pub(super) fn new(
        figures: Vec<u32>,
        call_timeout: Duration,
        bounds: Bounds,
        expected: u32,
        now: Instant,
    ) -> Self {
        Self {
            limits: figures.clone(),
            figures,
            times: CallTimes::new(call_timeout, bounds),
            expected: expected.max(1),
            free: FreeLeases::default(),
            long_lived_in_use: 0,
            in_use: 0,
            unanswered: UnreadLeases::default(),
            reserve: Reserve::new(bounds.max, now),
            returns: Vec::new(),
            returns_since: None,
            renew: 0,
            push_back: false,
            closing: false,
            contended: false,
            ask_at: now,
            warm_up_end: None,
            epoch: 0,
            clock: RedisClock::default(),
            opens: now,
            withheld: 0,
            debt: 0,
            scope: Scope::Own,
            asked: None,
            heartbeat: now,
            link: Link::Down(now),
        }
    }

    /// A lease for a call that begins now.
    pub(super) fn take(&mut self, now: Instant) -> Option<Lease> {
        let in_reserve = self.is_in_reserve();
        if in_reserve && !self.reserve.is_open(now) {
            return None;
        }
        let lease = self.take_ready(now)?;
        if in_reserve {
            self.reserve.probe(reserve::of_leases(self.held()), now);
        }
        Some(lease)
    }

    /// Whether all but the reserve waits for an answer.
    pub(super) fn is_in_reserve(&self) -> bool {
        let reserve = reserve::of_leases(self.held());
        reserve > 0 && self.in_use + reserve >= self.held()
    }

    fn take_ready(&mut self, now: Instant) -> Option<Lease> {
        let mut ended = Vec::new();
        let lease = self.free.take(now, &mut ended);
        for lease in ended {
            self.give_back(lease, now);
        }
        let lease = lease?;
        self.in_use += 1;
        self.long_lived_in_use += usize::from(lease.long_lived);
        Some(lease)
    }

    /// The provider has answered a call.
    pub(super) fn answered_call(&mut self, now: Instant) {
        self.reserve.answered(now);
    }

    /// A call ended without an answer: its lease stays in use.
    pub(super) fn unanswered(&mut self, lease: &Lease, now: Instant) {
        self.unanswered.add(lease);
        if lease.epoch != self.epoch {
            self.unanswered.report(lease);
            self.returns_since.get_or_insert(now);
        }
    }

    /// A call without an answer no longer counts: [`Leases::ended`] follows.
    pub(super) fn unanswered_over(&mut self, lease: &Lease) {
        self.unanswered.remove(lease);
    }

    /// A lease whose call has ended comes back, while `waiting` callers wait here.
    pub(super) fn ended(&mut self, mut lease: Lease, sent: Sent, waiting: usize, now: Instant) {
        self.in_use -= 1;
        self.long_lived_in_use -= usize::from(lease.long_lived);
        if sent == Sent::No {
            self.reserve.unsent(now);
        }
        let sent = sent == Sent::Yes;
        if sent {
            lease.ready = now + WINDOW;
        }
        if sent && self.contended && (!lease.long_lived || waiting == 0) {
            // Other sidecars wait for it: Redis may promise it while it cools.
            return self.give_back(lease, now);
        }
        if sent && self.debt > 0 {
            // The provider pushed back; a long-lived lease would keep its permit at work.
            self.debt -= 1;
            return self.give_back(lease, now);
        }
        self.renew += usize::from(lease.until < lease.ready);
        self.keep(lease, now);
    }

    fn keep(&mut self, lease: Lease, now: Instant) {
        let of_use = lease.until >= lease.ready.max(now) && lease.epoch == self.epoch;
        let within = lease.ids.iter().zip(&self.limits).all(|(id, figure)| id < figure);
        if self.closing || !of_use || !within {
            return self.give_back(lease, now);
        }
        self.free.insert(lease);
    }

    fn give_back(&mut self, lease: Lease, now: Instant) {
        self.returns_since.get_or_insert(now);
        self.returns.push(lease);
    }

    /// When a call may begin; `None`: not before a call ends or Redis answers.
    pub(super) fn begins_next(&self) -> Option<Instant> {
        let ready = self.next()?;
        Some(if self.is_in_reserve() { ready.max(self.reserve.opens()) } else { ready })
    }

    /// When a held permit is ready.
    pub(super) fn next(&self) -> Option<Instant> {
        self.free.next()
    }

    /// The provider pushed back: the next request has Redis withhold permits.
    pub(super) fn push_back(&mut self) {
        self.push_back = true;
    }

    pub(super) fn resize(&mut self, figures: Vec<u32>, now: Instant) {
        self.limits.clone_from(&figures);
        self.figures = figures;
        self.reconsider(now);
    }

    /// No call begins any more; everything goes back.
    pub(super) fn close(&mut self, now: Instant) {
        self.closing = true;
        self.reconsider(now);
    }

    /// Whether it is closed and holds nothing more to give back.
    pub(super) fn is_emptied(&self) -> bool {
        self.closing && self.returns.is_empty() && self.asked.is_none()
    }

    /// Gives back the free leases that may no longer be used.
    fn reconsider(&mut self, now: Instant) {
        for lease in self.free.take_all() {
            self.keep(lease, now);
        }
    }

    /// The request to send now, for so many waiters; `None`: none, or an answer is still to come.
    /// `answered`: when the latest call that was answered had been sent, at the earliest.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        waiting: usize,
        answered: Option<Instant>,
    ) -> Option<LeaseRequest> {
        if self.asked.is_some() {
            return None;
        }
        self.return_idle(now);
        let want = if now >= self.ask_at && !self.closing { self.wanted(now, waiting) } else { 0 };
        let gathered = self.goes_back().is_some_and(|at| now >= at);
        if want == 0 && !self.push_back && !gathered && (now < self.heartbeat || self.closing) {
            return None;
        }
        let renew = std::mem::take(&mut self.renew);
        let renew = if self.contended || self.closing || now < self.ask_at { 0 } else { renew };
        let want = (want + renew).min(MOST_WANTED);
        self.asked = Some(now);
        self.heartbeat = now + HEARTBEAT;
        let rest = self.returns.split_off(self.returns.len().min(MOST_RETURNED));
        let back = std::mem::replace(&mut self.returns, rest);
        self.returns_since = (!self.returns.is_empty()).then_some(now);
        let unread = self.unanswered.reports(MOST_RETURNED, self.times.hold);
        if self.unanswered.has_reports() {
            self.returns_since = Some(now);
        }
        let back = back.into_iter().map(|lease| ReturnedLease {
            ids: lease.ids,
            nonce: lease.nonce,
            free_in: lease.ready.saturating_duration_since(now),
        });
        let narrowest = self.limits.iter().min().copied().unwrap_or(0);
        let share = (narrowest / self.expected) as usize;
        let long_lived = self.free.long_lived() + self.long_lived_in_use;
        let long_lived = share.saturating_sub(long_lived).min(want);
        Some(LeaseRequest {
            figures: self.figures.clone(),
            want,
            long_lived,
            push_back: std::mem::take(&mut self.push_back),
            answered: answered.and_then(|at| self.clock.convert(at)),
            times: self.times,
            back: back.chain(unread).collect(),
        })
    }

    fn wanted(&self, now: Instant, waiting: usize) -> usize {
        let soon = now + if self.contended { SOON_CONTENDED } else { SOON };
        let ready = self.free.ready_by(soon, waiting);
        waiting.saturating_sub(ready).min(MOST_WANTED)
    }

    fn idle_for(&self) -> Duration {
        if self.contended { IDLE_CONTENDED } else { IDLE }
    }

    /// When what comes back is sent.
    fn goes_back(&self) -> Option<Instant> {
        let gather = match (self.closing, self.contended) {
            (true, _) => Duration::ZERO,
            (_, true) => GATHER_CONTENDED,
            (_, false) => GATHER,
        };
        self.returns_since.map(|since| since + gather)
    }

    fn return_idle(&mut self, now: Instant) {
        for lease in self.free.take_idle(self.idle_for(), now) {
            self.give_back(lease, now);
        }
    }

    /// When there may be something to ask.
    pub(super) fn asks_next(&self, waiting: usize) -> Instant {
        let idle = self.next().map(|at| at + self.idle_for());
        let gathered = self.goes_back();
        let ask = (waiting > 0 && !self.closing).then_some(self.ask_at);
        [idle, gathered, ask].into_iter().flatten().fold(self.heartbeat, Instant::min)
    }

    /// The answer to the request that is on its way, however late.
    pub(super) fn answered(&mut self, reply: LeaseReply, now: Instant) {
        let Some(asked) = self.asked.take() else { return };
        self.unanswered.reported();
        self.link = Link::Up;
        self.clock.observe(now, reply.now);
        self.contended = reply.contended;
        // A return-only request gets no `ask_in`: the previous one stands.
        self.ask_at = self.ask_at.max(now + Duration::from_micros(reply.ask_in));
        self.withheld = reply.withheld;
        self.debt = reply.debt;
        self.scope = reply.scope;
        self.opens = now + Duration::from_micros(reply.warm_up);
        let end = reply.now + reply.warm_up;
        let is_new = reply.warm_up > 0 && self.warm_up_end.is_none_or(|before| before != end);
        if is_new {
            // Redis has forgotten what is out. Returning all that is held shows it.
            self.warm_up_end = Some(end);
            self.epoch = self.epoch.wrapping_add(1);
            self.unanswered.report_all();
            self.returns_since.get_or_insert(now);
        }
        if is_new || self.limits != reply.figures {
            self.limits.clone_from(&reply.figures);
            self.reconsider(now);
        }
        for granted in reply.out {
            let counts_for = Duration::from_micros(granted.nonce.saturating_sub(reply.now));
            // A lease that is over already still goes back.
            let begins_for = counts_for.saturating_sub(self.times.hold);
            let lease = Lease {
                ids: granted.ids,
                nonce: granted.nonce,
                long_lived: begins_for + self.times.cycle > LONG,
                epoch: self.epoch,
                ready: now + Duration::from_micros(granted.ready_in),
                until: asked + begins_for,
            };
            self.keep(lease, now);
        }
    }

    /// The request gets no answer. Redis may have carried it out.
    pub(super) fn lost(&mut self, now: Instant) {
        self.asked = None;
        // The next server may have another clock, and may not have received the reports.
        self.clock = RedisClock::default();
        self.unanswered.report_again();
        if self.link == Link::Up {
            self.link = Link::Down(now);
        }
        // Leases that have ended do not count for the mode.
        self.reconsider(now);
    }

    /// Permits that calls use or may use.
    pub(super) fn held(&self) -> usize {
        self.free.len() + self.in_use
    }

    pub(super) fn withheld(&self) -> usize {
        self.withheld
    }

    /// Whose calls the account's ceiling counts, by the last reply.
    pub(super) fn scope(&self) -> Scope {
        self.scope
    }

    /// How long the warm-up of Redis still lasts.
    pub(super) fn opens_in(&self, now: Instant) -> Duration {
        self.opens.saturating_duration_since(now)
    }

    /// Permits that a call could begin on now.
    pub(super) fn free(&self, now: Instant) -> usize {
        self.free.ready_by(now, usize::MAX)
    }

    pub(super) fn mode(&self, now: Instant) -> Mode {
        if self.is_linked(now) {
            Mode::Shared
        } else if self.held() > self.unanswered.len() {
            Mode::CutOff
        } else {
            Mode::Closed
        }
    }

    /// Whether Redis answers: a request without an answer for a second counts as an outage.
    pub(super) fn is_linked(&self, now: Instant) -> bool {
        self.link == Link::Up && self.asked.is_none_or(|asked| now < asked + Duration::from_secs(1))
    }

    /// When the `k`th in line will have a permit, if every call takes `call`.
    pub(super) fn estimate(&self, k: usize, now: Instant, call: Duration) -> Instant {
        let held = self.held();
        let linked = self.is_linked(now);
        if linked && !self.contended {
            return now;
        }
        if held == 0 {
            // The estimate: an outage lasts as long again as it has lasted.
            let again = match self.link {
                Link::Up => Duration::ZERO,
                Link::Down(since) => now.saturating_duration_since(since),
            };
            return self.opens.max(self.ask_at).max(now + again);
        }
        let cycle = WINDOW + call;
        let rounds = u32::try_from(k / held).unwrap_or(u32::MAX);
        self.next().unwrap_or(now).max(now) + cycle.saturating_mul(rounds)
    }
}
