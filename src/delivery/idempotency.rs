//! Repeated requests: one with the same `Idempotency-Key` gets the outcome of the first.
//!
//! A key is taken as long as its message is queued, and for `idempotency.keep` after its end: after it
//! was delivered, dropped or became a dead letter. At `idempotency.max_keys`, new keys are refused; none is
//! forgotten for them.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::outcome::{Disposition, Outcome};
use crate::config;
use crate::message::MessageId;
use crate::spool::{Brief, Claim, Spool, State};

/// The most keys that are looked at for the next one that is free.
const LOOKED_AT: usize = 100;

/// Where the first request of a key stands.
#[derive(Debug)]
enum KeyState {
    /// It is under way. If its answer does not hold the key, this kept message does.
    UnderWay(Option<(Claim, KeyOutcome)>),
    /// It was answered.
    Answered(KeyOutcome),
}

/// What became of a key's first request, as far as is known.
#[derive(Debug)]
struct KeyOutcome {
    /// The answer, unless the spool has a newer one.
    outcome: Outcome,
    /// Its message has ended.
    ended: bool,
    /// When the key is free, if its message has ended; else when the spool is asked again.
    until: Instant,
}

impl KeyOutcome {
    /// Whether this message holds the key rather than the `other` one: one that is queued, else the
    /// last.
    fn is_better_than(&self, other: &Self) -> bool {
        match (self.ended, other.ended) {
            (false, false) => self.outcome.id() > other.outcome.id(),
            (true, true) => self.until > other.until,
            (ended, _) => !ended,
        }
    }
}

/// Which key a message takes that has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// The one it holds.
    Own,
    /// Also one that is free, or that a message holds which has less right to it.
    Any,
}

/// How many keys are reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyUsage {
    /// Keys that are reserved.
    pub reserved: usize,
    /// The most that may be.
    pub max: usize,
}

#[derive(Debug)]
pub(super) struct IdempotencyKeys {
    keep: Duration,
    max: usize,
    spool: Option<Spool>,
    slots: Mutex<KeyTable>,
}

#[derive(Debug, Default)]
struct KeyTable {
    by_key: HashMap<u128, (Claim, KeyState)>,
    /// Answered keys, by [`KeyOutcome::until`].
    due: BTreeSet<(Instant, u128)>,
}

/// The first request of a key. Dropped without an answer that holds the key, it frees the key.
#[derive(Debug)]
pub(super) struct FirstRequest {
    keys: Arc<IdempotencyKeys>,
    pub(super) claim: Claim,
    answered: bool,
}

impl KeyTable {
    fn set(&mut self, claim: Claim, known: KeyOutcome) {
        self.due.insert((known.until, claim.key));
        let before = self.by_key.insert(claim.key, (claim, KeyState::Answered(known)));
        if let Some((_, KeyState::Answered(before))) = before
            && self.until(claim.key) != Some(before.until)
        {
            self.due.remove(&(before.until, claim.key));
        }
    }

    /// The kept message that holds a key whose first request does not.
    fn take_then(&mut self, key: u128) -> Option<(Claim, KeyOutcome)> {
        match self.by_key.get_mut(&key) {
            Some((_, KeyState::UnderWay(then))) => then.take(),
            _ => None,
        }
    }

    fn answered(&self, key: u128) -> Option<&KeyOutcome> {
        match self.by_key.get(&key) {
            Some((_, KeyState::Answered(known))) => Some(known),
            _ => None,
        }
    }

    fn until(&self, key: u128) -> Option<Instant> {
        self.answered(key).map(|known| known.until)
    }

    /// When a key may be free; `keep` after now, if those that are due next belong to queued messages.
    fn next_free(&self, keep: Duration) -> Duration {
        let ended = |key| self.answered(key).is_some_and(|known| known.ended);
        let free = self.due.iter().take(LOOKED_AT).find(|(_, key)| ended(*key));
        free.map_or(keep, |(until, _)| until.saturating_duration_since(Instant::now()))
    }

    /// Frees keys whose messages ended `keep` ago. `find` knows what is kept.
    fn expire(&mut self, now: Instant, keep: Duration, find: &dyn Fn(MessageId) -> Option<Brief>) {
        while let Some((until, key)) = self.due.first().copied()
            && until <= now
        {
            self.due.remove(&(until, key));
            let Some((_, KeyState::Answered(known))) = self.by_key.get_mut(&key) else { continue };
            if known.ended {
                self.by_key.remove(&key);
                continue;
            }
            let brief = known.outcome.id().and_then(find);
            // Its end may not have been reported here, as when another sidecar has taken it over.
            known.ended = !brief.as_ref().is_some_and(is_queued);
            if let Some(brief) = brief {
                known.outcome = Outcome::of(&brief);
            }
            known.until = now + keep;
            self.due.insert((known.until, key));
        }
    }
}

pub(super) fn is_queued(brief: &Brief) -> bool {
    matches!(brief.state, State::Queued { .. })
}

impl IdempotencyKeys {
    /// Knows no key yet.
    pub(super) fn new(config: &config::Idempotency, spool: Option<&Spool>) -> Self {
        let (keep, max, slots) = (config.keep, config.max_keys, Mutex::default());
        Self { keep, max, spool: spool.cloned(), slots }
    }

    fn slots(&self) -> MutexGuard<'_, KeyTable> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keys that are reserved.
    pub(super) fn usage(&self) -> KeyUsage {
        KeyUsage { reserved: self.slots().by_key.len(), max: self.max }
    }

    fn find(&self, id: MessageId) -> Option<Brief> {
        self.spool.as_ref()?.find(id)
    }

    /// What an earlier process, or another sidecar, knew of these messages' keys.
    pub(super) fn remember(&self, claimed: Vec<Brief>) {
        let (now, wall) = (Instant::now(), Timestamp::now());
        let mut slots = self.slots();
        for brief in claimed {
            let Some(claim) = brief.claim else { continue };
            let ended_at = brief.state.ended_at();
            let keep = ended_at.map_or(self.keep, |at| {
                // A clock that was ahead: as if it had ended now.
                let age = Duration::try_from(wall.duration_since(at)).unwrap_or_default();
                self.keep.saturating_sub(age)
            });
            let outcome = Outcome::of(&brief);
            let known = KeyOutcome { outcome, ended: ended_at.is_some(), until: now + keep };
            if keep.is_zero() {
                continue;
            }
            match slots.by_key.get_mut(&claim.key) {
                None => slots.set(claim, known),
                Some((_, KeyState::UnderWay(then))) => {
                    if then.as_ref().is_none_or(|(_, other)| known.is_better_than(other)) {
                        *then = Some((claim, known));
                    }
                }
                // A key that was used again.
                Some((_, KeyState::Answered(other))) => {
                    if known.is_better_than(other) {
                        slots.set(claim, known);
                    }
                }
            }
        }
    }

    /// What became of the message of a key that was answered before. Its key is taken for as long
    /// as ended messages' are.
    pub(super) fn ended(&self, brief: &Brief) {
        self.changed(brief, Takes::Own);
    }

    /// A dead letter is to be delivered after all. It takes its key again, unless a newer queued
    /// message has it by now.
    pub(super) fn replayed(&self, brief: &Brief) {
        self.changed(brief, Takes::Any);
    }

    fn changed(&self, brief: &Brief, takes: Takes) {
        let Some(claim) = brief.claim else { return };
        let until = Instant::now() + self.keep;
        let known = KeyOutcome { outcome: Outcome::of(brief), ended: !is_queued(brief), until };
        let replaces = |other: &KeyOutcome| {
            other.outcome.id() == Some(brief.id)
                || takes == Takes::Any && known.is_better_than(other)
        };
        let mut slots = self.slots();
        match slots.by_key.get_mut(&claim.key) {
            // Its caller is answered soon, and the key is settled then.
            Some((_, KeyState::UnderWay(then))) => {
                if then.as_ref().map_or(takes == Takes::Any, |(_, other)| replaces(other)) {
                    *then = Some((claim, known));
                }
            }
            Some((_, KeyState::Answered(other))) if !replaces(other) => {}
            None if takes == Takes::Own => {}
            Some((_, KeyState::Answered(_))) | None => slots.set(claim, known),
        }
    }

    /// The first request of a key goes on; any other has its answer.
    pub(super) fn claim(self: &Arc<Self>, claim: Claim) -> Result<FirstRequest, Outcome> {
        let mut slots = self.slots();
        slots.expire(Instant::now(), self.keep, &|id| self.find(id));
        if let Some((first, slot)) = slots.by_key.get(&claim.key) {
            return Err(match slot {
                _ if first.print != claim.print => Outcome::new(0, Disposition::OtherRequest),
                KeyState::UnderWay(_) => Outcome::new(0, Disposition::SameUnderWay),
                KeyState::Answered(known) => {
                    let now = known.outcome.id().and_then(|id| self.find(id));
                    let outcome = now.map_or_else(|| known.outcome.clone(), |b| Outcome::of(&b));
                    Outcome { replayed: true, ..outcome }
                }
            });
        }
        if slots.by_key.len() >= self.max {
            return Err(Outcome::new(0, Disposition::TooManyKeys(slots.next_free(self.keep))));
        }
        slots.by_key.insert(claim.key, (claim, KeyState::UnderWay(None)));
        Ok(FirstRequest { keys: Arc::clone(self), claim, answered: false })
    }
}

impl FirstRequest {
    /// The request was answered so. Only an answer that holds the key is remembered: anything else
    /// may be asked for again.
    pub(super) fn answered(mut self, outcome: &Outcome) {
        if !outcome.holds_key() {
            return;
        }
        self.answered = true;
        let keys = &self.keys;
        let mut slots = keys.slots();
        // Looked for under the lock: an end that comes later finds the key answered.
        let is_queued = |id| keys.find(id).as_ref().is_some_and(is_queued);
        let ended = !outcome.id().is_some_and(is_queued);
        let until = Instant::now() + keys.keep;
        let known = KeyOutcome { outcome: outcome.clone(), ended, until };
        match slots.take_then(self.claim.key) {
            Some((claim, then)) if then.is_better_than(&known) => slots.set(claim, then),
            _ => slots.set(self.claim, known),
        }
    }
}

impl Drop for FirstRequest {
    fn drop(&mut self) {
        if !self.answered {
            let mut slots = self.keys.slots();
            match slots.take_then(self.claim.key) {
                Some((claim, then)) => slots.set(claim, then),
                None => drop(slots.by_key.remove(&self.claim.key)),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]
mod tests {
    use super::*;
    use crate::message::{Lane, Topic};
    use crate::spool::{Death, Reason, Receipt};

    const KEEP: Duration = Duration::from_mins(10);
    /// A second less.
    const NEARLY: Duration = Duration::from_secs(599);

    fn ago(seconds: i64) -> Timestamp {
        Timestamp::now() - jiff::SignedDuration::from_secs(seconds)
    }

    /// A message that was kept long ago.
    fn brief(key: u128, state: State) -> Brief {
        let topic = Topic::parse("TopicA").unwrap();
        Brief {
            id: MessageId::new(),
            lane: Lane { instance: "x".into(), parent: topic.parent().into() },
            topic,
            caller: None,
            kept_at: ago(86_400),
            attempts: 1,
            unknown: 0,
            doubt: false,
            claim: Some(Claim { key, print: 0 }),
            trace: None,
            expiry: None,
            urgency: crate::message::Urgency::default(),
            state,
        }
    }

    fn delivered(key: u128, seconds_ago: i64) -> Brief {
        let (msg_id, request_id, at) = ("M".into(), "R".into(), ago(seconds_ago));
        brief(key, State::Delivered(Receipt { msg_id, request_id, at, accepted: true }))
    }

    fn dead(key: u128, seconds_ago: i64) -> Brief {
        let (reason, at) = (Reason::Expired, ago(seconds_ago));
        brief(key, State::Dead(Death { reason, code: None, request_id: None, at, accepted: true }))
    }

    fn keys(max_keys: usize) -> Arc<IdempotencyKeys> {
        Arc::new(IdempotencyKeys::new(&config::Idempotency { keep: KEEP, max_keys }, None))
    }

    fn ask(keys: &Arc<IdempotencyKeys>, key: u128) -> Option<MessageId> {
        match keys.claim(Claim { key, print: 0 }) {
            Err(outcome) if outcome.replayed => outcome.id(),
            Err(outcome) => panic!("{outcome:?}"),
            Ok(_) => None,
        }
    }

    /// A key counts from its message's end, whenever the message was kept.
    #[tokio::test(start_paused = true)]
    async fn after_a_restart() {
        let keys = keys(3);
        // Used again, when less was remembered than now, in both orders; of a clock that was ahead;
        // free.
        let (again, first) = (delivered(1, 60), delivered(1, 300));
        let (early, late) = (dead(2, 300), brief(2, State::Dropped(ago(60))));
        let (ahead, gone) = (delivered(3, -86_400), delivered(4, 601));
        let meant = [&again, &late, &ahead].map(|brief| brief.id);
        keys.remember(vec![again, first, early, late, ahead, gone]);
        tokio::time::advance(Duration::from_secs(500)).await;
        assert_eq!([1, 2, 3].map(|key| ask(&keys, key)), meant.map(Some));
        tokio::time::advance(Duration::from_secs(50)).await;
        let now = [1, 2, 3, 4].map(|key| ask(&keys, key));
        assert_eq!(now, [None, None, Some(meant[2]), None]);
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(ask(&keys, 3), None);
    }

    /// A message that is queued holds its key, also against one of the same key that has ended.
    #[tokio::test(start_paused = true)]
    async fn a_queued_message_holds_its_key() {
        let slots = &mut KeyTable::default();
        let queued = brief(1, State::Queued { calling: false });
        let outcome = Outcome::of(&queued);
        let until = Instant::now() + KEEP;
        slots.set(queued.claim.unwrap(), KeyOutcome { outcome, ended: false, until });
        for _ in 0..100 {
            tokio::time::advance(KEEP).await;
            slots.expire(Instant::now(), KEEP, &|_| Some(queued.clone()));
            assert_eq!((slots.by_key.len(), slots.due.len()), (1, 1));
        }
        // Its end was not reported.
        tokio::time::advance(KEEP).await;
        slots.expire(Instant::now(), KEEP, &|_| None);
        tokio::time::advance(NEARLY).await;
        slots.expire(Instant::now(), KEEP, &|_| None);
        assert_eq!(slots.by_key.len(), 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        slots.expire(Instant::now(), KEEP, &|_| None);
        assert_eq!((slots.by_key.len(), slots.due.len()), (0, 0));
    }

    /// A key counts from its message's end also within a process, and a replay takes it again.
    #[tokio::test(start_paused = true)]
    async fn an_end_and_a_replay() {
        let keys = keys(2);
        let queued = brief(1, State::Queued { calling: false });
        let ended = Brief { state: dead(1, 0).state, ..queued.clone() };
        keys.remember(vec![queued.clone(), delivered(1, 0)]);
        assert_eq!(ask(&keys, 1), Some(queued.id));
        tokio::time::advance(KEEP / 2).await;
        keys.ended(&ended);
        tokio::time::advance(NEARLY).await;
        let claimed = keys.claim(ended.claim.unwrap()).unwrap_err();
        assert_eq!(claimed.ended, Outcome::of(&ended).ended);
        tokio::time::advance(Duration::from_secs(1)).await;
        let first = keys.claim(ended.claim.unwrap()).unwrap();
        keys.replayed(&queued);
        assert_eq!(keys.claim(ended.claim.unwrap()).unwrap_err().ended, Disposition::SameUnderWay);
        drop(first);
        assert_eq!(ask(&keys, 1), Some(queued.id));
    }

    /// A kept message that is found while the key's first request is under way holds the key when that
    /// has ended: without an answer, or without a message that is queued.
    #[tokio::test(start_paused = true)]
    async fn a_kept_message_beside_a_first_request() {
        let queued = brief(1, State::Queued { calling: false });
        let delivered = delivered(1, 0);
        for replays in [false, true] {
            for answer in [None, Some(Outcome::of(&delivered))] {
                let keys = keys(2);
                let first = keys.claim(Claim { key: 1, print: 0 }).unwrap();
                keys.remember(vec![dead(1, 60)]);
                if replays {
                    keys.replayed(&queued);
                } else {
                    keys.remember(vec![queued.clone(), dead(1, 30)]);
                }
                match &answer {
                    Some(outcome) => first.answered(outcome),
                    None => drop(first),
                }
                assert_eq!(ask(&keys, 1), Some(queued.id));
            }
        }
        // A replay takes the key from a message that has ended.
        let keys = keys(2);
        keys.remember(vec![delivered]);
        keys.replayed(&queued);
        assert_eq!(ask(&keys, 1), Some(queued.id));
    }

    /// Where no more keys may be remembered, a new one is refused, and none is forgotten.
    #[tokio::test(start_paused = true)]
    async fn no_more_than_may_be() {
        let keys = keys(2);
        let queued = [1, 2].map(|key| brief(key, State::Queued { calling: false }));
        keys.remember(queued.to_vec());
        let refused = keys.claim(Claim { key: 3, print: 0 }).unwrap_err();
        assert_eq!(refused.ended, Disposition::TooManyKeys(KEEP));
        assert_eq!([1, 2].map(|key| ask(&keys, key)), queued.map(|brief| Some(brief.id)));
        assert_eq!(keys.usage(), KeyUsage { reserved: 2, max: 2 });
    }

    /// A caller that waits as long as it is asked to finds a free key.
    #[tokio::test(start_paused = true)]
    async fn a_refused_key_learns_when_one_is_free() {
        let keys = keys(2);
        keys.remember([1, 2].map(|key| brief(key, State::Dropped(ago(590)))).to_vec());
        let claim = Claim { key: 3, print: 0 };
        let Disposition::TooManyKeys(wait) = keys.claim(claim).unwrap_err().ended else { panic!() };
        assert!(wait > Duration::from_secs(9) && wait <= Duration::from_secs(10), "{wait:?}");
        tokio::time::advance(wait).await;
        assert!(keys.claim(claim).is_ok());
    }
}
