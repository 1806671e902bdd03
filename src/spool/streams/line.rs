//! One connection to Redis, and what is asked over it. Everything here blocks, and ends in time.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisError};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::Durability;
use crate::config::Fleet;
use crate::redis_client::{self, Requirements, Server, connect, load};

/// What Redis runs.
const SCRIPT: &str = include_str!("kept.lua");
/// The same where memory is short: it gives more back than it takes.
const LENIENT: &str = "#!lua flags=allow-oom\n";
/// Says which permissions are missing.
const ACCESS: &str = include_str!("access.lua");
/// For all that a connection begins with, also where one node after the other is asked.
const BEGIN: Duration = Duration::from_secs(6);
const ANSWER: Duration = Duration::from_secs(3);
/// With these Redis says that it has not begun. With others a part may have been done.
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

/// Where Redis is, and what is ours there.
#[derive(Debug)]
pub(super) struct Place {
    fleet: Fleet,
    keys: [String; 6],
    /// Of our own, so that nothing else holds up what is asked: each question ends in time, whatever
    /// step of it hangs. `None`: this is the end.
    runtime: Option<Runtime>,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(in crate::spool) enum Trouble {
    /// Redis, or the way to it.
    #[error("Redis: {0}")]
    Primary(#[from] redis_client::ClientError),
    /// What it answers is none of ours.
    #[error("an answer that is none of ours")]
    Garbled,
    /// It has failed before anything was asked.
    #[error("{0}")]
    Again(String),
}

impl From<RedisError> for Trouble {
    fn from(error: RedisError) -> Self {
        Self::Primary(error.into())
    }
}

impl Trouble {
    fn error(&self) -> Option<&RedisError> {
        match self {
            Self::Primary(trouble) => trouble.error(),
            Self::Garbled | Self::Again(_) => None,
        }
    }

    /// What Redis says, in a word.
    pub(super) fn code(&self) -> Option<&str> {
        self.error()?.code()
    }

    /// Nothing of it was done, whatever becomes of Redis.
    pub(super) fn is_refused(&self) -> bool {
        match self {
            Self::Again(_) | Self::Primary(redis_client::ClientError::At { .. }) => true,
            _ => self.code().is_some_and(|code| REFUSALS.contains(&code)),
        }
    }

    /// The connection ended before there was an answer.
    pub(super) fn is_dropped(&self) -> bool {
        self.error().is_some_and(|error| error.is_io_error() && !error.is_timeout())
    }

    /// It may pass by itself.
    pub(in crate::spool) fn may_pass(&self) -> bool {
        !matches!(self, Self::Primary(trouble) if trouble.wants_a_person())
    }
}

impl Place {
    pub(super) fn new(fleet: &Fleet) -> io::Result<Self> {
        let base = format!("tollgate:{{{}}}:spool", fleet.account);
        let keys = ["", ":words", ":receipts", ":totals", ":owners", ":spare"].map(|part| {
            let base = &base;
            format!("{base}{part}")
        });
        // Names are looked up on a thread that may hang: one is enough to wait for.
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(1).build()?;
        Ok(Self { fleet: fleet.clone(), keys, runtime: Some(runtime) })
    }

    fn wait<T>(
        &self,
        bound: Duration,
        asked: impl Future<Output = Result<T, Trouble>>,
    ) -> Result<T, Trouble> {
        let Some(runtime) = &self.runtime else { return Err(Trouble::Garbled) };
        let silent = || Err(redis_client::ClientError::Silent.into());
        runtime.block_on(async { timeout(bound, asked).await.unwrap_or_else(|_| silent()) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A connection.
pub(super) struct Line {
    connection: MultiplexedConnection,
    strict: String,
    lenient: String,
    server: Server,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}

impl Line {
    /// Connects to whoever has our keys.
    pub(super) fn open(place: &Place) -> Result<Self, Trouble> {
        let opened = place.wait(BEGIN, async {
            let document = "docs/shared-spool.md";
            let wanted = Requirements { keys: &place.keys, access: ACCESS, document };
            let (mut connection, server) = connect(&place.fleet, &wanted).await?;
            let strict = load(&mut connection, SCRIPT).await?;
            let lenient = load(&mut connection, &format!("{LENIENT}{SCRIPT}")).await?;
            Ok(Self { connection, strict, lenient, server })
        });
        match opened {
            Err(error) if error.may_pass() => Err(Trouble::Again(error.to_string())),
            opened => opened,
        }
    }

    /// Runs the script. `grows`: it is to fail rather than go over Redis's memory.
    pub(super) fn ask<T: FromRedisValue>(
        &mut self,
        place: &Place,
        grows: bool,
        with: impl FnOnce(&mut redis::Cmd),
    ) -> Result<T, Trouble> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(if grows { &self.strict } else { &self.lenient });
        command.arg(place.keys.len()).arg(&place.keys);
        with(&mut command);
        place.wait(ANSWER, async { Ok(command.query_async(&mut self.connection).await?) })
    }

    /// How durable Redis makes what it takes, as it is configured now. Where we may not know, the
    /// weakest.
    pub(super) fn durability(&mut self, place: &Place) -> Result<Durability, Trouble> {
        let mut command = redis::cmd("CONFIG");
        command.arg("GET").arg("appendonly").arg("appendfsync").arg("no-appendfsync-on-rewrite");
        let answer = place.wait(ANSWER, async {
            Ok(command.query_async::<HashMap<String, String>>(&mut self.connection).await?)
        });
        let set = match answer {
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

    /// Whether Redis throws keys away when its memory is full.
    pub(super) fn evicts(&self) -> bool {
        self.server.eviction.starts_with("allkeys")
    }
}
