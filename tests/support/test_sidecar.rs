//! The provider as a rule, with a clock that tests pause, and a sidecar without doors before it.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};
use tollgate::answer::{Answer, HttpAnswer, TransportError};
use tollgate::ceiling::{Ceiling, Permit, Start};
use tollgate::config::{Config, Lifetime};
use tollgate::delivery::{Delivery, Disposition, Keeping, Outcome, PublishOptions};
use tollgate::message::{Message, MessageId, Payload, PayloadEncoding, Terms, Topic};
use tollgate::meter::{CallKind, Meter};
use tollgate::spool::{AdoptionRules, Options, Spool};
use tollgate::traces::Traces;
use tollgate::upstream::{SendGate, Upstream};

pub const LATENCY: Duration = Duration::from_millis(5);
const SLOW: Duration = Duration::from_secs(3);

/// What the provider does with a call at this time.
pub type Rule = dyn Fn(Duration, &Message, u64) -> Answer + Send + Sync;

/// The provider, with a clock that tests pause.
#[derive(Clone)]
pub struct Provider {
    pub started: Instant,
    latency: Duration,
    rule: Arc<Rule>,
    /// When each call arrived, what it carried, and whether it was taken.
    calls: Arc<Mutex<Vec<(Duration, Bytes, bool)>>>,
}

impl Provider {
    pub fn new(rule: impl Fn(Duration, &Message, u64) -> Answer + Send + Sync + 'static) -> Self {
        let (started, latency) = (Instant::now(), LATENCY);
        Self { started, latency, rule: Arc::new(rule), calls: Arc::default() }
    }

    /// The same, but every answer takes three seconds.
    pub fn slow(self) -> Self {
        Self { latency: SLOW, ..self }
    }

    pub fn calls(&self) -> Vec<(Duration, Bytes, bool)> {
        self.calls.lock().unwrap().clone()
    }

    pub fn taken(&self) -> Vec<(Duration, Bytes)> {
        let calls = self.calls().into_iter();
        calls.filter(|(_, _, taken)| *taken).map(|(at, body, _)| (at, body)).collect()
    }

    pub fn worst_second(&self) -> usize {
        let times: Vec<_> = self.calls().iter().map(|(at, ..)| *at).collect();
        let within = |from: usize| {
            times[from..]
                .iter()
                .take_while(|at| **at < times[from] + Duration::from_secs(1))
                .count()
        };
        (0..times.len()).map(within).max().unwrap_or(0)
    }
}

impl Upstream for Provider {
    async fn send(&self, message: &Message, permit: Permit, gate: &SendGate) -> Answer {
        if !gate.leave() {
            permit.unsent();
            return Answer::TransportError(TransportError::TooLate);
        }
        let at = self.started.elapsed();
        let body = Bytes::copy_from_slice(message.payload.as_bytes());
        let (place, answer) = {
            let mut calls = self.calls.lock().unwrap();
            let answer = (self.rule)(at, message, calls.len() as u64);
            let taken = answer == ok() || answer == Answer::TransportError(TransportError::Closed);
            calls.push((at, body, taken));
            (calls.len(), answer)
        };
        assert!(place > 0);
        let hangs = answer == Answer::TransportError(TransportError::Timeout);
        sleep(if hangs { SLOW } else { self.latency }).await;
        match &answer {
            Answer::Http(http) if http.retry_after.is_some() => permit.throttled(),
            Answer::Http(http) if http.code.as_deref() == Some("SystemOverFlow") => {
                permit.throttled();
            }
            _ => permit.answered(),
        }
        answer
    }

    async fn renew_key(&self) -> bool {
        false
    }
}

pub fn ok() -> Answer {
    let (msg_id, request_id) = (Some("MSG".into()), Some("REQ".into()));
    Answer::Http(HttpAnswer { status: 200, msg_id, request_id, ..HttpAnswer::default() })
}

pub fn error(status: u16, code: &str) -> Answer {
    Answer::Http(HttpAnswer { status, code: Some(code.into()), ..HttpAnswer::default() })
}

/// A sidecar without doors.
pub struct TestSidecar {
    pub delivery: Delivery<Provider>,
    pub spool: Spool,
    pub meter: Meter,
}

impl TestSidecar {
    pub async fn new(folder: &Path, provider: &Provider, flags: &[(&str, &str)]) -> Self {
        let config = config(flags);
        let options = Options {
            lifetime: Lifetime::Volume,
            path: folder.to_owned(),
            max_bytes: 64 << 20,
            max_messages: 100_000,
            max_in_memory: usize::MAX,
            keep_receipts: Duration::from_mins(10),
            keep_claims: Duration::from_mins(10),
            caller_shares: Arc::default(),
            mac: None,
            adopts: AdoptionRules::default(),
        };
        let spool = Spool::open(options).await.unwrap();
        let ceiling = Ceiling::start(&config.ceilings, 1, 10_000, Start::Alone);
        let meter = Meter::new(5, &config.billing, [super::INSTANCE.into()]);
        let (provider, kept, counts) = (provider.clone(), Some(spool.clone()), meter.clone());
        let delivery = Delivery::new(&config, provider, kept, ceiling, counts, Traces::off(), 7);
        Self { delivery, spool, meter }
    }

    /// One that keeps nothing.
    pub fn without_spool(provider: &Provider) -> Delivery<Provider> {
        let config = config(&[]);
        let ceiling = Ceiling::start(&config.ceilings, 1, 10_000, Start::Alone);
        let meter = Meter::new(5, &config.billing, [super::INSTANCE.into()]);
        Delivery::new(&config, provider.clone(), None, ceiling, meter, Traces::off(), 7)
    }

    pub async fn publish(&self, body: impl Into<Bytes>, wanted: PublishOptions) -> Outcome {
        self.delivery.publish(message("TopicA", body.into()), wanted).await
    }

    /// Waits until nothing is to be delivered any more.
    pub async fn empty(&self) {
        while self.spool.usage().queued.messages > 0 {
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Calls that were a message's first, and all.
    pub fn first_calls(&self) -> (u64, u64) {
        let calls = self.meter.snapshot().calls;
        let first = calls.iter().filter(|((kind, _), _)| *kind == CallKind::First);
        (first.map(|(_, n)| n).sum(), calls.values().sum())
    }

    pub fn uncertain(&self) -> u64 {
        let messages = self.meter.snapshot().messages;
        messages[super::INSTANCE].values().map(|messages| messages.uncertain).sum()
    }
}

pub fn config(flags: &[(&str, &str)]) -> Config {
    let base = [("ceilings.account", "1000"), ("spool.store", "disk")];
    let flags: Vec<_> = base
        .into_iter()
        .filter(|(key, _)| flags.iter().all(|(other, _)| other != key))
        .chain(flags.iter().copied())
        .collect();
    super::config("http://127.0.0.1:1", &flags)
}

pub fn message(topic: &str, body: Bytes) -> Message {
    Message {
        id: MessageId::new(),
        instance: super::INSTANCE.into(),
        topic: Topic::parse(topic).unwrap(),
        payload: Payload::new(body, PayloadEncoding::Base64, 1 << 20).unwrap(),
        caller: None,
        trace: None,
        terms: Terms::default(),
    }
}

/// Kept first, and answered at once.
pub const ASYNC: PublishOptions =
    PublishOptions { patience: Duration::ZERO, keep: Keeping::Preferred, claim: None };
/// Waits.
pub const WAIT: PublishOptions =
    PublishOptions { patience: Duration::from_secs(5), keep: Keeping::IfNotDelivered, claim: None };

pub fn is_kept(outcome: &Outcome) -> bool {
    matches!(outcome.ended, Disposition::Kept(_))
}

pub fn once_each(taken: &[(Duration, Bytes)], wanted: usize) {
    let mut bodies = BTreeMap::new();
    for (_, body) in taken {
        *bodies.entry(body.clone()).or_insert(0) += 1;
    }
    assert_eq!(bodies.len(), wanted, "none is lost");
    assert!(bodies.values().all(|times| *times == 1), "none is delivered twice");
}
