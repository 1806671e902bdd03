//! Every setting, its default, its check, and where each value came from.
//!
//! What is here is already valid: rooms take a section and never look at a string again.
//!
//! [`load`] merges the sources and reads them; `sections` is the table of all keys, each with its
//! default and its check; [`explain`] says what holds, and why.

mod billing;
mod checks;
mod error;
mod explain;
mod flags;
mod fleet;
mod load;
mod parse;
mod read;
mod reload;
mod sections;
mod setting;
mod tables;
mod unknown;
mod upstream;
mod uri;

pub use billing::{Billing, Budget, Limit, MAX_TIERS, Period, Prices};
pub use error::{ConfigError, ConfigErrors};
pub use explain::explain;
pub(crate) use explain::grouped;
pub use flags::Flags;
pub use load::{Loaded, keys, load};
pub use setting::{Origin, Setting};

use std::fmt;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::answer::Codes;
use crate::message::{InstanceId, PayloadEncoding, Topic, TopicPattern};

/// The provider's published ceiling of `SendMessage` for one account, calls per second.
pub const PUBLISHED_ACCOUNT: u32 = 1_000;
/// The provider's published ceiling of one source address, calls per second. Over it, the address
/// is blocked.
pub const PUBLISHED_EGRESS_IP: u32 = 300;

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[listen]`
    pub listen: Listen,
    /// `[publish]`
    pub publish: Publish,
    /// `[upstream]`
    pub upstream: Upstream,
    /// `[keys]`
    pub keys: Keys,
    /// `[ceilings]`
    pub ceilings: Ceilings,
    /// `[fleet]`; `None`: alone.
    pub fleet: Option<Fleet>,
    /// `[retry]`
    pub retry: Retry,
    /// `[spool]`; `None`: nothing is kept.
    pub spool: Option<Spool>,
    /// `[idempotency]`
    pub idempotency: Idempotency,
    /// `[topics]`
    pub topics: Topics,
    /// `[billing]`
    pub billing: Billing,
    /// `[telemetry]`
    pub telemetry: Telemetry,
    /// `[drain]`
    pub drain: Drain,
    /// `[runtime]`
    pub runtime: Runtime,
}

/// Where a door listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// `127.0.0.1:8080`
    Tcp(SocketAddr),
    /// `unix:/run/tollgate/publish.sock`
    Unix(PathBuf),
}

/// `[listen]`: the doors.
#[derive(Debug, Clone)]
pub struct Listen {
    /// For callers; one or more.
    pub publish: Vec<Address>,
    /// For Prometheus, the kubelet and a browser.
    pub telemetry: SocketAddr,
    /// For `tollgate` on the same machine; `None`: nowhere.
    pub control: Option<PathBuf>,
}

/// `[publish]`: the callers' door.
#[derive(Debug, Clone)]
pub struct Publish {
    /// How long a caller waits who does not say.
    pub wait: Duration,
    /// The largest body, bytes as posted.
    pub max_payload: usize,
    /// Whether answers carry `RateLimit` fields.
    pub ratelimit_headers: bool,
    /// The most messages that may wait for a permit at once.
    pub max_waiting: usize,
    /// The most connections at once, over all of this door's addresses.
    pub max_connections: usize,
    /// The largest request head, bytes.
    pub max_header: usize,
    /// From a head's first byte to its last.
    pub header_timeout: Duration,
    /// From a head's end to its body's.
    pub body_timeout: Duration,
    /// How long a connection may stay without a request.
    pub idle_timeout: Duration,
}

/// Which signature a call carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureVersion {
    /// RPC style, HMAC-SHA1, parameters in a form body.
    HmacSha1,
    /// `ACS3-HMAC-SHA256`, parameters in the query.
    Acs3,
}

/// Which certificate authorities vouch for the upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// Mozilla's, built in: works in an image without CA files.
    Bundled,
    /// The operating system's.
    System,
    /// A PEM file.
    File(PathBuf),
}

/// Where the upstream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Endpoint {
    /// The `Host` header: with the port only where it is not the scheme's own, since the header
    /// is signed and a server sees it that way.
    pub fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// Whether this is the provider itself, whose published ceilings then hold.
    pub fn is_provider(&self) -> bool {
        let host = self.host.trim_end_matches('.').to_ascii_lowercase();
        host == "aliyuncs.com" || host.ends_with(".aliyuncs.com")
    }
}

/// A rule of `[[upstream.instances]]`.
#[derive(Debug, Clone)]
pub struct InstanceRule {
    /// The instance for these topics.
    pub instance_id: InstanceId,
    /// Its topics.
    pub topics: Vec<TopicPattern>,
}

/// `[upstream]`: the provider.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Where it is.
    pub endpoint: Endpoint,
    /// The instance of topics that no rule names.
    pub instance_id: Option<InstanceId>,
    /// More instances; the first match wins.
    pub instances: Vec<InstanceRule>,
    /// How calls are signed.
    pub signature: SignatureVersion,
    /// How bodies travel.
    pub payload: PayloadEncoding,
    /// Bound on resolving, connecting and the TLS handshake.
    pub connect_timeout: Duration,
    /// Bound on one call, from its permit to its answer.
    pub call_timeout: Duration,
    /// How long an unused connection is kept; less than the provider's 10 s.
    pub idle_timeout: Duration,
    /// The most connections per egress address.
    pub max_connections: usize,
    /// How long a resolved name is believed.
    pub dns_ttl: Duration,
    /// Who vouches for the endpoint.
    pub roots: Roots,
    /// Source addresses to send from, each with a ceiling of its own; empty: the system's choice.
    pub egress_addresses: Vec<IpAddr>,
}

impl Upstream {
    /// The instance a topic belongs to; `None` where no rule and no default names one.
    pub fn instance_for(&self, topic: &Topic) -> Option<InstanceId> {
        self.instances
            .iter()
            .find(|rule| rule.topics.iter().any(|pattern| pattern.matches(topic)))
            .map(|rule| &rule.instance_id)
            .or(self.instance_id.as_ref())
            .cloned()
    }
}

/// `[keys]`: where the key comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum Keys {
    /// `ALIBABA_CLOUD_ACCESS_KEY_ID`, `…_SECRET` and `ALIBABA_CLOUD_SECURITY_TOKEN`.
    Env,
    /// A folder with a file for each part, as Kubernetes mounts a Secret.
    File {
        /// The folder.
        path: PathBuf,
        /// How often its contents are compared.
        poll: Duration,
    },
    /// A URI that answers with a short-lived key.
    Uri {
        /// The URI.
        uri: String,
    },
}

impl fmt::Debug for Keys {
    /// A URI may hold a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env => f.write_str("Env"),
            Self::File { path, poll } => {
                f.debug_struct("File").field("path", path).field("poll", poll).finish()
            }
            Self::Uri { uri } => f.debug_struct("Uri").field("uri", &uri::mask(uri)).finish(),
        }
    }
}

/// `[ceilings]`: never over, in any sliding second.
#[derive(Debug, Clone, PartialEq)]
pub struct Ceilings {
    /// Calls per second of the account; `None`: no ceiling.
    pub account: Option<u32>,
    /// Calls per second of one egress address; `None`: no ceiling.
    pub egress_ip: Option<u32>,
    /// The most that retries get while fresh messages wait, 0 to 1.
    pub retry_share: f64,
    /// How long a call without an answer counts.
    pub unanswered: Unanswered,
    /// Whether a figure above the published one was asked for, and allowed.
    pub above_published: bool,
}

/// How long a call that ended without an answer goes on counting against the ceilings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unanswered {
    /// At least so long, although later calls are answered.
    pub min: Duration,
    /// At most so long.
    pub max: Duration,
}

/// `[fleet]`: sidecars that share the ceilings through Redis.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// Where Redis is.
    pub redis: Redis,
    /// The account whose ceiling is shared.
    pub account: String,
    /// Sidecars of one group share the ceiling of one egress address; empty: each has its own.
    pub egress_group: String,
    /// How many share it: decides how many permits each may keep for long.
    pub expected_sidecars: u32,
    /// Redis user; empty: the default one.
    pub username: String,
    /// The file that holds the password.
    pub password_file: Option<PathBuf>,
    /// Who vouches for Redis, a PEM file; `None`: the operating system's authorities.
    pub ca_file: Option<PathBuf>,
}

/// Where Redis is, without user and password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redis {
    /// Whether connections are encrypted, to Sentinels as well.
    pub tls: bool,
    /// Hosts and ports: one server, or nodes of a Cluster, or Sentinels.
    pub nodes: Vec<(String, u16)>,
    /// The name by which Sentinels know the primary; `None`: the nodes are no Sentinels.
    pub primary: Option<String>,
    /// Its number.
    pub database: i64,
}

/// `[retry]`: what happens to kept messages that were not delivered.
#[derive(Debug, Clone)]
pub struct Retry {
    /// The most messages that are tried together.
    pub batch: usize,
    /// Longest wait before the second try; doubles with each.
    pub base: Duration,
    /// Where the doubling ends.
    pub cap: Duration,
    /// Older messages become dead letters.
    pub max_age: Duration,
    /// After a call whose outcome is unknown, the most calls more whose outcome is unknown.
    pub unknown_tries: u32,
    /// Topics whose messages are not tried again where the outcome is unknown.
    pub park: Vec<TopicPattern>,
    /// Provider codes that mean something else than the table says.
    pub codes: Codes,
}

impl Retry {
    /// Whether a message may be delivered twice rather than never.
    pub fn may_repeat(&self, topic: &Topic) -> bool {
        !self.park.iter().any(|pattern| pattern.matches(topic))
    }
}

/// Where messages are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// On the disk, by each sidecar for itself.
    Disk,
    /// In the fleet's Redis, by all sidecars of the account together.
    Redis,
}

/// `[spool]`: what is kept.
#[derive(Debug, Clone)]
pub struct Spool {
    /// Where.
    pub store: Store,
    /// The folder; the ledger is there, too.
    pub path: PathBuf,
    /// The most bytes.
    pub max_bytes: u64,
    /// The most messages, dead letters and receipts.
    pub max_messages: usize,
    /// How long one can ask what became of a delivered message.
    pub keep_receipts: Duration,
}

/// `[idempotency]`
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// How long a key is remembered after the end of its message.
    pub keep: Duration,
    /// The most keys.
    pub max_keys: usize,
}

/// `[topics]`
#[derive(Debug, Clone)]
pub struct Topics {
    /// Topics that may be published to; empty: all.
    pub allow: Vec<TopicPattern>,
}

impl Topics {
    /// Whether a topic may be published to.
    pub fn allows(&self, topic: &Topic) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|pattern| pattern.matches(topic))
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For a person.
    Text,
}

/// `[telemetry]`
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// How log lines look.
    pub log: LogFormat,
    /// What is logged: a level, or directives such as `info,hyper=warn`.
    pub level: String,
    /// The most parent topics with series of their own.
    pub max_topics: usize,
}

/// `[drain]`
#[derive(Debug, Clone)]
pub struct Drain {
    /// How long messages on their way may take after SIGTERM.
    pub grace: Duration,
    /// How long messages are still taken after SIGTERM, before `grace` begins.
    pub accept_for: Duration,
    /// Whether a disk's spool hands what is left to the fleet's Redis.
    pub handoff: bool,
}

/// `[runtime]`
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Worker threads; from the CPU limit where it was 0.
    pub threads: usize,
}
