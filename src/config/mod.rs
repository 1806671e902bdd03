//! Every setting, its default, its check, and where each value came from.
//!
//! What is here is already valid: modules take a section and never look at a string again.
//!
//! A key is one row of its section's table: name, type, default, reader, documentation, and
//! whether a running process takes up a change. [`load`] merges the sources and reads them by the
//! table; [`explain`] prints the values that hold, and their origins; [`reference`] is the
//! documentation.

mod billing;
mod callers;
mod ceilings;
mod checks;
mod credentials;
mod error;
mod explain;
mod file;
mod flags;
mod fleet;
mod key_source;
mod keyring;
mod listen;
mod load;
mod nearest;
mod origin;
mod otlp;
mod parse;
mod read;
mod reference;
mod reload;
mod retry;
mod row;
mod sections;
mod session_policy;
mod setting;
mod spool;
mod table;
mod tables;
mod topic_rules;
mod unknown;
mod upstream;
mod uri;
mod warnings;

pub use billing::{Billing, Budget, BudgetScope, CutOffPolicy, Limit, MAX_TIERS, Period, Prices};
pub use callers::{Caller, IssuedKeyFile, Sdk, SdkAccept, SdkKept};
pub use ceilings::{Ceilings, PUBLISHED_ACCOUNT, PUBLISHED_EGRESS_IP, Unanswered};
pub use error::{ConfigError, ConfigErrors};
pub use explain::explain;
pub use file::ConfigFile;
pub use flags::Flags;
pub use fleet::{Fleet, Redis};
pub use key_source::{
    Canary, CliFile, CliFiles, EcsMetadata, KeySource, KeyUri, Keys, MetadataV1, OidcRole, RoleOf,
    RoleSession, StsService,
};
pub use keyring::{CallerProof, Issuer, Keyring, KeyringCaller};
pub use listen::{Address, CloudEvents, Listen, Publish, TlsFiles};
pub use load::{Loaded, keys, load, load_file};
pub use origin::Origin;
pub use otlp::Otlp;
pub use reference::reference;
pub use retry::Retry;
pub use sections::{Drain, LogFormat, Runtime, Telemetry, Topics};
pub use setting::Setting;
pub(crate) use setting::grouped;
pub use spool::{Idempotency, Lifetime, MacFile, Spool, Store, Unsigned};
pub use topic_rules::TopicRule;
pub use upstream::{InstanceRule, PayloadRule, Roots, SignatureVersion, Upstream};
pub use uri::{Endpoint, Proxy};
pub use warnings::{Warning, warnings};

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[listen]`
    pub listen: Listen,
    /// `[listen.tls]`; `None`: callers speak plain HTTP.
    pub tls: Option<TlsFiles>,
    /// `[publish]`
    pub publish: Publish,
    /// `[sdk]`
    pub sdk: Sdk,
    /// `[[callers]]`; empty: all who reach the callers' server are one.
    pub callers: Vec<Caller>,
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
    /// `[telemetry.otlp]`; `None`: there are no spans.
    pub otlp: Option<Otlp>,
    /// `[drain]`
    pub drain: Drain,
    /// `[runtime]`
    pub runtime: Runtime,
    /// `[keyring]`; `None`: there is none.
    pub keyring: Option<Keyring>,
}
