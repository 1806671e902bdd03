//! Collects the [`SidecarStatus`] of a running sidecar.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::backlog::StoredNow;
use super::view::{
    BacklogView, BudgetScopeView, BudgetView, CallError, CeilingView, FleetView, KeptView, KeyView,
    LastMinuteView, MemberView, OnExceed, PausedTopic, SidecarStatus, SpendView, Today, TopicSpend,
    Unit,
};
use super::{TelemetrySources, concerns, explanations};
use crate::answer::TransportError;
use crate::ceiling;
use crate::config::{Billing, BudgetScope, Limit};
use crate::delivery;
use crate::meter::{BudgetStatus, Failure, LastMinute, Published, Snapshot};
use crate::server::ConnectionSlots;
use crate::spool::{HeldCounts, Share, Spool};

/// The most paused topics that are listed: those with the most messages.
const MAX_PAUSED: usize = 50;

/// Who reads a status. For a person, the members of a fleet are read from Redis often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StatusReader {
    Person,
    Log,
}

impl FleetView {
    fn of(
        ceiling: &ceiling::Ceiling,
        status: &ceiling::Status,
        reader: StatusReader,
    ) -> Option<Self> {
        let fleet = match reader {
            StatusReader::Person => ceiling.fleet()?,
            StatusReader::Log => ceiling.fleet_as_known()?,
        };
        let now = Timestamp::now();
        let ago = |ago: Duration| SignedDuration::try_from(ago).map_or(now, |ago| now - ago);
        let narrowest = status.ceilings.iter().filter(|c| c.shared).filter_map(|c| c.limit).min();
        let member = |member: ceiling::Member| MemberView {
            starved: is_starved(&member, fleet.size, narrowest),
            name: member.name,
            version: member.version,
            region: member.region,
            egress_group: member.egress_group,
            share: member.share,
            used: member.used,
            waiting: member.waiting,
            longest_wait_seconds: Duration::from_millis(member.longest_wait_ms).as_secs_f64(),
            seen: ago(member.age),
        };
        let mut members: Vec<_> = fleet.members.into_iter().map(member).collect();
        members
            .sort_by(|a, b| (b.starved, b.waiting, &a.name).cmp(&(a.starved, a.waiting, &b.name)));
        Some(Self {
            mode: status.mode,
            account: fleet.account,
            region: fleet.region,
            all_regions: fleet.scope == ceiling::Scope::AllRegions,
            size: fleet.size,
            opens_in_seconds: fleet.opens_in.as_secs_f64(),
            at: fleet.at.map(|at| ago(at.elapsed())),
            members,
        })
    }
}

/// Permits move to where the demand is within a second. A sidecar that has had less than half of an
/// equal share for longer does not get them.
fn is_starved(member: &ceiling::Member, size: usize, ceiling: Option<u32>) -> bool {
    let part = ceiling.map_or(0, |ceiling| ceiling as usize / size.max(1));
    member.waiting > 0 && member.longest_wait_ms > 1_000 && member.share * 2 < part
}

impl SpendView {
    fn of(counts: &Snapshot, billing: &Billing) -> Self {
        let mut topics = Vec::new();
        for (instance, of_instance) in &counts.today {
            for (topic, messages) in of_instance {
                if messages.billable + messages.uncertain > 0 {
                    topics.push(TopicSpend {
                        instance: instance.to_string(),
                        topic: topic.to_string(),
                        messages: messages.billable,
                        uncertain: messages.uncertain,
                        spend: messages.spend,
                    });
                }
            }
        }
        let today = Today {
            messages: topics.iter().map(|topic| topic.messages).sum(),
            uncertain: topics.iter().map(|topic| topic.uncertain).sum(),
            spend: topics.iter().map(|topic| topic.spend).sum(),
        };
        let budget = |status: &BudgetStatus| budget(status, &billing.currency);
        Self {
            currency: billing.currency.clone(),
            priced: billing.prices.is_set(),
            time_zone: billing.time_zone.iana_name().unwrap_or_default().to_owned(),
            today,
            topics,
            budgets: counts.budgets.iter().map(budget).collect(),
        }
    }
}

fn budget(status: &BudgetStatus, currency: &str) -> BudgetView {
    let (unit, limit) = match status.budget.limit {
        Limit::Messages(messages) => (Unit::Messages, messages as f64),
        Limit::Spend(spend) => (Unit::Money(currency.to_owned()), spend),
    };
    BudgetView {
        name: status.budget.name.clone(),
        unit,
        limit,
        used: status.used,
        reserved: status.reserved,
        remaining_ratio: status.remaining,
        resets_at: status.until,
        on_exceed: if status.budget.refuse { OnExceed::Refuse } else { OnExceed::Warn },
        scope: match status.budget.scope {
            BudgetScope::Sidecar => BudgetScopeView::Sidecar,
            BudgetScope::Fleet { .. } => BudgetScopeView::Fleet,
        },
    }
}

impl From<LastMinute> for LastMinuteView {
    fn from(minute: LastMinute) -> Self {
        let [delivered, stored, refused, failed, invalid] = minute.results;
        let requests = delivered + stored + refused + failed;
        let ratio = (delivered + stored) as f64 / requests as f64;
        Self {
            seconds: minute.seconds,
            requests,
            accepted_ratio: (requests > 0).then_some(ratio),
            delivered,
            stored,
            refused,
            failed,
            invalid,
            p50_seconds: minute.p50.as_ref().map(Duration::as_secs_f64),
            p99_seconds: minute.p99.as_ref().map(Duration::as_secs_f64),
        }
    }
}

impl SidecarStatus {
    /// The status now, with the history after `since`, a Unix second.
    pub(super) fn of(sources: &TelemetrySources, since: Option<i64>, reader: StatusReader) -> Self {
        let counts = sources.meter.snapshot();
        let ceiling = sources.ceiling.status();
        let upstream = sources.upstream.status();
        let key = sources.keys.status();
        let failures = sources.meter.failures();
        let billing = sources.meter.billing();
        let spend = SpendView::of(&counts, &billing);
        let messages = || counts.messages.values().flat_map(BTreeMap::values);
        let mut paused: Vec<_> = sources.delivery.paused().iter().map(paused).collect();
        paused.sort_by(|a, b| b.messages.cmp(&a.messages).then_with(|| a.topic.cmp(&b.topic)));
        let mut topics = BTreeMap::<String, u64>::new();
        for (topic, messages) in counts.messages.values().flatten() {
            *topics.entry(topic.to_string()).or_default() += messages.billable;
        }
        let outcome = |outcome: &Published| {
            let count = counts.published.values().map(|counts| counts[*outcome as usize]).sum();
            (outcome.as_str().into(), count)
        };
        let now = Timestamp::now();
        let kept = sources.spool.as_ref().map(|spool| kept(spool, sources.delivery.held()));
        let history = sources.meter.past(None);
        let stored = stored(kept.as_ref(), &paused, now);
        let mut status = Self {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: env!("TOLLGATE_COMMIT").into(),
            name: sources.identity.name.clone(),
            instances: sources.identity.instances.clone(),
            region: sources.identity.region.clone(),
            endpoint: sources.endpoint.clone(),
            started: sources.started,
            now,
            draining: sources.stopping.load(Ordering::Relaxed),
            accepting: !sources.refusing.load(Ordering::Relaxed),
            concerns: Vec::new(),
            last_minute: sources.meter.last_minute().into(),
            tps: counts.tps.values().map(|(last, _)| last).sum(),
            tps_peak: counts.tps.values().map(|(_, peak)| peak).sum(),
            plan_tps: billing.plan_tps,
            history: sources.meter.past(since),
            billable: messages().map(|messages| messages.billable).sum(),
            uncertain: messages().map(|messages| messages.uncertain).sum(),
            ledger_failure: sources.meter.failure(),
            waiting: ceiling.waiting,
            longest_wait_seconds: ceiling.longest_wait.as_secs_f64(),
            backlog: BacklogView::of(stored, &history.backlog),
            kept,
            paused_topics: paused.len(),
            paused,
            ceilings: ceiling
                .ceilings
                .iter()
                .map(|c| CeilingView {
                    name: c.kind.as_str().into(),
                    limit: c.limit,
                    used: c.used,
                    unanswered: c.unanswered,
                    parked: c.withheld,
                    refused: c.decisions.refused,
                })
                .collect(),
            unanswered_max: ceiling.unanswered_max,
            egress: sources.egress.clone(),
            blocked: (sources.egress.iter().zip(&ceiling.blocked))
                .filter(|(_, blocked)| **blocked)
                .map(|(egress, _)| egress.clone())
                .collect(),
            outcomes: Published::ALL.iter().map(outcome).collect(),
            topics,
            spend,
            key: KeyView {
                source: key.source.into(),
                loaded: key.loaded_at,
                expires: key.expires_at,
                error: key.last_error,
                refused: key.rejected,
            },
            last_answer: upstream.last_answer,
            last_delivered: failures.delivered,
            failed_since_delivered: failures.since_delivered,
            clock_skew_seconds: upstream.clock_skew.as_secs_f64(),
            errors: failures
                .latest
                .iter()
                .map(|failure| error(failure, upstream.trouble))
                .collect(),
            fleet: FleetView::of(&sources.ceiling, &ceiling, reader),
            configuration: sources.configuration.view(),
            connections: sources.connections.iter().map(ConnectionSlots::usage).collect(),
            memory: Some(sources.memory.usage()),
            keys: Some(sources.delivery.keys()),
        };
        let recent = history.uncertain.into_iter().map(u64::from).sum();
        // Before the list of paused topics is cut.
        status.concerns = concerns::of(&status, recent);
        status.paused.truncate(MAX_PAUSED);
        status
    }
}

fn stored(kept: Option<&KeptView>, paused: &[PausedTopic], now: Timestamp) -> StoredNow {
    let Some(kept) = kept else { return StoredNow::default() };
    let paused = paused.iter().map(|paused| paused.messages as u64).sum::<u64>();
    let oldest = kept.oldest.map_or(SignedDuration::ZERO, |at| now.duration_since(at));
    StoredNow {
        messages: kept.queued,
        paused: paused.min(kept.queued),
        oldest_seconds: oldest.as_secs_f64(),
    }
}

fn kept(spool: &Spool, mut held: HeldCounts) -> KeptView {
    let usage = spool.usage();
    held += usage.left;
    // Receipts are evicted first, so they do not count as full.
    let (queued, dead) = (usage.queued, usage.dead);
    // A shared spool's limits hold for all sidecars together.
    let used = usage.account.unwrap_or_else(|| Share {
        messages: queued.messages + dead.messages,
        bytes: queued.bytes + dead.bytes,
    });
    let messages = used.messages as f64 / usage.max.messages as f64;
    let bytes = used.bytes as f64 / usage.max.bytes as f64;
    KeptView {
        queued: queued.messages,
        dead: dead.messages,
        bytes: queued.bytes + dead.bytes + usage.receipts.bytes,
        full: messages.max(bytes),
        oldest: usage.oldest,
        dead_dropped_for_room: usage.last_dropped_for_room,
        failure: usage.failure.as_deref().map(str::to_owned),
        not_allowed: held.not_allowed,
        unverified: held.unverified,
        durability: spool.durability().as_str().into(),
    }
}

fn paused(paused: &delivery::PausedLane) -> PausedTopic {
    PausedTopic {
        instance: paused.lane.instance.to_string(),
        topic: paused.lane.parent.to_string(),
        why: super::pause_reason(paused.reason.denied()).into(),
        denied: paused.reason.denied(),
        messages: paused.waiting,
    }
}

/// `trouble`: why connections do not open now, which says more than its code.
fn error(failure: &Failure, trouble: Option<TransportError>) -> CallError {
    let explanation = match trouble {
        Some(why) if *failure.code == *why.as_str() => explanations::of_transport(why),
        _ => explanations::of(&failure.code),
    };
    CallError {
        code: failure.code.to_string(),
        count: failure.count,
        last: failure.last,
        request_id: failure.request_id.as_deref().map(str::to_owned),
        explanation: explanation.what.into(),
        remedy: explanation.remedy.into(),
    }
}
