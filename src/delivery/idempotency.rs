//! Requests that were made before: the same `Idempotency-Key` gets the first answer again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::outcome::{Ended, Outcome};
use crate::answer::{Answer, HttpAnswer};
use crate::config;
use crate::spool::{Brief, Claim, Spool, State};

/// What is known of a key.
#[derive(Debug)]
enum Slot {
    /// Its first request is being answered.
    UnderWay,
    /// Its first request was answered so.
    Answered(Outcome),
}

#[derive(Debug)]
pub(super) struct Keys {
    keep: Duration,
    max: usize,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    slots: HashMap<u128, (Claim, Slot)>,
    /// Answered keys, oldest first.
    ends: VecDeque<(Instant, u128)>,
}

/// The first request of a key. Dropped without an answer that was accepted, the key is free again.
#[derive(Debug)]
pub(super) struct First {
    keys: Arc<Keys>,
    pub(super) claim: Claim,
    answered: bool,
}

impl Keys {
    /// Knows the keys of kept messages from the start.
    pub(super) fn new(config: &config::Idempotency, spool: Option<&Spool>) -> Self {
        let keys = Self { keep: config.keep, max: config.max_keys, known: Mutex::default() };
        let Some(spool) = spool else { return keys };
        keys.know(&spool.list(None, usize::MAX, &mut |brief| brief.claim.is_some()));
        keys
    }

    /// Knows the keys of messages that were kept by somebody else. What it knows itself stands.
    pub(super) fn know(&self, briefs: &[Brief]) {
        let (now, wall) = (Instant::now(), Timestamp::now());
        let mut known = self.known();
        for brief in briefs {
            let Some(claim) = brief.claim else { continue };
            let age = wall.duration_since(brief.kept_at).unsigned_abs();
            let left = self.keep.saturating_sub(age);
            if left.is_zero() || known.slots.contains_key(&claim.key) {
                continue;
            }
            known.ends.push_back((now + left, claim.key));
            known.slots.insert(claim.key, (claim, Slot::Answered(first_answer(brief))));
        }
        known.ends.make_contiguous().sort_unstable();
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first request of a key goes on; any other has its answer.
    pub(super) fn claim(self: &Arc<Self>, claim: Claim) -> Result<First, Outcome> {
        let mut known = self.known();
        let now = Instant::now();
        while known.ends.front().is_some_and(|(end, _)| *end <= now) {
            if let Some((_, key)) = known.ends.pop_front() {
                known.slots.remove(&key);
            }
        }
        if let Some((first, slot)) = known.slots.get(&claim.key) {
            return Err(match slot {
                _ if first.print != claim.print => Outcome::new(0, Ended::OtherRequest),
                Slot::UnderWay => Outcome::new(0, Ended::SameUnderWay),
                Slot::Answered(outcome) => Outcome { replayed: true, ..outcome.clone() },
            });
        }
        if known.slots.len() >= self.max {
            return Err(Outcome::new(0, Ended::TooManyKeys));
        }
        known.slots.insert(claim.key, (claim, Slot::UnderWay));
        Ok(First { keys: Arc::clone(self), claim, answered: false })
    }
}

impl First {
    /// The request was answered so. Only what was accepted is remembered: anything else may be
    /// asked for again.
    pub(super) fn answered(mut self, outcome: &Outcome) {
        if !outcome.is_accepted() {
            return;
        }
        let mut known = self.keys.known();
        if let Some((_, slot)) = known.slots.get_mut(&self.claim.key) {
            *slot = Slot::Answered(outcome.clone());
        }
        known.ends.push_back((Instant::now() + self.keys.keep, self.claim.key));
        drop(known);
        self.answered = true;
    }
}

impl Drop for First {
    fn drop(&mut self) {
        if !self.answered {
            self.keys.known().slots.remove(&self.claim.key);
        }
    }
}

/// What the first request of a kept message was told, or would have been.
fn first_answer(brief: &Brief) -> Outcome {
    match &brief.state {
        State::Delivered(receipt) if !receipt.accepted => {
            let answer = HttpAnswer {
                status: 200,
                msg_id: Some(receipt.msg_id.clone()),
                request_id: Some(receipt.request_id.clone()),
                ..HttpAnswer::default()
            };
            Outcome::new(brief.attempts, Ended::Answered(Answer::Http(answer)))
        }
        _ => Outcome::new(brief.attempts, Ended::Kept(brief.id)),
    }
}
