//! What is wrong now and what an operator can do, derived from the [`SidecarStatus`]; worst first.

mod ceilings;
mod configuration;
mod connections;
mod held;
mod memory;
mod spool;

use std::borrow::Cow;

use jiff::{SignedDuration, Timestamp};

use super::view::{
    BudgetView, CallError, CeilingView, Concern, Level, OnExceed, SidecarStatus, Unit,
};
use crate::answer::{self, AccessDenied, Verdict};
use crate::ceiling::Mode;
use crate::config::grouped;

/// The kinds of the concern that tollgate stops, and of that of sidecars that get too few permits.
const STOPPING: &str = "stopping";
const STARVED: &str = "starved";
/// What only a person sees, and at once: a stop has log lines of its own, and the members of a fleet are read from
/// Redis only while they are looked at.
pub(super) const UNLOGGED: [&str; 2] = [STOPPING, STARVED];
/// For how long an error is a concern: while other calls succeed, and while none does.
const AMONG_SUCCESSES: SignedDuration = SignedDuration::from_secs(15);
const WITHOUT_SUCCESS: SignedDuration = SignedDuration::from_mins(15);
/// A clock that is off by so many seconds is a concern, as for the alert `TollgateClockSkew`; and by so
/// many the provider refuses calls.
const SKEW: f64 = 60.0;
const REFUSED_SKEW: f64 = 15.0 * 60.0;
/// A key is a concern when so little of its life is left, as for the alert `TollgateKeyExpiresSoon`: it
/// should have been renewed at half of its life, or with 15 minutes left.
const KEY_ENDS: SignedDuration = SignedDuration::from_mins(5);
/// From this part on, a ceiling is near; from `NEARLY` on, a budget, the plan or the spool is nearly
/// used up.
const NEAR_CEILING: f64 = 0.95;
const NEARLY: f64 = 0.8;
/// A wait for a permit, in seconds, that is longer than the spacing of calls.
const QUEUE: f64 = 0.1;
/// Below this, "just now" reads better than "0 s ago".
const JUST_NOW: SignedDuration = SignedDuration::from_secs(2);
/// The most names in one sentence.
const NAMES: usize = 3;

/// Everything that is wrong. `uncertain`: messages of the last 15 minutes that may have been billed.
pub(super) fn of(status: &SidecarStatus, uncertain: u64) -> Vec<Concern> {
    let mut concerns = Concerns::default();
    concerns.stopping(status);
    concerns.key(status);
    concerns.access(status);
    concerns.spool(status);
    concerns.held(status);
    concerns.failing(status);
    concerns.blocked(status);
    concerns.fleet(status);
    concerns.ceilings(status);
    concerns.budgets(status);
    concerns.plan(status);
    concerns.clock(status);
    concerns.ledger(status);
    concerns.connections(status);
    concerns.memory(status);
    concerns.idempotency_keys(status);
    concerns.backlog(status);
    concerns.uncertain(uncertain);
    concerns.configuration(status);
    concerns.0.sort_by_key(|concern| concern.level);
    concerns.0
}

#[derive(Default)]
struct Concerns(Vec<Concern>);

impl Concerns {
    /// `kind` stays while it lasts, whatever the title says.
    fn add(
        &mut self,
        kind: impl Into<Cow<'static, str>>,
        level: Level,
        title: impl Into<String>,
        detail: String,
        remedy: &str,
    ) {
        let (kind, title, remedy) = (kind.into(), title.into(), remedy.to_owned());
        let (since, last_seen) = (None, None);
        self.0.push(Concern { kind, level, title, detail, remedy, since, last_seen });
    }

    fn stopping(&mut self, status: &SidecarStatus) {
        if status.draining {
            let detail = if status.accepting {
                "tollgate still accepts messages until drain.accept_for has passed. Then it refuses new \
                 messages (503) and finishes those in progress."
            } else {
                "tollgate refuses new messages (503) and finishes those in progress."
            };
            self.add(
                STOPPING,
                Level::Bad,
                "tollgate is stopping",
                detail.to_owned(),
                "Nothing, if the stop is expected. Otherwise find out what sent SIGTERM.",
            );
        }
    }

    fn key(&mut self, status: &SidecarStatus) {
        const SOURCE: &str = "Check the key's source (section [keys] of the configuration). A new key \
                              is used without a restart, except one from the environment.";
        let key = &status.key;
        let error = key.error.as_deref();
        let why = error.map(|error| format!(" Its source fails: {error}.")).unwrap_or_default();
        if key.loaded.is_none() {
            self.add(
                "no_key",
                Level::Bad,
                "No access key",
                format!("Nothing can be sent.{why}"),
                SOURCE,
            );
            return;
        }
        if let Some(at) = key.expires {
            let left = at.duration_since(status.now);
            if left <= SignedDuration::ZERO {
                let detail = format!("It expired {} ago. Nothing can be sent.{why}", span(-left));
                return self.add(
                    "key_expired",
                    Level::Bad,
                    "The access key has expired",
                    detail,
                    SOURCE,
                );
            }
            // A key that is valid for minutes only is renewed with minutes left.
            let life = key.loaded.map_or(SignedDuration::MAX, |from| at.duration_since(from));
            if left < KEY_ENDS.min(life / 5) {
                let level = if error.is_some() { Level::Bad } else { Level::Warn };
                let detail = format!("It expires in {} and was not renewed yet.{why}", span(left));
                return self.add(
                    "key_expires",
                    level,
                    "The access key expires soon",
                    detail,
                    SOURCE,
                );
            }
        }
        if let Some(id) = &key.refused {
            let detail = format!(
                "The provider refuses the new key {id}. tollgate goes on with the one before, as long as \
                 that works."
            );
            let remedy = "Mount a key that works. Do not disable the old one before.";
            self.add("new_key", Level::Warn, "The new access key is refused", detail, remedy);
        }
        if let Some(error) = error {
            let detail = format!("The key in use still works. Its source fails: {error}.");
            self.add("key_source", Level::Warn, "The access key cannot be renewed", detail, SOURCE);
        }
    }

    fn access(&mut self, status: &SidecarStatus) {
        for denied in AccessDenied::ALL {
            let means = |error: &&CallError| {
                answer::meaning(&error.code) == Some(Verdict::Denied(denied))
                    && persists(error, status)
            };
            let lanes = Lanes::of(status, Some(denied));
            let latest = latest(status.errors.iter().filter(means), status.now);
            // A new key that was only tried harms no caller.
            let is_of_trial = status.key.refused.is_some();
            if lanes.topics == 0 && (latest.is_empty() || is_of_trial) {
                continue;
            }
            let title = denied.explanation().trim_end_matches('.');
            // Another key or a corrected time has let its messages pass.
            let last = status.errors.iter().filter(means).map(|error| error.last).max();
            let passes = matches!(denied, AccessDenied::Key | AccessDenied::Clock);
            let has_passed = passes && lanes.topics == 0 && status.last_delivered >= last;
            let level = if has_passed { Level::Warn } else { Level::Bad };
            let detail = format!(
                "{latest}{}Callers get 502; with Prefer: respond-async their messages are stored (202).",
                lanes.wait()
            );
            self.add(format!("access_{}", denied.as_str()), level, title, detail, denied.remedy());
        }
    }

    fn failing(&mut self, status: &SidecarStatus) {
        const WAIT: &str = "Nothing yet: delivery resumes by itself. If it persists, see the provider's \
                            status page, and check the network to it.";
        let fails = |error: &&CallError| {
            let meaning = answer::meaning(&error.code);
            let fails = matches!(meaning, None | Some(Verdict::Failed | Verdict::Unknown));
            fails && persists(error, status)
        };
        let lanes = Lanes::of(status, None);
        let errors = status.errors.iter().filter(fails);
        let last = errors.clone().next();
        let explanation = last.map(|error| format!("{} ", error.explanation)).unwrap_or_default();
        let latest = explanation + &latest(errors, status.now);
        if lanes.topics > 0 {
            let detail = format!(
                "{latest}{} {}. tollgate probes with one at a time; new messages are stored (202).",
                messages(lanes.messages),
                waits(lanes.messages),
            );
            return self.add(
                "delivery",
                Level::Bad,
                format!("Delivery fails for {}", lanes.names()),
                detail,
                WAIT,
            );
        }
        // A single failure among many successes is no concern.
        let since = |error: &CallError, delivered| error.last.duration_since(delivered) > JUST_NOW;
        let all_fail = |error: &&CallError| {
            status.last_delivered.is_none_or(|delivered| since(error, delivered))
        };
        if let Some(error) = last.filter(all_fail) {
            let detail = format!("{latest}No message was delivered since.");
            // One call of a service that sends seldom may fail for any reason.
            let level = if status.failed_since_delivered > 1 { Level::Bad } else { Level::Warn };
            self.add("no_delivery", level, "Nothing is delivered", detail, &error.remedy);
        }
    }

    fn blocked(&mut self, status: &SidecarStatus) {
        let (blocked, all) = (status.blocked.len(), status.egress.len());
        if blocked > 0 {
            let level = if blocked >= all { Level::Bad } else { Level::Warn };
            let which = listed(status.blocked.iter().map(String::as_str), blocked);
            let detail = format!(
                "{blocked} of {all} ({which}). tollgate sends nothing from each of them for 5 min, then \
                 probes with one call."
            );
            let remedy = "Check that no other client sends from these addresses, check \
                          ceilings.egress_ip, and ask the provider to lift the block.";
            self.add("blocked", level, "Egress addresses are probably blocked", detail, remedy);
        }
    }

    fn fleet(&mut self, status: &SidecarStatus) {
        const REDIS: &str = "Check Redis (fleet.url) and the network to it; the log has its errors. \
                             tollgate reconnects by itself.";
        let Some(fleet) = &status.fleet else { return };
        match fleet.mode {
            Mode::Closed => {
                let detail = "Redis does not answer, and this sidecar has no permit left. Nothing is \
                              sent: new messages are stored, or refused.";
                self.add("redis", Level::Bad, "Cut off from the fleet", detail.to_owned(), REDIS);
            }
            Mode::CutOff => {
                let detail = "This sidecar uses the permits that it has leased, for less than 30 s, and \
                              then sends nothing.";
                self.add("redis", Level::Warn, "Redis does not answer", detail.to_owned(), REDIS);
            }
            Mode::Alone | Mode::Shared if fleet.opens_in_seconds > 0.0 => {
                let detail = format!(
                    "This Redis is new or has lost its data. For {:.0} s more tollgate uses only permits \
                     that sidecars have given back to it.",
                    fleet.opens_in_seconds.ceil()
                );
                let remedy = "Nothing: it ends by itself. If it happens again, find out why Redis \
                              restarts.";
                self.add(
                    "redis_new",
                    Level::Warn,
                    "Redis is learning which permits are in use",
                    detail,
                    remedy,
                );
            }
            Mode::Alone | Mode::Shared => {}
        }
        let starved: Vec<_> = fleet.members.iter().filter(|member| member.starved).collect();
        if !starved.is_empty() {
            let names = listed(starved.iter().map(|member| &*member.name), starved.len());
            let detail = format!(
                "{} of {} sidecars ({names}) have messages that wait for more than 1 s, and less than \
                 half of an equal share.",
                starved.len(),
                fleet.size.max(starved.len())
            );
            let remedy = "Check whether Redis is slow for them (their CPU, the network), and set \
                          fleet.expected_sidecars to the number of sidecars.";
            self.add(STARVED, Level::Warn, "Sidecars get too few permits", detail, remedy);
        }
    }

    fn ledger(&mut self, status: &SidecarStatus) {
        let Some(error) = &status.ledger_failure else { return };
        self.add(
            "ledger",
            Level::Warn,
            "The ledger cannot be written",
            format!("Messages are counted in memory only. The disk's error: {error}."),
            "Check the disk of spool.path. tollgate retries by itself.",
        );
    }

    fn budgets(&mut self, status: &SidecarStatus) {
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
            let then =
                if refuses { "messages over it are refused" } else { "no message is refused" };
            let left = span(budget.resets_at.duration_since(status.now));
            let detail = format!("{}; {then}. It resets in {left}.", of_budget(budget));
            let remedy =
                "Find the topic that costs most; raise the budget if this spend is expected.";
            self.add(format!("budget {}", budget.name), level, title, detail, remedy);
        }
    }

    fn plan(&mut self, status: &SidecarStatus) {
        let Some(plan) = status.plan_tps else { return };
        let used = share(status.tps_peak as f64, Some(plan.into()));
        if used >= NEARLY {
            let title = if used > 1.0 { "Over the bought TPS" } else { "Near the bought TPS" };
            let detail = format!(
                "The busiest second of this minute had {} messages, {} of the {} that were bought.",
                grouped(status.tps_peak),
                percent(used),
                grouped(plan.into()),
            );
            let remedy = "Buy a larger instance before the provider throttles, or publish less.";
            self.add("plan", Level::Warn, title, detail, remedy);
        }
    }

    fn clock(&mut self, status: &SidecarStatus) {
        let skew = status.clock_skew_seconds.abs();
        if skew > SKEW {
            let refused = skew >= REFUSED_SKEW;
            let level = if refused { Level::Bad } else { Level::Warn };
            // The skew of a clock fits into an integer by far.
            let by = span(SignedDuration::try_from_secs_f64(skew).unwrap_or(SignedDuration::MAX));
            let side = if status.clock_skew_seconds > 0.0 { "behind" } else { "ahead of" };
            let detail = format!(
                "It is {by} {side} the provider's, which refuses calls when it is off by 15 min."
            );
            let remedy = AccessDenied::Clock.remedy();
            self.add("clock", level, "This machine's clock is off", detail, remedy);
        }
    }

    fn uncertain(&mut self, messages: u64) {
        if messages > 0 {
            let (n, s) = (grouped(messages), plural(messages));
            let detail = format!(
                "{n} call{s} of the last 15 min ended without a clear answer. The message may have been \
                 delivered and billed."
            );
            let remedy = "Let subscribers tolerate duplicates, or avoid them with retry.unknown = \
                          \"park\".";
            self.add("unknown", Level::Warn, "Some outcomes are unknown", detail, remedy);
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
    fn of(status: &'a SidecarStatus, denied: Option<AccessDenied>) -> Self {
        let paused = status.paused.iter().filter(|paused| paused.denied == denied);
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

/// Whether an error is still a concern.
fn persists(error: &CallError, status: &SidecarStatus) -> bool {
    let age = status.now.duration_since(error.last);
    let delivered_since = status.last_delivered.is_some_and(|delivered| delivered >= error.last);
    age < if delivered_since { AMONG_SUCCESSES } else { WITHOUT_SUCCESS }
}

/// The latest of these errors in a sentence; nothing where there is none.
fn latest<'a>(mut errors: impl Iterator<Item = &'a CallError>, now: Timestamp) -> String {
    errors.next().map_or_else(String::new, |error| {
        let age = now.duration_since(error.last);
        let seen = if age < JUST_NOW { "just now".to_owned() } else { span(age) + " ago" };
        let id = error.request_id.as_deref().map(|id| format!(", RequestId {id}"));
        let id = id.unwrap_or_default();
        format!("Code {}, {} since the start, last {seen}{id}. ", error.code, times(error.count))
    })
}

/// The first of these names, and how many more there are of `of`.
fn listed<'a>(names: impl Iterator<Item = &'a str>, of: usize) -> String {
    let names: Vec<_> = names.take(NAMES).collect();
    let more = of.saturating_sub(names.len());
    let names = names.join(", ");
    if more == 0 { names } else { format!("{names} and {} more", grouped(more as u64)) }
}

fn of_budget(budget: &BudgetView) -> String {
    let figure = |n: f64| match &budget.unit {
        // Whole messages, of which there are fewer than a float can count.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Unit::Messages => grouped(n as u64),
        Unit::Money(currency) => format!("{n:.2} {currency}"),
    };
    let unit = if budget.unit == Unit::Messages { " messages" } else { "" };
    format!("{} of {}{unit}", figure(budget.used + budget.reserved), figure(budget.limit))
}

fn limit(ceiling: &CeilingView) -> String {
    ceiling.limit.map_or_else(|| "any number of".to_owned(), |limit| grouped(limit.into()))
}

/// A part of a whole; 0 where there is no whole.
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

/// A length of time in its largest useful unit.
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
