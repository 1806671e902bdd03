//! Calls of processes before this one, which the provider may still read.

use std::time::Duration;

use tokio::time::Instant;

use super::{HeldPermits, Limiter, Whose};
use crate::ceiling::unanswered::Bounds;
use crate::ceiling::{Left, reserve};
use crate::config;

impl Limiter {
    /// Calls of processes before this one that the provider may still read. Which address they left
    /// from is not known.
    pub(in crate::ceiling) fn inherit(
        &mut self,
        config: &config::Ceilings,
        mut left: Vec<Left>,
        now: Instant,
    ) {
        left.sort_unstable_by_key(|left| left.ago);
        let Bounds { min, max } = self.unanswered.bounds();
        for (ceiling, size) in self.ceilings(config) {
            // They were under the ceiling, too. A count above it is certain to be too high: the ledger
            // counts room for calls that may not have begun. Then one permit is left to probe with.
            let size = size.map_or(0, |size| size as usize);
            let counted = left.iter().map(|left| left.calls).fold(0, usize::saturating_add);
            let mut most = if counted > size { size.saturating_sub(1) } else { size };
            for Left { ago, calls, later_answered } in &left {
                let calls = most.min(*calls);
                most -= calls;
                let sent = now.checked_sub(*ago).unwrap_or(now);
                let due = sent + if *later_answered { min } else { max };
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
