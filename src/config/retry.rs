//! `[retry]`: what happens to kept messages that were not delivered.

use std::time::Duration;

use figment::value::Value;

use super::checks::{HOUR, SHORTEST, pattern};
use super::error::ValueError;
use super::parse::{Raw, Scalar};
use super::read::{Reader, choice, duration, list, value, whole};
use super::table::section;
use crate::answer::{Codes, Verdict};
use crate::message::{Topic, TopicPattern};

/// `[retry]`: what happens to kept messages that were not delivered.
#[derive(Debug, Clone)]
pub struct Retry {
    /// The most messages that are tried together.
    pub batch: usize,
    /// Longest wait before the second try; doubles with each.
    pub base: Duration,
    /// Where the doubling ends.
    pub cap: Duration,
    /// Older messages become dead letters.
    pub max_age: Duration,
    /// Dead letters that ended longer ago are dropped.
    pub keep_dead: Duration,
    /// After a call whose outcome is unknown, the most calls more whose outcome is unknown.
    pub unknown_tries: u32,
    /// Topics whose messages are not tried again where the outcome is unknown.
    pub park: Vec<TopicPattern>,
    /// Provider codes that mean something else than the table says.
    pub codes: Codes,
}

impl Retry {
    /// Whether a message may be delivered twice rather than never.
    pub fn may_repeat(&self, topic: &Topic) -> bool {
        !self.park.iter().any(|pattern| pattern.matches(topic))
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Unknown {
    Retry,
    Park,
}

section! {
    pub(super) struct RetryRows [retry] {
        /// What happens to stored messages that were not delivered. Messages of one instance and parent
        /// topic fail and recover together: after five different messages in a row have failed, tollgate
        /// pauses the topic and probes with one message. When that passes, the others follow in groups that
        /// double, up to this many.
        batch: usize = 100, whole(1..=10_000);

        /// The wait before a retry: a random time up to `base`, doubled after each failure, up to `cap`;
        /// longer if the provider asks for it.
        base: Duration = "200ms", duration(SHORTEST..=HOUR);
        cap: Duration = "30s", duration(SHORTEST..=HOUR);

        /// Older messages become dead letters: stored, and not retried.
        max_age: Duration = "24h", duration(Duration::from_secs(1)..=HOUR * 24 * 30);

        /// How long a dead letter is kept for an operator to replay. Then tollgate drops it, and records
        /// that in the audit log. Dead letters beyond half of the spool are dropped sooner, the oldest
        /// first, if a new message needs their room (spool.max_bytes).
        keep_dead: Duration = "168h", duration(Duration::from_mins(1)..=HOUR * 24 * 365);

        /// What tollgate does when it is unknown whether a call arrived: "retry" sends the message again
        /// (at least once; tollgate_uncertain_messages_total counts it); "park" makes it a dead letter (at
        /// most once).
        unknown: Unknown = "retry", choice(&[("retry", Unknown::Retry), ("park", Unknown::Park)]);

        /// With "retry": how many further calls with an unknown outcome a message may have before it
        /// becomes a dead letter of reason `unknown`. A 2xx answer that cannot be read counts. Calls that
        /// certainly failed do not count; a replay starts again at 0.
        unknown_tries: u32 = 2, whole(0..=1_000);

        /// Topics whose messages become dead letters when the outcome is unknown, also with unknown =
        /// "retry". Such as "Payment/*".
        park: Vec<TopicPattern> = [], list(Scalar::Refused, pattern);

        /// What a provider code means for you: "retry", "throttled", "unknown" or "refused", as in {
        /// SomeCode = "retry" }. These rules come before the header x-acs-retry-after; without a rule that
        /// header makes any error "throttled". A "throttled" message waits as long as that header asks.
        /// "tollgate check" shows the whole order.
        codes: Codes = {}, value(codes);
    }
    check base_within_cap(base, cap);
}

fn base_within_cap(r: &mut Reader<'_>, base: Option<&Duration>, cap: Option<&Duration>) {
    r.not_longer(("retry.base", base), ("retry.cap", cap), "write a shorter one");
}

pub(super) fn retry(r: &mut Reader<'_>) -> Option<Retry> {
    let rows = RetryRows::read(r)?;
    Some(Retry {
        batch: rows.batch,
        base: rows.base,
        cap: rows.cap,
        max_age: rows.max_age,
        keep_dead: rows.keep_dead,
        unknown_tries: rows.unknown_tries,
        park: match rows.unknown {
            Unknown::Retry => rows.park,
            Unknown::Park => vec![TopicPattern::new("*")],
        },
        codes: rows.codes,
    })
}

/// `{ SomeCode = "retry" }`, or `SomeCode=retry, …` outside a file: what codes are to mean.
fn codes(raw: &Raw) -> Result<Codes, ValueError> {
    const REMEDY: &str =
        "write { SomeCode = \"retry\" }, or \"throttled\", \"unknown\" or \"refused\"";
    let wrong = || ValueError::new("does not say what codes mean", REMEDY);
    let rule = |code: &str, means: &str| {
        let means = match means.trim() {
            "retry" => Verdict::Failed,
            "throttled" => Verdict::Throttled { retry_after: None },
            "unknown" => Verdict::Unknown,
            "refused" => Verdict::Refused,
            _ => return Err(wrong()),
        };
        let code = code.trim();
        let plain = !code.is_empty() && code.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
        if plain { Ok((code.into(), means)) } else { Err(wrong()) }
    };
    if let Value::Dict(_, codes) = &raw.value {
        let rules = codes.iter().map(|(code, means)| rule(code, means.as_str().ok_or_else(wrong)?));
        return Ok(Codes::new(rules.collect::<Result<_, _>>()?));
    }
    let text = raw.text()?.trim().trim_start_matches('{').trim_end_matches('}');
    let rules = text.split(',').filter(|rule| !rule.trim().is_empty());
    let bare = |text: &str| text.trim().trim_matches('"').to_owned();
    let rules = rules.map(|text| {
        let (code, means) = text.split_once('=').ok_or_else(wrong)?;
        rule(&bare(code), &bare(means))
    });
    Ok(Codes::new(rules.collect::<Result<_, _>>()?))
}
