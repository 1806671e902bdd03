//! The last fifteen minutes, second by second, over all instances: what the page draws.

use jiff::Timestamp;

use super::{Billed, Meter};
use crate::answer::{self, Verdict};

/// Whole seconds that are remembered.
const SECONDS: i64 = 900;
/// The whole ones, and the one that is not over yet.
const SLOTS: i64 = SECONDS + 1;
/// A clock that was set back further than this begins a new history: the old one would lie ahead.
const SET_BACK: i64 = 5;

/// The seconds, in a ring. A call costs a few additions and no memory.
#[derive(Debug)]
pub(super) struct History {
    ring: Box<[Second]>,
    /// The Unix second that is counted now.
    now: i64,
    /// The first that was counted from its beginning.
    first: i64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Second {
    billable: u32,
    calls: u32,
    pushed_back: u32,
    uncertain: u32,
}

/// Whole seconds up to `end`, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Past {
    /// The last whole Unix second.
    pub end: i64,
    /// Messages that the provider bills.
    pub billable: Vec<u32>,
    /// Calls that ended.
    pub calls: Vec<u32>,
    /// Of these, what the provider throttled, by its code alone.
    pub pushed_back: Vec<u32>,
    /// Messages that may have been billed.
    pub uncertain: Vec<u32>,
}

impl History {
    pub(super) fn new(now: i64) -> Self {
        let ring = (0..SLOTS).map(|_| Second::default()).collect();
        Self { ring, now, first: now + 1 }
    }

    /// A call ended in this Unix second, with this code or transport word.
    pub(super) fn called(&mut self, now: i64, code: &str, billed: Billed) {
        let second = self.roll(now);
        second.calls += 1;
        match billed {
            Billed::Yes => second.billable += 1,
            Billed::Uncertain => second.uncertain += 1,
            Billed::No => {
                let throttled = matches!(answer::meaning(code), Some(Verdict::Throttled { .. }));
                second.pushed_back += u32::from(throttled);
            }
        }
    }

    /// A message may have been billed by a call whose end was not recorded.
    pub(super) fn uncertain(&mut self, now: i64, calls: u64) {
        let second = self.roll(now);
        second.uncertain =
            second.uncertain.saturating_add(u32::try_from(calls).unwrap_or(u32::MAX));
    }

    /// Ends the seconds before `now`, and gives the one that is counted.
    fn roll(&mut self, now: i64) -> &mut Second {
        if now < self.now - SET_BACK {
            self.ring.fill(Second::default());
            (self.now, self.first) = (now, now + 1);
        }
        for second in (self.now + 1).max(now + 1 - SLOTS)..=now {
            *self.slot(second) = Second::default();
        }
        self.now = self.now.max(now);
        self.slot(self.now)
    }

    fn slot(&mut self, second: i64) -> &mut Second {
        // Never out of bounds: the remainder is from 0 to SLOTS - 1.
        &mut self.ring[usize::try_from(second.rem_euclid(SLOTS)).unwrap_or_default()]
    }

    /// The whole seconds after `since`.
    fn read(&mut self, now: i64, since: Option<i64>) -> Past {
        self.roll(now);
        let end = self.now - 1;
        let after = since.map_or(i64::MIN, |since| since.saturating_add(1));
        let seconds = after.max(self.first).max(end + 1 - SECONDS)..=end;
        let mut past = Past { end, ..Past::default() };
        for second in seconds {
            let second = *self.slot(second);
            past.billable.push(second.billable);
            past.calls.push(second.calls);
            past.pushed_back.push(second.pushed_back);
            past.uncertain.push(second.uncertain);
        }
        past
    }
}

impl Meter {
    /// At most fifteen minutes of whole seconds; only those after `since`, a Unix second.
    pub fn past(&self, since: Option<i64>) -> Past {
        self.counts().history.read(Timestamp::now().as_second(), since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i64 = 1_700_000_000;

    #[test]
    fn whole_seconds_only_and_the_first_is_no_part() {
        let mut history = History::new(START);
        history.called(START, "OK", Billed::Yes);
        assert!(history.read(START, None).billable.is_empty());
        history.called(START + 1, "OK", Billed::Yes);
        history.called(START + 1, "Throttling.User", Billed::No);
        history.called(START + 1, "SendMessageFailed", Billed::No);
        history.called(START + 1, "timeout", Billed::Uncertain);
        history.uncertain(START + 1, 1);
        let past = history.read(START + 3, None);
        let expected = Past {
            end: START + 2,
            billable: vec![1, 0],
            calls: vec![4, 0],
            pushed_back: vec![1, 0],
            uncertain: vec![2, 0],
        };
        assert_eq!(past, expected);
    }

    #[test]
    fn fifteen_minutes_and_not_a_second_more() {
        let mut history = History::new(START);
        for second in 1..=5_000 {
            (0..second % 7).for_each(|_| history.called(START + second, "OK", Billed::Yes));
        }
        let past = history.read(START + 5_001, None);
        let expected: Vec<u32> = (4_101..=5_000).map(|second| second % 7).collect();
        assert_eq!((past.end, past.billable), (START + 5_000, expected));
        assert_eq!(history.ring.len(), 901);
    }

    #[test]
    fn only_what_is_new() {
        let mut history = History::new(START);
        (1..=10).for_each(|second| history.called(START + second, "OK", Billed::Yes));
        let now = START + 11;
        for (since, expected) in [
            (START + 7, 3),
            (START + 10, 0),
            (START + 99, 0),
            (i64::MAX, 0),
            (i64::MIN, 10),
            (0, 10),
        ] {
            assert_eq!(history.read(now, Some(since)).calls.len(), expected, "{since}");
        }
    }

    #[test]
    fn idle_seconds_are_zero_also_once_around() {
        for idle in [1, 10, 900, 901, 902, 100_000] {
            let mut history = History::new(START);
            (1..=1_000).for_each(|second| history.called(START + second, "OK", Billed::Yes));
            let past = history.read(START + 1_000 + idle, None);
            let ones = past.billable.iter().filter(|count| **count == 1).count();
            assert_eq!(ones, usize::try_from((901 - idle).max(0)).unwrap(), "{idle}");
            assert_eq!(past.billable.len(), 900);
        }
    }

    #[test]
    fn a_clock_that_is_set_back() {
        let mut history = History::new(START);
        (1..=100).for_each(|second| history.called(START + second, "OK", Billed::Yes));
        // A slew of a second or two is counted where the clock was.
        history.called(START + 98, "OK", Billed::Yes);
        let past = history.read(START + 101, None);
        assert_eq!((past.billable.len(), past.billable[99]), (100, 2));
        // An hour is a new beginning.
        history.called(START - 3_600, "OK", Billed::Yes);
        history.called(START - 3_599, "OK", Billed::Yes);
        let past = history.read(START - 3_598, None);
        assert_eq!((past.end, past.billable), (START - 3_599, vec![1]));
    }
}
