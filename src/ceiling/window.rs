//! One ceiling: N permits, each of which carries its next call no sooner than one second after its
//! last call was answered.
//!
//! A call arrives at the provider between its sending and its answer. So a call is admitted only
//! while `in flight + answered in the last second < N`. Take all calls that arrive in any
//! [s, s + 1 s) and the one sent last, at x < s + 1 s. Every other was sent by x and answered at or
//! after its arrival, so not before s > x − 1 s: at x it is in flight or was answered within the
//! last second. All are counted, and there are at most N. For calls that are answered, no assumption
//! about the network is needed, and bounds of several sidecars add.
//!
//! A call that ends **without** an answer may lie unread at the provider: closing its connection does
//! not take it back. It goes on counting as in flight until [`unanswered`](super::unanswered) says that
//! it is read; what is assumed there is all that is assumed. It costs what those permits could have
//! carried: with one time-out in a thousand calls, 1.4 % of the ceiling. A twentieth of the permits is
//! kept back from calls when all others wait for an answer ([`reserve`](super::reserve)), so that a
//! stall is noticed to be over.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::reserve::{self, Reserve};

/// How long an answered call counts: the provider's second, and one millisecond for an observer
/// whose clock is slewed against ours or who cuts arrival times to milliseconds.
pub const WINDOW: Duration = Duration::from_millis(1_001);
/// How long permits are withheld after the provider pushed back, on average: the first returns
/// after half of it, the last after one and a half. Were they to return together, a provider that
/// takes 400 of 1,000 would push back 5 % of calls; so it is 0.2 % (`tests/delivery/outages.rs`, overflow).
pub(super) const WITHHOLD: Duration = Duration::from_secs(30);
/// The provider's push-back parks permits at most once in this time: one overflow makes many
/// answers.
const WITHHOLD_EVERY: Duration = Duration::from_secs(1);
/// tokio's timers round up to a millisecond.
const TICK: Duration = Duration::from_millis(1);

/// The permits of one ceiling. Every method takes the time, which never runs backwards.
#[derive(Debug)]
pub(super) struct Window {
    /// N; `None`: no ceiling, but calls count all the same, for one that comes later.
    size: Option<usize>,
    /// Calls in flight.
    out: usize,
    /// Calls that ended without an answer and still count.
    unanswered: usize,
    /// Calls that processes before this one are only assumed to have left.
    assumed: usize,
    /// When the permits of such calls come back, after the assumption has ended.
    resting: VecDeque<Instant>,
    /// When each answered call stops to count; oldest first, since answers come in order of time.
    cooling: VecDeque<Instant>,
    /// When each withheld permit comes back; soonest first.
    withheld: VecDeque<Instant>,
    /// No permit is given before: an earlier process may just have used this ceiling.
    opens: Instant,
    last_withheld: Option<Instant>,
    reserve: Reserve,
}

impl Window {
    /// `unread_for`: how long a call without an answer counts at most.
    pub(super) fn new(size: Option<u32>, opens: Instant, unread_for: Duration) -> Self {
        Self {
            size: size.map(|size| size as usize),
            out: 0,
            unanswered: 0,
            assumed: 0,
            resting: VecDeque::new(),
            cooling: VecDeque::new(),
            withheld: VecDeque::new(),
            opens,
            last_withheld: None,
            reserve: Reserve::new(unread_for, opens),
        }
    }

    /// Permits that could be taken now.
    pub(super) fn free(&mut self, now: Instant) -> usize {
        drop_past(&mut self.cooling, now);
        drop_past(&mut self.withheld, now);
        drop_past(&mut self.resting, now);
        match self.size {
            None => usize::MAX,
            Some(_) if now < self.opens => 0,
            Some(size) => {
                let idle = size.saturating_sub(self.busy());
                match self.ready(size) {
                    0 if self.reserve.is_open(now) => idle.min(1),
                    ready => idle.min(ready),
                }
            }
        }
    }

    /// Permits that no call uses, the reserve among them as long as it is not all that is left.
    pub(super) fn unused(&mut self, now: Instant) -> usize {
        let free = self.free(now);
        match self.size {
            Some(size) if free > 0 && self.ready(size) > 0 => size.saturating_sub(self.busy()),
            _ => free,
        }
    }

    fn busy(&self) -> usize {
        self.standing() + self.cooling.len() + self.withheld.len() + self.resting.len()
    }

    /// Calls that the provider has not answered.
    fn standing(&self) -> usize {
        self.out + self.unanswered + self.assumed
    }

    /// Permits that are neither with a call that waits for its answer nor in reserve.
    fn ready(&self, size: usize) -> usize {
        let at_work = size.saturating_sub(self.withheld.len());
        at_work.saturating_sub(reserve::of_ceiling(at_work) + self.standing())
    }

    /// When a permit may be free at the earliest, as far as is known; `None`: when a call in
    /// flight is answered. An answer may make it earlier.
    pub(super) fn next(&mut self, now: Instant) -> Option<Instant> {
        if self.free(now) > 0 {
            return Some(now);
        }
        if now < self.opens {
            return Some(self.opens);
        }
        let size = self.size.unwrap_or(usize::MAX);
        let probe = (size > self.busy()).then(|| self.reserve.opens());
        // After a shrink more than one must come back first: then this is early, and asked again.
        let returning = [self.cooling.front(), self.withheld.front(), self.resting.front()];
        returning.into_iter().flatten().copied().chain(probe).filter(|at| *at > now).min()
    }

    /// Takes one of the free permits.
    pub(super) fn take(&mut self, now: Instant) {
        debug_assert!(self.size.is_none_or(|size| self.busy() < size));
        if let Some(size) = self.size
            && self.ready(size) == 0
        {
            self.reserve.probe(reserve::of_ceiling(size.saturating_sub(self.withheld.len())), now);
        }
        self.out += 1;
    }

    /// The provider answered a call in flight.
    pub(super) fn answered(&mut self, now: Instant) {
        self.reserve.answered(now);
        self.over(now);
    }

    /// A call in flight is over: the provider reads it no more.
    pub(super) fn over(&mut self, now: Instant) {
        self.out -= 1;
        self.cooling.push_back(now + WINDOW);
    }

    /// Nothing of the call was sent.
    pub(super) fn unsent(&mut self, now: Instant) {
        self.reserve.unsent(now);
        self.out -= 1;
    }

    /// The provider answers: the reserve may carry its next call at once.
    pub(super) fn reopen(&mut self, now: Instant) {
        self.reserve.answered(now);
    }

    /// When the reserve may carry its next call; `None`: there is no permit left for it.
    pub(super) fn probes_at(&self) -> Option<Instant> {
        let unused = self.size.is_none_or(|size| size > self.busy());
        unused.then(|| self.reserve.opens())
    }

    /// Whether only the reserve is left.
    pub(super) fn is_in_reserve(&self) -> bool {
        self.size.is_some_and(|size| self.ready(size) == 0)
    }

    /// A call in flight ended without an answer. The provider may still read it.
    pub(super) fn unanswered(&mut self) {
        self.out -= 1;
        self.unanswered += 1;
    }

    /// So many calls of a process before this one may still be read.
    pub(super) fn inherit(&mut self, calls: usize) {
        self.unanswered += calls;
    }

    /// So many calls of a process before this one are assumed to be unread.
    pub(super) fn assume(&mut self, calls: usize) {
        self.assumed += calls;
    }

    /// They have been read by now, if there were any.
    pub(super) fn assumed_no_more(&mut self, calls: usize, now: Instant) {
        self.assumed = self.assumed.saturating_sub(calls);
        self.resting.extend(std::iter::repeat_n(now + WINDOW, calls));
    }

    /// So many calls without an answer have been read by now.
    pub(super) fn unanswered_over(&mut self, calls: usize, now: Instant) {
        self.unanswered = self.unanswered.saturating_sub(calls);
        self.cooling.extend(std::iter::repeat_n(now + WINDOW, calls));
    }

    /// The provider pushed back: a tenth of the permits at work rest for [`WITHHOLD`] on average,
    /// and return one by one. At least one stays at work.
    pub(super) fn withhold(&mut self, now: Instant) {
        let Some(size) = self.size else { return };
        if self.last_withheld.is_some_and(|last| now < last + WITHHOLD_EVERY) {
            return;
        }
        self.last_withheld = Some(now);
        let at_work = size.saturating_sub(self.withheld(now));
        let withheld = at_work.div_ceil(10).min(at_work.saturating_sub(1));
        let withheld = u32::try_from(withheld).unwrap_or(u32::MAX);
        for i in 0..withheld {
            self.withheld.push_back(now + WITHHOLD / 2 + WITHHOLD * i / withheld);
        }
        self.withheld.make_contiguous().sort_unstable();
    }

    /// A new N; what was spent stays spent.
    pub(super) fn resize(&mut self, size: Option<u32>) {
        self.size = size.map(|size| size as usize);
        // At least one stays at work.
        self.withheld.truncate(self.size.unwrap_or(0).saturating_sub(1));
    }

    /// Calls that count against the ceiling now.
    pub(super) fn used(&mut self, now: Instant) -> usize {
        drop_past(&mut self.cooling, now);
        self.out + self.unanswered + self.cooling.len()
    }

    /// Those of them that ended without an answer.
    pub(super) fn without_answer(&self) -> usize {
        self.unanswered
    }

    /// Whether nine tenths of the ceiling are used.
    pub(super) fn nearly_used(&mut self, now: Instant) -> bool {
        let used = self.used(now);
        self.size.is_some_and(|size| used * 10 >= size * 9)
    }

    pub(super) fn withheld(&mut self, now: Instant) -> usize {
        drop_past(&mut self.withheld, now);
        self.withheld.len()
    }

    /// When the `n`th of the permits comes back that rest after their calls.
    fn returns(&self, n: usize) -> Option<Instant> {
        let resting = |n: usize| self.resting.get(n.checked_sub(self.cooling.len())?);
        self.cooling.get(n).or_else(|| resting(n)).copied()
    }

    /// When the `k`th permit from now (from 0) will be taken, if every call takes `call` and idle
    /// permits are taken `spread` apart: for callers who want to know at the door. Calls without an
    /// answer are taken to count until `until`.
    pub(super) fn estimate(
        &mut self,
        k: usize,
        now: Instant,
        call: Duration,
        spread: Duration,
        until: Instant,
    ) -> Instant {
        let Some(size) = self.size else { return now };
        let cycle = WINDOW + call + TICK;
        let at_work = size.saturating_sub(self.withheld(now)).max(1);
        let rounds = u32::try_from(k / at_work).unwrap_or(u32::MAX);
        let k = k % at_work;
        let free = self.free(now);
        let paced = now.max(self.opens) + spread * u32::try_from(k).unwrap_or(u32::MAX);
        let returning = self.cooling.len() + self.resting.len();
        let first = if now < self.opens && self.unanswered + self.assumed == 0 || k < free {
            paced
        } else if let Some(at) = self.returns(k - free) {
            paced.max(at)
        } else if k - free - returning < self.unanswered + self.assumed {
            paced.max(until + WINDOW)
        } else {
            now + cycle
        };
        first + cycle.saturating_mul(rounds)
    }
}

fn drop_past(moments: &mut VecDeque<Instant>, now: Instant) {
    while moments.front().is_some_and(|at| *at <= now) {
        moments.pop_front();
    }
}
