//! A key for each caller, kept until shortly before its end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::proof::{ProvenCaller, Unproven};
use crate::backoff::Backoff;
use crate::config::{CallerProof, Keyring, KeyringCaller, RoleSession};
use crate::keys::{Key, KeyError, Keys, RoleIssuer};

/// How long a caller waits for a request for its key.
const PATIENCE: Duration = Duration::from_secs(8);
/// A key with less than this left is of no use to a caller.
const LAST: SignedDuration = SignedDuration::from_mins(1);
/// After a failure, the service is not asked again for a caller for so long.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const PAUSES: Backoff = Backoff::exponential(Duration::from_secs(2), Duration::from_secs(8));
/// Requests to the service at once, over all callers.
const MOST_REQUESTS: usize = 16;
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
    /// As many of its accounts as there may be have keys already.
    #[error("as many accounts of caller {0} as its part of keyring.max_callers allows have keys")]
    TooMany(String),
    /// The Security Token Service gave none.
    #[error("caller {0}: {1}")]
    Failed(String, String),
}

/// Keys for callers.
pub(super) struct HandOut {
    roles: Arc<Roles>,
    callers: Mutex<HashMap<AccountId, Arc<AccountKeys>>>,
    /// Accounts that a caller with a `*` in its subject may have.
    most: usize,
    rate: u32,
}

/// What is asked for keys.
struct Roles {
    issuer: RoleIssuer,
    session: RoleSession,
    room: Semaphore,
    jitter: Mutex<fastrand::Rng>,
}

/// A caller, and which of those that it stands for. Its issuer is the caller's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct AccountId {
    caller: String,
    subject: String,
}

/// Of one account.
#[derive(Default)]
struct AccountKeys {
    asked: Mutex<AskedRate>,
    state: watch::Sender<AccountKey>,
}

/// Requests in the second that has begun with the first of them.
#[derive(Default)]
struct AskedRate {
    since: Option<Instant>,
    requests: u32,
}

#[derive(Default)]
struct AccountKey {
    key: Option<Arc<Key>>,
    /// From when on it is renewed.
    renew: Option<Timestamp>,
    /// A task asks for one; all who want it meanwhile share that.
    is_asking: bool,
    failures: u32,
    /// Why there is none, and until when none is asked for.
    failed: Option<(Instant, String)>,
}

impl HandOut {
    pub(super) fn new(config: &Keyring, issuer: RoleIssuer) -> Self {
        let wild = config.callers.iter().filter(|caller| stands_for_many(caller)).count();
        let others = config.callers.len() - wild;
        let session = config.session.clone();
        let jitter = Mutex::new(fastrand::Rng::new());
        Self {
            roles: Arc::new(Roles { issuer, session, room: Semaphore::new(MOST_REQUESTS), jitter }),
            callers: Mutex::default(),
            most: (config.max_callers.saturating_sub(others) / wild.max(1)).max(1),
            rate: config.requests_per_second,
        }
    }

    pub(super) fn base(&self) -> &Keys {
        self.roles.issuer.base()
    }

    /// The key of a caller: the one that it has had before, while much of that is left.
    pub(super) async fn key_for(&self, caller: &ProvenCaller) -> Result<Arc<Key>, Withheld> {
        let name = || caller.caller.name.clone();
        let keys = self.keys_of(caller)?;
        if !keys.may_ask(self.rate) {
            return Err(Withheld::TooOften(name()));
        }
        let mut state = keys.state.subscribe();
        let now = Timestamp::now();
        if keys.state.send_if_modified(|state| state.begins(now)) {
            // Whether its caller waits for it or not: what comes is kept for the next one.
            let (roles, keys) = (Arc::clone(&self.roles), Arc::clone(&keys));
            let caller = Arc::clone(&caller.caller);
            tokio::spawn(async move { roles.renew(&caller, &keys).await });
        }
        let failed = |why: &str| Withheld::Failed(name(), why.to_owned());
        let asked = timeout(PATIENCE, state.wait_for(|state| !state.is_asking)).await;
        drop(asked);
        let state = keys.state.borrow();
        state.usable(Timestamp::now(), None).ok_or_else(|| match &state.failed {
            _ if state.is_asking => failed("its key is still being fetched"),
            Some((_, why)) => failed(why),
            None => failed("it has ended at once"),
        })
    }

    fn keys_of(&self, caller: &ProvenCaller) -> Result<Arc<AccountKeys>, Withheld> {
        let id = AccountId { caller: caller.caller.name.clone(), subject: caller.subject.clone() };
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = callers.get(&id) {
            return Ok(Arc::clone(keys));
        }
        let most = if stands_for_many(&caller.caller) { self.most } else { 1 };
        let is_full = |callers: &HashMap<AccountId, _>| {
            callers.keys().filter(|other| other.caller == id.caller).count() >= most
        };
        if is_full(&callers) {
            let now = Timestamp::now();
            callers.retain(|_, keys| keys.is_in_use(now));
        }
        if is_full(&callers) {
            return Err(Withheld::TooMany(id.caller));
        }
        let keys = Arc::<AccountKeys>::default();
        callers.insert(id, Arc::clone(&keys));
        Ok(keys)
    }
}

/// Whether it is one for all the accounts whose subjects fit.
fn stands_for_many(caller: &KeyringCaller) -> bool {
    matches!(&caller.proof, CallerProof::ServiceAccount { subject, .. } if subject.contains('*'))
}

impl Roles {
    /// One request for an account's key, of which its state has it that it is made.
    async fn renew(&self, caller: &KeyringCaller, keys: &AccountKeys) {
        let random = self.jitter.lock().unwrap_or_else(PoisonError::into_inner).f64();
        let request = async {
            let _place = self.room.acquire().await;
            self.issue(caller).await
        };
        keys.renew(random, request).await;
    }

    async fn issue(&self, caller: &KeyringCaller) -> Result<Key, KeyError> {
        let role_arn = caller.role_arn.as_ref().unwrap_or(&self.session.role_arn).clone();
        let policy = Some(caller.session_policy());
        let name = caller.name.clone();
        let session = RoleSession { role_arn, name, policy, ..self.session.clone() };
        self.issuer.issue(&session).await
    }
}

impl AccountKeys {
    /// Notes what a request brings. One that panics has failed, too: its callers do not wait on, and the next one
    /// asks again.
    async fn renew(&self, random: f64, request: impl Future<Output = Result<Key, KeyError>>) {
        let brought = Err("the request was cut off".to_owned());
        let mut request_end = RequestEnd { keys: self, random, brought };
        request_end.brought = request.await.map_err(|error| error.to_string());
    }

    fn may_ask(&self, rate: u32) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if asked.since.is_none_or(|since| now - since >= SECOND) {
            *asked = AskedRate { since: Some(now), requests: 0 };
        }
        asked.requests = asked.requests.saturating_add(1);
        asked.requests <= rate
    }

    /// Whether it has a key that lives, or is about to.
    fn is_in_use(&self, now: Timestamp) -> bool {
        let state = self.state.borrow();
        state.is_asking || state.usable(now, None).is_some()
    }
}

/// Notes the end of a request when it is dropped, however it ends.
struct RequestEnd<'a> {
    keys: &'a AccountKeys,
    random: f64,
    brought: Result<Key, String>,
}

impl Drop for RequestEnd<'_> {
    fn drop(&mut self) {
        let brought = std::mem::replace(&mut self.brought, Err(String::new()));
        self.keys.state.send_modify(|state| match brought {
            Ok(key) => *state = AccountKey::new(key, Timestamp::now()),
            Err(why) => state.fails(why, self.random),
        });
    }
}

impl AccountKey {
    /// Half of its life is for the caller, who wants to renew it in time, too.
    fn new(key: Key, now: Timestamp) -> Self {
        let life = key.expires().map(|at| at.duration_since(now));
        let renew = life.and_then(|life| now.checked_add(life / 2).ok());
        Self { key: Some(Arc::new(key)), renew, ..Self::default() }
    }

    /// Whether a key is to be asked for now, and no task does.
    fn begins(&mut self, now: Timestamp) -> bool {
        let waits = self.failed.as_ref().is_some_and(|(until, _)| Instant::now() < *until);
        if self.is_asking || waits || self.usable(now, self.renew).is_some() {
            return false;
        }
        self.is_asking = true;
        true
    }

    fn fails(&mut self, why: String, random: f64) {
        self.is_asking = false;
        self.failures = self.failures.saturating_add(1);
        let pause = PAUSES.after(self.failures, random).max(SHORTEST_PAUSE);
        self.failed = Some((Instant::now() + pause, why));
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_that_panics_has_failed() {
        let keys = Arc::<AccountKeys>::default();
        let begins = || keys.state.send_if_modified(|state| state.begins(Timestamp::now()));
        assert!(begins() && !begins(), "one for all who want it");
        let mut waiting = keys.state.subscribe();
        let asked = Arc::clone(&keys);
        let request = async move { asked.renew(1.0, poll_fn(|_| panic!("a bug"))).await };
        tokio::spawn(request).await.unwrap_err();
        let ended = waiting.wait_for(|state| !state.is_asking);
        let state = timeout(PATIENCE, ended).await.expect("no caller waits on").unwrap();
        assert_eq!(state.failed.as_ref().unwrap().1, "the request was cut off");
        drop(state);
        assert!(!begins(), "as after any failure");
        advance(Duration::from_secs(8)).await;
        assert!(begins());
        keys.renew(1.0, async { Err(KeyError::NotLoaded) }).await;
        assert_eq!(keys.state.borrow().failures, 2);
    }
}
