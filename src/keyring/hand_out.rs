//! A key for each caller, kept until shortly before its end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, timeout};

use super::policy;
use super::proof::{ProvenCaller, Unproven};
use crate::config::{Keyring, RoleSession};
use crate::keys::{Key, KeyError, Keys, RoleIssuer};

/// How long a caller waits for another one's request for the same key.
const PATIENCE: Duration = Duration::from_secs(8);
/// A key with less than this left is of no use to a caller.
const LAST: SignedDuration = SignedDuration::from_mins(1);
/// After a failure, the service is not asked again for so long.
const PAUSE: Duration = Duration::from_secs(1);
const SECOND: Duration = Duration::from_secs(1);

/// Why a caller gets no key.
#[derive(Debug, thiserror::Error)]
pub(super) enum Withheld {
    /// It has not proven who it is.
    #[error("{0}")]
    Unproven(Unproven),
    /// It asks too often.
    #[error("caller {0} asks too often")]
    TooOften(String),
    /// As many callers as there may be have keys already.
    #[error("as many callers as keyring.max_callers allows have keys already")]
    TooMany,
    /// The Security Token Service gave none.
    #[error("caller {0}: {1}")]
    Failed(String, String),
}

/// Keys for callers.
pub(super) struct HandOut {
    issuer: RoleIssuer,
    session: RoleSession,
    callers: Mutex<HashMap<String, Arc<CallerKeys>>>,
    most: usize,
    rate: u32,
}

/// Of one caller.
#[derive(Default)]
struct CallerKeys {
    asked: Mutex<AskedRate>,
    /// Held while a key is fetched, so that all who ask share it.
    key: AsyncMutex<CallerKey>,
}

/// Requests in the second that has begun with the first of them.
#[derive(Default)]
struct AskedRate {
    since: Option<Instant>,
    requests: u32,
}

#[derive(Default)]
struct CallerKey {
    key: Option<Arc<Key>>,
    /// From when on it is renewed.
    renew: Option<Timestamp>,
    failed: Option<(Instant, String)>,
}

impl HandOut {
    pub(super) fn new(config: &Keyring, issuer: RoleIssuer) -> Self {
        Self {
            issuer,
            session: config.session.clone(),
            callers: Mutex::default(),
            most: config.max_callers,
            rate: config.requests_per_second,
        }
    }

    pub(super) fn base(&self) -> &Keys {
        self.issuer.base()
    }

    /// The key of a caller: the one that it has had before, while much of that is left.
    pub(super) async fn key_for(&self, caller: &ProvenCaller) -> Result<Arc<Key>, Withheld> {
        let name = || caller.caller.name.clone();
        let keys = self.keys_of(caller)?;
        if !keys.may_ask(self.rate) {
            return Err(Withheld::TooOften(name()));
        }
        let failed = |why: String| Withheld::Failed(name(), why);
        let held = timeout(PATIENCE, keys.key.lock()).await;
        let mut held = held.map_err(|_| failed("its key is still being fetched".to_owned()))?;
        let now = Timestamp::now();
        if let Some(key) = held.usable(now, held.renew) {
            return Ok(key);
        }
        if held.failed.as_ref().is_none_or(|(at, _)| at.elapsed() >= PAUSE) {
            match self.issue(caller).await {
                Ok(key) => *held = CallerKey::new(key, now),
                Err(error) => held.failed = Some((Instant::now(), error.to_string())),
            }
        }
        held.usable(Timestamp::now(), None).ok_or_else(|| {
            let why = held.failed.as_ref().map(|(_, why)| why.clone());
            failed(why.unwrap_or_else(|| "it has ended at once".to_owned()))
        })
    }

    async fn issue(&self, caller: &ProvenCaller) -> Result<Key, KeyError> {
        let role_arn = caller.caller.role_arn.as_ref().unwrap_or(&self.session.role_arn).clone();
        let policy = Some(policy::of(&caller.caller));
        let name = caller.caller.name.clone();
        let session = RoleSession { role_arn, name, policy, ..self.session.clone() };
        self.issuer.issue(&session).await
    }

    fn keys_of(&self, caller: &ProvenCaller) -> Result<Arc<CallerKeys>, Withheld> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = callers.get(&caller.subject) {
            return Ok(Arc::clone(keys));
        }
        if callers.len() >= self.most {
            let now = Timestamp::now();
            callers.retain(|_, keys| keys.is_in_use(now));
        }
        if callers.len() >= self.most {
            return Err(Withheld::TooMany);
        }
        let keys = Arc::<CallerKeys>::default();
        callers.insert(caller.subject.clone(), Arc::clone(&keys));
        Ok(keys)
    }
}

impl CallerKeys {
    fn may_ask(&self, rate: u32) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if asked.since.is_none_or(|since| now - since >= SECOND) {
            *asked = AskedRate { since: Some(now), requests: 0 };
        }
        asked.requests += 1;
        asked.requests <= rate
    }

    /// Whether it has a key that lives, or is about to.
    fn is_in_use(&self, now: Timestamp) -> bool {
        match self.key.try_lock() {
            Ok(held) => held.usable(now, None).is_some(),
            Err(_) => true,
        }
    }
}

impl CallerKey {
    /// Half of its life is for the caller, who wants to renew it in time, too.
    fn new(key: Key, now: Timestamp) -> Self {
        let life = key.expires().map(|at| at.duration_since(now));
        let renew = life.and_then(|life| now.checked_add(life / 2).ok());
        Self { key: Some(Arc::new(key)), renew, failed: None }
    }

    /// The key, if it need not be renewed and enough of it is left.
    fn usable(&self, now: Timestamp, renew: Option<Timestamp>) -> Option<Arc<Key>> {
        let key = self.key.as_ref()?;
        let ends = key.expires()?;
        let last = now.checked_add(LAST).ok()?;
        let is_due = renew.is_some_and(|renew| renew <= now);
        // One that lives for seconds, as in tests, is of use to its end.
        let is_short = self.renew.is_some_and(|renew| ends.duration_since(renew) < LAST);
        let lives = if is_short { ends > now } else { ends > last };
        (lives && !is_due).then(|| Arc::clone(key))
    }
}
