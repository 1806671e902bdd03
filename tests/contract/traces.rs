//! Spans as a collector takes them, by OTLP's published definitions.

use crate::support;
use crate::support::collector::{Collector, TakenSpan, Takes};
use crate::support::http::{Answer, get, post, raw, series};
use crate::support::process::Serve;
use crate::support::script::{Script, error};
use rustix::process::Signal;
use serde_json::Value;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const OTHER: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "00f067aa0ba902b7";
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const PRODUCER: i32 = 4;

async fn serve(upstream: &str, collector: &str, more: &[(&str, &str)]) -> Serve {
    let settings = [("upstream.endpoint", upstream), ("telemetry.otlp.endpoint", collector)];
    Serve::start(&[&settings, more].concat(), &[]).await
}

fn parent(trace: &str, flags: &str) -> String {
    format!("00-{trace}-{SPAN}-{flags}")
}

async fn publish(serve: &Serve, parent: &str, body: &[u8]) -> Answer {
    post(&serve.publish, "/publish/TopicA/sub", &[("traceparent", parent)], body).await
}

fn is_call(span: &TakenSpan) -> bool {
    span.name == "send TopicA"
}

/// The span of a request is within its caller's, and the call within that of the request.
#[tokio::test]
async fn a_callers_trace_goes_on() {
    let (script, collector) = (Script::start([]).await, Collector::start(Takes::All).await);
    let serve = serve(&script.url, &collector.url, &[("telemetry.otlp.sample", "0")]).await;
    // Its caller does not record it, and there is no caller who does.
    assert_eq!(publish(&serve, &parent(OTHER, "00"), b"x").await.status, 200);
    assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"x").await.status, 200);
    let headers = [("traceparent", &*parent(TRACE, "01")), ("x-request-id", "mine")];
    let secret = b"a body that no span has";
    let answer = post(&serve.publish, "/publish/TopicA/sub", &headers, secret).await;
    assert_eq!(answer.status, 200);
    let call = collector.span("the call", is_call).await;
    let request = collector.span("the request", |span| span.kind == SERVER).await;
    assert_eq!(collector.spans().len(), 2, "{:#?}", collector.spans());

    assert_eq!((&*request.trace, &*request.parent), (TRACE, SPAN));
    assert_eq!((&*call.trace, &*call.parent), (TRACE, &*request.id));
    assert_eq!((request.kind, call.kind), (SERVER, CLIENT));
    assert_eq!((&*request.name, &*request.service), ("publish TopicA", "tollgate"));
    assert!(!request.has_failed && !call.has_failed);
    assert!(request.times.0 <= call.times.0 && call.times.1 <= request.times.1);
    let size = secret.len().to_string();
    for (span, key, value) in [
        (&request, "messaging.system", "apsaramq_mqtt"),
        (&request, "messaging.destination.name", "TopicA/sub"),
        (&request, "messaging.operation.type", "send"),
        (&request, "messaging.message.body.size", &*size),
        (&request, "http.request.method", "POST"),
        (&request, "http.route", "/publish/{topic}"),
        (&request, "http.response.status_code", "200"),
        (&request, "tollgate.outcome", "delivered"),
        (&request, "tollgate.request_id", "mine"),
        (&call, "messaging.message.id", request.attribute("messaging.message.id")),
        (&call, "server.address", "127.0.0.1"),
        (&call, "rpc.method", "SendMessage"),
        (&call, "tollgate.call.kind", "first"),
        (&call, "http.response.status_code", "200"),
        (&call, "aliyun.request_id", "REQ-OK"),
        (&call, "aliyun.msg_id", "0B736D997B7F45FF54E61C1C1B580000"),
    ] {
        assert_eq!(span.attribute(key), value, "{key}: {span:#?}");
    }
    let bytes = collector.bytes();
    for secret in [secret, &b"testid"[..], b"testsecret", b"YSBib2R5IHRoYXQg"] {
        let is_there = bytes.windows(secret.len()).any(|part| part == secret);
        assert!(!is_there, "{}", String::from_utf8_lossy(secret));
    }
    support::until("they are counted", async || {
        let metrics = get(&serve.telemetry, "/metrics").await.text();
        series(&metrics, "tollgate_spans_total{result=\"exported\"}") >= 2.0
    })
    .await;
}

/// Without a caller's decision the ratio decides, and the trace that begins is in the log.
#[tokio::test]
async fn a_trace_begins() {
    let script = Script::start([error(400, "ParameterCheckFailed")]).await;
    let collector = Collector::start(Takes::All).await;
    let serve = serve(&script.url, &collector.url, &[("telemetry.otlp.sample", "1.0")]).await;
    assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"x").await.status, 422);
    let request = collector.span("the request", |span| span.kind == SERVER).await;
    let call = collector.span("the call", is_call).await;
    assert_eq!((&*request.parent, &*call.parent), ("", &*request.id));
    assert_eq!(call.attribute("error.type"), "ParameterCheckFailed");
    assert_eq!(request.attribute("error.type"), "refused");
    assert!(call.has_failed && !request.has_failed, "its caller's fault: {request:#?}");
    serve.signal(Signal::TERM);
    let (_, log) = serve.ended().await;
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_message: Vec<_> = lines
        .filter(|line| {
            ["message not delivered", "call failed"]
                .contains(&line["message"].as_str().unwrap_or_default())
        })
        .collect();
    assert_eq!(of_message.len(), 2, "{log}");
    assert!(of_message.iter().all(|line| line["trace_id"] == *request.trace), "{log}");
}

/// Each message of a request with many has a span of its own; what waits for a permit says so.
#[tokio::test]
async fn many_messages_and_a_wait() {
    let (script, collector) = (Script::start([]).await, Collector::start(Takes::All).await);
    let ceiling = [("telemetry.otlp.sample", "1.0"), ("ceilings.account", "1")];
    let serve = serve(&script.url, &collector.url, &ceiling).await;
    let lines =
        b"{\"topic\":\"TopicA\",\"payload\":\"1\"}\n{\"topic\":\"TopicA\",\"payload\":\"2\"}\n{}";
    let headers =
        [("content-type", "application/x-ndjson"), ("traceparent", &*parent(TRACE, "01"))];
    let answer = post(&serve.publish, "/publish", &headers, lines).await;
    assert_eq!(answer.status, 207, "{}", answer.text());
    // It is the last that ends.
    collector.span("the request", |span| span.kind == SERVER).await;
    let spans = collector.spans();
    let of = |is_it: &dyn Fn(&TakenSpan) -> bool| -> Vec<_> {
        spans.iter().filter(|span| is_it(span)).collect()
    };
    let request = of(&|span| span.kind == SERVER);
    assert_eq!((request.len(), &*request[0].parent), (1, SPAN));
    assert_eq!(request[0].attribute("messaging.batch.message_count"), "3");
    assert_eq!(request[0].attribute("http.response.status_code"), "207");
    let messages = of(&|span| span.kind == PRODUCER);
    assert!(messages.len() == 3 && messages.iter().all(|span| span.parent == request[0].id));
    assert_eq!(
        messages.iter().filter(|span| span.attribute("error.type") == "malformed-line").count(),
        1,
        "{messages:#?}"
    );
    for call in of(&is_call) {
        let of: Vec<_> = messages.iter().filter(|span| span.id == call.parent).collect();
        assert_eq!(of.len(), 1, "{call:#?}");
        let id = "messaging.message.id";
        assert_eq!(of[0].attribute(id), call.attribute(id));
    }
    assert_eq!(of(&is_call).len(), 2);
    // One second is one call's, and the one before the first call is none's.
    let waits = of(&|span| span.name == "wait for a permit");
    assert!((1..=2).contains(&waits.len()), "{waits:#?}");
    for wait in &waits {
        assert_eq!(wait.attribute("tollgate.ceiling"), "account");
        assert!(messages.iter().any(|span| span.id == wait.parent));
    }
    let longest = waits.iter().map(|wait| wait.times.1 - wait.times.0).max();
    assert!(longest > Some(100_000_000), "{waits:#?}");
}

/// A message that is stored is delivered in a trace of its own, also by another process. It is linked to the
/// request.
#[tokio::test]
async fn a_stay_in_the_spool() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let settings = [
        ("spool.store", "disk"),
        ("spool.path", &*spool),
        ("retry.base", "1h"),
        ("retry.cap", "1h"),
        ("drain.grace", "100ms"),
    ];
    let script = Script::start([error(500, "SendMessageFailed")]).await;
    let collector = Collector::start(Takes::All).await;
    let first = serve(&script.url, &collector.url, &settings).await;
    let traceparent = parent(TRACE, "01");
    let headers = [("prefer", "respond-async"), ("traceparent", &*traceparent)];
    let kept = post(&first.publish, "/publish/TopicA", &headers, b"x").await;
    assert_eq!(kept.status, 202);
    let id = kept.json()["Id"].as_str().unwrap().to_owned();
    let request = collector.span("the request", |span| span.kind == SERVER).await;
    assert_eq!(request.attribute("tollgate.outcome"), "queued");
    let failed = collector.span("the call that failed", is_call).await;
    assert!(failed.has_failed);
    assert_eq!(failed.attribute("error.type"), "SendMessageFailed");
    assert_eq!(failed.attribute("aliyun.request_id"), "REQ-1");
    first.signal(Signal::TERM);
    first.ended().await;

    let settings = [("spool.store", "disk"), ("spool.path", &*spool)];
    let script = Script::start([]).await;
    let second = serve(&script.url, &collector.url, &settings).await;
    let stay = collector.span("the stay", |span| span.name == "spool TopicA").await;
    let again = |span: &TakenSpan| is_call(span) && !span.has_failed;
    let again = collector.span("the call that delivered it", again).await;
    assert_eq!((&*stay.trace, &*stay.parent), (&*id, ""));
    assert_eq!(stay.links, [(TRACE.to_owned(), request.id.clone())]);
    assert_eq!(stay.attribute("tollgate.outcome"), "delivered");
    assert_eq!(stay.attribute("tollgate.attempts"), "2");
    assert_eq!(stay.attribute("aliyun.request_id"), "REQ-OK");
    assert!(!stay.has_failed);
    for call in [&failed, &again] {
        assert_eq!((&*call.trace, &*call.parent), (&*id, &*stay.id), "{call:#?}");
        assert!(
            stay.times.0 <= call.times.0 && call.times.1 <= stay.times.1,
            "{stay:#?} {call:#?}"
        );
    }
    assert_eq!(failed.attribute("tollgate.call.kind"), "first");
    drop(second);
}

/// A dead letter's stay has ended; that of a message whose request was not sampled is not seen.
#[tokio::test]
async fn a_dead_letters_stay() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let script = Script::start([(); 2].map(|()| error(400, "ParameterCheckFailed"))).await;
    let collector = Collector::start(Takes::All).await;
    let settings = [("spool.store", "disk"), ("spool.path", &*spool)];
    let serve = serve(&script.url, &collector.url, &settings).await;
    for flags in ["00", "01"] {
        let traceparent = parent(TRACE, flags);
        let headers = [("prefer", "respond-async"), ("traceparent", &*traceparent)];
        let kept = post(&serve.publish, "/publish/TopicA", &headers, b"x").await;
        assert_eq!(kept.status, 202);
    }
    let stay = collector.span("the stay", |span| span.name == "spool TopicA").await;
    assert_eq!(stay.attribute("tollgate.outcome"), "dead");
    assert_eq!(stay.attribute("error.type"), "ParameterCheckFailed");
    assert!(stay.has_failed);
    serve.signal(Signal::TERM);
    serve.ended().await;
    let spans = collector.spans();
    assert_eq!(spans.len(), 3, "the request, its stay, the call: {spans:#?}");
}

/// A collector that is gone, fails or hangs changes nothing but the counts, and holds up no stop.
#[tokio::test]
async fn a_collector_that_takes_nothing() {
    let (_held, gone) = support::ports::refusing();
    let gone = format!("http://{gone}");
    let (fails, hangs) =
        (Collector::start(Takes::None(400)).await, Collector::start(Takes::Hangs).await);
    for (collector, result) in [(&gone, "failed"), (&fails.url, "failed"), (&hangs.url, "dropped")]
    {
        let script = Script::start([]).await;
        let all = [
            ("telemetry.otlp.sample", "1.0"),
            ("ceilings.account", "10000"),
            ("ceilings.egress_ip", "10000"),
        ];
        let serve = serve(&script.url, collector, &all).await;
        // A span for each message, and one for its call: more than may wait.
        let lines = "{\"topic\":\"TopicA\",\"payload\":\"x\"}\n".repeat(1_000);
        let headers = [("content-type", "application/x-ndjson")];
        for _ in 0..2 {
            let answer = post(&serve.publish, "/publish", &headers, lines.as_bytes()).await;
            assert_eq!(answer.status, 200, "{}", answer.text().lines().next().unwrap_or_default());
        }
        let counted = format!("tollgate_spans_total{{result=\"{result}\"}}");
        support::until("they are counted", async || {
            series(&get(&serve.telemetry, "/metrics").await.text(), &counted) > 0.0
        })
        .await;
        serve.signal(Signal::TERM);
        let (status, log) = serve.ended().await;
        assert_eq!(status.code(), Some(0), "{log}");
        let warnings = log.lines().filter(|line| line.contains("spans")).count();
        assert!((1..=3).contains(&warnings), "{log}");
    }
}

/// A collector with TLS is trusted by the file that names its authority, and not without.
#[tokio::test]
async fn a_collector_with_tls() {
    let folder = tempfile::tempdir().unwrap();
    let collector = Collector::with_tls(folder.path()).await;
    let authority = folder.path().join("ca.pem").display().to_string();
    let script = Script::start([]).await;
    let trusts =
        serve(&script.url, &collector.url, &[("telemetry.otlp.ca_file", &authority)]).await;
    assert_eq!(publish(&trusts, &parent(TRACE, "01"), b"x").await.status, 200);
    collector.span("the call", is_call).await;
    drop(trusts);
    let doubts = serve(&script.url, &collector.url, &[]).await;
    assert_eq!(publish(&doubts, &parent(OTHER, "01"), b"x").await.status, 200);
    doubts.logs("spans are not exported").await;
    assert!(collector.spans().iter().all(|span| span.trace != OTHER));
}

/// Buckets of the latency name the last sampled request in them, in OpenMetrics only.
#[tokio::test]
async fn exemplars() {
    let (script, collector) = (Script::start([]).await, Collector::start(Takes::All).await);
    let serve = serve(&script.url, &collector.url, &[("telemetry.otlp.sample", "0")]).await;
    assert_eq!(publish(&serve, &parent(OTHER, "00"), b"x").await.status, 200);
    assert_eq!(publish(&serve, &parent(TRACE, "01"), b"x").await.status, 200);
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\naccept: application/openmetrics-text;version=1.0.0\r\n\r\n";
    let text = raw(&serve.telemetry, request.as_bytes()).await.unwrap().text();
    let with: Vec<_> = text.lines().filter(|line| line.contains(" # {")).collect();
    let [line] = with[..] else { panic!("{with:?}") };
    assert!(
        line.starts_with("tollgate_publish_duration_seconds_bucket{outcome=\"delivered\","),
        "{line}"
    );
    let span = collector.span("the request", |span| span.kind == SERVER).await;
    let ids = format!(" # {{trace_id=\"{TRACE}\",span_id=\"{}\"}} ", span.id);
    assert!(line.contains(&ids), "{line}");
    let plain = get(&serve.telemetry, "/metrics").await.text();
    assert!(!plain.contains(" # {"));
}

/// A file of authorities that cannot be read is said at the start.
#[tokio::test]
async fn an_authority_that_is_not_there() {
    let args = [
        "serve",
        "--set",
        "upstream.endpoint=http://127.0.0.1:1",
        "--set",
        "upstream.instance_id=i",
        "--set",
        "listen.publish=127.0.0.1:0",
        "--set",
        "listen.telemetry=127.0.0.1:0",
        "--set",
        "listen.control=none",
        "--set",
        "spool.store=none",
        "--set",
        "telemetry.otlp.endpoint=https://127.0.0.1:1",
        "--set",
        "telemetry.otlp.ca_file=/nowhere",
    ];
    let key = [
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", "testid"),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "testsecret"),
    ];
    let said = support::process::run(&args, &key).await;
    assert_ne!(said.code, 0);
    assert!(said.stderr.contains("telemetry.otlp: /nowhere"), "{}", said.stderr);
}
