//! What is answered whatever the upstream does: to malformed requests of each operation, and to readers.

use super::exchanges::{Exchanges, Sent, request};
use crate::support::script::Script;
use crate::support::{config, sidecar};

const OPERATIONS: [(&str, &str); 8] = [
    ("POST", "/publish/TopicA"),
    ("POST", "/publish"),
    ("GET", "/messages/01a2082df4757088bbc9b040e1f84a7d"),
    ("HEAD", "/messages/01a2082df4757088bbc9b040e1f84a7d"),
    ("GET", "/healthz"),
    ("HEAD", "/healthz"),
    ("GET", "/openapi.json"),
    ("HEAD", "/openapi.json"),
];

pub(super) async fn all(exchanges: &mut Exchanges) {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let script = Script::start([]).await;
    let flags = [
        ("spool.store", "disk"),
        ("spool.path", &*spool),
        ("topics.allow", "TopicA, TopicA/*, Text"),
        ("upstream.payloads", "[{ topics = [\"Text\"], encoding = \"plain\" }]"),
        ("publish.max_header", "128KiB"),
    ];
    let (_sidecar, to, _) = sidecar(&config(&script.url, &flags)).await;
    for (method, path) in OPERATIONS {
        malformed(exchanges, &to, method, path).await;
    }
    let flags = [("publish.body_timeout", "200ms")];
    let (_slow, slow, _) = sidecar(&config(&script.url, &flags)).await;
    for path in ["/publish/TopicA", "/publish"] {
        let head = request("POST", path, &[super::exchanges::NDJSON, ("x-pad", "1")], b"");
        let head =
            String::from_utf8(head).unwrap().replace("content-length: 0", "content-length: 9");
        let late = exchanges.bytes(&slow, "POST", path, head.as_bytes()).await;
        assert_eq!(late.status, 408, "{}", late.text());
    }
    strangers(exchanges, &script.url).await;
    bodies(exchanges, &to).await;
    terms(exchanges, &to).await;
    readers(exchanges, &to).await;
}

/// Requests that do not prove to be of a caller, and one too many of a caller.
async fn strangers(exchanges: &mut Exchanges, upstream: &str) {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "hushsecret-of-the-orders").unwrap();
    let callers = format!(
        r#"[{{ name = "orders", token_file = "{}", calls_per_second = 1 }}]"#,
        token.display()
    );
    let (_sidecar, to, _) = sidecar(&config(upstream, &[("callers", &callers)])).await;
    for (method, path) in OPERATIONS.iter().take(4) {
        let kind = if *path == "/publish" { &[super::exchanges::NDJSON][..] } else { &[] };
        let bytes = request(method, path, kind, b"x");
        let answer = exchanges.bytes(&to, method, path, &bytes).await;
        assert_eq!(answer.status, 401, "{method} {path}");
    }
    let bearer = [("authorization", "Bearer hushsecret-of-the-orders")];
    let bytes = request("POST", "/publish/TopicA", &bearer, b"x");
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(exchanges.bytes(&to, "POST", "/publish/TopicA", &bytes).await.status);
    }
    assert!(statuses.contains(&429), "{statuses:?}");
}

async fn malformed(exchanges: &mut Exchanges, to: &str, method: &str, path: &str) {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    let chunk = "1\r\nx\r\n0\r\n\r\n";
    let foreign = head.replace("localhost", "evil.example");
    let no_host = head.replace("host: localhost\r\n", "");
    for (bytes, status) in [
        (format!("{no_host}\r\n"), 400),
        (format!("{head}content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n{chunk}"), 400),
        (format!("{foreign}\r\n"), 403),
        (format!("{head}origin: http://evil.example\r\n\r\n"), 403),
        (format!("{head}content-encoding: gzip\r\n\r\n"), 415),
        (format!("{head}transfer-encoding: gzip, chunked\r\n\r\n{chunk}"), 501),
    ] {
        let answer = exchanges.bytes(to, method, path, bytes.as_bytes()).await;
        assert_eq!(answer.status, status, "{bytes}");
    }
    if method != "HEAD" {
        let long = format!("{path}?{}", "x".repeat(70_000));
        let many = format!("{head}{}\r\n", "a: b\r\n".repeat(70));
        let answer = exchanges.bytes(to, method, path, many.as_bytes()).await;
        assert_eq!(answer.status, 431, "{path}");
        let answer = exchanges.send(to, method, &long, &[], b"").await;
        assert_eq!(answer.status, 414, "{path}");
        let nonsense = format!("{head}nonsense\r\n\r\n");
        assert_eq!(exchanges.bytes(to, method, path, nonsense.as_bytes()).await.status, 400);
    }
    assert_eq!(exchanges.send(to, "DELETE", path, &[], b"").await.status, 405);
    assert_eq!(exchanges.send(to, method, "/nothing", &[], b"").await.status, 404);
}

async fn bodies(exchanges: &mut Exchanges, to: &str) {
    let long = "x".repeat(50_000);
    for (sent, status) in [
        (Sent { topic: "a", ..Sent::new("x") }, 400),
        (Sent { topic: "Other", ..Sent::new("x") }, 403),
        (Sent::new(&long), 413),
    ] {
        exchanges.both(to, sent, status).await;
    }
    let key = [("idempotency-key", "\"open")];
    assert_eq!(exchanges.send(to, "POST", "/publish/TopicA", &key, b"x").await.status, 400);
    assert_eq!(exchanges.send(to, "POST", "/publish/Text", &[], b"\xff").await.status, 400);
    let good = "{\"topic\":\"TopicA\",\"payload\":\"x\"}\n";
    let long_key = "k".repeat(300);
    for (lines, status) in [
        (format!("{{\"topic\":\"TopicA\",\"payload\":\"x\",\"key\":\"{long_key}\"}}"), 400),
        ("{\"topic\":\"Text\",\"payloadBase64\":\"/w==\"}".to_owned(), 400),
        ("nonsense".to_owned(), 400),
        ("\n".to_owned(), 400),
        (format!("{good}nonsense"), 207),
        ("nonsense\n{\"topic\":\"Other\",\"payload\":\"x\"}".to_owned(), 422),
        (good.repeat(1_001), 413),
    ] {
        let answer = exchanges.many(to, &[], &lines).await;
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    assert_eq!(exchanges.many(to, &[("prefer", "stream, wait=9")], good).await.status, 207);
    assert_eq!(exchanges.many(to, &[("idempotency-key", "k")], good).await.status, 400);
    assert_eq!(exchanges.send(to, "POST", "/publish", &[], good.as_bytes()).await.status, 415);
    for path in ["/publish/TopicA", "/publish"] {
        let broken = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
        );
        assert_eq!(exchanges.bytes(to, "POST", path, broken.as_bytes()).await.status, 400);
    }
}

async fn terms(exchanges: &mut Exchanges, to: &str) {
    let line = "{\"topic\":\"TopicA\",\"payload\":\"x\"}";
    for header in [("ttl", "soon"), ("urgency", "now"), ("ce-id", "1")] {
        let one = exchanges.send(to, "POST", "/publish/TopicA", &[header], b"x").await;
        let many = exchanges.many(to, &[header], line).await;
        assert_eq!([one.status, many.status], [400, 400], "{header:?}");
    }
    let at_once = [("ttl", "0"), ("idempotency-key", "\"k\"")];
    let one = exchanges.send(to, "POST", "/publish/TopicA", &at_once, b"x").await;
    let keyed = line.replace('}', ",\"key\":\"k\",\"ttl\":0}");
    let many = exchanges.many(to, &[], &keyed).await;
    assert_eq!([one.status, many.status], [400, 400]);
}

async fn readers(exchanges: &mut Exchanges, to: &str) {
    let kept = exchanges.both(to, Sent { prefer: "respond-async", ..Sent::new("x") }, 202).await;
    let message = kept.header("location");
    let waited = exchanges.read(to, message, &[("prefer", "wait=30")]).await;
    assert_eq!(waited.json()["Status"], "delivered");
    for path in [message, "/healthz", "/openapi.json"] {
        assert_eq!(exchanges.read(to, path, &[]).await.status, 200, "{path}");
    }
    for path in ["/messages/x", "/messages/01a2082df4757088bbc9b040e1f84a7d"] {
        assert_eq!(exchanges.read(to, path, &[("prefer", "wait=1")]).await.status, 404);
    }
}
