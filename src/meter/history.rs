//! The last fifteen minutes, second by second, over all instances: what the page draws.

use jiff::Timestamp;

use super::labels::CallerResult;
use super::seconds::SecondRing;
use super::{Billed, Meter};
use crate::answer::{self, Verdict};

/// Whole seconds that are remembered.
const SECONDS: usize = 900;

/// The seconds, in a ring.
#[derive(Debug)]
pub(super) struct History {
    seconds: SecondRing<Second>,
    /// Messages that are stored for delivery, as was noted last.
    backlog: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Second {
    billable: u32,
    calls: u32,
    pushed_back: u32,
    uncertain: u32,
    stored: u32,
    refused: u32,
    failed: u32,
    /// At its end.
    backlog: u32,
}

/// Whole seconds up to `end`, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Past {
    /// The last whole Unix second.
    pub end: i64,
    /// Messages that the provider took and bills: the message TPS.
    pub billable: Vec<u32>,
    /// Calls that ended.
    pub calls: Vec<u32>,
    /// Of these, what the provider throttled, by its code alone.
    pub pushed_back: Vec<u32>,
    /// Messages that may have been billed.
    pub uncertain: Vec<u32>,
    /// Requests whose messages were stored for delivery (202).
    #[serde(default)]
    pub stored: Vec<u32>,
    /// Requests that were refused, since a ceiling, a budget or a bound was reached, or while stopping.
    #[serde(default)]
    pub refused: Vec<u32>,
    /// Requests that failed, or whose outcome is unknown.
    #[serde(default)]
    pub failed: Vec<u32>,
    /// Messages that were stored for delivery at the end of the second.
    #[serde(default)]
    pub backlog: Vec<u32>,
}

impl History {
    pub(super) fn new(now: i64) -> Self {
        Self { seconds: SecondRing::new(SECONDS, now, &Second::default()), backlog: 0 }
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

    /// A request was answered.
    pub(super) fn answered(&mut self, now: i64, result: CallerResult) {
        let second = self.roll(now);
        match result {
            CallerResult::Stored => second.stored += 1,
            CallerResult::Refused => second.refused += 1,
            CallerResult::Failed => second.failed += 1,
            // What was delivered is counted by its call, as that of a stored message.
            CallerResult::Delivered | CallerResult::Invalid => {}
        }
    }

    /// A message may have been billed by a call whose end was not recorded.
    pub(super) fn uncertain(&mut self, now: i64, calls: u64) {
        let second = self.roll(now);
        second.uncertain = second.uncertain.saturating_add(fit(calls));
    }

    /// So many messages are stored for delivery now.
    pub(super) fn note_backlog(&mut self, now: i64, messages: u64) {
        // What is over is not rewritten: until now it was as many as before.
        self.roll(now);
        self.backlog = fit(messages);
        self.roll(now).backlog = self.backlog;
    }

    fn roll(&mut self, now: i64) -> &mut Second {
        let fresh = Second { backlog: self.backlog, ..Second::default() };
        self.seconds.at(now, &fresh)
    }

    /// The whole seconds after `since`.
    fn read(&mut self, now: i64, since: Option<i64>) -> Past {
        let fresh = Second { backlog: self.backlog, ..Second::default() };
        let (end, seconds) = self.seconds.whole(now, since, &fresh);
        let mut past = Past { end, ..Past::default() };
        for second in seconds {
            past.billable.push(second.billable);
            past.calls.push(second.calls);
            past.pushed_back.push(second.pushed_back);
            past.uncertain.push(second.uncertain);
            past.stored.push(second.stored);
            past.refused.push(second.refused);
            past.failed.push(second.failed);
            past.backlog.push(second.backlog);
        }
        past
    }
}

/// As many as a second can count.
fn fit(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Meter {
    /// At most fifteen minutes of whole seconds; only those after `since`, a Unix second.
    pub fn past(&self, since: Option<i64>) -> Past {
        self.counts().history.read(Timestamp::now().as_second(), since)
    }

    /// So many messages are stored for delivery now.
    pub fn note_backlog(&self, messages: u64) {
        self.counts().history.note_backlog(Timestamp::now().as_second(), messages);
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
        for result in CallerResult::ALL {
            history.answered(START + 1, result);
        }
        history.note_backlog(START + 1, 7);
        let past = history.read(START + 3, None);
        let expected = Past {
            end: START + 2,
            billable: vec![1, 0],
            calls: vec![4, 0],
            pushed_back: vec![1, 0],
            uncertain: vec![2, 0],
            stored: vec![1, 0],
            refused: vec![1, 0],
            failed: vec![1, 0],
            backlog: vec![7, 7],
        };
        assert_eq!(past, expected);
    }

    /// The backlog is what was noted last, also in seconds in which nothing was.
    #[test]
    fn the_backlog_stays_until_it_changes() {
        let mut history = History::new(START);
        history.note_backlog(START + 1, 5);
        history.note_backlog(START + 3, 9);
        history.note_backlog(START + 3, 8);
        history.called(START + 5, "OK", Billed::Yes);
        history.note_backlog(START + 6, 0);
        assert_eq!(history.read(START + 8, None).backlog, [5, 5, 8, 8, 8, 0, 0]);
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
