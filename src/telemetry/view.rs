//! `/status.json`: its types, which `tollgate status` reads, too.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::answer::AccessDenied;
use crate::ceiling::Mode;
use crate::delivery::KeyUsage;
use crate::memory::MemoryUsage;
use crate::meter::Past;
use crate::server::ConnectionUsage;

/// Everything that `/status.json` has. `tollgate status` and the page read it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SidecarStatus {
    pub(crate) version: Cow<'static, str>,
    pub(crate) commit: Cow<'static, str>,
    /// Of the machine; a pod's is the pod's. Empty: an older sidecar, which does not tell.
    #[serde(default)]
    pub(crate) name: String,
    /// The instances that it publishes to.
    #[serde(default)]
    pub(crate) instances: Vec<String>,
    /// The region of its calls; empty: it is not known.
    #[serde(default)]
    pub(crate) region: String,
    pub(crate) endpoint: String,
    pub(crate) started: Timestamp,
    pub(crate) now: Timestamp,
    /// Whether it is stopping.
    pub(crate) draining: bool,
    /// Whether it accepts new messages, as it still does for `drain.accept_for` while stopping.
    #[serde(default)]
    pub(crate) accepting: bool,
    /// What is wrong now, worst first.
    pub(crate) concerns: Vec<Concern>,
    /// What callers got in the last minute.
    #[serde(default)]
    pub(crate) last_minute: LastMinuteView,
    /// The message TPS: messages that the provider took in the last whole second, and bills, over all
    /// instances.
    pub(crate) tps: u64,
    /// The largest second since the last whole minute began.
    pub(crate) tps_peak: u64,
    /// The bought message TPS; `null`: not configured.
    pub(crate) plan_tps: Option<u32>,
    pub(crate) history: Past,
    pub(crate) billable: u64,
    pub(crate) uncertain: u64,
    /// Why the ledger cannot be written; `null`: it can.
    pub(crate) ledger_failure: Option<String>,
    pub(crate) waiting: usize,
    pub(crate) longest_wait_seconds: f64,
    /// What is stored for delivery, and when it will be empty.
    #[serde(default)]
    pub(crate) backlog: BacklogView,
    /// `null`: there is no spool.
    pub(crate) kept: Option<KeptView>,
    /// Topics whose stored messages are not delivered now.
    pub(crate) paused: Vec<PausedTopic>,
    /// How many topics are paused; `paused` may list fewer.
    pub(crate) paused_topics: usize,
    pub(crate) ceilings: Vec<CeilingView>,
    /// For how long a call without an answer counts at most (`ceilings.unanswered_max`).
    #[serde(skip)]
    pub(crate) unanswered_max: Duration,
    /// Names of all egress addresses.
    pub(crate) egress: Vec<String>,
    /// Egress addresses that the provider probably blocks.
    pub(crate) blocked: Vec<String>,
    pub(crate) outcomes: BTreeMap<Cow<'static, str>, u64>,
    pub(crate) topics: BTreeMap<String, u64>,
    pub(crate) spend: SpendView,
    pub(crate) key: KeyView,
    pub(crate) last_answer: Option<Timestamp>,
    /// When a call last delivered.
    pub(crate) last_delivered: Option<Timestamp>,
    /// Calls that ended otherwise since then.
    #[serde(default)]
    pub(crate) failed_since_delivered: u64,
    pub(crate) clock_skew_seconds: f64,
    /// Errors of calls, the latest first.
    pub(crate) errors: Vec<CallError>,
    /// How the ceilings are shared among sidecars; `null`: they are not.
    pub(crate) fleet: Option<FleetView>,
    pub(crate) configuration: ConfigurationView,
    /// The connections of each server.
    #[serde(skip)]
    pub(crate) connections: Vec<ConnectionUsage>,
    /// What callers' messages take of the memory; `None`: read from another sidecar.
    #[serde(skip)]
    pub(crate) memory: Option<MemoryUsage>,
    /// Idempotency keys; `None`: read from another sidecar.
    #[serde(skip)]
    pub(crate) keys: Option<KeyUsage>,
}

/// Which configuration holds, and what became of the last change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ConfigurationView {
    /// A number that differs between configurations, below 2^48. Equal in pods that read the same one.
    pub(crate) hash: u64,
    /// When it was last read without an error.
    pub(crate) read: Timestamp,
    /// Why the last change was not applied; `null`: it was.
    pub(crate) error: Option<String>,
    /// Keys whose change waits for a restart.
    pub(crate) pending: Vec<String>,
    /// Ceilings that are lifted, or above what the provider publishes.
    pub(crate) lifted: Vec<String>,
}

/// How severe a concern is. For a person, a problem or a warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Messages are not delivered, or not accepted.
    Bad,
    /// That may happen soon, or messages cost more than they should.
    Warn,
}

impl Level {
    /// The word for it, on the page and in `tollgate status`.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Bad => "problem",
            Self::Warn => "warning",
        }
    }
}

/// Something that is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Concern {
    /// What it is about, as the log and programs have it; it does not change while it lasts.
    #[serde(default)]
    pub(crate) kind: Cow<'static, str>,
    pub(crate) level: Level,
    pub(crate) title: String,
    pub(crate) detail: String,
    #[serde(rename = "todo")]
    pub(crate) remedy: String,
    /// When it began; `null`: just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<Timestamp>,
    /// When it was seen last; `null`: it is so now. It may come back: it is over after a while without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_seen: Option<Timestamp>,
}

/// What callers got in the last whole minute, or since the start where that is less.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LastMinuteView {
    /// How many whole seconds are counted.
    pub(crate) seconds: usize,
    /// Requests without invalid ones.
    pub(crate) requests: u64,
    /// The share of them that was accepted; `null`: there was none.
    pub(crate) accepted_ratio: Option<f64>,
    /// 200.
    pub(crate) delivered: u64,
    /// 202.
    pub(crate) stored: u64,
    /// 429, 503: a ceiling, a budget or a bound was reached, or it stops.
    pub(crate) refused: u64,
    /// 502, 504, 410: failed, or of unknown outcome.
    pub(crate) failed: u64,
    /// No message, or one that the provider refuses: the caller's mistakes.
    pub(crate) invalid: u64,
    /// So long half of the accepted requests took at most, and 99 % of them; `null`: there was none.
    pub(crate) p50_seconds: Option<f64>,
    pub(crate) p99_seconds: Option<f64>,
}

/// What is stored for delivery, and when it will be empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct BacklogView {
    pub(crate) messages: u64,
    pub(crate) trend: BacklogTrend,
    /// By how many messages it changes each second, of late.
    pub(crate) per_second: f64,
    /// An estimate, without messages of paused topics; `null`: it is not shrinking, or empty.
    pub(crate) empty_in_seconds: Option<f64>,
    /// The same for a person, in a few words.
    pub(crate) outlook: String,
}

/// Where the backlog goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BacklogTrend {
    #[default]
    Empty,
    /// Messages are stored for a few seconds only, until their calls have ended.
    Passing,
    Shrinking,
    /// It neither shrinks nor grows.
    Steady,
    Growing,
}

/// Sidecars that share the ceilings.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FleetView {
    #[serde(with = "mode")]
    pub(crate) mode: Mode,
    pub(crate) account: String,
    /// Of this sidecar's calls; empty: it is not known.
    #[serde(default)]
    pub(crate) region: String,
    /// Whether the account's ceiling is shared over all regions, though this sidecar knows its own.
    #[serde(default)]
    pub(crate) all_regions: bool,
    /// How many sidecars there are; 0: not known.
    pub(crate) size: usize,
    /// For so long Redis leases no new permits, since it is learning which are in use.
    pub(crate) opens_in_seconds: f64,
    /// When Redis listed the members; `null`: not yet, or it does not answer. A request for the status
    /// triggers a new listing.
    pub(crate) at: Option<Timestamp>,
    /// At most a few hundred.
    pub(crate) members: Vec<MemberView>,
}

/// A sidecar's own report of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MemberView {
    pub(crate) name: String,
    pub(crate) version: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub(crate) region: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub(crate) egress_group: String,
    /// Permits that it holds.
    pub(crate) share: usize,
    /// Calls in its last second.
    pub(crate) used: usize,
    pub(crate) waiting: usize,
    pub(crate) longest_wait_seconds: f64,
    /// It has messages that wait, and less than half of an equal share.
    pub(crate) starved: bool,
    pub(crate) seen: Timestamp,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CeilingView {
    pub(crate) name: Cow<'static, str>,
    pub(crate) limit: Option<u32>,
    pub(crate) used: usize,
    /// Calls that ended without an answer and still count.
    pub(crate) unanswered: usize,
    pub(crate) parked: usize,
    /// Requests that were refused because of it.
    pub(crate) refused: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct KeptView {
    pub(crate) queued: u64,
    pub(crate) dead: u64,
    pub(crate) bytes: u64,
    /// The part of the spool's limits that messages and dead letters use, 0 to 1.
    pub(crate) full: f64,
    pub(crate) oldest: Option<Timestamp>,
    /// When a dead letter was dropped last since a new message needed its room.
    #[serde(default)]
    pub(crate) dead_dropped_for_room: Option<Timestamp>,
    pub(crate) failure: Option<String>,
    /// Stored messages that this sidecar does not send, its own and those of dead ones: since they are not
    /// allowed here, and since their MACs do not hold.
    #[serde(default)]
    pub(crate) not_allowed: u64,
    #[serde(default)]
    pub(crate) unverified: u64,
    /// How durable stored messages are, as in the answer to their callers.
    pub(crate) durability: Cow<'static, str>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PausedTopic {
    pub(crate) instance: String,
    pub(crate) topic: String,
    pub(crate) why: Cow<'static, str>,
    /// `None`: access is not denied, the provider fails.
    #[serde(skip)]
    pub(crate) denied: Option<AccessDenied>,
    pub(crate) messages: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeyView {
    pub(crate) source: Cow<'static, str>,
    pub(crate) loaded: Option<Timestamp>,
    pub(crate) expires: Option<Timestamp>,
    pub(crate) error: Option<String>,
    /// The masked id of a new key that the provider refuses, while the one before is in use.
    #[serde(default)]
    pub(crate) refused: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CallError {
    pub(crate) code: String,
    pub(crate) count: u64,
    pub(crate) last: Timestamp,
    /// The provider's, of the last such call: what its support asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) request_id: Option<String>,
    #[serde(rename = "words")]
    pub(crate) explanation: Cow<'static, str>,
    #[serde(rename = "todo")]
    pub(crate) remedy: Cow<'static, str>,
}

/// What was spent today, and the budgets.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SpendView {
    pub(crate) currency: String,
    /// Whether a price is configured; without one, every `spend` is 0.
    pub(crate) priced: bool,
    /// The time zone that decides when today began.
    pub(crate) time_zone: String,
    pub(crate) today: Today,
    pub(crate) topics: Vec<TopicSpend>,
    pub(crate) budgets: Vec<BudgetView>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Today {
    pub(crate) messages: u64,
    pub(crate) uncertain: u64,
    pub(crate) spend: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TopicSpend {
    pub(crate) instance: String,
    pub(crate) topic: String,
    pub(crate) messages: u64,
    pub(crate) uncertain: u64,
    pub(crate) spend: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BudgetView {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) limit: f64,
    pub(crate) used: f64,
    pub(crate) reserved: f64,
    pub(crate) remaining_ratio: f64,
    pub(crate) resets_at: Timestamp,
    pub(crate) on_exceed: OnExceed,
    /// Who spends it.
    #[serde(default)]
    pub(crate) scope: BudgetScopeView,
}

/// Who spends a budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BudgetScopeView {
    #[default]
    Sidecar,
    /// `used` is of all sidecars; `reserved` is what this one has in hand.
    Fleet,
}

/// What a budget limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unit {
    Messages,
    Money(String),
}

impl<'de> Deserialize<'de> for Unit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let unit = String::deserialize(deserializer)?;
        Ok(if unit == "messages" { Self::Messages } else { Self::Money(unit) })
    }
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnExceed {
    Warn,
    Refuse,
}

/// [`Mode`] as its word.
mod mode {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    use super::Mode;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde requires a reference")]
    pub(super) fn serialize<S: Serializer>(mode: &Mode, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(mode.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Mode, D::Error> {
        let word = String::deserialize(from)?;
        let mode = Mode::ALL.into_iter().find(|mode| mode.as_str() == word);
        mode.ok_or_else(|| D::Error::custom(format!("{word:?} is no fleet mode")))
    }
}
