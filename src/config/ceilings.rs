//! `[ceilings]`: what is never exceeded, in any sliding second.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::checks::HOUR;
use super::error::ValueError;
use super::parse::{Raw, whole};
use super::read::{
    Ranged, ReadKey, Reader, boolean, duration, share, value, whole as whole_number,
};
use super::row::Reload::Live;
use super::row::Row;
use super::table::section;
use super::uri;

/// The provider's published ceiling of `SendMessage` for one account, calls per second.
pub const PUBLISHED_ACCOUNT: u32 = 1_000;
/// The provider's published ceiling of one source address, calls per second. Over it, the address
/// is blocked.
pub const PUBLISHED_EGRESS_IP: u32 = 300;

/// `[ceilings]`: never over, in any sliding second.
#[derive(Debug, Clone, PartialEq)]
pub struct Ceilings {
    /// Calls per second of the account; `None`: no ceiling.
    pub account: Option<u32>,
    /// Calls per second of one egress address, less what is left to calls that go past tollgate; `None`: no ceiling.
    pub egress_ip: Option<u32>,
    /// The most that retries get while fresh messages wait,
    pub retry_share: f64,
    /// How long a call without an answer counts.
    pub unanswered: Unanswered,
}

/// How long a call that ended without an answer goes on counting against the ceilings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unanswered {
    /// At least so long, although later calls are answered.
    pub min: Duration,
    /// At most so long.
    pub max: Duration,
}

section! {
    pub(super) struct CeilingRows [ceilings] {
        /// Calls per second, never exceeded in any sliding second: of the account, and of each egress
        /// address. The defaults are what the provider publishes. That of the account holds against every
        /// endpoint; that of an address against the provider's own hosts (*.aliyuncs.com), and is "none"
        /// elsewhere. "none" lifts a ceiling, and `tollgate check`, the log and the page warn of it.
        account: Option<u32> = 1000, ceiling(), Live;
        egress_ip: Option<u32> = 300, egress_ceiling(), Live;

        /// Calls per second of each egress address's ceiling that tollgate leaves to calls that go past it, from the same
        /// address: other actions of the provider's API, or other clients behind the same NAT. Set the same value in all
        /// sidecars that share an address. The account's ceiling is not reduced: it is that of SendMessage alone.
        reserve: u32 = 0, whole_number(0..=1_000_000), Live;

        /// The largest share of the permits that retries get while fresh messages wait.
        retry_share: f64 = 0.2, share(), Live;

        /// A call that ended without an answer may still be unread at the provider. It counts against the
        /// ceilings until its answer arrives late, or until a later call is answered, but at least
        /// `unanswered_min` and at most `unanswered_max` after it ended. Set the same values in all
        /// sidecars of a fleet. See docs/ceilings.md.
        unanswered_min: Duration = "10s", duration(Duration::ZERO..=HOUR);
        unanswered_max: Duration = "5m", duration(Duration::from_secs(1)..=HOUR);

        /// Allows figures above the published ones, if the provider has raised them for you. The provider
        /// blocks an egress address that exceeds its ceiling.
        allow_above_published: bool = false, boolean(), Live;
    }
    check min_within_max(unanswered_min, unanswered_max);
}

pub(super) fn ceilings(r: &mut Reader<'_>) -> Option<Ceilings> {
    let rows = CeilingRows::read(r)?;
    reserve_fits(r, &rows);
    if !rows.allow_above_published {
        not_above_published(r, &rows);
    }
    Some(Ceilings {
        account: rows.account,
        egress_ip: rows.egress_ip.map(|calls| calls.saturating_sub(rows.reserve)),
        retry_share: rows.retry_share,
        unanswered: Unanswered { min: rows.unanswered_min, max: rows.unanswered_max },
    })
}

/// What is left to calls that go past tollgate is a part of an address's ceiling.
fn reserve_fits(r: &mut Reader<'_>, rows: &CeilingRows) {
    match rows.egress_ip {
        None if rows.reserve > 0 => {
            let problem = "is a part of an egress address's ceiling, and there is none";
            r.conflict("ceilings.reserve", problem, "set ceilings.egress_ip, or leave it out");
        }
        Some(egress_ip) if rows.reserve >= egress_ip => {
            let problem = format!("leaves nothing of ceilings.egress_ip ({egress_ip})");
            r.conflict("ceilings.reserve", problem, "write a smaller number");
        }
        _ => {}
    }
}

/// Whether calls go to the provider itself, whose published ceilings then hold.
fn is_provider(r: &Reader<'_>) -> bool {
    let endpoint = r.given("upstream.endpoint");
    let endpoint = endpoint.and_then(|raw| uri::endpoint(raw.text().ok()?).ok());
    endpoint.is_some_and(|endpoint| endpoint.is_provider())
}

const CALLS: RangeInclusive<u32> = 1..=1_000_000;

/// A number of calls per second, or `none`.
fn ceiling() -> impl ReadKey<Option<u32>> {
    Ranged { range: range(), read: value(parse) }
}

/// Like [`ceiling`]. What the provider publishes of an address holds against its own hosts only: of a
/// proxy or a private address, the address that the provider sees is not known.
fn egress_ceiling() -> impl ReadKey<Option<u32>> {
    let read = |r: &mut Reader<'_>, row: &Row| {
        r.value_or(row, if is_provider(r) { row.default_text() } else { "none" }, parse)
    };
    Ranged { range: range(), read }
}

fn range() -> String {
    format!("{} to {}, or \"none\"", CALLS.start(), CALLS.end())
}

fn parse(raw: &Raw) -> Result<Option<u32>, ValueError> {
    if raw.text().is_ok_and(|text| text == "none") {
        return Ok(None);
    }
    whole(raw, &CALLS).map(Some).map_err(|ValueError { problem, remedy }| {
        ValueError::new(problem, format!("{remedy} (calls per second), or \"none\""))
    })
}

fn min_within_max(r: &mut Reader<'_>, min: Option<&Duration>, max: Option<&Duration>) {
    let (min, max) = (("ceilings.unanswered_min", min), ("ceilings.unanswered_max", max));
    r.not_longer(min, max, "write a shorter one");
}

/// Against any other host, any figure goes that is written down.
fn not_above_published(r: &mut Reader<'_>, rows: &CeilingRows) {
    if !is_provider(r) {
        return;
    }
    for (key, ceiling, published) in [
        ("ceilings.account", rows.account, PUBLISHED_ACCOUNT),
        ("ceilings.egress_ip", rows.egress_ip, PUBLISHED_EGRESS_IP),
    ] {
        if ceiling.is_none_or(|n| n > published) {
            r.conflict(
                key,
                format!("is above what the provider publishes, {published} calls per second"),
                format!(
                    "write at most {published}, or set ceilings.allow_above_published = true if \
                     the provider has raised it for you"
                ),
            );
        }
    }
}
