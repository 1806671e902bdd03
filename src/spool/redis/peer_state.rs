//! What an owner has seen of another one.

use std::time::Duration;

use super::Times;
use crate::spool::adoption::HeldCounts;

/// Before the first entry of the stream.
pub(super) const BEGINNING: &str = "0-0";
/// The epoch of an owner that has left.
const LEFT: &str = "-";

/// Another owner, as it was seen last.
#[derive(Debug)]
pub(super) struct PeerState {
    pub(super) epoch: String,
    /// How long its epoch was unchanged while we looked. Time in which we could not look does not
    /// count: after an outage of Redis no epoch has moved.
    pub(super) unchanged: Duration,
    /// Its epoch has moved since we look.
    pub(super) moved: bool,
    pub(super) pending: u64,
    pub(super) scan: Scan,
}

/// A look at all that a dead owner has, page by page. What is left with it is not looked at again before
/// something changes, so that it keeps no other message waiting.
#[derive(Debug)]
pub(super) struct Scan {
    /// Where the next page begins; `None`: all was looked at.
    pub(super) next: Option<String>,
    /// Some were not as they had been when they were looked at.
    pub(super) missed: bool,
    /// What is left, of the pages so far.
    pub(super) found: HeldCounts,
    /// The same, of the last whole scan.
    pub(super) left: HeldCounts,
    /// How many its owner had after the scan.
    pending: Option<u64>,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            next: Some(BEGINNING.to_owned()),
            missed: false,
            found: HeldCounts::default(),
            left: HeldCounts::default(),
            pending: None,
        }
    }
}

impl Scan {
    /// A page was looked at; `next` is where the next one begins.
    pub(super) fn goes_on(&mut self, next: String) {
        if !next.is_empty() {
            self.next = Some(next);
        } else if self.missed {
            *self = Self { left: self.left, ..Self::default() };
        } else {
            self.next = None;
            self.left = std::mem::take(&mut self.found);
            self.pending = None;
        }
    }

    /// The rules have changed.
    pub(super) fn begin_anew(&mut self) {
        *self = Self { left: self.left, ..Self::default() };
    }

    /// Its owner has so many now. After a whole scan, another number is a reason to look again.
    pub(super) fn sees(&mut self, pending: u64) {
        if self.next.is_none() && self.pending.replace(pending).is_some_and(|then| then != pending)
        {
            self.begin_anew();
        }
    }
}

impl PeerState {
    pub(super) fn is_dead(&self, times: &Times) -> bool {
        self.epoch == LEFT || self.unchanged >= times.lease_timeout
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEFT: HeldCounts = HeldCounts { not_allowed: 3, unverified: 1 };

    fn whole() -> Scan {
        let mut scan = Scan::default();
        scan.goes_on("5-0".to_owned());
        assert_eq!((scan.next.as_deref(), scan.left), (Some("5-0"), HeldCounts::default()));
        scan.found = LEFT;
        scan.goes_on(String::new());
        assert_eq!((scan.next.as_deref(), scan.left), (None, LEFT));
        scan
    }

    /// What is left is not read again and again.
    #[test]
    fn a_whole_scan_rests_until_the_number_changes() {
        let mut scan = whole();
        for _ in 0..3 {
            scan.sees(4);
            assert_eq!(scan.next, None);
        }
        scan.sees(5);
        assert_eq!(
            (scan.next.as_deref(), scan.left),
            (Some(BEGINNING), LEFT),
            "the old count holds"
        );
        // While it looks, numbers change.
        scan.goes_on("7-0".to_owned());
        scan.sees(6);
        assert_eq!(scan.next.as_deref(), Some("7-0"));
        scan.goes_on(String::new());
        scan.sees(6);
        assert_eq!((scan.next, scan.left), (None, HeldCounts::default()));
    }

    #[test]
    fn a_scan_that_missed_some_begins_anew() {
        let mut scan = whole();
        scan.begin_anew();
        (scan.found, scan.missed) = (HeldCounts { not_allowed: 9, unverified: 9 }, true);
        scan.goes_on(String::new());
        assert_eq!(
            (scan.next.as_deref(), scan.left, scan.found),
            (Some(BEGINNING), LEFT, HeldCounts::default())
        );
        scan.goes_on(String::new());
        assert_eq!((scan.next, scan.left), (None, HeldCounts::default()));
    }
}
