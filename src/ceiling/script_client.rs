//! One connection to the Redis that has this fleet's keys, and what is asked over it. Only here, and
//! for one command in `members`, is the client library known.

use std::time::Duration;

use tokio::time::timeout;

use super::exchange::{CallTimes, GrantedLease, LeaseReply, LeaseRequest, Scope};
use crate::config;
pub(super) use crate::redis_client::{ClientError, PATIENCE};
use crate::redis_client::{Requirements, Server, load};

/// What Redis runs.
pub(super) const SCRIPT: &str = include_str!("permits.lua");
/// Says which permissions are missing.
const ACCESS: &str = include_str!("access.lua");

/// Clones are the same.
pub(super) type ScriptConnection = redis::aio::MultiplexedConnection;

pub(super) struct ScriptClient {
    connection: ScriptConnection,
    sha: String,
}

/// Connects to the Redis node that serves these keys.
pub(super) async fn connect(
    fleet: &config::Fleet,
    keys: &[String],
) -> Result<ScriptClient, ClientError> {
    let wanted = Requirements { keys, access: ACCESS, document: "docs/fleet.md" };
    let (mut connection, server) = crate::redis_client::connect(fleet, &wanted).await?;
    let sha = load(&mut connection, SCRIPT).await?;
    warn(&server);
    Ok(ScriptClient { connection, sha })
}

/// Logs settings of Redis that an operator should change, though it works.
fn warn(server: &Server) {
    if server.eviction != "noeviction" {
        tracing::warn!(
            policy = server.eviction,
            "Redis may evict the fleet's keys, and then nothing is sent for up to 30 s: \
             set maxmemory-policy noeviction"
        );
    }
    if server.may_split {
        tracing::warn!(
            "Redis accepts writes without a replica: after a failover two primaries could lease the \
             same permit; set min-replicas-to-write 1 (docs/fleet.md)"
        );
    }
}

/// As the script writes it: now, `warm_up`, contended, `ask_in`, figures, withheld, debt, whether of all
/// regions, permits.
type RawReply = (u64, u64, u64, u64, String, usize, usize, u64, Vec<String>);

impl ScriptClient {
    /// For what is not part of the one request that is on its way.
    pub(super) fn connection(&self) -> ScriptConnection {
        self.connection.clone()
    }

    pub(super) async fn ask(
        &mut self,
        keys: &[String],
        ask: &LeaseRequest,
    ) -> Result<LeaseReply, ClientError> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.sha).arg(keys.len()).arg(keys).arg(joined(&ask.figures));
        command.arg(ask.want).arg(ask.long_lived).arg(u8::from(ask.push_back));
        let CallTimes { cycle, min, hold } = ask.times;
        command.arg(ask.answered.unwrap_or(0));
        command.arg(micros(cycle)).arg(micros(min)).arg(micros(hold));
        for back in &ask.back {
            let (ids, free_in) = (joined(&back.ids), micros(back.free_in));
            command.arg(format!("{ids}:{}:{free_in}", back.nonce));
        }
        // A script that Redis has forgotten is an error like any: a new connection loads it.
        let answer = timeout(PATIENCE, command.query_async(&mut self.connection)).await;
        let written: RawReply = answer.map_err(|_| ClientError::Silent)??;
        read(written).ok_or(ClientError::Garbled)
    }
}

/// Rounded up: a microsecond late rather than early.
fn micros(time: Duration) -> u128 {
    time.as_nanos().div_ceil(1_000)
}

fn read(
    (now, warm_up, contended, ask_in, figures, withheld, debt, wide, out): RawReply,
) -> Option<LeaseReply> {
    let numbers = |text: &str| text.split(',').map(|n| n.parse().ok()).collect::<Option<Vec<_>>>();
    let given = |out: &String| {
        let mut parts = out.split(':');
        let ids = numbers(parts.next()?)?;
        let nonce = parts.next()?.parse().ok()?;
        let ready_in = parts.next()?.parse().ok()?;
        Some(GrantedLease { ids, nonce, ready_in })
    };
    let out = out.iter().map(given).collect::<Option<_>>()?;
    let figures = numbers(&figures)?;
    Some(LeaseReply {
        now,
        warm_up,
        contended: contended > 0,
        ask_in,
        figures,
        withheld,
        debt,
        scope: if wide > 0 { Scope::AllRegions } else { Scope::Own },
        out,
    })
}

fn joined(numbers: &[u32]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::ceiling::members;

    fn names<'a>(text: &'a str, before: &str) -> BTreeSet<&'a str> {
        let after = text.split(before).skip(1);
        after.filter_map(|rest| rest.split('\'').next()).collect()
    }

    #[test]
    fn permissions_are_those_of_the_scripts() {
        let mut called = names(SCRIPT, "redis.call('");
        called.extend(names(members::SCRIPT, "redis.call('"));
        assert_eq!(called, names(ACCESS, "needs('"));
        // The bill of the fleet goes the same way.
        let bill = include_str!("../meter/fleet/access.lua");
        called.extend(names(bill, "needs('"));
        // What is given to a user: these, and what loads and runs scripts.
        let documented = include_str!("../../docs/fleet.md");
        let line = documented.lines().find(|line| line.contains("ACL SETUSER")).unwrap();
        let given: BTreeSet<_> = line.split(" +").skip(1).map(str::to_uppercase).collect();
        let mut needed: BTreeSet<_> = called.into_iter().map(str::to_owned).collect();
        needed.extend(["EVALSHA", "SCRIPT|LOAD"].map(str::to_owned));
        assert_eq!(given, needed);
    }
}
