//! What an owner has seen of another one.

use std::time::Duration;

use tokio::time::Instant;

use super::Times;
use crate::spool::adoption::HeldCounts;

/// Before the first entry of the stream.
pub(super) const BEGINNING: &str = "0-0";
/// The epoch of an owner that has left.
const LEFT: &str = "-";

/// Between two looks at all that an owner has whose number of messages shrinks: peers take some over.
const AFTER_SHRINKING: Duration = Duration::from_mins(1);

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
    /// How many its owner had when it was seen last after the scan, and when that was first.
    pending: Option<(u64, Instant)>,
    /// It has fewer than after the scan.
    has_shrunk: bool,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            next: Some(BEGINNING.to_owned()),
            missed: false,
            found: HeldCounts::default(),
            left: HeldCounts::default(),
            pending: None,
            has_shrunk: false,
        }
    }
}

impl Scan {
    /// A page was looked at; `next` is where the next one begins.
    pub(super) fn goes_on(&mut self, next: String) {
        if next.is_empty() {
            self.next = None;
            self.left = std::mem::take(&mut self.found);
        } else {
            self.next = Some(next);
        }
    }

    /// What was looked at may be another now.
    pub(super) fn begin_anew(&mut self) {
        *self = Self { left: self.left, ..Self::default() };
    }

    /// Its owner has so many now. After a whole scan, more are a reason to look again at once, and so is
    /// what was missed; fewer are one later.
    pub(super) fn sees(&mut self, pending: u64, now: Instant) {
        if self.next.is_some() {
            return;
        }
        let (before, since) = *self.pending.get_or_insert((pending, now));
        self.pending = Some((pending, since));
        self.has_shrunk |= pending < before;
        let has_waited = now.duration_since(since) >= AFTER_SHRINKING;
        if self.missed || pending > before || self.has_shrunk && has_waited {
            self.begin_anew();
        }
    }
}

impl PeerState {
    /// Its epoch is not the one that was seen last.
    pub(super) fn moved(pending: u64) -> Self {
        let (epoch, unchanged, scan) = (String::new(), Duration::ZERO, Scan::default());
        Self { epoch, unchanged, moved: true, pending, scan }
    }

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

    const SECOND: Duration = Duration::from_secs(1);

    /// What is left is not read again and again.
    #[test]
    fn a_whole_scan_rests_until_there_are_more() {
        let (mut scan, now) = (whole(), Instant::now());
        for _ in 0..3 {
            scan.sees(4, now);
            assert_eq!(scan.next, None);
        }
        scan.sees(5, now);
        assert_eq!(
            (scan.next.as_deref(), scan.left),
            (Some(BEGINNING), LEFT),
            "the old count holds"
        );
        // While it looks, numbers change.
        scan.goes_on("7-0".to_owned());
        scan.sees(6, now);
        assert_eq!(scan.next.as_deref(), Some("7-0"));
        scan.goes_on(String::new());
        scan.sees(6, now);
        assert_eq!((scan.next, scan.left), (None, HeldCounts::default()));
    }

    /// A peer takes over thousands: a look at all of the rest after each page would be as many looks.
    #[test]
    fn a_number_that_shrinks_is_looked_at_once_a_minute() {
        let (mut scan, begun) = (whole(), Instant::now());
        for second in 0..60 {
            scan.sees(1_000 - u64::from(second), begun + SECOND * second);
            assert_eq!(scan.next, None, "{second}");
        }
        scan.sees(940, begun + SECOND * 60);
        assert_eq!(scan.next.as_deref(), Some(BEGINNING));
        scan.goes_on(String::new());
        scan.sees(940, begun + SECOND * 61);
        scan.sees(900, begun + SECOND * 62);
        assert_eq!(scan.next, None, "the minute begins with the scan");
        scan.sees(901, begun + SECOND * 63);
        assert_eq!(scan.next.as_deref(), Some(BEGINNING), "one is new");
    }

    /// It waits for the next look at the owners: what is always missed is not asked for without end.
    #[test]
    fn a_scan_that_missed_some_begins_anew_at_the_next_look() {
        let mut scan = whole();
        scan.begin_anew();
        (scan.found, scan.missed) = (HeldCounts { not_allowed: 9, unverified: 9 }, true);
        scan.goes_on(String::new());
        assert_eq!((scan.next.as_deref(), scan.left.not_allowed), (None, 9));
        scan.sees(4, Instant::now());
        assert_eq!((scan.next.as_deref(), scan.missed), (Some(BEGINNING), false));
        scan.goes_on(String::new());
        scan.sees(4, Instant::now());
        assert_eq!((scan.next, scan.left), (None, HeldCounts::default()));
    }
}
