//! `[ceilings]`: what is never exceeded, in any sliding second.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::checks::HOUR;
use super::error::ValueError;
use super::parse::{self, Raw};
use super::read::{Ranged, ReadKey, Reader, boolean, duration, share};
use super::table::Reload::Live;
use super::table::{Row, section};
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
    /// Calls per second of one egress address; `None`: no ceiling.
    pub egress_ip: Option<u32>,
    /// The most that retries get while fresh messages wait,
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

section! {
    pub(super) struct CeilingRows [ceilings] {
        /// Calls per second, never exceeded in any sliding second: of the account, and of each egress
        /// address. Against the provider's own hosts (*.aliyuncs.com) the defaults are what it publishes,
        /// and a lower figure is yours to choose. Against any other host the default is "none".
        account: Option<u32> = 1000, ceiling(), Live;
        egress_ip: Option<u32> = 300, ceiling(), Live;

        /// The most that retries get while fresh messages wait.
        retry_share: f64 = 0.2, share(), Live;

        /// A call that ended without an answer, by a time-out or a reset, may still lie unread at the
        /// provider, which reads all of them at once when it goes on. It counts until its late answer
        /// comes, or until a call that was sent later is answered, but at least so long after it was sent
        /// (another backend behind the same address may be the one that stands still), and at most so
        /// long. The same in all sidecars of a fleet. docs/ceilings.md has what is assumed of the provider.
        unanswered_min: Duration = "10s", duration(Duration::ZERO..=HOUR);
        unanswered_max: Duration = "5m", duration(Duration::from_secs(1)..=HOUR);

        /// Allows figures above the published ones, if the provider has raised them for you. An egress
        /// address that goes over its ceiling is blocked by the provider.
        allow_above_published: bool = false, boolean(), Live;
    }
    check conflicts(account, egress_ip, unanswered_min, unanswered_max, allow_above_published);
}

pub(super) fn ceilings(r: &mut Reader<'_>) -> Option<Ceilings> {
    let rows = CeilingRows::read(r)?;
    let above = above_published(r, Some(&rows.account), Some(&rows.egress_ip));
    Some(Ceilings {
        account: rows.account,
        egress_ip: rows.egress_ip,
        retry_share: rows.retry_share,
        unanswered: Unanswered { min: rows.unanswered_min, max: rows.unanswered_max },
        above_published: rows.allow_above_published && !above.is_empty(),
    })
}

/// Whether calls go to the provider itself, whose published ceilings then hold.
fn is_provider(r: &Reader<'_>) -> bool {
    let endpoint = r.given("upstream.endpoint");
    let endpoint = endpoint.and_then(|raw| uri::endpoint(raw.text().ok()?).ok());
    endpoint.is_some_and(|endpoint| endpoint.is_provider())
}

/// A number of calls per second, or `none`.
fn ceiling() -> impl ReadKey<Option<u32>> {
    const CALLS: RangeInclusive<u32> = 1..=1_000_000;
    let parse = |raw: &Raw| {
        if raw.text().is_ok_and(|text| text == "none") {
            return Ok(None);
        }
        parse::whole(raw, &CALLS).map(Some).map_err(|ValueError { problem, remedy }| {
            ValueError::new(problem, format!("{remedy} (calls per second), or \"none\""))
        })
    };
    let read = move |r: &mut Reader<'_>, row: &Row| {
        r.value_or(row, if is_provider(r) { row.default_text() } else { "none" }, parse)
    };
    Ranged { range: format!("{} to {}, or \"none\"", CALLS.start(), CALLS.end()), read }
}

/// The ceilings above what the provider publishes, by key, with the published figure.
fn above_published(
    r: &Reader<'_>,
    account: Option<&Option<u32>>,
    egress_ip: Option<&Option<u32>>,
) -> Vec<(&'static str, u32)> {
    let is_provider = is_provider(r);
    let is_above = |ceiling: Option<Option<u32>>, published| {
        is_provider && ceiling.is_some_and(|ceiling| ceiling.is_none_or(|n| n > published))
    };
    [
        ("ceilings.account", account.copied(), PUBLISHED_ACCOUNT),
        ("ceilings.egress_ip", egress_ip.copied(), PUBLISHED_EGRESS_IP),
    ]
    .into_iter()
    .filter(|(_, ceiling, published)| is_above(*ceiling, *published))
    .map(|(key, _, published)| (key, published))
    .collect()
}

fn conflicts(
    r: &mut Reader<'_>,
    account: Option<&Option<u32>>,
    egress_ip: Option<&Option<u32>>,
    min: Option<&Duration>,
    max: Option<&Duration>,
    is_allowed: Option<&bool>,
) {
    let (min, max) = (("ceilings.unanswered_min", min), ("ceilings.unanswered_max", max));
    r.not_longer(min, max, "write a shorter one");
    if is_allowed == Some(&false) {
        for (key, published) in above_published(r, account, egress_ip) {
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
