//! The HTTP API for callers: `POST /publish/<topic>`, `POST /publish`, `GET /messages/<Id>`, `GET /healthz`,
//! `GET /openapi.json`.
//!
//! `request` turns a request into a message and its options, `outcome` an outcome into a reply; both
//! only here.

mod answered;
mod batch;
mod body;
mod callers;
mod cloud_event;
mod key;
mod log;
mod many;
mod outcome;
mod over_budget;
mod prefer;
mod rate_limit;
mod reads;
mod receipts;
mod refusal;
mod request;
mod sdk;
mod spans;
mod terms;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::callers::Callers;
use crate::ceiling::Ceiling;
use crate::config;
use crate::delivery::Delivery;
use crate::log_limiter::LogLimiter;
use crate::memory::MemoryBudget;
use crate::message::Topic;
use crate::meter::{Meter, Published};
use crate::passthrough::Passthrough;
use crate::server::{Problem, Reply, RequestBody, Slug};
use crate::spool::{Durability, Spool};
use crate::traces::{Span, Traces};
use crate::upstream::HttpUpstream;
use answered::Answered;
use reads::ReadRequest;
use refusal::RefusedRequest;
use request::{RequestReader, Submission};

/// `Retry-After` of a stopping sidecar: another takes its place soon.
const DRAIN_RETRY: Duration = Duration::from_secs(1);

/// The HTTP API for callers. Cheap to clone.
#[derive(Clone)]
pub struct PublishService {
    inner: Arc<Inner>,
}

struct Inner {
    /// Reads requests by the current configuration; replaced by a reload.
    reader: RwLock<Arc<RequestReader>>,
    memory: MemoryBudget,
    callers: Callers,
    sdk: config::Sdk,
    ratelimit_headers: bool,
    delivery: Delivery<HttpUpstream>,
    passthrough: Passthrough,
    ceiling: Ceiling,
    meter: Meter,
    traces: Traces,
    draining: Arc<AtomicBool>,
    failure_log: log::FailureLog,
    /// Of callers that are refused.
    refused_log: LogLimiter,
    /// A batch has its whole body in memory, so their number is limited.
    batches: Arc<Semaphore>,
}

/// What the service works with.
pub struct PublishParts {
    /// Takes messages.
    pub delivery: Delivery<HttpUpstream>,
    /// Takes calls of other operations.
    pub passthrough: Passthrough,
    /// What the answers say of the ceilings.
    pub ceiling: Ceiling,
    /// Counts requests.
    pub meter: Meter,
    /// Makes spans.
    pub traces: Traces,
    /// Once set, messages are refused.
    pub draining: Arc<AtomicBool>,
    /// For bodies.
    pub memory: MemoryBudget,
    /// Who may publish.
    pub callers: Callers,
}

impl PublishService {
    /// Answers callers with these parts.
    pub fn new(config: &config::Config, parts: PublishParts) -> Self {
        let PublishParts {
            delivery,
            passthrough,
            ceiling,
            meter,
            traces,
            draining,
            memory,
            callers,
        } = parts;
        Self {
            inner: Arc::new(Inner {
                reader: RwLock::new(Arc::new(RequestReader::new(config, memory.clone()))),
                memory,
                callers,
                sdk: config.sdk.clone(),
                ratelimit_headers: config.publish.ratelimit_headers,
                delivery,
                passthrough,
                ceiling,
                meter,
                traces,
                draining,
                failure_log: log::FailureLog::default(),
                refused_log: LogLimiter::new(callers::MAX_LINES),
                batches: Arc::new(Semaphore::new(many::MAX_BATCHES)),
            }),
        }
    }

    /// Reads requests by this configuration from now on.
    pub fn reload(&self, config: &config::Config) {
        let reader = Arc::new(RequestReader::new(config, self.inner.memory.clone()));
        *self.inner.reader.write().unwrap_or_else(PoisonError::into_inner) = reader;
    }

    /// Whether calls of the provider's SDKs are answered beside other requests.
    pub fn takes_sdk_calls(&self) -> bool {
        self.inner.sdk.enabled && self.inner.sdk.listen.is_empty()
    }

    /// Answers one call of a provider's SDK, at an address of its own.
    pub async fn answer_sdk(self, request: Request<RequestBody>) -> Result<Reply, Infallible> {
        Ok(self.inner.sdk_call(request).await)
    }

    /// Answers one request.
    pub async fn answer(self, request: Request<RequestBody>) -> Result<Reply, Infallible> {
        if request.uri().path() == "/" && self.takes_sdk_calls() {
            return Ok(self.inner.sdk_call(request).await);
        }
        if let Some(read) = ReadRequest::of(&request) {
            if read.needs_caller()
                && let Err(refused) = self.inner.caller(&request)
            {
                return Ok(refused.answered().reply);
            }
            return Ok(self.inner.read(read).await);
        }
        let path = request.uri().path();
        if path == "/publish" {
            if request.method() != Method::POST {
                return Ok(wrong_method(request.method(), "POST publishes many", "POST"));
            }
            return Ok(self.inner.publish_many(request).await);
        }
        let Some(topic) = path.strip_prefix("/publish/") else {
            let paths = "POST /publish/<topic>, POST /publish, GET /messages/<Id>, GET /healthz and GET /openapi.json";
            return Ok(Problem::not_found(path, paths).outcome("not-sent").into_response());
        };
        if request.method() != Method::POST {
            return Ok(wrong_method(request.method(), "POST publishes one", "POST"));
        }
        let topic = topic.to_owned();
        Ok(self.inner.publish(&topic, request).await)
    }
}

impl Inner {
    async fn publish(&self, topic: &str, request: Request<RequestBody>) -> Reply {
        let start = Instant::now();
        let (trace, mut span) = self.traces.request(request::trace_parent(request.headers()));
        spans::route(&mut span, "/publish/{topic}");
        let mut context = log::LogContext::of(&request, topic, trace);
        let mut parent = None;
        let submission = if self.draining() {
            Err(RefusedRequest::new(Published::Draining, stopping()))
        } else {
            match self.caller(&request) {
                Ok(caller) => {
                    context.proven(caller.as_deref());
                    let caller = caller.as_deref();
                    self.reader().read(topic, request, caller, trace, start).await
                }
                Err(refused) => Err(refused),
            }
        };
        let answered = match submission {
            // Again: reading a slow body may have taken long.
            Ok(_) if self.draining() => Answered::problem(Published::Draining, stopping()),
            Ok(Submission { message, options, applied }) => {
                spans::message(&mut span, &message);
                parent = Some(message.topic.clone());
                let outcome = self.delivery.publish(message, options).await;
                outcome::answer(outcome, self.durability(), applied)
            }
            Err(refusal) => refusal.answered(),
        };
        self.note(parent.as_ref(), &answered, start.elapsed(), &context, span);
        let mut reply = answered.reply;
        self.limit_headers(&mut reply);
        reply
    }

    /// Counts and logs one answer, and ends its span.
    fn note(
        &self,
        topic: Option<&Topic>,
        answered: &Answered,
        took: Duration,
        context: &log::LogContext,
        span: Span,
    ) {
        let parent = topic.map(Topic::parent);
        self.meter.published(parent, context.caller(), answered.published, took);
        if let Some(span) = span.context() {
            self.meter.sampled(answered.published, took, span);
        }
        spans::answered(span, answered, context);
        if let Some(failure) = &answered.failure {
            self.failure_log.failed(context, answered.published, failure);
        }
    }

    fn reader(&self) -> Arc<RequestReader> {
        Arc::clone(&self.reader.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn durability(&self) -> Durability {
        self.delivery.spool().map(Spool::durability).unwrap_or_default()
    }

    fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Adds the ceilings to an answer, or takes all limits away, as the configuration has it.
    fn limit_headers(&self, reply: &mut Reply) {
        if self.ratelimit_headers {
            rate_limit::add(reply.headers_mut(), &self.ceiling);
        } else {
            rate_limit::remove(reply.headers_mut());
        }
    }
}

fn wrong_method(method: &Method, instead: &str, allowed: &'static str) -> Reply {
    let detail = format!("{method} is not for messages; {instead}.");
    let status = StatusCode::METHOD_NOT_ALLOWED;
    Problem::new(status, Slug::MethodNotAllowed, "Wrong method", detail)
        .outcome("not-sent")
        .allow(allowed)
        .into_response()
}

fn stopping() -> Problem {
    let detail = "This sidecar is stopping and takes no more messages. The message was not \
                  accepted; send it again.";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, Slug::Draining, "Stopping", detail.to_owned())
        .outcome("not-sent")
        .retry_after(DRAIN_RETRY)
        .close()
}
