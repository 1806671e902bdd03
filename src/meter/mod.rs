//! What was asked, sent and billed. Rooms report facts through [`Meter`]; nobody computes with
//! them on the way of a message.
//!
//! Counts are kept here rather than in `prometheus` vectors: those find a child by a hash of its
//! label values written one after another, without comparing them, so ("ab", "c") and ("a", "bc")
//! are one series with the sum of both. For a bill that is a wrong bill.

mod labels;
mod tps;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use prometheus::{Histogram, HistogramOpts, exponential_buckets};

use crate::message::{InstanceId, Lane, Message};
use labels::Labels;
pub use labels::OTHER;
pub use tps::Tps;

/// The most provider codes with series of their own.
const MAX_CODES: usize = 64;

/// How a request to publish ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Published {
    /// Delivered.
    Delivered,
    /// Kept, to be delivered.
    Queued,
    /// Refused because of a ceiling, ours or the provider's.
    OverCeiling,
    /// Refused by the provider.
    Refused,
    /// Not delivered.
    Failed,
    /// Perhaps delivered.
    Unknown,
    /// Not a message.
    Invalid,
    /// Refused while stopping.
    Draining,
    /// Refused because too many wait.
    Full,
}

impl Published {
    /// All, in order.
    pub const ALL: [Self; 9] = [
        Self::Delivered,
        Self::Queued,
        Self::OverCeiling,
        Self::Refused,
        Self::Failed,
        Self::Unknown,
        Self::Invalid,
        Self::Draining,
        Self::Full,
    ];

    /// The word for it in metrics and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Queued => "queued",
            Self::OverCeiling => "over_ceiling",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Invalid => "invalid",
            Self::Draining => "draining",
            Self::Full => "full",
        }
    }
}

/// Why a call was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CallKind {
    /// A message's first try.
    First,
    /// A later one.
    Retry,
    /// One that finds out whether a lane works again.
    Probe,
}

impl CallKind {
    /// The word for it in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Retry => "retry",
            Self::Probe => "probe",
        }
    }
}

/// What a call means for the bill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Billed {
    /// Each successful call is one message.
    Yes,
    /// Nobody can know.
    Uncertain,
    /// Not a successful call.
    No,
}

impl Billed {
    /// All, in order.
    pub const ALL: [Self; 3] = [Self::Yes, Self::Uncertain, Self::No];

    /// The `result` of a call in metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Yes => "delivered",
            Self::Uncertain => "unknown",
            Self::No => "failed",
        }
    }
}

/// The book of facts. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Meter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    counts: Mutex<Counts>,
    publish_duration: [Histogram; Published::ALL.len()],
    call_duration: [Histogram; Billed::ALL.len()],
    ceiling_wait: [Histogram; 2],
    batch_messages: Histogram,
}

#[derive(Debug)]
struct Counts {
    topics: Labels,
    codes: Labels,
    published: BTreeMap<Arc<str>, [u64; Published::ALL.len()]>,
    calls: BTreeMap<(CallKind, Arc<str>), u64>,
    messages: BTreeMap<InstanceId, BTreeMap<Arc<str>, Messages>>,
    tps: BTreeMap<InstanceId, Tps>,
}

/// Messages of one instance and parent topic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Messages {
    /// Billed.
    pub billable: u64,
    /// May have been billed.
    pub uncertain: u64,
}

/// The counts at one moment, for those who show them.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Requests by parent topic and outcome, in the order of [`Published::ALL`].
    pub published: BTreeMap<Arc<str>, [u64; Published::ALL.len()]>,
    /// Calls by kind and code.
    pub calls: BTreeMap<(CallKind, Arc<str>), u64>,
    /// Messages by instance and parent topic.
    pub messages: BTreeMap<InstanceId, BTreeMap<Arc<str>, Messages>>,
    /// Billable messages in the last whole second and the largest second of this minute.
    pub tps: BTreeMap<InstanceId, (u64, u64)>,
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
    /// An empty book. The instances' series exist from the start.
    pub fn new(max_topics: usize, instances: impl IntoIterator<Item = InstanceId>) -> Self {
        let other = Arc::<str>::from(OTHER);
        let mut counts = Counts {
            topics: Labels::new(max_topics),
            codes: Labels::new(MAX_CODES),
            published: BTreeMap::from([(Arc::clone(&other), Default::default())]),
            calls: BTreeMap::new(),
            messages: BTreeMap::new(),
            tps: BTreeMap::new(),
        };
        for kind in [CallKind::First, CallKind::Retry, CallKind::Probe] {
            let ok = counts.codes.get("OK");
            counts.calls.insert((kind, ok), 0);
        }
        for instance in instances {
            let messages = BTreeMap::from([(Arc::clone(&other), Messages::default())]);
            counts.messages.insert(Arc::clone(&instance), messages);
            counts.tps.insert(instance, Tps::default());
        }
        Self {
            shared: Arc::new(Shared {
                counts: Mutex::new(counts),
                publish_duration: std::array::from_fn(|_| histogram()),
                call_duration: std::array::from_fn(|_| histogram()),
                ceiling_wait: std::array::from_fn(|_| histogram()),
                batch_messages: histogram_of(exponential_buckets(1.0, 2.0, 8)),
            }),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request to publish was answered. `parent` is its parent topic, if it had a valid one.
    pub fn published(&self, parent: Option<&str>, outcome: Published, took: Duration) {
        self.shared.publish_duration[outcome as usize].observe(took.as_secs_f64());
        let mut counts = self.counts();
        let topic = counts.topics.get(parent.unwrap_or(OTHER));
        counts.published.entry(topic).or_default()[outcome as usize] += 1;
    }

    /// A permit was waited for, because of the ceiling at `ceiling` (account, egress address).
    pub fn waited(&self, ceiling: usize, wait: Duration) {
        self.shared.ceiling_wait[ceiling].observe(wait.as_secs_f64());
    }

    /// So many kept messages are tried together.
    pub fn batch(&self, messages: usize) {
        self.shared.batch_messages.observe(messages as f64);
    }

    /// A message may have been delivered before a crash; nobody knows.
    pub fn uncertain(&self, lane: &Lane) {
        let mut counts = self.counts();
        let topic = counts.topics.get(&lane.parent);
        let topics = counts.messages.entry(Arc::clone(&lane.instance)).or_default();
        topics.entry(topic).or_default().uncertain += 1;
    }

    /// A call ended, with this code or transport word. One call, one verdict, one entry.
    pub fn called(
        &self,
        message: &Message,
        kind: CallKind,
        code: &str,
        billed: Billed,
        took: Duration,
    ) {
        self.shared.call_duration[billed as usize].observe(took.as_secs_f64());
        let mut counts = self.counts();
        let code = counts.codes.get(code);
        *counts.calls.entry((kind, code)).or_default() += 1;
        if billed == Billed::No {
            return;
        }
        let topic = counts.topics.get(message.topic.parent());
        let instance = Arc::clone(&message.instance);
        let topics = counts.messages.entry(instance).or_default();
        let messages = topics.entry(topic).or_default();
        if billed == Billed::Uncertain {
            messages.uncertain += 1;
            return;
        }
        messages.billable += 1;
        let now = Timestamp::now().as_second();
        counts.tps.entry(Arc::clone(&message.instance)).or_default().add(now);
    }

    /// The counts now.
    pub fn snapshot(&self) -> Snapshot {
        let now = Timestamp::now().as_second();
        let mut counts = self.counts();
        Snapshot {
            published: counts.published.clone(),
            calls: counts.calls.clone(),
            messages: counts.messages.clone(),
            tps: counts
                .tps
                .iter_mut()
                .map(|(instance, tps)| (Arc::clone(instance), tps.read(now)))
                .collect(),
        }
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

/// Round figures, so that "within 100 ms" is a bucket and not a guess. Each costs a series for every
/// outcome.
fn histogram() -> Histogram {
    let milliseconds = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000];
    histogram_of(Ok(milliseconds.map(|ms| f64::from(ms) / 1_000.0).into()))
}

fn histogram_of(buckets: prometheus::Result<Vec<f64>>) -> Histogram {
    let opts = HistogramOpts::new("unnamed", "named where it is shown");
    match Histogram::with_opts(opts.buckets(buckets.unwrap_or_default())) {
        Ok(histogram) => histogram,
        // The buckets are sorted and the name is valid: constants of those who call.
        Err(error) => unreachable!("constant histogram options are invalid: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{MessageId, Payload, PayloadEncoding, Topic};

    fn message(topic: &str) -> Message {
        Message {
            id: MessageId::new(),
            instance: "post-cn-1".into(),
            topic: Topic::parse(topic).unwrap(),
            payload: Payload::new(bytes::Bytes::new(), PayloadEncoding::Base64, 0).unwrap(),
        }
    }

    #[test]
    fn counts_what_is_billed_and_what_may_be() {
        let meter = Meter::new(5, ["post-cn-1".into()]);
        let took = Duration::from_millis(5);
        let call = |code, billed| {
            meter.called(&message("abc/d"), CallKind::First, code, billed, took);
        };
        (0..240).for_each(|_| call("OK", Billed::Yes));
        (0..6).for_each(|_| call("Throttling.User", Billed::No));
        (0..3).for_each(|_| call("SendMessageFailed", Billed::No));
        call("empty_msgid", Billed::Uncertain);
        let snapshot = meter.snapshot();
        let messages = snapshot.messages["post-cn-1"]["abc"];
        assert_eq!(messages, Messages { billable: 240, uncertain: 1 });
        let calls: u64 = snapshot.calls.values().sum();
        assert_eq!(calls, 250);
    }

    #[test]
    fn hostile_topics_and_codes_make_no_series() {
        let meter = Meter::new(3, []);
        for i in 0..10_000 {
            let parent = format!("topic{i}");
            meter.published(Some(&parent), Published::Delivered, Duration::ZERO);
            let code = format!("Code.{i}");
            meter.called(&message(&parent), CallKind::First, &code, Billed::Yes, Duration::ZERO);
        }
        let snapshot = meter.snapshot();
        assert_eq!(snapshot.published.len(), 4);
        assert_eq!(snapshot.published[OTHER][0], 10_000 - 3);
        assert!(snapshot.calls.len() <= 3 + MAX_CODES);
        assert_eq!(snapshot.calls.values().sum::<u64>(), 10_000);
    }
}
