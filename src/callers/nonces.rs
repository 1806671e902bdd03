//! Nonces of signed calls, so that each call is taken once.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use jiff::Timestamp;

use crate::verification::{Refusal, WINDOW};

/// The nonces of one access key, by the second in which the caller has signed: a call that is sent again has the
/// same time. Where they are too many, the oldest are forgotten, and calls as old as those refused.
#[derive(Debug)]
pub(super) struct Nonces {
    hasher: RandomState,
    seconds: BTreeMap<i64, HashSet<u64>>,
    count: usize,
    max: usize,
    /// Calls that were signed in this second or before are refused.
    refused_until: i64,
}

impl Nonces {
    /// At most `max`; `start`: when this process began.
    pub(super) fn new(max: usize, start: Timestamp) -> Self {
        Self {
            hasher: RandomState::new(),
            seconds: BTreeMap::new(),
            count: 0,
            max: max.max(1),
            // What was signed before this process began may have been taken by the one before it.
            refused_until: start.as_second().saturating_sub(1),
        }
    }

    /// Takes the nonce of a call that was signed at `time`.
    ///
    /// # Errors
    /// A call had it before, or may have had it.
    pub(super) fn take(
        &mut self,
        nonce: &str,
        time: Timestamp,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let second = time.as_second();
        self.forget_until(now.as_second() - WINDOW.as_secs() - 1);
        if second <= self.refused_until {
            return Err(Refusal::new("InvalidTimeStamp.Expired"));
        }
        // Two of the same number are as rare as two of 64 random bits, and then one call is refused.
        let nonce = self.hasher.hash_one(nonce);
        if !self.seconds.entry(second).or_default().insert(nonce) {
            return Err(Refusal::new("SignatureNonceUsed"));
        }
        self.count += 1;
        while self.count > self.max
            && let Some((&oldest, _)) = self.seconds.first_key_value()
        {
            self.forget_until(oldest);
        }
        Ok(())
    }

    fn forget_until(&mut self, second: i64) {
        while let Some(entry) = self.seconds.first_entry().filter(|entry| *entry.key() <= second) {
            self.count -= entry.remove().len();
        }
        self.refused_until = self.refused_until.max(second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn code(taken: Result<(), Refusal>) -> String {
        taken.err().map(|refusal| refusal.code.into_owned()).unwrap_or_default()
    }

    #[test]
    fn a_call_is_taken_once() {
        let mut nonces = Nonces::new(100, at(0));
        let mut take = |nonce: &str, time, now| code(nonces.take(nonce, at(time), at(now)));
        assert_eq!(take("a", 10, 11), "");
        assert_eq!(take("a", 10, 12), "SignatureNonceUsed");
        assert_eq!(take("a", 9, 12), "", "another call");
        assert_eq!(take("b", -1, 0), "InvalidTimeStamp.Expired", "the process before may have it");
        assert_eq!(take("b", 0, 0), "");
        // The caller's clock is ahead.
        assert_eq!(take("c", 900, 12), "");
        assert_eq!(take("c", 900, 1_799), "SignatureNonceUsed");
        assert_eq!(take("a", 10, 911), "InvalidTimeStamp.Expired");
    }

    #[test]
    fn what_is_forgotten_is_not_taken_again() {
        let mut nonces = Nonces::new(100, at(0));
        let calls: Vec<_> = (0..5_000).map(|n| (format!("n{n}"), n / 40)).collect();
        let mut taken = HashSet::new();
        for (nonce, second) in &calls {
            assert_eq!(code(nonces.take(nonce, at(*second), at(*second))), "");
            taken.insert(nonce);
            assert!(nonces.count <= 100);
        }
        for (nonce, second) in &calls {
            assert_ne!(code(nonces.take(nonce, at(*second), at(124))), "", "{nonce}");
        }
        assert_eq!(taken.len(), calls.len());
    }

    #[test]
    fn one_second_with_more_than_there_may_be() {
        let mut nonces = Nonces::new(10, at(0));
        let mut taken = 0;
        for n in 0..1_000 {
            taken += usize::from(nonces.take(&n.to_string(), at(1), at(1)).is_ok());
        }
        // Not one is taken twice, and the caller's next second is taken.
        assert_eq!(taken, 11);
        assert_eq!(code(nonces.take("x", at(2), at(2))), "");
    }
}
