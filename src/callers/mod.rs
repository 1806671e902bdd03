//! Who a caller is: from what a request proves to the caller that the configuration names.

mod file_watch;
mod nonces;
mod secret_file;
mod shared_tokens;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::Clock as _;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::message::{Topic, TopicPattern};
use crate::verification::{Refusal, SigningKey, VerifiedSignature};
use nonces::Nonces;
pub use secret_file::TRUSTED;
use secret_file::{SecretFile, first_look};
pub use shared_tokens::{Named, SharedTokens};

/// The longest token.
const MOST_CHARACTERS: usize = 8_192;
/// Nonces of all access keys together, and of one at least: eight bytes each, and as much again.
const MOST_NONCES: usize = 300_000;
const FEWEST_NONCES: usize = 500;

/// Who may publish, and what each has proven itself by. Cheap to clone.
#[derive(Clone)]
pub struct Callers(Arc<Directory>);

struct Directory {
    /// Whether the configuration names any.
    is_empty: bool,
    tokens: SharedTokens<Caller>,
    keys: HashMap<Box<str>, Arc<IssuedKey>>,
    uids: HashMap<u32, Arc<Caller>>,
    /// By the names of their certificates.
    certificates: HashMap<Box<str>, Arc<Caller>>,
}

/// One of them.
#[derive(Debug)]
pub struct Caller {
    name: Arc<str>,
    topics: Vec<TopicPattern>,
    rate: Option<DefaultDirectRateLimiter>,
}

/// An access key of a caller, issued by the operator.
#[derive(Debug)]
struct IssuedKey {
    caller: Arc<Caller>,
    secret: Arc<SecretFile<Arc<SecretString>>>,
    nonces: Mutex<Nonces>,
}

/// A caller, and the secret that its call is signed with.
#[derive(Debug)]
pub struct CallerKey {
    key: Arc<IssuedKey>,
    secret: Arc<SecretString>,
}

/// Why it is not known who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    /// The request says nothing.
    #[error("the request has no proof of its caller")]
    Absent,
    /// What it has is no bearer token.
    #[error("the request's Authorization is not one bearer token")]
    Malformed,
    /// The token is no caller's.
    #[error("the request's token is no caller's")]
    Unknown,
    /// Its process runs as a user that is no caller.
    #[error("the user of the caller's process is no caller, and it sends no token")]
    OtherUser,
    /// None of its certificate's names is a caller's, or the certificate is not valid any more.
    #[error("the certificate of the connection proves no caller, and the request has no token")]
    OtherCertificate,
    /// Its certificate has names of several callers.
    #[error("the certificate of the connection has the names of several callers")]
    SeveralCallers,
}

impl Callers {
    /// Reads the files of tokens and secrets once, and again and again until `stop`.
    pub async fn start(config: &[config::Caller], stop: &CancellationToken) -> Self {
        let callers: Vec<_> =
            config.iter().map(|caller| (Arc::new(Caller::new(caller)), caller)).collect();
        let files = callers.iter().filter_map(|(caller, config)| {
            Some((Arc::clone(caller), config.token_file.as_deref()?))
        });
        let tokens = SharedTokens::start(files, stop);
        let signing = callers.iter().filter(|(_, config)| config.access_key.is_some()).count();
        let most = (MOST_NONCES / signing.max(1)).max(FEWEST_NONCES);
        let start = Timestamp::now();
        let keys = callers.iter().filter_map(|(caller, config)| {
            let key = config.access_key.as_ref()?;
            let (keep, changes) = (|secret, _| Arc::new(secret), Arc::default());
            let secret = SecretFile::start(&caller.name, &key.secret_file, keep, &changes, stop);
            let nonces = Mutex::new(Nonces::new(most, start));
            Some((
                key.id.as_str().into(),
                Arc::new(IssuedKey { caller: Arc::clone(caller), secret, nonces }),
            ))
        });
        let keys: HashMap<Box<str>, Arc<IssuedKey>> = keys.collect();
        file_watch::watch(keys.values().map(|key| key.secret.watched()).collect(), stop);
        let uids =
            callers.iter().filter_map(|(caller, config)| Some((config.uid?, Arc::clone(caller))));
        let uids = uids.collect();
        let certificates = callers.iter().filter_map(|(caller, config)| {
            Some((config.certificate.as_deref()?.into(), Arc::clone(caller)))
        });
        let certificates = certificates.collect();
        tokens.first_look().await;
        first_look(keys.values().map(|key| Arc::clone(&key.secret)).collect()).await;
        let is_empty = config.is_empty();
        Self(Arc::new(Directory { is_empty, tokens, keys, uids, certificates }))
    }

    /// Who has sent a request with these headers, from a process of this user if it came over a Unix socket, or with a
    /// certificate that has these names. `None`: the configuration names no callers, so all are one.
    ///
    /// # Errors
    /// It does not prove to be a caller. A token that is no caller's counts, whatever the user or the certificate.
    pub fn identify(
        &self,
        headers: &HeaderMap,
        uid: Option<u32>,
        certificate: Option<&[Box<str>]>,
    ) -> Result<Option<Arc<Caller>>, Unproven> {
        let Directory { is_empty, tokens, uids, .. } = &*self.0;
        if *is_empty {
            return Ok(None);
        }
        match (bearer(headers)?, uid, certificate) {
            (Some(token), ..) => tokens.caller(&token).map(Some).ok_or(Unproven::Unknown),
            (None, Some(uid), _) => uids.get(&uid).cloned().map(Some).ok_or(Unproven::OtherUser),
            (None, None, Some(names)) => self.certified(names).map(Some),
            (None, None, None) => Err(Unproven::Absent),
        }
    }

    /// The one caller that the names of a certificate prove.
    fn certified(&self, names: &[Box<str>]) -> Result<Arc<Caller>, Unproven> {
        let mut proven = names.iter().filter_map(|name| self.0.certificates.get(name));
        let caller = proven.next().ok_or(Unproven::OtherCertificate)?;
        if proven.any(|other| !Arc::ptr_eq(caller, other)) {
            return Err(Unproven::SeveralCallers);
        }
        Ok(Arc::clone(caller))
    }

    /// The key that a call is to be signed with.
    ///
    /// # Errors
    /// No caller has one of this id, its file has no secret at present, or there is a token with it.
    pub fn find(&self, id: &str, token: Option<&str>) -> Result<CallerKey, Refusal> {
        let key = self.0.keys.get(id);
        let secret = key.and_then(|key| Some((key, key.secret.trusted()?)));
        let not_found = || Refusal::new("InvalidAccessKeyId.NotFound");
        let (key, secret) = secret.ok_or_else(not_found)?;
        if token.is_some() {
            return Err(Refusal::new("InvalidSecurityToken.MismatchWithAccessKey"));
        }
        Ok(CallerKey { key: Arc::clone(key), secret })
    }

    /// The caller whose access key has this id, where ids are believed. `None`: all callers are one.
    ///
    /// # Errors
    /// The configuration names callers, and none with it.
    pub fn called(&self, id: &str) -> Result<Option<Arc<Caller>>, Refusal> {
        match self.0.keys.get(id) {
            Some(key) => Ok(Some(Arc::clone(&key.caller))),
            None if self.0.is_empty => Ok(None),
            None => Err(Refusal::new("InvalidAccessKeyId.NotFound")),
        }
    }

    /// The caller of a call whose signature is right, and which was not taken before.
    ///
    /// # Errors
    /// It was, or may have been.
    pub fn accept(
        signed: &VerifiedSignature<'_, CallerKey>,
        now: Timestamp,
    ) -> Result<Arc<Caller>, Refusal> {
        let IssuedKey { caller, nonces, .. } = &*signed.key.key;
        let mut nonces = nonces.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.take(signed.nonce, signed.time, now)?;
        Ok(Arc::clone(caller))
    }

    /// Whether the configuration names none, so that all are one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty
    }
}

impl Caller {
    fn new(config: &config::Caller) -> Self {
        let rate = config.calls_per_second.and_then(NonZeroU32::new);
        Self {
            name: config.name.as_str().into(),
            topics: config.topics.clone(),
            rate: rate.map(|rate| RateLimiter::direct(Quota::per_second(rate))),
        }
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether it may publish to a topic.
    pub fn may_publish(&self, topic: &Topic) -> bool {
        self.topics.is_empty() || self.topics.iter().any(|pattern| pattern.matches(topic))
    }

    /// Whether no topic is closed to it.
    pub fn may_publish_all(&self) -> bool {
        self.topics.is_empty()
    }

    /// Counts one call of it.
    ///
    /// # Errors
    /// It has sent as many as it may; the next one is taken after this.
    pub fn count(&self) -> Result<(), Duration> {
        let Some(rate) = &self.rate else { return Ok(()) };
        rate.check().map_err(|later| later.wait_time_from(rate.clock().now()))
    }
}

impl Named for Caller {
    fn name(&self) -> &str {
        &self.name
    }
}

impl SigningKey for CallerKey {
    fn secret(&self) -> &str {
        self.secret.expose_secret()
    }
}

/// The token of a request, if it has an `Authorization`.
fn bearer(headers: &HeaderMap) -> Result<Option<SecretString>, Unproven> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = given.next() else { return Ok(None) };
    if given.next().is_some() || value.len() > MOST_CHARACTERS {
        return Err(Unproven::Malformed);
    }
    let text = value.to_str().map_err(|_| Unproven::Malformed)?;
    let (scheme, token) = text.split_once(' ').ok_or(Unproven::Malformed)?;
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(Unproven::Malformed);
    }
    Ok(Some(SecretString::from(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_requests() {
        let header = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            bearer(&headers).map(|token| token.map(|token| token.expose_secret().to_owned()))
        };
        assert_eq!(header(&[]), Ok(None));
        assert_eq!(header(&["Bearer abc"]), Ok(Some("abc".to_owned())));
        assert_eq!(header(&["bearer  abc "]), Ok(Some("abc".to_owned())));
        for wrong in [&["Bearer"][..], &["Bearer "], &["Basic dTpw"], &["Bearer a", "Bearer a"]] {
            assert_eq!(header(wrong), Err(Unproven::Malformed), "{wrong:?}");
        }
        assert_eq!(header(&[&format!("Bearer {}", "a".repeat(9_000))]), Err(Unproven::Malformed));
    }
}
