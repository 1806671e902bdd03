//! Calls of other operations: not billed, but counted as long as the provider may still read them.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use super::ledger::{SeriesId, SeriesName};
use super::{ActionResult, Billed, Meter, now};
use crate::message::InstanceId;

/// Ended calls by operation and result.
pub type ActionCounts = BTreeMap<Box<str>, [u64; ActionResult::ALL.len()]>;

/// One call of another operation, from before it leaves to its answer. Dropped without one, its outcome is
/// unknown.
#[derive(Debug)]
#[must_use = "a call that is dropped counts as unknown"]
pub struct MeteredAction {
    meter: Meter,
    action: Box<str>,
    ledger_id: Option<SeriesId>,
    has_ended: bool,
}

/// Whether the provider may still read a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallRead {
    /// It has read it, or never will.
    Done,
    /// It may.
    Possible,
}

impl Meter {
    /// A call of this operation is about to leave. The ledger keeps a place for it, so that the next process
    /// knows of it if this one ends before its answer.
    pub async fn begin_action(&self, instance: &InstanceId, action: &str) -> MeteredAction {
        let ledger = self.shared.ledger.as_ref();
        let ledger_id = ledger.and_then(|ledger| ledger.series(&SeriesName::of_actions(instance)));
        let (meter, action) = (self.clone(), action.into());
        let entry = MeteredAction { meter, action, ledger_id, has_ended: false };
        if let (Some(ledger), Some(id)) = (ledger, ledger_id) {
            ledger.begin(id).await;
        }
        entry
    }

    /// A call of this operation ended before it left, or after.
    pub fn action_ended(&self, action: &str, result: ActionResult) {
        let mut counts = self.shared.actions.lock().unwrap_or_else(PoisonError::into_inner);
        counts.entry(action.into()).or_default()[result as usize] += 1;
    }

    /// Calls of other operations since the start.
    pub fn actions(&self) -> ActionCounts {
        self.shared.actions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl MeteredAction {
    /// It has ended. `read`: the provider has read it, or never will.
    pub fn ended(mut self, result: ActionResult, read: CallRead) {
        self.end(result, read);
    }

    fn end(&mut self, result: ActionResult, read: CallRead) {
        self.has_ended = true;
        self.meter.action_ended(&self.action, result);
        if let (Some(ledger), Some(id)) = (&self.meter.shared.ledger, self.ledger_id) {
            let counts = match read {
                CallRead::Done => Billed::No,
                CallRead::Possible => Billed::Uncertain,
            };
            ledger.end(id, counts, now());
        }
    }
}

impl Drop for MeteredAction {
    fn drop(&mut self) {
        if !self.has_ended {
            self.end(ActionResult::Unknown, CallRead::Possible);
        }
    }
}
