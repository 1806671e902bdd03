//! The key set of one issuer of tokens, read again from time to time, and when a token names an unknown key.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet};
use reqwest::Url;
use secrecy::ExposeSecret;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::callers::TRUSTED;
use crate::config::Issuer;
use crate::keys::{KeyError, KeyServer, Patience, read_token, variable};

/// How often a key set is read again, and how soon where it could not be.
const REFRESH: Duration = Duration::from_mins(5);
const RETRY: Duration = Duration::from_secs(5);
/// A token that names an unknown key has the set read again, but no more often than this: anyone can name one.
const LEAST_GAP: Duration = Duration::from_secs(10);
/// A caller with such a token waits for the set no longer than this, and no more of them at once.
const PATIENCE: Duration = Duration::from_secs(1);
const MOST_WAITING: usize = 64;
/// Keys of one issuer.
const MOST_KEYS: usize = 64;

pub(super) struct IssuerKeys {
    pub(super) issuer: String,
    url: Url,
    server: KeyServer,
    token_file: Option<PathBuf>,
    state: watch::Sender<KeySet>,
    /// A token has named an unknown key.
    wanted: Notify,
    waiting: Semaphore,
}

/// What is known of it.
#[derive(Default)]
struct KeySet {
    keys: Option<Arc<Vec<Jwk>>>,
    read_at: Option<Instant>,
    /// When it was last looked at because of an unknown key.
    wanted_at: Option<Instant>,
    is_looking: bool,
    /// How many looks have ended, well or not.
    looks: u64,
}

impl KeySet {
    /// The keys, unless they are too old to be trusted.
    fn trusted(&self) -> Option<&Arc<Vec<Jwk>>> {
        self.keys.as_ref().filter(|_| self.read_at.is_some_and(|at| at.elapsed() < TRUSTED))
    }

    fn find(&self, id: Option<&str>) -> Option<Jwk> {
        match (id, &***self.trusted()?) {
            (Some(id), keys) => {
                keys.iter().find(|key| key.common.key_id.as_deref() == Some(id)).cloned()
            }
            (None, [only]) => Some(only.clone()),
            (None, _) => None,
        }
    }
}

impl IssuerKeys {
    /// Reads the set in the background until `stop`.
    pub(super) fn start(config: &Issuer, stop: &CancellationToken) -> Result<Arc<Self>, KeyError> {
        let keys = Arc::new(Self::new(config)?);
        let (followed, stop) = (Arc::clone(&keys), stop.clone());
        tokio::spawn(async move { stop.run_until_cancelled(followed.follow()).await });
        Ok(keys)
    }

    fn new(config: &Issuer) -> Result<Self, KeyError> {
        let url = Url::parse(&config.jwks).map_err(|_| KeyError::NotUri)?;
        let server = KeyServer::new(&url, Patience::Network, config.ca_file.as_deref(), variable)?;
        Ok(Self {
            issuer: config.issuer.clone(),
            url,
            server,
            token_file: config.token_file.clone(),
            state: watch::Sender::default(),
            wanted: Notify::new(),
            waiting: Semaphore::new(MOST_WAITING),
        })
    }

    /// Whether there are keys that are trusted.
    pub(super) fn is_ready(&self) -> bool {
        self.state.borrow().trusted().is_some()
    }

    /// The key of this id; a set with one key needs none. Who asks for one that is unknown waits for a look at
    /// the set, for a moment.
    pub(super) async fn key(&self, id: Option<&str>) -> Option<Jwk> {
        let mut state = self.state.subscribe();
        let (found, looks) = {
            let state = state.borrow();
            (state.find(id), state.looks)
        };
        if found.is_some() {
            return found;
        }
        let _place = self.waiting.try_acquire().ok()?;
        let is_due = |state: &mut KeySet| {
            let is_due =
                !state.is_looking && state.wanted_at.is_none_or(|at| at.elapsed() >= LEAST_GAP);
            if is_due {
                (state.is_looking, state.wanted_at) = (true, Some(Instant::now()));
            }
            is_due
        };
        if self.state.send_if_modified(is_due) {
            self.wanted.notify_one();
        }
        let looked = state.wait_for(|state| state.looks > looks || !state.is_looking);
        drop(timeout(PATIENCE, looked).await);
        self.state.borrow().find(id)
    }

    async fn follow(&self) {
        let mut trouble: Option<String> = None;
        loop {
            let asked_at = Instant::now();
            self.state.send_modify(|state| state.is_looking = true);
            let read = self.read().await;
            let wait = if read.is_ok() { REFRESH } else { RETRY };
            let (keys, error) = match read {
                Ok(keys) => (Some(Arc::new(keys)), None),
                Err(error) => (None, Some(error.to_string())),
            };
            self.state.send_modify(|state| {
                if keys.is_some() {
                    (state.keys, state.read_at) = (keys, Some(asked_at));
                }
                state.is_looking = false;
                state.looks += 1;
            });
            if let Some(error) = error.as_ref().filter(|error| trouble.as_ref() != Some(error)) {
                let issuer = &*self.issuer;
                tracing::warn!(issuer, error, "the keys of an issuer of tokens cannot be read");
            }
            trouble = error;
            tokio::select! {
                () = sleep(wait) => {}
                () = self.wanted.notified() => {}
            }
        }
    }

    async fn read(&self) -> Result<Vec<Jwk>, KeyError> {
        let mut request = self.server.client().get(self.url.clone());
        if let Some(path) = &self.token_file {
            request = request.bearer_auth(read_token(path).await?.expose_secret());
        }
        let answer = self.server.fetch_ok(request).await?;
        let set: JwkSet = serde_json::from_slice(&answer.body)
            .map_err(|_| self.server.failure("its answer is no key set"))?;
        // A shared secret proves nothing about an issuer.
        let is_public = |key: &Jwk| !matches!(key.algorithm, AlgorithmParameters::OctetKey(_));
        let keys: Vec<_> = set.keys.into_iter().filter(is_public).take(MOST_KEYS).collect();
        if keys.is_empty() {
            return Err(self.server.failure("its key set has no public key"));
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::advance;

    use super::*;

    const SET: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    /// An issuer that is away for less than an hour costs its callers nothing.
    #[tokio::test]
    async fn a_key_set_is_used_for_an_hour_while_its_issuer_is_down() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = Issuer {
            issuer: "https://issuer".to_owned(),
            jwks: format!("http://{}/keys", listener.local_addr().unwrap()),
            ca_file: None,
            token_file: None,
        };
        let stop = CancellationToken::new();
        let keys = IssuerKeys::start(&config, &stop).unwrap();
        assert!(!keys.is_ready());
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 4_096]).await.unwrap() > 0);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", SET.len());
        stream.write_all(format!("{head}{SET}").as_bytes()).await.unwrap();
        let mut state = keys.state.subscribe();
        state.wait_for(|state| state.looks == 1).await.unwrap();
        assert!(keys.is_ready() && keys.key(Some("k1")).await.is_some());

        // From now on it is away.
        drop(stream);
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        tokio::time::pause();
        let minute = Duration::from_mins(1);
        advance(REFRESH + minute).await;
        state.wait_for(|state| state.looks > 1).await.unwrap();
        advance(TRUSTED.saturating_sub(REFRESH + 3 * minute)).await;
        assert!(keys.is_ready() && keys.key(Some("k1")).await.is_some());
        advance(3 * minute).await;
        assert!(!keys.is_ready());
        assert_eq!(keys.key(Some("k1")).await, None);
        stop.cancel();
    }
}
