//! The HTTP API for callers: `POST /publish/<topic>`, `POST /publish`, `GET /messages/<Id>`.
//!
//! `request` turns a request into a message and its options, `outcome` an outcome into a reply; both
//! only here.

mod batch;
mod key;
mod log;
mod outcome;
mod prefer;
mod receipts;
mod request;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::ceiling::Ceiling;
use crate::config;
use crate::delivery::Delivery;
use crate::log_limiter::LogLimiter;
use crate::message::Topic;
use crate::meter::{Meter, Published};
use crate::server::{Problem, Reply, reply};
use crate::spool::{Durability, Spool};
use crate::upstream::HttpUpstream;
use outcome::Answered;
use request::{RequestReader, Submission};

/// `Retry-After` of a stopping sidecar: another takes its place soon.
const DRAIN_RETRY: Duration = Duration::from_secs(1);

/// Batch requests at once: 128 MiB of bodies.
const MAX_BATCHES: usize = 16;

/// The HTTP API for callers. Cheap to clone.
#[derive(Clone)]
pub struct PublishService {
    inner: Arc<Inner>,
}

struct Inner {
    /// Reads requests by the current configuration; replaced by a reload.
    reader: RwLock<Arc<RequestReader>>,
    ratelimit_headers: bool,
    delivery: Delivery<HttpUpstream>,
    ceiling: Ceiling,
    meter: Meter,
    draining: Arc<AtomicBool>,
    log_limiter: LogLimiter,
    /// A batch has its whole body in memory, so their number is limited.
    batches: Semaphore,
}

impl PublishService {
    /// Hands messages to `delivery`, and refuses them once `draining` is set.
    pub fn new(
        config: &config::Config,
        delivery: Delivery<HttpUpstream>,
        ceiling: Ceiling,
        meter: Meter,
        draining: Arc<AtomicBool>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                reader: RwLock::new(Arc::new(RequestReader::new(config))),
                ratelimit_headers: config.publish.ratelimit_headers,
                delivery,
                ceiling,
                meter,
                draining,
                log_limiter: LogLimiter::new(log::MAX_LINES),
                batches: Semaphore::new(MAX_BATCHES),
            }),
        }
    }

    /// Reads requests by this configuration from now on.
    pub fn reload(&self, config: &config::Config) {
        let reader = Arc::new(RequestReader::new(config));
        *self.inner.reader.write().unwrap_or_else(PoisonError::into_inner) = reader;
    }

    /// Answers one request.
    pub async fn answer(self, request: Request<Incoming>) -> Result<Reply, Infallible> {
        let path = request.uri().path();
        if let Some(id) = path.strip_prefix("/messages/") {
            if request.method() != Method::GET {
                return Ok(wrong_method(request.method(), "GET shows one", "GET"));
            }
            return Ok(receipts::answer(id, &self.inner.delivery));
        }
        if path == "/publish" {
            if request.method() != Method::POST {
                return Ok(wrong_method(request.method(), "POST publishes many", "POST"));
            }
            return Ok(self.inner.publish_batch(request).await);
        }
        let Some(topic) = path.strip_prefix("/publish/") else {
            let paths = "POST /publish/<topic>, POST /publish and GET /messages/<Id>";
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
    async fn publish(&self, topic: &str, request: Request<Incoming>) -> Reply {
        let start = Instant::now();
        let context = log::LogContext::of(&request, topic);
        let mut parent = None;
        let submission = if self.draining() {
            Err((Published::Draining, stopping()))
        } else {
            let reader = Arc::clone(&self.reader.read().unwrap_or_else(PoisonError::into_inner));
            reader.read(topic, request).await.map_err(|problem| (Published::Invalid, problem))
        };
        let answered = match submission {
            // Again: reading a slow body may have taken long.
            Ok(_) if self.draining() => Answered::problem(Published::Draining, stopping()),
            Ok(Submission { message, options, applied }) => {
                parent = Some(message.topic.clone());
                let outcome = self.delivery.publish(message, options).await;
                outcome::answer(outcome, self.durability(), applied)
            }
            Err((published, problem)) => Answered::problem(published, problem),
        };
        self.note(parent.as_ref(), &answered, start.elapsed(), &context);
        let mut reply = answered.reply;
        if self.ratelimit_headers {
            reply.headers_mut().extend(self.rate_limit());
        }
        reply
    }

    /// Answers a batch: a message per line. Its status depends on every message, so it is sent when
    /// all outcomes are known.
    async fn publish_batch(&self, request: Request<Incoming>) -> Reply {
        let context = log::LogContext::of(&request, "");
        // Held until the reply is complete.
        let slot = self.batches.try_acquire();
        let read = match slot {
            Ok(_) => self.read_batch(request).await,
            Err(_) => Err((Published::Full, too_many_batches())),
        };
        let mut reply = match read {
            Ok((reads, applied)) => {
                let mut reply = self.answer_batch(reads, &context).await;
                if let Some(value) = applied.and_then(|a| HeaderValue::try_from(a).ok()) {
                    reply.headers_mut().insert("preference-applied", value);
                }
                reply
            }
            Err((published, problem)) => {
                let answered = Answered::problem(published, problem);
                self.note(None, &answered, Duration::ZERO, &context);
                answered.reply
            }
        };
        if self.ratelimit_headers {
            reply.headers_mut().extend(self.rate_limit());
        }
        reply
    }

    async fn read_batch(
        &self,
        request: Request<Incoming>,
    ) -> Result<(Vec<batch::LineRead>, Option<String>), (Published, Problem)> {
        let invalid = |problem| (Published::Invalid, problem);
        if self.draining() {
            return Err((Published::Draining, stopping()));
        }
        if !batch::is_lines(request.headers()) {
            let detail =
                format!("POST /publish takes {}: one message per line.", batch::CONTENT_TYPE);
            let (status, slug) = (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type");
            let problem = Problem::new(status, slug, "Wrong content type", detail);
            return Err(invalid(problem.outcome("not-sent").close()));
        }
        let reader = Arc::clone(&self.reader.read().unwrap_or_else(PoisonError::into_inner));
        let prefer = prefer::Prefer::read(request.headers());
        let trace = request::trace(request.headers());
        let (_, applied) = reader.options(prefer, None);
        let body =
            reader.body(request, batch::MAX_BODY, "the limit of a batch").await.map_err(invalid)?;
        let lines = batch::lines(&body).map_err(invalid)?;
        if self.draining() {
            return Err((Published::Draining, stopping()));
        }
        let read =
            |(number, line): &(usize, Bytes)| batch::read(&reader, *number, line, prefer, trace);
        Ok((lines.iter().map(read).collect(), applied))
    }

    /// Begins all lines in their order, so that the first of two with the same key wins. Then waits for
    /// all outcomes; the reply has them in the same order.
    async fn answer_batch(&self, reads: Vec<batch::LineRead>, context: &log::LogContext) -> Reply {
        let start = Instant::now();
        let mut answers = Vec::with_capacity(reads.len());
        for read in reads {
            answers.push(read.map(|(message, options)| {
                let topic = message.topic.clone();
                (topic, self.delivery.begin(message, options))
            }));
        }
        let (mut body, mut statuses) = (Vec::new(), Vec::new());
        for answer in answers {
            let (topic, mut answered) = match answer {
                Ok((topic, begun)) => {
                    let outcome = begun.outcome().await;
                    (Some(topic), outcome::answer(outcome, self.durability(), None))
                }
                Err(problem) => (None, Answered::problem(Published::Invalid, problem)),
            };
            self.note(topic.as_ref(), &answered, start.elapsed(), context);
            let alone = std::mem::take(answered.reply.body_mut());
            // It is whole in memory: collecting neither waits nor fails.
            let alone = alone.collect().await.map(http_body_util::Collected::to_bytes);
            body.extend(batch::line(&answered, &alone.unwrap_or_default()));
            statuses.push(answered.reply.status());
        }
        reply(batch::status(&statuses), batch::CONTENT_TYPE, body)
    }

    /// Counts and logs one answer.
    fn note(
        &self,
        topic: Option<&Topic>,
        answered: &Answered,
        took: Duration,
        context: &log::LogContext,
    ) {
        self.meter.published(topic.map(Topic::parent), answered.published, took);
        if let Some(failure) = &answered.failure {
            log::failure(&self.log_limiter, context, answered.published, failure);
        }
    }

    fn durability(&self) -> Durability {
        self.delivery.spool().map(Spool::durability).unwrap_or_default()
    }

    fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// `RateLimit-Policy` and `RateLimit`, in the syntax of the IETF draft.
    fn rate_limit(&self) -> Vec<(HeaderName, HeaderValue)> {
        let status = self.ceiling.status();
        let policies: Vec<_> = status
            .ceilings
            .iter()
            .filter_map(|c| Some(format!("\"{}\";q={};w=1", c.kind.policy(), c.limit?)))
            .collect();
        let Some(tightest) = status.tightest() else { return Vec::new() };
        let left = tightest.free.unwrap_or(0).saturating_sub(status.waiting);
        let reset = status.next_in.as_secs() + 1;
        let now = format!("\"{}\";r={left};t={reset}", tightest.kind.policy());
        [("ratelimit-policy", policies.join(", ")), ("ratelimit", now)]
            .into_iter()
            .filter_map(|(name, value)| {
                Some((HeaderName::from_static(name), HeaderValue::try_from(value).ok()?))
            })
            .collect()
    }
}

fn wrong_method(method: &Method, instead: &str, allowed: &'static str) -> Reply {
    let detail = format!("{method} is not for messages; {instead}.");
    let status = StatusCode::METHOD_NOT_ALLOWED;
    Problem::new(status, "method-not-allowed", "Wrong method", detail)
        .outcome("not-sent")
        .allow(allowed)
        .into_response()
}

fn too_many_batches() -> Problem {
    let detail = format!(
        "{MAX_BATCHES} batches are already being answered, which is the limit. Nothing was sent; send \
         this one again."
    );
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "full", "Too many at once", detail)
        .outcome("not-sent")
        .retry_after(DRAIN_RETRY)
        .close()
}

fn stopping() -> Problem {
    let detail = "This sidecar is stopping and takes no more messages. The message was not \
                  accepted; send it again.";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "draining", "Stopping", detail.to_owned())
        .outcome("not-sent")
        .retry_after(DRAIN_RETRY)
        .close()
}
