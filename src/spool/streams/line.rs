//! One connection to Redis, and what is asked over it. Everything here blocks, and ends in time.

use std::time::Duration;

use redis::{
    Client, Connection, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo,
    RedisError, TlsCertificates,
};

use super::Durability;
use crate::config::Fleet;

/// What Redis runs.
const SCRIPT: &str = include_str!("kept.lua");
/// The same where memory is short: it gives more back than it takes.
const LENIENT: &str = "#!lua flags=allow-oom\n";
const CONNECT: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(3);
/// A cluster's node names the one that has our slot; that one does not name a third.
const REDIRECTIONS: usize = 3;
/// The first version whose streams number entries by themselves.
const VERSION: u32 = 7;

/// Where Redis is, and what is ours there.
#[derive(Debug)]
pub(super) struct Place {
    fleet: Fleet,
    keys: [String; 5],
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub(in crate::spool) enum Trouble {
    /// A file that is needed to connect.
    #[error("{0}")]
    File(#[from] std::io::Error),
    /// Redis, or the way to it.
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
    /// It is older than what it is asked for.
    #[error("Redis {0} is too old: it must be version 7 or later")]
    Old(String),
    /// What it answers is none of ours.
    #[error("an answer that is none of ours")]
    Garbled,
    /// It failed a moment ago.
    #[error("{0}")]
    Again(String),
}

impl Trouble {
    /// Nothing of it was done, whatever becomes of Redis.
    pub(super) fn is_refused(&self) -> bool {
        match self {
            Self::Redis(error) => error.code().is_some_and(|code| code != "ERR"),
            Self::File(_) | Self::Old(_) | Self::Again(_) => true,
            Self::Garbled => false,
        }
    }

    /// The connection ended before there was an answer.
    pub(super) fn is_dropped(&self) -> bool {
        matches!(self, Self::Redis(error) if error.is_io_error() && !error.is_timeout())
    }

    /// It may pass by itself.
    pub(in crate::spool) fn may_pass(&self) -> bool {
        match self {
            Self::Redis(error) => {
                let code = error.code().unwrap_or_default();
                error.is_io_error()
                    || matches!(code, "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "TRYAGAIN")
                    || matches!(code, "OOM" | "READONLY" | "MISCONF" | "NOREPLICAS" | "BUSY")
            }
            Self::File(_) | Self::Old(_) => false,
            Self::Garbled | Self::Again(_) => true,
        }
    }
}

impl Place {
    pub(super) fn new(fleet: &Fleet) -> Self {
        let base = format!("tollgate:{{{}}}:spool", fleet.account);
        let keys = ["", ":words", ":receipts", ":totals", ":owners"].map(|part| {
            let base = &base;
            format!("{base}{part}")
        });
        Self { fleet: fleet.clone(), keys }
    }

    fn client(&self, at: Option<ConnectionAddr>) -> Result<Client, Trouble> {
        let Fleet { redis, .. } = &self.fleet;
        let (host, port) = redis.nodes.first().cloned().ok_or(Trouble::Garbled)?;
        let first = if redis.tls {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let mut info = first.into_connection_info()?;
        let mut settings = info.redis_settings().clone().set_db(redis.database);
        if !self.fleet.username.is_empty() {
            settings = settings.set_username(&self.fleet.username);
        }
        if let Some(path) = &self.fleet.password_file {
            // Read every time: it may have been renewed.
            settings = settings.set_password(std::fs::read_to_string(path)?.trim_end());
        }
        info = info.set_redis_settings(settings);
        if let Some(at) = at {
            info = info.set_addr(at);
        }
        Ok(match &self.fleet.ca_file {
            Some(path) => {
                let root_cert = Some(std::fs::read(path)?);
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })?
            }
            None => Client::open(info)?,
        })
    }
}

/// A connection.
pub(super) struct Line {
    connection: Connection,
    strict: String,
    lenient: String,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").finish_non_exhaustive()
    }
}

impl Line {
    /// Connects to the node that has our keys.
    pub(super) fn open(place: &Place) -> Result<Self, Trouble> {
        let mut at = None;
        for _ in 0..REDIRECTIONS {
            let client = place.client(at.take())?;
            let mut connection = client.get_connection_with_timeout(CONNECT)?;
            connection.set_read_timeout(Some(ANSWER))?;
            connection.set_write_timeout(Some(ANSWER))?;
            let here = redis::cmd("EXISTS").arg(&place.keys[0]).query::<i64>(&mut connection);
            match here {
                Ok(_) => return Self::load(connection),
                Err(error) => match error.redirect_node() {
                    Some((node, _)) => at = Some(elsewhere(client.get_connection_info(), node)?),
                    None => return Err(error.into()),
                },
            }
        }
        Err(Trouble::Garbled)
    }

    fn load(mut connection: Connection) -> Result<Self, Trouble> {
        let mut load = |script: &str| {
            redis::cmd("SCRIPT").arg("LOAD").arg(script).query::<String>(&mut connection)
        };
        let strict = load(SCRIPT)?;
        let lenient = match load(&format!("{LENIENT}{SCRIPT}")) {
            Ok(lenient) => lenient,
            // Before version 7 it does not know the first line.
            Err(error) => {
                let version = version(&mut connection);
                return Err(match version.and_then(|v| Some((major(&v)?, v))) {
                    Some((major, version)) if major < VERSION => Trouble::Old(version),
                    _ => error.into(),
                });
            }
        };
        Ok(Self { connection, strict, lenient })
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
        Ok(command.query(&mut self.connection)?)
    }

    /// How durable Redis makes what it takes, as it is configured now.
    pub(super) fn durability(&mut self) -> Durability {
        let mut get = |name: &str| {
            let get = redis::cmd("CONFIG").arg("GET").arg(name).to_owned();
            let pair: Result<Vec<String>, _> = get.query(&mut self.connection);
            pair.ok()?.into_iter().nth(1)
        };
        match get("appendonly").as_deref() {
            Some("yes") => match get("appendfsync").as_deref() {
                Some("always") => Durability::RedisAofAlways,
                Some("everysec") => Durability::RedisAofEverysec,
                // The operating system decides when.
                _ => Durability::RedisMemory,
            },
            Some(_) => Durability::RedisMemory,
            // Where CONFIG is not for us, this much is told, and the weaker is said.
            None => {
                let info = info(&mut self.connection, "persistence").unwrap_or_default();
                let aof = info.lines().any(|line| line.trim_end() == "aof_enabled:1");
                if aof { Durability::RedisAofEverysec } else { Durability::RedisMemory }
            }
        }
    }

    /// Whether Redis throws keys away when its memory is full.
    pub(super) fn evicts(&mut self) -> bool {
        let info = info(&mut self.connection, "memory").unwrap_or_default();
        info.lines().any(|line| line.starts_with("maxmemory_policy:allkeys"))
    }
}

fn info(connection: &mut Connection, section: &str) -> Option<String> {
    redis::cmd("INFO").arg(section).query(connection).ok()
}

fn version(connection: &mut Connection) -> Option<String> {
    let info = info(connection, "server")?;
    info.lines().find_map(|line| Some(line.strip_prefix("redis_version:")?.trim().to_owned()))
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

/// The same kind of connection to another node of the cluster.
fn elsewhere(info: &ConnectionInfo, node: &str) -> Result<ConnectionAddr, Trouble> {
    let (host, port) = node.rsplit_once(':').ok_or(Trouble::Garbled)?;
    let (to, number) = (host.to_owned(), port.parse().map_err(|_| Trouble::Garbled)?);
    Ok(match info.addr().clone() {
        ConnectionAddr::TcpTls { host: was, insecure, tls_params, .. } => {
            let host = if to.is_empty() { was } else { to };
            ConnectionAddr::TcpTls { host, port: number, insecure, tls_params }
        }
        ConnectionAddr::Tcp(was, _) => {
            ConnectionAddr::Tcp(if to.is_empty() { was } else { to }, number)
        }
        other => other,
    })
}
