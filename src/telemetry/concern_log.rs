//! What is wrong, in the log and on the page: a line of the log when a concern begins and one when it is over, and
//! none a message; on the page from the one to the other, so that one that flickers does not blink.
//!
//! A concern counts as begun when it has been seen for [`SHOWN`], and as
//! over when it was not seen for [`HELD`]; each time that it comes back soon it is held twice as long, so that one that
//! comes and goes all night costs a few lines. A stop ends the log: what is open then has no line for its end.
//!
//! Pure: the caller passes the time.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::concerns::UNLOGGED;
use super::view::{Concern, Level};

/// How long a concern is seen before it is logged.
const SHOWN: Duration = Duration::from_secs(1);
/// A ceiling is reached with each burst, and after each outage while the backlog is sent: the page shows it, and it has a line
/// once it lasts.
const CEILING: &str = "ceiling";
const CEILING_LASTS: Duration = Duration::from_secs(10);
/// How long it is not seen before it is over, the first time and at most.
const HELD: Duration = Duration::from_secs(8);
const LONGEST_HELD: Duration = Duration::from_mins(10);
/// For so long after the first look, whatever is wrong is shown: it was not looked at before.
const YOUNG: Duration = Duration::from_secs(3);
/// After so long without it, a concern is a new one.
const FORGOTTEN: Duration = Duration::from_mins(30);

/// Requests since the start, by outcome.
pub(super) type Requests = BTreeMap<String, u64>;

/// A line of the log.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ConcernLine {
    /// It has begun, or is worse than it was.
    Begun(Concern),
    /// It is over.
    Over {
        /// As it was last.
        concern: Concern,
        lasted: Duration,
        /// What callers got meanwhile, by outcome.
        requests: Requests,
    },
}

/// Follows concerns from look to look.
#[derive(Debug, Default)]
pub(super) struct ConcernLog {
    /// By their kinds, which are bounded.
    concerns: BTreeMap<String, Followed>,
    first_look: Option<Instant>,
    /// The look before this one, and the requests then.
    previous: Option<Instant>,
    requests: Requests,
}

#[derive(Debug, Clone)]
struct Followed {
    concern: Concern,
    begun: Instant,
    seen: Instant,
    /// Requests at the look before it was seen first, and at the one after it was seen last: so that none is left out
    /// that was answered while it began or ended.
    before: Requests,
    after: Requests,
    held: Duration,
    state: State,
    has_line: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Seen, and not logged yet.
    New,
    /// Logged with this level, which it last had then.
    Logged(Level, Instant),
    Over {
        was_logged: bool,
    },
}

impl ConcernLog {
    /// These are the concerns now. Returns what is to be logged.
    pub(super) fn look(
        &mut self,
        concerns: &[Concern],
        requests: &Requests,
        now: Instant,
    ) -> Vec<ConcernLine> {
        self.first_look.get_or_insert(now);
        let mut lines = Vec::new();
        for concern in concerns {
            self.see(concern, now, &mut lines);
        }
        for followed in self.concerns.values_mut() {
            let unseen = now - followed.seen;
            if followed.seen == now || Some(followed.seen) == self.previous {
                followed.after.clone_from(requests);
            }
            match followed.state {
                // It went before it was logged.
                State::New if unseen > Duration::ZERO => {
                    followed.state = State::Over { was_logged: false };
                }
                State::Logged(..) if unseen >= followed.held => {
                    followed.state = State::Over { was_logged: true };
                    if !std::mem::take(&mut followed.has_line) {
                        continue;
                    }
                    let Followed { before, after, .. } = &*followed;
                    let count = |(outcome, n): (&String, &u64)| {
                        let more = n.saturating_sub(before.get(outcome).copied().unwrap_or(0));
                        (more > 0).then(|| (outcome.clone(), more))
                    };
                    lines.push(ConcernLine::Over {
                        concern: followed.concern.clone(),
                        lasted: followed.seen - followed.begun,
                        requests: after.iter().filter_map(count).collect(),
                    });
                }
                State::New | State::Logged(..) | State::Over { .. } => {}
            }
        }
        self.concerns.retain(|_, followed| now - followed.seen < FORGOTTEN);
        self.previous = Some(now);
        self.requests.clone_from(requests);
        lines
    }

    /// What a page shows, worst first: of the concerns now (`concerns`) those that have begun, and those that
    /// have gone but are not over. `at` is the moment `now`.
    pub(super) fn shown(
        &self,
        concerns: Vec<Concern>,
        at: Timestamp,
        now: Instant,
    ) -> Vec<Concern> {
        let ago = |then: Instant| {
            let ago = SignedDuration::try_from(now.saturating_duration_since(then));
            ago.map_or(at, |ago| at - ago)
        };
        let is_young = self.first_look.is_none_or(|first| now - first < YOUNG);
        let mut gone = self.concerns.clone();
        let mut shown = Vec::new();
        for mut concern in concerns {
            match gone.remove(&*concern.kind) {
                Some(Followed { state: State::Logged(level, _), begun, .. }) => {
                    // One that is worse for a moment only is not worse; and it stays what it was for a while.
                    concern.level = level;
                    concern.since = Some(ago(begun));
                    shown.push(concern);
                }
                _ if is_young || UNLOGGED.contains(&&*concern.kind) => shown.push(concern),
                _ => {}
            }
        }
        for Followed { mut concern, begun, seen, state, .. } in gone.into_values() {
            if let State::Logged(level, _) = state {
                concern.level = level;
                (concern.since, concern.last_seen) = (Some(ago(begun)), Some(ago(seen)));
                shown.push(concern);
            }
        }
        shown.sort_by_key(|concern| concern.level);
        shown
    }

    fn see(&mut self, concern: &Concern, now: Instant, lines: &mut Vec<ConcernLine>) {
        let new = |held| Followed {
            concern: concern.clone(),
            begun: now,
            seen: now,
            before: self.requests.clone(),
            after: Requests::new(),
            held,
            state: State::New,
            has_line: false,
        };
        let followed = self.concerns.entry(concern.kind.to_string()).or_insert_with(|| new(HELD));
        if let State::Over { was_logged } = followed.state {
            let held = followed.held;
            // What stayed away for long begins anew, and what was not logged costs nothing.
            let held = match was_logged {
                true if now - followed.seen > held * 4 => HELD,
                true => (held * 2).min(LONGEST_HELD),
                false => held,
            };
            *followed = new(held);
        }
        followed.seen = now;
        followed.concern = concern.clone();
        let level = concern.level;
        let is_due = match followed.state {
            State::New => now - followed.begun >= SHOWN,
            // A higher level comes first.
            State::Logged(logged, _) if level < logged => true,
            // It is better for a while: what is worse than that is news again.
            State::Logged(logged, at) if level > logged => {
                let at = if now - at >= followed.held { (level, now) } else { (logged, at) };
                followed.state = State::Logged(at.0, at.1);
                false
            }
            State::Logged(logged, _) => {
                followed.state = State::Logged(logged, now);
                false
            }
            State::Over { .. } => false,
        };
        if is_due {
            followed.state = State::Logged(level, now);
        }
        let is_late = !followed.has_line && matches!(followed.state, State::Logged(..));
        let lasts = concern.kind != CEILING || now - followed.begun >= CEILING_LASTS;
        if (is_due || is_late) && lasts {
            followed.has_line = true;
            lines.push(ConcernLine::Begun(concern.clone()));
        }
    }
}

impl ConcernLine {
    /// Writes it.
    pub(super) fn write(&self) {
        match self {
            Self::Begun(concern) => {
                let Concern { kind, level, title, detail, remedy, .. } = concern;
                let (concern, todo) = (&**kind, &**remedy);
                match level {
                    Level::Bad => tracing::error!(concern, detail, todo, "begins: {title}"),
                    Level::Warn => tracing::warn!(concern, detail, todo, "begins: {title}"),
                }
            }
            Self::Over { concern: Concern { kind, title, .. }, lasted, requests } => {
                let counts = requests.iter().map(|(outcome, n)| format!("{outcome} {n}"));
                let requests = counts.collect::<Vec<_>>().join(", ");
                let (concern, lasted_s) = (&**kind, lasted.as_secs());
                tracing::info!(concern, lasted_s, requests, "over: {title}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn concern(kind: &'static str, level: Level) -> Concern {
        let (title, detail, remedy) = (format!("{kind} is wrong"), String::new(), String::new());
        Concern { kind: kind.into(), level, title, detail, remedy, since: None, last_seen: None }
    }

    /// What is logged in each second of a night, as `+kind` and `-kind`.
    fn night(seconds: u64, concerns: impl Fn(u64) -> Vec<Concern>) -> Vec<(u64, String)> {
        let (mut log, begin) = (ConcernLog::default(), Instant::now());
        let mut written = Vec::new();
        for second in 0..seconds {
            let requests = [("queued".to_owned(), second * 10)].into();
            let now = begin + Duration::from_secs(second);
            for line in log.look(&concerns(second), &requests, now) {
                let text = match line {
                    ConcernLine::Begun(concern) => format!("+{}", concern.kind),
                    ConcernLine::Over { concern, lasted, requests } => {
                        let (lasted, queued) = (lasted.as_secs(), requests["queued"]);
                        format!("-{} {lasted} s, {queued} queued", concern.kind)
                    }
                };
                written.push((second, text));
            }
        }
        written
    }

    #[tokio::test]
    async fn a_line_when_it_begins_and_one_when_it_is_over() {
        let lines = night(60, |second| match second {
            10..=34 => vec![concern("delivery", Level::Bad)],
            40 => vec![concern("blip", Level::Warn)],
            _ => Vec::new(),
        });
        let wanted = [(11, "+delivery"), (42, "-delivery 24 s, 260 queued")];
        assert_eq!(lines, wanted.map(|(second, line)| (second, line.to_owned())));
    }

    #[tokio::test]
    async fn worse_is_a_line_and_better_is_none() {
        let lines = night(150, |second| match second {
            // It is worse twice, and in between for a moment only.
            10..20 | 22..24 | 100..110 => vec![concern("key", Level::Bad)],
            0..140 => vec![concern("key", Level::Warn)],
            _ => Vec::new(),
        });
        let kinds: Vec<_> = lines.iter().map(|(second, line)| (*second, &line[..4])).collect();
        assert_eq!(kinds, [(1, "+key"), (10, "+key"), (100, "+key"), (147, "-key")]);
    }

    /// Seconds that were never logged do not hold what is logged later.
    #[tokio::test]
    async fn blips_leave_no_trace() {
        let lines = night(4_000, |second| {
            let is_blip = second < 3_000 && second % 60 == 0;
            let is_there = is_blip || (3_100..3_200).contains(&second);
            is_there.then(|| concern("plan", Level::Warn)).into_iter().collect()
        });
        let kinds: Vec<_> = lines.iter().map(|(second, line)| (*second, &line[..5])).collect();
        assert_eq!(kinds, [(3_101, "+plan"), (3_207, "-plan")]);
    }

    /// Eight hours of a concern that comes for five seconds every twenty, and of one that stays.
    #[tokio::test]
    async fn what_comes_and_goes_all_night_costs_a_few_lines() {
        let lines = night(8 * 3_600, |second| {
            let comes = (second % 20 < 5).then(|| concern("throttled", Level::Warn));
            comes.into_iter().chain([concern("clock", Level::Warn)]).collect()
        });
        assert!(lines.len() <= 6, "{lines:?}");
        assert_eq!(lines.iter().filter(|(_, line)| line == "+clock").count(), 1);
    }

    /// After half an hour without it, it is a new one.
    #[tokio::test]
    async fn each_outage_of_a_day_is_told() {
        let lines = night(24 * 3_600, |second| {
            (second % 7_200 < 60).then(|| concern("delivery", Level::Bad)).into_iter().collect()
        });
        assert_eq!(lines.len(), 2 * 12);
    }

    /// What the page shows in each second of a minute, as kinds.
    fn page(concerns: impl Fn(u64) -> Vec<Concern>) -> Vec<String> {
        let (mut log, begin) = (ConcernLog::default(), Instant::now());
        let mut pages = Vec::new();
        for second in 0..60 {
            let now = begin + Duration::from_secs(second);
            log.look(&concerns(second), &Requests::new(), now);
            let shown = log.shown(concerns(second), Timestamp::UNIX_EPOCH, now);
            let kinds = shown.iter().map(|concern| {
                let gone = concern.last_seen.map(|seen| -seen.as_second());
                let gone = gone.map_or_else(String::new, |gone| format!(" {gone} s ago"));
                format!("{} {}{gone}", concern.level.word(), concern.kind)
            });
            pages.push(kinds.collect::<Vec<_>>().join(", "));
        }
        pages
    }

    #[tokio::test]
    async fn what_flickers_does_not_blink() {
        let pages = page(|second| match second {
            // Each second moment, with a pause that is shorter than it is held.
            10..40 if second % 5 < 2 => vec![concern("throttled", Level::Warn)],
            22 => vec![concern("blip", Level::Bad)],
            _ => Vec::new(),
        });
        let shown: Vec<_> = (0..60).filter(|second| !pages[*second].is_empty()).collect();
        assert_eq!(shown, (11..=43).collect::<Vec<_>>(), "{pages:?}");
        assert_eq!((&*pages[11], &*pages[14]), ("warning throttled", "warning throttled 3 s ago"));
    }

    /// From its line in the log to that of its end, the page has it, and not longer.
    #[tokio::test]
    async fn the_page_and_the_log_agree() {
        let concerns = |second| match second {
            10..=30 => vec![concern("delivery", Level::Bad), concern("clock", Level::Warn)],
            _ => vec![concern("clock", Level::Warn)],
        };
        let lines = night(60, concerns);
        let [_, begun, over] = <[_; 3]>::try_from(lines).unwrap();
        assert_eq!((begun.0, over.0), (11, 38));
        let pages = page(concerns);
        for second in 4..60 {
            let is_shown = pages[usize::try_from(second).unwrap()].contains("problem delivery");
            assert_eq!(is_shown, (begun.0..over.0).contains(&second), "{second}: {pages:?}");
        }
    }

    /// Its colour does not blink either.
    #[tokio::test]
    async fn a_level_stays_for_a_while() {
        let pages = page(|second| {
            let level = if second % 2 == 0 { Level::Bad } else { Level::Warn };
            vec![concern("key", level)]
        });
        assert!(pages[4..].iter().all(|page| page == "problem key"), "{pages:?}");
    }

    /// A process that has just started knows of no flicker, and hides nothing.
    #[tokio::test]
    async fn what_is_wrong_at_the_start_is_shown_at_once() {
        let log = ConcernLog::default();
        let (concerns, now) = (vec![concern("no_key", Level::Bad)], Instant::now());
        assert_eq!(log.shown(concerns.clone(), Timestamp::UNIX_EPOCH, now), concerns);
    }

    /// A ceiling has a line once it lasts, and then one when it is left.
    #[test]
    fn a_burst_has_no_line_of_its_ceiling() {
        for (seconds, expected) in [(8_u64, 0), (12, 2)] {
            let (mut log, start) = (ConcernLog::default(), Instant::now());
            let mut lines = 0;
            for second in 0..60 {
                let concerns = (second < seconds).then(|| concern("ceiling", Level::Warn));
                let now = start + Duration::from_secs(second);
                lines += log.look(concerns.as_slice(), &Requests::new(), now).len();
            }
            assert_eq!(lines, expected, "{seconds} s");
        }
    }
}
