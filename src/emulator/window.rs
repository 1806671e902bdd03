//! How many calls fell into one second, for every second there is.

use std::collections::VecDeque;

const SECOND: u64 = 1_000_000_000;

/// Arrivals of the last second, and the worst second so far.
///
/// The worst of all half-open seconds `[s, s+1s)` always has a twin of the same count that ends
/// just behind an arrival, so looking back at each arrival finds it exactly.
#[derive(Debug, Default)]
pub(super) struct TrafficWindow {
    /// Nanoseconds, oldest first; none is a second or more older than the last.
    recent: VecDeque<u64>,
    worst: usize,
}

impl TrafficWindow {
    /// Takes an arrival, which must not be older than the one before, and counts the second that
    /// ends with it.
    pub(super) fn record(&mut self, at: u64) -> usize {
        while self.recent.front().is_some_and(|&oldest| at - oldest >= SECOND) {
            self.recent.pop_front();
        }
        self.recent.push_back(at);
        self.worst = self.worst.max(self.recent.len());
        self.recent.len()
    }

    /// The largest count of any half-open second.
    pub(super) fn worst(&self) -> usize {
        self.worst
    }

    /// Nanoseconds after the last arrival until fewer than `ceiling` calls are in the second.
    pub(super) fn until_below(&self, ceiling: usize) -> u64 {
        let leaves = self.recent.len().checked_sub(ceiling).and_then(|i| self.recent.get(i));
        match (leaves, self.recent.back()) {
            (Some(&leaves), Some(&last)) => (leaves + SECOND).saturating_sub(last),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every second that begins at an arrival, counted the slow way.
    fn brute_force(arrivals: &[u64]) -> usize {
        arrivals
            .iter()
            .map(|&s| arrivals.iter().filter(|&&a| (s..s + SECOND).contains(&a)).count())
            .max()
            .unwrap_or(0)
    }

    proptest! {
        #[test]
        fn worst_second_is_exact(
            // steps around the edges: the same nanosecond, one short of a second, a second, more
            steps in prop::collection::vec(
                prop_oneof![
                    Just(0), Just(1), Just(SECOND / 3), Just(SECOND / 2), Just(SECOND - 1),
                    Just(SECOND), Just(SECOND + 1), 0..2 * SECOND, 0..SECOND / 20,
                ],
                0..120,
            )
        ) {
            let mut window = TrafficWindow::default();
            let mut at = 0;
            let mut arrivals = Vec::new();
            for step in steps {
                at += step;
                arrivals.push(at);
                let now = window.record(at);
                let looked_back = arrivals.iter().filter(|&&a| at - a < SECOND).count();
                prop_assert_eq!(now, looked_back);
            }
            prop_assert_eq!(window.worst(), brute_force(&arrivals));
        }
    }

    #[test]
    fn a_second_is_half_open() {
        let mut window = TrafficWindow::default();
        assert_eq!(window.record(5), 1);
        assert_eq!(window.record(5 + SECOND - 1), 2);
        assert_eq!(window.record(5 + SECOND), 2, "the first has left");
        assert_eq!(window.worst(), 2);
    }

    #[test]
    fn says_when_there_is_room() {
        let mut window = TrafficWindow::default();
        for at in [0, 100, 200] {
            window.record(at);
        }
        assert_eq!(window.until_below(4), 0);
        assert_eq!(window.until_below(3), SECOND - 200);
        assert_eq!(window.until_below(2), SECOND - 100);
    }
}
