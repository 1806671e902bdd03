//! Moments of this process on the clock of Redis.

use std::time::Duration;

use tokio::time::Instant;

/// What the clock of the connected server showed when its last reply came, or earlier: a reply takes
/// time to arrive.
#[derive(Debug, Default)]
pub(super) struct RedisClock(Option<(Instant, u64)>);

impl RedisClock {
    /// A reply that came now showed this.
    pub(super) fn observe(&mut self, now: Instant, micros: u64) {
        self.0 = Some((now, micros));
    }

    /// This moment on that clock, or an earlier one; `None`: no reply has come.
    pub(super) fn convert(&self, at: Instant) -> Option<u64> {
        let (seen, clock) = self.0?;
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let ago = seen.saturating_duration_since(at);
        if ago.is_zero() {
            return Some(clock.saturating_add(micros(at - seen)));
        }
        clock.checked_sub(micros(ago))
    }
}
