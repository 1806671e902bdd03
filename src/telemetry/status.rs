//! What the page shows, as JSON.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Serialize, Serializer};

use super::concerns::{self, Concern};
use super::{Sources, advice};
use crate::answer::AccessDenied;
use crate::ceiling::{self, Mode};
use crate::config::{Billing, Limit};
use crate::delivery;
use crate::meter::{BudgetStatus, Failure, Past, Published, Snapshot};
use crate::spool::{Share, Spool};

/// The most paused topics that are told: those of the most messages.
const MOST_PAUSED: usize = 50;

/// Everything the page shows.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    pub(super) version: &'static str,
    pub(super) commit: &'static str,
    pub(super) endpoint: String,
    pub(super) started: Timestamp,
    pub(super) now: Timestamp,
    pub(super) draining: bool,
    /// What is wrong now, worst first.
    pub(super) concerns: Vec<Concern>,
    /// Billable messages in the last whole second, over all instances.
    pub(super) tps: u64,
    /// The largest second since the last whole minute began.
    pub(super) tps_peak: u64,
    /// What was bought, messages per second; `null`: not configured.
    pub(super) plan_tps: Option<u32>,
    pub(super) history: Past,
    pub(super) billable: u64,
    pub(super) uncertain: u64,
    /// Of the last fifteen minutes.
    #[serde(skip)]
    pub(super) uncertain_lately: u64,
    /// Why the disk does not take what is counted; `null`: it does.
    pub(super) ledger_failure: Option<String>,
    pub(super) waiting: usize,
    pub(super) longest_wait_seconds: f64,
    /// `null`: nothing is kept.
    pub(super) kept: Option<Kept>,
    /// Topics that do not deliver what is kept of them.
    pub(super) paused: Vec<Paused>,
    /// How many they are; no more than [`MOST_PAUSED`] are told.
    pub(super) paused_topics: usize,
    pub(super) ceilings: Vec<Ceiling>,
    /// Names of all egress addresses.
    pub(super) egress: Vec<String>,
    /// Egress addresses that the provider seems to block.
    pub(super) blocked: Vec<String>,
    pub(super) outcomes: BTreeMap<&'static str, u64>,
    pub(super) topics: BTreeMap<String, u64>,
    pub(super) spend: SpendView,
    pub(super) key: Key,
    pub(super) last_answer: Option<Timestamp>,
    /// When a call last delivered.
    pub(super) last_delivered: Option<Timestamp>,
    pub(super) clock_skew_seconds: f64,
    /// What calls came back with that did not deliver, the latest first.
    pub(super) errors: Vec<Error>,
    /// How the ceilings are shared among sidecars; `null`: they are not.
    pub(super) fleet: Option<Fleet>,
}

/// Sidecars that share the ceilings.
#[derive(Debug, Serialize)]
pub(super) struct Fleet {
    #[serde(serialize_with = "word")]
    pub(super) mode: Mode,
    pub(super) account: String,
    /// How many sidecars there are; 0: not known.
    pub(super) size: usize,
    /// Redis gives out no permits for so long, since it learns what is out.
    pub(super) opens_in_seconds: f64,
    /// When Redis was asked; `null`: not yet, or it does not answer. Asking this makes it fresh.
    pub(super) at: Option<Timestamp>,
    /// The most that are told are a few hundred.
    pub(super) members: Vec<Member>,
}

/// What one of them said of itself.
#[derive(Debug, Serialize)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) egress_group: String,
    /// Permits that it holds.
    pub(super) share: usize,
    /// Calls in its last second.
    pub(super) used: usize,
    pub(super) waiting: usize,
    pub(super) longest_wait_seconds: f64,
    /// It waits, and holds less than half of what an equal part would be.
    pub(super) starved: bool,
    pub(super) seen: Timestamp,
}

impl Fleet {
    fn of(ceiling: &ceiling::Ceiling, status: &ceiling::Status) -> Option<Self> {
        let fleet = ceiling.fleet()?;
        let now = Timestamp::now();
        let ago = |ago: Duration| SignedDuration::try_from(ago).map_or(now, |ago| now - ago);
        let narrowest = status.ceilings.iter().filter(|c| c.shared).filter_map(|c| c.limit).min();
        let member = |member: ceiling::Member| Member {
            starved: is_starved(&member, fleet.size, narrowest),
            name: member.name,
            version: member.version,
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
            size: fleet.size,
            opens_in_seconds: fleet.opens_in.as_secs_f64(),
            at: fleet.at.map(|at| ago(at.elapsed())),
            members,
        })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde asks for it")]
fn word<S: Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(mode.as_str())
}

/// Demand moves permits within a second; who has had less than half of its part for longer is not
/// reached by them.
fn is_starved(member: &ceiling::Member, size: usize, ceiling: Option<u32>) -> bool {
    let part = ceiling.map_or(0, |ceiling| ceiling as usize / size.max(1));
    member.waiting > 0 && member.longest_wait_ms > 1_000 && member.share * 2 < part
}

#[derive(Debug, Serialize)]
pub(super) struct Ceiling {
    pub(super) name: &'static str,
    pub(super) limit: Option<u32>,
    pub(super) used: usize,
    /// Calls that ended without an answer and still count.
    pub(super) unanswered: usize,
    pub(super) parked: usize,
    /// Requests that were refused because of it.
    pub(super) refused: u64,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Kept {
    pub(super) queued: u64,
    pub(super) dead: u64,
    pub(super) bytes: u64,
    /// How much of what may be kept is taken by messages and dead letters, 0 to 1.
    pub(super) full: f64,
    pub(super) oldest: Option<Timestamp>,
    pub(super) failure: Option<String>,
    /// How durable it is, as callers are told.
    pub(super) durability: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct Paused {
    pub(super) instance: String,
    pub(super) topic: String,
    pub(super) why: &'static str,
    #[serde(skip)]
    pub(super) bar: Option<AccessDenied>,
    pub(super) messages: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct Key {
    pub(super) source: &'static str,
    pub(super) loaded: Option<Timestamp>,
    pub(super) expires: Option<Timestamp>,
    pub(super) error: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Error {
    pub(super) code: String,
    pub(super) count: u64,
    pub(super) last: Timestamp,
    pub(super) words: &'static str,
    pub(super) todo: &'static str,
}

/// What was spent, and what may be.
#[derive(Debug, Serialize)]
pub(super) struct SpendView {
    pub(super) currency: String,
    /// Whether a price is configured; without one, every `spend` is 0.
    pub(super) priced: bool,
    /// Whose day today is.
    pub(super) time_zone: String,
    pub(super) today: Today,
    pub(super) topics: Vec<TopicSpend>,
    pub(super) budgets: Vec<Budget>,
}

#[derive(Debug, Serialize)]
pub(super) struct Today {
    pub(super) messages: u64,
    pub(super) uncertain: u64,
    pub(super) spend: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct TopicSpend {
    pub(super) instance: String,
    pub(super) topic: String,
    pub(super) messages: u64,
    pub(super) uncertain: u64,
    pub(super) spend: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Budget {
    pub(super) name: String,
    pub(super) unit: Unit,
    pub(super) limit: f64,
    pub(super) used: f64,
    pub(super) reserved: f64,
    pub(super) remaining_ratio: f64,
    pub(super) resets_at: Timestamp,
    pub(super) on_exceed: OnExceed,
}

/// What a budget limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unit {
    Messages,
    Money(String),
}

impl Serialize for Unit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Messages => "messages",
            Self::Money(currency) => currency,
        })
    }
}

/// What happens to messages over a budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum OnExceed {
    Warn,
    Refuse,
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

fn budget(status: &BudgetStatus, currency: &str) -> Budget {
    let (unit, limit) = match status.budget.limit {
        Limit::Messages(messages) => (Unit::Messages, messages as f64),
        Limit::Spend(spend) => (Unit::Money(currency.to_owned()), spend),
    };
    Budget {
        name: status.budget.name.clone(),
        unit,
        limit,
        used: status.used,
        reserved: status.reserved,
        remaining_ratio: status.remaining,
        resets_at: status.until,
        on_exceed: if status.budget.refuse { OnExceed::Refuse } else { OnExceed::Warn },
    }
}

impl Status {
    /// As it is now, with the history after `since`, a Unix second.
    pub(super) fn of(facts: &Sources, since: Option<i64>) -> Self {
        let counts = facts.meter.snapshot();
        let ceiling = facts.ceiling.status();
        let upstream = facts.upstream.status();
        let key = facts.keys.status();
        let failures = facts.meter.failures();
        let billing = facts.meter.billing();
        let spend = SpendView::of(&counts, &billing);
        let messages = || counts.messages.values().flat_map(BTreeMap::values);
        let mut paused: Vec<_> = facts.delivery.paused().iter().map(paused).collect();
        paused.sort_by(|a, b| b.messages.cmp(&a.messages).then_with(|| a.topic.cmp(&b.topic)));
        let mut topics = BTreeMap::<String, u64>::new();
        for (topic, messages) in counts.messages.values().flatten() {
            *topics.entry(topic.to_string()).or_default() += messages.billable;
        }
        let outcome = |outcome: &Published| {
            let count = counts.published.values().map(|counts| counts[*outcome as usize]).sum();
            (outcome.as_str(), count)
        };
        let mut status = Self {
            version: env!("CARGO_PKG_VERSION"),
            commit: env!("TOLLGATE_COMMIT"),
            endpoint: facts.endpoint.clone(),
            started: facts.started,
            now: Timestamp::now(),
            draining: facts.draining.load(Ordering::Relaxed),
            concerns: Vec::new(),
            tps: counts.tps.values().map(|(last, _)| last).sum(),
            tps_peak: counts.tps.values().map(|(_, peak)| peak).sum(),
            plan_tps: billing.plan_tps,
            history: facts.meter.past(since),
            billable: messages().map(|messages| messages.billable).sum(),
            uncertain: messages().map(|messages| messages.uncertain).sum(),
            ledger_failure: facts.meter.failure(),
            uncertain_lately: facts.meter.past(None).uncertain.into_iter().map(u64::from).sum(),
            waiting: ceiling.waiting,
            longest_wait_seconds: ceiling.longest_wait.as_secs_f64(),
            kept: facts.spool.as_ref().map(kept),
            paused_topics: paused.len(),
            paused,
            ceilings: ceiling
                .ceilings
                .iter()
                .map(|c| Ceiling {
                    name: c.kind.as_str(),
                    limit: c.limit,
                    used: c.used,
                    unanswered: c.unanswered,
                    parked: c.parked,
                    refused: c.decisions.refused,
                })
                .collect(),
            egress: facts.egress.clone(),
            blocked: (facts.egress.iter().zip(&ceiling.blocked))
                .filter(|(_, blocked)| **blocked)
                .map(|(egress, _)| egress.clone())
                .collect(),
            outcomes: Published::ALL.iter().map(outcome).collect(),
            topics,
            spend,
            key: Key {
                source: key.source,
                loaded: key.loaded_at,
                expires: key.expires_at,
                error: key.last_error,
            },
            last_answer: upstream.last_answer,
            last_delivered: failures.delivered,
            clock_skew_seconds: upstream.clock_skew.as_secs_f64(),
            errors: failures.latest.iter().map(error).collect(),
            fleet: Fleet::of(&facts.ceiling, &ceiling),
        };
        // Before anything is left out.
        status.concerns = concerns::of(&status);
        status.paused.truncate(MOST_PAUSED);
        status
    }
}

fn kept(spool: &Spool) -> Kept {
    let usage = spool.usage();
    // Receipts give way to messages.
    let (queued, dead) = (usage.queued, usage.dead);
    // Shared, it is full when all together have filled it.
    let used = usage.account.unwrap_or_else(|| Share {
        messages: queued.messages + dead.messages,
        bytes: queued.bytes + dead.bytes,
    });
    let messages = used.messages as f64 / usage.max.messages as f64;
    let bytes = used.bytes as f64 / usage.max.bytes as f64;
    Kept {
        queued: queued.messages,
        dead: dead.messages,
        bytes: queued.bytes + dead.bytes + usage.receipts.bytes,
        full: messages.max(bytes),
        oldest: usage.oldest,
        failure: usage.failure.as_deref().map(str::to_owned),
        durability: spool.durability().as_str(),
    }
}

fn paused(paused: &delivery::PausedLane) -> Paused {
    Paused {
        instance: paused.lane.instance.to_string(),
        topic: paused.lane.parent.to_string(),
        why: super::why(paused.reason.denied()),
        bar: paused.reason.denied(),
        messages: paused.waiting,
    }
}

fn error(failure: &Failure) -> Error {
    let advice = advice::of(&failure.code);
    Error {
        code: failure.code.to_string(),
        count: failure.count,
        last: failure.last,
        words: advice.words,
        todo: advice.todo,
    }
}
