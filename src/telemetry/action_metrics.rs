//! Metrics of calls of other operations than `SendMessage`.

use super::TelemetrySources;
use super::family::{Families, Family};
use crate::meter::ActionResult;
use crate::passthrough::ActionCeiling;

/// Only where calls of other operations are passed on.
pub(super) fn actions(sources: &TelemetrySources) -> Families {
    let mut calls = Family::counter(
        "tollgate_action_calls_total",
        "Calls of other operations than SendMessage that were passed on (sdk.actions)",
    );
    for (action, counts) in sources.meter.actions() {
        for (result, count) in ActionResult::ALL.iter().zip(counts) {
            let labels = [("action", &*action), ("result", result.as_str())];
            calls = calls.value(&labels, count as f64);
        }
    }
    let gauge = |name, help, of: fn(&ActionCeiling) -> f64| {
        let ceilings = sources.passthrough.ceilings();
        let value = |family: Family, one: &ActionCeiling| {
            family.value(&[("action", &*one.action)], of(one))
        };
        ceilings.iter().fold(Family::gauge(name, help), value)
    };
    let limit = gauge(
        "tollgate_action_ceiling_calls_per_second",
        "Calls per second that an operation's own ceiling allows (sdk.actions)",
        |one| f64::from(one.limit),
    );
    let used = gauge(
        "tollgate_action_ceiling_used",
        "Calls that count against it now: in flight, or answered within the last second",
        |one| one.used as f64,
    );
    let waiting = gauge("tollgate_action_waiting", "Calls that wait for a permit of it", |one| {
        one.waiting as f64
    });
    [calls, limit, used, waiting].map(Family::done).into()
}
