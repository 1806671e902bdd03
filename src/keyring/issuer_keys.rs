//! The key set of one issuer of tokens, read again from time to time, and when a token names an unknown key.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet};
use reqwest::Url;
use secrecy::ExposeSecret;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::config::Issuer;
use crate::keys::{KeyError, KeyServer, Patience, read_token, variable};

/// How often a key set is read again, and how soon where it could not be.
const REFRESH: Duration = Duration::from_mins(5);
const RETRY: Duration = Duration::from_secs(5);
/// A token that names an unknown key has the set read again, but no more often than this: anyone can name one.
const LEAST_GAP: Duration = Duration::from_secs(10);
/// Keys of one issuer.
const MOST_KEYS: usize = 64;

pub(super) struct IssuerKeys {
    pub(super) issuer: String,
    url: Url,
    server: KeyServer,
    token_file: Option<PathBuf>,
    keys: RwLock<Option<Arc<Vec<Jwk>>>>,
    /// When the set was last asked for because of an unknown key.
    asked: Mutex<Option<Instant>>,
}

impl IssuerKeys {
    /// Reads the set in the background until `stop`.
    pub(super) fn start(config: &Issuer, stop: &CancellationToken) -> Result<Arc<Self>, KeyError> {
        let url = Url::parse(&config.jwks).map_err(|_| KeyError::NotUri)?;
        let server = KeyServer::new(&url, Patience::Network, config.ca_file.as_deref(), variable)?;
        let keys = Arc::new(Self {
            issuer: config.issuer.clone(),
            url,
            server,
            token_file: config.token_file.clone(),
            keys: RwLock::default(),
            asked: Mutex::default(),
        });
        let (followed, stop) = (Arc::clone(&keys), stop.clone());
        tokio::spawn(async move { stop.run_until_cancelled(followed.follow()).await });
        Ok(keys)
    }

    pub(super) fn readiness(&self) -> Result<(), String> {
        match self.known() {
            Some(_) => Ok(()),
            None => Err(format!("the keys of {} were not read yet", self.issuer)),
        }
    }

    /// The key of this id; a set with one key needs none.
    pub(super) async fn key(&self, id: Option<&str>) -> Option<Jwk> {
        if let Some(key) = self.find(id) {
            return Some(key);
        }
        // All who ask meanwhile share one look.
        let mut asked = self.asked.lock().await;
        if let Some(key) = self.find(id) {
            return Some(key);
        }
        if asked.is_none_or(|at| at.elapsed() >= LEAST_GAP) {
            *asked = Some(Instant::now());
            drop(self.read().await);
        }
        self.find(id)
    }

    fn known(&self) -> Option<Arc<Vec<Jwk>>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn find(&self, id: Option<&str>) -> Option<Jwk> {
        let keys = self.known()?;
        match (id, &**keys) {
            (Some(id), keys) => {
                keys.iter().find(|key| key.common.key_id.as_deref() == Some(id)).cloned()
            }
            (None, [only]) => Some(only.clone()),
            (None, _) => None,
        }
    }

    async fn follow(&self) {
        let mut trouble: Option<String> = None;
        loop {
            let read = self.read().await;
            let wait = if read.is_ok() { REFRESH } else { RETRY };
            let error = read.err().map(|error| error.to_string());
            if let Some(error) = error.as_ref().filter(|error| trouble.as_ref() != Some(error)) {
                let issuer = &*self.issuer;
                tracing::warn!(issuer, error, "the keys of an issuer of tokens cannot be read");
            }
            trouble = error;
            sleep(wait).await;
        }
    }

    async fn read(&self) -> Result<(), KeyError> {
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
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keys));
        Ok(())
    }
}
