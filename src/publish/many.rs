//! Answers `POST /publish`: begins all messages of a request, and answers with a result for each.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use super::batch::{self, Line, LineTerms};
use super::cloud_event;
use super::log::LogContext;
use super::outcome;
use super::prefer::Prefer;
use super::refusal::RefusedRequest;
use super::terms::AskedTerms;
use super::{DRAIN_RETRY, Inner, request, spans, stopping};
use crate::delivery::{Begun, CallOrder};
use crate::message::{SpanContext, Topic, Trace};
use crate::meter::Published;
use crate::server::{Problem, Reply, ReplyBody, RequestBody, Slug, reply};
use crate::traces::{Kind, Span};

/// Batch requests at once: 128 MiB of bodies.
pub(super) const MAX_BATCHES: usize = 16;
/// Results that wait for their client.
const MAX_RESULTS: usize = 16;

/// A request that was read.
struct Batch {
    lines: Vec<Line>,
    /// The value of `Preference-Applied`.
    applied: Option<String>,
    /// Whether the client wants each result as soon as it is known.
    stream: bool,
}

/// A line whose delivery has begun, or that is refused.
struct BegunLine {
    number: usize,
    key: Option<String>,
    begun: Result<(Topic, Begun), RefusedRequest>,
    span: Span,
}

impl Inner {
    pub(super) async fn publish_many(self: Arc<Self>, request: Request<RequestBody>) -> Reply {
        let (trace, mut span) = self.traces.request(request::trace_parent(request.headers()));
        spans::route(&mut span, "/publish");
        let mut context = LogContext::of(&request, "", trace);
        let read = match Arc::clone(&self.batches).try_acquire_owned() {
            Ok(slot) => {
                let read = self.read_batch(request, trace, &mut context).await;
                read.map(|batch| (batch, slot))
            }
            Err(_) => Err(RefusedRequest::new(Published::Full, too_many_batches())),
        };
        let mut reply = match read {
            Ok((batch, slot)) => {
                span.number("messaging.batch.message_count", batch.lines.len());
                Arc::clone(&self).answer_batch(batch, slot, context, span).await
            }
            Err(refusal) => {
                let answered = refusal.answered();
                self.note(None, &answered, Duration::ZERO, &context, span);
                answered.reply
            }
        };
        self.limit_headers(&mut reply);
        reply
    }

    async fn read_batch(
        &self,
        request: Request<RequestBody>,
        trace: Option<Trace>,
        context: &mut LogContext,
    ) -> Result<Batch, RefusedRequest> {
        let start = Instant::now();
        let drains = || RefusedRequest::new(Published::Draining, stopping());
        if self.draining() {
            return Err(drains());
        }
        check(request.headers())?;
        cloud_event::refuse_batch(request.headers())?;
        let caller = self.caller(&request)?;
        context.proven(caller.as_deref());
        let reader = self.reader();
        let prefer = Prefer::read(request.headers());
        let asked = AskedTerms::read(request.headers(), start)?;
        let (_, applied) = reader.options(prefer, None, &asked.of_request())?;
        let body = reader.batch(request).await?;
        let lines = batch::lines(&body)?;
        if self.draining() {
            return Err(drains());
        }
        let terms = LineTerms { caller: caller.as_deref(), prefer, asked, trace };
        let read = |(number, line): &(usize, Bytes)| batch::read(&reader, *number, line, terms);
        let stream = prefer.stream.then(|| "stream".to_owned());
        let applied: Vec<_> = applied.into_iter().chain(stream).collect();
        Ok(Batch {
            lines: lines.iter().map(read).collect(),
            applied: (!applied.is_empty()).then(|| applied.join(", ")),
            stream: prefer.stream,
        })
    }

    /// Begins all lines in their order, so that the first of two with the same key wins. The results have
    /// the same order. `slot` is held until the last of them is sent.
    async fn answer_batch(
        self: Arc<Self>,
        batch: Batch,
        slot: OwnedSemaphorePermit,
        context: LogContext,
        mut span: Span,
    ) -> Reply {
        let start = Instant::now();
        let mut order = CallOrder::default();
        let of = span.context();
        let begin = |line| self.begin(line, of, &mut order);
        let lines: Vec<_> = batch.lines.into_iter().map(begin).collect();
        let mut reply = if batch.stream {
            let (to, results) = mpsc::channel(MAX_RESULTS);
            // A task of its own: what becomes of a message is counted even if the client hangs up.
            tokio::spawn(async move {
                let _slot = slot;
                for line in lines {
                    let (_, result) = self.result(line, start, &context).await;
                    // The client may have hung up.
                    drop(to.send(result.into()).await);
                }
                span.number("http.response.status_code", StatusCode::MULTI_STATUS.as_u16());
                span.end();
            });
            let mut reply = reply(StatusCode::MULTI_STATUS, batch::CONTENT_TYPE, Bytes::new());
            *reply.body_mut() = ReplyBody::Parts(results);
            reply
        } else {
            let reply = self.results(lines, start, &context, slot).await;
            span.number("http.response.status_code", reply.status().as_u16());
            span.end();
            reply
        };
        if let Some(value) = batch.applied.and_then(|a| HeaderValue::try_from(a).ok()) {
            reply.headers_mut().insert("preference-applied", value);
        }
        reply
    }

    /// `of`: the span of the request. Each message has one of its own in it.
    fn begin(
        &self,
        Line { number, key, message }: Line,
        of: Option<SpanContext>,
        order: &mut CallOrder,
    ) -> BegunLine {
        let mut span = self.traces.child(of, Kind::Producer);
        span.name("publish");
        let begun = message.map(|(mut message, options)| {
            if let Some(SpanContext { trace, span }) = span.context() {
                message.trace = Some(Trace { id: trace, span: Some(span) });
            }
            spans::message(&mut span, &message);
            let topic = message.topic.clone();
            (topic, self.delivery.begin(message, options, order))
        });
        BegunLine { number, key, begun, span }
    }

    /// All results at once. `slot` is held until the client has read them.
    async fn results(
        &self,
        lines: Vec<BegunLine>,
        start: Instant,
        context: &LogContext,
        slot: OwnedSemaphorePermit,
    ) -> Reply {
        let (mut body, mut statuses, mut wait) = (Vec::new(), Vec::new(), None);
        for line in lines {
            let (alone, result) = self.result(line, start, context).await;
            statuses.push(alone.status());
            let asked = alone.headers().get(RETRY_AFTER).and_then(|wait| wait.to_str().ok());
            wait = wait.max(asked.and_then(|wait| wait.parse::<u64>().ok()));
            body.extend(result);
        }
        let status = batch::status(&statuses);
        let body = Bytes::from_owner(Results { body, _slot: slot });
        let mut reply = reply(status, batch::CONTENT_TYPE, body);
        let waits = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if let Some(wait) = wait.filter(|_| waits.contains(&status)) {
            reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait));
        }
        reply
    }

    /// The reply that a line would get alone, and its result.
    async fn result(
        &self,
        line: BegunLine,
        start: Instant,
        context: &LogContext,
    ) -> (Reply, Vec<u8>) {
        let BegunLine { number, key, begun, span } = line;
        let (topic, mut answered) = match begun {
            Ok((topic, begun)) => {
                let outcome = begun.outcome().await;
                (Some(topic), outcome::answer(outcome, self.durability(), None))
            }
            Err(refusal) => (None, refusal.answered()),
        };
        self.note(topic.as_ref(), &answered, start.elapsed(), context, span);
        let alone = std::mem::take(answered.reply.body_mut());
        // It is whole in memory: collecting neither waits nor fails.
        let alone = alone.collect().await.map(http_body_util::Collected::to_bytes);
        let result = batch::result(number, key, &answered.reply, &alone.unwrap_or_default());
        (answered.reply, result)
    }
}

/// The results of a batch, which counts among the batches until they are read.
struct Results {
    body: Vec<u8>,
    _slot: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Results {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// What a request with many messages may not have in its head.
fn check(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.contains_key("idempotency-key") {
        return Err(batch::whole_key());
    }
    if batch::is_lines(headers) {
        return Ok(());
    }
    let detail = format!("POST /publish takes {}: one message per line.", batch::CONTENT_TYPE);
    let (status, slug) = (StatusCode::UNSUPPORTED_MEDIA_TYPE, Slug::UnsupportedMediaType);
    Err(Problem::new(status, slug, "Wrong content type", detail).outcome("not-sent"))
}

fn too_many_batches() -> Problem {
    let detail = format!(
        "{MAX_BATCHES} batches are already being answered, which is the limit. Nothing was sent; send \
         this one again."
    );
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, Slug::Full, "Too many at once", detail)
        .outcome("not-sent")
        .retry_after(DRAIN_RETRY)
}
