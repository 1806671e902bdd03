//! Metrics of the process itself, its listeners and its keys.

use super::TelemetrySources;
use super::family::{Families, Family};
use crate::delivery::KeyUsage;
use crate::keys::KeyStatus;
use crate::log_limiter::dropped_lines;
use crate::memory::MemoryUsage;
use crate::meter::OperatorVerb;
use crate::server::ConnectionUsage;

pub(super) fn process(sources: &TelemetrySources) -> Families {
    let upstream = sources.upstream.status();
    let skew = Family::gauge(
        "tollgate_clock_skew_seconds",
        "The provider's clock minus this machine's, in seconds; at 900 s the provider refuses calls",
    )
    .value(&[], upstream.clock_skew.as_secs_f64());
    let build = Family::gauge("tollgate_build_info", "The version and the commit")
        .value(&[("version", env!("CARGO_PKG_VERSION")), ("commit", env!("TOLLGATE_COMMIT"))], 1.0);
    let dropped = Family::counter(
        "tollgate_log_lines_dropped_total",
        "Log lines that were not written, since the reader of standard error did not keep up",
    )
    .value(&[], dropped_lines() as f64);
    let mut actions = Family::counter(
        "tollgate_operator_actions_total",
        "Operators' requests over the control socket that changed or showed messages, by verb",
    );
    for verb in OperatorVerb::ALL {
        let labels = [("verb", verb.as_str())];
        actions = actions.value(&labels, sources.meter.operator_actions(verb) as f64);
    }
    [skew, build, dropped, actions].map(Family::done).into()
}

pub(super) fn connections(usages: [ConnectionUsage; 3]) -> Families {
    let mut open =
        Family::gauge("tollgate_connections", "Open connections of clients, by listener");
    let mut max =
        Family::gauge("tollgate_connections_max", "The most connections at once, by listener");
    let mut closed = Family::counter(
        "tollgate_connections_closed_total",
        "Connections that were closed early: the longest without a request made_room for a new one, or a \
         new one was over_share, as requests in progress of its client machine held half of the slots",
    );
    // Operators ask one after the other.
    for usage in usages.into_iter().filter(|usage| usage.listener != "control") {
        let labels = [("listener", usage.listener)];
        open = open.value(&labels, usage.open as f64);
        max = max.value(&labels, usage.max as f64);
        let labels = [labels[0], ("reason", "made_room")];
        closed = closed.value(&labels, usage.made_room as f64);
        // Only there a client machine has a share.
        if usage.listener == "telemetry" {
            let labels = [labels[0], ("reason", "over_share")];
            closed = closed.value(&labels, usage.over_share as f64);
        }
    }
    [open, max, closed].map(Family::done).into()
}

pub(super) fn idempotency_keys(usage: KeyUsage) -> Families {
    let reserved = Family::gauge("tollgate_idempotency_keys", "Reserved idempotency keys");
    let max = Family::gauge("tollgate_idempotency_max_keys", "The most that may be reserved");
    [(reserved, usage.reserved), (max, usage.max)]
        .map(|(family, value)| family.value(&[], value as f64).done())
        .into()
}

pub(super) fn memory(usage: MemoryUsage) -> Families {
    let used = Family::gauge(
        "tollgate_message_memory_bytes",
        "Memory that is reserved for callers' messages in progress",
    );
    let max = Family::gauge(
        "tollgate_message_memory_max_bytes",
        "The most that may be reserved for them, a part of runtime.memory",
    );
    let refused = Family::counter(
        "tollgate_message_memory_refusals_total",
        "Messages that were answered 503 since there was no memory for them",
    );
    let values = [(used, usage.used), (max, usage.max), (refused, usage.refused)];
    values.map(|(family, value)| family.value(&[], value as f64).done()).into()
}

pub(super) fn keys(status: &KeyStatus) -> Families {
    let source = [("source", status.source)];
    let mut expiry =
        Family::gauge("tollgate_key_expiry_timestamp_seconds", "When the key expires, if it does");
    if let Some(at) = status.expires_at {
        expiry = expiry.value(&source, at.as_second() as f64);
    }
    let mut reloads = Family::counter(
        "tollgate_key_reloads_total",
        "Keys by result: ok (taken up), failed (the source had none), refused (the provider refused a new \
         key that was tried on some calls)",
    );
    for (result, count) in [
        ("ok", status.reloads_ok),
        ("failed", status.reloads_failed),
        ("refused", status.rejections),
    ] {
        // What cannot happen has no series: other sources never have a new key, and one that says when it ends
        // is not tried first.
        let may_be_tried = matches!(status.source, "file" | "cli") && status.expires_at.is_none();
        if result == "refused" && !may_be_tried {
            continue;
        }
        reloads = reloads.value(&[source[0], ("result", result)], count as f64);
    }
    [expiry, reloads].map(Family::done).into()
}
