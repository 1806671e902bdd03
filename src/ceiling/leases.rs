//! What a sidecar of a fleet holds of the shared ceilings: permits, each with a lease.
//!
//! Redis counts a permit as out until its lease's end. Here it is used only while a call that begins
//! now has ended and cooled by then, whatever happens: until the lease's end less the call's bound,
//! the window and [`SLACK`], counted from before the request was sent. So nobody else can have a
//! permit while its last call still counts, and nothing need be known of how this sidecar ends.
//! What was given back, or sent to be, is no longer held: a lost answer costs a lease, never a call
//! too many. There is no other way to a call than a lease: cut off from Redis, the last lease's end
//! is the end.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Mode;
pub(super) use super::exchange::{Ask, Back, Given, Reply, Times};
pub(super) use super::lease::{Lease, Sent};
use super::reserve::{self, Reserve};
use super::unanswered::Bounds;
use super::unread::Unread;
use super::window::WINDOW;

/// A permit that nobody has used for so long after it was ready goes back: while others wait for
/// permits, and else.
const IDLE: Duration = Duration::from_millis(50);
const IDLE_AT_EASE: Duration = Duration::from_secs(1);
/// Permits that are ready so soon need not be asked for. While others wait, too, one that is to be had
/// from Redis is no better than one that is held and cools.
const SOON: Duration = Duration::from_millis(5);
const SOON_ENOUGH: Duration = Duration::from_millis(500);
/// Permits that come back wait so long for others to go with: while others wait for them, and else.
const GATHER: Duration = Duration::from_millis(20);
const GATHER_AT_EASE: Duration = Duration::from_millis(100);
/// Redis hears from each sidecar so often: it shows who is cut off, and whose figures hold.
const BEAT: Duration = Duration::from_secs(5);
/// The most permits that one request wants, and gives back.
const MOST_WANTED: usize = 64;
const MOST_BACK: usize = 256;

/// Whether Redis answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Up,
    /// Since then.
    Down(Instant),
}

/// By when they are ready; the number tells apart what is ready at the same moment.
type Held = BTreeMap<(Instant, u64), Lease>;

/// Every method takes the time, which never runs backwards.
#[derive(Debug)]
pub(super) struct Leases {
    /// Of each shared ceiling, the account's first: as configured here, and the lowest of the fleet.
    figures: Vec<u32>,
    limits: Vec<u32>,
    times: Times,
    expected: u32,
    core: Held,
    other: Held,
    core_in_use: usize,
    /// Leases of calls in flight, and of `unanswered` ones that still count.
    in_use: usize,
    unanswered: Unread,
    reserve: Reserve,
    number: u64,
    /// No longer held, and not yet sent.
    back: Vec<Lease>,
    back_since: Option<Instant>,
    /// Leases that have ended in use, while there are free ones: others are asked for with what goes
    /// back, before anybody waits for one.
    renew: usize,
    park: bool,
    closing: bool,
    short: bool,
    ask_at: Instant,
    /// Redis' own moment until which it learns what is out: tells its lives apart.
    learn: Option<u64>,
    life: u32,
    /// What the clock of this connection's server showed, at the latest when its last reply came.
    clock: Option<(Instant, u64)>,
    /// Until then nothing comes from Redis, as far as is known.
    opens: Instant,
    parked: usize,
    owed: usize,
    /// A request is on its way since.
    asked: Option<Instant>,
    beat: Instant,
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
            times: Times::new(call_timeout, bounds),
            expected: expected.max(1),
            core: Held::new(),
            other: Held::new(),
            core_in_use: 0,
            in_use: 0,
            unanswered: Unread::default(),
            reserve: Reserve::new(bounds.max, now),
            number: 0,
            back: Vec::new(),
            back_since: None,
            renew: 0,
            park: false,
            closing: false,
            short: false,
            ask_at: now,
            learn: None,
            life: 0,
            clock: None,
            opens: now,
            parked: 0,
            owed: 0,
            asked: None,
            beat: now,
            link: Link::Down(now),
        }
    }

    // === calls ===

    /// A lease for a call that begins now. Ready permits of the core first, so that others idle and
    /// go back.
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
        for core in [true, false] {
            let held = if core { &mut self.core } else { &mut self.other };
            let mut ended = Vec::new();
            let mut found = None;
            while let Some(first) = held.first_entry().filter(|first| first.key().0 <= now) {
                let lease = first.remove();
                if lease.holds(now) {
                    found = Some(lease);
                    break;
                }
                ended.push(lease);
            }
            for lease in ended {
                self.give_back(lease, now);
            }
            if let Some(lease) = found {
                self.in_use += 1;
                self.core_in_use += usize::from(core);
                return Some(lease);
            }
        }
        None
    }

    /// The provider has answered a call.
    pub(super) fn answered_call(&mut self, now: Instant) {
        self.reserve.answered(now);
    }

    /// A call ended without an answer: its lease stays in use.
    pub(super) fn unanswered(&mut self, lease: &Lease, now: Instant) {
        self.unanswered.add(lease);
        if lease.life != self.life {
            self.unanswered.report(lease);
            self.back_since.get_or_insert(now);
        }
    }

    /// A call without an answer stops to count: [`Leases::ended`] follows.
    pub(super) fn settled(&mut self, lease: &Lease) {
        self.unanswered.remove(lease);
    }

    /// Its call has ended, while so many wait here.
    pub(super) fn ended(&mut self, mut lease: Lease, sent: Sent, waiting: usize, now: Instant) {
        self.in_use -= 1;
        self.core_in_use -= usize::from(lease.core);
        if sent == Sent::No {
            self.reserve.unsent(now);
        }
        let sent = sent == Sent::Yes;
        if sent {
            lease.ready = now + WINDOW;
        }
        if sent && self.short && (!lease.core || waiting == 0) {
            // Others wait for it; they may be promised it while it cools.
            return self.give_back(lease, now);
        }
        if sent && self.owed > 0 {
            // The provider pushed back; a core lease would keep its permit at work for long.
            self.owed -= 1;
            return self.give_back(lease, now);
        }
        self.renew += usize::from(lease.until < lease.ready);
        self.keep(lease, now);
    }

    fn keep(&mut self, lease: Lease, now: Instant) {
        let of_use = lease.until >= lease.ready.max(now) && lease.life == self.life;
        let within = lease.ids.iter().zip(&self.limits).all(|(id, figure)| id < figure);
        if self.closing || !of_use || !within {
            return self.give_back(lease, now);
        }
        self.number += 1;
        let held = if lease.core { &mut self.core } else { &mut self.other };
        held.insert((lease.ready, self.number), lease);
    }

    fn give_back(&mut self, lease: Lease, now: Instant) {
        self.back_since.get_or_insert(now);
        self.back.push(lease);
    }

    /// When a call may begin; `None`: as soon as something has happened.
    pub(super) fn begins_next(&self) -> Option<Instant> {
        let ready = self.next()?;
        Some(if self.is_in_reserve() { ready.max(self.reserve.opens()) } else { ready })
    }

    /// When a held permit is ready.
    pub(super) fn next(&self) -> Option<Instant> {
        [&self.core, &self.other].into_iter().filter_map(first).min()
    }

    /// The provider pushed back.
    pub(super) fn push_back(&mut self) {
        self.park = true;
    }

    pub(super) fn resize(&mut self, figures: Vec<u32>, now: Instant) {
        self.limits.clone_from(&figures);
        self.figures = figures;
        self.sort_again(now);
    }

    /// Nothing is used any more.
    pub(super) fn close(&mut self, now: Instant) {
        self.closing = true;
        self.sort_again(now);
    }

    /// Whether it is closed and holds nothing more to give back.
    pub(super) fn is_emptied(&self) -> bool {
        self.closing && self.back.is_empty() && self.asked.is_none()
    }

    /// Looks at everything held once more.
    fn sort_again(&mut self, now: Instant) {
        let held = std::mem::take(&mut self.core).into_values();
        let held: Vec<_> = held.chain(std::mem::take(&mut self.other).into_values()).collect();
        for lease in held {
            self.keep(lease, now);
        }
    }

    // === Redis ===

    /// What to ask now, for so many waiters; `None`: nothing, or an answer is still to come.
    /// `answered`: when the latest call that was answered had been sent, at the earliest.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        waiting: usize,
        answered: Option<Instant>,
    ) -> Option<Ask> {
        if self.asked.is_some() {
            return None;
        }
        self.return_idle(now);
        let want = if now >= self.ask_at && !self.closing { self.wanted(now, waiting) } else { 0 };
        let gathered = self.goes_back().is_some_and(|at| now >= at);
        if want == 0 && !self.park && !gathered && (now < self.beat || self.closing) {
            return None;
        }
        let renew = std::mem::take(&mut self.renew);
        let renew = if self.short || self.closing || now < self.ask_at { 0 } else { renew };
        let want = (want + renew).min(MOST_WANTED);
        self.asked = Some(now);
        self.beat = now + BEAT;
        let rest = self.back.split_off(self.back.len().min(MOST_BACK));
        let back = std::mem::replace(&mut self.back, rest);
        self.back_since = (!self.back.is_empty()).then_some(now);
        let unread = self.unanswered.reports(MOST_BACK, self.times.hold);
        if self.unanswered.has_reports() {
            self.back_since = Some(now);
        }
        let back = back.into_iter().map(|lease| Back {
            ids: lease.ids,
            nonce: lease.nonce,
            free_in: lease.ready.saturating_duration_since(now),
        });
        let back = back.chain(unread);
        let narrowest = self.limits.iter().min().copied().unwrap_or(0);
        let core = (narrowest / self.expected) as usize;
        let core = core.saturating_sub(self.core.len() + self.core_in_use).min(want);
        let park = std::mem::take(&mut self.park);
        let (figures, times) = (self.figures.clone(), self.times);
        let answered = answered.and_then(|at| self.on_redis_clock(at));
        Some(Ask { figures, want, core, park, answered, times, back: back.collect() })
    }

    /// This moment on Redis' clock, or an earlier one: replies take time to come.
    fn on_redis_clock(&self, at: Instant) -> Option<u64> {
        let (seen, clock) = self.clock?;
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let ago = seen.saturating_duration_since(at);
        if ago.is_zero() {
            return Some(clock.saturating_add(micros(at - seen)));
        }
        clock.checked_sub(micros(ago))
    }

    fn wanted(&self, now: Instant, waiting: usize) -> usize {
        let soon = now + if self.short { SOON_ENOUGH } else { SOON };
        let soon = [&self.core, &self.other]
            .map(|held| held.range(..(soon, u64::MAX)).take(waiting).count());
        waiting.saturating_sub(soon[0] + soon[1]).min(MOST_WANTED)
    }

    fn idle_for(&self) -> Duration {
        if self.short { IDLE } else { IDLE_AT_EASE }
    }

    /// When what comes back is sent.
    fn goes_back(&self) -> Option<Instant> {
        let gather = match (self.closing, self.short) {
            (true, _) => Duration::ZERO,
            (_, true) => GATHER,
            (_, false) => GATHER_AT_EASE,
        };
        self.back_since.map(|since| since + gather)
    }

    fn return_idle(&mut self, now: Instant) {
        let idle_for = self.idle_for();
        for core in [true, false] {
            let held = if core { &mut self.core } else { &mut self.other };
            let mut idle = Vec::new();
            while let Some(entry) = held.first_entry().filter(|e| e.key().0 + idle_for <= now) {
                idle.push(entry.remove());
            }
            for lease in idle {
                self.give_back(lease, now);
            }
        }
    }

    /// When there may be something to ask.
    pub(super) fn asks_next(&self, waiting: usize) -> Instant {
        let idle = self.next().map(|at| at + self.idle_for());
        let gathered = self.goes_back();
        let ask = (waiting > 0 && !self.closing).then_some(self.ask_at);
        [idle, gathered, ask].into_iter().flatten().fold(self.beat, Instant::min)
    }

    /// The answer to the request that is on its way, however late.
    pub(super) fn answered(&mut self, reply: Reply, now: Instant) {
        let Some(asked) = self.asked.take() else { return };
        self.unanswered.reported();
        self.link = Link::Up;
        self.clock = Some((now, reply.now));
        self.short = reply.short;
        // Who only gives back is told no turn; the one that was told before holds.
        self.ask_at = self.ask_at.max(now + Duration::from_micros(reply.ask_in));
        self.parked = reply.parked;
        self.owed = reply.owed;
        self.opens = now + Duration::from_micros(reply.learn_in);
        let learn = reply.now + reply.learn_in;
        let is_new = reply.learn_in > 0 && self.learn.is_none_or(|before| before != learn);
        if is_new {
            // A new life of Redis, which does not know what is out: all that is held goes back, so
            // that it learns.
            self.learn = Some(learn);
            self.life = self.life.wrapping_add(1);
            self.unanswered.report_all();
            self.back_since.get_or_insert(now);
        }
        if is_new || self.limits != reply.figures {
            self.limits.clone_from(&reply.figures);
            self.sort_again(now);
        }
        for given in reply.out {
            let counts_for = Duration::from_micros(given.nonce.saturating_sub(reply.now));
            // One that is over already still goes back.
            let begins_for = counts_for.saturating_sub(self.times.hold);
            let lease = Lease {
                ids: given.ids,
                nonce: given.nonce,
                core: begins_for + self.times.cycle > CORE,
                life: self.life,
                ready: now + Duration::from_micros(given.ready_in),
                until: asked + begins_for,
            };
            self.keep(lease, now);
        }
    }

    /// There will be no answer. What was asked may have been done.
    pub(super) fn lost(&mut self, now: Instant) {
        self.asked = None;
        // The next server may have another clock, and may not have heard.
        self.clock = None;
        self.unanswered.report_again();
        if self.link == Link::Up {
            self.link = Link::Down(now);
        }
        // A lease that has ended is nothing to live on.
        self.sort_again(now);
    }

    // === facts ===

    /// Permits that calls may begin on, or are on.
    pub(super) fn held(&self) -> usize {
        self.core.len() + self.other.len() + self.in_use
    }

    pub(super) fn parked(&self) -> usize {
        self.parked
    }

    /// How long Redis still learns what is out.
    pub(super) fn opens_in(&self, now: Instant) -> Duration {
        self.opens.saturating_duration_since(now)
    }

    /// Permits that a call could begin on now.
    pub(super) fn free(&self, now: Instant) -> usize {
        [&self.core, &self.other].map(|held| held.range(..=(now, u64::MAX)).count()).iter().sum()
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

    /// Whether Redis answers: a request takes no longer than that.
    pub(super) fn is_linked(&self, now: Instant) -> bool {
        self.link == Link::Up && self.asked.is_none_or(|asked| now < asked + Duration::from_secs(1))
    }

    /// When the `k`th in line will have a permit, if every call takes `call`.
    pub(super) fn estimate(&self, k: usize, now: Instant, call: Duration) -> Instant {
        let held = self.held();
        let linked = self.is_linked(now);
        if linked && !self.short {
            return now;
        }
        if held == 0 {
            // An outage is taken to last as long again as it has lasted.
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

/// Longer leases are core ones.
const CORE: Duration = Duration::from_secs(15);

fn first(held: &Held) -> Option<Instant> {
    held.first_key_value().map(|((at, _), _)| *at)
}
