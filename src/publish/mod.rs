//! The callers' door: `POST /publish/<topic>`.
//!
//! A request is read once, here, into a message and its caller's patience; an outcome becomes an
//! answer once, here.

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
use crate::server::{Problem, Reply};
use crate::spool::{Durability, Spool};
use crate::upstream::Upstream;
use outcome::Answered;
use request::{Asked, Reader};

/// What a caller who meets a stopping sidecar should wait: its successor is soon there.
const DRAIN_RETRY: Duration = Duration::from_secs(1);

/// Requests with many messages at once: 128 MiB of bodies.
const MAX_MANY: usize = 16;

/// The callers' door. Cheap to clone.
pub struct Publish<U> {
    shared: Arc<Shared<U>>,
}

impl<U> Clone for Publish<U> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<U> {
    /// By the configuration of now.
    reader: RwLock<Arc<Reader>>,
    ratelimit_headers: bool,
    delivery: Delivery<U>,
    ceiling: Ceiling,
    meter: Meter,
    draining: Arc<AtomicBool>,
    lines: LogLimiter,
    /// Requests with many messages each have their body in memory.
    many: Semaphore,
}

impl<U: Upstream> Publish<U> {
    /// A door that hands messages to `delivery`, and refuses them once `draining` is set.
    pub fn new(
        config: &config::Config,
        delivery: Delivery<U>,
        ceiling: Ceiling,
        meter: Meter,
        draining: Arc<AtomicBool>,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                reader: RwLock::new(Arc::new(Reader::new(config))),
                ratelimit_headers: config.publish.ratelimit_headers,
                delivery,
                ceiling,
                meter,
                draining,
                lines: LogLimiter::new(log::MAX_LINES),
                many: Semaphore::new(MAX_MANY),
            }),
        }
    }

    /// Reads requests by this configuration from now on.
    pub fn reload(&self, config: &config::Config) {
        let reader = Arc::new(Reader::new(config));
        *self.shared.reader.write().unwrap_or_else(PoisonError::into_inner) = reader;
    }

    /// Answers one request.
    pub async fn answer(self, request: Request<Incoming>) -> Result<Reply, Infallible> {
        let path = request.uri().path();
        if let Some(id) = path.strip_prefix("/messages/") {
            if request.method() != Method::GET {
                return Ok(wrong_method(request.method(), "GET shows one", "GET"));
            }
            return Ok(receipts::answer(id, &self.shared.delivery));
        }
        if path == "/publish" {
            if request.method() != Method::POST {
                return Ok(wrong_method(request.method(), "POST publishes many", "POST"));
            }
            return Ok(self.shared.publish_many(request).await);
        }
        let Some(topic) = path.strip_prefix("/publish/") else {
            let paths = "POST /publish/<topic>, POST /publish and GET /messages/<Id>";
            return Ok(Problem::not_found(path, paths).outcome("not-sent").into_response());
        };
        if request.method() != Method::POST {
            return Ok(wrong_method(request.method(), "POST publishes one", "POST"));
        }
        let topic = topic.to_owned();
        Ok(self.shared.publish(&topic, request).await)
    }
}

impl<U: Upstream> Shared<U> {
    async fn publish(&self, topic: &str, request: Request<Incoming>) -> Reply {
        let start = Instant::now();
        let context = log::Context::of(&request, topic);
        let mut parent = None;
        let asked = if self.draining() {
            Err((Published::Draining, stopping()))
        } else {
            let reader = Arc::clone(&self.reader.read().unwrap_or_else(PoisonError::into_inner));
            reader.read(topic, request).await.map_err(|problem| (Published::Invalid, problem))
        };
        let answered = match asked {
            // A body may have been on its way for long.
            Ok(_) if self.draining() => Answered::problem(Published::Draining, stopping()),
            Ok(Asked { message, wanted, applied }) => {
                parent = Some(message.topic.clone());
                let outcome = self.delivery.publish(message, wanted).await;
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

    /// Answers a request with a message a line. Its status depends on all of them, so that it is
    /// known when all are.
    async fn publish_many(&self, request: Request<Incoming>) -> Reply {
        let context = log::Context::of(&request, "");
        // Held until the answer is whole.
        let room = self.many.try_acquire();
        let read = match room {
            Ok(_) => self.read_many(request).await,
            Err(_) => Err((Published::Full, too_many())),
        };
        let mut reply = match read {
            Ok((reads, applied)) => {
                let mut reply = self.answer_many(reads, &context).await;
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

    async fn read_many(
        &self,
        request: Request<Incoming>,
    ) -> Result<(Vec<batch::Read>, Option<String>), (Published, Problem)> {
        let invalid = |problem| (Published::Invalid, problem);
        if self.draining() {
            return Err((Published::Draining, stopping()));
        }
        if !batch::is_lines(request.headers()) {
            let detail = format!("POST /publish takes {}: a message a line.", batch::CONTENT_TYPE);
            let (status, slug) = (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type");
            let problem = Problem::new(status, slug, "ValueError content type", detail);
            return Err(invalid(problem.outcome("not-sent").close()));
        }
        let reader = Arc::clone(&self.reader.read().unwrap_or_else(PoisonError::into_inner));
        let prefer = prefer::Prefer::read(request.headers());
        let trace = request::trace(request.headers());
        let (_, applied) = reader.wanted(prefer, None);
        let body = reader.body(request, batch::MAX_BODY).await.map_err(invalid)?;
        let lines = batch::lines(&body).map_err(invalid)?;
        if self.draining() {
            return Err((Published::Draining, stopping()));
        }
        let read = |line: &Bytes| batch::read(&reader, line, prefer, trace);
        Ok((lines.iter().map(read).collect(), applied))
    }

    /// Begins all lines in their order, so that the first of two with one key wins; their outcomes
    /// are then waited for together, and answered in the same order.
    async fn answer_many(&self, reads: Vec<batch::Read>, context: &log::Context) -> Reply {
        let start = Instant::now();
        let mut answers = Vec::with_capacity(reads.len());
        for read in reads {
            answers.push(read.map(|(message, wanted)| {
                let topic = message.topic.clone();
                (topic, self.delivery.begin(message, wanted))
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
            let said = std::mem::take(answered.reply.body_mut());
            // It is whole in memory: there is nothing to wait for, and nothing that fails.
            let said = said.collect().await.map(http_body_util::Collected::to_bytes);
            body.extend(batch::line(&answered, &said.unwrap_or_default()));
            statuses.push(answered.reply.status());
        }
        let mut reply = Reply::new(body.into());
        *reply.status_mut() = batch::status(&statuses);
        let kind = HeaderValue::from_static(batch::CONTENT_TYPE);
        reply.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        reply
    }

    /// Counts and logs one answer.
    fn note(
        &self,
        topic: Option<&Topic>,
        answered: &Answered,
        took: Duration,
        context: &log::Context,
    ) {
        self.meter.published(topic.map(Topic::parent), answered.published, took);
        if let Some(failure) = &answered.failure {
            log::failure(&self.lines, context, answered.published, failure);
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
    Problem::new(status, "method-not-allowed", "ValueError method", detail)
        .outcome("not-sent")
        .allow(allowed)
        .into_response()
}

fn too_many() -> Problem {
    let detail = format!(
        "{MAX_MANY} requests with many messages are being answered, and no more are read at once. \
         Nothing was sent; send it again."
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
