//! Spans of messages, and their export by OTLP over HTTP (`[telemetry.otlp]`).
//!
//! Whether a request is sampled is decided once, where it comes in ([`Traces::request`]). What is done for its
//! message then hands out children of its span. Without sampling there is no span, and nothing is
//! allocated: a [`Span`] is a pointer that is empty. Spans wait in a bounded queue, which a thread of its own
//! exports; one that finds no place is dropped and counted. No message waits for a collector.

mod export;
mod span;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;

use crate::config::{Endpoint, Otlp};
use crate::message::{SpanContext, SpanId, Trace, TraceId, TraceParent};
pub use export::SpanCounts;
use export::{SpanQueue, exporter};
pub use span::{Kind, Span};
use span::{OpenSpan, Parent};

/// How long a stop waits for the last spans.
pub const CLOSE: Duration = Duration::from_secs(1);

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.otlp: {0}")]
pub struct TracesError(String);

impl From<std::io::Error> for TracesError {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Makes spans, or none. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Traces {
    tracer: Option<Arc<Tracer>>,
}

#[derive(Debug)]
struct Tracer {
    sampler: Sampler,
    queue: SpanQueue,
    /// The provider's host and port.
    server: (String, u16),
}

/// Decides by the id of a trace, so that all processes with the same ratio decide alike: OpenTelemetry's
/// `TraceIdRatioBased`.
#[derive(Debug, Clone, Copy)]
struct Sampler {
    /// Ids whose lower 63 bits are below are sampled.
    below: u64,
}

impl Sampler {
    fn new(ratio: f64) -> Self {
        let ids = (1_u64 << 63) as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "from 0 to 2^63: the configuration has checked the ratio"
        )]
        let below = (ratio * ids) as u64;
        Self { below }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lower half is what decides")]
    fn samples(self, id: TraceId) -> bool {
        (id.as_u128() as u64) >> 1 < self.below
    }
}

impl Traces {
    /// Without spans.
    pub const fn off() -> Self {
        Self { tracer: None }
    }

    /// Exports spans to this collector, on the current runtime. `upstream`: where calls go. Reads files.
    ///
    /// # Errors
    /// If the file of authorities, or a variable of OpenTelemetry's, cannot be used.
    pub fn start(config: &Otlp, upstream: &Endpoint) -> Result<Self, TracesError> {
        let exporter = exporter(config).map_err(TracesError)?;
        let queue = SpanQueue::new(exporter);
        let server = (upstream.host.clone(), upstream.port);
        Ok(Self {
            tracer: Some(Arc::new(Tracer { sampler: Sampler::new(config.sample), queue, server })),
        })
    }

    /// A request has come in. Returns the trace of its message, and its span: by the decision of its caller, or
    /// by the configured ratio if it names none.
    pub fn request(&self, parent: Option<TraceParent>) -> (Option<Trace>, Span) {
        let unsampled = || parent.map(|parent| Trace { id: parent.context.trace, span: None });
        let Some(tracer) = &self.tracer else { return (unsampled(), Span::NONE) };
        let (id, remote) = match parent {
            Some(TraceParent { context, is_sampled: true }) => {
                (context.trace, Parent::Remote(context.span))
            }
            Some(_) => return (unsampled(), Span::NONE),
            None => match new_trace() {
                id if tracer.sampler.samples(id) => (id, Parent::None),
                _ => return (None, Span::NONE),
            },
        };
        let context = SpanContext { trace: id, span: new_span() };
        let span = self.open(context, remote, Kind::Server, Timestamp::now());
        (Some(Trace { id, span: Some(context.span) }), span)
    }

    /// A span within another one; none, if that is none.
    pub fn child(&self, of: Option<SpanContext>, kind: Kind) -> Span {
        let Some(of) = of else { return Span::NONE };
        let context = SpanContext { trace: of.trace, span: new_span() };
        self.open(context, Parent::Local(of.span), kind, Timestamp::now())
    }

    /// A span that began earlier, with a trace of its own that is linked to another span.
    pub fn root(&self, context: SpanContext, link: SpanContext, start: Timestamp) -> Span {
        let mut span = self.open(context, Parent::None, Kind::Internal, start);
        span.link(link);
        span
    }

    fn open(&self, context: SpanContext, parent: Parent, kind: Kind, start: Timestamp) -> Span {
        let Some(tracer) = &self.tracer else { return Span::NONE };
        Span::new(OpenSpan::new(Arc::clone(tracer), context, parent, kind, start))
    }

    /// Whether there are spans at all.
    pub fn is_on(&self) -> bool {
        self.tracer.is_some()
    }

    /// What became of spans; `None` if there are none.
    pub fn counts(&self) -> Option<SpanCounts> {
        Some(self.tracer.as_ref()?.queue.counts())
    }

    /// Exports what waits, and ends: at the latest after [`CLOSE`]. What a collector has not taken by then is
    /// dropped.
    pub async fn close(&self) {
        let Some(tracer) = self.tracer.clone() else { return };
        // It blocks as long as the collector takes.
        let closed = tokio::task::spawn_blocking(move || tracer.queue.close(CLOSE));
        // The thread may be late, and is not waited for then.
        drop(timeout(CLOSE * 2, closed).await);
    }
}

impl Tracer {
    fn end(&self, span: OpenSpan) {
        self.queue.submit(span.into_data(&self.server));
    }
}

fn new_trace() -> TraceId {
    loop {
        if let Some(id) = TraceId::from_u128(rand::random()) {
            return id;
        }
    }
}

fn new_span() -> SpanId {
    loop {
        if let Some(id) = SpanId::from_u64(rand::random()) {
            return id;
        }
    }
}

#[cfg(test)]
mod tests;
