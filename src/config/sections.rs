//! All sections, and the checks of values of one section beside those of another.

use std::num::NonZero;
use std::time::Duration;

use bytesize::ByteSize;

use super::billing::{BillingRows, billing, shared_budgets_have_a_fleet};
use super::callers::{self, Sdk, callers, callers_are_counted, certificates_fit, sdk_fits};
use super::ceilings::{CeilingRows, ceilings};
use super::checks::{HOUR, SHORTEST, level, pattern};
use super::credentials::{KeyRows, keys};
use super::fleet::{FleetRows, fleet, fleet_fits};
use super::keyring::{KeyringRows, keyring};
use super::listen::{Listen, Publish, TlsRows, tls};
use super::otlp::{OtlpRows, otlp};
use super::parse::Scalar;
use super::read::{Ranged, ReadKey, Reader, boolean, choice, duration, list, size, value, whole};
use super::retry::{RetryRows, retry};
use super::row::Reload::Live;
use super::row::Row;
use super::spool::{Idempotency, Spool, SpoolRows, Store, keys_follow_the_rate, spool};
use super::table::section;
use super::topic_rules::{TopicRule, rules};
use super::upstream::{PAYLOADS, Upstream};
use super::{Config, Fleet};
use crate::message::{Topic, TopicPattern};

/// The rows of all sections, in the order of the documentation.
pub(super) const SECTIONS: [&[Row]; 19] = [
    // Before all sections: it is in none.
    callers::ROWS,
    Listen::ROWS,
    TlsRows::ROWS,
    Publish::ROWS,
    Upstream::ROWS,
    KeyRows::ROWS,
    CeilingRows::ROWS,
    FleetRows::ROWS,
    RetryRows::ROWS,
    SpoolRows::ROWS,
    Idempotency::ROWS,
    Topics::ROWS,
    BillingRows::ROWS,
    Telemetry::ROWS,
    OtlpRows::ROWS,
    Drain::ROWS,
    Runtime::ROWS,
    KeyringRows::ROWS,
    Sdk::ROWS,
];

pub(super) fn rows() -> impl Iterator<Item = &'static Row> {
    SECTIONS.into_iter().flatten()
}

/// Reads everything; `None` where a value is wrong.
pub(super) fn config(r: &mut Reader<'_>) -> Option<Config> {
    let callers = callers(r);
    let listen = Listen::read(r);
    let tls = tls(r);
    let publish = Publish::read(r);
    let upstream = Upstream::read(r);
    let keys = keys(r);
    let ceilings = ceilings(r);
    let fleet = fleet(r);
    let retry = retry(r);
    let spool = spool(r);
    let mut idempotency = Idempotency::read(r);
    let topics = Topics::read(r);
    let mut billing = billing(r);
    let telemetry = Telemetry::read(r);
    let otlp = otlp(r);
    let drain = Drain::read(r);
    let runtime = Runtime::read(r);
    let sts = keys.as_ref().map(|(_, sts)| sts.clone());
    let keyring = keyring(r, sts);
    let sdk = Sdk::read(r);
    if let (Some(sdk), Some(callers), Some(listen)) = (&sdk, &callers, &listen) {
        sdk_fits(r, sdk, callers, listen);
    }
    if let (Some(billing), Some(callers), Some(telemetry)) = (&mut billing, &callers, &telemetry) {
        callers_are_counted(r, billing, callers, telemetry.max_callers);
    }
    if let (Some(billing), Some(fleet)) = (&billing, &fleet) {
        shared_budgets_have_a_fleet(r, billing, fleet.is_some());
    }
    if let (Some(callers), Some(tls)) = (&callers, &tls) {
        certificates_fit(r, callers, tls.as_ref());
    }
    if let Some(idempotency) = &mut idempotency {
        keys_follow_the_rate(r, idempotency);
    }
    if let (Some(publish), Some(upstream)) = (&publish, &upstream) {
        payload_fits(r, publish, upstream);
    }
    if let (Some(Some(fleet)), Some(ceilings), Some(upstream)) = (&fleet, &ceilings, &upstream) {
        fleet_fits(r, fleet, ceilings, upstream);
    }
    if let (Some(fleet), Some(spool), Some(drain)) = (&fleet, &spool, &drain) {
        redis_is_named(r, fleet.as_ref(), spool.as_ref(), drain);
    }
    Some(Config {
        listen: listen?,
        tls: tls?,
        publish: publish?,
        sdk: sdk?,
        callers: callers?,
        upstream: upstream?,
        keys: keys?.0,
        ceilings: ceilings?,
        fleet: fleet?,
        retry: retry?,
        spool: spool?,
        idempotency: idempotency?,
        topics: topics?,
        billing: billing?,
        telemetry: telemetry?,
        otlp: otlp?,
        drain: drain?,
        runtime: runtime?,
        keyring: keyring?,
    })
}

/// A body may not be longer than what the provider takes, as it is sent.
fn payload_fits(r: &mut Reader<'_>, publish: &Publish, upstream: &Upstream) {
    let most = upstream.largest_payload();
    if publish.max_payload > most {
        let named = PAYLOADS.iter().find(|(_, encoding)| *encoding == upstream.payload);
        let word = named.map_or("", |(word, _)| word);
        let shown = ByteSize(most as u64);
        r.conflict(
            "publish.max_payload",
            format!("is more than upstream.payload = {word:?} can carry"),
            format!("write at most \"{shown}\" ({most} bytes)"),
        );
    }
}

/// What is kept in, or handed to, the fleet's Redis needs one.
fn redis_is_named(r: &mut Reader<'_>, fleet: Option<&Fleet>, spool: Option<&Spool>, drain: &Drain) {
    if fleet.is_none() && spool.is_some_and(|spool| spool.store == Store::Redis) {
        let problem = "is \"redis\", and fleet.url names no Redis";
        r.conflict("spool.store", problem, "set fleet.url, or write \"disk\"");
    }
    if drain.handoff && fleet.is_none() {
        let problem = "is true, and fleet.url names no Redis to hand messages to";
        r.conflict("drain.handoff", problem, "set fleet.url, or write false");
    }
    if drain.handoff && spool.is_none() {
        let problem = "is true, and nothing is kept (spool.store is \"none\")";
        r.conflict("drain.handoff", problem, "set spool.store, or write false");
    }
}

// === Small sections ===

section! {
    /// `[topics]`
    #[derive(Debug, Clone)]
    pub struct Topics [topics] {
        /// Topics that may be published to, such as "Alarm/*". Empty: all.
        allow: Vec<TopicPattern> = [], list(Scalar::Refused, pattern), Live;

        /// Defaults for messages of these topics whose request has no TTL or no Urgency header: the first rule
        /// that matches a topic wins, and a header wins over it.
        /// [[topics.rules]]
        /// topics = ["Alarm/*"]
        /// ttl = "30s"          # 1s to 720h; left out: no end but retry.max_age
        /// urgency = "high"     # or "normal", "low", "very-low"
        rules: Vec<TopicRule> = [], rules, Live;
    }
}

impl Topics {
    /// The rule for messages of this topic.
    pub fn rule(&self, topic: &Topic) -> Option<&TopicRule> {
        self.rules.iter().find(|rule| rule.matches(topic))
    }

    /// Whether a topic may be published to.
    pub fn allows(&self, topic: &Topic) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|pattern| pattern.matches(topic))
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For a person.
    Text,
}

section! {
    /// `[telemetry]`
    #[derive(Debug, Clone)]
    pub struct Telemetry [telemetry] {
        /// How log lines look.
        log: LogFormat = "json", choice(&[("json", LogFormat::Json), ("text", LogFormat::Text)]);

        /// A level (off, error, warn, info, debug, trace) or directives such as "info,hyper=warn".
        level: String = "info", value(level), Live;

        /// The most parent topics with series of their own; the rest is counted as "other".
        max_topics: usize = 50, whole(1..=1_000);

        /// The most callers with series of their own, in the order of [[callers]] and those with a budget first; the
        /// rest is counted as "other".
        max_callers: usize = 50, whole(1..=1_000);
    }
}

section! {
    /// `[drain]`
    #[derive(Debug, Clone)]
    pub struct Drain [drain] {
        /// How long messages in progress may take after SIGTERM. Set the pod's
        /// terminationGracePeriodSeconds above it.
        grace: Duration = "20s", duration(SHORTEST..=HOUR);

        /// How long tollgate accepts messages after SIGTERM, before `grace` begins. For clusters where the
        /// app and the sidecar get SIGTERM together (before 1.29). /readyz is 503 from SIGTERM on. Set
        /// terminationGracePeriodSeconds above the sum of both.
        accept_for: Duration = "0s", duration(Duration::ZERO..=HOUR);

        /// Whether a disk spool migrates its remaining messages to the Redis of [fleet] at SIGTERM, for
        /// sidecars with spool.store = "redis". Takes up to 10 s more.
        handoff: bool = false, boolean();
    }
}

section! {
    /// `[runtime]`
    #[derive(Debug, Clone)]
    pub struct Runtime [runtime] {
        /// Worker threads; 0: one for each 5,000 calls/s of ceilings.account, and at most as many as the CPU
        /// limit allows.
        threads: usize = 0, whole(0..=1_024);

        /// The memory that this process may use; 0: the limit of its container or control group, or else the
        /// machine's memory. Bounds of the connections of callers, stored messages and idempotency keys are
        /// lowered to their shares of it, which tollgate logs at start, and messages that find no memory are
        /// answered 503 with Retry-After.
        memory: u64 = "0", memory();
    }
}

fn memory() -> impl ReadKey<u64> {
    let given = size(0..=bytesize::TIB);
    let range = given.range();
    let read = move |r: &mut Reader<'_>, row: &Row| {
        let bytes = given.read(r, row)?;
        if bytes > 0 {
            return Some(bytes);
        }
        let limit = crate::memory::limit();
        r.show(row.name, format!("0 (here {})", ByteSize(limit)));
        Some(limit)
    };
    Ranged { range, read }
}

/// Calls a second that one thread surely makes: with payloads of 48 KiB, a core makes about 7,500.
const CALLS_PER_THREAD: u32 = 5_000;

impl Config {
    /// How many threads the runtime has. With `runtime.threads = 0` no more than the calls need: each thread beyond
    /// makes every message dearer, since tasks then move between cores and wake each other.
    pub fn worker_threads(&self) -> usize {
        // It knows the CPU limit of a container.
        let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
        match self.runtime.threads {
            0 => threads_for(self.ceilings.account, cores()),
            threads => threads,
        }
    }
}

fn threads_for(account: Option<u32>, cores: usize) -> usize {
    let needed = account.map_or(cores, |calls| calls.div_ceil(CALLS_PER_THREAD) as usize);
    needed.clamp(1, cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_no_more_than_the_ceiling_needs() {
        for (account, cores, threads) in [
            (Some(1_000), 64, 1),
            (Some(5_000), 64, 1),
            (Some(5_001), 64, 2),
            (Some(u32::MAX), 64, 64),
            (Some(1), 1, 1),
            (None, 1, 1),
            (None, 64, 64),
        ] {
            assert_eq!(threads_for(account, cores), threads, "{account:?} on {cores}");
        }
    }
}
