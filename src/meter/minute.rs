//! What callers got in the last minute: how their requests ended, and how long those took that were accepted.

use std::time::Duration;

use jiff::Timestamp;

use super::Meter;
use super::labels::CallerResult;
use super::seconds::SecondRing;

/// Whole seconds that are counted.
const SECONDS: usize = 60;
/// Each doubling of a duration has so many buckets, as a power of two: a quantile is at most an eighth too
/// high.
const PARTS: u32 = 3;
/// Microseconds, as a power of two: shorter ones share the first bucket, longer ones the last.
const SHORTEST: u32 = 6;
const LONGEST: u32 = 30;
const BUCKETS: usize = 1 + (((LONGEST - SHORTEST) as usize) << PARTS);

const EMPTY: AnsweredSecond =
    AnsweredSecond { results: [0; CallerResult::ALL.len()], took: [0; BUCKETS] };

/// Requests of the last whole minute, or since the start where that is less.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LastMinute {
    /// How many whole seconds are counted.
    pub seconds: usize,
    /// Requests, in the order of [`CallerResult::ALL`].
    pub results: [u64; CallerResult::ALL.len()],
    /// So long half of the accepted ones took at most; `None`: there is none.
    pub p50: Option<Duration>,
    /// So long 99 % of them took at most.
    pub p99: Option<Duration>,
}

/// The requests of each second.
#[derive(Debug)]
pub(super) struct AnsweredMinute(SecondRing<AnsweredSecond>);

#[derive(Debug, Clone, Copy)]
struct AnsweredSecond {
    results: [u32; CallerResult::ALL.len()],
    /// How long accepted requests took.
    took: [u32; BUCKETS],
}

impl AnsweredMinute {
    pub(super) fn new(now: i64) -> Self {
        Self(SecondRing::new(SECONDS, now, &EMPTY))
    }

    /// A request was answered in this Unix second.
    pub(super) fn answered(&mut self, now: i64, result: CallerResult, took: Duration) {
        let second = self.0.at(now, &EMPTY);
        second.results[result as usize] += 1;
        if matches!(result, CallerResult::Delivered | CallerResult::Stored) {
            second.took[bucket(took)] += 1;
        }
    }

    fn read(&mut self, now: i64) -> LastMinute {
        let mut minute = LastMinute::default();
        let mut took = [0; BUCKETS];
        let (_, seconds) = self.0.whole(now, None, &EMPTY);
        for second in seconds {
            minute.seconds += 1;
            for (sum, n) in minute.results.iter_mut().zip(second.results) {
                *sum += u64::from(n);
            }
            for (sum, n) in took.iter_mut().zip(second.took) {
                *sum += u64::from(n);
            }
        }
        [minute.p50, minute.p99] = [50, 99].map(|percent| quantile(&took, percent));
        minute
    }
}

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min((1 << LONGEST) - 1);
    let Some(doublings) = micros.checked_ilog2().filter(|bits| *bits >= SHORTEST) else { return 0 };
    // Below 2^LONGEST, so that it fits.
    let part = (micros >> (doublings - PARTS)) as usize & ((1 << PARTS) - 1);
    1 + (((doublings - SHORTEST) as usize) << PARTS) + part
}

/// No duration of the bucket is longer.
fn upper_bound(bucket: usize) -> Duration {
    let Some(above) = bucket.checked_sub(1) else { return Duration::from_micros(1 << SHORTEST) };
    let (doublings, part) = (above >> PARTS, above & ((1 << PARTS) - 1));
    let parts = (1 << PARTS) + part as u64 + 1;
    Duration::from_micros(parts << (SHORTEST as usize - PARTS as usize + doublings))
}

/// What so many percent are not longer than.
fn quantile(took: &[u64], percent: u64) -> Option<Duration> {
    let all: u64 = took.iter().sum();
    let rank = (all * percent).div_ceil(100);
    let mut below = 0;
    let bucket = took.iter().position(|n| {
        below += n;
        below >= rank && all > 0
    });
    bucket.map(upper_bound)
}

impl Meter {
    /// What callers got in the last whole minute.
    pub fn last_minute(&self) -> LastMinute {
        self.counts().minute.read(Timestamp::now().as_second())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_700_000_000;

    #[test]
    fn a_minute_of_whole_seconds() {
        let mut minute = AnsweredMinute::new(START);
        let took = Duration::from_millis(10);
        minute.answered(START, CallerResult::Failed, took);
        assert_eq!(minute.read(START), LastMinute::default(), "the first second has no beginning");
        for second in 1..=100 {
            for result in CallerResult::ALL {
                minute.answered(START + second, result, took);
            }
        }
        // The second that is not over is not counted.
        let read = minute.read(START + 100);
        assert_eq!((read.seconds, read.results), (60, [60; 5]));
        let read = minute.read(START + 130);
        assert_eq!((read.seconds, read.results), (60, [31; 5]));
        let read = minute.read(START + 200);
        assert_eq!((read.seconds, read.results, read.p99), (60, [0; 5], None));
    }

    /// Only accepted requests: a refusal is quick, and says nothing of how long a message takes.
    #[test]
    fn quantiles_of_accepted_requests() {
        let mut minute = AnsweredMinute::new(START);
        for ms in 1..=1_000 {
            minute.answered(START + 1, CallerResult::Delivered, Duration::from_millis(ms));
            minute.answered(START + 1, CallerResult::Refused, Duration::ZERO);
        }
        let read = minute.read(START + 2);
        for (quantile, exact) in [(read.p50, 500), (read.p99, 990)] {
            let (quantile, exact) = (quantile.unwrap(), Duration::from_millis(exact));
            assert!(quantile >= exact && quantile <= exact * 9 / 8, "{quantile:?} for {exact:?}");
        }
        let mut one = AnsweredMinute::new(START);
        one.answered(START + 1, CallerResult::Stored, Duration::from_secs(2));
        let read = one.read(START + 2);
        assert_eq!(read.p50, read.p99);
    }

    #[test]
    fn buckets_hold_what_they_say() {
        let mut last = 0;
        for micros in 0..100_000 {
            let at = bucket(Duration::from_micros(micros));
            assert!(at == last || at == last + 1, "{micros} us");
            last = at;
        }
        for micros in (0..100_000).chain((17..LONGEST).map(|bits| 1 << bits)) {
            let (took, at) = (Duration::from_micros(micros), bucket(Duration::from_micros(micros)));
            assert!(took <= upper_bound(at), "{took:?}");
            assert!(at == 0 || took >= upper_bound(at - 1), "{took:?}");
        }
        for longer in [Duration::from_micros(1 << LONGEST), Duration::MAX] {
            assert_eq!(bucket(longer), BUCKETS - 1);
        }
    }
}
