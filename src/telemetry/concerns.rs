//! What is wrong now, in words, and what a person can do: derived from the facts, worst first.

mod ceilings;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::advice::{self, Advice};
use super::status::{Budget, Ceiling, Error, OnExceed, Status, Unit};
use crate::answer::{self, AccessDenied, Verdict};
use crate::ceiling::Mode;
use crate::config::grouped;

/// An error is news for this long even though other calls get through; with none that does, for
/// [`UNTIL_DELIVERED`].
const NEWS: SignedDuration = SignedDuration::from_secs(15);
const UNTIL_DELIVERED: SignedDuration = SignedDuration::from_mins(15);
/// The provider refuses a clock that is off by three times this.
const SKEW: f64 = 5.0 * 60.0;
/// A key is renewed when half its life, or 15 minutes of it, are left.
const KEY_ENDS: SignedDuration = SignedDuration::from_mins(10);
/// Kept messages are older than this only in trouble.
const OLD: SignedDuration = SignedDuration::from_mins(5);
/// From here on a ceiling is near, and a budget, a plan or the spool is nearly used up.
const NEAR_CEILING: f64 = 0.95;
const NEARLY: f64 = 0.8;
/// A wait for a permit that is more than the spacing of calls, seconds.
const QUEUE: f64 = 0.1;
/// Nobody reads "0 s ago".
const JUST_NOW: SignedDuration = SignedDuration::from_secs(2);
/// The most names in one sentence.
const NAMES: usize = 3;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// Messages are not delivered or not taken.
    Bad,
    /// They soon may be not, or cost more than they should.
    Warn,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Concern {
    pub(super) level: Level,
    pub(super) title: String,
    pub(super) detail: String,
    pub(super) todo: String,
}

/// Everything that is wrong.
pub(super) fn of(status: &Status) -> Vec<Concern> {
    let mut concerns = Concerns::default();
    concerns.stopping(status);
    concerns.key(status);
    concerns.barred(status);
    concerns.spool(status);
    concerns.failing(status);
    concerns.blocked(status);
    concerns.fleet(status);
    concerns.ceilings(status);
    concerns.budgets(status);
    concerns.plan(status);
    concerns.clock(status);
    concerns.ledger(status);
    concerns.left_behind(status);
    concerns.0.sort_by_key(|concern| concern.level);
    concerns.0
}

#[derive(Default)]
struct Concerns(Vec<Concern>);

impl Concerns {
    fn add(&mut self, level: Level, title: impl Into<String>, detail: String, todo: &str) {
        self.0.push(Concern { level, title: title.into(), detail, todo: todo.to_owned() });
    }

    fn stopping(&mut self, status: &Status) {
        if status.draining {
            self.add(
                Level::Bad,
                "tollgate is stopping",
                "New messages are refused (503); those on their way are finished.".to_owned(),
                "Nothing if the stop was meant. Else find out who sent SIGTERM.",
            );
        }
    }

    fn key(&mut self, status: &Status) {
        const SOURCE: &str = "Look at the key's source (section [keys] of the configuration); a \
                              new key is taken up without a restart, except from the environment.";
        let key = &status.key;
        let error = key.error.as_deref();
        let why = error.map(|error| format!(" The source says: {error}.")).unwrap_or_default();
        if key.loaded.is_none() {
            self.add(Level::Bad, "No access key", format!("Nothing can be sent.{why}"), SOURCE);
            return;
        }
        if let Some(at) = key.expires {
            let left = at.duration_since(status.now);
            if left <= SignedDuration::ZERO {
                let detail = format!("It ended {} ago; nothing can be sent.{why}", span(-left));
                return self.add(Level::Bad, "The access key has expired", detail, SOURCE);
            }
            // A key that lives for minutes is renewed with minutes left.
            let life = key.loaded.map_or(SignedDuration::MAX, |from| at.duration_since(from));
            if left < KEY_ENDS.min(life / 5) {
                let level = if error.is_some() { Level::Bad } else { Level::Warn };
                let detail = format!("It ends in {} and was not renewed yet.{why}", span(left));
                return self.add(level, "The access key ends soon", detail, SOURCE);
            }
        }
        if let Some(error) = error {
            let detail = format!("The one in use still works. The source says: {error}.");
            self.add(Level::Warn, "The access key's source fails", detail, SOURCE);
        }
    }

    fn barred(&mut self, status: &Status) {
        for bar in [
            AccessDenied::Key,
            AccessDenied::Clock,
            AccessDenied::Permission,
            AccessDenied::Endpoint,
        ] {
            let means = |error: &&Error| {
                answer::meaning(&error.code) == Some(Verdict::Denied(bar)) && lasts(error, status)
            };
            let lanes = Lanes::of(status, Some(bar));
            let said = said(status.errors.iter().filter(means), status.now);
            if lanes.topics == 0 && said.is_empty() {
                continue;
            }
            let Advice { words, todo } = advice::of_bar(bar);
            let detail = format!("{said}{}New messages are answered 502.", lanes.wait());
            self.add(Level::Bad, words.trim_end_matches('.'), detail, todo);
        }
    }

    fn failing(&mut self, status: &Status) {
        const WAIT: &str = "Nothing at once: delivery goes on by itself. If it lasts, see the \
                            provider's status page, and the network from here to it.";
        let fails = |error: &&Error| {
            let meaning = answer::meaning(&error.code);
            let fails = matches!(meaning, None | Some(Verdict::Failed | Verdict::Unknown));
            fails && lasts(error, status)
        };
        let lanes = Lanes::of(status, None);
        let errors = status.errors.iter().filter(fails);
        let latest = errors.clone().next();
        let words = latest.map(|error| format!("{} ", error.words)).unwrap_or_default();
        let said = words + &said(errors, status.now);
        if lanes.topics > 0 {
            let detail = format!(
                "{said}{} {}. One at a time finds out when it works again; new ones are kept (202).",
                messages(lanes.messages),
                waits(lanes.messages),
            );
            return self.add(
                Level::Bad,
                format!("Delivery fails for {}", lanes.names()),
                detail,
                WAIT,
            );
        }
        // One that failed among many that pass is no news.
        let since = |error: &Error, delivered| error.last.duration_since(delivered) > JUST_NOW;
        let all_fail =
            |error: &&Error| status.last_delivered.is_none_or(|delivered| since(error, delivered));
        if let Some(error) = latest.filter(all_fail) {
            let detail = format!("{said}No call was delivered since.");
            self.add(Level::Bad, "Nothing gets through", detail, error.todo);
        }
    }

    fn blocked(&mut self, status: &Status) {
        let (blocked, all) = (status.blocked.len(), status.egress.len());
        if blocked > 0 {
            let level = if blocked >= all { Level::Bad } else { Level::Warn };
            let which = listed(status.blocked.iter().map(String::as_str), blocked);
            let detail = format!(
                "{blocked} of {all} ({which}). Each rests for five minutes, then one call finds out."
            );
            let todo = "Let nobody else send from these addresses, check ceilings.egress_ip, and \
                        ask the provider to lift the block.";
            self.add(level, "Egress addresses seem to be blocked", detail, todo);
        }
    }

    fn fleet(&mut self, status: &Status) {
        const REDIS: &str = "Look at Redis (fleet.url) and at the network between; the log says what \
                             it answers. Then all goes on by itself.";
        let Some(fleet) = &status.fleet else { return };
        match fleet.mode {
            Mode::Closed => {
                let detail = "Redis does not answer, and no permit is held any more. Nothing is \
                              sent: what callers wait for is kept, or refused.";
                self.add(Level::Bad, "Cut off from the fleet", detail.to_owned(), REDIS);
            }
            Mode::CutOff => {
                let detail = "Redis does not answer. Calls go on with the permits that are held, until \
                              their leases end: in half a minute at most.";
                self.add(Level::Warn, "Redis does not answer", detail.to_owned(), REDIS);
            }
            Mode::Alone | Mode::Shared if fleet.opens_in_seconds > 0.0 => {
                let detail = format!(
                    "It is new, or has lost its keys: for {:.0} s more it gives out only what \
                     sidecars bring back to it.",
                    fleet.opens_in_seconds.ceil()
                );
                let todo = "Nothing: it is over then. If it comes again, see why Redis restarts.";
                self.add(Level::Warn, "Redis learns which permits are out", detail, todo);
            }
            Mode::Alone | Mode::Shared => {}
        }
        let starved: Vec<_> = fleet.members.iter().filter(|member| member.starved).collect();
        if !starved.is_empty() {
            let names = listed(starved.iter().map(|member| &*member.name), starved.len());
            let detail = format!(
                "{} of {} sidecars ({names}) have messages that wait for more than a second, and hold \
                 less than half of an equal part.",
                starved.len(),
                fleet.size.max(starved.len())
            );
            let todo = "See whether Redis is slow for them (their CPU, the network), and set \
                        fleet.expected_sidecars to how many there are.";
            self.add(Level::Warn, "Sidecars get too few permits", detail, todo);
        }
    }

    fn spool(&mut self, status: &Status) {
        let Some(kept) = &status.kept else { return };
        if let Some(failure) = &kept.failure {
            let detail = format!(
                "It says: {failure}. What is not delivered at once cannot be kept and is refused."
            );
            let title = "The spool takes no writes";
            let todo = if kept.durability.starts_with("redis") {
                "See that the Redis of fleet.url runs, can be reached and has memory. It is tried again."
            } else {
                "Make room on the disk of spool.path, or mend it. It is tried again by itself."
            };
            self.add(Level::Bad, title, detail, todo);
        }
        if kept.full >= NEARLY {
            let full = kept.full >= NEAR_CEILING;
            let level = if full { Level::Bad } else { Level::Warn };
            let detail = format!(
                "{} of it is used. When it is full, what is not delivered at once is refused (503).",
                percent(kept.full)
            );
            let todo = "Drop or replay dead letters (tollgate messages), or raise spool.max_bytes \
                        and spool.max_messages.";
            self.add(level, "The spool is nearly full", detail, todo);
        }
    }

    fn ledger(&mut self, status: &Status) {
        let Some(error) = &status.ledger_failure else { return };
        self.add(
            Level::Warn,
            "The ledger is not written",
            format!("Messages are counted in memory only. The disk says: {error}."),
            "Look at the disk of spool.path; counting goes on by itself when it takes the ledger.",
        );
    }

    fn budgets(&mut self, status: &Status) {
        for budget in &status.spend.budgets {
            let used = share(budget.used + budget.reserved, Some(budget.limit));
            let refuses = budget.on_exceed == OnExceed::Refuse;
            let (level, title) = if used >= 1.0 {
                let level = if refuses { Level::Bad } else { Level::Warn };
                (level, format!("Budget {} is used up", budget.name))
            } else if used >= NEARLY {
                (Level::Warn, format!("Budget {} is nearly used up", budget.name))
            } else {
                continue;
            };
            let then = if refuses { "messages over it are refused" } else { "nothing is refused" };
            let left = span(budget.resets_at.duration_since(status.now));
            let detail = format!("{}; {then}. It begins anew in {left}.", of_budget(budget));
            let todo = "Find the topic that costs most below; raise the budget if it is right so.";
            self.add(level, title, detail, todo);
        }
    }

    fn plan(&mut self, status: &Status) {
        let Some(plan) = status.plan_tps else { return };
        let used = share(status.tps_peak as f64, Some(plan.into()));
        if used >= NEARLY {
            let title = if used > 1.0 { "Over the bought TPS" } else { "Near the bought TPS" };
            let detail = format!(
                "The largest second of this minute had {} messages, {} of the {} that were bought.",
                grouped(status.tps_peak),
                percent(used),
                grouped(plan.into()),
            );
            let todo = "Buy a larger instance before the provider throttles, or publish less.";
            self.add(Level::Warn, title, detail, todo);
        }
    }

    fn clock(&mut self, status: &Status) {
        let skew = status.clock_skew_seconds.abs();
        if skew > SKEW {
            let refused = skew >= 3.0 * SKEW;
            let level = if refused { Level::Bad } else { Level::Warn };
            // Seconds of a clock: far from what an integer holds.
            let by = span(SignedDuration::try_from_secs_f64(skew).unwrap_or(SignedDuration::MAX));
            let side = if status.clock_skew_seconds > 0.0 { "behind" } else { "ahead of" };
            let detail = format!("It is {by} {side} the provider's, which refuses 15 min.");
            self.add(level, "This machine's clock is off", detail, "Set it: NTP on this machine.");
        }
    }

    /// What others have to look after.
    fn left_behind(&mut self, status: &Status) {
        if let Some(kept) = &status.kept {
            let age = kept.oldest.map(|at| status.now.duration_since(at));
            if let Some(age) = age.filter(|age| *age > OLD) {
                let (n, s) = (grouped(kept.queued), plural(kept.queued));
                let detail = format!("{n} message{s}, the oldest waits for {}.", span(age));
                let todo = "See which topics are paused, and why. After retry.max_age they become \
                            dead letters.";
                self.add(Level::Warn, "Kept messages are old", detail, todo);
            }
            if kept.dead > 0 {
                let title = if kept.dead == 1 {
                    "1 dead letter".to_owned()
                } else {
                    format!("{} dead letters", grouped(kept.dead))
                };
                let detail = "Kept, but no longer tried: refused, too old, or parked.".to_owned();
                let todo = "tollgate messages list --state dead, then replay or drop them.";
                self.add(Level::Warn, title, detail, todo);
            }
        }
        if status.uncertain_lately > 0 {
            let (n, s) = (grouped(status.uncertain_lately), plural(status.uncertain_lately));
            let detail = format!(
                "{n} call{s} in the last 15 min ended without a clear answer: the message may have \
                 been delivered, and billed, without our knowing."
            );
            let todo = "Subscribers should bear duplicates; retry.unknown = \"park\" avoids them.";
            self.add(Level::Warn, "Some outcomes are unknown", detail, todo);
        }
    }
}

/// Lanes that are paused for one reason.
struct Lanes<'a> {
    topics: usize,
    messages: usize,
    names: Vec<&'a str>,
}

impl<'a> Lanes<'a> {
    fn of(status: &'a Status, bar: Option<AccessDenied>) -> Self {
        let paused = status.paused.iter().filter(|paused| paused.bar == bar);
        Self {
            topics: paused.clone().count(),
            messages: paused.clone().map(|paused| paused.messages).sum(),
            names: paused.take(NAMES).map(|paused| &*paused.topic).collect(),
        }
    }

    fn names(&self) -> String {
        listed(self.names.iter().copied(), self.topics)
    }

    /// How many messages wait, and of which topics.
    fn wait(&self) -> String {
        if self.messages == 0 {
            return String::new();
        }
        let names = self.names();
        format!("{} of {names} {}. ", messages(self.messages), waits(self.messages))
    }
}

/// Whether an error is still what is wrong.
fn lasts(error: &Error, status: &Status) -> bool {
    let age = status.now.duration_since(error.last);
    let delivered_since = status.last_delivered.is_some_and(|delivered| delivered >= error.last);
    age < if delivered_since { NEWS } else { UNTIL_DELIVERED }
}

/// The latest of these errors in a sentence; nothing where there is none.
fn said<'a>(mut errors: impl Iterator<Item = &'a Error>, now: Timestamp) -> String {
    errors.next().map_or_else(String::new, |error| {
        let age = now.duration_since(error.last);
        let seen = if age < JUST_NOW { "just now".to_owned() } else { span(age) + " ago" };
        format!("Code {}, {} since the start, last {seen}. ", error.code, times(error.count))
    })
}

/// The first of so many names.
fn listed<'a>(names: impl Iterator<Item = &'a str>, of: usize) -> String {
    let names: Vec<_> = names.take(NAMES).collect();
    let more = of.saturating_sub(names.len());
    let names = names.join(", ");
    if more == 0 { names } else { format!("{names} and {} more", grouped(more as u64)) }
}

fn of_budget(budget: &Budget) -> String {
    let figure = |n: f64| match &budget.unit {
        // Whole messages, of which there are fewer than a float can count.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Unit::Messages => grouped(n as u64),
        Unit::Money(currency) => format!("{n:.2} {currency}"),
    };
    let unit = if budget.unit == Unit::Messages { " messages" } else { "" };
    format!("{} of {}{unit}", figure(budget.used + budget.reserved), figure(budget.limit))
}

fn limit(ceiling: &Ceiling) -> String {
    ceiling.limit.map_or_else(|| "any number of".to_owned(), |limit| grouped(limit.into()))
}

/// A part of a whole that there may not be.
fn share(part: f64, whole: Option<f64>) -> f64 {
    whole.filter(|whole| *whole > 0.0).map_or(0.0, |whole| part / whole)
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

const fn plural(n: u64) -> &'static str {
    if n == 1 { "" } else { "s" }
}

fn messages(n: usize) -> String {
    format!("{} message{}", grouped(n as u64), plural(n as u64))
}

const fn waits(n: usize) -> &'static str {
    if n == 1 { "waits" } else { "wait" }
}

fn times(n: u64) -> String {
    if n == 1 { "once".to_owned() } else { format!("{} times", grouped(n)) }
}

/// A length of time as one says it.
fn span(length: SignedDuration) -> String {
    let seconds = length.as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests;
