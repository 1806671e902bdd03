//! One call, as it is counted.

use std::time::Duration;

use jiff::Timestamp;

use super::Meter;
use super::counts::BegunCall;
use super::errors::LogLine;
use super::labels::Billed;
use super::ledger::SeriesId;

/// One call, from before it leaves to its verdict. Dropped without one, its
/// outcome is uncertain.
#[derive(Debug)]
#[must_use = "a call that is dropped counts as uncertain"]
pub struct MeteredCall {
    meter: Meter,
    begun: BegunCall,
    ledger_id: Option<SeriesId>,
    /// The provider's.
    request_id: Option<Box<str>>,
    has_ended: bool,
}

impl MeteredCall {
    pub(super) fn begin(meter: &Meter, begun: BegunCall, ledger_id: Option<SeriesId>) -> Self {
        Self { meter: meter.clone(), begun, ledger_id, request_id: None, has_ended: false }
    }

    pub(super) fn ledger_id(&self) -> Option<SeriesId> {
        self.ledger_id
    }

    /// The provider has answered with this `RequestId`.
    pub fn answered(mut self, request_id: Option<&str>) -> Self {
        self.request_id = request_id.map(Box::from);
        self
    }

    /// It has ended, with this code or transport word. One call, one verdict, one entry.
    pub fn ended(mut self, code: &str, billed: Billed, took: Duration) -> LogLine {
        self.meter.shared.call_duration[billed as usize].observe(took.as_secs_f64());
        self.end(code, billed)
    }

    fn end(&mut self, code: &str, billed: Billed) -> LogLine {
        self.has_ended = true;
        let at = Timestamp::now();
        let now = at.as_second();
        let request_id = self.request_id.take();
        let line = self.meter.counts().ended(self.begun, code, request_id, billed, at);
        if let (Some(ledger), Some(id)) = (&self.meter.shared.ledger, self.ledger_id) {
            ledger.end(id, billed, now);
        }
        if let Some(fleet) = self.meter.shared.fleet.get() {
            fleet.end(self.begun.series, billed, now);
        }
        line
    }
}

impl Drop for MeteredCall {
    fn drop(&mut self) {
        if !self.has_ended {
            self.end("abandoned", Billed::Uncertain);
        }
    }
}
