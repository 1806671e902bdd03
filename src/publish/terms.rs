//! `TTL` and `Urgency`, as RFC 8030 has them for pushed messages.

use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};
use tokio::time::Instant;

use super::refusal::invalid;
use crate::config::{TopicRule, Topics};
use crate::message::{Expiry, Lifespan, Terms, Topic, Urgency};
use crate::server::{Problem, Slug};

/// What a request, or a line of one, asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct AskedTerms {
    /// When the head of the request had arrived.
    start: Instant,
    ttl: Option<Duration>,
    urgency: Option<Urgency>,
}

impl AskedTerms {
    /// What the head of a request asks for, which had arrived at `start`.
    ///
    /// # Errors
    /// A header that is not as RFC 8030 has it.
    pub(super) fn read(headers: &HeaderMap, start: Instant) -> Result<Self, Problem> {
        let ttl = single(headers, "ttl").map_err(|why| bad_ttl(&why))?;
        let urgency = single(headers, "urgency").map_err(|why| bad_urgency(&why))?;
        let ttl = ttl.map(|text| {
            seconds(text).ok_or_else(|| bad_ttl("the TTL is not a number of whole seconds"))
        });
        let urgency = urgency.map(|text| {
            Urgency::of(text).ok_or_else(|| bad_urgency("the Urgency is none of these words"))
        });
        Ok(Self { start, ttl: ttl.transpose()?, urgency: urgency.transpose()? })
    }

    /// What a line of the request asks for, or else the request.
    pub(super) fn of_line(self, ttl: Option<u64>, urgency: Option<Urgency>) -> Self {
        let ttl = ttl.map(Duration::from_secs).or(self.ttl);
        Self { ttl, urgency: urgency.or(self.urgency), ..self }
    }

    /// What the request asks for, whatever the topics.
    pub(super) fn of_request(&self) -> Terms {
        self.with_rule(None)
    }

    /// The terms of its message: as asked for, or else as the first rule has it that matches the topic.
    pub(super) fn terms(&self, topic: &Topic, topics: &Topics) -> Terms {
        self.with_rule(topics.rule(topic))
    }

    fn with_rule(&self, rule: Option<&TopicRule>) -> Terms {
        let ttl = self.ttl.or_else(|| rule?.ttl);
        let urgency = self.urgency.or_else(|| rule?.urgency).unwrap_or_default();
        let lifespan = match ttl {
            None => Lifespan::Unlimited,
            Some(Duration::ZERO) => Lifespan::AtOnce,
            Some(ttl) => Lifespan::Until(Expiry::after(self.start, ttl)),
        };
        Terms { lifespan, urgency }
    }
}

/// `1*DIGIT`. More than a number can hold is as good as for ever.
fn seconds(text: &str) -> Option<Duration> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_digits.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

/// The value of a header that may be there once.
fn single<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a str>, String> {
    let mut values = headers.get_all(HeaderName::from_static(name)).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(format!("there are several {name} headers"));
    }
    value.to_str().map(|text| Some(text.trim())).map_err(|_| format!("the {name} is not ASCII"))
}

fn bad_ttl(why: &str) -> Problem {
    let detail = format!(
        "This request's TTL cannot be used: {why}. Nothing was sent. It looks like \"TTL: 30\", in seconds."
    );
    invalid(StatusCode::BAD_REQUEST, Slug::MalformedTtl, "Malformed TTL", detail)
}

fn bad_urgency(why: &str) -> Problem {
    let detail = format!(
        "This request's Urgency cannot be used: {why}. Nothing was sent. It is very-low, low, normal or high."
    );
    invalid(StatusCode::BAD_REQUEST, Slug::MalformedUrgency, "Malformed Urgency", detail)
}

/// A message that is never stored cannot have a key: what holds the key after a crash is the stored message.
pub(super) fn key_at_once() -> Problem {
    let detail = "A message with a TTL of 0 is never stored, and an Idempotency-Key is held by a stored message. \
                  Nothing was sent. Send it without the key, or with a TTL of 1 or more.";
    let title = "Idempotency-Key with a TTL of 0";
    invalid(StatusCode::BAD_REQUEST, Slug::KeyAtOnce, title, detail.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digits_are_seconds() {
        for (text, read) in [
            ("0", Some(0)),
            ("30", Some(30)),
            ("007", Some(7)),
            ("99999999999999999999999999", Some(u64::MAX)),
            ("", None),
            ("+1", None),
            ("-1", None),
            ("1.5", None),
            ("1e3", None),
            ("0x10", None),
            ("1, 2", None),
            ("30s", None),
            ("٣", None),
        ] {
            assert_eq!(seconds(text), read.map(Duration::from_secs), "{text:?}");
        }
    }
}
