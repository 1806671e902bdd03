//! From an HTTP request to a message and how its caller wants it published.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use percent_encoding::percent_decode_str;
use tokio::time::Instant;

use super::body::{BodyLimits, MAX_BATCH, PAYLOAD_LIMIT, too_large};
use super::callers;
use super::cloud_event::CloudEvent;
use super::key;
use super::prefer::{MAX_WAIT, Prefer};
use super::refusal::{RefusedRequest, invalid};
use super::terms::{AskedTerms, key_at_once};
use crate::callers::Caller;
use crate::config;
use crate::delivery::{Keeping, PublishOptions};
use crate::memory::MemoryBudget;
use crate::message::{
    InstanceId, Lifespan, MAX_SENT_PAYLOAD, Message, MessageId, Payload, PayloadError, Terms,
    Topic, Trace, TraceParent,
};
use crate::server::{Problem, RequestBody, Slug};
use crate::spool::Claim;

/// Longer paths are not decoded: the longest topic with every character escaped is far shorter.
const MAX_PATH: usize = 1_024;

/// A request to publish one message.
pub(super) struct Submission {
    pub(super) message: Message,
    pub(super) options: PublishOptions,
    /// The value of `Preference-Applied`.
    pub(super) applied: Option<String>,
}

/// Reads requests by the configuration's rules.
pub(super) struct RequestReader {
    publish: config::Publish,
    upstream: config::Upstream,
    topics: config::Topics,
    /// Whether there is a spool.
    keeps: bool,
    memory: MemoryBudget,
}

/// The span that a request's `traceparent` header names. Of several headers none is believed.
pub(super) fn trace_parent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut all = headers.get_all("traceparent").iter();
    let (first, second) = (all.next()?, all.next());
    TraceParent::parse(first.to_str().ok().filter(|_| second.is_none())?.trim())
}

impl RequestReader {
    pub(super) fn new(config: &config::Config, memory: MemoryBudget) -> Self {
        Self {
            publish: config.publish.clone(),
            upstream: config.upstream.clone(),
            topics: config.topics.clone(),
            keeps: config.spool.is_some(),
            memory,
        }
    }

    /// Validates a request, whose head had arrived at `start`, completely before anything is done for it.
    pub(super) async fn read(
        &self,
        topic: &str,
        request: Request<RequestBody>,
        caller: Option<&Caller>,
        trace: Option<Trace>,
        start: Instant,
    ) -> Result<Submission, RefusedRequest> {
        if request.uri().query().is_some() {
            return Err(malformed("the path has a query; a \"?\" is not part of any topic").into());
        }
        let (topic, instance) = self.topic(topic)?;
        callers::check(caller, &topic)?;
        let (head, body) = request.into_parts();
        let headers = &head.headers;
        let prefer = Prefer::read(headers);
        let event = CloudEvent::of(headers, self.publish.cloud_events)?;
        let terms = self.terms(AskedTerms::read(headers, start)?, &topic);
        let limits = BodyLimits {
            most: self.max_payload(&topic),
            by: PAYLOAD_LIMIT,
            time: self.publish.body_timeout,
        };
        let mut reservation = self.memory.begin()?;
        let body = limits.read(headers, body, |bytes| reservation.add_body(bytes)).await?;
        let mut identity = None;
        let body = match &event {
            Some(event) => {
                reservation.add_bytes(event.most_bytes(body.len()))?;
                identity = Some(event.identity(&body));
                event.structured(&body)?
            }
            None => body,
        };
        let body = reservation.hold(body);
        let claim = key::claim(headers, caller, &topic, &body).map_err(bad_key)?;
        let of_event = event.filter(|_| self.publish.cloud_event_keys);
        let of_event = of_event
            .zip(identity)
            .map(|(event, identity)| key::of_any_length(&event.key(), caller, &topic, &identity));
        let claim = claim.or(of_event);
        let payload = self.payload(&topic, body)?;
        let (options, applied) = self.options(prefer, claim, &terms)?;
        let (id, caller) = (MessageId::new(), caller.map(|caller| Arc::clone(caller.name())));
        let message = Message { id, instance, topic, payload, caller, trace, terms };
        Ok(Submission { message, options, applied })
    }

    pub(super) fn memory(&self) -> &MemoryBudget {
        &self.memory
    }

    /// The most characters of a payload that a caller has encoded.
    pub(super) fn max_encoded(&self) -> usize {
        self.publish.max_payload.div_ceil(3).saturating_mul(4).min(MAX_SENT_PAYLOAD)
    }

    /// The time limit of a body.
    pub(super) fn body_timeout(&self) -> Duration {
        self.publish.body_timeout
    }

    /// Whether the configuration allows a topic.
    pub(super) fn allows(&self, topic: &Topic) -> bool {
        self.topics.allows(topic)
    }

    /// The instance of this id, if the configuration has it.
    pub(super) fn configured_instance(&self, id: &str) -> Option<InstanceId> {
        let rules = self.upstream.instances.iter().map(|rule| &rule.instance_id);
        let mut all = self.upstream.instance_id.iter().chain(rules);
        all.find(|instance| &***instance == id).cloned()
    }

    /// The most bytes of a body for this topic.
    fn max_payload(&self, topic: &Topic) -> usize {
        self.publish.max_payload.min(self.upstream.encoding_for(topic).max_payload())
    }

    pub(super) fn payload(&self, topic: &Topic, body: Bytes) -> Result<Payload, Problem> {
        let limit = self.publish.max_payload;
        Payload::new(body, self.upstream.encoding_for(topic), limit).map_err(|e| match e {
            PayloadError::TooLarge { limit } => too_large(limit, PAYLOAD_LIMIT),
            PayloadError::NotUtf8 => invalid(
                StatusCode::BAD_REQUEST,
                Slug::InvalidPayload,
                "Body is not text",
                format!("{}. Nothing was sent.", sentence(&e.to_string())),
            ),
        })
    }

    /// The whole body of a request with many messages. It is counted until it is dropped, and each of its
    /// messages besides.
    pub(super) async fn batch(
        &self,
        request: Request<RequestBody>,
    ) -> Result<Bytes, RefusedRequest> {
        let fits = usize::try_from(self.memory.largest()).unwrap_or(usize::MAX);
        let (most, by) = if fits < MAX_BATCH {
            (fits, "runtime.memory")
        } else {
            (MAX_BATCH, "the limit of a batch")
        };
        let limits = BodyLimits { most, by, time: self.publish.body_timeout };
        let mut reservation = self.memory.begin()?;
        let (head, body) = request.into_parts();
        let body = limits.read(&head.headers, body, |bytes| reservation.add_bytes(bytes)).await?;
        Ok(reservation.hold(body))
    }

    /// The payload of one of many messages.
    pub(super) fn line_payload(
        &self,
        topic: &Topic,
        body: Bytes,
    ) -> Result<Payload, RefusedRequest> {
        // One that can never be taken is not asked for again.
        let limit = self.max_payload(topic);
        if body.len() > limit {
            return Err(too_large(limit, PAYLOAD_LIMIT).into());
        }
        let mut reservation = self.memory.begin()?;
        reservation.add_body(body.len())?;
        Ok(self.payload(topic, reservation.hold(body))?)
    }

    /// The terms of a message for this topic.
    pub(super) fn terms(&self, asked: AskedTerms, topic: &Topic) -> Terms {
        asked.terms(topic, &self.topics)
    }

    /// The options that a caller's preferences ask for, and which of these are applied.
    pub(super) fn options(
        &self,
        prefer: Prefer,
        claim: Option<Claim>,
        terms: &Terms,
    ) -> Result<(PublishOptions, Option<String>), Problem> {
        let keeps = self.keeps && terms.lifespan != Lifespan::AtOnce;
        if self.keeps && !keeps && claim.is_some() {
            return Err(key_at_once());
        }
        let wait = prefer.wait.map(|wait| wait.min(MAX_WAIT));
        // Without a spool, nothing can be accepted before its outcome is known.
        let respond_async = prefer.respond_async && keeps;
        let patience = match wait {
            Some(wait) => wait,
            None if respond_async => Duration::ZERO,
            None => self.publish.wait,
        };
        let is_preferred = keeps && (respond_async || patience.is_zero());
        let keep = if is_preferred { Keeping::Preferred } else { Keeping::IfNotDelivered };
        let mut applied = Vec::new();
        if respond_async {
            applied.push("respond-async".to_owned());
        }
        applied.extend(wait.map(|wait| format!("wait={}", wait.as_secs())));
        let applied = (!applied.is_empty()).then(|| applied.join(", "));
        Ok((PublishOptions { patience, keep, claim }, applied))
    }

    /// The topic that a path names.
    fn topic(&self, path: &str) -> Result<(Topic, InstanceId), Problem> {
        if path.len() > MAX_PATH {
            return Err(malformed("the path is far longer than any topic"));
        }
        let complete = |(i, _): (usize, &str)| {
            path.as_bytes().get(i + 1..i + 3).is_some_and(|h| h.iter().all(u8::is_ascii_hexdigit))
        };
        if !path.match_indices('%').all(complete) {
            return Err(malformed(
                "the path has a \"%\" that two hexadecimal digits do not follow",
            ));
        }
        let decoded = percent_decode_str(path)
            .decode_utf8()
            .map_err(|_| malformed("the decoded path is not UTF-8"))?;
        self.place(&decoded)
    }

    /// A topic, and the instance that it belongs to.
    pub(super) fn place(&self, topic: &str) -> Result<(Topic, InstanceId), Problem> {
        let topic = Topic::parse(topic).map_err(|error| malformed(&error.to_string()))?;
        if !self.topics.allows(&topic) {
            return Err(forbidden(format!(
                "topics.allow has no pattern for {topic}. Nothing was sent."
            )));
        }
        match self.upstream.instance_for(&topic) {
            Some(instance) => Ok((topic, instance)),
            None => Err(forbidden(format!(
                "No instance is configured for {topic}: upstream.instances has no rule for it and \
                 there is no upstream.instance_id. Nothing was sent."
            ))),
        }
    }
}

fn malformed(why: &str) -> Problem {
    let detail = format!(
        "{}. Nothing was sent. A topic looks like TopicA, TopicA/sub or \
         TopicA/p2p/GID_x@@@DEVICE.",
        sentence(why)
    );
    invalid(StatusCode::BAD_REQUEST, Slug::MalformedTopic, "Malformed topic", detail)
}

pub(super) fn bad_key(why: &str) -> Problem {
    let detail = format!(
        "{}. Nothing was sent. A key looks like \"8e03978e-40d5-43dd-bc93-6894a57f9324\", with its \
         quotes.",
        sentence(why)
    );
    invalid(StatusCode::BAD_REQUEST, Slug::MalformedKey, "Malformed Idempotency-Key", detail)
}

fn forbidden(detail: String) -> Problem {
    invalid(StatusCode::FORBIDDEN, Slug::ForbiddenTopic, "Forbidden topic", detail)
}

/// With a capital letter.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
