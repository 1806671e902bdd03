//! The last twentieth of the permits: kept back while the provider does not answer.
//!
//! When everything else waits for an answer, these permits carry one call at a time and further and
//! further apart. So the end of a stall is noticed, whatever became of the connections, and there are
//! never more calls unread than the ceiling has permits. Each answer lets the next call go at once: a
//! provider that is slow but answers is not held up.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest time between two probes without an answer.
const SHORTEST: Duration = Duration::from_secs(2);

/// Permits of so many that are kept back: a twentieth, and one where there are two.
pub(super) fn of_ceiling(permits: usize) -> usize {
    if permits < 2 { 0 } else { permits.div_ceil(20) }
}

/// The same of the permits that a sidecar of a fleet holds: it may hold only a few, and is not to
/// leave one of two unused.
pub(super) fn of_leases(permits: usize) -> usize {
    permits / 20
}

/// Permits of the reserve of a ceiling with `permits` that cannot have been used, if there has been no
/// answer for `silent` at most: one is used at once, and one more every [`SHORTEST`] at most.
pub(super) fn unused_after(silent: Duration, permits: usize) -> usize {
    let probes = silent.as_secs() / SHORTEST.as_secs() + 2;
    of_ceiling(permits).saturating_sub(usize::try_from(probes).unwrap_or(usize::MAX))
}

/// When the reserve may carry its next call.
#[derive(Debug)]
pub(super) struct Reserve {
    opens: Instant,
    /// The first probe since the last answer.
    silent_since: Option<Instant>,
    /// How long a call without an answer counts at most: so long the reserve has to last.
    lasts: Duration,
}

impl Reserve {
    pub(super) fn new(lasts: Duration, now: Instant) -> Self {
        Self { opens: now, silent_since: None, lasts: lasts.max(SHORTEST) }
    }

    pub(super) fn opens(&self) -> Instant {
        self.opens
    }

    pub(super) fn is_open(&self, now: Instant) -> bool {
        now >= self.opens
    }

    /// One of `permits` in reserve carries a call. The next one waits longer the longer there has
    /// been no answer, such that all of them last.
    pub(super) fn probe(&mut self, permits: usize, now: Instant) {
        let steps = u32::try_from(permits.max(1)).unwrap_or(u32::MAX);
        let growth =
            (self.lasts.as_secs_f64() / SHORTEST.as_secs_f64()).powf(1.0 / f64::from(steps));
        let since = *self.silent_since.get_or_insert(now);
        let silent = now.saturating_duration_since(since);
        let wait = silent.mul_f64(growth - 1.0).clamp(SHORTEST, self.lasts);
        self.opens = now + wait;
    }

    /// The provider has answered a call.
    pub(super) fn answered(&mut self, now: Instant) {
        (self.opens, self.silent_since) = (now, None);
    }

    /// A call was not sent after all.
    pub(super) fn unsent(&mut self, now: Instant) {
        self.opens = self.opens.min(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_one_that_works_and_one_that_probes() {
        let ceilings = [0, 1, 2, 7, 20, 21, 100, 300, 1_000].map(of_ceiling);
        assert_eq!(ceilings, [0, 0, 1, 1, 1, 2, 5, 15, 50]);
        assert_eq!([0, 1, 19, 20, 100].map(of_leases), [0, 0, 0, 1, 5]);
    }

    /// However long a stall lasts, up to the bound, there is a probe left, and its end is noticed
    /// within a part of its length.
    #[test]
    fn a_reserve_lasts() {
        let lasts = Duration::from_mins(5);
        for permits in [1, 5, 15, 50] {
            let start = Instant::now();
            let mut reserve = Reserve::new(lasts, start);
            let mut probes = Vec::new();
            while reserve.opens() < start + lasts {
                probes.push(reserve.opens());
                reserve.probe(permits, reserve.opens());
            }
            assert!(probes.len() <= permits + 3, "{} of {permits}", probes.len());
            if permits >= 50 {
                let late = probes.windows(2).all(|pair| {
                    let silent = pair[0] - start;
                    pair[1] - pair[0] <= (silent / 8).max(SHORTEST)
                });
                assert!(late, "{probes:?}");
            }
        }
    }

    /// `docs/ceilings.md` names the ceilings that keep a probe after a kill, with a call timeout of 3 s.
    #[test]
    fn what_cannot_have_been_used() {
        let after = |silent| [80, 81, 300, 1_000].map(|permits| unused_after(silent, permits));
        assert_eq!(after(Duration::from_secs(4)), [0, 1, 11, 46]);
        assert_eq!(after(Duration::MAX), [0, 0, 0, 0]);
        // The reserve itself agrees: no more probes than that in the time.
        let start = Instant::now();
        let mut reserve = Reserve::new(Duration::from_mins(5), start);
        let mut probes = 0;
        while reserve.opens() <= start + Duration::from_secs(4) {
            reserve.probe(of_ceiling(81), reserve.opens());
            probes += 1;
        }
        assert!(probes < of_ceiling(81), "{probes}");
    }

    #[test]
    fn an_answer_opens_it_and_so_does_a_call_that_was_not_sent() {
        let start = Instant::now();
        let mut reserve = Reserve::new(Duration::from_mins(5), start);
        for _ in 0..4 {
            reserve.probe(1, reserve.opens());
        }
        assert!(!reserve.is_open(start + Duration::from_mins(2)));
        reserve.answered(start + Duration::from_secs(9));
        assert!(reserve.is_open(start + Duration::from_secs(9)));
        reserve.probe(1, start + Duration::from_secs(10));
        assert_eq!(reserve.opens(), start + Duration::from_secs(10) + SHORTEST);
        reserve.unsent(start + Duration::from_secs(11));
        assert!(reserve.is_open(start + Duration::from_secs(11)));
    }
}
