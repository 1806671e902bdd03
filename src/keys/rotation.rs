//! Which key signs the next call: the one in use, or a new one that is tried on a share of calls first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{info, warn};

use super::error::KeyError;
use super::key::Key;
use crate::answer::{AccessDenied, NextSignature};
use crate::config::Canary;

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
    loaded_at: Option<Timestamp>,
    taken_up: u64,
    rejections: u64,
}

/// A key on trial.
struct KeyTrial {
    key: Arc<Key>,
    /// Until when at least.
    until: Instant,
    /// Calls since it began, with either key.
    calls: u64,
    /// Whether the provider has taken it.
    has_worked: bool,
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
        self.listens.store(keys.trial.is_some() || keys.is_refused, Ordering::Relaxed);
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

    /// The key to sign one call with.
    pub(super) fn choose(&self, now: Timestamp) -> Result<Arc<Key>, KeyError> {
        let mut keys = self.keys();
        if keys.current.as_ref().is_some_and(|key| key.is_expired(now)) && keys.trial.is_some() {
            keys.promote();
        }
        keys.end_trial();
        self.listen(&keys);
        let share = self.canary.share;
        if let Some(trial) = keys.trial.as_mut().filter(|trial| !trial.key.is_expired(now)) {
            // So many of the first n calls: the very first is one of them.
            let of = |calls: u64| (calls as f64 * share).ceil();
            trial.calls += 1;
            if of(trial.calls) > of(trial.calls - 1) {
                return Ok(Arc::clone(&trial.key));
            }
        }
        usable(keys.current.as_ref(), now)
    }

    /// The provider took a call with this key.
    pub(super) fn worked(&self, key: &Arc<Key>) {
        if !self.listens.load(Ordering::Relaxed) {
            return;
        }
        let mut keys = self.keys();
        if keys.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, key)) {
            keys.is_refused = false;
        }
        if let Some(trial) = keys.trial.as_mut().filter(|trial| Arc::ptr_eq(&trial.key, key)) {
            trial.has_worked = true;
        }
        keys.end_trial();
        self.listen(&keys);
    }

    /// The provider refused a call with this key. Whether the next call has another one.
    pub(super) fn refused(
        &self,
        key: &Arc<Key>,
        why: AccessDenied,
        now: Timestamp,
    ) -> NextSignature {
        let mut keys = self.keys();
        let update = keys.refused(key, why);
        self.listen(&keys);
        match usable(keys.current.as_ref(), now) {
            Ok(_) => update,
            Err(_) => NextSignature::Same,
        }
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
        let works = !self.is_refused
            && self.current.as_ref().is_some_and(|current| !current.is_expired(now));
        if is(self.current.as_ref()) {
            // The source has gone back to it.
            (self.trial, self.rejected) = (None, None);
            if self.current.as_ref().is_some_and(|current| current.expires() == key.expires()) {
                return Offered::Known;
            }
        } else if works {
            let is_tried = is(self.trial.as_ref().map(|trial| &trial.key));
            if is_tried || is(self.rejected.as_ref()) {
                return Offered::Known;
            }
            if key.expires().is_none() && canary.share < 1.0 {
                let until = Instant::now() + canary.period;
                let key = Arc::new(key);
                self.rejected = None;
                self.trial = Some(KeyTrial { key, until, calls: 0, has_worked: false });
                return Offered::OnTrial;
            }
        }
        self.take_up(Arc::new(key), now);
        Offered::TakenUp
    }

    fn take_up(&mut self, key: Arc<Key>, now: Timestamp) {
        (self.trial, self.rejected, self.is_refused) = (None, None, false);
        self.current = Some(key);
        self.loaded_at = Some(now);
        self.taken_up += 1;
    }

    /// A key whose trial has lasted long enough is used for all calls, once it has worked.
    fn end_trial(&mut self) {
        let is_over = |trial: &KeyTrial| trial.has_worked && Instant::now() >= trial.until;
        if self.trial.as_ref().is_some_and(is_over) {
            self.promote();
        }
    }

    fn promote(&mut self) {
        if let Some(trial) = self.trial.take() {
            info!(key = trial.key.masked(), "the new access key is used for all calls");
            self.take_up(trial.key, Timestamp::now());
        }
    }

    fn refused(&mut self, key: &Arc<Key>, why: AccessDenied) -> NextSignature {
        let trial = self.trial.as_ref().filter(|trial| trial.key.same_as(key));
        if let Some(trial) = trial {
            // A key that works for other topics is not to blame.
            if why == AccessDenied::Key || !trial.has_worked {
                self.reject();
            }
            return if self.is_refused { NextSignature::Same } else { NextSignature::OtherKey };
        }
        if !self.current.as_ref().is_some_and(|current| current.same_as(key)) {
            // Another one has taken its place since.
            return if self.is_refused { NextSignature::Same } else { NextSignature::OtherKey };
        }
        if why != AccessDenied::Key {
            return NextSignature::Same;
        }
        if let Some(rejected) = self.rejected.take() {
            // What the source has is all that is left.
            self.trial = Some(KeyTrial {
                key: rejected,
                until: Instant::now(),
                calls: 0,
                has_worked: false,
            });
        }
        if self.trial.is_some() {
            warn!(refused = key.masked(), "the provider refuses the old access key");
            self.promote();
            return NextSignature::OtherKey;
        }
        self.is_refused = true;
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
