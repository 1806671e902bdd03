//! The door for Prometheus, the kubelet and a browser: it only shows.

mod advice;
mod concerns;
mod family;
mod metrics;
mod page;
mod status;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use jiff::Timestamp;

use crate::answer::AccessDenied;
use crate::ceiling::Ceiling;
use crate::delivery::Delivery;
use crate::keys::Keys;
use crate::meter::Meter;
use crate::server::{Problem, Reply};
use crate::spool::Spool;
use crate::upstream::HttpUpstream;
use metrics::Format;

const TEXT: &str = "text/plain; charset=utf-8";

/// The telemetry door. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    facts: Arc<Sources>,
}

/// Where the facts are.
pub struct Sources {
    /// What was asked, sent and billed.
    pub meter: Meter,
    /// The permits.
    pub ceiling: Ceiling,
    /// What is kept, if anything is.
    pub spool: Option<Spool>,
    /// Which lanes do not deliver.
    pub delivery: Delivery<HttpUpstream>,
    /// The key.
    pub keys: Keys,
    /// The provider.
    pub upstream: HttpUpstream,
    /// Host of the upstream.
    pub endpoint: String,
    /// Names of the egress addresses, in the configuration's order.
    pub egress: Vec<String>,
    /// Set while stopping.
    pub draining: Arc<AtomicBool>,
    /// Since when this process runs.
    pub started: Timestamp,
}

impl Telemetry {
    /// A door onto these facts.
    pub fn new(facts: Sources) -> Self {
        Self { facts: Arc::new(facts) }
    }

    /// Answers one request.
    pub fn answer<B>(self, request: &Request<B>) -> Result<Reply, Infallible> {
        let path = request.uri().path();
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let detail = "This door only shows; GET is what it answers.".to_owned();
            let (status, slug) = (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed");
            let problem = Problem::new(status, slug, "ValueError method", detail);
            return Ok(problem.allow("GET, HEAD").into_response());
        }
        Ok(match path {
            "/metrics" => self.metrics(request),
            "/livez" => text(StatusCode::OK, "ok\n".to_owned()),
            "/startupz" => self.startup(),
            "/readyz" => self.ready(request.uri().query() == Some("verbose")),
            "/status.json" => self.status(request.uri().query().and_then(since)),
            path if let Some(reply) = page::answer(path, request.headers()) => reply,
            other => Problem::not_found(
                other,
                "GET /, /metrics, /status.json, /livez, /startupz and /readyz",
            )
            .into_response(),
        })
    }

    fn metrics<B>(&self, request: &Request<B>) -> Reply {
        let accepts = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
        let format = Format::wanted(accepts.unwrap_or_default());
        answer(StatusCode::OK, format.content_type(), metrics::text(&self.facts, format))
    }

    /// Listeners are bound before anything is served, so only the key may be missing.
    fn startup(&self) -> Reply {
        match self.facts.keys.current() {
            Ok(_) => text(StatusCode::OK, "ok\n".to_owned()),
            Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, format!("no key: {error}\n")),
        }
    }

    /// An outage of the upstream is no reason to be taken out of service: nobody else would do
    /// better.
    fn ready(&self, verbose: bool) -> Reply {
        let draining = self.facts.draining.load(Ordering::Relaxed);
        let key = self.facts.keys.current();
        let ready = !draining && key.is_ok();
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let word = if ready { "ok" } else { "not ready" };
        if !verbose {
            return text(status, format!("{word}\n"));
        }
        let key = key.map_or_else(|error| format!("no: {error}"), |_| "yes".to_owned());
        let mut lines = format!("{word}\naccepting: {}\nkey: {key}\n", !draining);
        if let Some(usage) = self.facts.spool.as_ref().map(Spool::usage) {
            let spool = usage.failure.as_deref().unwrap_or("ok");
            let (queued, dead) = (usage.queued.messages, usage.dead.messages);
            lines.extend([format!("spool: {spool}\nkept: {queued}\ndead letters: {dead}\n")]);
        }
        for paused in self.facts.delivery.paused() {
            let (topic, why) = (&paused.lane.parent, why(paused.reason.denied()));
            lines.extend([format!("paused: {topic} ({why}), {} messages kept\n", paused.waiting)]);
        }
        text(status, lines)
    }

    fn status(&self, since: Option<i64>) -> Reply {
        let status = status::Status::of(&self.facts, since);
        let body = serde_json::to_string(&status).unwrap_or_default();
        answer(StatusCode::OK, "application/json", body)
    }
}

/// Why a lane does not deliver, in a few words.
fn why(bar: Option<AccessDenied>) -> &'static str {
    match bar {
        None => "the provider fails",
        Some(AccessDenied::Key) => "the provider refuses our key",
        Some(AccessDenied::Clock) => "the provider refuses our clock",
        Some(AccessDenied::Permission) => "the provider denies permission",
        Some(AccessDenied::Endpoint) => "the provider does not know the call",
    }
}

/// `since=<Unix second>`; anything else asks for everything.
fn since(query: &str) -> Option<i64> {
    query.split('&').find_map(|pair| pair.strip_prefix("since=")?.parse().ok())
}

fn text(status: StatusCode, body: String) -> Reply {
    answer(status, TEXT, body)
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Reply {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
