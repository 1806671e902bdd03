//! What is valid, and insecure or beyond what the provider publishes. It is printed by
//! `tollgate check`, and logged at start.

use std::fmt;
use std::net::IpAddr;

use http::Uri;

use super::setting::grouped;
use super::{
    Address, Config, Fleet, KeySource, KeyUri, Keys, PUBLISHED_ACCOUNT, PUBLISHED_EGRESS_IP, Store,
    Unsigned,
};

/// A valid value that its operator should know about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Such as `ceilings.account`.
    pub key: &'static str,
    /// What is wrong with it, as in `ceilings.account is "none": …`.
    pub problem: String,
    /// What the operator can do.
    pub remedy: &'static str,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}; {}", self.key, self.problem, self.remedy)
    }
}

/// All warnings, in the order of the documentation.
pub fn warnings(config: &Config) -> Vec<Warning> {
    [publish(config), endpoint(config), keys(&config.keys), account(config), egress_ip(config)]
        .into_iter()
        .chain([proxy(config), config.fleet.as_ref().and_then(redis), mac(config), actions(config)])
        .flatten()
        .collect()
}

impl Warning {
    fn new(key: &'static str, problem: impl Into<String>, remedy: &'static str) -> Self {
        Self { key, problem: problem.into(), remedy }
    }
}

/// tollgate signs for every caller that reaches this listener.
fn publish(config: &Config) -> Option<Warning> {
    let sdk = if config.sdk.enabled { &*config.sdk.listen } else { &[] };
    let open = config.listen.publish.iter().chain(sdk).find_map(|address| match address {
        Address::Tcp(address) if !address.ip().is_loopback() => Some(address),
        Address::Tcp(_) | Address::Unix(_) => None,
    })?;
    if !config.callers.is_empty() {
        if config.tls.is_some() {
            return None;
        }
        return Some(Warning::new(
            "listen.publish",
            format!("is {open}: tokens of callers cross the network in clear text"),
            "set listen.tls, let a proxy or a mesh encrypt what reaches this address, or listen on a loopback address",
        ));
    }
    Some(Warning::new(
        "listen.publish",
        format!("is {open}: every host that reaches this address can publish with your key"),
        "listen on a loopback address or a Unix socket, name callers ([[callers]]), or restrict access by a network policy",
    ))
}

/// A device with a token that a service has applied for publishes past tollgate.
fn actions(config: &Config) -> Option<Warning> {
    let applies =
        config.sdk.enabled && config.sdk.actions.iter().any(|one| &*one.name == "ApplyToken");
    (applies && !config.topics.allow.is_empty()).then(|| {
        Warning::new(
            "sdk.actions",
            "has ApplyToken: topics.allow does not hold for what a token opens",
            "leave it out, or let only callers that may publish to all topics reach it",
        )
    })
}

fn endpoint(config: &Config) -> Option<Warning> {
    let endpoint = &config.upstream.endpoint;
    if endpoint.tls || !endpoint.is_provider() {
        return None;
    }
    Some(Warning::new(
        "upstream.endpoint",
        "is http: messages and signatures cross the network unencrypted",
        "write https://",
    ))
}

/// The provider sees one address for all that send through a proxy.
fn proxy(config: &Config) -> Option<Warning> {
    let is_shared = config.fleet.as_ref().is_some_and(|fleet| !fleet.egress_group.is_empty());
    if config.upstream.proxy.is_none() || config.ceilings.egress_ip.is_none() || is_shared {
        return None;
    }
    Some(Warning::new(
        "upstream.proxy",
        "is one address for all sidecars behind it, and this one takes the whole ceiling of that address",
        "set fleet.egress_group in all of them, unless this is the only one",
    ))
}

fn keys(keys: &Keys) -> Option<Warning> {
    let KeySource::Uri(KeyUri { uri, .. }) = &keys.source else { return None };
    let uri: Uri = uri.parse().ok()?;
    if uri.scheme_str() != Some("http") || is_near(uri.host().unwrap_or_default()) {
        return None;
    }
    Some(Warning::new("keys.uri", "is http: the key crosses the network unencrypted", "use https"))
}

fn redis(fleet: &Fleet) -> Option<Warning> {
    if fleet.redis.tls || is_redis_near(fleet) {
        return None;
    }
    Some(Warning::new(
        "fleet.url",
        "is unencrypted: hosts on the way to Redis can read its password, and with spool.store = \
         \"redis\" the messages",
        "use rediss://",
    ))
}

fn is_redis_near(fleet: &Fleet) -> bool {
    fleet.redis.nodes.iter().all(|(host, _)| is_near(host))
}

/// A sidecar signs calls for what it takes over from Redis.
fn mac(config: &Config) -> Option<Warning> {
    let spool = config.spool.as_ref().filter(|spool| spool.store == Store::Redis)?;
    match &spool.mac {
        None if config.fleet.as_ref().is_some_and(|fleet| !is_redis_near(fleet)) => {
            Some(Warning::new(
                "spool.mac_file",
                "is empty: every client that can write to Redis can have messages sent with your key",
                "write the path of a file with keys (docs/shared-spool.md)",
            ))
        }
        Some(mac) if mac.unsigned == Unsigned::Sent => Some(Warning::new(
            "spool.mac_required",
            "is false: records in Redis that have no MAC are sent",
            "leave it out, once all sidecars of the account sign",
        )),
        _ => None,
    }
}

/// On this machine, or an address that is only routed on the link, as metadata services have.
fn is_near(host: &str) -> bool {
    /// The metadata service of the provider's machines; it speaks http only.
    const METADATA: &str = "100.100.100.200";
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(IpAddr::V4(v4)) => v4.is_loopback() || v4.is_link_local() || bare == METADATA,
        Ok(IpAddr::V6(v6)) => v6.is_loopback() || v6.is_unicast_link_local(),
        Err(_) => bare.eq_ignore_ascii_case("localhost"),
    }
}

/// A proxy or a name of your own may lead to the provider as well: any endpoint counts.
fn account(config: &Config) -> Option<Warning> {
    let remedy = "leave it out, unless the provider has raised its limit for you";
    let figure = grouped(PUBLISHED_ACCOUNT.into());
    match config.ceilings.account {
        None => Some(Warning::new(
            "ceilings.account",
            format!(
                "is \"none\": calls of the account have no ceiling (the provider publishes {figure}/s, \
                 and throttles above it)"
            ),
            remedy,
        )),
        Some(n) if n > PUBLISHED_ACCOUNT => Some(Warning::new(
            "ceilings.account",
            format!(
                "exceeds the {figure} calls/s that the provider publishes, and throttles above"
            ),
            remedy,
        )),
        Some(_) => None,
    }
}

fn egress_ip(config: &Config) -> Option<Warning> {
    if !config.upstream.endpoint.is_provider()
        || config.ceilings.egress_ip.is_some_and(|n| n <= PUBLISHED_EGRESS_IP)
    {
        return None;
    }
    let problem = if config.ceilings.egress_ip.is_none() {
        "is \"none\": it has no ceiling"
    } else {
        "is higher"
    };
    Some(Warning::new(
        "ceilings.egress_ip",
        format!(
            "{problem} (the provider publishes {PUBLISHED_EGRESS_IP} calls/s, and may block an address that \
             exceeds it)"
        ),
        "leave it out, unless the provider has raised its limit for you",
    ))
}
