//! What all connections share, behind one lock that is never held for long.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::faults::{Fault, Faults};
use super::key_ring::KeyRing;
use super::ledger::AcceptedLedger;
use super::mqtt::Broker;
use super::options::EmulatorOptions;
use super::report::{Accepted, Report};
use super::traffic::{Arrival, Traffic, TrafficCeilings};
use super::window::TrafficWindow;

pub(super) struct EmulatorInner {
    pub(super) options: EmulatorOptions,
    pub(super) keys: KeyRing,
    pub(super) broker: Option<Broker>,
    ceilings: TrafficCeilings,
    started: Instant,
    hasher: RandomState,
    books: Mutex<Books>,
}

/// Everything that a reset forgets.
pub(super) struct Books {
    pub(super) traffic: Traffic,
    pub(super) ledger: AcceptedLedger,
    pub(super) faults: Faults,
    pub(super) issued: u64,
    /// Calls of operations beside `SendMessage`, by their names.
    pub(super) operations: BTreeMap<&'static str, TrafficWindow>,
    /// Tokens of the metadata service, and when they end.
    pub(super) metadata_tokens: Vec<(String, u64)>,
}

impl EmulatorInner {
    pub(super) fn new(options: EmulatorOptions, broker: Option<Broker>) -> Self {
        let hasher = RandomState::new();
        let mut books = Books::new(&options, hasher.clone());
        books.faults.set(options.faults.clone(), 0);
        let ceilings = TrafficCeilings {
            account: usize::try_from(options.account_qps).unwrap_or(usize::MAX),
            egress_ip: usize::try_from(options.egress_ip_qps).unwrap_or(usize::MAX),
            block_for: options.block_for,
        };
        let keys = KeyRing::new(options.keys.clone());
        let (started, books) = (Instant::now(), Mutex::new(books));
        Self { options, keys, broker, ceilings, started, hasher, books }
    }

    /// A panic elsewhere does not spoil the books: each change to them is whole.
    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds since the start.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The provider's time.
    pub(super) fn wall(&self) -> Timestamp {
        let now = Timestamp::now();
        now.saturating_add(SignedDuration::from_secs(self.options.clock_offset)).unwrap_or(now)
    }

    pub(super) fn hash(&self, instance: &str, topic: &str, payload: &str) -> u64 {
        self.hasher.hash_one((instance, topic, payload))
    }

    /// Counts a call the moment its head has been read.
    pub(super) fn arrive(&self, source: IpAddr) -> Arrival {
        let second = self.wall().as_second();
        let mut books = self.books();
        // read inside the lock, so that arrivals are in order
        let arrival = books.traffic.arrive(source, self.now(), second, self.ceilings);
        match arrival {
            Arrival::Blocked => books.ledger.refuse("blocked"),
            Arrival::OverAccount(_) | Arrival::Passed => {}
        }
        arrival
    }

    pub(super) fn set_faults(&self, faults: Vec<Fault>) {
        let now = self.now();
        self.books().faults.set(faults, now);
    }

    pub(super) fn lift_blocks(&self) {
        self.books().traffic.lift_blocks();
    }

    /// Forgets all: counts, messages, nonces, blocks, faults.
    pub(super) fn reset(&self) {
        let fresh = Books::new(&self.options, self.hasher.clone());
        let former = std::mem::replace(&mut *self.books(), fresh);
        // a million messages take a while to free: not under the lock
        drop(former);
        if let Some(broker) = &self.broker {
            broker.reset();
        }
    }

    pub(super) fn messages(&self) -> Vec<Arc<Accepted>> {
        self.books().ledger.messages()
    }

    pub(super) fn report(&self) -> Report {
        let now = self.now();
        let books = self.books();
        let worst = books.traffic.worst_second();
        Report {
            calls: books.traffic.calls(),
            accepted: books.ledger.accepted,
            duplicates: books.ledger.duplicates,
            refused: books.ledger.refused.clone(),
            worst_second: worst.all,
            worst_second_by_source: worst.by_source,
            worst_second_by_operation: books
                .operations
                .iter()
                .map(|(name, window)| (*name, window.worst()))
                .collect(),
            by_second: books.traffic.seconds(),
            blocked: books.traffic.blocked(now),
            keys: books.ledger.keys.clone(),
            issued: books.issued,
            forgotten: books.ledger.forgotten,
            mqtt: self.broker.as_ref().map(Broker::report),
        }
    }
}

impl Books {
    fn new(options: &EmulatorOptions, hasher: RandomState) -> Self {
        Self {
            traffic: Traffic::default(),
            ledger: AcceptedLedger::new(hasher, options.keep_messages, options.keep_bytes),
            faults: Faults::new(options.seed),
            issued: 0,
            operations: BTreeMap::new(),
            metadata_tokens: Vec::new(),
        }
    }
}
