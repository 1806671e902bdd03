//! The queue of waiting calls: one for fresh messages and one for retries, each in the order in which the calls
//! came, as their urgency has it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{CeilingKind, Permit};
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
    /// Its order there.
    pub urgency: Urgency,
    /// When it should be answered.
    pub deadline: Instant,
    /// From when on it may not begin.
    pub ends: Option<Instant>,
}

impl PermitRequest {
    /// One of normal urgency, that may begin as long as it can be answered in time.
    pub fn new(class: Class, deadline: Instant) -> Self {
        Self { class, urgency: Urgency::Normal, deadline, ends: None }
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

/// Calls of one class. A call has its turn before all that came later, and so much later as its urgency is
/// higher: so none waits for ever.
#[derive(Debug, Default)]
struct UrgencyQueue {
    /// In the order of [`Urgency::ALL`], each first come, first served.
    levels: [VecDeque<PermitWaiter>; Urgency::ALL.len()],
}

impl UrgencyQueue {
    fn len(&self) -> usize {
        self.levels.iter().map(VecDeque::len).sum()
    }

    fn is_empty(&self) -> bool {
        self.levels.iter().all(VecDeque::is_empty)
    }

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
}

#[derive(Debug)]
pub(super) struct WaitQueue {
    fresh: UrgencyQueue,
    retry: UrgencyQueue,
    /// The most that retries get while fresh messages wait, 0 to 1.
    pub(super) retry_share: f64,
    /// What retries have coming to them, in permits.
    credit: f64,
}

impl WaitQueue {
    pub(super) fn new(retry_share: f64) -> Self {
        let (fresh, retry) = (UrgencyQueue::default(), UrgencyQueue::default());
        Self { fresh, retry, retry_share, credit: 0.0 }
    }

    pub(super) fn len(&self) -> usize {
        self.fresh.len() + self.retry.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.retry.is_empty()
    }

    pub(super) fn push(&mut self, class: Class, urgency: Urgency, waiter: PermitWaiter) {
        match class {
            Class::Fresh => self.fresh.push(urgency, waiter),
            Class::Retry => self.retry.push(urgency, waiter),
        }
    }

    /// How many may have their turns before one that comes now. Of the other class, all.
    pub(super) fn ahead(&self, class: Class, urgency: Urgency, now: Instant) -> usize {
        match class {
            Class::Fresh => self.fresh.ahead(urgency, now) + self.retry.len(),
            Class::Retry => self.retry.ahead(urgency, now) + self.fresh.len(),
        }
    }

    /// Whose turn it is.
    pub(super) fn pop(&mut self) -> Option<PermitWaiter> {
        if self.fresh.is_empty() || self.retry.is_empty() {
            self.credit = 0.0;
            return self.fresh.pop().or_else(|| self.retry.pop());
        }
        self.credit += self.retry_share;
        if self.credit >= 1.0 {
            self.credit -= 1.0;
            self.retry.pop()
        } else {
            self.fresh.pop()
        }
    }

    /// Drops waiters at the heads who are too late or have hung up; their receivers
    /// notice.
    pub(super) fn drop_expired(&mut self, now: Instant) {
        for lane in self.fresh.levels.iter_mut().chain(&mut self.retry.levels) {
            while lane.front().is_some_and(|w| w.send_by <= now || w.to.is_closed()) {
                lane.pop_front();
            }
        }
    }

    /// How long the longest has waited.
    pub(super) fn longest(&self, now: Instant) -> Duration {
        let heads = self.fresh.levels.iter().chain(&self.retry.levels).filter_map(VecDeque::front);
        heads.map(|w| now - w.since).max().unwrap_or_default()
    }
}
