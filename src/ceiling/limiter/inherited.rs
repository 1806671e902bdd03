//! Calls of processes before this one, which the provider may still read.

use std::time::Duration;

use tokio::time::Instant;

use super::{HeldPermits, Limiter, Whose};
use crate::ceiling::unanswered::{Bounds, CATCH_UP};
use crate::ceiling::{Left, reserve};
use crate::config;

const SECOND: Duration = Duration::from_secs(1);

impl Limiter {
    /// Calls of processes before this one that the provider may still read. Which address they left
    /// from is not known.
    ///
    /// Their count may be too high, above the ceiling even: calls whose late answers the ledger does not
    /// know of, and room for calls that had not begun. It may also be right, and then as many calls are
    /// unread as the ceiling has permits. So none is left to probe with, but where the process before
    /// cannot have used up its reserve.
    pub(in crate::ceiling) fn inherit(
        &mut self,
        config: &config::Ceilings,
        mut left: Vec<Left>,
        call_timeout: Duration,
        now: Instant,
    ) {
        let Bounds { min, max } = self.unanswered.bounds();
        left.sort_unstable_by_key(|left| left.ago);
        // As long as no call had ended without an answer, the provider had not stood still for longer
        // than a call takes, and a second for the ledger's clock.
        let is_read = |left: &Left| left.later_answered && left.ago >= min;
        let ended = left.iter().any(|left| left.calls > left.under_way && !is_read(left));
        let silent = if ended { Duration::MAX } else { call_timeout + SECOND };
        for (ceiling, size) in self.ceilings(config) {
            // They were under the ceiling, too.
            let size = size.map_or(0, |size| size as usize);
            let mut most = size - reserve::unused_after(silent, size);
            for left in &left {
                let calls = most.min(left.calls);
                most -= calls;
                let sent = now.checked_sub(left.ago).unwrap_or(now);
                // The later answer may have come a moment ago.
                let due =
                    if left.later_answered { (sent + min).max(now + CATCH_UP) } else { sent + max };
                self.hold(ceiling, sent, min, due, calls);
            }
        }
    }

    /// Processes before this one may have left any number of calls: as many as they could have sent
    /// but for their reserve, and never all, so that there is one to probe with. Nothing speaks for a
    /// part of the provider standing still, so that the first answer settles it.
    pub(in crate::ceiling) fn inherit_unknown(&mut self, config: &config::Ceilings, now: Instant) {
        for (ceiling, size) in self.ceilings(config) {
            let size = size.map_or(0, |size| size as usize);
            let calls = size.saturating_sub(reserve::of_ceiling(size).max(1));
            let due = now + self.unanswered.bounds().max;
            if calls > 0 {
                self.window(ceiling).assume(calls);
                let assumed = HeldPermits::Assumed { ceiling, calls };
                self.unanswered.inherit(now, Duration::ZERO, due, assumed);
            }
        }
    }

    fn ceilings(&self, config: &config::Ceilings) -> Vec<(Whose, Option<u32>)> {
        let addresses = (0..self.egress.len()).map(|i| (Whose::Egress(i), config.egress_ip));
        std::iter::once((Whose::Account, config.account)).chain(addresses).collect()
    }

    fn hold(&mut self, ceiling: Whose, sent: Instant, min: Duration, due: Instant, calls: usize) {
        if calls > 0 {
            self.window(ceiling).inherit(calls);
            self.unanswered.inherit(sent, min, due, HeldPermits::Inherited { ceiling, calls });
        }
    }
}
