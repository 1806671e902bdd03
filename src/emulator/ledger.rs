//! What became of calls: accepted messages, refusals by code, nonces and keys seen.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;

use super::report::Accepted;

/// A nonce may come again after 15 minutes.
const NONCE_LIFE: u64 = 15 * 60 * 1_000_000_000;
/// At more calls than this in 15 minutes the oldest nonces are forgotten early.
const MOST_NONCES: usize = 2_000_000;
/// Codes counted by name; faults may invent any number of them.
const MOST_CODES: usize = 1000;

/// Things seen before, as hashes: two of them are taken for one in a few times 10^13 calls.
#[derive(Debug, Default)]
struct Seen {
    hashes: HashSet<u64>,
    /// Nanoseconds of arrival, oldest first.
    order: VecDeque<(u64, u64)>,
}

impl Seen {
    /// Whether this is the first time.
    fn insert(&mut self, hash: u64, now: u64, most: usize) -> bool {
        if !self.hashes.insert(hash) {
            return false;
        }
        self.order.push_back((now, hash));
        if self.order.len() > most {
            self.forget_oldest();
        }
        true
    }

    fn forget_before(&mut self, time: u64) {
        while self.order.front().is_some_and(|&(seen, _)| seen < time) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, hash)) = self.order.pop_front() {
            self.hashes.remove(&hash);
        }
    }
}

/// The books of a run.
#[derive(Debug)]
pub(super) struct AcceptedLedger {
    hasher: RandomState,
    nonces: Seen,
    contents: Seen,
    messages: VecDeque<Arc<Accepted>>,
    message_bytes: usize,
    keep_messages: usize,
    keep_bytes: usize,
    pub(super) accepted: u64,
    pub(super) duplicates: u64,
    pub(super) forgotten: u64,
    pub(super) refused: BTreeMap<String, u64>,
    pub(super) keys: BTreeMap<String, u64>,
}

impl AcceptedLedger {
    /// `hasher` is shared with those who hash outside the lock.
    pub(super) fn new(hasher: RandomState, keep_messages: usize, keep_bytes: usize) -> Self {
        Self {
            hasher,
            nonces: Seen::default(),
            contents: Seen::default(),
            messages: VecDeque::new(),
            message_bytes: 0,
            keep_messages,
            keep_bytes,
            accepted: 0,
            duplicates: 0,
            forgotten: 0,
            refused: BTreeMap::new(),
            keys: BTreeMap::new(),
        }
    }

    /// Whether a key used this nonce for the first time in 15 minutes.
    pub(super) fn first_use(&mut self, key_id: &str, nonce: &str, now: u64) -> bool {
        self.nonces.forget_before(now.saturating_sub(NONCE_LIFE));
        let hash = self.hasher.hash_one((key_id, nonce));
        self.nonces.insert(hash, now, MOST_NONCES)
    }

    pub(super) fn signed(&mut self, key_id: &str) {
        count(&mut self.keys, key_id);
    }

    pub(super) fn refuse(&mut self, code: &str) {
        let known = self.refused.len() < MOST_CODES || self.refused.contains_key(code);
        count(&mut self.refused, if known { code } else { "other" });
    }

    /// `content` is the hash of instance, topic and payload.
    pub(super) fn accept(&mut self, message: Arc<Accepted>, content: u64, now: u64) {
        self.accepted += 1;
        if !self.contents.insert(content, now, self.keep_messages.max(1)) {
            self.duplicates += 1;
        }
        self.message_bytes += message.payload.len();
        self.messages.push_back(message);
        while self.messages.len() > self.keep_messages || self.message_bytes > self.keep_bytes {
            let Some(oldest) = self.messages.pop_front() else { break };
            self.message_bytes -= oldest.payload.len();
            self.forgotten += 1;
        }
    }

    pub(super) fn messages(&self) -> Vec<Arc<Accepted>> {
        self.messages.iter().cloned().collect()
    }
}

fn count(counts: &mut BTreeMap<String, u64>, name: &str) {
    match counts.get_mut(name) {
        Some(count) => *count += 1,
        None => {
            counts.insert(name.to_owned(), 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn ledger(keep_messages: usize, keep_bytes: usize) -> AcceptedLedger {
        AcceptedLedger::new(RandomState::new(), keep_messages, keep_bytes)
    }

    fn message(payload: &str) -> Arc<Accepted> {
        Arc::new(Accepted {
            time: jiff::Timestamp::UNIX_EPOCH,
            source: IpAddr::V4(Ipv4Addr::LOCALHOST),
            instance: String::new(),
            topic: String::new(),
            payload: payload.to_owned(),
            msg_id: String::new(),
        })
    }

    #[test]
    fn a_nonce_comes_again_after_fifteen_minutes() {
        let mut ledger = ledger(1, 1);
        let fifteen_minutes = 900_000_000_000;
        assert!(ledger.first_use("id", "n", 5));
        assert!(!ledger.first_use("id", "n", 6));
        assert!(ledger.first_use("other", "n", 6), "each key has its own");
        assert!(!ledger.first_use("id", "n", 5 + fifteen_minutes));
        assert!(ledger.first_use("id", "n", 6 + fifteen_minutes));
    }

    #[test]
    fn keeps_the_latest_messages_within_both_bounds() {
        let mut by_count = ledger(2, 1000);
        let mut by_bytes = ledger(1000, 2);
        for (content, payload) in ["a", "b", "c"].into_iter().enumerate() {
            by_count.accept(message(payload), content as u64, 0);
            by_bytes.accept(message(payload), content as u64, 0);
        }
        for ledger in [by_count, by_bytes] {
            let kept: Vec<_> = ledger.messages().iter().map(|m| m.payload.clone()).collect();
            assert_eq!(kept, ["b", "c"]);
            assert_eq!((ledger.accepted, ledger.forgotten, ledger.duplicates), (3, 1, 0));
        }
    }

    #[test]
    fn counts_duplicates() {
        let mut ledger = ledger(10, 1000);
        for content in [1, 2, 1, 1] {
            ledger.accept(message("x"), content, 0);
        }
        assert_eq!(ledger.duplicates, 2);
    }

    #[test]
    fn invented_codes_are_bounded() {
        let mut ledger = ledger(1, 1);
        for code in 0..5000 {
            ledger.refuse(&code.to_string());
        }
        assert_eq!(ledger.refused.len(), MOST_CODES + 1);
        assert_eq!(ledger.refused["other"], 4000);
    }
}
