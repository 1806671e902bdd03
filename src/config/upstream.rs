//! `[upstream]`: the provider, and which instance a topic belongs to.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::checks::{HOUR, MOST_CONNECTIONS, SHORTEST, instance_id, path, pattern};
use super::error::ValueError;
use super::parse::{self, Raw, Scalar};
use super::read::{Reader, choice, duration, list, optional, required, value, whole};
use super::row::Reload::Live;
use super::row::Row;
use super::table::section;
use super::tables::{Table, tables};
use super::uri::{self, Endpoint, Proxy};
use crate::message::{InstanceId, PayloadEncoding, Topic, TopicPattern};

/// The provider drops a connection that was idle for about 10 s; a call on one is lost.
const LONGEST_IDLE: Duration = Duration::from_millis(9_999);
const LONGEST_CALL: Duration = Duration::from_mins(1);
const SIGNATURES: [(&str, SignatureVersion); 2] =
    [("hmac-sha1", SignatureVersion::HmacSha1), ("acs3-hmac-sha256", SignatureVersion::Acs3)];
pub(super) const PAYLOADS: [(&str, PayloadEncoding); 2] =
    [("base64", PayloadEncoding::Base64), ("plain", PayloadEncoding::Plain)];
/// The keys of one rule.
const RULE: [&str; 2] = ["instance_id", "topics"];
const PAYLOAD_RULE: [&str; 2] = ["topics", "encoding"];

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

/// A rule of `[[upstream.instances]]`.
#[derive(Debug, Clone)]
pub struct InstanceRule {
    /// The instance for these topics.
    pub instance_id: InstanceId,
    /// Its topics.
    pub topics: Vec<TopicPattern>,
}

/// A rule of `[[upstream.payloads]]`.
#[derive(Debug, Clone)]
pub struct PayloadRule {
    /// Its topics.
    pub topics: Vec<TopicPattern>,
    /// How their bodies travel.
    pub encoding: PayloadEncoding,
}

section! {
    /// `[upstream]`: the provider.
    #[derive(Debug, Clone)]
    pub struct Upstream [upstream] {
        /// Required. Where the provider is: https://host[:port], http://host[:port] or a bare host for https.
        endpoint: Endpoint => Required "https://onsmqtt.cn-hangzhou.aliyuncs.com",
            required(|raw| uri::endpoint(raw.text()?), ENDPOINT_REMEDY);

        /// Required, unless the rules below name an instance for every topic: the instance of all other
        /// topics.
        instance_id: Option<InstanceId> => Required "post-cn-0pp12gl0000", optional(instance_id), Live;

        /// How calls are signed: "hmac-sha1" or "acs3-hmac-sha256".
        signature: SignatureVersion = "hmac-sha1", choice(&SIGNATURES);

        /// How bodies travel: "base64" takes any bytes, "plain" only UTF-8 text.
        payload: PayloadEncoding = "base64", choice(&PAYLOADS);

        /// Other encodings for some topics: the first rule that matches a topic wins. Here * stands for anything.
        /// tollgate stores bodies as they were posted: a stored message travels by the rules at its call.
        /// [[upstream.payloads]]
        /// topics = ["Alarm/*"]
        /// encoding = "plain"
        payloads: Vec<PayloadRule> = [], payloads;

        /// Time limit of resolving the name, connecting and the TLS handshake; not longer than
        /// call_timeout.
        connect_timeout: Duration = "1s", duration(SHORTEST..=LONGEST_CALL);

        /// Time limit of one call, from its permit to its answer.
        call_timeout: Duration = "3s", duration(SHORTEST..=LONGEST_CALL);

        /// How long an unused connection stays open. Below 10s, when the provider closes it.
        idle_timeout: Duration = "5s", duration(SHORTEST..=LONGEST_IDLE);

        /// The most connections of each egress address. The same number more may stay open for late
        /// answers.
        max_connections: usize = 256, whole(1..=MOST_CONNECTIONS);

        /// How long a resolved address is used before tollgate resolves the name again, in the background.
        /// Calls use the known addresses meanwhile, also if the resolver fails.
        dns_ttl: Duration = "30s", duration(SHORTEST..=HOUR);

        /// The certificate authorities that tollgate trusts for the endpoint: "bundled" (Mozilla's list,
        /// built in), "system", or the path of a PEM file.
        roots: Roots = "bundled", value(roots);

        /// An HTTP proxy for all calls, which must allow CONNECT to the endpoint:
        /// http://[user:password@]host:port. Behind it, all calls leave from one address, the proxy's, with one
        /// ceiling ceilings.egress_ip; sidecars behind the same proxy share that address (fleet.egress_group).
        /// The variables HTTPS_PROXY and NO_PROXY hold for https requests for keys only. No default.
        proxy: Option<Proxy> => Example "http://proxy.example:3128",
            optional(|raw| uri::proxy(raw.text()?));

        /// Addresses of this pod to send from. Each has the ceiling ceilings.egress_ip of its own, so they
        /// must leave the cluster as different addresses, too. Empty: one, which the system chooses.
        egress_addresses: Vec<IpAddr> = [], list(Scalar::Refused, egress);

        /// Rules for more than one instance: the first that matches a topic wins. Here * stands for anything.
        /// [[upstream.instances]]
        /// instance_id = "post-cn-0pp12gl0001"
        /// topics = ["Alarm/*"]
        instances: Vec<InstanceRule> = [], instances, Live;
    }
    check conflicts(instance_id, instances, connect_timeout, call_timeout, egress_addresses, proxy);
}

const ENDPOINT_REMEDY: &str =
    "write the host of the instance's region, as the provider's console shows it";

impl Upstream {
    /// How the bodies of a topic travel.
    pub fn encoding_for(&self, topic: &Topic) -> PayloadEncoding {
        let mut rules = self.payloads.iter();
        let rule = rules.find(|rule| rule.topics.iter().any(|pattern| pattern.matches(topic)));
        rule.map_or(self.payload, |rule| rule.encoding)
    }

    /// The most bytes that a body of any topic can have.
    pub(super) fn largest_payload(&self) -> usize {
        let rules = self.payloads.iter().map(|rule| rule.encoding.max_payload());
        rules.fold(self.payload.max_payload(), usize::max)
    }

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

fn conflicts(
    r: &mut Reader<'_>,
    instance_id: Option<&Option<InstanceId>>,
    instances: Option<&Vec<InstanceRule>>,
    connect: Option<&Duration>,
    call: Option<&Duration>,
    egress_addresses: Option<&Vec<IpAddr>>,
    proxy: Option<&Option<Proxy>>,
) {
    if instance_id == Some(&None) && instances.is_some_and(Vec::is_empty) {
        let remedy = "write the instance's id, or rules under [[upstream.instances]]";
        r.conflict("upstream.instance_id", "is required where no rule names an instance", remedy);
    }
    let (connect, call) = (("upstream.connect_timeout", connect), ("upstream.call_timeout", call));
    r.not_longer(connect, call, "write a shorter one: a call includes its connection");
    if let Some(addresses) = egress_addresses {
        no_address_twice(r, addresses);
        // Each would have a ceiling of its own, and all leave as one.
        if addresses.len() > 1 && matches!(proxy, Some(Some(_))) {
            let remedy = "remove them, or all but one: the provider sees the proxy's address only";
            r.conflict("upstream.egress_addresses", "has several beside upstream.proxy", remedy);
        }
    }
}

fn egress(raw: &Raw) -> Result<IpAddr, ValueError> {
    let address: IpAddr = raw.text()?.parse().map_err(|_| {
        ValueError::new("is not an IP address", "write one of this pod's own, such as 10.0.0.7")
    })?;
    let is_broadcast = address == IpAddr::from([255, 255, 255, 255]);
    if address.is_unspecified() || address.is_multicast() || is_broadcast {
        let remedy = "write one of this pod's own addresses, such as 10.0.0.7";
        return Err(ValueError::new("is an address that nothing can be sent from", remedy));
    }
    Ok(address)
}

fn roots(raw: &Raw) -> Result<Roots, ValueError> {
    match raw.text()? {
        "bundled" => Ok(Roots::Bundled),
        "system" => Ok(Roots::System),
        // A misspelt word must not become the name of a file.
        text if text.contains('/') => path(raw).map(Roots::File),
        _ => Err(ValueError::new(
            "is neither \"bundled\" nor \"system\" nor a path",
            "write one of the words, or a PEM file's path with a slash in it",
        )),
    }
}

/// Two sockets of one address share its ceiling; counted twice, they would go over it.
fn no_address_twice(r: &mut Reader<'_>, addresses: &[IpAddr]) {
    let mut seen = HashSet::new();
    for address in addresses {
        if !seen.insert(address.to_canonical()) {
            let remedy = "name each address once: its ceiling holds for all that leaves from it";
            r.conflict("upstream.egress_addresses", format!("names {address} twice"), remedy);
        }
    }
}

// === [[upstream.instances]] and [[upstream.payloads]] ===

fn instances(r: &mut Reader<'_>, row: &Row) -> Option<Vec<InstanceRule>> {
    let remedy = "write [[upstream.instances]] in the file, with instance_id and topics";
    let rules = tables(r, row, &RULE, remedy, |r, table| {
        let id = table.value(r, "instance_id", instance_id);
        let topics = topics(r, table);
        Some(InstanceRule { instance_id: id?, topics: topics? })
    })?;
    let before = r.errors.len();
    no_pattern_twice(r, row, rules.iter().map(|rule| &*rule.topics));
    (r.errors.len() == before).then_some(rules)
}

fn payloads(r: &mut Reader<'_>, row: &Row) -> Option<Vec<PayloadRule>> {
    let remedy = "write [[upstream.payloads]] in the file, with topics and encoding";
    let rules = tables(r, row, &PAYLOAD_RULE, remedy, |r, table| {
        let topics = topics(r, table);
        let encoding = table.value(r, "encoding", |raw| parse::choice(raw, &PAYLOADS));
        Some(PayloadRule { topics: topics?, encoding: encoding? })
    })?;
    let before = r.errors.len();
    no_pattern_twice(r, row, rules.iter().map(|rule| &*rule.topics));
    (r.errors.len() == before).then_some(rules)
}

/// The topics of a rule.
fn topics(r: &mut Reader<'_>, table: &Table<'_>) -> Option<Vec<TopicPattern>> {
    table.required(r, "topics", |r, key, raw| {
        let topics = r.items(key, raw, Scalar::Refused, pattern);
        if topics.as_ref().is_some_and(Vec::is_empty) {
            let remedy = "name a pattern, such as \"Alarm/*\"";
            r.conflict(key, "is empty, so the rule never holds", remedy);
        }
        topics
    })
}

/// The first match wins, so a pattern's second mention never does.
fn no_pattern_twice<'a>(
    r: &mut Reader<'_>,
    row: &Row,
    rules: impl Iterator<Item = &'a [TopicPattern]>,
) {
    let mut seen = HashSet::new();
    for (index, topics) in rules.enumerate() {
        for pattern in topics {
            if !seen.insert(pattern.as_str()) {
                let key = format!("{}[{index}].topics", row.name);
                let problem = format!("names {:?}, as a rule before does", pattern.as_str());
                r.conflict(&key, problem, "remove one of them: the first match wins");
            }
        }
    }
}
