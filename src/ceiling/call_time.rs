//! How long calls take, as TCP estimates its round trips (RFC 6298): a smoothed mean and the mean
//! deviation from it.

use std::time::Duration;

/// What a call is taken to need before one was seen.
const FIRST: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy)]
pub(super) struct CallTime {
    mean: Duration,
    deviation: Duration,
}

impl CallTime {
    pub(super) const fn new() -> Self {
        Self { mean: FIRST, deviation: Duration::from_millis(5) }
    }

    pub(super) fn observe(&mut self, time: Duration) {
        let off = self.mean.abs_diff(time);
        self.deviation = self.deviation * 3 / 4 + off / 4;
        self.mean = self.mean * 7 / 8 + time / 8;
    }

    pub(super) const fn mean(&self) -> Duration {
        self.mean
    }

    /// What all but a few calls keep to.
    pub(super) fn most(&self) -> Duration {
        self.mean + 4 * self.deviation
    }
}
