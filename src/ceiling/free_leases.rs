//! Leases that no call uses, by when their permits are ready.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::lease::Lease;

/// The number tells leases apart that are ready at the same moment.
type ByReady = BTreeMap<(Instant, u64), Lease>;

/// Long-lived leases carry calls first, so that the others idle and go back.
#[derive(Debug, Default)]
pub(super) struct FreeLeases {
    long_lived: ByReady,
    short_lived: ByReady,
    number: u64,
}

impl FreeLeases {
    pub(super) fn insert(&mut self, lease: Lease) {
        self.number += 1;
        let held = if lease.long_lived { &mut self.long_lived } else { &mut self.short_lived };
        held.insert((lease.ready, self.number), lease);
    }

    /// A lease for a call that begins now. Leases that have ended go to `ended`.
    pub(super) fn take(&mut self, now: Instant, ended: &mut Vec<Lease>) -> Option<Lease> {
        for held in [&mut self.long_lived, &mut self.short_lived] {
            while let Some(first) = held.first_entry().filter(|first| first.key().0 <= now) {
                let lease = first.remove();
                if lease.holds(now) {
                    return Some(lease);
                }
                ended.push(lease);
            }
        }
        None
    }

    /// Takes out what no call has used for so long since it was ready.
    pub(super) fn take_idle(&mut self, idle_for: Duration, now: Instant) -> Vec<Lease> {
        let mut idle = Vec::new();
        for held in [&mut self.long_lived, &mut self.short_lived] {
            while let Some(first) = held.first_entry().filter(|e| e.key().0 + idle_for <= now) {
                idle.push(first.remove());
            }
        }
        idle
    }

    pub(super) fn take_all(&mut self) -> Vec<Lease> {
        let long_lived = std::mem::take(&mut self.long_lived).into_values();
        long_lived.chain(std::mem::take(&mut self.short_lived).into_values()).collect()
    }

    /// When the first of them is ready.
    pub(super) fn next(&self) -> Option<Instant> {
        let first = |held: &ByReady| held.first_key_value().map(|((at, _), _)| *at);
        [&self.long_lived, &self.short_lived].into_iter().filter_map(first).min()
    }

    /// How many are ready by then. Counts no more than `most` of each kind.
    pub(super) fn ready_by(&self, moment: Instant, most: usize) -> usize {
        let count = |held: &ByReady| held.range(..=(moment, u64::MAX)).take(most).count();
        count(&self.long_lived) + count(&self.short_lived)
    }

    pub(super) fn len(&self) -> usize {
        self.long_lived.len() + self.short_lived.len()
    }

    pub(super) fn long_lived(&self) -> usize {
        self.long_lived.len()
    }
}
