//! The one task that looks at a source, and the state that it publishes to the handles.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::Now;
use super::error::KeyError;
use super::key::Key;
use super::source::{Due, MIN_GAP, Source};

/// How long we sleep by the monotonic clock before asking the wall's again: it may be set, and the
/// monotonic one stands still while a machine is suspended.
const RECHECK: Duration = Duration::from_mins(1);

/// All that the handles see.
#[derive(Default)]
pub(super) struct KeeperState {
    pub(super) key: Option<Arc<Key>>,
    pub(super) loaded_at: Option<Timestamp>,
    pub(super) taken_up: u64,
    pub(super) failed: u64,
    pub(super) error: Option<String>,
    /// How many looks have ended, well or not.
    pub(super) looks: u64,
}

impl KeeperState {
    pub(super) fn take_up(&mut self, key: Key, now: Timestamp) {
        self.key = Some(Arc::new(key));
        self.loaded_at = Some(now);
        self.taken_up += 1;
    }
}

pub(super) struct Keeper<S> {
    source: S,
    state: watch::Sender<KeeperState>,
    wanted: watch::Receiver<u64>,
    now: Now,
    rng: fastrand::Rng,
    failures: u32,
}

impl<S: Source> Keeper<S> {
    pub(super) fn new(
        source: S,
        state: watch::Sender<KeeperState>,
        wanted: watch::Receiver<u64>,
        now: Now,
        rng: fastrand::Rng,
    ) -> Self {
        Self { source, state, wanted, now, rng, failures: 0 }
    }

    /// Looks until no handle is left.
    pub(super) async fn run(mut self) {
        loop {
            let found = self.source.load().await;
            let due = self.note(found);
            let ended = Instant::now();
            let looks = self.state.borrow().looks;
            tokio::select! {
                () = reached(due, &self.now) => {}
                has_handles = asked(&mut self.wanted, looks) => {
                    if !has_handles {
                        return;
                    }
                    sleep_until(ended + MIN_GAP).await;
                }
            }
        }
    }

    /// Publishes what a look brought; returns when the next one is due.
    fn note(&mut self, found: Result<Key, KeyError>) -> Due {
        let now = (self.now)();
        let pace = self.source.pace();
        let found = found.and_then(|key| match key.expires() {
            Some(at) if at <= now => Err(KeyError::Expired(at)),
            _ => Ok(key),
        });
        match found {
            Ok(key) => {
                self.failures = 0;
                let expires = key.expires();
                self.succeeded(key, now);
                pace.after_success(expires, now, &mut self.rng)
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                self.failed(&error);
                pace.after_failure(self.failures, &mut self.rng)
            }
        }
    }

    fn succeeded(&self, key: Key, now: Timestamp) {
        let source = self.source.as_str();
        let masked = key.masked();
        let expires = key.expires();
        let (changed, recovered) = {
            let state = self.state.borrow();
            let same = |old: &Arc<Key>| old.same_as(&key) && old.expires() == expires;
            (!state.key.as_ref().is_some_and(same), state.error.is_some())
        };
        self.state.send_modify(|state| {
            if changed {
                state.take_up(key, now);
            }
            state.error = None;
            state.looks += 1;
        });
        if changed {
            let expires = expires.map(tracing::field::display);
            info!(source, key = masked, expires, "access key loaded");
        } else if recovered {
            info!(source, key = masked, "access key can be read again, unchanged");
        }
    }

    fn failed(&self, error: &KeyError) {
        let error = error.to_string();
        let (new, kept) = {
            let state = self.state.borrow();
            (state.error.as_ref() != Some(&error), state.key.as_ref().map(|key| key.masked()))
        };
        // Once for each trouble, not once for each look at it.
        if new {
            warn!(source = self.source.as_str(), kept, error, "no access key from its source");
        }
        self.state.send_modify(|state| {
            state.failed += 1;
            state.error = Some(error);
            state.looks += 1;
        });
    }
}

/// Whether a look beyond those that ended is asked for; false when no handle is left to ask. (A
/// look that was under way when it was asked for has answered already.)
async fn asked(wanted: &mut watch::Receiver<u64>, looks: u64) -> bool {
    wanted.wait_for(|wanted| *wanted > looks).await.is_ok()
}

async fn reached(due: Due, now: &Now) {
    match due {
        Due::In(wait) => sleep(wait).await,
        Due::At(at) => {
            while let Ok(left) = Duration::try_from(at.duration_since(now()))
                && !left.is_zero()
            {
                sleep(left.min(RECHECK)).await;
            }
        }
        Due::OnlyWhenAsked => std::future::pending().await,
    }
}
