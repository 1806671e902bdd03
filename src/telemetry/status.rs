//! What the page shows, as JSON.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use serde::Serialize;

use super::Facts;
use crate::delivery;
use crate::meter::Published;
use crate::spool::Usage;

#[derive(Serialize)]
pub(super) struct Status {
    version: &'static str,
    endpoint: String,
    started: String,
    now: String,
    draining: bool,
    /// Billable messages in the last whole second, over all instances.
    tps: u64,
    /// The largest second since the last whole minute began.
    tps_peak: u64,
    billable: u64,
    uncertain: u64,
    waiting: usize,
    longest_wait_seconds: f64,
    /// `null`: nothing is kept.
    kept: Option<Kept>,
    /// Topics that do not deliver what is kept of them.
    paused: Vec<Paused>,
    ceilings: Vec<Ceiling>,
    /// Egress addresses that the provider seems to block.
    blocked: Vec<String>,
    outcomes: BTreeMap<&'static str, u64>,
    topics: BTreeMap<String, u64>,
    key: Key,
    last_answer: Option<String>,
    clock_skew_seconds: f64,
}

#[derive(Serialize)]
struct Ceiling {
    name: &'static str,
    limit: Option<u32>,
    used: usize,
    parked: usize,
}

#[derive(Serialize)]
struct Kept {
    queued: u64,
    dead: u64,
    bytes: u64,
    oldest: Option<String>,
    failure: Option<String>,
}

#[derive(Serialize)]
struct Paused {
    instance: String,
    topic: String,
    why: &'static str,
    messages: usize,
}

#[derive(Serialize)]
struct Key {
    source: &'static str,
    loaded: Option<String>,
    expires: Option<String>,
    error: Option<String>,
}

impl Status {
    pub(super) fn of(facts: &Facts) -> Self {
        let counts = facts.meter.snapshot();
        let ceiling = facts.ceiling.status();
        let upstream = facts.upstream.status();
        let key = facts.keys.status();
        let messages = || counts.messages.values().flat_map(BTreeMap::iter);
        let mut topics = BTreeMap::<String, u64>::new();
        for (topic, messages) in messages() {
            *topics.entry(topic.to_string()).or_default() += messages.billable;
        }
        let outcome = |outcome: &Published| {
            let count = counts.published.values().map(|counts| counts[*outcome as usize]).sum();
            (outcome.word(), count)
        };
        let time = |at: Timestamp| at.to_string();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            endpoint: facts.endpoint.clone(),
            started: facts.started.to_string(),
            now: Timestamp::now().to_string(),
            draining: facts.draining.load(Ordering::Relaxed),
            tps: counts.tps.values().map(|(last, _)| last).sum(),
            tps_peak: counts.tps.values().map(|(_, peak)| peak).sum(),
            billable: messages().map(|(_, m)| m.billable).sum(),
            uncertain: messages().map(|(_, m)| m.uncertain).sum(),
            waiting: ceiling.waiting,
            longest_wait_seconds: ceiling.longest_wait.as_secs_f64(),
            kept: facts.spool.as_ref().map(|spool| kept(&spool.usage())),
            paused: facts.delivery.paused().iter().map(paused).collect(),
            ceilings: ceiling
                .ceilings
                .iter()
                .map(|c| Ceiling {
                    name: c.kind.word(),
                    limit: c.limit,
                    used: c.used,
                    parked: c.parked,
                })
                .collect(),
            blocked: (facts.egress.iter().zip(&ceiling.blocked))
                .filter(|(_, blocked)| **blocked)
                .map(|(egress, _)| egress.clone())
                .collect(),
            outcomes: Published::ALL.iter().map(outcome).collect(),
            topics,
            key: Key {
                source: key.source,
                loaded: key.loaded_at.map(time),
                expires: key.expires_at.map(time),
                error: key.last_error,
            },
            last_answer: upstream.last_answer.map(time),
            clock_skew_seconds: upstream.clock_skew.as_secs_f64(),
        }
    }
}

fn kept(usage: &Usage) -> Kept {
    Kept {
        queued: usage.queued.messages,
        dead: usage.dead.messages,
        bytes: usage.queued.bytes + usage.dead.bytes + usage.receipts.bytes,
        oldest: usage.oldest.map(|at| at.to_string()),
        failure: usage.failure.as_deref().map(str::to_owned),
    }
}

fn paused(paused: &delivery::Paused) -> Paused {
    Paused {
        instance: paused.lane.instance.to_string(),
        topic: paused.lane.parent.to_string(),
        why: super::why(paused.bar),
        messages: paused.waiting,
    }
}
