//! `[fleet]`: keys and checks.

use std::path::PathBuf;
use std::time::Duration;

use super::mistake::Wrong;
use super::parse::Raw;
use super::read::Reader;
use super::sections::path;
use super::{Ceilings, Fleet, Upstream};

/// Leases last 10 s at least; a call must leave room in one.
const LONGEST_CALL: Duration = Duration::from_secs(5);
/// Each permit is an entry in Redis.
const MOST_PERMITS: u32 = 100_000;

#[expect(clippy::option_option, reason = "outside: is it right; inside: is there one")]
pub(super) fn fleet(
    r: &mut Reader<'_>,
    ceilings: Option<&Ceilings>,
    upstream: Option<&Upstream>,
) -> Option<Option<Fleet>> {
    let url = r.value("fleet.url", "", url);
    let account = r.value("fleet.account", "default", name);
    let egress_group = r.value("fleet.egress_group", "", |raw| or_empty(raw, name));
    let expected = r.count("fleet.expected_sidecars", "1", 1..=100_000);
    let username = r.value("fleet.username", "", |raw| raw.text().map(str::to_owned));
    let password_file = r.value("fleet.password_file", "", optional_path);
    let ca_file = r.value("fleet.ca_file", "", optional_path);
    let fleet = Fleet {
        url: url?,
        account: account?,
        egress_group: egress_group?,
        expected_sidecars: u32::try_from(expected?).ok()?,
        username: username?,
        password_file: password_file?,
        ca_file: ca_file?,
    };
    if fleet.url.is_empty() {
        return Some(None);
    }
    fits(r, &fleet, ceilings?, upstream?);
    Some(Some(fleet))
}

fn fits(r: &mut Reader<'_>, fleet: &Fleet, ceilings: &Ceilings, upstream: &Upstream) {
    let egress = ceilings.egress_ip.filter(|_| !fleet.egress_group.is_empty());
    if ceilings.account.is_none() && egress.is_none() {
        r.clash("fleet.url", "shares a ceiling that is not there", "set ceilings.account");
    }
    for (key, figure) in [("ceilings.account", ceilings.account), ("ceilings.egress_ip", egress)] {
        if figure.is_some_and(|n| n > MOST_PERMITS) {
            let problem = format!("is more than a fleet shares, {MOST_PERMITS}");
            r.clash(key, problem, "write a lower one, or leave fleet.url out");
        }
    }
    if egress.is_some() && upstream.egress_addresses.len() > 1 {
        let problem = "is for sidecars behind one address, and here are several";
        r.clash("fleet.egress_group", problem, "leave it out, or upstream.egress_addresses");
    }
    if upstream.call_timeout > LONGEST_CALL {
        let problem = "is longer than a lease in a fleet leaves room for";
        r.clash("upstream.call_timeout", problem, "write at most \"5s\"");
    }
}

fn url(raw: &Raw) -> Result<String, Wrong> {
    let text = raw.text()?;
    let wrong = |problem: &str| {
        Wrong::new(problem, "write redis://host:6379, or rediss://host:6380 with TLS")
    };
    let Some((scheme, rest)) = text.split_once("://") else {
        return if text.is_empty() { Ok(String::new()) } else { Err(wrong("is not a Redis URL")) };
    };
    if !matches!(scheme, "redis" | "rediss") || rest.is_empty() || rest.contains(['?', '#']) {
        return Err(wrong("is not a Redis URL"));
    }
    if rest.contains('@') {
        let remedy = "leave them out, and set fleet.username and fleet.password_file";
        return Err(Wrong::new("has a user or password", remedy));
    }
    if redis::parse_redis_url(text).is_none() {
        Err(wrong("is not a Redis URL"))
    } else {
        Ok(text.to_owned())
    }
}

/// Part of keys in Redis.
fn name(raw: &Raw) -> Result<String, Wrong> {
    let text = raw.text()?;
    let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 64 || !text.chars().all(is_fit) {
        return Err(Wrong::new("is not a name", "use up to 64 letters, digits, - _ and ."));
    }
    Ok(text.to_owned())
}

fn or_empty<T: Default>(
    raw: &Raw,
    read: impl FnOnce(&Raw) -> Result<T, Wrong>,
) -> Result<T, Wrong> {
    if raw.text()?.is_empty() { Ok(T::default()) } else { read(raw) }
}

fn optional_path(raw: &Raw) -> Result<Option<PathBuf>, Wrong> {
    or_empty(raw, |raw| path(raw).map(Some))
}
