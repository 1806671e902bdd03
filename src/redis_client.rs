//! The way to the Redis that has an account's keys: a single server or a proxy before one, the primary
//! that Sentinels name, or the node of a Cluster that the keys' slot is on. The ceilings' permits and
//! the shared spool go it, each with a connection of its own.
//!
//! The library's own client for a Cluster keeps a connection to every node. All keys of an account
//! have one hash tag, so one connection is enough: to where the node that is asked first sends us.

use std::path::{Path, PathBuf};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, ServerErrorKind, TlsCertificates, TlsMode,
};
use tokio::time::timeout;

use crate::config;

/// The first with all that the scripts call.
const LEAST_VERSION: u32 = 7;

const CONNECT: Duration = Duration::from_secs(1);
/// For all that a connection begins with, on one node.
const BEGIN: Duration = Duration::from_secs(3);
/// Longer than Redis may stand still without a new connection, shorter than a lease.
pub const PATIENCE: Duration = Duration::from_secs(8);
/// How often a Cluster may send us on: it does so once, or twice while a slot moves.
const MOST_HOPS: usize = 4;

/// Why Redis cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A file that is needed to connect.
    #[error("{}: {error}", path.display())]
    File {
        /// The file with a secret or a certificate.
        path: PathBuf,
        /// What the operating system says.
        error: std::io::Error,
    },
    /// Where it was.
    #[error("{node}: {trouble}")]
    At {
        /// The server's address, or who was to name it.
        node: String,
        /// What it was.
        trouble: Box<ClientError>,
    },
    /// The user or the password is wrong.
    #[error("Redis refuses the user or the password: check fleet.username and fleet.password_file")]
    Refused,
    /// There is none.
    #[error(
        "Redis requires a password: set fleet.password_file, and fleet.username if it has users"
    )]
    NoPassword,
    /// Commands that the user may not run, and the document that lists what it needs.
    #[error("the Redis user may not run {0}: give it what {1} lists")]
    Lacks(String, &'static str),
    /// A command that the user may not run.
    #[error("the Redis user lacks a permission, give it what docs/fleet.md lists: {0}")]
    NoPermission(RedisError),
    /// Its version.
    #[error("the version of Redis is {0}; tollgate needs Redis {LEAST_VERSION} or Valkey")]
    Old(String),
    /// It follows another server.
    #[error("this server is a replica; tollgate needs the primary")]
    Replica,
    /// It stands alone, and is one of several.
    #[error("fleet.url names several servers, and this one is no node of a Cluster")]
    NoCluster,
    /// The certificate, mostly.
    #[error("TLS: {0}; check fleet.ca_file")]
    Tls(RedisError),
    /// Redis, or the way to it.
    #[error("{0}")]
    Redis(RedisError),
    /// It takes too long.
    #[error("no answer from Redis in time")]
    Silent,
    /// Another program uses our keys, or the server is not Redis.
    #[error(
        "unexpected answer: another program may use tollgate's keys, or the server is not Redis"
    )]
    Garbled,
}

impl From<RedisError> for ClientError {
    fn from(error: RedisError) -> Self {
        let denied = error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm);
        match error.code() {
            _ if error.kind() == ErrorKind::AuthenticationFailed => Self::Refused,
            Some("WRONGPASS") => Self::Refused,
            Some("NOAUTH") => Self::NoPassword,
            _ if denied => Self::NoPermission(error),
            _ if error.is_io_error() && error.to_string().contains("certificate") => {
                Self::Tls(error)
            }
            _ => Self::Redis(error),
        }
    }
}

impl ClientError {
    /// Whether it stays until an operator changes something.
    pub fn wants_a_person(&self) -> bool {
        match self {
            Self::At { trouble, .. } => trouble.wants_a_person(),
            Self::Redis(_) | Self::Silent | Self::Garbled | Self::Replica => false,
            _ => true,
        }
    }

    /// The error of Redis itself, or of the connection.
    pub fn error(&self) -> Option<&RedisError> {
        match self {
            Self::At { trouble, .. } => trouble.error(),
            Self::NoPermission(error) | Self::Tls(error) | Self::Redis(error) => Some(error),
            _ => None,
        }
    }

    /// The node of the Cluster that has the keys.
    fn moved(&self) -> Option<&str> {
        match self {
            Self::Redis(error) if error.kind() == ErrorKind::Server(ServerErrorKind::Moved) => {
                error.redirect_node().map(|(node, _)| node)
            }
            _ => None,
        }
    }
}

/// What a connection needs beside an address.
struct RedisCredentials {
    username: String,
    password: Option<String>,
    tls: Option<TlsCertificates>,
}

impl RedisCredentials {
    /// Read every time: files may have been renewed.
    async fn read(fleet: &config::Fleet) -> Result<Self, ClientError> {
        let password = match &fleet.password_file {
            Some(path) => Some(String::from_utf8_lossy(&read_file(path).await?).trim().to_owned()),
            None => None,
        };
        let root_cert = match &fleet.ca_file {
            Some(path) => Some(read_file(path).await?),
            None => None,
        };
        let tls = fleet.redis.tls.then_some(TlsCertificates { client_tls: None, root_cert });
        Ok(Self { username: fleet.username.clone(), password, tls })
    }

    fn client(&self, (host, port): &Node, database: i64) -> Result<Client, ClientError> {
        let mut settings = RedisConnectionInfo::default().set_db(database).set_skip_set_lib_name();
        if !self.username.is_empty() {
            settings = settings.set_username(&self.username);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        let info = self.address(host, *port).into_connection_info()?.set_redis_settings(settings);
        Ok(match &self.tls {
            Some(certificates) => Client::build_with_tls(info, certificates.clone())?,
            None => Client::open(info)?,
        })
    }

    fn address(&self, host: &str, port: u16) -> ConnectionAddr {
        let host = host.to_owned();
        match self.tls {
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            None => ConnectionAddr::Tcp(host, port),
        }
    }

    /// The primary that Sentinels name. Their connections last no longer than this.
    async fn ask_sentinels(
        &self,
        nodes: &[Node],
        name: &str,
        database: i64,
        login: SentinelLogin,
    ) -> Result<Client, ClientError> {
        let nodes = nodes.iter().map(|(host, port)| self.address(host, *port));
        let mut sentinels = SentinelClientBuilder::new(nodes, name, SentinelServerType::Master)?
            .set_client_to_redis_db(database);
        if let Some(certificates) = &self.tls {
            sentinels = sentinels
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates.clone());
        }
        if !self.username.is_empty() {
            sentinels = sentinels.set_client_to_redis_username(&self.username);
        }
        if let Some(password) = &self.password {
            sentinels = sentinels.set_client_to_redis_password(password);
            if login == SentinelLogin::Password {
                sentinels = sentinels.set_client_to_sentinel_password(password);
                if !self.username.is_empty() {
                    sentinels = sentinels.set_client_to_sentinel_username(&self.username);
                }
            }
        }
        Ok(sentinels.build()?.async_get_client().await?)
    }
}

type Node = (String, u16);

/// Whether Sentinels are asked with the password of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SentinelLogin {
    None,
    Password,
}

/// What the configured nodes must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// One server, or a Cluster.
    Any,
    /// A Cluster: there are several nodes.
    Cluster,
}

/// What the server must have and allow.
#[derive(Debug)]
pub struct Requirements<'a> {
    /// It has these keys.
    pub keys: &'a [String],
    /// A script that lists the commands that the user may not run on them.
    pub access: &'a str,
    /// Where it is written which those are.
    pub document: &'static str,
}

/// A connection to the node that serves these keys. Ends in time, whatever hangs: each node is given
/// 3 s for all it has to say.
///
/// # Errors
/// The last one's trouble where several were tried.
pub async fn connect(
    fleet: &config::Fleet,
    wanted: &Requirements<'_>,
) -> Result<(MultiplexedConnection, Server), ClientError> {
    let papers = RedisCredentials::read(fleet).await?;
    let redis = &fleet.redis;
    if let Some(name) = &redis.primary {
        let named = timeout(PATIENCE, async {
            // Many Sentinels have no password, and refuse one then.
            match papers
                .ask_sentinels(&redis.nodes, name, redis.database, SentinelLogin::None)
                .await
            {
                Err(ClientError::NoPassword) if papers.password.is_some() => {
                    papers
                        .ask_sentinels(&redis.nodes, name, redis.database, SentinelLogin::Password)
                        .await
                }
                named => named,
            }
        });
        let named = named.await.map_err(|_| ClientError::Silent).flatten();
        let client = named.map_err(|trouble| trouble.at(&format!("Sentinel {name}")))?;
        let node = client.get_connection_info().addr().to_string();
        return begin(&client, wanted, Layout::Any).await.map_err(|trouble| trouble.at(&node));
    }
    let mut last = ClientError::Silent;
    let layout = if redis.nodes.len() > 1 { Layout::Cluster } else { Layout::Any };
    for first in &redis.nodes {
        let mut node = first.clone();
        for _ in 0..MOST_HOPS {
            let client = papers.client(&node, redis.database)?;
            let trouble = match begin(&client, wanted, layout).await {
                Ok(begun) => return Ok(begun),
                Err(trouble) => trouble,
            };
            let next = trouble.moved().and_then(|to| moved_to(to, &node.0));
            last = trouble.at(&format!("{}:{}", node.0, node.1));
            let Some(next) = next else { break };
            node = next;
        }
    }
    Err(last)
}

impl ClientError {
    fn at(self, node: &str) -> Self {
        Self::At { node: node.to_owned(), trouble: Box::new(self) }
    }
}

/// A node that does not know its own address says only a port.
fn moved_to(to: &str, here: &str) -> Option<Node> {
    let (host, port) = to.rsplit_once(':')?;
    let host = if matches!(host, "" | "?") { here } else { host };
    Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
}

/// Connects, and finds out whether this server will do.
async fn begin(
    client: &Client,
    wanted: &Requirements<'_>,
    layout: Layout,
) -> Result<(MultiplexedConnection, Server), ClientError> {
    // Our own bound is the longer one: the library's own would call a late answer lost.
    let times = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT))
        .set_response_timeout(Some(PATIENCE));
    let beginning = async {
        let mut connection = client.get_multiplexed_async_connection_with_config(&times).await?;
        let info: String = redis::cmd("INFO").query_async(&mut connection).await?;
        let server = Server::read(&info)?;
        server.fits(layout)?;
        let access = load(&mut connection, wanted.access).await?;
        let mut command = redis::cmd("EVALSHA");
        command.arg(access).arg(wanted.keys.len()).arg(wanted.keys);
        let lacks: Vec<String> = command.query_async(&mut connection).await?;
        if !lacks.is_empty() {
            return Err(ClientError::Lacks(lacks.join(", "), wanted.document));
        }
        Ok((connection, server))
    };
    timeout(BEGIN, beginning).await.map_err(|_| ClientError::Silent)?
}

/// Makes a script known, and returns its name.
///
/// # Errors
/// Those of Redis, or none of it in time.
pub async fn load(
    connection: &mut MultiplexedConnection,
    script: &str,
) -> Result<String, ClientError> {
    let mut command = redis::cmd("SCRIPT");
    let loaded = command.arg("LOAD").arg(script).query_async(connection);
    Ok(timeout(BEGIN, loaded).await.map_err(|_| ClientError::Silent)??)
}

/// What a server says of itself.
#[derive(Debug)]
pub struct Server {
    version: String,
    is_replica: bool,
    is_cluster: bool,
    /// It has replicas, and goes on without them.
    pub may_split: bool,
    /// What it throws away when its memory is full.
    pub eviction: String,
}

impl Server {
    fn read(info: &str) -> Result<Self, ClientError> {
        let value = |name: &str| {
            let mut lines = info.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim())
        };
        Ok(Self {
            version: value("redis_version").ok_or(ClientError::Garbled)?.to_owned(),
            is_replica: value("role") == Some("slave"),
            is_cluster: value("cluster_enabled") == Some("1"),
            may_split: value("connected_slaves").is_some_and(|replicas| replicas != "0")
                && value("min_slaves_good_slaves").is_none(),
            // A server that does not say has nothing to warn of.
            eviction: value("maxmemory_policy").unwrap_or("noeviction").to_owned(),
        })
    }

    fn fits(&self, layout: Layout) -> Result<(), ClientError> {
        let major = self.version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_none_or(|major| major < LEAST_VERSION) {
            return Err(ClientError::Old(self.version.clone()));
        }
        // Two servers that know nothing of each other would each give out the whole ceiling.
        if layout == Layout::Cluster && !self.is_cluster {
            return Err(ClientError::NoCluster);
        }
        // A Cluster's replica sends us to its primary.
        if self.is_replica && !self.is_cluster { Err(ClientError::Replica) } else { Ok(()) }
    }
}

/// Where a slow disk delays no other task.
async fn read_file(path: &Path) -> Result<Vec<u8>, ClientError> {
    let file = path.to_owned();
    let read = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
    read.map_err(std::io::Error::from)
        .flatten()
        .map_err(|error| ClientError::File { path: path.to_owned(), error })
}

#[cfg(test)]
#[path = "../tests/support/ports.rs"]
pub(crate) mod ports;

#[cfg(all(test, feature = "redis-tests"))]
#[path = "../tests/support/lossy.rs"]
pub(crate) mod lossy;

/// A real server, for the tests of the modules that connect to Redis.
#[cfg(all(test, feature = "redis-tests"))]
#[path = "../tests/support/redis.rs"]
pub(crate) mod server;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_will_do() {
        let info = |version: &str, role: &str, cluster: u8| {
            format!(
                "# Server\r\nredis_version:{version}\r\nrole:{role}\r\ncluster_enabled:{cluster}\r\n"
            )
        };
        for (version, role, cluster, layout, words) in [
            ("7.0.15", "master", 0, Layout::Any, ""),
            ("8.2.1", "master", 1, Layout::Cluster, ""),
            ("7.0.15", "slave", 1, Layout::Cluster, ""),
            ("7.0.15", "slave", 0, Layout::Any, "is a replica"),
            ("6.2.14", "master", 0, Layout::Any, "version of Redis is 6.2.14"),
            ("unstable", "master", 0, Layout::Any, "version of Redis is unstable"),
            ("7.0.15", "master", 0, Layout::Cluster, "no node of a Cluster"),
        ] {
            let info = info(version, role, cluster);
            let said = Server::read(&info).unwrap().fits(layout);
            let said = said.map_or_else(|trouble| trouble.to_string(), |()| String::new());
            assert!(said.contains(words) && said.is_empty() == words.is_empty(), "{said}");
        }
        assert!(Server::read("role:master").is_err());
    }

    #[test]
    fn where_a_cluster_sends_us() {
        for (to, host, port) in [
            ("10.0.0.7:6380", "10.0.0.7", 6380),
            ("redis-2.shop.svc:6379", "redis-2.shop.svc", 6379),
            (":6381", "here", 6381),
            ("?:6381", "here", 6381),
            ("[fd00::7]:6379", "fd00::7", 6379),
            ("fd00::7:6379", "fd00::7", 6379),
        ] {
            assert_eq!(moved_to(to, "here"), Some((host.to_owned(), port)), "{to}");
        }
        assert_eq!(moved_to("nowhere", "here"), None);
    }
}
