//! Spreads permits over time, so that a thousand idle ones are not sent in one burst.
//!
//! Permits make the promise; this only makes it pleasant. governor's bucket alone would not do:
//! with burst n it admits 2n − 1 in one second, it rounds its interval down (301 for 300), and a
//! new one is full. Hence a period rounded up, a burst of a few milliseconds, and an empty start.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

/// tokio's timers tick in milliseconds and round up: a burst covers one tick, in microseconds.
const TICK: u64 = 1_100;

#[derive(Debug)]
pub(super) struct Shaper {
    bucket: RateLimiter<NotKeyed, InMemoryState, TokioClock, NoOpMiddleware<Duration>>,
    origin: Instant,
    period: Duration,
}

impl Shaper {
    /// At most `rate` a second, from an empty start.
    pub(super) fn new(rate: u32) -> Self {
        let rate = rate.max(1);
        let period = Duration::from_nanos(1_000_000_000_u64.div_ceil(u64::from(rate)));
        let tick = (u64::from(rate) * TICK).div_ceil(1_000_000);
        let cells = NonZeroU32::MIN.saturating_add(u32::try_from(tick).unwrap_or(u32::MAX));
        let origin = Instant::now();
        let clock = TokioClock(origin);
        // A period of zero is the only refusal, and div_ceil is at least 1.
        let quota = Quota::with_period(period).unwrap_or(Quota::per_second(NonZeroU32::MIN));
        let bucket = RateLimiter::direct_with_clock(quota.allow_burst(cells), clock);
        let _empty = bucket.check_n(cells);
        Self { bucket, origin, period }
    }

    /// Passes one, or says when to come back.
    pub(super) fn pass(&self) -> Result<(), Instant> {
        self.bucket.check().map_err(|not_until| self.origin + not_until.earliest_possible())
    }

    /// How far apart it lets them pass.
    pub(super) fn period(&self) -> Duration {
        self.period
    }
}

/// tokio's time for governor, so that tests can pause it.
#[derive(Debug, Clone)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}
