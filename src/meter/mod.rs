//! What was requested, sent and billed. Modules report facts through [`Meter`]; no decision about a
//! message depends on them but that of a budget.
//!
//! Counts are kept here rather than in `prometheus` vectors: those find a child by a hash of its
//! label values written one after another, without comparing them, so ("ab", "c") and ("a", "bc")
//! are one series with the sum of both. For a bill that is a wrong bill.

mod action;
mod bill;
mod budget;
mod counts;
mod coverage;
mod errors;
mod exemplars;
mod fleet;
mod history;
mod label_set;
mod labels;
mod ledger;
mod metered_call;
mod minute;
mod money;
mod parts;
mod period;
mod places;
mod quarter;
mod recent_rate;
mod seconds;
mod tps;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use prometheus::Histogram;

use crate::config::{self, Billing, Period};
use crate::histogram;
use crate::message::{InstanceId, SpanContext};
pub use action::{ActionCounts, CallRead, MeteredAction};
pub use bill::{Bill, BillRow, By, Query, Subject};
pub use budget::{BudgetStatus, OverBudget, OverBudgetReason};
use counts::Counts;
pub use counts::{Messages, Snapshot};
pub use coverage::{FleetCoverage, Loss, SilentSidecar};
pub use errors::{Failure, Failures, LogLine};
pub use exemplars::Exemplar;
use exemplars::Exemplars;
use fleet::FleetRecorder;
pub use fleet::fleet_bill;
pub use history::Past;
pub use label_set::OTHER;
pub use labels::{
    ActionResult, Billed, CallKind, CallerResult, ExpiredAs, OperatorVerb, Published,
};
use ledger::Ledger;
pub use ledger::LedgerError;
pub use metered_call::MeteredCall;
pub use minute::LastMinute;
use parts::Parts;

/// The book of facts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Meter {
    shared: Arc<MeterInner>,
}

#[derive(Debug)]
struct MeterInner {
    counts: Mutex<Counts>,
    /// `None`: only this process is counted.
    ledger: Option<Ledger>,
    /// For the bill of the fleet; none: there is no fleet.
    fleet: OnceLock<FleetRecorder>,
    /// Of the budgets that the fleet shares.
    parts: Arc<Parts>,
    has_budgets: bool,
    publish_duration: [Histogram; Published::ALL.len()],
    exemplars: Exemplars,
    call_duration: [Histogram; Billed::ALL.len()],
    ceiling_wait: [Histogram; 2],
    batch_messages: Histogram,
    operator_actions: [AtomicU64; OperatorVerb::ALL.len()],
    /// Messages whose time to live has ended.
    expired: [AtomicU64; ExpiredAs::ALL.len()],
    actions: Mutex<ActionCounts>,
}

/// Calls of a process before this one that ended in the same second, perhaps without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PriorCalls {
    /// How long ago they ended, at least.
    pub ago: Duration,
    /// How many.
    pub calls: usize,
    /// How many of them had not ended when the process did. After a kill that is more than there were:
    /// the ledger reserves room for calls that are about to begin.
    pub under_way: usize,
    /// Whether a call that was sent later has been answered.
    pub later_answered: bool,
}

/// The book's histograms, with the values of their label.
#[derive(Debug)]
pub struct Histograms<'a> {
    /// From a request's head to its answer, by outcome.
    pub publish: &'a [Histogram],
    /// From permit to answer, by result.
    pub call: &'a [Histogram],
    /// Waits for a permit, by ceiling (account, egress address).
    pub wait: &'a [Histogram],
    /// Messages of a retry batch.
    pub batch: &'a Histogram,
}

impl Meter {
    /// An empty book without a ledger. The instances' series exist from the start.
    pub fn new(
        max_topics: usize,
        billing: &Billing,
        instances: impl IntoIterator<Item = InstanceId>,
    ) -> Self {
        Self::over(None, max_topics, billing, instances)
    }

    /// One that continues the ledger in `folder`, or keeps one in memory. Blocks.
    ///
    /// # Errors
    /// If the ledger cannot be used.
    pub fn open(
        folder: Option<&Path>,
        max_topics: usize,
        billing: &Billing,
        instances: impl IntoIterator<Item = InstanceId>,
    ) -> Result<Self, LedgerError> {
        let (ledger, lost) = match folder {
            Some(folder) => Ledger::open(folder)?,
            None => (Ledger::in_memory()?, BTreeMap::new()),
        };
        let meter = Self::over(Some(ledger.clone()), max_topics, billing, instances);
        let mut counts = meter.counts();
        let now = now();
        let range = counts.restores_from(now).div_euclid(60)..now.div_euclid(60) + 1;
        let restored = ledger.minutes(range, |minute, name, counted| {
            if !name.is_sum() {
                counts.restore(minute * 60, name, &counted);
            }
        });
        restored.map_err(|reason| LedgerError::store(folder.unwrap_or(Path::new("")), &reason))?;
        for (name, calls) in &lost {
            tracing::warn!(
                instance = &*name.instance,
                topic = &*name.topic,
                caller = (!name.caller.is_empty()).then_some(&*name.caller),
                calls,
                "the previous process ended before these calls were answered: they count as uncertain"
            );
            counts.lost(name, *calls, now);
        }
        drop(counts);
        Ok(meter)
    }

    /// One that counts in memory since the ledger cannot be used, and says so.
    ///
    /// # Errors
    /// If there is no thread for it.
    pub fn unkept(
        why: &LedgerError,
        max_topics: usize,
        billing: &Billing,
        instances: impl IntoIterator<Item = InstanceId>,
    ) -> Result<Self, LedgerError> {
        tracing::error!(
            error = %why,
            "the ledger cannot be opened: tollgate counts billed messages in memory, from zero, until \
             the next start; check spool.path"
        );
        let ledger = Ledger::in_memory()?;
        ledger.fails(why.to_string());
        Ok(Self::over(Some(ledger), max_topics, billing, instances))
    }

    fn over(
        ledger: Option<Ledger>,
        max_topics: usize,
        billing: &Billing,
        instances: impl IntoIterator<Item = InstanceId>,
    ) -> Self {
        let parts = Arc::default();
        let mut counts = Counts::new(max_topics, billing.clone(), now(), &parts);
        for instance in instances {
            counts.series(&instance, OTHER, None);
        }
        Self {
            shared: Arc::new(MeterInner {
                counts: Mutex::new(counts),
                ledger,
                fleet: OnceLock::new(),
                parts,
                has_budgets: !billing.budgets.is_empty(),
                publish_duration: std::array::from_fn(|_| duration()),
                exemplars: Exemplars::default(),
                call_duration: std::array::from_fn(|_| duration()),
                ceiling_wait: std::array::from_fn(|_| duration()),
                batch_messages: histogram::exponential(1.0, 2.0, 8),
                operator_actions: Default::default(),
                expired: Default::default(),
                actions: Mutex::default(),
            }),
        }
    }

    /// All sidecars of the fleet may make so many calls a second from now on.
    pub fn set_ceiling(&self, ceiling: u32) {
        if let Some(fleet) = self.shared.fleet.get() {
            fleet.set_ceiling(ceiling);
        }
    }

    /// Counts for the bill of a fleet, too, from now on, and shares budgets with it, all of whose sidecars may make so many
    /// calls a second. To be called before the first call, on a runtime.
    pub fn join_fleet(&self, fleet: &config::Fleet, ceiling: u32) {
        let instances: Vec<_> = self.counts().instances().cloned().collect();
        let start = || {
            let parts = Arc::clone(&self.shared.parts);
            FleetRecorder::start(fleet, ceiling, parts, instances, now())
        };
        // A second fleet is not joined.
        self.shared.fleet.get_or_init(start);
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request to publish was answered. `parent` is its parent topic, if it had a valid one, and `caller` the
    /// caller that it has proven to be.
    pub fn published(
        &self,
        parent: Option<&str>,
        caller: Option<&str>,
        outcome: Published,
        took: Duration,
    ) {
        self.shared.publish_duration[outcome as usize].observe(took.as_secs_f64());
        self.counts().published(parent, caller, outcome, now(), took);
    }

    /// The request of this span was answered, which is sampled.
    pub fn sampled(&self, outcome: Published, took: Duration, span: SpanContext) {
        self.shared.exemplars.observe(outcome, took, span, bucket_bounds());
    }

    /// The last sampled request in a bucket of the publish durations. `bucket`: its place, with +Inf last.
    pub fn exemplar(&self, outcome: Published, bucket: usize) -> Option<Exemplar> {
        self.shared.exemplars.get(outcome, bucket)
    }

    /// A permit was waited for, because of the ceiling at `ceiling` (account, egress address).
    pub fn waited(&self, ceiling: usize, wait: Duration) {
        self.shared.ceiling_wait[ceiling].observe(wait.as_secs_f64());
    }

    /// So many kept messages are tried together.
    pub fn batch(&self, messages: usize) {
        self.shared.batch_messages.observe(messages as f64);
    }

    /// The time to live of a message has ended.
    pub fn expired(&self, known: ExpiredAs) {
        self.shared.expired[known as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// So many messages' time to live has ended.
    pub fn expired_messages(&self, known: ExpiredAs) -> u64 {
        self.shared.expired[known as usize].load(Ordering::Relaxed)
    }

    /// An operator's request is done.
    pub fn operator_acted(&self, verb: OperatorVerb) {
        self.shared.operator_actions[verb as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Operators' requests that are done.
    pub fn operator_actions(&self, verb: OperatorVerb) -> u64 {
        self.shared.operator_actions[verb as usize].load(Ordering::Relaxed)
    }

    /// Whether the budgets have a place for one more message of an instance, parent topic and caller.
    ///
    /// # Errors
    /// If one that refuses messages is used up.
    pub fn admits(
        &self,
        instance: &InstanceId,
        parent: &str,
        caller: Option<&str>,
    ) -> Result<(), OverBudget> {
        if !self.shared.has_budgets {
            return Ok(());
        }
        let mut counts = self.counts();
        let series = counts.series(instance, parent, caller);
        counts.admits(series, now())
    }

    /// Takes up other prices.
    pub fn reprice(&self, billing: &Billing) {
        self.counts().reprice(billing);
    }

    /// What is configured of the bill.
    pub fn billing(&self) -> Billing {
        self.counts().billing().clone()
    }

    /// The counts now.
    pub fn snapshot(&self) -> Snapshot {
        self.counts().snapshot(now())
    }

    /// Messages that may have been billed, since the start.
    pub fn uncertain(&self) -> u64 {
        self.counts().uncertain()
    }

    /// Calls of processes before this one that may not have been answered, not longer ago than `within`.
    /// A call took `call_timeout` at most. `None`: it is not known, since there is no ledger of such a
    /// process.
    pub fn unanswered_before(
        &self,
        within: Duration,
        call_timeout: Duration,
    ) -> Option<Vec<PriorCalls>> {
        let ledger = self.shared.ledger.as_ref()?;
        let now = Timestamp::now();
        let since = now.checked_sub(within).unwrap_or(Timestamp::UNIX_EPOCH);
        let seconds = ledger.seconds_since(since.as_second())?;
        let answered =
            seconds.iter().filter(|(_, (bucket, _))| bucket.billable > 0).map(|(at, _)| *at).max();
        // Rounded up: so long before its answer a call was sent at the earliest.
        let took = i64::try_from(call_timeout.as_secs()).unwrap_or(i64::MAX).saturating_add(2);
        let calls = seconds.into_iter().filter(|(_, (bucket, _))| bucket.uncertain > 0);
        let calls = calls.map(|(second, (bucket, under_way))| {
            // Some time in that second. One that lies ahead, by a clock that was set back, is now.
            let ended = Timestamp::from_second(second + 1).unwrap_or(now);
            let ago = Duration::try_from(now.duration_since(ended)).unwrap_or_default();
            let later_answered = answered.is_some_and(|at| at.saturating_sub(took) > second);
            let [calls, under_way] =
                [bucket.uncertain, under_way].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
            PriorCalls { ago, calls, under_way, later_answered }
        });
        Some(calls.collect())
    }

    /// What the disk says, if it does not take the ledger.
    pub fn failure(&self) -> Option<String> {
        self.shared.ledger.as_ref().and_then(Ledger::failure)
    }

    /// Brings everything to the ledger's store and to the fleet's Redis and ends, at the latest when they have not
    /// answered for a while.
    pub async fn close(&self) {
        let fleet = async {
            if let Some(fleet) = self.shared.fleet.get() {
                fleet.close().await;
            }
        };
        let ledger = async {
            if let Some(ledger) = &self.shared.ledger {
                ledger.close().await;
            }
        };
        tokio::join!(fleet, ledger);
    }

    /// The histograms.
    pub fn histograms(&self) -> Histograms<'_> {
        Histograms {
            publish: &self.shared.publish_duration,
            call: &self.shared.call_duration,
            wait: &self.shared.ceiling_wait,
            batch: &self.shared.batch_messages,
        }
    }
}

/// When the period around a moment began, and when the next one begins.
pub fn period_around(period: Period, at: Timestamp, zone: &TimeZone) -> (Timestamp, Timestamp) {
    let period::Span { start, end } = period::Span::around(at.as_second(), period, zone);
    let moment = |second| Timestamp::from_second(second).unwrap_or(at);
    (moment(start), moment(end))
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

/// Round figures, so that "within 100 ms" is a bucket and not a guess. Each costs a series for every
/// outcome.
const BUCKETS_MS: [u32; 13] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000];

fn bucket_bounds() -> impl Iterator<Item = f64> {
    BUCKETS_MS.into_iter().map(|ms| f64::from(ms) / 1_000.0)
}

fn duration() -> Histogram {
    histogram::with_buckets(bucket_bounds().collect())
}

#[cfg(test)]
mod tests;
