//! How long to wait before the next try: a bound that doubles up to a cap, and a random part of it.

use std::time::Duration;

/// Doublings after which no bound grows: a second has become twelve days.
const MAX_DOUBLINGS: u32 = 20;

/// Waits that double with each failure. It holds no state and no random numbers: both come from outside,
/// so that a test repeats them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    jitter: Jitter,
}

/// Which part of a wait is random.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Jitter {
    /// All of it: clients that failed together do not come back together.
    Full,
    /// The upper half: never at once.
    UpperHalf,
}

impl Backoff {
    /// Waits of up to `base` after the first failure, twice as long after each further one, and at most
    /// `cap`; of that any part (full jitter).
    pub const fn exponential(base: Duration, cap: Duration) -> Self {
        Self { base, cap, jitter: Jitter::Full }
    }

    /// Waits that do not grow: from `shortest` to twice as long.
    pub const fn steady(shortest: Duration) -> Self {
        let longest = shortest.saturating_mul(2);
        Self { base: longest, cap: longest, jitter: Jitter::UpperHalf }
    }

    /// The wait after so many failures. `random` is from 0 to 1.
    pub fn after(&self, failures: u32, random: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(MAX_DOUBLINGS);
        let bound = self.base.saturating_mul(1 << doublings).min(self.cap);
        match self.jitter {
            Jitter::Full => bound.mul_f64(random),
            Jitter::UpperHalf => bound.mul_f64(f64::midpoint(1.0, random)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_bound_starts_at_the_base_and_doubles_up_to_the_cap() {
        let backoff = Backoff::exponential(MS(200), MS(1_000));
        let bounds = [0, 1, 2, 3, 4, 5, u32::MAX].map(|failures| backoff.after(failures, 1.0));
        assert_eq!(bounds, [200, 200, 400, 800, 1_000, 1_000, 1_000].map(MS));
        assert_eq!(Backoff::exponential(Duration::MAX, MS(7)).after(9, 1.0), MS(7));
        assert_eq!(Backoff::exponential(MS(50), MS(10)).after(1, 1.0), MS(10));
    }

    #[test]
    fn jitter_takes_any_part_or_the_upper_half() {
        let full = Backoff::exponential(MS(200), MS(1_000));
        assert_eq!([0.0, 0.5, 1.0].map(|random| full.after(2, random)), [0, 200, 400].map(MS));
        let steady = Backoff::steady(MS(250));
        assert_eq!([0.0, 0.5, 1.0].map(|random| steady.after(1, random)), [250, 375, 500].map(MS));
        assert_eq!(steady.after(9, 0.0), MS(250));
    }
}
