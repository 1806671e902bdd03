//! Temporary keys that the emulator gives out, and keys that its user adds.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Response;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::faults::{Fault, parse_duration};
use super::key_ring::{KeyRole, KnownKey};
use super::options::KeyPair;
use super::policy::Policy;
use super::reply::Body;
use super::state::EmulatorInner;
use crate::verification::Refusal;

/// What a service that gives out keys answers, and the fault that hits the call.
pub(super) struct KeyAnswer {
    pub(super) answer: Result<Response<Body>, Refusal>,
    pub(super) fault: Option<Fault>,
}

/// A key with its end.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct IssuedKey {
    access_key_id: String,
    access_key_secret: String,
    security_token: String,
    expiration: String,
    #[serde(skip)]
    expires: Timestamp,
}

impl IssuedKey {
    /// Makes one that may sign from now on.
    pub(super) fn new(
        shared: &EmulatorInner,
        life: Duration,
        policy: Option<Policy>,
        role: KeyRole,
    ) -> Self {
        let life = shared.options.key_life.unwrap_or(life);
        let expires = shared.wall().checked_add(life).unwrap_or(Timestamp::MAX);
        let expiration = expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let token: Vec<u8> = (0..6).flat_map(|_| Uuid::new_v4().into_bytes()).collect();
        let issued = Self {
            access_key_id: format!("STS.{}", Uuid::new_v4().simple()),
            access_key_secret: STANDARD.encode(Uuid::new_v4().into_bytes()),
            security_token: format!("CAIS{}", STANDARD.encode(token)),
            // Cut to a second, and no key lives longer than it says.
            expires: expiration.parse().unwrap_or(expires),
            expiration,
        };
        let pair = KeyPair::with_token(
            &issued.access_key_id,
            &issued.access_key_secret,
            &issued.security_token,
        );
        shared.keys.add(KnownKey { pair, expires: Some(issued.expires), policy, role: Some(role) });
        shared.books().issued += 1;
        issued
    }
}

/// A key that the emulator's user adds.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    id: String,
    secret: String,
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    life: Option<String>,
    #[serde(default)]
    policy: Option<serde_json::Value>,
}

impl NewKey {
    pub(super) fn read(json: &[u8], now: Timestamp) -> Result<KnownKey, String> {
        let read: Self = serde_json::from_slice(json)
            .map_err(|error| format!("no JSON of a key, at column {}", error.column()))?;
        if read.id.is_empty() || read.secret.is_empty() {
            return Err("neither id nor secret may be empty".to_owned());
        }
        let expires = match read.life.as_deref().map(parse_duration) {
            None => None,
            Some(Ok(life)) => now.checked_add(life).ok(),
            Some(Err(error)) => return Err(format!("life: {error}")),
        };
        let policy = match read.policy {
            None => None,
            Some(json) => Some(Policy::of(json).ok_or("policy: it is none")?),
        };
        let pair = KeyPair { id: read.id, secret: read.secret, token: read.token };
        Ok(KnownKey { pair, expires, policy, role: None })
    }
}
