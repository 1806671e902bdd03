//! Calls that ended without an answer, and that the provider may still read.
//!
//! Closing a connection does not take back what has arrived at the provider. While the provider, or
//! the way to it, stands still, such calls lie in its receive buffers, and all of them are read when
//! it goes on. So they count against the ceiling until one of these:
//!
//! - The call's own answer arrives late ([`UnansweredCalls::remove`]).
//! - A call on the same way (egress address and provider's address) that was sent **later** has been
//!   answered, so the provider goes on:
//!   then within [`CATCH_UP`] it reads what came before. But not before [`min`](Bounds::min) after the call
//!   was sent: another backend behind the same address may be the one that stands still.
//! - [`max`](Bounds::max) has passed since the call was sent.
//!
//! The first and the second end a call as if it were answered at that moment; it then cools like any.
//! What is assumed of the provider is therefore: it reads a call at the latest `max` after it was
//! sent; at the latest `min` after that, where it answers later calls; and where everything stands
//! still for longer than `min`, within [`CATCH_UP`] of its first later answer.
//!
//! Pure: time comes from the caller.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Bound;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

pub(super) use crate::config::Unanswered as Bounds;

/// A provider that goes on reads within this time what arrived while it stood still.
pub(super) const CATCH_UP: Duration = Duration::from_secs(1);
/// A way on which nothing was sent for so long, and all was answered, tells nothing of the others.
const IN_USE: Duration = Duration::from_mins(1);
/// Where there is no ceiling, no more calls than this are remembered.
const MAX_CALLS: usize = 65_536;

/// How a call went: from which egress address, to which of the provider's.
pub(super) type Way = (usize, SocketAddr);

/// Names one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CallKey {
    /// The call was sent no later than this.
    sent: Instant,
    number: u64,
}

#[derive(Debug)]
struct UnansweredCall<T> {
    /// `None`: a process before this one sent it, on any way.
    to: Option<Way>,
    /// It counts at least so long, although a later call is answered.
    min: Duration,
    /// When it stops to count, as far as is known.
    due: Instant,
    /// Dropped when there is nothing more to wait for on the call's connection.
    listening: Option<oneshot::Sender<()>>,
    permit: T,
}

#[derive(Debug)]
struct Answers {
    way: Way,
    /// Calls on it that have no answer.
    unanswered: usize,
    /// When the latest call that was answered had been sent, at the earliest.
    answered: Option<Instant>,
    /// When a call to it ended last.
    used: Instant,
}

/// Calls without an answer, each with what it holds.
#[derive(Debug)]
pub(super) struct UnansweredCalls<T> {
    bounds: Bounds,
    calls: BTreeMap<CallKey, UnansweredCall<T>>,
    /// By the moment at which they stop to count.
    due: BTreeSet<(Instant, CallKey)>,
    number: u64,
    most: usize,
    /// Whether a process before this one may have left calls.
    inherited: bool,
    /// A provider has a few.
    ways: Vec<Answers>,
}

impl<T> UnansweredCalls<T> {
    pub(super) fn new(bounds: Bounds) -> Self {
        let (calls, due) = (BTreeMap::new(), BTreeSet::new());
        Self { bounds, calls, due, number: 0, most: MAX_CALLS, inherited: false, ways: Vec::new() }
    }

    /// Whether there is a ceiling, which bounds the calls: else no more than [`MAX_CALLS`] are kept.
    pub(super) fn limit(&mut self, ceilings: [Option<u32>; 2]) {
        let is_limited = ceilings.iter().any(Option::is_some);
        self.most = if is_limited { usize::MAX } else { MAX_CALLS };
    }

    pub(super) fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// A call to `to` has ended now without an answer, so it was sent no later. Returns its name, and
    /// a receiver that resolves when there is no more reason to wait for its answer.
    pub(super) fn add(
        &mut self,
        to: Way,
        permit: T,
        now: Instant,
    ) -> (CallKey, oneshot::Receiver<()>) {
        self.way(to, now).unanswered += 1;
        let (listening, over) = oneshot::channel();
        let Bounds { min, max } = self.bounds;
        let (due, listening) = (now + max, Some(listening));
        let key = self.insert(UnansweredCall { to: Some(to), min, due, listening, permit }, now);
        if self.calls.len() > self.most
            && let Some((_, first)) = self.due.pop_first()
        {
            self.due.insert((now, first));
            if let Some(call) = self.calls.get_mut(&first) {
                call.due = now;
            }
        }
        (key, over)
    }

    /// A call of a process before this one, sent no later than `sent`. It counts until `due`, or at
    /// least for `min` until a later call is answered.
    pub(super) fn inherit(&mut self, sent: Instant, min: Duration, due: Instant, permit: T) {
        self.inherited = true;
        self.insert(UnansweredCall { to: None, min, due, listening: None, permit }, sent);
    }

    fn insert(&mut self, call: UnansweredCall<T>, sent: Instant) -> CallKey {
        self.number += 1;
        let key = CallKey { sent, number: self.number };
        self.due.insert((call.due, key));
        self.calls.insert(key, call);
        key
    }

    /// A call to `to` that was sent no earlier than `sent` has been answered now. Returns whether
    /// calls without an answer now stop to count sooner.
    pub(super) fn answered(&mut self, to: Way, sent: Instant, now: Instant) -> bool {
        let way = self.way(to, now);
        let before = way.answered;
        if before.is_some_and(|before| before >= sent) {
            return false;
        }
        way.answered = Some(sent);
        if self.calls.is_empty() {
            self.inherited = false;
            return false;
        }
        let everywhere = self.answered_everywhere(now);
        // What was sent before the answered call of before has been seen to already.
        let from = before.filter(|_| !self.inherited);
        let from =
            from.map_or(Bound::Unbounded, |sent| Bound::Included(CallKey { sent, number: 0 }));
        let to_here = Bound::Excluded(CallKey { sent, number: 0 });
        let mut sooner = false;
        for (key, call) in self.calls.range_mut((from, to_here)) {
            let later = match call.to {
                Some(way) => way == to,
                None => everywhere.is_some_and(|everywhere| everywhere > key.sent),
            };
            let due = (now + CATCH_UP).max(key.sent + call.min).min(call.due);
            if later && due < call.due {
                self.due.remove(&(call.due, *key));
                self.due.insert((due, *key));
                call.due = due;
                call.listening = None;
                sooner = true;
            }
        }
        sooner
    }

    /// When the latest call that was answered had been sent, at the earliest: on the way, of those in
    /// use, of which that is longest ago.
    pub(super) fn answered_everywhere(&self, now: Instant) -> Option<Instant> {
        let in_use = |way: &&Answers| way.unanswered > 0 || now < way.used + IN_USE;
        // One without any answer comes first, as `None` does.
        self.ways.iter().filter(in_use).map(|way| way.answered).min().flatten()
    }

    /// The call has ended after all.
    pub(super) fn remove(&mut self, key: CallKey) -> Option<T> {
        let call = self.calls.remove(&key)?;
        self.due.remove(&(call.due, key));
        if let Some(way) = self.ways.iter_mut().find(|way| Some(way.way) == call.to) {
            way.unanswered -= 1;
        }
        Some(call.permit)
    }

    /// A call that stops to count by now.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<T> {
        let (_, key) = self.due.first().copied().filter(|(due, _)| *due <= now)?;
        self.remove(key)
    }

    /// When the next one stops to count, as far as is known.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    fn way(&mut self, to: Way, now: Instant) -> &mut Answers {
        let found = self.ways.iter().position(|known| known.way == to);
        let at = found.unwrap_or_else(|| {
            // Addresses that the endpoint's name no longer has.
            let in_use = self.bounds.max.max(IN_USE);
            self.ways.retain(|known| known.unanswered > 0 || now < known.used + in_use);
            self.ways.push(Answers { way: to, unanswered: 0, answered: None, used: now });
            self.ways.len() - 1
        });
        let way = &mut self.ways[at];
        way.used = now;
        way
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { min: Duration::from_secs(10), max: Duration::from_mins(5) };
    const SECOND: Duration = Duration::from_secs(1);

    fn address(last: u8) -> Way {
        (0, SocketAddr::from(([192, 0, 2, last], 443)))
    }

    fn due(calls: &mut UnansweredCalls<u8>, now: Instant) -> Vec<u8> {
        std::iter::from_fn(|| calls.pop_due(now)).collect()
    }

    #[test]
    fn a_later_answer_from_the_same_address_ends_it_but_not_before_the_lower_bound() {
        let (start, mut calls) = (Instant::now(), UnansweredCalls::new(BOUNDS));
        calls.add(address(1), 1, start + SECOND * 3);
        // Sent before it ended, and sent elsewhere.
        assert!(!calls.answered(address(1), start + SECOND * 2, start + SECOND * 4));
        assert!(!calls.answered(address(2), start + SECOND * 5, start + SECOND * 6));
        assert_eq!(calls.next_due(), Some(start + SECOND * 303));
        assert!(calls.answered(address(1), start + SECOND * 5, start + SECOND * 6));
        assert_eq!(due(&mut calls, start + SECOND * 13 - SECOND / 1_000), Vec::<u8>::new());
        assert_eq!(due(&mut calls, start + SECOND * 13), [1]);
    }

    #[test]
    fn after_a_long_stall_the_provider_has_a_second_to_read() {
        let (start, mut calls) = (Instant::now(), UnansweredCalls::new(BOUNDS));
        let (_, mut over) = calls.add(address(1), 1, start);
        assert!(over.try_recv() == Err(oneshot::error::TryRecvError::Empty), "worth listening");
        assert!(calls.answered(address(1), start + SECOND * 60, start + SECOND * 61));
        assert!(over.try_recv() == Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(calls.next_due(), Some(start + SECOND * 62));
    }

    #[test]
    fn without_any_sign_the_upper_bound_ends_it() {
        let (start, mut calls) = (Instant::now(), UnansweredCalls::new(BOUNDS));
        let (late, _over) = calls.add(address(1), 1, start);
        calls.add(address(1), 2, start + SECOND);
        assert_eq!(calls.remove(late), Some(1));
        assert_eq!(calls.remove(late), None);
        assert_eq!(due(&mut calls, start + SECOND * 301 - SECOND / 1_000), Vec::<u8>::new());
        assert_eq!(due(&mut calls, start + SECOND * 301), [2]);
        assert_eq!(calls.next_due(), None);
    }

    /// Where a call of an earlier process went is not known: all addresses in use must answer.
    #[test]
    fn what_was_inherited_waits_for_all_addresses() {
        let (start, mut calls) = (Instant::now(), UnansweredCalls::new(BOUNDS));
        calls.inherit(start, SECOND * 10, start + SECOND * 300, 1);
        calls.inherit(start, Duration::ZERO, start + SECOND * 300, 2);
        calls.add(address(2), 3, start + SECOND);
        assert!(!calls.answered(address(1), start + SECOND, start + SECOND * 2));
        assert!(calls.answered(address(2), start + SECOND * 2, start + SECOND * 3));
        assert_eq!(due(&mut calls, start + SECOND * 4), [2]);
        assert_eq!(due(&mut calls, start + SECOND * 10), [1]);
        assert_eq!(due(&mut calls, start + SECOND * 11), [3]);
    }

    #[test]
    fn there_is_a_bound() {
        let (start, mut calls) = (Instant::now(), UnansweredCalls::new(BOUNDS));
        for n in 0..MAX_CALLS {
            calls.add(address(1), 1, start + SECOND * u32::try_from(n / 1_000).unwrap());
        }
        assert_eq!(due(&mut calls, start), Vec::<u8>::new());
        calls.add(address(1), 2, start + SECOND * 100);
        assert_eq!(due(&mut calls, start + SECOND * 100), [1]);
        // Names change, and are not remembered for ever.
        for n in 0..1_000_u32 {
            let to = (0, SocketAddr::from((n.to_be_bytes(), 443)));
            calls.answered(to, start + SECOND * 10 * n, start + SECOND * 10 * n);
        }
        assert!(calls.ways.len() < 40, "{}", calls.ways.len());
    }
}
