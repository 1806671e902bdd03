//! The central holder of keys, for clusters without workload identity: it alone has a lasting key, and hands
//! short-lived, narrowed ones to callers that prove themselves.
//!
//! `serve` accepts connections over TLS; `proof` finds out who asks, by a token of a service
//! account (`issuer_keys`, `token_check`) or a shared token; `hand_out` has a key for each
//! caller, with a session policy. Instances share no state: each has keys of its own for its callers.

mod hand_out;
mod issuer_keys;
mod proof;
mod serve;
mod token_check;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use secrecy::ExposeSecret;
use secrecy::zeroize::Zeroizing;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::{self, CallerProof, TlsFiles};
use crate::keys::{Key, KeyError, Keys, RoleIssuer};
use crate::log_limiter::LogLimiter;
use crate::server::{Certificates, Listener};
use hand_out::{HandOut, Withheld};
use proof::Proofs;

/// Log lines a second about callers that get nothing.
const MOST_LINES: u64 = 5;

/// Of a key as JSON.
const MOST_BYTES: usize = 16 * 1024;

/// Why a keyring does not start.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// Its address cannot be bound.
    #[error("cannot listen at {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// Its own key's source, or a key set, can never be asked.
    #[error("{0}")]
    Keys(#[from] KeyError),
    /// Its certificate cannot be used.
    #[error("{0}")]
    Certificate(KeyError),
}

/// A running keyring.
pub struct RunningKeyring {
    address: SocketAddr,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

/// What all connections share.
struct KeyringInner {
    proofs: Proofs,
    hand_out: HandOut,
    lines: LogLimiter,
}

/// A key in the form of the provider's metadata service.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct HandedKey<'a> {
    code: &'static str,
    access_key_id: &'a str,
    access_key_secret: &'a str,
    security_token: Option<&'a str>,
    expiration: String,
    last_updated: String,
}

impl RunningKeyring {
    /// Starts one on the current runtime, with the keys that it assumes roles with.
    pub async fn start(config: &config::Keyring, base: Keys) -> Result<Self, KeyringError> {
        let failed = |error| KeyringError::Listen(config.listen, error);
        let certificates = match &config.tls {
            Some((certificate, key)) => {
                let (certificate, key) = (certificate.clone(), key.clone());
                let files = TlsFiles { certificate, key, client_ca: None };
                Some(Certificates::read(&files).await.map_err(KeyringError::Certificate)?)
            }
            None => None,
        };
        let stop = CancellationToken::new();
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let inner = Arc::new(KeyringInner {
            proofs: Proofs::start(config, &stop).await?,
            hand_out: HandOut::new(config, RoleIssuer::new(base, &config.sts)?),
            lines: LogLimiter::new(MOST_LINES),
        });
        let listener = match certificates {
            Some(certificates) => {
                let current = certificates.current();
                tokio::spawn(certificates.follow(stop.clone()));
                Listener::Tls(listener, current)
            }
            None => Listener::Tcp(listener),
        };
        let most = config.max_connections;
        let served = tokio::spawn(serve::run(listener, inner, most, stop.clone()));
        Ok(Self { address, stop, served })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it: what is under way is given a moment.
    pub async fn stop(self) {
        self.stop.cancel();
        drop(self.served.await);
    }
}

impl KeyringInner {
    /// Whether keys can be handed out: there is one of our own, and the key set of an issuer is known, if
    /// there are issuers. Anyone may ask: paths, addresses and names stand in the log only.
    fn readiness(&self) -> Result<(), &'static str> {
        if self.hand_out.base().current().is_err() {
            return Err("no key of its own: see the log\n");
        }
        self.proofs.is_ready().then_some(()).ok_or("no issuer's keys are known: see the log\n")
    }

    /// A key for who proves itself, as JSON.
    async fn key_for(
        &self,
        headers: &http::HeaderMap,
        query: Option<&str>,
        from: Option<SocketAddr>,
    ) -> Result<Bytes, Withheld> {
        let from = from.map(tracing::field::display);
        let proven = self.proofs.check(headers, query).await.map_err(Withheld::Unproven);
        let handed = match proven {
            Ok(caller) => self.hand_out.key_for(&caller).await.map(|key| (caller, key)),
            Err(withheld) => Err(withheld),
        };
        match handed {
            Ok((caller, key)) => {
                let expires = key.expires().map(tracing::field::display);
                let (name, subject) = (&*caller.caller.name, &*caller.subject);
                let issuer = match &caller.caller.proof {
                    CallerProof::ServiceAccount { issuer, .. } => Some(&**issuer),
                    CallerProof::TokenFile(_) => None,
                };
                let role = caller.caller.role_arn.as_deref();
                tracing::info!(caller = name, issuer, subject, from, key = key.masked(), expires, role, instances = ?caller.caller.instances, topics = ?caller.caller.topics, "key handed out");
                Ok(json(&key))
            }
            Err(withheld) => {
                if let Some(suppressed) = self.lines.next() {
                    tracing::warn!(from, suppressed, reason = %withheld, "no key handed out");
                }
                Err(withheld)
            }
        }
    }
}

/// Wiped when it was sent.
fn json(key: &Key) -> Bytes {
    let time = |at: Timestamp| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let handed = HandedKey {
        code: "Success",
        access_key_id: key.id(),
        access_key_secret: key.secret().expose_secret(),
        security_token: key.token().map(ExposeSecret::expose_secret),
        expiration: time(key.expires().unwrap_or(Timestamp::MAX)),
        last_updated: time(Timestamp::now()),
    };
    // As large as it can get: growing would leave copies behind that are not wiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MOST_BYTES));
    // Strings, and memory takes all: writing them cannot fail.
    drop(serde_json::to_writer(&mut *bytes, &handed));
    Bytes::from_owner(bytes)
}
