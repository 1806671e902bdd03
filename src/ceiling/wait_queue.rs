//! The queue of waiting calls: a first-come lane for fresh messages and one for retries.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{CeilingKind, Permit};

/// Which lane a call waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A message's first try.
    Fresh,
    /// Any later one.
    Retry,
}

#[derive(Debug)]
pub(super) struct PermitWaiter {
    pub(super) to: oneshot::Sender<Permit>,
    pub(super) since: Instant,
    /// Later than this, its call would not be answered in time.
    pub(super) send_by: Instant,
    /// The ceiling that made it wait.
    pub(super) ceiling: CeilingKind,
}

#[derive(Debug)]
pub(super) struct WaitQueue {
    fresh: VecDeque<PermitWaiter>,
    retry: VecDeque<PermitWaiter>,
    /// The most that retries get while fresh messages wait, 0 to 1.
    pub(super) retry_share: f64,
    /// What retries have coming to them, in permits.
    credit: f64,
}

impl WaitQueue {
    pub(super) fn new(retry_share: f64) -> Self {
        Self { fresh: VecDeque::new(), retry: VecDeque::new(), retry_share, credit: 0.0 }
    }

    pub(super) fn len(&self) -> usize {
        self.fresh.len() + self.retry.len()
    }

    pub(super) fn push(&mut self, class: Class, waiter: PermitWaiter) {
        match class {
            Class::Fresh => self.fresh.push_back(waiter),
            Class::Retry => self.retry.push_back(waiter),
        }
    }

    /// Whose turn it is.
    pub(super) fn pop(&mut self) -> Option<PermitWaiter> {
        if self.fresh.is_empty() || self.retry.is_empty() {
            self.credit = 0.0;
            return self.fresh.pop_front().or_else(|| self.retry.pop_front());
        }
        self.credit += self.retry_share;
        if self.credit >= 1.0 {
            self.credit -= 1.0;
            self.retry.pop_front()
        } else {
            self.fresh.pop_front()
        }
    }

    /// Drops waiters at the heads who are too late or have hung up; their receivers
    /// notice.
    pub(super) fn drop_expired(&mut self, now: Instant) {
        for lane in [&mut self.fresh, &mut self.retry] {
            while lane.front().is_some_and(|w| w.send_by <= now || w.to.is_closed()) {
                lane.pop_front();
            }
        }
    }

    /// How long the longest has waited.
    pub(super) fn longest(&self, now: Instant) -> Duration {
        let heads = [self.fresh.front(), self.retry.front()];
        heads.into_iter().flatten().map(|w| now - w.since).max().unwrap_or_default()
    }
}
