//! Leases of calls without an answer, and what must be reported to Redis after it forgot everything: else
//! it would grant their permits to others.

use std::collections::BTreeSet;
use std::time::Duration;

use super::exchange::ReturnedLease;
use super::lease::Lease;

/// A lease by its nonce and permits.
type Name = (u64, Vec<u32>);

#[derive(Debug, Default)]
pub(super) struct UnreadLeases {
    leases: BTreeSet<Name>,
    /// Not reported yet.
    reports: Vec<Name>,
    /// What the request that is on its way reports.
    on_the_way: Vec<Name>,
}

impl UnreadLeases {
    pub(super) fn add(&mut self, lease: &Lease) {
        self.leases.insert((lease.nonce, lease.ids.clone()));
    }

    pub(super) fn remove(&mut self, lease: &Lease) {
        self.leases.remove(&(lease.nonce, lease.ids.clone()));
    }

    pub(super) fn len(&self) -> usize {
        self.leases.len()
    }

    /// Redis has no report of this one.
    pub(super) fn report(&mut self, lease: &Lease) {
        self.reports.push((lease.nonce, lease.ids.clone()));
    }

    /// Redis has forgotten all of them.
    pub(super) fn report_all(&mut self) {
        self.reports = self.leases.iter().cloned().collect();
    }

    pub(super) fn has_reports(&self) -> bool {
        !self.reports.is_empty()
    }

    /// What the next request reports, at most so many.
    pub(super) fn reports(&mut self, most: usize, hold: Duration) -> Vec<ReturnedLease> {
        self.on_the_way = self.reports.split_off(self.reports.len().saturating_sub(most));
        let reports = self.on_the_way.iter().cloned();
        reports.map(|(nonce, ids)| ReturnedLease { ids, nonce, free_in: hold }).collect()
    }

    /// Redis has received the reports on their way.
    pub(super) fn reported(&mut self) {
        self.on_the_way.clear();
    }

    /// Nothing is known of what was on its way.
    pub(super) fn report_again(&mut self) {
        self.reports.append(&mut self.on_the_way);
    }
}
