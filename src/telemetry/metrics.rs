//! Every metric, in one place.

use jiff::Timestamp;
use prometheus::process_collector::ProcessCollector;
use prometheus::{TextEncoder, core::Collector};

use super::TelemetrySources;
use super::action_metrics::actions;
use super::family::{Families, Family};
use super::open_metrics::{Format, open_metrics};
use super::process_metrics::{connections, idempotency_keys, keys, memory, process};
use crate::ceiling::{CeilingKind, Mode};
use crate::meter::{Billed, ExpiredAs, Meter, Published, Snapshot};
use crate::server::ConnectionSlots;
use crate::spool::{DropReason, Spool};
use crate::traces::SpanCounts;

pub(super) fn text(sources: &TelemetrySources, format: Format) -> String {
    let snapshot = sources.meter.snapshot();
    let mut families: Vec<_> = [
        messages(&snapshot),
        billing(sources, &snapshot),
        histograms(sources),
        ceilings(sources),
        retries(sources),
        expired(&sources.meter),
        actions(sources),
        sources.spool.as_ref().map(spool).unwrap_or_default(),
        held(sources),
        spans(sources.traces.counts()),
        process(sources),
        connections(sources.connections.each_ref().map(ConnectionSlots::usage)),
        memory(sources.memory.usage()),
        idempotency_keys(sources.delivery.keys()),
        keys(&sources.keys.status()),
        sources.configuration.view().families(),
    ]
    .into_iter()
    .flatten()
    .flatten()
    .collect();
    let process = ProcessCollector::for_self().collect();
    // Address space is no memory, and its figure means little beside the resident one.
    families.extend(
        process.into_iter().filter(|family| family.name() != "process_virtual_memory_bytes"),
    );
    let text = TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| {
        tracing::error!(%error, "metrics could not be written");
        String::new()
    });
    match format {
        Format::Prometheus => text,
        Format::OpenMetrics => {
            open_metrics(&text, &|outcome, bucket| sources.meter.exemplar(outcome, bucket))
        }
    }
}

fn messages(snapshot: &Snapshot) -> Families {
    let mut published = Family::counter(
        "tollgate_publish_requests_total",
        "Requests to publish by parent topic and outcome",
    );
    for (topic, counts) in &snapshot.published {
        for (outcome, count) in Published::ALL.iter().zip(counts) {
            // Most topics have no budget: a series begins with the first message over one.
            if *outcome == Published::OverBudget && *count == 0 {
                continue;
            }
            let labels = [("topic", &**topic), ("outcome", outcome.as_str())];
            published = published.value(&labels, *count as f64);
        }
    }
    let mut calls = Family::counter(
        "tollgate_upstream_calls_total",
        "Calls by kind and by the provider's code or the transport error",
    );
    for ((kind, code), count) in &snapshot.calls {
        calls = calls.value(&[("kind", kind.as_str()), ("code", code)], *count as f64);
    }
    let mut billable = Family::counter(
        "tollgate_billable_messages_total",
        "Messages that the provider bills: one per successful call",
    );
    let mut uncertain = Family::counter(
        "tollgate_uncertain_messages_total",
        "Messages that may have been billed: it is not known whether the call arrived",
    );
    let mut spend = Family::counter(
        "tollgate_spend_total",
        "What the billed messages cost, in billing.currency; 0 where no price is set",
    );
    for (instance, topics) in &snapshot.messages {
        for (topic, messages) in topics {
            let labels = [("instance", &**instance), ("topic", &**topic)];
            billable = billable.value(&labels, messages.billable as f64);
            uncertain = uncertain.value(&labels, messages.uncertain as f64);
            spend = spend.value(&labels, messages.spend);
        }
    }
    let [caller_published, caller_billable, caller_uncertain] = by_caller(snapshot);
    let mut tps = Family::gauge(
        "tollgate_billable_tps",
        "Message TPS: billable messages in the last whole second",
    );
    let mut peak = Family::gauge(
        "tollgate_billable_tps_peak",
        "The busiest second since the last whole minute began",
    );
    for (instance, (last, largest)) in &snapshot.tps {
        tps = tps.value(&[("instance", instance)], *last as f64);
        peak = peak.value(&[("instance", instance)], *largest as f64);
    }
    let all = [published, calls, billable, uncertain, spend, tps, peak];
    let by_caller = [caller_published, caller_billable, caller_uncertain];
    all.into_iter().chain(by_caller).map(Family::done).collect()
}

/// Series of callers that the configuration names: without any there are none.
fn by_caller(snapshot: &Snapshot) -> [Family; 3] {
    let mut published = Family::counter(
        "tollgate_caller_requests_total",
        "Publish requests and batch lines of a proven caller by outcome",
    );
    for (caller, counts) in &snapshot.callers_published {
        for (outcome, count) in Published::ALL.iter().zip(counts) {
            let labels = [("caller", &**caller), ("outcome", outcome.as_str())];
            published = published.value(&labels, *count as f64);
        }
    }
    let mut billable = Family::counter(
        "tollgate_caller_billable_messages_total",
        "Messages of a caller that the provider bills",
    );
    let mut uncertain = Family::counter(
        "tollgate_caller_uncertain_messages_total",
        "Messages of a caller that may have been billed",
    );
    for (caller, messages) in &snapshot.callers {
        let labels = [("caller", &**caller)];
        billable = billable.value(&labels, messages.billable as f64);
        uncertain = uncertain.value(&labels, messages.uncertain as f64);
    }
    [published, billable, uncertain]
}

fn billing(sources: &TelemetrySources, snapshot: &Snapshot) -> Families {
    let mut left = Family::gauge(
        "tollgate_budget_remaining_ratio",
        "The part of a budget that is left in its period, 0 to 1",
    );
    for status in &snapshot.budgets {
        left = left.value(&[("budget", &status.budget.name)], status.remaining);
    }
    let mut plan = Family::gauge(
        "tollgate_plan_tps",
        "The bought message TPS; 0: billing.plan_tps is not set",
    );
    let mut used = Family::gauge(
        "tollgate_plan_used_ratio",
        "The busiest second since the last whole minute began, as a part of the bought TPS",
    );
    let bought = sources.meter.billing().plan_tps;
    for (instance, (_, largest)) in &snapshot.tps {
        let labels = [("instance", &**instance)];
        plan = plan.value(&labels, bought.map_or(0.0, f64::from));
        used = used.value(&labels, bought.map_or(0.0, |plan| *largest as f64 / f64::from(plan)));
    }
    let failing = Family::gauge(
        "tollgate_ledger_failing",
        "1 while the ledger cannot be written: billed messages are counted in memory only",
    )
    .value(&[], f64::from(u8::from(sources.meter.failure().is_some())));
    [left, plan, used, failing].map(Family::done).into()
}

fn histograms(sources: &TelemetrySources) -> Families {
    let histograms = sources.meter.histograms();
    let mut publish = Family::histogram(
        "tollgate_publish_duration_seconds",
        "From a request to its answer, by outcome",
    );
    for (outcome, histogram) in Published::ALL.iter().zip(histograms.publish) {
        publish = publish.series(&[("outcome", outcome.as_str())], histogram);
    }
    let mut call = Family::histogram(
        "tollgate_upstream_call_duration_seconds",
        "From a call's permit to its answer, by result",
    );
    for (billed, histogram) in Billed::ALL.iter().zip(histograms.call) {
        call = call.series(&[("result", billed.as_str())], histogram);
    }
    let mut wait =
        Family::histogram("tollgate_ceiling_wait_seconds", "Waits for a permit, by ceiling");
    for (kind, histogram) in CeilingKind::ALL.iter().zip(histograms.wait) {
        wait = wait.series(&[("ceiling", kind.as_str())], histogram);
    }
    [publish, call, wait].map(Family::done).into()
}

fn ceilings(sources: &TelemetrySources) -> Families {
    let status = sources.ceiling.status();
    let mut limit = Family::gauge(
        "tollgate_ceiling_calls_per_second",
        "The ceiling, summed over egress addresses; +Inf: there is none",
    );
    let mut share = Family::gauge(
        "tollgate_ceiling_share_calls_per_second",
        "The part of the ceiling that this sidecar may use now",
    );
    let mut used = Family::gauge(
        "tollgate_ceiling_used_calls",
        "Calls in flight, answered in the last sliding second, or without an answer and perhaps unread",
    );
    let mut unanswered = Family::gauge(
        "tollgate_ceiling_unanswered_calls",
        "Calls that ended without an answer and still count, since the provider may still read them",
    );
    let mut parked = Family::gauge(
        "tollgate_ceiling_parked_permits",
        "Permits withheld because the provider throttled calls",
    );
    let mut decisions = Family::counter(
        "tollgate_ceiling_decisions_total",
        "Requests for a permit, by the ceiling that decided and its decision",
    );
    for ceiling in &status.ceilings {
        let name = ceiling.kind.as_str();
        let labels = [("ceiling", name)];
        let figure = ceiling.limit.map_or(f64::INFINITY, f64::from);
        limit = limit.value(&labels, figure);
        share = share.value(&labels, ceiling.share.map_or(f64::INFINITY, |share| share as f64));
        used = used.value(&labels, ceiling.used as f64);
        unanswered = unanswered.value(&labels, ceiling.unanswered as f64);
        parked = parked.value(&labels, ceiling.withheld as f64);
        let made = ceiling.decisions;
        for (decision, count) in
            [("passed", made.passed), ("waited", made.waited), ("refused", made.refused)]
        {
            let labels = [("ceiling", name), ("decision", decision)];
            decisions = decisions.value(&labels, count as f64);
        }
    }
    let mut blocked = Family::gauge(
        "tollgate_egress_blocked",
        "1 if the provider probably blocks this egress address",
    );
    for (egress, suspected) in sources.egress.iter().zip(&status.blocked) {
        blocked = blocked.value(&[("egress", egress)], f64::from(u8::from(*suspected)));
    }
    let mut mode = Family::gauge(
        "tollgate_fleet_mode",
        "1 for the current mode: alone, shared, cut_off (Redis does not answer, leases in use), closed \
         (leases have ended)",
    );
    for one in Mode::ALL {
        let is = f64::from(u8::from(one == status.mode));
        mode = mode.value(&[("mode", one.as_str())], is);
    }
    let sidecars = Family::gauge(
        "tollgate_fleet_sidecars",
        "Sidecars that share the ceilings; 0: not known, or none",
    )
    .value(&[], sources.ceiling.fleet_size() as f64);
    let waiting = Family::gauge("tollgate_waiting_messages", "Messages that wait for a permit")
        .value(&[], status.waiting as f64);
    [limit, share, used, unanswered, parked, decisions, blocked, mode, sidecars, waiting]
        .map(Family::done)
        .into()
}

fn retries(sources: &TelemetrySources) -> Families {
    let batch = sources.meter.histograms().batch;
    let batches = Family::counter(
        "tollgate_retry_batches_total",
        "Groups of stored messages that were attempted together",
    )
    .value(&[], batch.get_sample_count() as f64);
    let messages = Family::histogram(
        "tollgate_retry_batch_messages",
        "Stored messages that were attempted together, by group",
    )
    .series(&[], batch);
    let paused = sources.delivery.paused();
    let denied = paused.iter().filter(|paused| paused.reason.denied().is_some()).count();
    let lanes = Family::gauge(
        "tollgate_paused_topics",
        "Parent topics whose stored messages wait for a probe: the provider fails, or denies access",
    )
    .value(&[("reason", "failing")], (paused.len() - denied) as f64)
    .value(&[("reason", "barred")], denied as f64);
    [batches, messages, lanes].map(Family::done).into()
}

/// Without `[telemetry.otlp]` there are none.
fn spans(counts: Option<SpanCounts>) -> Families {
    let Some(SpanCounts { exported, failed, dropped }) = counts else { return Vec::new() };
    let mut spans = Family::counter(
        "tollgate_spans_total",
        "Spans that the collector has taken (exported), did not take (failed), or that were not sent since too \
         many were waiting or tollgate stopped (dropped)",
    );
    for (result, count) in [("exported", exported), ("failed", failed), ("dropped", dropped)] {
        spans = spans.value(&[("result", result)], count as f64);
    }
    vec![spans.done()]
}

/// Messages that came too late, stored or not.
fn expired(meter: &Meter) -> Families {
    let mut expired = Family::counter(
        "tollgate_expired_messages_total",
        "Messages whose time to live (TTL) ended before they were delivered: not sent (not_sent), or a call \
         may have delivered them (unknown)",
    );
    for known in ExpiredAs::ALL {
        let count = meter.expired_messages(known);
        expired = expired.value(&[("outcome", known.as_str())], count as f64);
    }
    vec![expired.done()]
}

fn spool(spool: &Spool) -> Families {
    let usage = spool.usage();
    let mut messages = Family::gauge("tollgate_spool_messages", "Messages in the spool, by state");
    let mut bytes =
        Family::gauge("tollgate_spool_bytes", "Bytes of the messages in the spool, by state");
    for (state, share) in
        [("queued", usage.queued), ("dead", usage.dead), ("receipt", usage.receipts)]
    {
        messages = messages.value(&[("state", state)], share.messages as f64);
        bytes = bytes.value(&[("state", state)], share.bytes as f64);
    }
    let age = usage.oldest.map_or(0.0, |at| Timestamp::now().duration_since(at).as_secs_f64());
    let oldest = Family::gauge(
        "tollgate_spool_oldest_age_seconds",
        "Age of the oldest message that is to be delivered",
    )
    .value(&[], age.max(0.0));
    let commits = Family::histogram(
        "tollgate_spool_commit_duration_seconds",
        "From writing a group of changes to their being durable",
    )
    .series(&[], spool.commits());
    let damaged = Family::counter(
        "tollgate_spool_damaged_total",
        "Damaged records found and set aside, and messages that Redis has lost",
    )
    .value(&[], usage.damaged as f64);
    let mut dropped = Family::counter(
        "tollgate_dead_letters_dropped_total",
        "Dead letters that tollgate dropped: older than retry.keep_dead (age), or beyond half of the spool \
         when new messages needed the room (room)",
    );
    for (reason, count) in DropReason::ALL.iter().zip(usage.dropped_dead) {
        dropped = dropped.value(&[("reason", reason.as_str())], count as f64);
    }
    let refused = Family::counter(
        "tollgate_spool_refused_total",
        "New messages that the spool refused since their topic (topic_share) or their caller (caller_share) \
         held its share",
    )
    .value(&[("reason", "topic_share")], usage.refused.topic_share as f64)
    .value(&[("reason", "caller_share")], usage.refused.caller_share as f64);
    let max_messages = Family::gauge(
        "tollgate_spool_max_messages",
        "Limit of messages, dead letters and receipts; receipts are evicted first",
    )
    .value(&[], usage.max.messages as f64);
    let max_bytes = Family::gauge("tollgate_spool_max_bytes", "Limit of the bytes in the spool")
        .value(&[], usage.max.bytes as f64);
    let failing = Family::gauge(
        "tollgate_spool_failing",
        "1 while the spool cannot be written to its disk or Redis",
    )
    .value(&[], f64::from(u8::from(usage.failure.is_some())));
    let at_risk = Family::gauge(
        "tollgate_spool_at_risk_messages",
        "Accepted messages that are lost if the pod is deleted now: spool.lifetime is \"pod\"",
    )
    .value(&[], spool.at_risk() as f64);
    let limits = [max_messages, max_bytes, failing, at_risk];
    let kept = [messages, bytes, oldest, commits, damaged, dropped, refused];
    kept.into_iter().chain(limits).map(Family::done).collect()
}

/// A message that is left with a dead owner is counted by every sidecar of the account. On a disk there is
/// no such owner and no MAC, and so no series.
fn held(sources: &TelemetrySources) -> Families {
    let Some(spool) = &sources.spool else { return Vec::new() };
    let (own, usage) = (sources.delivery.held(), spool.usage());
    let series = |held: Family, reason, owner, count: u64| {
        held.value(&[("reason", reason), ("owner", owner)], count as f64)
    };
    let mut held = Family::gauge(
        "tollgate_spool_held_messages",
        "Stored messages that this sidecar does not send, by reason, and whose they are",
    );
    held = series(held, "not_allowed", "self", own.not_allowed);
    if usage.account.is_some() {
        held = series(held, "not_allowed", "dead", usage.left.not_allowed);
        held = series(held, "unverified", "self", own.unverified);
        held = series(held, "unverified", "dead", usage.left.unverified);
    }
    vec![held.done()]
}
