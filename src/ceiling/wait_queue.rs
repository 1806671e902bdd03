//! The queue of waiting calls: one for fresh messages and one for retries. In each, callers are served by weight,
//! and the calls of one caller in the order in which they came, as their urgency has it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{CeilingKind, Permit};
use crate::fair_queue::{CallersQueue, FairQueue, Flow, Weights, leaves_room};
use crate::message::Urgency;

/// Which queue a call waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A message's first try.
    Fresh,
    /// Any later one.
    Retry,
}

/// What a call asks for.
#[derive(Debug, Clone, Copy)]
pub struct PermitRequest {
    /// Which queue it waits in.
    pub class: Class,
    /// Whose message it is.
    pub caller: Flow,
    /// Its order among those of its caller.
    pub urgency: Urgency,
    /// When it should be answered.
    pub deadline: Instant,
    /// From when on it may not begin.
    pub ends: Option<Instant>,
}

impl PermitRequest {
    /// One of no caller and of normal urgency, that may begin as long as it can be answered in time.
    pub fn new(class: Class, deadline: Instant) -> Self {
        Self { class, caller: Flow::default(), urgency: Urgency::Normal, deadline, ends: None }
    }

    /// Whether it is too late for the call.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.deadline || self.ends.is_some_and(|ends| now >= ends)
    }
}

#[derive(Debug)]
pub(super) struct PermitWaiter {
    pub(super) to: oneshot::Sender<Permit>,
    pub(super) since: Instant,
    /// Later than this, its call would not be answered in time, or not begin in time.
    pub(super) send_by: Instant,
    /// The ceiling that made it wait.
    pub(super) ceiling: CeilingKind,
}

/// Calls of one class and caller. A call has its turn before all that came later, and so much later as its urgency is
/// higher: so none waits for ever.
#[derive(Debug, Default)]
struct UrgencyQueue {
    /// In the order of [`Urgency::ALL`], each first come, first served.
    levels: [VecDeque<PermitWaiter>; Urgency::ALL.len()],
}

impl CallersQueue for UrgencyQueue {
    fn len(&self) -> usize {
        self.levels.iter().map(VecDeque::len).sum()
    }
}

impl UrgencyQueue {
    fn push(&mut self, urgency: Urgency, waiter: PermitWaiter) {
        self.levels[urgency as usize].push_back(waiter);
    }

    fn pop(&mut self) -> Option<PermitWaiter> {
        let heads = Urgency::ALL.into_iter().filter_map(|urgency| {
            let head = self.levels[urgency as usize].front()?;
            // Of two whose turn is at the same moment, the more urgent one.
            Some((head.since + urgency.handicap(), std::cmp::Reverse(urgency)))
        });
        let (_, std::cmp::Reverse(urgency)) = heads.min()?;
        self.levels[urgency as usize].pop_front()
    }

    /// How many have their turn before one that comes now.
    fn ahead(&self, urgency: Urgency, now: Instant) -> usize {
        let turn = now + urgency.handicap();
        let ahead = |level: Urgency| {
            let waiters = &self.levels[level as usize];
            waiters.partition_point(|waiter| waiter.since + level.handicap() <= turn)
        };
        Urgency::ALL.into_iter().map(ahead).sum()
    }

    /// Drops waiters at the heads who are too late or have hung up.
    fn drop_expired(&mut self, now: Instant) {
        for level in &mut self.levels {
            while level.front().is_some_and(|waiter| waiter.has_given_up(now)) {
                level.pop_front();
            }
        }
    }
}

impl PermitWaiter {
    fn has_given_up(&self, now: Instant) -> bool {
        self.send_by <= now || self.to.is_closed()
    }
}

#[derive(Debug)]
pub(super) struct WaitQueue {
    fresh: FairQueue<UrgencyQueue>,
    retry: FairQueue<UrgencyQueue>,
    weights: Weights,
    /// The most that retries get while fresh messages wait, 0 to 1.
    pub(super) retry_share: f64,
    /// What retries have coming to them, in permits.
    credit: f64,
}

impl WaitQueue {
    pub(super) fn new(retry_share: f64) -> Self {
        let weights = Weights::default();
        let [fresh, retry] = [(); 2].map(|()| FairQueue::new(weights.clone()));
        Self { fresh, retry, weights, retry_share, credit: 0.0 }
    }

    /// Serves callers by these weights. Before the first call waits.
    pub(super) fn weigh(&mut self, weights: Weights) {
        *self = Self {
            fresh: FairQueue::new(weights.clone()),
            retry: FairQueue::new(weights.clone()),
            weights,
            ..Self::new(self.retry_share)
        };
    }

    pub(super) fn len(&self) -> usize {
        self.fresh.len() + self.retry.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.retry.is_empty()
    }

    pub(super) fn push(&mut self, asks: &PermitRequest, waiter: PermitWaiter) {
        let queue = match asks.class {
            Class::Fresh => &mut self.fresh,
            Class::Retry => &mut self.retry,
        };
        queue.change(asks.caller, |calls| calls.push(asks.urgency, waiter));
    }

    /// Whether there is a place for one more call of its caller.
    pub(super) fn has_place(&self, asks: &PermitRequest, max_waiting: usize) -> bool {
        let free = max_waiting.saturating_sub(self.len());
        let held = self.fresh.waiting(asks.caller) + self.retry.waiting(asks.caller);
        free > 0 && (!self.weights.tell_apart() || leaves_room(held as u64, free as u64))
    }

    /// What may have its turn before one that comes now.
    pub(super) fn ahead(&self, asks: &PermitRequest, now: Instant) -> Ahead<'_> {
        let (queue, other) = match asks.class {
            Class::Fresh => (&self.fresh, &self.retry),
            Class::Retry => (&self.retry, &self.fresh),
        };
        let calls = queue.queue(asks.caller);
        let own = calls.map_or(0, |calls| calls.ahead(asks.urgency, now));
        let share = match asks.class {
            Class::Fresh => self.retry_share,
            Class::Retry => 1.0 - self.retry_share,
        };
        Ahead { queue, caller: asks.caller, own, other: other.len(), share }
    }

    /// Whose turn it is.
    pub(super) fn pop(&mut self, now: Instant) -> Option<PermitWaiter> {
        let pop = |calls: &mut UrgencyQueue| {
            calls.drop_expired(now);
            calls.pop()
        };
        if self.fresh.is_empty() || self.retry.is_empty() {
            self.credit = 0.0;
            return self.fresh.pop(pop).or_else(|| self.retry.pop(pop));
        }
        self.credit += self.retry_share;
        if self.credit >= 1.0 {
            self.credit -= 1.0;
            self.retry.pop(pop)
        } else {
            self.fresh.pop(pop)
        }
    }

    /// Drops a caller's waiters at the heads of its queues who are too late or have hung up: they are no reason to
    /// refuse it.
    pub(super) fn drop_expired_of(&mut self, caller: Flow, now: Instant) {
        for queue in [&mut self.fresh, &mut self.retry] {
            if queue.waiting(caller) > 0 {
                queue.change(caller, |calls| calls.drop_expired(now));
            }
        }
    }

    /// Drops waiters at the heads of some queues who are too late or have hung up; their receivers
    /// notice.
    pub(super) fn drop_expired(&mut self, now: Instant) {
        for queue in [&mut self.fresh, &mut self.retry] {
            queue.sweep(|calls| calls.drop_expired(now));
        }
    }

    /// How long the longest has waited.
    pub(super) fn longest(&self, now: Instant) -> Duration {
        let queues = self.fresh.queues().chain(self.retry.queues());
        let heads = queues.flat_map(|calls| &calls.levels).filter_map(VecDeque::front);
        heads.map(|w| now - w.since).max().unwrap_or_default()
    }
}

/// The calls before one that would wait.
pub(super) struct Ahead<'a> {
    queue: &'a FairQueue<UrgencyQueue>,
    caller: Flow,
    /// Those of the same caller.
    own: usize,
    /// Those of the other class, and the share of the permits that these get while both wait.
    other: usize,
    share: f64,
}

impl Ahead<'_> {
    /// At most so many: known at once, however many callers wait.
    pub(super) fn at_most(&self) -> usize {
        self.with_other(self.queue.ahead_at_most(self.caller, self.own))
    }

    /// How many, which costs a look at each caller that waits.
    pub(super) fn exactly(&self) -> usize {
        self.with_other(self.queue.ahead(self.caller, self.own))
    }

    /// With what of the other class comes between so many and the one that asks.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rounded up, and never negative"
    )]
    fn with_other(&self, ahead: usize) -> usize {
        // The other class may have its next permit coming to it already.
        let between = ((ahead as f64 + 1.0) * self.share + 1.0) / (1.0 - self.share);
        // Without a share of its own, it waits for all of them.
        let between = if between.is_finite() { between.ceil() as usize } else { usize::MAX };
        ahead + between.min(self.other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLERS: usize = 12;

    fn queue(retry_share: f64) -> (WaitQueue, Vec<Flow>) {
        let names: Vec<_> = (0..CALLERS).map(|n| n.to_string().into()).collect();
        let weights = Weights::of(names.iter().cloned().zip(1..));
        let flows = names.iter().map(|name| weights.flow(Some(name))).collect();
        let mut queue = WaitQueue::new(retry_share);
        queue.weigh(weights);
        (queue, flows)
    }

    fn waiter(since: Instant, send_by: Instant) -> (PermitWaiter, oneshot::Receiver<Permit>) {
        let (to, grant) = oneshot::channel();
        (PermitWaiter { to, since, send_by, ceiling: CeilingKind::Account }, grant)
    }

    /// What is said to be ahead of a call is enough, and not far too much: whoever waits, in either class.
    #[test]
    fn what_is_ahead_of_a_call() {
        for seed in 0..2_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let share = [0.0, 0.2, 0.5, 0.9, 1.0][random.usize(..5)];
            let ((mut queue, flows), now) = (queue(share), Instant::now());
            let deadline = now + Duration::from_hours(1);
            let class = |random: &mut fastrand::Rng| {
                if random.bool() { Class::Fresh } else { Class::Retry }
            };
            let mut grants = Vec::new();
            for _ in 0..random.usize(..300) {
                let caller = flows[random.usize(..CALLERS)];
                let asks =
                    PermitRequest { caller, ..PermitRequest::new(class(&mut random), deadline) };
                let (waiter, grant) = waiter(now, deadline);
                queue.push(&asks, waiter);
                grants.push(grant);
                if random.u8(..4) == 0 {
                    queue.pop(now);
                }
            }
            let caller = flows[random.usize(..CALLERS)];
            let asks = PermitRequest { caller, ..PermitRequest::new(class(&mut random), deadline) };
            let ahead = queue.ahead(&asks, now);
            let (exactly, at_most) = (ahead.exactly(), ahead.at_most());
            assert!(exactly <= at_most, "{seed}");
            let (waiter, mut own) = waiter(now, deadline);
            // Its sender is known by what becomes of its receiver.
            queue.push(&asks, waiter);
            let mut served = 0;
            while let Some(waiter) = queue.pop(now) {
                drop(waiter);
                if matches!(own.try_recv(), Err(oneshot::error::TryRecvError::Closed)) {
                    break;
                }
                served += 1;
            }
            assert!(served <= exactly, "{seed}: {served} of {exactly}");
            // Callers whose turns are at the same moment, each with what of the other class comes between.
            let other_share = if asks.class == Class::Fresh { share } else { 1.0 - share };
            let slack = (CALLERS as f64 + 3.0) / (1.0 - other_share) + 2.0;
            assert!(exactly as f64 <= served as f64 + slack, "{seed}: {exactly} for {served}");
        }
    }

    /// A sweep looks at some queues; those of the caller that asks are always looked at.
    #[test]
    fn own_waiters_that_have_given_up_are_no_reason_to_refuse() {
        let ((mut queue, flows), now) = (queue(0.2), Instant::now());
        let mut grants = Vec::new();
        for caller in &flows {
            for class in [Class::Fresh, Class::Retry] {
                for _ in 0..10 {
                    let asks = PermitRequest { caller: *caller, ..PermitRequest::new(class, now) };
                    let (waiter, grant) = waiter(now, now + Duration::from_secs(1));
                    queue.push(&asks, waiter);
                    grants.push(grant);
                }
            }
        }
        let later = now + Duration::from_secs(2);
        let last = flows[CALLERS - 1];
        let asks = PermitRequest { caller: last, ..PermitRequest::new(Class::Fresh, later) };
        queue.drop_expired_of(last, later);
        assert_eq!(queue.len(), 20 * (CALLERS - 1));
        assert_eq!(queue.ahead(&asks, later).own, 0);
        for _ in 0..CALLERS {
            queue.drop_expired(later);
        }
        assert!(queue.is_empty());
    }
}
