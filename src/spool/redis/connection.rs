//! One connection to Redis, and the script that runs over it. Every call ends within a bound.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisError};
use tokio::time::timeout;

use crate::config::Fleet;
use crate::redis_client::{self, Requirements, connect, load};
use crate::spool::ownership::Durability;

/// What Redis runs.
const SCRIPT: &str = include_str!("kept.lua");
/// The same where memory is short: it gives more back than it takes.
const LENIENT: &str = "#!lua flags=allow-oom\n";
/// Returns the permissions that are missing.
const ACCESS: &str = include_str!("access.lua");
/// Bound on all that a connection begins with, also where one node after the other is tried.
const BEGIN: Duration = Duration::from_secs(6);
const ANSWER: Duration = Duration::from_secs(3);
/// Errors with which Redis has not begun the script. With others it may have done a part.
const REFUSALS: &[&str] = &[
    "OOM",
    "READONLY",
    "MISCONF",
    "NOREPLICAS",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ASK",
    "NOSCRIPT",
    "NOAUTH",
    "BUSY",
    "STALE",
];

/// Where Redis is, and the account's keys there.
#[derive(Debug)]
pub(super) struct SpoolEndpoint {
    fleet: Fleet,
    keys: [String; 6],
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(in crate::spool) enum SpoolRedisError {
    /// The connection to Redis, or Redis itself.
    #[error("Redis: {0}")]
    Client(#[from] redis_client::ClientError),
    /// Its answer does not follow from the script.
    #[error("Redis gave an answer that its script cannot give")]
    Malformed,
    /// The call was not sent: there is no connection.
    #[error("{0}")]
    NotSent(String),
}

impl From<RedisError> for SpoolRedisError {
    fn from(error: RedisError) -> Self {
        Self::Client(error.into())
    }
}

impl SpoolRedisError {
    fn error(&self) -> Option<&RedisError> {
        match self {
            Self::Client(trouble) => trouble.error(),
            Self::Malformed | Self::NotSent(_) => None,
        }
    }

    /// The first word of Redis's error.
    pub(super) fn code(&self) -> Option<&str> {
        self.error()?.code()
    }

    /// Whether Redis certainly did nothing.
    pub(super) fn is_refused(&self) -> bool {
        match self {
            Self::NotSent(_) | Self::Client(redis_client::ClientError::At { .. }) => true,
            _ => self.code().is_some_and(|code| REFUSALS.contains(&code)),
        }
    }

    /// Whether the connection ended before there was an answer.
    pub(super) fn is_dropped(&self) -> bool {
        self.error().is_some_and(|error| error.is_io_error() && !error.is_timeout())
    }

    /// Whether it may pass without a change of the configuration.
    pub(in crate::spool) fn may_pass(&self) -> bool {
        !matches!(self, Self::Client(trouble) if trouble.wants_a_person())
    }
}

impl SpoolEndpoint {
    pub(super) fn new(fleet: &Fleet) -> Self {
        let base = format!("tollgate:{{{}}}:spool", fleet.account);
        let keys = ["", ":words", ":receipts", ":totals", ":owners", ":spare"]
            .map(|part| format!("{base}{part}"));
        Self { fleet: fleet.clone(), keys }
    }
}

async fn bounded<T>(
    bound: Duration,
    call: impl Future<Output = Result<T, SpoolRedisError>>,
) -> Result<T, SpoolRedisError> {
    timeout(bound, call).await.unwrap_or_else(|_| Err(redis_client::ClientError::Silent.into()))
}

/// A connection. Clones share it: their calls are sent one after the other without waiting.
#[derive(Clone)]
pub(super) struct SpoolConnection {
    connection: MultiplexedConnection,
    strict: Arc<str>,
    lenient: Arc<str>,
    /// Redis deletes keys when its memory is full.
    pub(super) evicts: bool,
}

impl std::fmt::Debug for SpoolConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpoolConnection").finish_non_exhaustive()
    }
}

impl SpoolConnection {
    /// Connects to the node that has the account's keys.
    pub(super) async fn open(endpoint: &SpoolEndpoint) -> Result<Self, SpoolRedisError> {
        let opened = bounded(BEGIN, async {
            let document = "docs/shared-spool.md";
            let wanted = Requirements { keys: &endpoint.keys, access: ACCESS, document };
            let (mut connection, server) = connect(&endpoint.fleet, &wanted).await?;
            let strict = load(&mut connection, SCRIPT).await?;
            let lenient = load(&mut connection, &format!("{LENIENT}{SCRIPT}")).await?;
            let evicts = server.eviction.starts_with("allkeys");
            Ok(Self { connection, strict: strict.into(), lenient: lenient.into(), evicts })
        });
        match opened.await {
            Err(error) if error.may_pass() => Err(SpoolRedisError::NotSent(error.to_string())),
            opened => opened,
        }
    }

    /// Runs the script.
    pub(super) async fn call<T: FromRedisValue>(
        &mut self,
        endpoint: &SpoolEndpoint,
        memory: Memory,
        arguments: impl FnOnce(&mut redis::Cmd),
    ) -> Result<T, SpoolRedisError> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(match memory {
            Memory::Grows => &*self.strict,
            Memory::Shrinks => &*self.lenient,
        });
        command.arg(endpoint.keys.len()).arg(&endpoint.keys);
        arguments(&mut command);
        bounded(ANSWER, async { Ok(command.query_async(&mut self.connection).await?) }).await
    }

    /// How durable Redis makes what it takes, as it is configured now. Where this user may not ask,
    /// the weakest.
    pub(super) async fn durability(&mut self) -> Result<Durability, SpoolRedisError> {
        let mut command = redis::cmd("CONFIG");
        command.arg("GET").arg("appendonly").arg("appendfsync").arg("no-appendfsync-on-rewrite");
        let answer = bounded(ANSWER, async {
            Ok(command.query_async::<HashMap<String, String>>(&mut self.connection).await?)
        });
        let set = match answer.await {
            Err(error) if error.code().is_some() => return Ok(Durability::RedisMemory),
            answer => answer?,
        };
        let get = |name: &str| set.get(name).map(String::as_str);
        Ok(match (get("appendonly"), get("appendfsync"), get("no-appendfsync-on-rewrite")) {
            (Some("yes"), Some("always"), Some("no")) => Durability::RedisAofAlways,
            (Some("yes"), Some("everysec"), Some("no")) => Durability::RedisAofEverysec,
            // The operating system decides when, always or while the log is written anew.
            _ => Durability::RedisMemory,
        })
    }
}

/// What a call does to Redis's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// It takes some, and fails rather than go over `maxmemory`.
    Grows,
    /// It takes none or gives some back, and runs also where memory is short.
    Shrinks,
}
