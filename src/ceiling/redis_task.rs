//! The task that talks to Redis: one connection, one request on its way, none sent twice.
//!
//! Redis may stop, die, come back empty or be out of reach: what was asked may then have been done
//! or not, and [`Leases`](super::leases::Leases) errs on the safe side either way. An answer that is
//! late is as good as any; only a connection that answers nothing for
//! [`PATIENCE`](super::script_client::PATIENCE) is given up.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::exchange::Scope;
use super::leases::Leases;
use super::script_client::{ClientError, ScriptClient, connect};
use super::{CeilingInner, CeilingKind};
use crate::backoff::Backoff;
use crate::config;

/// Between two tries to connect.
const RECONNECT: Backoff = Backoff::steady(Duration::from_millis(250));
/// How often what is held is looked at, at most and at least: calls that end do not wake this task.
const SOONEST: Duration = Duration::from_millis(2);
const LATEST: Duration = Duration::from_millis(25);

/// How the task and the ceiling reach each other.
#[derive(Debug, Default, Clone)]
pub(super) struct Wakeup {
    /// A caller waits for a permit, or the ceiling is closing.
    pub(super) wake: Arc<Notify>,
    /// Everything has been given back.
    pub(super) done: Arc<Notify>,
}

/// Ends with the ceiling, or when it is closed and everything is given back.
pub(super) async fn run(
    shared: Weak<CeilingInner>,
    fleet: config::Fleet,
    keys: CeilingKeys,
    wakeup: Wakeup,
) {
    let Some(members) = shared.upgrade().map(|shared| Arc::clone(&shared.members)) else { return };
    let mut line = None;
    // The error that was logged last, so that it is logged once.
    let mut trouble = String::new();
    loop {
        if shared.strong_count() == 0 {
            return;
        }
        let outcome = match &mut line {
            None => connect(&fleet, &keys.all).await.map(|new| {
                members.connected(Some(new.connection()));
                line = Some(new);
            }),
            Some(line) => step(&shared, line, &keys.all, &wakeup).await,
        };
        match outcome {
            Ok(()) if !trouble.is_empty() => {
                trouble.clear();
                tracing::info!("Redis answers: the ceilings are shared again");
            }
            Ok(()) => {}
            Err(error) => {
                line = None;
                members.connected(None);
                // A server that goes has several words for it.
                let text = error.to_string();
                if trouble.is_empty() || (error.wants_a_person() && trouble != text) {
                    trouble = text;
                    log(&error);
                }
                let Some(shared) = shared.upgrade() else { return };
                let emptied = with_leases(&shared, |leases, now, _| {
                    leases.lost(now);
                    leases.is_emptied()
                });
                drop(shared);
                if emptied == Some(true) {
                    wakeup.done.notify_one();
                }
                sleep(RECONNECT.after(1, fastrand::f64())).await;
            }
        }
    }
}

fn log(error: &ClientError) {
    if error.wants_a_person() {
        tracing::error!(
            %error,
            "Redis cannot be used until this error is corrected: tollgate uses its leased permits, if \
             any, for less than 30 s, then sends nothing"
        );
    } else {
        tracing::warn!(
            %error,
            "no usable answer from Redis: tollgate uses its leased permits, if any, for less than 30 s, \
             then sends nothing"
        );
    }
}

fn log_scope(scope: Scope) {
    match scope {
        Scope::AllRegions => tracing::info!(
            "the account's ceiling is shared over all its regions: a sidecar of an older version, or \
             without fleet.region, uses the account, or did within a week"
        ),
        Scope::Own => tracing::info!("the account's ceiling is that of this region alone"),
    }
}

/// Asks what is to be asked, or waits until there is something.
async fn step(
    shared: &Weak<CeilingInner>,
    line: &mut ScriptClient,
    keys: &[String],
    wakeup: &Wakeup,
) -> Result<(), ClientError> {
    let rung = wakeup.wake.notified();
    let Some(strong) = shared.upgrade() else { return Ok(()) };
    let answered = strong.limiter().answered(Instant::now());
    let looked = with_leases(&strong, |leases, now, waiting| {
        let ask = leases.ask(now, waiting, answered);
        (ask, leases.asks_next(waiting), leases.is_emptied())
    });
    drop(strong);
    let Some((ask, next, emptied)) = looked else { return Ok(()) };
    let Some(ask) = ask else {
        if emptied {
            wakeup.done.notify_one();
        }
        let now = Instant::now();
        let next = next.clamp(now + SOONEST, now + LATEST);
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = rung => {}
        }
        return Ok(());
    };
    let reply = line.ask(keys, &ask).await?;
    if let Some(shared) = shared.upgrade() {
        let scope = reply.scope;
        let before = with_leases(&shared, |leases, now, _| {
            let before = leases.scope();
            leases.answered(reply, now);
            before
        });
        if before != Some(scope) {
            log_scope(scope);
        }
        shared.changed.notify_one();
    }
    Ok(())
}

/// `None`: nothing is shared, which does not happen here.
fn with_leases<T>(
    shared: &CeilingInner,
    look: impl FnOnce(&mut Leases, Instant, usize) -> T,
) -> Option<T> {
    let mut limiter = shared.limiter();
    let waiting = limiter.waiting();
    // The time is read under the lock, so that it never runs backwards.
    limiter.fleet.as_mut().map(|leases| look(leases, Instant::now(), waiting))
}

/// The keys of the ceilings that a sidecar shares, all with one hash tag, so that they live on one node.
#[derive(Debug, Clone)]
pub(super) struct CeilingKeys {
    /// Four a ceiling. They are forgotten a week after the last sidecar that names them.
    pub(super) own: Vec<String>,
    /// All that the script takes: also those of the account's ceiling of all regions.
    pub(super) all: Vec<String>,
}

impl CeilingKeys {
    pub(super) fn new(fleet: &config::Fleet, kinds: &[CeilingKind], action: Option<&str>) -> Self {
        let config::Fleet { account, region, egress_group, .. } = fleet;
        let parts =
            |name: String| ["", ":state", ":parked", ":out"].map(|part| name.clone() + part);
        // One hash tag for all of an account.
        let base = match action {
            None => format!("tollgate:{{{account}}}"),
            Some(action) => format!("tollgate:{{{account}}}:action:{action}"),
        };
        // As versions without regions have it.
        let all_regions = parts(format!("{base}:account"));
        let own = kinds.iter().flat_map(|kind| match kind {
            CeilingKind::Account if region.is_empty() => all_regions.clone(),
            CeilingKind::Account => parts(format!("{base}:region:{region}")),
            CeilingKind::EgressIp => parts(format!("{base}:egress:{egress_group}")),
        });
        let own: Vec<_> = own.collect();
        let mut all = own.clone();
        if kinds.contains(&CeilingKind::Account) && !region.is_empty() {
            all.extend(all_regions);
        }
        Self { own, all }
    }
}
