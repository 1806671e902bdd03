//! Requests that were made before: the same `Idempotency-Key` gets the first answer again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::outcome::{Ended, Outcome};
use crate::answer::{Answer, HttpAnswer};
use crate::config;
use crate::spool::{Brief, Claim, State};

/// What is known of a key.
#[derive(Debug)]
enum Slot {
    /// Its first request is being answered.
    UnderWay,
    /// Its first request was answered so, and this is remembered until then.
    Answered(Outcome, Instant),
}

impl Slot {
    fn until(&self) -> Option<Instant> {
        match self {
            Self::UnderWay => None,
            Self::Answered(_, until) => Some(*until),
        }
    }
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
    /// When answered keys may be forgotten, by time. One that was used again is here twice.
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
    /// Knows no key yet.
    pub(super) fn new(config: &config::Idempotency) -> Self {
        Self { keep: config.keep, max: config.max_keys, known: Mutex::default() }
    }

    /// What an earlier process, or another sidecar, knew of these messages' keys.
    pub(super) fn remember(&self, claimed: Vec<Brief>) {
        let (now, wall) = (Instant::now(), Timestamp::now());
        let mut known = self.known();
        for brief in claimed {
            let Some(claim) = brief.claim else { continue };
            // A clock that was ahead: as if it had been kept now.
            let age = Duration::try_from(wall.duration_since(brief.kept_at)).unwrap_or_default();
            let end = now + self.keep.saturating_sub(age);
            // A key that was used again counts from its last use.
            let later = known.slots.get(&claim.key).is_some_and(|(_, slot)| match slot {
                Slot::UnderWay => true,
                Slot::Answered(_, later) => *later > end,
            });
            if end <= now || later {
                continue;
            }
            known.ends.push_back((end, claim.key));
            known.slots.insert(claim.key, (claim, Slot::Answered(first_answer(&brief), end)));
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
            let Some((end, key)) = known.ends.pop_front() else { break };
            // Unless it was used again since.
            if known.slots.get(&key).and_then(|(_, slot)| slot.until()) == Some(end) {
                known.slots.remove(&key);
            }
        }
        if let Some((first, slot)) = known.slots.get(&claim.key) {
            return Err(match slot {
                _ if first.print != claim.print => Outcome::new(0, Ended::OtherRequest),
                Slot::UnderWay => Outcome::new(0, Ended::SameUnderWay),
                Slot::Answered(outcome, _) => Outcome { replayed: true, ..outcome.clone() },
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
        let until = Instant::now() + self.keys.keep;
        let mut known = self.keys.known();
        if let Some((_, slot)) = known.slots.get_mut(&self.claim.key) {
            *slot = Slot::Answered(outcome.clone(), until);
        }
        known.ends.push_back((until, self.claim.key));
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;
    use crate::message::{Lane, MessageId, Topic};

    const KEEP: Duration = Duration::from_mins(10);

    fn brief(key: u128, seconds_ago: i64) -> Brief {
        let topic = Topic::parse("TopicA").unwrap();
        Brief {
            id: MessageId::new(),
            lane: Lane { instance: "x".into(), parent: topic.parent().into() },
            topic,
            kept_at: Timestamp::now() - jiff::SignedDuration::from_secs(seconds_ago),
            attempts: 1,
            claim: Some(Claim { key, print: 0 }),
            trace: None,
            state: State::Queued { calling: false },
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_restart() {
        let config = config::Idempotency { keep: KEEP, max_keys: 3 };
        let keys = Arc::new(Keys::new(&config));
        // Used again, when less was remembered than now, in both orders; of a clock that was ahead;
        // forgotten.
        let (again, first) = (brief(1, 60), brief(1, 300));
        let (early, late) = (brief(2, 300), brief(2, 60));
        let (ahead, gone) = (brief(3, -86_400), brief(4, 601));
        let meant = [&again, &late, &ahead].map(|brief| brief.id);
        keys.remember(vec![again, first, early, late, ahead, gone]);
        let mut ask = |key| match keys.claim(Claim { key, print: 0 }) {
            Err(Outcome { ended: Ended::Kept(id), replayed: true, .. }) => Some(id),
            Err(outcome) => panic!("{outcome:?}"),
            Ok(_) => None,
        };
        tokio::time::advance(Duration::from_secs(500)).await;
        assert_eq!([1, 2, 3].map(&mut ask), meant.map(Some));
        tokio::time::advance(Duration::from_secs(50)).await;
        assert_eq!([1, 2, 3, 4].map(&mut ask), [None, None, Some(meant[2]), None]);
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(ask(3), None);
    }
}
