//! Where the access key comes from, that it is fresh, and how a new one is taken up.
//!
//! A [`Source`] knows how to fetch a key once; one keeper task per process asks it again and again
//! at the source's [`Pace`], and [`Keys`] is the handle that everyone else holds: reading the
//! current key is a look into memory, never I/O. A source without a key is no reason not to start: callers
//! are answered at once that there is none, and log, metrics, page and probes say which path or address
//! has none.

mod answer;
mod auto;
mod boxed;
mod cli;
mod ecs;
mod env;
mod error;
mod fetch;
mod file;
mod fixed;
mod issuer;
mod keeper;
mod key;
mod oidc;
mod proof;
mod role;
mod rotation;
mod source;
mod sts;
mod uri;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::auto::FirstOf;
pub use self::cli::CliProfiles;
pub use self::ecs::MetadataKeys;
pub use self::env::EnvironmentKey;
pub use self::error::{Flaw, KeyError};
pub use self::file::KeyFolder;
pub use self::issuer::RoleIssuer;
pub use self::key::Key;
pub use self::oidc::OidcKeys;
pub use self::role::AssumedRole;
pub use self::source::{Pace, Source};
pub use self::uri::CredentialsUri;

pub(crate) use self::fetch::{KeyServer, Patience, client_tls, innermost, variable};
pub(crate) use self::proof::{TokenFile, read_blocking, read_text, read_token, read_token_file};

use self::boxed::BoxedSource;
use self::keeper::{Keeper, LookState};
use self::rotation::Rotation;
use crate::answer::{AccessDenied, NextSignature};
use crate::config::{self, Canary, CliFile, KeySource};
use crate::message::MessageId;

/// What time it is. A function, so that tests can say it.
pub type Now = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The current key, kept fresh. Clones share it.
#[derive(Clone)]
pub struct Keys {
    rotation: Arc<Rotation>,
    state: watch::Receiver<LookState>,
    /// The number of the look that a caller of `refresh` waits for. The keeper ends when no handle is left.
    wanted: watch::Sender<u64>,
    now: Now,
}

/// How the keys are, for people and metrics. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyStatus {
    /// The source's word in the configuration; for `auto` that of the source it has found.
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
    /// How often the provider refused a new key that was tried on some calls.
    pub rejections: u64,
    /// The masked id of a new key that the provider has refused, while the one before is in use.
    pub rejected: Option<String>,
    /// Why the latest look brought none; `None` as soon as one succeeds.
    pub last_error: Option<String>,
}

/// What a configuration names.
fn source(config: &KeySource) -> Result<BoxedSource, KeyError> {
    Ok(match config {
        KeySource::Env => BoxedSource::new(EnvironmentKey),
        KeySource::File { path, poll } => BoxedSource::new(KeyFolder::new(path.clone(), *poll)),
        KeySource::Uri(uri) => BoxedSource::new(CredentialsUri::new(uri)?),
        KeySource::Oidc(role) => BoxedSource::new(OidcKeys::new(role)?),
        KeySource::Role(role) => {
            let base = source(&role.base)?;
            BoxedSource::new(AssumedRole::new(base, &role.sts, role.session.clone())?)
        }
        KeySource::Ecs(metadata) => BoxedSource::new(MetadataKeys::new(metadata)?),
        KeySource::Cli(files) => BoxedSource::new(CliProfiles::new(files)),
        KeySource::Auto(chain) => {
            // The provider's SDKs leave them out by these variables.
            let is_off = |name: &str| {
                std::env::var(name).is_ok_and(|value| value.eq_ignore_ascii_case("true"))
            };
            let is_left_out = |source: &KeySource| match source {
                KeySource::Cli(cli) if cli.files.iter().all(|(kind, _)| *kind == CliFile::Json) => {
                    is_off("ALIBABA_CLOUD_CLI_PROFILE_DISABLED")
                }
                KeySource::Ecs(_) => is_off("ALIBABA_CLOUD_ECS_METADATA_DISABLED"),
                _ => false,
            };
            let chain = chain.iter().filter(|one| !is_left_out(one)).map(source);
            BoxedSource::new(FirstOf::new(chain.collect::<Result<_, _>>()?))
        }
    })
}

/// A source that is read by hand, for one key at a time.
pub fn source_of(config: &KeySource) -> Result<impl Source, KeyError> {
    source(config)
}

impl Keys {
    /// Starts what the configuration names; within a tokio runtime.
    ///
    /// Any source may still be on its way up when we start, so not having a key yet is no error: see
    /// [`Keys::loaded`]. An error means that the source can never be asked.
    pub fn start(config: &config::Keys, stop: CancellationToken) -> Result<Self, KeyError> {
        let now: Now = Arc::new(Timestamp::now);
        let (source, rng) = (source(&config.source)?, fastrand::Rng::new());
        Ok(Self::with_source(source, config.canary, now, rng, stop))
    }

    /// A key that stays as it is.
    pub fn fixed(key: Key) -> Self {
        let now: Now = Arc::new(Timestamp::now);
        let rotation = Rotation::new(Canary::NONE);
        rotation.offer(key, now());
        // Without a sender there are no looks: a refresh ends at once.
        let (_, state) = watch::channel(LookState { source: "env", ..LookState::default() });
        Self { rotation: Arc::new(rotation), state, wanted: watch::channel(0).0, now }
    }

    /// Keeps a source's key fresh until `stop`; within a tokio runtime.
    pub fn with_source(
        source: impl Source,
        canary: Canary,
        now: Now,
        rng: fastrand::Rng,
        stop: CancellationToken,
    ) -> Self {
        let rotation = Arc::new(Rotation::new(canary));
        let begun = LookState { source: source.as_str(), ..LookState::default() };
        let (publisher, state) = watch::channel(begun);
        let (wanted, asked) = watch::channel(0);
        let keeper =
            Keeper::new(source, Arc::clone(&rotation), publisher, asked, Arc::clone(&now), rng);
        tokio::spawn(async move { stop.run_until_cancelled(keeper.run()).await });
        Self { rotation, state, wanted, now }
    }

    /// Waits until the source was read once, whatever came of it.
    pub async fn first_look(&self) {
        let mut state = self.state.clone();
        // An error means that there is no keeper, so the key is there already.
        drop(state.wait_for(|state| state.looks > 0).await);
    }

    /// The key in use, from memory.
    pub fn current(&self) -> Result<Arc<Key>, KeyError> {
        let key = self.rotation.current().ok_or(KeyError::NotLoaded)?;
        match key.expires() {
            Some(at) if at <= (self.now)() => Err(KeyError::Expired(at)),
            _ => Ok(key),
        }
    }

    /// The key to sign one call for a message with, from memory: the one in use, or for a share of calls
    /// one on trial. After a refusal, the other one. What becomes of the call is to be reported by
    /// [`Keys::worked`] and [`Keys::refused`].
    pub fn choose(&self, message: MessageId) -> Result<Arc<Key>, KeyError> {
        self.rotation.choose(message, (self.now)())
    }

    /// The provider took a call for this message with this key.
    pub fn worked(&self, message: MessageId, key: &Arc<Key>) {
        self.rotation.worked(message, key);
    }

    /// The provider refused a call for this message with this key. Whether its next call has another one.
    pub fn refused(&self, message: MessageId, key: &Arc<Key>, why: AccessDenied) -> NextSignature {
        self.rotation.refused(message, key, why, (self.now)())
    }

    /// Where the provider has refused the key in use: has the source another one? True if there is another
    /// one to sign with afterwards.
    pub async fn renew(&self) -> bool {
        match self.rotation.refused_key() {
            Some(refused) => self.refresh(&refused).await,
            None => self.current().is_ok(),
        }
    }

    /// The provider refused this key: has the source another one? True if there now is a usable one
    /// that differs from `refused`, in use or on trial.
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
        let rotation = self.rotation.status();
        let state = self.state.borrow();
        KeyStatus {
            source: state.source,
            id: rotation.id,
            loaded_at: rotation.loaded_at,
            expires_at: rotation.expires_at,
            reloads_ok: rotation.taken_up,
            reloads_failed: state.failed,
            rejections: rotation.rejections,
            rejected: rotation.rejected,
            last_error: state.error.clone(),
        }
    }

    /// Resolves when a first key is there; never, if the keeper was stopped before.
    pub async fn loaded(&self) {
        self.until(|key| key.is_some()).await;
    }

    /// Resolves when a key other than `old` was taken up; never, if the keeper was stopped before.
    pub async fn changed_from(&self, old: &Key) {
        self.until(|key| key.is_some_and(|key| !key.same_as(old))).await;
    }

    async fn until(&self, condition: impl Fn(Option<&Arc<Key>>) -> bool) {
        let mut state = self.state.clone();
        let holds = |_: &LookState| condition(self.rotation.current().as_ref());
        let is_stopped = state.wait_for(holds).await.is_err();
        if is_stopped && !condition(self.rotation.current().as_ref()) {
            std::future::pending::<()>().await;
        }
    }

    fn differs_from(&self, refused: &Key) -> bool {
        self.rotation.has_other_than(refused, (self.now)())
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Keys").field(&self.status()).finish()
    }
}
