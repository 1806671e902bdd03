//! Which key signs the next call: the one in use, or a new one that is tried on a share of calls first.
//!
//! A refusal alone says little: it may be the key's, the message's or the topic's. So the message that one key
//! was refused for is called for again with the other key, and that call decides: a key is rejected, and the one
//! in use given up, only for another that the provider takes the same message with.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{info, warn};

use super::error::KeyError;
use super::key::Key;
use crate::answer::{AccessDenied, NextSignature};
use crate::config::Canary;
use crate::message::MessageId;

/// Messages of which a refusal is remembered until their next call has ended. One beyond them is called for
/// again as any other.
const MOST_REFUSALS: usize = 256;

/// Keys that sign calls.
pub(super) struct Rotation {
    canary: Canary,
    keys: Mutex<RotatingKeys>,
    /// Whether calls that pass tell anything: a key is on trial, or was refused.
    listens: AtomicBool,
}

#[derive(Default)]
struct RotatingKeys {
    current: Option<Arc<Key>>,
    /// Whether the provider has refused it, and has taken it no more since.
    is_refused: bool,
    trial: Option<KeyTrial>,
    /// The key whose trial failed; it is not tried again while the one in use works.
    rejected: Option<Arc<Key>>,
    /// Messages whose latest call was refused, the oldest first.
    refusals: VecDeque<(MessageId, Refusal)>,
    loaded_at: Option<Timestamp>,
    taken_up: u64,
    rejections: u64,
}

/// What the latest call for a message was refused with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// The key in use.
    OfCurrent,
    /// The new one, whether it is on trial or was rejected before.
    OfNew(AccessDenied),
}

/// A key on trial.
struct KeyTrial {
    key: Arc<Key>,
    /// Until when at least.
    until: Instant,
    /// And while a refusal of it is not judged yet, until when at most: a message may end without another call.
    waits_until: Instant,
    /// Calls since it began, with either key.
    calls: u64,
    /// Whether the provider has taken it.
    has_worked: bool,
    /// Whether the provider has refused it, and the one in use for the same message, too.
    is_refused: bool,
}

/// What became of a key that a source brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offered {
    /// It is known.
    Known,
    /// All calls are signed with it from now on.
    TakenUp,
    /// Some are.
    OnTrial,
}

/// What people are shown of keys.
pub(super) struct RotationStatus {
    pub(super) id: Option<String>,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) loaded_at: Option<Timestamp>,
    pub(super) taken_up: u64,
    pub(super) rejections: u64,
    /// The id of a new key that the provider has refused.
    pub(super) rejected: Option<String>,
}

impl Rotation {
    pub(super) fn new(canary: Canary) -> Self {
        Self { canary, keys: Mutex::default(), listens: AtomicBool::new(false) }
    }

    /// A panic elsewhere does not spoil the keys: each change to them is whole.
    fn keys(&self) -> MutexGuard<'_, RotatingKeys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self, keys: &RotatingKeys) {
        let listens = keys.trial.is_some() || keys.is_refused || !keys.refusals.is_empty();
        self.listens.store(listens, Ordering::Relaxed);
    }

    /// Takes a key that a source brought. One that says when it ends is used at once: it is one of many, and
    /// the one before ends soon.
    pub(super) fn offer(&self, key: Key, now: Timestamp) -> Offered {
        let mut keys = self.keys();
        keys.end_trial();
        let offered = keys.offer(key, self.canary, now);
        self.listen(&keys);
        offered
    }

    /// The key in use.
    pub(super) fn current(&self) -> Option<Arc<Key>> {
        self.keys().current.clone()
    }

    /// The key to sign one call for a message with.
    pub(super) fn choose(&self, id: MessageId, now: Timestamp) -> Result<Arc<Key>, KeyError> {
        let mut keys = self.keys();
        if keys.current.as_ref().is_some_and(|key| key.is_expired(now)) && keys.trial.is_some() {
            keys.promote();
        }
        keys.end_trial();
        self.listen(&keys);
        match keys.refusal_of(id) {
            Some(Refusal::OfNew(_)) => return usable(keys.current.as_ref(), now),
            Some(Refusal::OfCurrent) => {
                if let Some(new) = keys.new_key().filter(|key| !key.is_expired(now)) {
                    return Ok(Arc::clone(new));
                }
            }
            None => {}
        }
        let share = self.canary.share;
        // What the source has is all that is left, where the one in use is refused.
        let is_all = keys.is_refused;
        if let Some(trial) = keys.trial.as_mut().filter(|trial| !trial.key.is_expired(now)) {
            // So many of the first n calls: the very first is one of them.
            let of = |calls: u64| (calls as f64 * share).ceil();
            trial.calls += 1;
            if is_all || of(trial.calls) > of(trial.calls - 1) {
                return Ok(Arc::clone(&trial.key));
            }
        }
        usable(keys.current.as_ref(), now)
    }

    /// The provider took a call for this message with this key.
    pub(super) fn worked(&self, id: MessageId, key: &Arc<Key>) {
        if !self.listens.load(Ordering::Relaxed) {
            return;
        }
        let mut keys = self.keys();
        keys.worked(id, key);
        self.listen(&keys);
    }

    /// The provider refused a call for this message with this key. Whether its next call has another one.
    pub(super) fn refused(
        &self,
        id: MessageId,
        key: &Arc<Key>,
        why: AccessDenied,
        now: Timestamp,
    ) -> NextSignature {
        let mut keys = self.keys();
        let update = keys.refused(id, key, why);
        self.listen(&keys);
        match usable(keys.current.as_ref(), now) {
            Ok(_) => update,
            Err(_) => NextSignature::Same,
        }
    }

    /// Whether a call may be signed with a key other than this one.
    pub(super) fn has_other_than(&self, refused: &Key, now: Timestamp) -> bool {
        let keys = self.keys();
        let trial = keys.trial.as_ref().filter(|trial| !trial.is_refused).map(|trial| &trial.key);
        let others = [keys.current.as_ref(), trial].into_iter().flatten();
        others.into_iter().any(|key| !key.is_expired(now) && !key.same_as(refused))
    }

    /// The key in use, if it is one that the provider has refused.
    pub(super) fn refused_key(&self) -> Option<Arc<Key>> {
        let keys = self.keys();
        keys.current.clone().filter(|_| keys.is_refused)
    }

    pub(super) fn status(&self) -> RotationStatus {
        let keys = self.keys();
        let current = keys.current.as_ref();
        RotationStatus {
            id: current.map(|key| key.masked()),
            expires_at: current.and_then(|key| key.expires()),
            loaded_at: keys.loaded_at,
            taken_up: keys.taken_up,
            rejections: keys.rejections,
            rejected: keys.rejected.as_ref().map(|key| key.masked()),
        }
    }
}

fn usable(key: Option<&Arc<Key>>, now: Timestamp) -> Result<Arc<Key>, KeyError> {
    let key = key.ok_or(KeyError::NotLoaded)?;
    match key.expires() {
        Some(at) if at <= now => Err(KeyError::Expired(at)),
        _ => Ok(Arc::clone(key)),
    }
}

impl RotatingKeys {
    fn offer(&mut self, key: Key, canary: Canary, now: Timestamp) -> Offered {
        let is = |other: Option<&Arc<Key>>| other.is_some_and(|other| other.same_as(&key));
        let lives = self.current.as_ref().is_some_and(|current| !current.is_expired(now));
        if is(self.current.as_ref()) {
            // The source has gone back to it.
            (self.trial, self.rejected) = (None, None);
            if self.current.as_ref().is_some_and(|current| current.expires() == key.expires()) {
                return Offered::Known;
            }
        } else if lives {
            if is(self.new_key()) {
                return Offered::Known;
            }
            // Also where the one in use was refused: that may pass, and the new one may be wrong.
            if key.expires().is_none() && canary.share < 1.0 {
                let until = Instant::now() + canary.period;
                self.rejected = None;
                self.refusals.retain(|(_, refusal)| *refusal == Refusal::OfCurrent);
                self.trial = Some(KeyTrial {
                    key: Arc::new(key),
                    until,
                    waits_until: until + canary.period,
                    calls: 0,
                    has_worked: false,
                    is_refused: false,
                });
                return Offered::OnTrial;
            }
        }
        self.take_up(Arc::new(key), now);
        Offered::TakenUp
    }

    fn take_up(&mut self, key: Arc<Key>, now: Timestamp) {
        (self.trial, self.rejected, self.is_refused) = (None, None, false);
        self.refusals.clear();
        self.current = Some(key);
        self.loaded_at = Some(now);
        self.taken_up += 1;
    }

    /// A key whose trial has lasted long enough is used for all calls, once it has worked. What it was refused for
    /// is tried with the old key first: that one may have been allowed it.
    fn end_trial(&mut self) {
        let is_of_new = |(_, refusal): &(MessageId, Refusal)| matches!(refusal, Refusal::OfNew(_));
        let waits = self.refusals.iter().any(is_of_new);
        let end = |trial: &KeyTrial| if waits { trial.waits_until } else { trial.until };
        let is_over = |trial: &KeyTrial| trial.has_worked && Instant::now() >= end(trial);
        if self.trial.as_ref().is_some_and(is_over) {
            self.promote();
        }
    }

    /// Whatever became of its trial, the new key is in use from now on.
    fn promote(&mut self) {
        let rejected = self.rejected.take();
        if let Some(key) = self.trial.take().map(|trial| trial.key).or(rejected) {
            info!(key = key.masked(), "the new access key is used for all calls");
            self.take_up(key, Timestamp::now());
        }
    }

    /// The key that is not in use yet: it is on trial, or was rejected.
    fn new_key(&self) -> Option<&Arc<Key>> {
        self.trial.as_ref().map(|trial| &trial.key).or(self.rejected.as_ref())
    }

    fn is_current(&self, key: &Key) -> bool {
        self.current.as_ref().is_some_and(|current| current.same_as(key))
    }

    fn refusal_of(&self, id: MessageId) -> Option<Refusal> {
        self.refusals.iter().find(|(other, _)| *other == id).map(|(_, refusal)| *refusal)
    }

    /// What the call before was refused with, which is no longer of use.
    fn take_refusal(&mut self, id: MessageId) -> Option<Refusal> {
        let at = self.refusals.iter().position(|(other, _)| *other == id)?;
        self.refusals.remove(at).map(|(_, refusal)| refusal)
    }

    fn note_refusal(&mut self, id: MessageId, refusal: Refusal) {
        if self.refusals.len() >= MOST_REFUSALS {
            self.refusals.pop_front();
        }
        self.refusals.push_back((id, refusal));
    }

    fn worked(&mut self, id: MessageId, key: &Key) {
        let before = self.take_refusal(id);
        if self.is_current(key) {
            // What it was refused for before may have passed, too.
            self.is_refused = false;
            self.refusals.retain(|(_, refusal)| *refusal != Refusal::OfCurrent);
            if matches!(before, Some(Refusal::OfNew(_))) {
                self.reject();
            }
        } else if self.new_key().is_some_and(|new| new.same_as(key)) {
            // Of the same message: that the old one was refused for another may have passed since.
            if before == Some(Refusal::OfCurrent) {
                let refused = self.current.as_ref().map(|key| key.masked());
                warn!(refused, "the provider refuses the old access key");
                return self.promote();
            }
            if let Some(trial) = &mut self.trial {
                trial.has_worked = true;
                trial.is_refused = false;
            }
        }
        self.end_trial();
    }

    fn refused(&mut self, id: MessageId, key: &Key, why: AccessDenied) -> NextSignature {
        let before = self.take_refusal(id);
        if self.new_key().is_some_and(|new| new.same_as(key)) {
            self.note_refusal(id, Refusal::OfNew(why));
            return NextSignature::OtherKey;
        }
        if !self.is_current(key) {
            // Another one has taken its place since.
            return if self.is_refused { NextSignature::Same } else { NextSignature::OtherKey };
        }
        match (before, why) {
            // With either key. That of a key stands before any permission, so the one in use is known.
            (Some(Refusal::OfNew(AccessDenied::Key)), AccessDenied::Permission) => self.reject(),
            (None | Some(Refusal::OfCurrent), AccessDenied::Key) if self.new_key().is_some() => {
                self.note_refusal(id, Refusal::OfCurrent);
                return NextSignature::OtherKey;
            }
            (_, AccessDenied::Key) => {
                self.is_refused = true;
                if self.new_key().is_none() {
                    // The source may have another one now.
                    self.note_refusal(id, Refusal::OfCurrent);
                }
                if let Some(trial) = &mut self.trial {
                    trial.is_refused = before == Some(Refusal::OfNew(AccessDenied::Key));
                }
            }
            _ => {}
        }
        NextSignature::Same
    }

    fn reject(&mut self) {
        let Some(trial) = self.trial.take() else { return };
        self.rejections += 1;
        warn!(
            refused = trial.key.masked(),
            kept = self.current.as_ref().map(|key| key.masked()),
            "the provider refuses the new access key: tollgate goes on with the old one"
        );
        self.rejected = Some(trial.key);
    }
}

#[cfg(test)]
mod tests;
