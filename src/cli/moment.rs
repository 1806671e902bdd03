//! Moments as people write them.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// `2026-11-01`, `2026-11-01T12:00`, `2026-11-01T12:00:00Z`, or `24h` ago.
pub(super) fn when(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, String> {
    if let Ok(ago) = text.parse::<SignedDuration>() {
        return now.checked_sub(ago).map_err(|error| error.to_string());
    }
    day_or_time(text, zone).map_err(|error| format!("{error}, nor a duration (24h)"))
}

/// `2026-11-01`, `2026-11-01T12:00` or `2026-11-01T12:00:00Z`.
pub(super) fn day_or_time(text: &str, zone: &TimeZone) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let at = text.parse::<DateTime>().or_else(|_| text.parse::<Date>().map(DateTime::from));
    let at = at.map_err(|_| {
        format!("{text:?} is neither a day (2026-11-01) nor a time (2026-11-01T12:00:00Z)")
    })?;
    at.to_zoned(zone.clone()).map(|at| at.timestamp()).map_err(|error| error.to_string())
}
