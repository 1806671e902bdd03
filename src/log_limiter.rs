//! Not more lines a second, or a minute, than a log can bear, and how many it did not take.

#[cfg(test)]
pub(crate) mod captured;

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);

/// The log is the process's, as `tracing`'s subscriber is.
static DROPPED: OnceLock<Box<dyn Fn() -> u64 + Send + Sync>> = OnceLock::new();

/// Says where the dropped lines of this process's log are counted; the first call counts.
pub fn count_dropped_lines(count: impl Fn() -> u64 + Send + Sync + 'static) {
    // A second log of one process is not started.
    drop(DROPPED.set(Box::new(count)));
}

/// Lines that the log dropped, since its reader did not keep up.
pub fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |count| count())
}

/// How many lines of a kind may still be written in this second or minute. The rest is counted.
#[derive(Debug)]
pub struct LogLimiter {
    most: u64,
    period: Duration,
    spent: Mutex<SpentLines>,
}

#[derive(Debug, Default)]
struct SpentLines {
    since: Option<Instant>,
    lines: u64,
    suppressed: u64,
}

impl LogLimiter {
    /// At most so many a second.
    pub fn new(most: u64) -> Self {
        Self { most, period: SECOND, spent: Mutex::default() }
    }

    /// At most so many a minute.
    pub fn each_minute(most: u64) -> Self {
        Self { period: MINUTE, ..Self::new(most) }
    }

    /// Whether one more may be written, and how many were not since the last.
    pub fn next(&self) -> Option<u64> {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if spent.since.is_none_or(|since| now - since >= self.period) {
            *spent = SpentLines { since: Some(now), lines: 0, suppressed: spent.suppressed };
        }
        if spent.lines >= self.most {
            spent.suppressed += 1;
            return None;
        }
        spent.lines += 1;
        Some(std::mem::take(&mut spent.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_has_so_many() {
        let lines = LogLimiter::new(50);
        assert_eq!((0..1_000).filter(|_| lines.next().is_some()).count(), 50);
        tokio::time::advance(SECOND).await;
        assert_eq!(lines.next(), Some(950));
        assert_eq!(lines.next(), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_minute_has_so_many() {
        let lines = LogLimiter::each_minute(1);
        assert_eq!((0..10).filter(|_| lines.next().is_some()).count(), 1);
        tokio::time::advance(SECOND * 59).await;
        assert_eq!(lines.next(), None);
        tokio::time::advance(SECOND).await;
        assert_eq!(lines.next(), Some(10));
    }
}
