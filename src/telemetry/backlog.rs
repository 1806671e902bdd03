//! What is stored for delivery, and when it will be empty, if that can be said.
//!
//! Pure: from the history of the last seconds.

use super::view::{BacklogTrend, BacklogView};
use crate::config::grouped;

/// So many seconds of history decide. A shorter time follows groups of retries, a longer one an outage that is
/// over.
const WINDOW: usize = 15;
/// A change of fewer messages within it may be chance.
const CHANCE: i64 = 3;
/// Stored messages that are no older are on their way, in seconds: each of them is delivered at its first calls.
const FRESH: f64 = 5.0;
/// What takes longer does not get empty, for whoever looks now.
const LONGEST: f64 = 24.0 * 3_600.0;

/// What is stored now.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StoredNow {
    pub(super) messages: u64,
    /// Of these, those of paused topics.
    pub(super) paused: u64,
    /// How long the oldest has been stored, in seconds.
    pub(super) oldest_seconds: f64,
}

impl BacklogView {
    /// `past`: how many messages were stored at the end of each of the last whole seconds, the oldest first.
    pub(super) fn of(now: StoredNow, past: &[u32]) -> Self {
        let StoredNow { messages, paused, oldest_seconds } = now;
        let window = &past[past.len().saturating_sub(WINDOW + 1)..];
        let (change, per_second) = change(window);
        let (grows, shrinks) = (change >= CHANCE, change <= -CHANCE);
        // How many are on their way varies by the square root of their number.
        let by_chance = CHANCE.max(i64::try_from(2 * messages.isqrt()).unwrap_or(i64::MAX));
        let passes = paused == 0 && oldest_seconds < FRESH && change < by_chance;
        let moving = messages.saturating_sub(paused);
        let empty_in = (shrinks && moving > 0).then(|| moving as f64 / -per_second);
        let empty_in = empty_in.filter(|seconds| *seconds <= LONGEST);
        let trend = match empty_in {
            _ if messages == 0 => BacklogTrend::Empty,
            _ if passes => BacklogTrend::Passing,
            Some(_) => BacklogTrend::Shrinking,
            None if grows => BacklogTrend::Growing,
            None => BacklogTrend::Steady,
        };
        let empty_in_seconds = empty_in.filter(|_| trend == BacklogTrend::Shrinking);
        let outlook = outlook(trend, now, per_second, empty_in_seconds);
        Self { messages, trend, per_second, empty_in_seconds, outlook }
    }
}

/// By how many messages the backlog changed in these seconds, in all and in each.
fn change(window: &[u32]) -> (i64, f64) {
    match window {
        [first, .., last] => {
            let change = i64::from(*last) - i64::from(*first);
            (change, change as f64 / (window.len() - 1) as f64)
        }
        _ => (0, 0.0),
    }
}

fn outlook(
    trend: BacklogTrend,
    now: StoredNow,
    per_second: f64,
    empty_in_seconds: Option<f64>,
) -> String {
    let mut text = match (trend, empty_in_seconds) {
        (BacklogTrend::Empty, _) => return "empty".to_owned(),
        (BacklogTrend::Passing, _) => format!("none older than {FRESH:.0} s"),
        (_, Some(seconds)) => format!("empty in about {}", about(seconds)),
        (BacklogTrend::Growing, _) => {
            format!("not shrinking: grows by {} messages/s", figure(per_second))
        }
        _ => "not shrinking".to_owned(),
    };
    if now.paused > 0 {
        let waits = if now.paused == 1 { "waits" } else { "wait" };
        text.extend([format!("; {} {waits} for paused topics", grouped(now.paused))]);
    }
    text
}

fn figure(per_second: f64) -> String {
    if per_second < 10.0 { format!("{per_second:.1}") } else { format!("{per_second:.0}") }
}

/// An estimate, no more precise than it is.
fn about(seconds: f64) -> String {
    let to = |step: f64, unit: f64| (seconds / unit / step).ceil() * step;
    match seconds {
        ..10.0 => "10 s".to_owned(),
        ..60.0 => format!("{:.0} s", to(10.0, 1.0)),
        ..600.0 => format!("{:.0} min", to(1.0, 60.0)),
        ..5_400.0 => format!("{:.0} min", to(10.0, 60.0)),
        _ => format!("{:.0} h", to(1.0, 3_600.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 20 s in which the backlog changes by so many each second, and ends with `messages`.
    fn line(messages: u32, per_second: i64) -> Vec<u32> {
        let at = |ago: i64| u32::try_from(i64::from(messages) - per_second * ago).unwrap_or(0);
        (0..20).rev().map(at).collect()
    }

    fn stored(messages: u64, paused: u64, oldest_seconds: f64) -> StoredNow {
        StoredNow { messages, paused, oldest_seconds }
    }

    #[test]
    fn an_outlook_is_honest() {
        use BacklogTrend::{Empty, Growing, Passing, Shrinking, Steady};
        for (now, past, trend, outlook) in [
            (stored(0, 0, 0.0), line(0, -50), Empty, "empty"),
            (stored(1_000, 0, 60.0), line(1_000, -100), Shrinking, "empty in about 10 s"),
            (stored(1_000, 0, 60.0), line(1_000, -8), Shrinking, "empty in about 3 min"),
            (stored(9_000, 0, 60.0), line(9_000, -1), Shrinking, "empty in about 3 h"),
            // It would take more than a day.
            (stored(99_000, 0, 60.0), line(99_000, -1), Steady, "not shrinking"),
            (stored(1_000, 0, 60.0), line(1_000, 0), Steady, "not shrinking"),
            (
                stored(1_000, 0, 60.0),
                line(1_000, 35),
                Growing,
                "not shrinking: grows by 35 messages/s",
            ),
            // A second of rest after a quarter of a minute of growth is no end of it.
            (
                stored(1_000, 1_000, 60.0),
                line(1_000, 35),
                Growing,
                "not shrinking: grows by 35 messages/s; 1,000 wait for paused topics",
            ),
            (
                stored(1_000, 900, 60.0),
                line(1_000, -10),
                Shrinking,
                "empty in about 10 s; 900 wait for paused topics",
            ),
            (
                stored(1_000, 1_000, 60.0),
                line(1_000, 0),
                Steady,
                "not shrinking; 1,000 wait for paused topics",
            ),
            // Asynchronous messages on their way.
            (stored(7, 0, 0.3), line(7, 0), Passing, "none older than 5 s"),
            (stored(20, 0, 0.3), vec![14, 20], Passing, "none older than 5 s"),
            (stored(20, 0, 0.3), vec![29, 20], Passing, "none older than 5 s"),
            (
                stored(1_000, 0, 4.0),
                line(1_000, 35),
                Growing,
                "not shrinking: grows by 35 messages/s",
            ),
            (stored(1, 0, 60.0), line(1, 0), Steady, "not shrinking"),
            // A process that has just started knows no trend.
            (stored(500, 0, 60.0), vec![], Steady, "not shrinking"),
            (stored(500, 0, 60.0), vec![500], Steady, "not shrinking"),
        ] {
            let view = BacklogView::of(now, &past);
            assert_eq!((view.trend, &*view.outlook), (trend, outlook), "{now:?}");
            assert_eq!(view.empty_in_seconds.is_some(), trend == Shrinking, "{now:?}");
        }
    }

    #[test]
    fn estimates_are_no_more_precise_than_they_are() {
        for (seconds, words) in [
            (0.2, "10 s"),
            (10.1, "20 s"),
            (59.0, "60 s"),
            (61.0, "2 min"),
            (600.0, "10 min"),
            (1_000.0, "20 min"),
            (5_401.0, "2 h"),
        ] {
            assert_eq!(about(seconds), words, "{seconds}");
        }
    }
}
