//! The keys that may sign, and the tokens that temporary ones need.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

use super::options::KeyPair;
use super::policy::Policy;
use crate::verification::{Refusal, SigningKey};

/// Keys that are known at once. Beyond it, keys that have ended are forgotten.
const MOST_KEYS: usize = 10_000;

/// Keys by id.
pub(super) struct KeyRing(Mutex<HashMap<String, Arc<KnownKey>>>);

/// A key, and what it may do.
pub(super) struct KnownKey {
    pub(super) pair: KeyPair,
    /// By the provider's clock.
    pub(super) expires: Option<Timestamp>,
    /// What narrows it; `None`: it may do everything.
    pub(super) policy: Option<Policy>,
    /// Of a role's key.
    pub(super) role: Option<KeyRole>,
}

/// For which session a key was given out.
#[derive(Debug, Clone, Serialize)]
pub(super) struct KeyRole {
    pub(super) role_arn: String,
    pub(super) session_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) external_id: Option<String>,
}

/// A key as it may be shown.
#[derive(Serialize)]
pub(super) struct KeyView {
    id: String,
    kind: &'static str,
    expires: Option<String>,
    expired: bool,
    policy: Option<serde_json::Value>,
    role: Option<KeyRole>,
}

impl KnownKey {
    /// A key without a role.
    pub(super) fn lasting(pair: KeyPair, expires: Option<Timestamp>) -> Self {
        Self { pair, expires, policy: None, role: None }
    }

    /// Whether it may send to a topic.
    pub(super) fn may_send(&self, instance: &str, topic: &str) -> bool {
        let parent = topic.split('/').next().unwrap_or_default();
        self.may(
            "mq:SendMessage",
            &format!("acs:mq:cn-emulated:1000000000000001:topic/{instance}/{parent}"),
        )
    }

    pub(super) fn may(&self, action: &str, resource: &str) -> bool {
        self.policy.as_ref().is_none_or(|policy| policy.allows(action, resource))
    }

    fn has_ended(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }
}

impl SigningKey for KnownKey {
    fn secret(&self) -> &str {
        &self.pair.secret
    }
}

impl KeyRing {
    pub(super) fn new(keys: Vec<KeyPair>) -> Self {
        let known = |pair: KeyPair| (pair.id.clone(), Arc::new(KnownKey::lasting(pair, None)));
        Self(Mutex::new(keys.into_iter().map(known).collect()))
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<String, Arc<KnownKey>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, key: KnownKey) {
        let mut keys = self.keys();
        if keys.len() >= MOST_KEYS {
            let now = Timestamp::now();
            keys.retain(|_, key| !key.has_ended(now));
        }
        keys.insert(key.pair.id.clone(), Arc::new(key));
    }

    /// Whether there was one.
    pub(super) fn revoke(&self, id: &str) -> bool {
        self.keys().remove(id).is_some()
    }

    pub(super) fn views(&self, now: Timestamp) -> Vec<KeyView> {
        let view = |key: &Arc<KnownKey>| KeyView {
            id: key.pair.id.clone(),
            kind: if key.pair.token.is_some() { "temporary" } else { "lasting" },
            expires: key.expires.map(|at| at.to_string()),
            expired: key.has_ended(now),
            policy: key.policy.as_ref().map(Policy::as_json),
            role: key.role.clone(),
        };
        let mut views: Vec<_> = self.keys().values().map(view).collect();
        views.sort_by(|a, b| a.id.cmp(&b.id));
        views
    }

    /// The key of that id, if the token that came is the one that must come and the key has not ended.
    pub(super) fn find(
        &self,
        id: &str,
        token: Option<&str>,
        now: Timestamp,
    ) -> Result<Arc<KnownKey>, Refusal> {
        let keys = self.keys();
        let key = keys.get(id).ok_or_else(|| Refusal::new("InvalidAccessKeyId.NotFound"))?;
        let anybody_has = |token| keys.values().any(|key| key.pair.token.as_deref() == Some(token));
        match (key.pair.token.as_deref(), token) {
            (None, None) => {}
            (Some(_), None) => return Err(Refusal::new("MissingSecurityToken")),
            (Some(expected), Some(token)) if expected == token => {}
            (_, Some(token)) if anybody_has(token) => {
                return Err(Refusal::new("InvalidSecurityToken.MismatchWithAccessKey"));
            }
            (_, Some(_)) => return Err(Refusal::new("InvalidSecurityToken.Malformed")),
        }
        if key.has_ended(now) {
            return Err(Refusal::new("InvalidSecurityToken.Expired"));
        }
        Ok(Arc::clone(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_belongs_to_its_key() {
        let keys = KeyRing::new(vec![
            KeyPair::new("lasting", "s"),
            KeyPair::with_token("one", "s", "token-1"),
            KeyPair::with_token("two", "s", "token-2"),
        ]);
        let now = Timestamp::UNIX_EPOCH;
        let code = |id, token| keys.find(id, token, now).err().map(|refusal| refusal.code);
        assert_eq!(code("lasting", None), None);
        assert_eq!(code("one", Some("token-1")), None);
        assert_eq!(code("nobody", None).unwrap(), "InvalidAccessKeyId.NotFound");
        assert_eq!(code("one", None).unwrap(), "MissingSecurityToken");
        assert_eq!(code("one", Some("nonsense")).unwrap(), "InvalidSecurityToken.Malformed");
        for id in ["one", "lasting"] {
            let mismatch = code(id, Some("token-2")).unwrap();
            assert_eq!(mismatch, "InvalidSecurityToken.MismatchWithAccessKey");
        }
        let ending = KeyPair::with_token("ending", "s", "token-3");
        keys.add(KnownKey::lasting(ending, Some(now)));
        assert_eq!(code("ending", Some("token-3")).unwrap(), "InvalidSecurityToken.Expired");
        assert!(keys.revoke("one") && !keys.revoke("one"));
        assert_eq!(code("one", Some("token-1")).unwrap(), "InvalidAccessKeyId.NotFound");
    }
}
