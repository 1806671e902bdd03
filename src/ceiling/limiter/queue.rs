//! The wait queue: who may join it, and for how long a caller will wait.

use std::time::Duration;

use tokio::time::Instant;

use super::Limiter;
use crate::ceiling::shaper::Shaper;
use crate::ceiling::unanswered::CATCH_UP;
use crate::ceiling::wait_queue::{PermitRequest, PermitWaiter};
use crate::ceiling::{CeilingKind, Refused};
use crate::fair_queue::{Flow, Weights};

/// An estimated wait may be this part of itself too short.
const ESTIMATE_ERROR: u32 = 50;

impl Limiter {
    pub(in crate::ceiling) fn queue_is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(in crate::ceiling) fn waiting(&self) -> usize {
        self.queue.len()
    }

    pub(in crate::ceiling) fn enqueue(&mut self, asks: &PermitRequest, waiter: PermitWaiter) {
        self.queue.push(asks, waiter);
    }

    pub(in crate::ceiling) fn dequeue(&mut self, now: Instant) -> Option<PermitWaiter> {
        self.queue.pop(now)
    }

    pub(in crate::ceiling) fn weigh(&mut self, weights: Weights) {
        self.queue.weigh(weights);
    }

    pub(in crate::ceiling) fn drop_expired(&mut self, now: Instant) {
        self.queue.drop_expired(now);
    }

    /// Calls whose callers have given up do not fill the queue: least of all those of this caller.
    pub(in crate::ceiling) fn make_room_for(&mut self, caller: Flow, now: Instant) {
        if !self.queue.is_empty() {
            self.queue.drop_expired_of(caller, now);
            self.queue.drop_expired(now);
        }
    }

    /// By when a call must be sent to be answered by its deadline, and to begin before its end. Half of a
    /// caller's patience at most goes to the call, so that a slow upstream alone never shuts the door.
    pub(in crate::ceiling) fn send_by(&self, now: Instant, asks: &PermitRequest) -> Instant {
        let deadline = asks.deadline;
        let send_by = deadline - self.call.most().min((deadline - now) / 2);
        asks.ends.map_or(send_by, |ends| ends.min(send_by))
    }

    /// Whether one more may wait to be sent by then, and for which ceiling.
    pub(in crate::ceiling) fn admit(
        &mut self,
        now: Instant,
        send_by: Instant,
        asks: &PermitRequest,
    ) -> Result<CeilingKind, Refused> {
        if !self.queue.has_place(asks, self.max_waiting) {
            let (ceiling, _) = self.estimate(0, now);
            self.decisions[ceiling as usize].refused += 1;
            let (_, half) = self.estimate(self.max_waiting / 2, now);
            return Err(Refused::QueueFull { retry_after: half - now });
        }
        let ahead = self.queue.ahead(asks, now).at_most();
        let (mut ceiling, mut turn) = self.estimated_turn(ahead, now);
        if turn > send_by && !self.queue.is_empty() {
            let ahead = self.queue.ahead(asks, now).exactly();
            (ceiling, turn) = self.estimated_turn(ahead, now);
        }
        if turn > send_by {
            self.decisions[ceiling as usize].refused += 1;
            let retry_after = turn - send_by;
            return Err(Refused::WaitTooLong { ceiling, wait: turn - now, retry_after });
        }
        Ok(ceiling)
    }

    /// When the `k`th in line will have its permit, and which ceiling decides it.
    pub(super) fn estimate(&mut self, k: usize, now: Instant) -> (CeilingKind, Instant) {
        let call = self.call.mean();
        let spread = self.shaper.as_ref().map_or(Duration::ZERO, Shaper::period);
        let until = self.unanswered_until(now);
        let account = self.account.estimate(k, now, call, spread, until);
        let open = self.egress.iter().filter(|egress| !egress.watch.suspected()).count();
        let apart = spread.saturating_mul(u32::try_from(open).unwrap_or(u32::MAX));
        let egress = if open == 0 {
            self.egress.iter().map(|egress| egress.watch.reopens(now)).min()
        } else {
            let open_ones = self.egress.iter_mut().filter(|egress| !egress.watch.suspected());
            open_ones.map(|egress| egress.window.estimate(k / open, now, call, apart, until)).max()
        };
        let egress = egress.unwrap_or(now);
        let narrower = match self.limits {
            [Some(account), Some(egress)] if egress < account => CeilingKind::EgressIp,
            [None, Some(_)] => CeilingKind::EgressIp,
            _ => CeilingKind::Account,
        };
        let fleet = self.fleet.as_ref().map_or(now, |fleet| fleet.estimate(k, now, call));
        let kind = match egress.cmp(&account) {
            std::cmp::Ordering::Greater => CeilingKind::EgressIp,
            std::cmp::Ordering::Less => CeilingKind::Account,
            std::cmp::Ordering::Equal => narrower,
        };
        (kind, account.max(egress).max(fleet))
    }

    /// The same, and what the estimate may be wrong by.
    fn estimated_turn(&mut self, k: usize, now: Instant) -> (CeilingKind, Instant) {
        let (ceiling, turn) = self.estimate(k, now);
        (ceiling, turn + (turn - now) / ESTIMATE_ERROR)
    }

    /// When calls without an answer may stop to count: when the next probe is answered, or by
    /// themselves.
    fn unanswered_until(&self, now: Instant) -> Instant {
        let Some(due) = self.unanswered.next_due() else { return now };
        let Some(probe) = self.account.probes_at() else { return due.max(now) };
        let probe = probe.max(now) + self.call.mean() + CATCH_UP;
        due.min(probe).max(now)
    }

    pub(in crate::ceiling) fn passed(&mut self) {
        self.decisions.iter_mut().for_each(|d| d.passed += 1);
    }

    pub(in crate::ceiling) fn waited(&mut self, ceiling: CeilingKind) {
        for kind in CeilingKind::ALL {
            let decisions = &mut self.decisions[kind as usize];
            if kind == ceiling { decisions.waited += 1 } else { decisions.passed += 1 }
        }
    }
}
