//! `[fleet]`: sidecars that share the ceilings through Redis.

use std::path::PathBuf;
use std::time::Duration;

use super::checks::{optional_path, or_empty};
use super::error::ValueError;
use super::parse::Raw;
use super::read::{Reader, value, whole};
use super::row::Row;
use super::table::section;
use super::uri::{self, host_and_port};
use super::{Ceilings, Upstream};

/// Leases last 10 s at least; a call must leave room in one.
const LONGEST_CALL: Duration = Duration::from_secs(5);
/// Each permit is an entry in Redis.
const MOST_PERMITS: u32 = 100_000;

/// `[fleet]`: sidecars that share the ceilings through Redis.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// Where Redis is.
    pub redis: Redis,
    /// The account whose ceiling is shared.
    pub account: String,
    /// The region whose calls the provider counts together; empty: it is not known.
    pub region: String,
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

impl Fleet {
    /// Whose ceiling it is, for a person to read.
    pub fn shared_ceiling(&self) -> String {
        match (&self.account, &*self.region) {
            (account, "") => format!("account {account}, all regions"),
            (account, region) => format!("account {account}, region {region}"),
        }
    }
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

section! {
    pub(super) struct FleetRows [fleet] {
        /// Sidecars share the ceilings through Redis or Valkey (7 or later). Without fleet.url each sidecar
        /// uses the full ceilings. A sidecar without an answer from Redis uses its leased permits for 6 to
        /// 26 s, and then sends nothing. What Redis needs for that is in docs/fleet.md.
        ///   redis://host:6379                             one server, or a proxy before one
        ///   redis://node1:6379,node2:6379                 a Cluster: some of its nodes, tried in turn
        ///   redis+sentinel://host1:26379,host2:26379/name the primary that Sentinels know by this name
        /// rediss and rediss+sentinel with TLS.
        url: Option<Redis> = "", value(url);

        /// What is shared: sidecars that name the same account and region share its ceiling, as the provider
        /// counts calls by main account and region. By default it is the region in upstream.endpoint, as in
        /// onsmqtt.cn-hangzhou.aliyuncs.com. As long as a sidecar of the account has no region, all share one
        /// ceiling over all regions, and for a week after. Those that also name the same group share the
        /// ceiling of one egress address, as behind one NAT gateway; without a group each has an address of
        /// its own.
        account: String = "default", value(name);
        region: String => Example "cn-hangzhou", region;
        egress_group: String = "", value(|raw| or_empty(raw, name));

        /// How many sidecars share the ceilings. A sidecar may lease its equal share of the permits for 30
        /// s at a time, and others for 10 s.
        expected_sidecars: u32 = 1, whole(1..=100_000);

        /// The Redis user, the file with its password, and the PEM file of the certificate authority of
        /// Redis.
        username: String = "", value(|raw| raw.text().map(str::to_owned));
        password_file: Option<PathBuf> = "", value(optional_path);
        ca_file: Option<PathBuf> = "", value(optional_path);
    }
}

#[expect(clippy::option_option, reason = "outside: is it right; inside: is there one")]
pub(super) fn fleet(r: &mut Reader<'_>) -> Option<Option<Fleet>> {
    let rows = FleetRows::read(r)?;
    Some(rows.url.map(|redis| Fleet {
        redis,
        account: rows.account,
        region: rows.region,
        egress_group: rows.egress_group,
        expected_sidecars: rows.expected_sidecars,
        username: rows.username,
        password_file: rows.password_file,
        ca_file: rows.ca_file,
    }))
}

/// Checks a fleet beside what it shares.
pub(super) fn fleet_fits(
    r: &mut Reader<'_>,
    fleet: &Fleet,
    ceilings: &Ceilings,
    upstream: &Upstream,
) {
    let egress = ceilings.egress_ip.filter(|_| !fleet.egress_group.is_empty());
    if ceilings.account.is_none() && egress.is_none() {
        r.conflict("fleet.url", "has no ceiling to share", "set ceilings.account");
    }
    for (key, figure) in [("ceilings.account", ceilings.account), ("ceilings.egress_ip", egress)] {
        if figure.is_some_and(|n| n > MOST_PERMITS) {
            let problem = format!("is more than a fleet shares, {MOST_PERMITS}");
            r.conflict(key, problem, "write a lower one, or leave fleet.url out");
        }
    }
    if egress.is_some() && upstream.egress_addresses.len() > 1 {
        let problem = "is for sidecars behind one address, and here are several";
        r.conflict("fleet.egress_group", problem, "leave it out, or upstream.egress_addresses");
    }
    if upstream.call_timeout > LONGEST_CALL {
        let problem = "is longer than a lease in a fleet leaves room for";
        r.conflict("upstream.call_timeout", problem, "write at most \"5s\"");
    }
}

const URL_REMEDY: &str = "write redis://host:6379, redis://node1:6379,node2:6379 for a Cluster, or \
    redis+sentinel://host1:26379,host2:26379/name; rediss with TLS";
const MOST_NODES: usize = 32;

fn url(raw: &Raw) -> Result<Option<Redis>, ValueError> {
    let text = raw.text()?;
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |problem: &str| ValueError::new(problem, URL_REMEDY);
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    let (tls, sentinel) = match scheme {
        "redis" => (false, false),
        "rediss" => (true, false),
        "redis+sentinel" => (false, true),
        "rediss+sentinel" => (true, true),
        _ => return Err(wrong("is not a Redis URL")),
    };
    if rest.contains('@') {
        let remedy = "leave them out, and set fleet.username and fleet.password_file";
        return Err(ValueError::new("has a user or password", remedy));
    }
    let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
    let standard = if sentinel { 26_379 } else { 6_379 };
    let nodes = hosts.split(',').map(|host| {
        let (host, port) = host_and_port(host).map_err(wrong)?;
        Ok((host, port.unwrap_or(standard)))
    });
    let nodes = nodes.collect::<Result<Vec<_>, ValueError>>()?;
    if nodes.len() > MOST_NODES {
        return Err(wrong("names too many hosts"));
    }
    let (primary, database) = match path.split_once('/') {
        Some((name, database)) if sentinel => (name, database),
        None if sentinel => (path, ""),
        _ => ("", path),
    };
    if sentinel && !is_name(primary) {
        return Err(wrong("does not say by which name the Sentinels know the primary"));
    }
    let database = if database.is_empty() { Ok(0) } else { database.parse::<u16>() };
    let database = database.map_err(|_| wrong("has a path that is no database's number"))?;
    if nodes.len() > 1 && !sentinel && database > 0 {
        return Err(wrong("names a database, and a Cluster has only the first"));
    }
    let primary = sentinel.then(|| primary.to_owned());
    Ok(Some(Redis { tls, nodes, primary, database: i64::from(database) }))
}

/// As it is set, or that of the endpoint.
fn region(r: &mut Reader<'_>, row: &Row) -> Option<String> {
    let endpoint = r.given("upstream.endpoint");
    let endpoint = endpoint.and_then(|raw| uri::endpoint(raw.text().ok()?).ok());
    let derived = endpoint.and_then(|endpoint| endpoint.region()).unwrap_or_default();
    match r.given(row.name) {
        Some(raw) if raw.text().is_ok_and(str::is_empty) => {
            // Set, to nothing: as if it were not.
            r.record(row.name, &raw, Ok(derived))
        }
        _ => r.value_or(row, &derived, |raw| or_empty(raw, lower_case)),
    }
}

/// A region is the same in any case.
fn lower_case(raw: &Raw) -> Result<String, ValueError> {
    name(raw).map(|name| name.to_ascii_lowercase())
}

/// Part of keys in Redis.
fn name(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    if !is_name(text) {
        return Err(ValueError::new("is not a name", "use up to 64 letters, digits, - _ and ."));
    }
    Ok(text.to_owned())
}

fn is_name(text: &str) -> bool {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=64).contains(&text.len()) && text.chars().all(is_fit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::origin::Origin;

    fn read(text: &str) -> Result<Option<Redis>, ValueError> {
        url(&Raw { value: text.into(), origin: Origin::Default })
    }

    #[test]
    fn urls() {
        for (text, tls, nodes, primary, database) in [
            ("redis://host", false, vec![("host", 6379)], None, 0),
            ("rediss://h.x:6380/3", true, vec![("h.x", 6380)], None, 3),
            ("redis://[::1]:7000", false, vec![("::1", 7000)], None, 0),
            ("redis://a:1,b,c:3", false, vec![("a", 1), ("b", 6379), ("c", 3)], None, 0),
            ("redis+sentinel://a,b:2/main", false, vec![("a", 26379), ("b", 2)], Some("main"), 0),
            ("rediss+sentinel://a/main/5", true, vec![("a", 26379)], Some("main"), 5),
        ] {
            let nodes = nodes.into_iter().map(|(host, port)| (host.to_owned(), port)).collect();
            let primary = primary.map(str::to_owned);
            let expected = Redis { tls, nodes, primary, database };
            assert_eq!(read(text).ok(), Some(Some(expected)), "{text}");
        }
        assert_eq!(read("").ok(), Some(None));
    }

    #[test]
    fn no_urls() {
        for text in [
            "host:6379",
            "http://host",
            "redis://",
            "redis://a,,b",
            "redis://host/x",
            "redis://a,b/1",
            "redis://host?x",
            "redis+sentinel://a,b",
            "redis+sentinel://a/",
            "redis+sentinel://a/na me",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
