use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use super::export::QUEUE;
use super::*;
use crate::message::Topic;

/// Keeps what it is given, once `gate` has sent or is gone.
#[derive(Debug, Default)]
struct Kept {
    spans: Arc<Mutex<Vec<SpanData>>>,
    gate: Option<Mutex<Receiver<()>>>,
    fails: bool,
}

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        if let Some(gate) = &self.gate {
            gate.lock().unwrap().recv().unwrap_or_default();
        }
        if self.fails {
            return Err(OTelSdkError::InternalFailure("no".to_owned()));
        }
        self.spans.lock().unwrap().extend(batch);
        Ok(())
    }
}

fn traces(ratio: f64, exporter: Kept) -> Traces {
    let (sampler, queue) = (Sampler::new(ratio), SpanQueue::new(exporter));
    let server = ("provider".to_owned(), 443);
    Traces { tracer: Some(Arc::new(Tracer { sampler, queue, server })) }
}

fn gated() -> (Kept, Sender<()>) {
    let (open, gate) = channel();
    (Kept { gate: Some(Mutex::new(gate)), ..Kept::default() }, open)
}

fn close(traces: &Traces, within: Duration) {
    traces.tracer.as_ref().unwrap().queue.close(within);
}

const PATIENT: Duration = Duration::from_secs(30);

fn parent(is_sampled: bool) -> TraceParent {
    let context = SpanContext {
        trace: "4bf92f3577b34da6a3ce929d0e0e4736".parse().unwrap(),
        span: "00f067aa0ba902b7".parse().unwrap(),
    };
    TraceParent { context, is_sampled }
}

#[test]
fn a_ratio_of_ids_is_sampled() {
    let mut random = fastrand::Rng::with_seed(7);
    let ids: Vec<_> = (0..100_000).filter_map(|_| TraceId::from_u128(random.u128(..))).collect();
    let sampled = |ratio| {
        let sampler = Sampler::new(ratio);
        ids.iter().filter(|id| sampler.samples(**id)).collect::<Vec<_>>()
    };
    assert_eq!((sampled(0.0).len(), sampled(1.0).len()), (0, ids.len()));
    let few = sampled(0.01);
    assert!((800..1_200).contains(&few.len()), "{}", few.len());
    // A process with a higher ratio samples them, too.
    let more = Sampler::new(0.2);
    assert!(few.iter().all(|id| more.samples(**id)));
    assert!(Sampler::new(1.0).samples(TraceId::from_u128(u128::MAX).unwrap()));
}

/// A caller's decision wins over the ratio, and without traces its id is still known.
#[test]
fn who_decides() {
    for ratio in [0.0, 1.0] {
        let traces = traces(ratio, Kept::default());
        let (trace, span) = traces.request(Some(parent(true)));
        let (trace, own) = (trace.unwrap(), span.context().unwrap());
        assert_eq!(trace.id, parent(true).context.trace);
        assert_eq!(trace.context(), Some(own));
        assert_ne!(own.span, parent(true).context.span);
        let (trace, span) = traces.request(Some(parent(false)));
        assert_eq!(trace, Some(Trace { id: parent(false).context.trace, span: None }));
        assert!(!span.is_recording());
        let (trace, span) = traces.request(None);
        assert_eq!((trace.is_some(), span.is_recording()), (ratio > 0.5, ratio > 0.5));
    }
    let (trace, span) = Traces::off().request(Some(parent(true)));
    assert_eq!(trace, Some(Trace { id: parent(true).context.trace, span: None }));
    assert!(!span.is_recording());
    assert!(Traces::off().request(None).0.is_none());
    assert!(!Traces::off().child(Some(parent(true).context), Kind::Client).is_recording());
}

#[test]
fn what_is_exported() {
    let exporter = Kept::default();
    let spans = Arc::clone(&exporter.spans);
    let traces = traces(0.0, exporter);
    let (_, mut request) = traces.request(Some(parent(true)));
    let own = request.context().unwrap();
    let topic = Topic::parse("TopicA/p2p/GID@@@DEVICE").unwrap();
    request.destination("publish", &topic);
    request.text("text", &"é".repeat(1_000));
    request.number("number", u64::MAX);
    request.end();
    let mut call = traces.child(Some(own), Kind::Client);
    call.fails("closed");
    call.end();
    // Its future was dropped.
    drop(traces.child(Some(own), Kind::Internal));
    let start = "2026-01-01T00:00:00Z".parse().unwrap();
    let root = SpanContext { trace: TraceId::from_u128(1).unwrap(), ..own };
    traces.root(root, own, start).end();
    close(&traces, PATIENT);
    let spans = spans.lock().unwrap();
    let [request, call, dropped, root] = &spans[..] else { panic!("{spans:#?}") };
    let attribute = |span: &SpanData, key: &str| {
        let found = span.attributes.iter().find(|pair| pair.key.as_str() == key);
        found.map(|pair| pair.value.as_str().into_owned())
    };
    assert_eq!(request.name, "publish TopicA", "not the device: there are many");
    assert_eq!(request.parent_span_id.to_string(), "00f067aa0ba902b7");
    assert!(request.parent_span_is_remote);
    assert_eq!(attribute(request, "text"), Some("é".repeat(128)));
    assert_eq!(attribute(request, "number"), Some(i64::MAX.to_string()));
    assert_eq!(attribute(call, "error.type").as_deref(), Some("closed"));
    assert_eq!(attribute(call, "server.address").as_deref(), Some("provider"));
    assert_eq!(call.parent_span_id, request.span_context.span_id());
    assert!(!call.parent_span_is_remote);
    assert_eq!(attribute(dropped, "error.type").as_deref(), Some("abandoned"));
    assert_eq!(root.links[0].span_context, request.span_context);
    assert_eq!(root.start_time, std::time::SystemTime::from(start));
    assert!(root.end_time > root.start_time);
    assert_eq!(traces.counts().unwrap(), SpanCounts { exported: 4, failed: 0, dropped: 0 });
}

/// While the collector hangs, as many spans wait as may, and the rest is counted.
#[test]
fn spans_wait_in_a_bounded_queue() {
    let (exporter, open) = gated();
    let traces = traces(1.0, exporter);
    for _ in 0..3 * QUEUE {
        traces.request(None).1.end();
    }
    let waiting = SpanCounts { exported: 0, failed: 0, dropped: 2 * QUEUE as u64 };
    assert_eq!(traces.counts().unwrap(), waiting);
    drop(open);
    close(&traces, PATIENT);
    assert_eq!(traces.counts().unwrap(), SpanCounts { exported: QUEUE as u64, ..waiting });
}

/// A stop does not wait for a collector that hangs, and what it has not taken is counted once.
#[test]
fn a_stop_is_not_held_up() {
    let (exporter, open) = gated();
    let traces = traces(1.0, exporter);
    for _ in 0..10 {
        traces.request(None).1.end();
    }
    close(&traces, Duration::from_millis(1));
    assert_eq!(traces.counts().unwrap().dropped, 10);
    // What ends later is dropped, too.
    traces.request(None).1.end();
    assert_eq!(traces.counts().unwrap().dropped, 11);
    drop(open);
}

#[test]
fn what_the_collector_does_not_take_is_counted() {
    let traces = traces(1.0, Kept { fails: true, ..Kept::default() });
    for _ in 0..3 {
        traces.request(None).1.end();
    }
    close(&traces, PATIENT);
    assert_eq!(traces.counts().unwrap(), SpanCounts { exported: 0, failed: 3, dropped: 0 });
}
