//! Billable messages by wall-clock second: what the provider sizes and bills an instance by, and
//! what a scrape every fifteen seconds cannot see.

/// The seconds that matter now.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tps {
    second: i64,
    count: u64,
    /// The second before.
    last: u64,
    /// The largest second of this minute, and of the one before.
    peak: u64,
    peak_before: u64,
}

impl Tps {
    /// One more message in this Unix second.
    pub(super) fn add(&mut self, now: i64) {
        self.roll(now);
        self.count += 1;
    }

    /// The last whole second, and the largest since the last whole minute began.
    pub(super) fn read(&mut self, now: i64) -> (u64, u64) {
        self.roll(now);
        (self.last, self.peak.max(self.peak_before))
    }

    /// Ends the seconds and minutes before `now`. A clock that was set back ends none.
    fn roll(&mut self, now: i64) {
        if now <= self.second {
            return;
        }
        let count = std::mem::take(&mut self.count);
        self.peak = self.peak.max(count);
        self.last = if now == self.second + 1 { count } else { 0 };
        match now.div_euclid(60) - self.second.div_euclid(60) {
            0 => {}
            1 => self.peak_before = std::mem::take(&mut self.peak),
            _ => (self.peak_before, self.peak) = (0, 0),
        }
        self.second = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_second_and_the_peak() {
        let mut tps = Tps::default();
        let start = 60_000_000;
        for second in 0..130 {
            let n = if second == 7 { 120 } else { 3 };
            (0..n).for_each(|_| tps.add(start + second));
            let (last, peak) = tps.read(start + second);
            assert_eq!(
                last,
                if second == 0 {
                    0
                } else if second == 8 {
                    120
                } else {
                    3
                }
            );
            // Second 7 counts to the end of the minute after its own.
            let expected = if second < 8 {
                last
            } else if second < 120 {
                120
            } else {
                3
            };
            assert_eq!(peak, expected, "second {second}");
        }
        assert_eq!(tps.read(start + 1_000), (0, 0), "an idle quarter of an hour");
    }
}
