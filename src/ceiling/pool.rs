//! The task that talks to Redis: one connection, one request on its way, none sent twice.
//!
//! Redis may stop, die, come back empty or be out of reach: what was asked may then have been done
//! or not, and [`Leases`](super::leases::Leases) errs on the safe side either way. An answer that is
//! late is as good as any; only a connection that answers nothing for [`PATIENCE`] is given up.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, RedisError, TlsCertificates};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::leases::{Ask, Given, Leases, Reply};
use super::{Kind, Shared};
use crate::config;

/// What Redis runs.
pub(super) const SCRIPT: &str = include_str!("permits.lua");

const CONNECT: Duration = Duration::from_secs(1);
/// Longer than Redis may stand still without a new connection, shorter than a lease.
const PATIENCE: Duration = Duration::from_secs(8);
/// Between two tries to connect, and as much again at random.
const AGAIN: Duration = Duration::from_millis(250);
/// How often what is held is looked at, at most and at least.
const SOONEST: Duration = Duration::from_millis(2);
const LATEST: Duration = Duration::from_millis(25);

/// A way to Redis. Clones are the same.
pub(super) type Connection = MultiplexedConnection;

/// How the task and the ceiling reach each other.
#[derive(Debug, Default, Clone)]
pub(super) struct Bell {
    /// Somebody waits, or the end has come.
    pub(super) rung: Arc<Notify>,
    /// Everything has been given back.
    pub(super) done: Arc<Notify>,
}

#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    File(#[from] std::io::Error),
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("no answer in {PATIENCE:?}")]
    Silent,
    #[error("an answer that is none of ours")]
    Garbled,
}

struct Line {
    connection: Connection,
    sha: String,
}

/// Ends with the ceiling, or when it is closed and everything is given back.
pub(super) async fn run(shared: Weak<Shared>, fleet: config::Fleet, kinds: Vec<Kind>, bell: Bell) {
    let keys = keys(&fleet, &kinds);
    let Some(members) = shared.upgrade().map(|shared| Arc::clone(&shared.members)) else { return };
    let mut line = None;
    let mut troubled = false;
    loop {
        if shared.strong_count() == 0 {
            return;
        }
        let outcome = match &mut line {
            None => connect(&fleet).await.map(|new| {
                members.connected(Some(new.connection.clone()));
                line = Some(new);
            }),
            Some(line) => turn(&shared, line, &keys, &bell).await,
        };
        match outcome {
            Ok(()) if line.is_some() && troubled => {
                troubled = false;
                tracing::info!("Redis answers: the ceilings are shared again");
            }
            Ok(()) => {}
            Err(error) => {
                line = None;
                members.connected(None);
                if !std::mem::replace(&mut troubled, true) {
                    tracing::warn!(%error, "no Redis: calls go on until the leases end");
                }
                let Some(shared) = shared.upgrade() else { return };
                let emptied = with_leases(&shared, |leases, now, _| {
                    leases.lost(now);
                    leases.is_emptied()
                });
                drop(shared);
                if emptied == Some(true) {
                    bell.done.notify_one();
                }
                sleep(AGAIN + AGAIN.mul_f64(fastrand::f64())).await;
            }
        }
    }
}

/// Asks what is to be asked, or waits until there is something.
async fn turn(
    shared: &Weak<Shared>,
    line: &mut Line,
    keys: &[String],
    bell: &Bell,
) -> Result<(), Trouble> {
    let rung = bell.rung.notified();
    let Some(strong) = shared.upgrade() else { return Ok(()) };
    let looked = with_leases(&strong, |leases, now, waiting| {
        let ask = leases.ask(now, waiting);
        (ask, leases.asks_next(now, waiting), leases.is_emptied())
    });
    drop(strong);
    let Some((ask, next, emptied)) = looked else { return Ok(()) };
    let Some(ask) = ask else {
        if emptied {
            bell.done.notify_one();
        }
        let now = Instant::now();
        let next = next.clamp(now + SOONEST, now + LATEST);
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = rung => {}
        }
        return Ok(());
    };
    let answer = timeout(PATIENCE, line.ask(keys, &ask)).await;
    let reply = answer.map_err(|_| Trouble::Silent)??;
    if let Some(shared) = shared.upgrade() {
        with_leases(&shared, |leases, now, _| leases.answered(reply, now));
        shared.changed.notify_one();
    }
    Ok(())
}

/// `None`: nothing is shared, which does not happen here.
fn with_leases<T>(
    shared: &Shared,
    look: impl FnOnce(&mut Leases, Instant, usize) -> T,
) -> Option<T> {
    let mut state = shared.state();
    let waiting = state.waiting();
    // The time is read under the lock, so that it never runs backwards.
    state.fleet.as_mut().map(|leases| look(leases, Instant::now(), waiting))
}

/// Where a slow disk holds nobody.
async fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || std::fs::read(path)).await?
}

/// Three a ceiling, all with one hash tag, so that they live on one node.
fn keys(fleet: &config::Fleet, kinds: &[Kind]) -> Vec<String> {
    let account = &fleet.account;
    let name = |kind: &Kind| match kind {
        Kind::Account => format!("tollgate:{{{account}}}:account"),
        Kind::EgressIp => format!("tollgate:{{{account}}}:egress:{}", fleet.egress_group),
    };
    let parts = |kind| ["", ":state", ":parked"].map(|part| name(kind) + part);
    kinds.iter().flat_map(parts).collect()
}

async fn connect(fleet: &config::Fleet) -> Result<Line, Trouble> {
    let mut info = fleet.url.as_str().into_connection_info()?;
    let mut settings = info.redis_settings().clone();
    if !fleet.username.is_empty() {
        settings = settings.set_username(&fleet.username);
    }
    if let Some(path) = &fleet.password_file {
        // Read every time: it may have been renewed.
        settings =
            settings.set_password(String::from_utf8_lossy(&read_file(path).await?).trim_end());
    }
    info = info.set_redis_settings(settings);
    let client = match &fleet.ca_file {
        Some(path) => {
            let root_cert = Some(read_file(path).await?);
            Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })?
        }
        None => Client::open(info)?,
    };
    // Our own bound is the longer one: the crate's own would call a late answer lost.
    let times = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(PATIENCE));
    let connecting = async {
        let mut connection = client.get_multiplexed_async_connection_with_config(&times).await?;
        let load = redis::cmd("SCRIPT").arg("LOAD").arg(SCRIPT).to_owned();
        let sha = load.query_async(&mut connection).await?;
        Ok::<_, RedisError>(Line { connection, sha })
    };
    Ok(timeout(PATIENCE, connecting).await.map_err(|_| Trouble::Silent)??)
}

/// As the script writes it: now, `learn_in`, scarce, `ask_in`, figures, parked, permits.
type Written = (u64, u64, u64, u64, String, usize, Vec<String>);

impl Line {
    async fn ask(&mut self, keys: &[String], ask: &Ask) -> Result<Reply, Trouble> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.sha).arg(keys.len()).arg(keys).arg(joined(&ask.figures));
        command.arg(ask.want).arg(ask.core).arg(u8::from(ask.park));
        for back in &ask.back {
            // Rounded up: a microsecond late rather than early.
            let free_in = back.free_in.as_nanos().div_ceil(1_000);
            command.arg(format!("{}:{}:{free_in}", joined(&back.ids), back.nonce));
        }
        // A script that Redis has forgotten is an error like any: a new connection loads it.
        let written: Written = command.query_async(&mut self.connection).await?;
        read(written).ok_or(Trouble::Garbled)
    }
}

fn read((now, learn_in, scarce, ask_in, figures, parked, out): Written) -> Option<Reply> {
    let numbers = |text: &str| text.split(',').map(|n| n.parse().ok()).collect::<Option<Vec<_>>>();
    let given = |out: &String| {
        let mut parts = out.split(':');
        let ids = numbers(parts.next()?)?;
        let nonce = parts.next()?.parse().ok()?;
        let ready_in = parts.next()?.parse().ok()?;
        Some(Given { ids, nonce, ready_in })
    };
    let out = out.iter().map(given).collect::<Option<_>>()?;
    let figures = numbers(&figures)?;
    Some(Reply { now, learn_in, scarce: scarce > 0, ask_in, figures, parked, out })
}

fn joined(numbers: &[u32]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
