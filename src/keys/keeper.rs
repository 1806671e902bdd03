//! The one task that looks at a source.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::Now;
use super::error::KeyError;
use super::key::Key;
use super::rotation::{Offered, Rotation};
use super::source::{Due, MIN_GAP, Source};

/// How long we sleep by the monotonic clock before asking the wall's again: it may be set, and the
/// monotonic one stands still while a machine is suspended.
const RECHECK: Duration = Duration::from_mins(1);
/// A look may take this part of what is left of the key in use, so that others can follow it.
const LOOK_OF_REST: u32 = 4;
/// … but no look is given up sooner.
const SHORTEST_LOOK: Duration = Duration::from_secs(1);

/// What became of the looks.
#[derive(Default)]
pub(super) struct LookState {
    /// The source's word; `auto` has that of the source which it has found.
    pub(super) source: &'static str,
    pub(super) failed: u64,
    pub(super) error: Option<String>,
    /// How many looks have ended, well or not.
    pub(super) looks: u64,
}

pub(super) struct Keeper<S> {
    source: S,
    rotation: Arc<Rotation>,
    state: watch::Sender<LookState>,
    wanted: watch::Receiver<u64>,
    now: Now,
    rng: fastrand::Rng,
    failures: u32,
}

impl<S: Source> Keeper<S> {
    pub(super) fn new(
        source: S,
        rotation: Arc<Rotation>,
        state: watch::Sender<LookState>,
        wanted: watch::Receiver<u64>,
        now: Now,
        rng: fastrand::Rng,
    ) -> Self {
        Self { source, rotation, state, wanted, now, rng, failures: 0 }
    }

    /// Looks until no handle is left.
    pub(super) async fn run(mut self) {
        loop {
            let found = self.look().await;
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

    /// One look. It is given up in time for others while the key in use still lives.
    async fn look(&mut self) -> Result<Key, KeyError> {
        let Some(left) = self.left() else { return self.source.load().await };
        let bound = (left / LOOK_OF_REST).max(SHORTEST_LOOK);
        match timeout(bound, self.source.load()).await {
            Ok(found) => found,
            Err(_) => Err(KeyError::Slow(self.source.place())),
        }
    }

    /// How long the key in use still lives, if it ends.
    fn left(&self) -> Option<Duration> {
        let expires = self.rotation.current()?.expires()?;
        let left = Duration::try_from(expires.duration_since((self.now)())).ok()?;
        (!left.is_zero()).then_some(left)
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
                let taken_up = self.rotation.status().loaded_at.unwrap_or(now);
                pace.after_success(expires, taken_up, now, &mut self.rng)
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                self.failed(&error);
                let left = self.left();
                pace.after_failure(self.failures, left, &mut self.rng)
            }
        }
    }

    fn succeeded(&self, key: Key, now: Timestamp) {
        let source = self.source.as_str();
        let masked = key.masked();
        let expires = key.expires();
        let offered = self.rotation.offer(key, now);
        let recovered = self.state.borrow().error.is_some();
        self.state.send_modify(|state| {
            state.source = source;
            state.error = None;
            state.looks += 1;
        });
        match offered {
            Offered::TakenUp => {
                let expires = expires.map(tracing::field::display);
                info!(source, key = masked, expires, "access key loaded");
            }
            Offered::OnTrial => {
                info!(
                    source,
                    key = masked,
                    "a new access key: tollgate tries it on some calls first"
                );
            }
            Offered::Known if recovered => {
                info!(source, key = masked, "access key can be read again, unchanged");
            }
            Offered::Known => {}
        }
    }

    fn failed(&self, error: &KeyError) {
        let error = error.to_string();
        let new = self.state.borrow().error.as_ref() != Some(&error);
        // Once for each trouble, not once for each look at it.
        if new {
            let kept = self.rotation.current().map(|key| key.masked());
            warn!(source = self.source.as_str(), kept, error, "no access key from its source");
        }
        self.state.send_modify(|state| {
            state.source = self.source.as_str();
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
