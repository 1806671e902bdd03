//! The callers' door: `POST /publish/<topic>`.
//!
//! A request is read once, here, into a message and its caller's patience; an outcome becomes an
//! answer once, here.

mod log;
mod outcome;
mod prefer;
mod request;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::ceiling::Ceiling;
use crate::config;
use crate::delivery::Delivery;
use crate::door::{Problem, Reply};
use crate::meter::{Meter, Published};
use crate::upstream::Upstream;
use outcome::Answered;
use request::{Asked, Reader};

/// What a caller who meets a stopping sidecar should wait: its successor is soon there.
const DRAIN_RETRY: Duration = Duration::from_secs(1);

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
    log: log::Budget,
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
                log: log::Budget::default(),
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
        let Some(topic) = path.strip_prefix("/publish/") else {
            return Ok(Problem::not_found(path, "POST /publish/<topic>").into_response());
        };
        if request.method() != Method::POST {
            let detail = format!("{} is not for messages; POST publishes one.", request.method());
            let problem = Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "Wrong method",
                detail,
            );
            return Ok(problem.allow("POST").into_response());
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
            Ok(Asked { message, patience, applied }) => {
                parent = Some(message.topic.clone());
                let outcome = self.delivery.publish(message, patience).await;
                outcome::answer(outcome, applied)
            }
            Err((published, problem)) => Answered::problem(published, problem),
        };
        let parent = parent.as_ref().map(crate::message::Topic::parent);
        self.meter.published(parent, answered.published, start.elapsed());
        if let Some(failure) = &answered.failure {
            self.log.failure(&context, answered.published, failure);
        }
        let mut reply = answered.reply;
        if self.ratelimit_headers {
            reply.headers_mut().extend(self.rate_limit());
        }
        reply
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

fn stopping() -> Problem {
    let detail = "This sidecar is stopping and takes no more messages. The message was not \
                  accepted; send it again.";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "draining", "Stopping", detail.to_owned())
        .outcome("not-sent")
        .retry_after(DRAIN_RETRY)
        .close()
}
