//! How many calls a second there were of late.

use std::time::Duration;

use tokio::time::Instant;

/// Rates are those of a time no longer than this.
const LONGEST: Duration = Duration::from_secs(1);

/// Grows at once, and halves at most with each look. A rate is that of a time no shorter than `SHORTEST` milliseconds: looks
/// may follow each other within a few.
#[derive(Debug, Default)]
pub(super) struct RecentRate<const SHORTEST: u64> {
    counted: u64,
    since: Option<Instant>,
    rate: u64,
}

impl<const SHORTEST: u64> RecentRate<SHORTEST> {
    pub(super) fn add(&mut self, calls: u64) {
        self.counted += calls;
    }

    /// One that was added is none.
    pub(super) fn remove(&mut self) {
        self.counted = self.counted.saturating_sub(1);
    }

    /// The calls of a second, with what was counted until now.
    pub(super) fn look(&mut self, now: Instant) -> u64 {
        let elapsed = self.since.map_or(LONGEST, |since| now.saturating_duration_since(since));
        let shortest = Duration::from_millis(SHORTEST);
        let milliseconds = elapsed.clamp(shortest, LONGEST).as_millis();
        let rate = u128::from(self.counted) * 1_000 / milliseconds;
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        if elapsed < shortest {
            self.rate = self.rate.max(rate);
        } else {
            self.rate = rate.max(self.rate / 2);
            (self.counted, self.since) = (0, Some(now));
        }
        self.rate
    }

    /// As it was at the last look.
    pub(super) fn last(&self) -> u64 {
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_that_follow_each_other_see_the_same_rate() {
        let start = Instant::now();
        let mut rate = RecentRate::<250>::default();
        let mut seen = Vec::new();
        // A hundred a second, looked at every 20 ms and every second by turns.
        for ms in (0..20_000).step_by(10) {
            rate.add(1);
            let is_look = if (ms / 5_000) % 2 == 0 { ms % 20 == 0 } else { ms % 1_000 == 0 };
            if is_look {
                seen.push((ms, rate.look(start + Duration::from_millis(ms))));
            }
        }
        let settled = seen.iter().filter(|(ms, _)| *ms > 1_000);
        assert!(settled.clone().all(|(_, rate)| (90..=112).contains(rate)), "{seen:?}");
        // And then none.
        let looks = (21..29).map(|second| rate.look(start + Duration::from_secs(second)));
        assert_eq!(looks.last(), Some(0));
    }
}
