//! Where the access key comes from, and that it is fresh.
//!
//! A [`Source`] knows how to fetch a key once; one keeper task per process asks it again and again
//! at the source's [`Pace`], and [`Keys`] is the handle that everyone else holds: reading the
//! current key is a look into memory, never I/O.

mod env;
mod error;
mod file;
mod keeper;
mod key;
mod source;
mod uri;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::error::{Flaw, KeyError};
pub use self::file::KeyFolder;
pub use self::key::Key;
pub use self::source::{Pace, Source};
pub use self::uri::CredentialsUri;

use self::keeper::{Keeper, KeeperState};
use crate::config;

/// What time it is. A function, so that tests can say it.
pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The current key, kept fresh. Clones share it.
#[derive(Clone)]
pub struct Keys {
    source: &'static str,
    state: watch::Receiver<KeeperState>,
    /// The number of the look that a caller of `refresh` waits for. The keeper ends when no handle is left.
    wanted: watch::Sender<u64>,
    now: Now,
}

/// How the keys are, for people and metrics. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyStatus {
    /// `env`, `file` or `uri`.
    pub source: &'static str,
    /// The key's id, masked as in logs.
    pub id: Option<String>,
    /// When the key was taken up.
    pub loaded_at: Option<Timestamp>,
    /// When it stops working; `None` also where it never does.
    pub expires_at: Option<Timestamp>,
    /// How often a key was taken up: the first one and every change. A look that finds the same
    /// key again counts nothing.
    pub reloads_ok: u64,
    /// How often a look at the source brought no valid key.
    pub reloads_failed: u64,
    /// Why the latest look brought none; `None` as soon as one succeeds.
    pub last_error: Option<String>,
}

impl Keys {
    /// Starts what the configuration names; within a tokio runtime.
    ///
    /// A key from the environment must be there at once. Any other source may still be on its way
    /// up when we start, so not having a key yet is no error: see [`Keys::loaded`].
    pub fn start(config: &config::Keys, stop: CancellationToken) -> Result<Self, KeyError> {
        let now: Now = Arc::new(Timestamp::now);
        let rng = fastrand::Rng::new();
        match config {
            config::Keys::Env => Ok(Self::fixed(env::read(|name| std::env::var_os(name))?)),
            config::Keys::File { path, poll } => {
                Ok(Self::with_source(KeyFolder::new(path.clone(), *poll), now, rng, stop))
            }
            config::Keys::Uri { uri } => {
                Ok(Self::with_source(CredentialsUri::new(uri)?, now, rng, stop))
            }
        }
    }

    /// A key that stays as it is, as the environment's does.
    pub fn fixed(key: Key) -> Self {
        let now: Now = Arc::new(Timestamp::now);
        let mut state = KeeperState::default();
        state.take_up(key, now());
        // Without a sender there are no looks: a refresh ends at once.
        let (_, state) = watch::channel(state);
        Self { source: env::WORD, state, wanted: watch::channel(0).0, now }
    }

    /// Keeps a source's key fresh until `stop`; within a tokio runtime.
    pub fn with_source(
        source: impl Source,
        now: Now,
        rng: fastrand::Rng,
        stop: CancellationToken,
    ) -> Self {
        let name = source.as_str();
        let (publisher, state) = watch::channel(KeeperState::default());
        let (wanted, asked) = watch::channel(0);
        let keeper = Keeper::new(source, publisher, asked, Arc::clone(&now), rng);
        tokio::spawn(async move { stop.run_until_cancelled(keeper.run()).await });
        Self { source: name, state, wanted, now }
    }

    /// Waits until the source was read once, whatever came of it.
    pub async fn first_look(&self) {
        let mut state = self.state.clone();
        // An error means that there is no keeper, so the key is there already.
        drop(state.wait_for(|state| state.looks > 0).await);
    }

    /// The key to sign with, from memory.
    pub fn current(&self) -> Result<Arc<Key>, KeyError> {
        let key = self.state.borrow().key.clone().ok_or(KeyError::NotLoaded)?;
        match key.expires() {
            Some(at) if at <= (self.now)() => Err(KeyError::Expired(at)),
            _ => Ok(key),
        }
    }

    /// The provider refused this key: has the source another one? True if the current key now is
    /// a usable one that differs from `refused`.
    ///
    /// Callers share one look, and looks are at least a second apart, so a caller may wait for
    /// that second and for the source. Dropping the future is harmless.
    pub async fn refresh(&self, refused: &Key) -> bool {
        let mut state = self.state.clone();
        // Read before the key is compared, or a look that ends in between would be waited for
        // once more.
        let seen = state.borrow().looks;
        if self.differs_from(refused) {
            return true;
        }
        self.wanted.send_if_modified(|wanted| {
            let newer = *wanted <= seen;
            if newer {
                *wanted = seen + 1;
            }
            newer
        });
        // An error means that the keeper has ended; what we have is then all there is.
        drop(state.wait_for(|state| state.looks > seen).await);
        self.differs_from(refused)
    }

    /// How the keys are.
    pub fn status(&self) -> KeyStatus {
        let state = self.state.borrow();
        KeyStatus {
            source: self.source,
            id: state.key.as_ref().map(|key| key.masked()),
            loaded_at: state.loaded_at,
            expires_at: state.key.as_ref().and_then(|key| key.expires()),
            reloads_ok: state.taken_up,
            reloads_failed: state.failed,
            last_error: state.error.clone(),
        }
    }

    /// Resolves when a first key is there; never, if the keeper was stopped before.
    pub async fn loaded(&self) {
        self.until(|state| state.key.is_some()).await;
    }

    /// Resolves when a key other than `old` was taken up; never, if the keeper was stopped before.
    pub async fn changed_from(&self, old: &Key) {
        self.until(|state| state.key.as_ref().is_some_and(|key| !key.same_as(old))).await;
    }

    async fn until(&self, condition: impl FnMut(&KeeperState) -> bool) {
        let mut state = self.state.clone();
        let is_stopped = state.wait_for(condition).await.is_err();
        if is_stopped {
            std::future::pending::<()>().await;
        }
    }

    fn differs_from(&self, refused: &Key) -> bool {
        self.current().is_ok_and(|key| !key.same_as(refused))
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Keys").field(&self.status()).finish()
    }
}
