//! `[upstream]`: the provider, and which instance a topic belongs to.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use super::checks;
use super::error::ValueError;
use super::parse::{Raw, human};
use super::read::Reader;
use super::sections::{MOST_CONNECTIONS, SHORTEST, path};
use super::tables::tables;
use super::{InstanceRule, Roots, SignatureVersion, Upstream, uri};
use crate::message::{InstanceId, PayloadEncoding};

/// The provider drops a connection that was idle for about 10 s; a call on one is lost.
const LONGEST_IDLE: Duration = Duration::from_millis(9_999);
const LONGEST_CALL: Duration = Duration::from_mins(1);
const SIGNATURES: [(&str, SignatureVersion); 2] =
    [("hmac-sha1", SignatureVersion::HmacSha1), ("acs3-hmac-sha256", SignatureVersion::Acs3)];
const PAYLOADS: [(&str, PayloadEncoding); 2] =
    [("base64", PayloadEncoding::Base64), ("plain", PayloadEncoding::Plain)];
/// The keys of one rule.
const RULE: [&str; 2] = ["instance_id", "topics"];

pub(super) fn upstream(r: &mut Reader<'_>) -> Option<Upstream> {
    let endpoint = r.optional("upstream.endpoint", |raw| uri::endpoint(raw.text()?));
    let instance_id = r.optional("upstream.instance_id", instance_id);
    let instances = instances(r);
    let signature = r.choice("upstream.signature", "hmac-sha1", &SIGNATURES);
    let payload = r.choice("upstream.payload", "base64", &PAYLOADS);
    let connect_timeout = r.duration("upstream.connect_timeout", "1s", SHORTEST..=LONGEST_CALL);
    let call_timeout = r.duration("upstream.call_timeout", "3s", SHORTEST..=LONGEST_CALL);
    let idle_timeout = r.duration("upstream.idle_timeout", "5s", SHORTEST..=LONGEST_IDLE);
    let max_connections = r.count("upstream.max_connections", "256", 1..=MOST_CONNECTIONS);
    let dns_ttl = r.duration("upstream.dns_ttl", "30s", SHORTEST..=Duration::from_hours(1));
    let roots = r.value("upstream.roots", "bundled", roots);
    let egress_addresses = r.list("upstream.egress_addresses", "[]", false, checks::egress);

    if endpoint == Some(None) {
        let remedy = "write the host of the instance's region, as the provider's console shows it";
        r.clash("upstream.endpoint", "is required", remedy);
    }
    if instance_id == Some(None) && instances.as_ref().is_some_and(Vec::is_empty) {
        let remedy = "write the instance's id, or rules under [[upstream.instances]]";
        r.clash("upstream.instance_id", "is required where no rule names an instance", remedy);
    }
    if let (Some(connect), Some(call)) = (connect_timeout, call_timeout)
        && connect > call
    {
        let problem = format!("is longer than upstream.call_timeout ({})", human(call));
        let remedy = "write a shorter one: a call includes its connection";
        r.clash("upstream.connect_timeout", problem, remedy);
    }
    if let Some(addresses) = &egress_addresses {
        no_address_twice(r, addresses);
    }
    Some(Upstream {
        endpoint: endpoint??,
        instance_id: instance_id?,
        instances: instances?,
        signature: signature?,
        payload: payload?,
        connect_timeout: connect_timeout?,
        call_timeout: call_timeout?,
        idle_timeout: idle_timeout?,
        max_connections: max_connections?,
        dns_ttl: dns_ttl?,
        roots: roots?,
        egress_addresses: egress_addresses?,
    })
}

/// Such as `post-cn-0pp12gl0000`; text even where it looks like a number.
pub(super) fn instance_id(raw: &Raw) -> Result<InstanceId, ValueError> {
    let text = raw.text()?;
    let is_id = (1..=64).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    is_id.then(|| text.into()).ok_or_else(|| {
        ValueError::new(
            "is not an instance id",
            "write 1 to 64 of A-Z a-z 0-9 - _, as in post-cn-0pp12gl0000",
        )
    })
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
            r.clash("upstream.egress_addresses", format!("names {address} twice"), remedy);
        }
    }
}

// === [[upstream.instances]] ===

fn instances(r: &mut Reader<'_>) -> Option<Vec<InstanceRule>> {
    let remedy = "write [[upstream.instances]] in the file, with instance_id and topics";
    let rules = tables(r, "upstream.instances", &RULE, remedy, |r, table| {
        let id = table.value(r, "instance_id", instance_id);
        let topics = table.required(r, "topics", |r, key, raw| {
            let topics = r.items(key, raw, false, checks::pattern);
            if topics.as_ref().is_some_and(Vec::is_empty) {
                let remedy = "name a pattern, such as \"Alarm/*\"";
                r.clash(key, "is empty, so the rule never holds", remedy);
            }
            topics
        });
        Some(InstanceRule { instance_id: id?, topics: topics? })
    })?;
    let before = r.mistakes.len();
    no_pattern_twice(r, &rules);
    (r.mistakes.len() == before).then_some(rules)
}

/// The first match wins, so a pattern's second mention never does.
fn no_pattern_twice(r: &mut Reader<'_>, rules: &[InstanceRule]) {
    let mut seen = HashSet::new();
    for (index, rule) in rules.iter().enumerate() {
        for pattern in &rule.topics {
            if !seen.insert(pattern.as_str()) {
                let key = format!("upstream.instances[{index}].topics");
                let problem = format!("names {:?}, as a rule before does", pattern.as_str());
                r.clash(&key, problem, "remove one of them: the first match wins");
            }
        }
    }
}

/// An encoding as `upstream.payload` names it.
pub(super) fn encoding_word(encoding: PayloadEncoding) -> &'static str {
    PAYLOADS.iter().find(|(_, known)| *known == encoding).map_or("", |(word, _)| word)
}
