//! What calls came back with when they did not deliver: for a person who asks what is wrong.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::{Billed, Meter};

/// The most that are returned.
const MOST: usize = 20;

/// Codes with their counts. Bounded as the codes' labels are.
#[derive(Debug, Default)]
pub(super) struct Errors {
    seen: BTreeMap<Arc<str>, CodeCount>,
    delivered: Option<Timestamp>,
    /// Calls that ended otherwise since then.
    since_delivered: u64,
}

#[derive(Debug)]
struct CodeCount {
    count: u64,
    last: Timestamp,
    /// The provider's, of the last that had one.
    request_id: Option<Box<str>>,
    logged: Timestamp,
}

/// Whether the end of a call is to be logged: one failure per code and minute is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLine {
    /// It is.
    Due,
    /// It was a success, or the minute's line of its code is written.
    None,
}

/// One code or transport word that was not OK.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The provider's code, or a transport word.
    pub code: Arc<str>,
    /// How often since the start.
    pub count: u64,
    /// When for the last time.
    pub last: Timestamp,
    /// The provider's `RequestId`, of the last that had one.
    pub request_id: Option<Box<str>>,
}

/// What went wrong, and when something last went well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failures {
    /// At most 20, the latest first.
    pub latest: Vec<Failure>,
    /// When a call last delivered.
    pub delivered: Option<Timestamp>,
    /// Calls that ended otherwise since then.
    pub since_delivered: u64,
}

impl Errors {
    pub(super) fn called(
        &mut self,
        now: Timestamp,
        code: &Arc<str>,
        request_id: Option<Box<str>>,
        billed: Billed,
    ) -> LogLine {
        if billed == Billed::Yes {
            self.delivered = Some(now);
            self.since_delivered = 0;
            return LogLine::None;
        }
        self.since_delivered += 1;
        let is_new = !self.seen.contains_key(code);
        let new = CodeCount { count: 0, last: now, request_id: None, logged: now };
        let seen = self.seen.entry(Arc::clone(code)).or_insert(new);
        seen.count += 1;
        seen.last = now;
        if request_id.is_some() {
            seen.request_id = request_id;
        }
        if !is_new && now.duration_since(seen.logged) < SignedDuration::from_mins(1) {
            return LogLine::None;
        }
        seen.logged = now;
        LogLine::Due
    }

    fn latest(&self) -> Failures {
        let failure = |(code, seen): (&Arc<str>, &CodeCount)| Failure {
            code: Arc::clone(code),
            count: seen.count,
            last: seen.last,
            request_id: seen.request_id.clone(),
        };
        let mut latest: Vec<_> = self.seen.iter().map(failure).collect();
        latest.sort_by_key(|failure| Reverse(failure.last));
        latest.truncate(MOST);
        Failures { latest, delivered: self.delivered, since_delivered: self.since_delivered }
    }
}

impl Meter {
    /// What calls came back with when they did not deliver.
    pub fn failures(&self) -> Failures {
        self.counts().errors.latest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_first_and_no_more_than_twenty() {
        let mut errors = Errors::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        errors.called(at(1), &"OK".into(), None, Billed::Yes);
        for second in 2..40 {
            let code = Arc::from(format!("Code.{second}"));
            errors.called(at(second), &code, Some("R".into()), Billed::No);
        }
        errors.called(at(50), &"Code.5".into(), Some("R50".into()), Billed::No);
        errors.called(at(51), &"timeout".into(), None, Billed::Uncertain);
        let failures = errors.latest();
        assert_eq!((failures.latest.len(), failures.delivered), (20, Some(at(1))));
        let first: Vec<_> = failures.latest[..3].iter().map(|f| (&*f.code, f.count)).collect();
        assert_eq!(first, [("timeout", 1), ("Code.5", 2), ("Code.39", 1)]);
        assert_eq!(failures.latest[1].last, at(50));
        let ids: Vec<_> = failures.latest[..3].iter().map(|f| f.request_id.as_deref()).collect();
        assert_eq!(ids, [None, Some("R50"), Some("R")]);
    }

    #[test]
    fn one_line_per_code_and_minute() {
        let mut errors = Errors::default();
        let mut due = |second: i64, code: &str, billed| {
            let at = Timestamp::from_second(second).unwrap();
            errors.called(at, &code.into(), None, billed) == LogLine::Due
        };
        assert!(!due(0, "OK", Billed::Yes));
        assert!(due(0, "timeout", Billed::Uncertain));
        assert!((1..60).all(|second| !due(second, "timeout", Billed::Uncertain)));
        assert!(due(30, "connect", Billed::No), "another code");
        assert!(due(60, "timeout", Billed::Uncertain));
        assert!(!due(61, "timeout", Billed::Uncertain));
    }
}
