//! The read-only HTTP API for Prometheus, the kubelet and a browser.

mod action_metrics;
mod backlog;
mod concern_log;
mod concerns;
mod configuration;
mod explanations;
mod family;
mod metrics;
mod open_metrics;
mod page;
mod process_metrics;
mod starting;
mod status;
mod view;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT, CACHE_CONTROL, HeaderValue};
use http::{Method, Request, StatusCode};
use jiff::Timestamp;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::answer::AccessDenied;
use crate::ceiling::Ceiling;
use crate::delivery::Delivery;
use crate::keys::{KeyError, Keys};
use crate::memory::MemoryBudget;
use crate::meter::Meter;
use crate::passthrough::Passthrough;
use crate::server::{ConnectionSlots, Problem, Reply, Slug, json_reply, reply};
use crate::spool::Spool;
use crate::traces::Traces;
use crate::upstream::HttpUpstream;
use concern_log::{ConcernLine, ConcernLog};
use concerns::UNLOGGED;
pub use configuration::Configuration;
use open_metrics::Format;
pub use starting::StartingTelemetry;
use status::StatusReader;
pub(crate) use view::{Concern, FleetView, MemberView, SidecarStatus};

/// How often concerns are looked at for the log.
const LOOK: Duration = Duration::from_secs(1);
/// And at most so far apart.
const FURTHEST_APART: Duration = Duration::from_secs(5);
const FIRST_LOOK: Duration = Duration::from_secs(5);
const TEXT: &str = "text/plain; charset=utf-8";

/// The telemetry API. Cheap to clone.
#[derive(Clone)]
pub struct TelemetryService {
    sources: Arc<TelemetrySources>,
    /// What the log and the page say of concerns.
    concern_log: Arc<Mutex<ConcernLog>>,
}

/// What telemetry reads.
pub struct TelemetrySources {
    /// For requests, calls, billed messages and budgets.
    pub meter: Meter,
    /// For permits and the fleet.
    pub ceiling: Ceiling,
    /// For stored messages; `None`: there is no spool.
    pub spool: Option<Spool>,
    /// For paused topics.
    pub delivery: Delivery<HttpUpstream>,
    /// Takes calls of other operations.
    pub passthrough: Passthrough,
    /// For the access key's source and expiry.
    pub keys: Keys,
    /// For the provider's last answer and clock.
    pub upstream: HttpUpstream,
    /// Which sidecar it is.
    pub identity: SidecarIdentity,
    /// The provider's host.
    pub endpoint: String,
    /// Names of the egress addresses, in the configuration's order.
    pub egress: Vec<String>,
    /// For changes of the configuration.
    pub configuration: Configuration,
    /// For the connections of each server.
    pub connections: [ConnectionSlots; 3],
    /// What callers' messages take of the memory.
    pub memory: MemoryBudget,
    /// For what became of spans.
    pub traces: Traces,
    /// Set at SIGTERM.
    pub stopping: Arc<AtomicBool>,
    /// Set when new messages are refused: `drain.accept_for` after SIGTERM.
    pub refusing: Arc<AtomicBool>,
    /// When this process started.
    pub started: Timestamp,
}

/// Which sidecar it is, for a person who looks at several.
#[derive(Debug, Clone, Default)]
pub struct SidecarIdentity {
    /// The machine's name; a pod's is the pod's.
    pub name: String,
    /// The instances that messages may be published to.
    pub instances: Vec<String>,
    /// The region of its calls; empty: it is not known.
    pub region: String,
}

impl TelemetryService {
    /// Shows what `sources` have.
    pub fn new(sources: TelemetrySources) -> Self {
        Self { sources: Arc::new(sources), concern_log: Arc::default() }
    }

    /// Answers one request.
    pub fn answer<B>(self, request: &Request<B>) -> Result<Reply, Infallible> {
        let path = request.uri().path();
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let detail = "This listener is read-only; use GET.".to_owned();
            let (status, slug) = (StatusCode::METHOD_NOT_ALLOWED, Slug::MethodNotAllowed);
            let problem = Problem::new(status, slug, "Wrong method", detail);
            return Ok(problem.allow("GET, HEAD").into_response());
        }
        Ok(match path {
            "/metrics" => self.metrics(request),
            "/livez" => text(StatusCode::OK, "ok\n".to_owned()),
            "/startupz" => self.startup(),
            "/readyz" => self.ready(request.uri().query()),
            "/status.json" => self.status(request.uri().query().and_then(since)),
            path if let Some(reply) = page::answer(path, request.headers()) => reply,
            other => Problem::not_found(
                other,
                "GET /, /metrics, /status.json, /livez, /startupz and /readyz",
            )
            .into_response(),
        })
    }

    /// Each second until `stop`, notes the backlog, and logs what begins to be wrong and what is over.
    pub async fn watch(self, stop: CancellationToken) {
        let backlog = async {
            let Some(spool) = &self.sources.spool else { return };
            loop {
                self.sources.meter.note_backlog(spool.usage().queued.messages);
                sleep(LOOK).await;
            }
        };
        let looks = async {
            // What a start needs a moment for is no concern.
            sleep(FIRST_LOOK).await;
            loop {
                let begun = Instant::now();
                self.look();
                // With many thousand topics a look takes milliseconds: a hundredth of the time at most. One that was
                // held up, as with the whole process, is no reason to look away for long.
                sleep((begun.elapsed() * 100).clamp(LOOK, FURTHEST_APART)).await;
            }
        };
        stop.run_until_cancelled(async { tokio::join!(backlog, looks) }).await;
    }

    /// Looks at the concerns, for the log and the page.
    fn look(&self) {
        // The history is for the page.
        let since = Some(Timestamp::now().as_second());
        let status = SidecarStatus::of(&self.sources, since, StatusReader::Log);
        let requests = status.outcomes.iter().map(|(outcome, n)| (outcome.to_string(), *n));
        let mut concerns = status.concerns;
        concerns.retain(|concern| !UNLOGGED.contains(&&*concern.kind));
        let lines = self.concern_log().look(&concerns, &requests.collect(), Instant::now());
        lines.iter().for_each(ConcernLine::write);
    }

    /// A panic elsewhere does not spoil it: the next look has all concerns again.
    fn concern_log(&self) -> MutexGuard<'_, ConcernLog> {
        self.concern_log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn metrics<B>(&self, request: &Request<B>) -> Reply {
        let accepts = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
        let format = Format::wanted(accepts.unwrap_or_default());
        let text = metrics::text(&self.sources, format);
        uncached(reply(StatusCode::OK, format.content_type(), text))
    }

    /// Listeners are bound before anything is served, so only the access key can be missing.
    fn startup(&self) -> Reply {
        match self.sources.keys.current() {
            Ok(_) => text(StatusCode::OK, "ok\n".to_owned()),
            Err(error) => {
                let why = self.no_key(&error);
                text(StatusCode::SERVICE_UNAVAILABLE, format!("no key: {why}\n"))
            }
        }
    }

    /// Why there is no key: what its source last failed with names a variable, a path or an address.
    fn no_key(&self, error: &KeyError) -> String {
        self.sources.keys.status().last_error.unwrap_or_else(|| error.to_string())
    }

    /// An outage of the upstream does not make it unready: the provider would fail for every other pod,
    /// too.
    fn ready(&self, query: Option<&str>) -> Reply {
        let stopping = self.sources.stopping.load(Ordering::Relaxed);
        let accepting = !self.sources.refusing.load(Ordering::Relaxed);
        let key = self.sources.keys.current();
        let ready = !stopping && key.is_ok();
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let word = if ready { "ok" } else { "not ready" };
        if query != Some("verbose") {
            return text(status, format!("{word}\n"));
        }
        let key =
            key.map_or_else(|error| format!("no: {}", self.no_key(&error)), |_| "yes".to_owned());
        let mut lines =
            format!("{word}\nstopping: {stopping}\naccepting: {accepting}\nkey: {key}\n");
        if let Some(usage) = self.sources.spool.as_ref().map(Spool::usage) {
            let spool = usage.failure.as_deref().unwrap_or("ok");
            let (queued, dead) = (usage.queued.messages, usage.dead.messages);
            lines.extend([format!("spool: {spool}\nstored: {queued}\ndead letters: {dead}\n")]);
        }
        lines.push_str(&self.sources.configuration.view().line());
        if let Some(trouble) = self.sources.upstream.status().trouble {
            lines.extend([format!("upstream: {}\n", trouble.explanation())]);
        }
        for paused in self.sources.delivery.paused() {
            let (topic, why) = (&paused.lane.parent, pause_reason(paused.reason.denied()));
            lines
                .extend([format!("paused: {topic} ({why}), {} messages stored\n", paused.waiting)]);
        }
        let now = SidecarStatus::of(&self.sources, None, StatusReader::Log);
        for concern in self.concern_log().shown(now.concerns, now.now, Instant::now()) {
            lines.extend([format!("{}: {}\n", concern.level.word(), concern.title)]);
        }
        text(status, lines)
    }

    fn status(&self, since: Option<i64>) -> Reply {
        let mut status = SidecarStatus::of(&self.sources, since, StatusReader::Person);
        status.concerns = self.concern_log().shown(status.concerns, status.now, Instant::now());
        uncached(json_reply(StatusCode::OK, &status))
    }
}

/// Why a paused topic is not delivered, in a few words.
fn pause_reason(denied: Option<AccessDenied>) -> &'static str {
    denied.map_or("The provider fails", |denied| denied.explanation().trim_end_matches('.'))
}

/// `since=<Unix second>`; anything else asks for everything.
fn since(query: &str) -> Option<i64> {
    query.split('&').find_map(|pair| pair.strip_prefix("since=")?.parse().ok())
}

fn text(status: StatusCode, body: String) -> Reply {
    uncached(reply(status, TEXT, body))
}

fn uncached(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}
