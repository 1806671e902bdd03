//! The sidecars that share the ceilings. Each reports its state to Redis every few seconds; one whose
//! page is viewed reads the reports of all.
//!
//! No promise rests on this: a sidecar that does not report in time is not shown.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::script_client::ScriptConnection;
use super::{CeilingInner, Scope, Status};
use crate::answer::clean;
use crate::config;

/// What Redis runs.
pub(super) const SCRIPT: &str = include_str!("members.lua");
/// How often each sidecar reports.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// How often it reports and reads while it is viewed: until the last view was [`LOOKED`] ago.
const VIEWED_EVERY: Duration = Duration::from_secs(1);
const LOOKED: Duration = Duration::from_secs(10);
/// The most members that are read.
const MOST: usize = 500;
const PATIENCE: Duration = Duration::from_secs(2);

/// One sidecar of a fleet, as it last reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its machine's name; a pod's is the pod's.
    pub name: String,
    /// Of tollgate.
    pub version: String,
    /// The region of its calls; empty: it is not known.
    #[serde(default)]
    pub region: String,
    /// Its `fleet.egress_group`; empty: none.
    #[serde(default)]
    pub egress_group: String,
    /// Permits of the narrowest ceiling that it holds.
    pub share: usize,
    /// Calls in flight or answered within its last second.
    pub used: usize,
    /// Messages that wait for a permit.
    pub waiting: usize,
    /// How long the first of them has waited, milliseconds.
    pub longest_wait_ms: u64,
    /// How long ago it reported.
    #[serde(skip)]
    pub age: Duration,
}

/// A fleet, as far as is known.
#[derive(Debug, Clone, Default)]
pub struct FleetStatus {
    /// Whose permits they are.
    pub account: String,
    /// The region of this sidecar's calls; empty: it is not known.
    pub region: String,
    /// Whose calls the account's ceiling counts.
    pub scope: Scope,
    /// How many sidecars share them; 0: not known yet.
    pub size: usize,
    /// No more than a few hundred of them, the latest reports first; empty until the first view.
    pub members: Vec<Member>,
    /// When Redis answered.
    pub at: Option<Instant>,
    /// How long Redis still learns what is out, and gives out nothing.
    pub opens_in: Duration,
}

/// What the task and those who look share.
#[derive(Debug, Default)]
pub(super) struct Members {
    state: Mutex<FleetState>,
    looked: Notify,
}

#[derive(Debug, Default)]
struct FleetState {
    connection: Option<ScriptConnection>,
    /// By what Redis knows this process.
    id: String,
    keys: Vec<String>,
    looked: Option<Instant>,
    fleet: FleetStatus,
}

impl Members {
    fn known(&self) -> MutexGuard<'_, FleetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to Redis; `None`: there is none.
    pub(super) fn connected(&self, connection: Option<ScriptConnection>) {
        self.known().connection = connection;
    }

    /// What is known; from now on it is kept fresh for a while.
    pub(super) fn look(&self) -> FleetStatus {
        let mut known = self.known();
        let now = Instant::now();
        let was = known.looked.replace(now);
        if was.is_none_or(|was| now - was >= LOOKED) {
            self.looked.notify_one();
        }
        known.fleet.clone()
    }

    /// What is known without reading them: not the members, which may be of long ago.
    pub(super) fn as_known(&self) -> FleetStatus {
        let known = self.known();
        let FleetStatus { account, region, scope, size, at, opens_in, .. } = &known.fleet;
        let (account, region) = (account.clone(), region.clone());
        let members = Vec::new();
        FleetStatus {
            account,
            region,
            scope: *scope,
            size: *size,
            members,
            at: *at,
            opens_in: *opens_in,
        }
    }

    /// How many share the ceilings, without looking at them.
    pub(super) fn size(&self) -> usize {
        self.known().fleet.size
    }

    /// This one is gone.
    pub(super) async fn leave(&self) {
        self.report("", 0).await;
    }

    async fn report(&self, words: &str, most: usize) {
        let (mut connection, id, keys) = {
            let known = self.known();
            let Some(connection) = known.connection.clone() else { return };
            (connection, known.id.clone(), known.keys.clone())
        };
        let script = redis::Script::new(SCRIPT);
        let mut call = script.key(&keys);
        call.arg(id).arg(words).arg(most);
        let reply = timeout(PATIENCE, call.invoke_async::<(usize, Vec<String>)>(&mut connection));
        let (size, reply) = match reply.await {
            Ok(Ok(reply)) => reply,
            // The pool says in the log what is wrong with Redis.
            Ok(Err(error)) => {
                return tracing::debug!(%error, "this sidecar's state was not reported to the fleet");
            }
            Err(_) => return,
        };
        let mut known = self.known();
        known.fleet.size = size;
        if most > 0 {
            known.fleet.members = reply.iter().filter_map(|words| read(words)).collect();
            known.fleet.at = Some(Instant::now());
        }
    }
}

/// What another version says is read as far as it is understood.
fn read(words: &str) -> Option<Member> {
    let (age, words) = words.split_once(':')?;
    let age = Duration::from_millis(age.parse().ok()?);
    let mut member: Member = serde_json::from_str(words).ok()?;
    let Member { name, version, region, egress_group, .. } = &mut member;
    for text in [name, version, region, egress_group] {
        *text = clean(text).into();
    }
    Some(Member { age, ..member })
}

/// Tells and asks, until the ceiling is dropped.
pub(super) async fn run(
    members: Arc<Members>,
    shared: Weak<CeilingInner>,
    config: config::Fleet,
    ceilings: Vec<String>,
) {
    let name = member_name();
    {
        let mut known = members.known();
        known.id = format!("{name}/{:08x}", fastrand::u32(..));
        let key = |part| format!("tollgate:{{{}}}:members:{part}", config.account);
        known.keys = [vec![key("seen"), key("words")], ceilings].concat();
        known.fleet.account.clone_from(&config.account);
        known.fleet.region.clone_from(&config.region);
    }
    loop {
        let looked = members.known().looked;
        let is_looked_at = looked.is_some_and(|looked| looked.elapsed() < LOOKED);
        // Not held while waiting, so that dropping the ceiling ends this task.
        let Some(strong) = shared.upgrade() else { return };
        let status = strong.limiter().status(Instant::now());
        drop(strong);
        // Three strings and numbers: there is nothing that could not be serialised.
        let words = serde_json::to_string(&this(&name, &config, &status)).unwrap_or_default();
        members.report(&words, if is_looked_at { MOST } else { 0 }).await;
        let wait = if is_looked_at {
            VIEWED_EVERY
        } else {
            REPORT_EVERY.mul_f64(0.8 + 0.4 * fastrand::f64())
        };
        tokio::select! {
            () = sleep(wait) => {}
            () = members.looked.notified() => {}
        }
    }
}

/// The machine's name, by which a fleet knows this sidecar; a pod's is the pod's.
pub fn member_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn this(name: &str, config: &config::Fleet, status: &Status) -> Member {
    let shares = status.ceilings.iter().filter(|ceiling| ceiling.shared);
    let narrowest = shares.min_by_key(|ceiling| ceiling.limit);
    Member {
        name: name.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        region: config.region.clone(),
        egress_group: config.egress_group.clone(),
        share: narrowest.and_then(|ceiling| ceiling.share).unwrap_or(0),
        used: narrowest.map_or(0, |ceiling| ceiling.used),
        waiting: status.waiting,
        longest_wait_ms: u64::try_from(status.longest_wait.as_millis()).unwrap_or(u64::MAX),
        age: Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer may be of another version, and any client of that Redis may write its report.
    #[test]
    fn a_report_is_cleaned_before_it_is_shown() {
        let long = "p".repeat(65_536);
        let counts = r#""share":1,"used":2,"waiting":3,"longest_wait_ms":4"#;
        for (name, shown) in [
            ("pod-a".to_owned(), "pod-a".to_owned()),
            (r"pod\u001b[2J".to_owned(), "pod\u{fffd}[2J".to_owned()),
            (r"pod\u202egnp".to_owned(), "pod\u{fffd}gnp".to_owned()),
            (r"pod\u009b31m".to_owned(), "pod\u{fffd}31m".to_owned()),
            (long, format!("{}…", "p".repeat(127))),
        ] {
            let words = format!(
                r#"5:{{"name":"{name}","version":"{name}","region":"{name}","egress_group":"{name}",{counts}}}"#
            );
            let member = read(&words).unwrap();
            assert_eq!(member.name, shown);
            for text in [&member.version, &member.region, &member.egress_group] {
                assert_eq!(text, &member.name);
            }
            assert_eq!(member.age, Duration::from_millis(5));
        }
    }
}
