//! Room for calls that Redis does not know yet.
//!
//! Calls do not wait for Redis. So each write says how many more may begin before the next one: if the process dies, and
//! its disk with it, these count as uncertain.

use tokio::time::Instant;

use crate::meter::recent_rate::RecentRate;

/// Room of an instance that makes few calls, or none.
const LEAST: u64 = 20;
const MOST: u64 = 20_000;
/// Room is for so many seconds of the rate of late.
const SECONDS: u64 = 2;

/// Whether calls follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriterPhase {
    Running,
    /// The last write leaves no room for calls that have not begun.
    Closing,
    /// Redis has the last write.
    Closed,
}

/// The room of one instance.
#[derive(Debug, Default)]
pub(super) struct CallRoom {
    begun: u64,
    ended: u64,
    /// A quarter of a second tells that it grows.
    rate: RecentRate<250>,
    /// At this call the next write is due: half of the room is used.
    due_at: u64,
}

impl CallRoom {
    /// A call begins. Returns whether a write is due now.
    pub(super) fn begin(&mut self) -> bool {
        self.begun += 1;
        self.rate.add(1);
        self.begun == self.due_at
    }

    pub(super) fn end(&mut self) {
        self.ended += 1;
    }

    /// The room to write now: calls that have begun and not ended, and those that may begin.
    pub(super) fn take(&mut self, now: Instant, phase: WriterPhase) -> u64 {
        let rate = self.rate.look(now);
        let spare = match phase {
            WriterPhase::Running => rate.saturating_mul(SECONDS).clamp(LEAST, MOST),
            WriterPhase::Closing | WriterPhase::Closed => 0,
        };
        self.due_at = self.begun + spare / 2;
        self.begun - self.ended + spare
    }

    /// Whether the next write, without a call before it, would say less.
    pub(super) fn shrinks(&self) -> bool {
        self.rate.last().saturating_mul(SECONDS) > LEAST
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Calls at a steady rate, and writes as they are due, from an idle sidecar on: no call begins beyond the room, if
    /// each write takes no longer than half of the room lasts.
    #[test]
    fn room_grows_before_it_is_used_up_and_shrinks_after() {
        for rate in [1_u64, 10, 100, 400, 1_000] {
            let start = Instant::now();
            let at = |ms| start + Duration::from_millis(ms);
            let mut room = CallRoom::default();
            let (mut covered, mut last) = (room.take(start, WriterPhase::Running), 0);
            let mut writes = 0;
            for call in 1..=20 * rate {
                let now = call * 1_000 / rate;
                let due = room.begin() || now - last >= 1_000;
                assert!(room.begun <= covered, "{rate} calls/s: call {call} of {covered}");
                room.end();
                if due {
                    covered = room.begun + room.take(at(now), WriterPhase::Running);
                    (last, writes) = (now, writes + 1);
                }
            }
            assert!(writes <= 40, "{rate} calls/s: {writes} writes in 20 s");
            let all = room.take(at(20_010), WriterPhase::Running);
            assert!((LEAST..=LEAST.max(6 * rate)).contains(&all), "{rate} calls/s: {all}");
            for second in 21..33 {
                room.take(at(second * 1_000), WriterPhase::Running);
            }
            assert!(!room.shrinks());
            assert_eq!(room.take(at(34_000), WriterPhase::Running), LEAST);
            assert_eq!(room.take(at(35_000), WriterPhase::Closing), 0);
        }
    }

    #[test]
    fn calls_in_flight_are_in_it() {
        let now = Instant::now();
        let mut room = CallRoom::default();
        for _ in 0..7 {
            room.begin();
        }
        room.end();
        assert_eq!(room.take(now, WriterPhase::Closing), 6);
        assert_eq!(room.take(now, WriterPhase::Running), 6 + LEAST);
    }
}
