//! One span, from its begin to its end.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use opentelemetry::trace::{
    Link, SpanContext as OtelContext, SpanId as OtelSpanId, SpanKind, Status, TraceFlags,
    TraceId as OtelTraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tokio::time::Instant;

use super::Tracer;
use crate::message::{SpanContext, SpanId, Topic};

/// The most characters of an attribute. No value of ours is longer, but what callers and the provider send.
const MAX_TEXT: usize = 128;

/// What a span stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request of a caller.
    Server,
    /// One of the messages of such a request.
    Producer,
    /// A call to the provider.
    Client,
    /// What happens within this process.
    Internal,
}

/// What a span is within.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parent {
    /// Nothing: its trace begins with it.
    None,
    /// A span of this process.
    Local(SpanId),
    /// A span of the caller.
    Remote(SpanId),
}

/// A span that has begun; or none, on which everything does nothing. It is exported when it ends. One that is
/// dropped without its end, since its future was, is exported as abandoned.
#[derive(Debug)]
pub struct Span(Option<Box<OpenSpan>>);

#[derive(Debug)]
pub(super) struct OpenSpan {
    tracer: Arc<Tracer>,
    context: SpanContext,
    parent: Parent,
    kind: Kind,
    name: Cow<'static, str>,
    start: Timestamp,
    begun: Instant,
    /// Set where it did not begin when it was made.
    lasted: Option<Duration>,
    attributes: Vec<KeyValue>,
    link: Option<SpanContext>,
    has_failed: bool,
}

impl Span {
    /// No span.
    pub const NONE: Self = Self(None);

    pub(super) fn new(open: OpenSpan) -> Self {
        Self(Some(Box::new(open)))
    }

    /// As other spans refer to it; `None`: there is no span.
    pub fn context(&self) -> Option<SpanContext> {
        self.0.as_ref().map(|open| open.context)
    }

    /// Whether there is a span. To be asked where a value costs something.
    pub fn is_recording(&self) -> bool {
        self.0.is_some()
    }

    /// Its name, where there are few of them.
    pub fn name(&mut self, name: &'static str) {
        if let Some(open) = &mut self.0 {
            open.name = Cow::Borrowed(name);
        }
    }

    /// What is done with messages of a topic. It is named after the parent topic: there are few of these.
    pub fn destination(&mut self, operation: &'static str, topic: &Topic) {
        let Some(open) = &mut self.0 else { return };
        open.name = Cow::Owned(format!("{operation} {}", topic.parent()));
        open.push("messaging.system", "apsaramq_mqtt");
        open.push("messaging.operation.name", operation);
        open.text("messaging.destination.name", topic.as_str());
    }

    /// A constant.
    pub fn word(&mut self, key: &'static str, value: &'static str) {
        if let Some(open) = &mut self.0 {
            open.push(key, value);
        }
    }

    /// A text, as far as it is not too long.
    pub fn text(&mut self, key: &'static str, value: &str) {
        if let Some(open) = &mut self.0 {
            open.text(key, value);
        }
    }

    /// A number.
    pub fn number(&mut self, key: &'static str, value: impl TryInto<i64>) {
        if let Some(open) = &mut self.0 {
            open.attributes.push(KeyValue::new(key, value.try_into().unwrap_or(i64::MAX)));
        }
    }

    /// It has failed; `why` is one of few words.
    pub fn fails(&mut self, why: &str) {
        if let Some(open) = &mut self.0 {
            open.text("error.type", why);
            open.has_failed = true;
        }
    }

    /// What it stands for did not succeed, which is not a failure of this process. `why` is one of few words.
    pub fn refuses(&mut self, why: &str) {
        self.text("error.type", why);
    }

    /// It began so long ago, and ends now.
    pub fn lasted(&mut self, time: Duration) {
        if let Some(open) = &mut self.0 {
            open.start = Timestamp::now().checked_sub(time).unwrap_or(open.start);
            open.lasted = Some(time);
        }
    }

    /// What has caused it.
    pub(super) fn link(&mut self, to: SpanContext) {
        if let Some(open) = &mut self.0 {
            open.link = Some(to);
        }
    }

    /// Ends it now.
    pub fn end(mut self) {
        if let Some(open) = self.0.take() {
            let tracer = Arc::clone(&open.tracer);
            tracer.end(*open);
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if self.0.is_some() {
            self.fails("abandoned");
            std::mem::replace(self, Self::NONE).end();
        }
    }
}

impl OpenSpan {
    pub(super) fn new(
        tracer: Arc<Tracer>,
        context: SpanContext,
        parent: Parent,
        kind: Kind,
        start: Timestamp,
    ) -> Self {
        let now = Timestamp::now();
        // One that began earlier lasts since then.
        let earlier = Duration::try_from(now.duration_since(start)).unwrap_or_default();
        Self {
            tracer,
            context,
            parent,
            kind,
            name: Cow::Borrowed("request"),
            start,
            begun: Instant::now(),
            lasted: (earlier > Duration::from_millis(1)).then_some(earlier),
            attributes: Vec::new(),
            link: None,
            has_failed: false,
        }
    }

    fn push(&mut self, key: &'static str, value: &'static str) {
        self.attributes.push(KeyValue::new(key, value));
    }

    fn text(&mut self, key: &'static str, value: &str) {
        self.attributes.push(KeyValue::new(key, bounded(value)));
    }

    /// What is exported. `server`: where calls go.
    pub(super) fn into_data(mut self, server: &(String, u16)) -> SpanData {
        if self.kind == Kind::Client {
            self.text("server.address", &server.0);
            self.attributes.push(KeyValue::new("server.port", i64::from(server.1)));
        }
        let (parent_span_id, parent_span_is_remote) = match self.parent {
            Parent::None => (OtelSpanId::INVALID, false),
            Parent::Local(span) => (span_id(span), false),
            Parent::Remote(span) => (span_id(span), true),
        };
        let start_time = SystemTime::from(self.start);
        let lasted = self.lasted.unwrap_or_else(|| self.begun.elapsed());
        let mut links = SpanLinks::default();
        links.links.extend(self.link.map(|to| Link::new(context(to), Vec::new(), 0)));
        SpanData {
            span_context: context(self.context),
            parent_span_id,
            parent_span_is_remote,
            span_kind: match self.kind {
                Kind::Server => SpanKind::Server,
                Kind::Producer => SpanKind::Producer,
                Kind::Client => SpanKind::Client,
                Kind::Internal => SpanKind::Internal,
            },
            name: self.name,
            start_time,
            end_time: start_time + lasted,
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: if self.has_failed { Status::error("") } else { Status::Unset },
            instrumentation_scope: InstrumentationScope::builder("tollgate").build(),
        }
    }
}

fn context(span: SpanContext) -> OtelContext {
    let trace = OtelTraceId::from_bytes(span.trace.as_u128().to_be_bytes());
    OtelContext::new(trace, span_id(span.span), TraceFlags::SAMPLED, false, TraceState::default())
}

fn span_id(span: SpanId) -> OtelSpanId {
    OtelSpanId::from_bytes(span.as_u64().to_be_bytes())
}

/// The beginning of a text.
fn bounded(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}
