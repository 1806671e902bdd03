//! The places that a message takes before its call: in its budgets and in the ledger.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::budget::{NoBudget, OverBudget};
use super::counts::BegunCall;
use super::labels::CallKind;
use super::metered_call::MeteredCall;
use super::{Meter, now};
use crate::message::Message;

/// How long a message waits for a part of a budget that the fleet shares: a sidecar that has just started is granted none.
const PART_PATIENCE: Duration = Duration::from_secs(3);
/// The same, of one that has a permit, which others could use.
const PART_RACE: Duration = Duration::from_millis(100);

impl Meter {
    /// Whether there are budgets that the fleet shares.
    pub fn shares_budgets(&self) -> bool {
        !self.shared.parts.is_empty()
    }

    /// Waits, until this moment at most, while a message lacks a part of a budget that the fleet shares and is about to be
    /// granted one. Returns at once where no patience is left.
    ///
    /// # Errors
    /// None was granted.
    pub async fn part_by(&self, message: &Message, deadline: Instant) -> Result<(), OverBudget> {
        let start = Instant::now();
        if !self.shares_budgets() || deadline <= start {
            return Ok(());
        }
        let deadline = deadline.min(start + PART_PATIENCE);
        loop {
            // Before the look, so that no answer is missed.
            let changed = self.shared.parts.changed.notified();
            let Some(over) = self.waits(message) else { return Ok(()) };
            self.urge();
            if timeout_at(deadline, changed).await.is_err() {
                return self.waits(message).map_or(Ok(()), |_| Err(over));
            }
        }
    }

    fn waits(&self, message: &Message) -> Option<OverBudget> {
        let mut counts = self.counts();
        let caller = message.caller.as_deref();
        let series = counts.series(&message.instance, message.topic.parent(), caller);
        counts.waits(series, now())
    }

    /// More of a shared budget is needed now.
    fn urge(&self) {
        if let Some(fleet) = self.shared.fleet.get() {
            fleet.urge();
        }
    }

    /// A call is about to leave. It takes its place in the budgets and in the ledger.
    ///
    /// # Errors
    /// If a budget that refuses messages has no place; then it is not to leave.
    pub async fn begin(
        &self,
        message: &Message,
        kind: CallKind,
    ) -> Result<MeteredCall, OverBudget> {
        let call = match self.reserve(message, kind) {
            Err(NoBudget::NotYet(_)) => self.reserve_soon(message, kind).await,
            reserved => reserved,
        };
        let call = call.map_err(NoBudget::over)?;
        if let (Some(ledger), Some(id)) = (&self.shared.ledger, call.ledger_id()) {
            ledger.begin(id).await;
        }
        Ok(call)
    }

    /// Another message was faster: a part may be there in a moment.
    async fn reserve_soon(
        &self,
        message: &Message,
        kind: CallKind,
    ) -> Result<MeteredCall, NoBudget> {
        let deadline = Instant::now() + PART_RACE;
        loop {
            let changed = self.shared.parts.changed.notified();
            let reserved = self.reserve(message, kind);
            if !matches!(reserved, Err(NoBudget::NotYet(_))) {
                return reserved;
            }
            self.urge();
            if timeout_at(deadline, changed).await.is_err() {
                return self.reserve(message, kind);
            }
        }
    }

    fn reserve(&self, message: &Message, kind: CallKind) -> Result<MeteredCall, NoBudget> {
        let mut counts = self.counts();
        let caller = message.caller.as_deref();
        let series = counts.series(&message.instance, message.topic.parent(), caller);
        let second = now();
        if counts.reserve(series, second)? {
            self.urge();
        }
        let ledger_id = counts.ledger_id(series, |name| self.shared.ledger.as_ref()?.series(name));
        if let Some(fleet) = self.shared.fleet.get() {
            fleet.begin(series, counts.name(series));
        }
        let begun = BegunCall { series, kind, second };
        Ok(MeteredCall::begin(self, begun, ledger_id))
    }
}
