//! The bill of all sidecars, from what they have added up in Redis.

use std::collections::BTreeMap;
use std::ops::Range;

use super::client::{BillClient, StoredFleet};
use super::stored::{KEPT, SidecarRecord};
use crate::config::{self, Billing};
use crate::meter::bill::{Bill, Query, Sums, shown};
use crate::meter::coverage::{FleetCoverage, Loss, SilentSidecar};
use crate::meter::ledger::SeriesName;
use crate::meter::quarter::Quarter;
use crate::redis_client::ClientError;

/// Topic and caller of calls that no sidecar has counted. No parent topic and no caller has brackets.
const UNREPORTED: &str = "(unreported)";
/// A sidecar that has not ended writes every 15 s.
const SILENT_AFTER: i64 = 60_000;
/// The most silent sidecars that a bill names.
const MOST_NAMED: usize = 100;
/// Quarters of one request.
const CHUNK: usize = 32;

/// The bill of an account's sidecars, also of those that are gone. Its ends are moved to quarters of an hour.
///
/// # Errors
/// If Redis cannot be read, or the bill is too large.
pub async fn fleet_bill(
    fleet: &config::Fleet,
    billing: &Billing,
    query: Query,
) -> Result<Bill, String> {
    let end = Quarter::of_minute(query.to.saturating_sub(1)).later(1);
    let query = Query { from: Quarter::of_minute(query.from).minute(), to: end.minute(), ..query };
    let failed = |error: ClientError| format!("the fleet's Redis cannot be read: {error}");
    let mut client = BillClient::connect(fleet).await.map_err(failed)?;
    // Before the sums: a call that is counted meanwhile is in both, and none is in neither.
    let stored = client.fleet().await.map_err(failed)?;
    let mut sums = Sums::new(query, billing.clone());
    let unreported = unreported(&stored.sidecars);
    let (mut unanswered, mut missed) = (0_u64, 0_u64);
    // Nothing is kept longer, and nothing is counted ahead of time by more than a clock may be wrong.
    let kept = i64::try_from(KEPT.as_secs()).unwrap_or(i64::MAX);
    let now = stored.now.div_euclid(1_000);
    let first = Quarter::of_minute(sums.reads_from()).max(Quarter::of_second(now - kept).later(-1));
    let last = end.min(Quarter::of_second(now.saturating_add(2 * 86_400)));
    let quarters: Vec<_> = first.until(last).collect();
    for chunk in quarters.chunks(CHUNK) {
        let read = client.quarters(chunk).await.map_err(failed)?;
        for (quarter, mut counts) in chunk.iter().zip(read) {
            let is_billed = quarter.minute() >= query.from;
            if is_billed {
                let own = counts.iter().filter(|(name, _)| !name.is_sum());
                unanswered = own.fold(unanswered, |n, (_, c)| n.saturating_add(c.uncertain));
            }
            for (name, calls) in unreported.get(quarter).into_iter().flatten() {
                let counted = counts.entry(name.clone()).or_default();
                counted.uncertain = counted.uncertain.saturating_add(*calls);
                missed = missed.saturating_add(if is_billed { *calls } else { 0 });
            }
            for (name, counted) in &counts {
                sums.add(quarter.minute(), name, counted);
            }
        }
    }
    let range = Quarter::of_minute(query.from)..end;
    let bill = sums.bill()?;
    let shown = |at: i64| shown(at.div_euclid(1_000), &billing.time_zone);
    let oldest = (now - kept).saturating_mul(1_000);
    let covered = FleetCoverage {
        account: fleet.account.clone(),
        complete_from: stored.since.map(|since| shown(since.max(oldest))),
        losses: losses(&stored, &range, shown),
        unanswered,
        unreported: missed,
        ..coverage(&stored, &range, shown)
    };
    Ok(Bill { fleet: Some(covered), ..bill })
}

/// Quarters that a sidecar may have counted in.
fn quarters(record: &SidecarRecord, seen: i64) -> Range<Quarter> {
    // Its clock and that of Redis may differ.
    let last = Quarter::of_second(record.at).max(Quarter::of_second(seen.div_euclid(1_000)));
    Quarter::of_second(record.since)..last.later(1)
}

/// Calls that no sidecar has counted, by the quarter of its last write.
fn unreported(
    sidecars: &[(String, i64, SidecarRecord)],
) -> BTreeMap<Quarter, Vec<(SeriesName, u64)>> {
    let mut quarters = BTreeMap::<Quarter, Vec<_>>::new();
    for (.., record) in sidecars {
        let quarter = Quarter::of_second(record.at);
        for (instance, calls) in &record.room {
            let name = SeriesName::of_scope(instance, &format!("{UNREPORTED}\n{UNREPORTED}"));
            quarters.entry(quarter).or_default().push((name, *calls));
        }
    }
    quarters
}

fn losses(
    stored: &StoredFleet,
    range: &Range<Quarter>,
    shown: impl Fn(i64) -> String,
) -> Vec<Loss> {
    let quarter = |at: i64| Quarter::of_second(at.div_euclid(1_000));
    let touches =
        |(from, to): &&(i64, i64)| quarter(*from) < range.end && quarter(*to) >= range.start;
    let touching = stored.losses.iter().filter(touches);
    touching.map(|(from, to)| Loss { from: shown(*from), to: shown(*to) }).collect()
}

fn coverage(
    stored: &StoredFleet,
    range: &Range<Quarter>,
    shown: impl Fn(i64) -> String,
) -> FleetCoverage {
    let mut coverage = FleetCoverage::default();
    // The latest first.
    for (id, seen, record) in stored.sidecars.iter().rev() {
        let own = quarters(record, *seen);
        if own.end <= range.start || own.start >= range.end {
            continue;
        }
        coverage.sidecars += 1;
        if record.ended {
            coverage.ended += 1;
        } else if stored.now - seen < SILENT_AFTER {
            coverage.reporting += 1;
        } else {
            coverage.silent += 1;
            if coverage.silent_sidecars.len() < MOST_NAMED {
                coverage.silent_sidecars.push(SilentSidecar {
                    name: record.name.clone(),
                    id: id.clone(),
                    reported: shown(*seen),
                    unreported: record.room.values().fold(0, |n, room| n.saturating_add(*room)),
                });
            }
        }
    }
    coverage
}
