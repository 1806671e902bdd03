//! One ceiling: N permits, each of which carries its next call no sooner than one second after its
//! last call's answer.
//!
//! A call arrives at the provider between its sending and its answer. So a call is admitted only
//! while `in flight + answered in the last second < N`. Take all calls that arrive in any
//! [s, s + 1 s) and the one sent last, at x < s + 1 s. Every other was sent by x and answered at or
//! after its arrival, so not before s > x − 1 s: at x it is in flight or was answered within the
//! last second. All are counted, and there are at most N. No assumption about the network is
//! needed, and bounds of several sidecars add.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// How long an answered call counts: the provider's second, and one millisecond for an observer
/// whose clock is slewed against ours or who cuts arrival times to milliseconds.
pub const WINDOW: Duration = Duration::from_millis(1_001);
/// How long permits are withheld after the provider pushed back, on average: the first returns
/// after half of it, the last after one and a half. Were they to return together, a provider that
/// takes 400 of 1,000 would push back 5 % of calls; so it is 0.2 % (`tests/delivery.rs`, overflow).
pub(super) const PARK: Duration = Duration::from_secs(30);
/// The provider's push-back parks permits at most once in this time: one overflow makes many
/// answers.
const PARK_EVERY: Duration = Duration::from_secs(1);
/// tokio's timers round up to a millisecond.
const TICK: Duration = Duration::from_millis(1);

/// The permits of one ceiling. Every method takes the time, which never runs backwards.
#[derive(Debug)]
pub(super) struct Window {
    /// N; `None`: no ceiling, but calls count all the same, for one that comes later.
    size: Option<usize>,
    /// Calls without an answer.
    out: usize,
    /// When each answered call stops to count; oldest first, since answers come in order of time.
    cooling: VecDeque<Instant>,
    /// When each parked permit comes back; soonest first.
    parked: VecDeque<Instant>,
    /// No permit is given before: whoever used this ceiling before us may just have.
    opens: Instant,
    last_park: Option<Instant>,
}

impl Window {
    pub(super) fn new(size: Option<u32>, opens: Instant) -> Self {
        Self {
            size: size.map(|size| size as usize),
            out: 0,
            cooling: VecDeque::new(),
            parked: VecDeque::new(),
            opens,
            last_park: None,
        }
    }

    /// Permits that could be taken now.
    pub(super) fn free(&mut self, now: Instant) -> usize {
        settle(&mut self.cooling, now);
        settle(&mut self.parked, now);
        match self.size {
            None => usize::MAX,
            Some(_) if now < self.opens => 0,
            Some(size) => size.saturating_sub(self.busy()),
        }
    }

    fn busy(&self) -> usize {
        self.out + self.cooling.len() + self.parked.len()
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
        // After a shrink more than one must come back first: then this is early, and asked again.
        match (self.cooling.front(), self.parked.front()) {
            (Some(a), Some(b)) => Some(*a.min(b)),
            (a, b) => a.or(b).copied(),
        }
    }

    /// Takes one of the free permits.
    pub(super) fn take(&mut self) {
        debug_assert!(self.size.is_none_or(|size| self.busy() < size));
        self.out += 1;
    }

    /// The call was answered, or its connection was closed.
    pub(super) fn answered(&mut self, now: Instant) {
        self.out -= 1;
        self.cooling.push_back(now + WINDOW);
    }

    /// Nothing of the call was sent.
    pub(super) fn unsent(&mut self) {
        self.out -= 1;
    }

    /// The provider pushed back: a tenth of the permits at work rest for [`PARK`] on average,
    /// and return one by one. At least one stays at work.
    pub(super) fn park(&mut self, now: Instant) {
        let Some(size) = self.size else { return };
        if self.last_park.is_some_and(|last| now < last + PARK_EVERY) {
            return;
        }
        self.last_park = Some(now);
        let at_work = size.saturating_sub(self.parked(now));
        let parked = at_work.div_ceil(10).min(at_work.saturating_sub(1));
        let parked = u32::try_from(parked).unwrap_or(u32::MAX);
        for i in 0..parked {
            self.parked.push_back(now + PARK / 2 + PARK * i / parked);
        }
        self.parked.make_contiguous().sort_unstable();
    }

    /// A new N; what was spent stays spent.
    pub(super) fn resize(&mut self, size: Option<u32>) {
        self.size = size.map(|size| size as usize);
        // At least one stays at work.
        self.parked.truncate(self.size.unwrap_or(0).saturating_sub(1));
    }

    /// Calls that count against the ceiling now.
    pub(super) fn used(&mut self, now: Instant) -> usize {
        settle(&mut self.cooling, now);
        self.out + self.cooling.len()
    }

    /// Whether nine tenths of the ceiling are used.
    pub(super) fn nearly_used(&mut self, now: Instant) -> bool {
        let used = self.used(now);
        self.size.is_some_and(|size| used * 10 >= size * 9)
    }

    pub(super) fn parked(&mut self, now: Instant) -> usize {
        settle(&mut self.parked, now);
        self.parked.len()
    }

    /// When the `k`th permit from now (from 0) will be taken, if every call takes `call` and idle
    /// permits are taken `spread` apart: for callers who want to know at the door.
    pub(super) fn estimate(
        &mut self,
        k: usize,
        now: Instant,
        call: Duration,
        spread: Duration,
    ) -> Instant {
        let Some(size) = self.size else { return now };
        let cycle = WINDOW + call + TICK;
        let at_work = size.saturating_sub(self.parked(now)).max(1);
        let rounds = u32::try_from(k / at_work).unwrap_or(u32::MAX);
        let k = k % at_work;
        let free = self.free(now);
        let paced = now.max(self.opens) + spread * u32::try_from(k).unwrap_or(u32::MAX);
        let first = if now < self.opens || k < free {
            paced
        } else {
            self.cooling.get(k - free).map_or(now + cycle, |at| paced.max(*at))
        };
        first + cycle.saturating_mul(rounds)
    }
}

fn settle(moments: &mut VecDeque<Instant>, now: Instant) {
    while moments.front().is_some_and(|at| *at <= now) {
        moments.pop_front();
    }
}
