//! `CloudEvents` in binary mode: refused, or carried in their JSON format.

use serde_json::{Value, json};

use crate::support::http::{Answer, post};
use crate::support::script::Script;
use crate::support::{config, sidecar};

const EVENT: [(&str, &str); 5] = [
    ("ce-specversion", "1.0"),
    ("ce-id", "a-1"),
    ("ce-source", "/orders"),
    ("ce-type", "made"),
    ("content-type", "application/json"),
];

/// The payload of the last call, as it was sent.
fn payload(script: &Script) -> String {
    let request = script.requests().pop().unwrap();
    let after = request.split("Payload=").nth(1).unwrap();
    let value = after.split('&').next().unwrap();
    percent_encoding::percent_decode_str(value).decode_utf8().unwrap().into_owned()
}

async fn publish(address: &str, more: &[(&str, &str)], body: &str) -> Answer {
    let base = EVENT.iter().filter(|(name, _)| more.iter().all(|(other, _)| other != name));
    let headers: Vec<_> = base.chain(more).copied().collect();
    post(address, "/publish/TopicA", &headers, body.as_bytes()).await
}

#[tokio::test]
async fn without_being_asked_for_they_are_refused() {
    let script = Script::start([]).await;
    let (_sidecar, address, _) = sidecar(&config(&script.url, &[])).await;
    let answer = publish(&address, &[], "{}").await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["type"], "urn:tollgate:cloud-event");
    // An event in structured mode is a body, whatever headers repeat of it.
    let structured = [("content-type", "application/cloudevents+json")];
    assert_eq!(publish(&address, &structured, "{\"id\":\"a-1\"}").await.status, 200);
    assert_eq!(payload(&script), "eyJpZCI6ImEtMSJ9");
    let lines = [EVENT[0], ("content-type", "application/x-ndjson")];
    let line = b"{\"topic\":\"TopicA\",\"payload\":\"x\"}";
    assert_eq!(post(&address, "/publish", &lines, line).await.status, 400);
    assert_eq!(script.requests().len(), 1);
}

#[tokio::test]
async fn in_their_json_format_and_once() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool").display().to_string();
    let script = Script::start([]).await;
    let flags = [
        ("publish.cloud_events", "structured"),
        ("publish.cloud_event_keys", "true"),
        ("publish.max_payload", "1KiB"),
        ("upstream.payload", "plain"),
        ("spool.store", "disk"),
        ("spool.path", &spool),
    ];
    let (_sidecar, address, _) = sidecar(&config(&script.url, &flags)).await;
    let first = publish(&address, &[], "{\"n\": 1.50}").await;
    assert_eq!(first.status, 200, "{}", first.text());
    let sent = payload(&script);
    assert!(sent.contains("\"data\":{\"n\": 1.50}"), "{sent}");
    let event: Value = serde_json::from_str(&sent).unwrap();
    let expected = json!({
        "specversion": "1.0", "id": "a-1", "source": "/orders", "type": "made",
        "datacontenttype": "application/json", "data": {"n": 1.5},
    });
    assert_eq!(event, expected);
    // The same event again, at another time.
    let again = publish(&address, &[("ce-time", "2026-11-28T12:00:00Z")], "{\"n\": 1.50}").await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (200, "true"));
    assert_eq!(publish(&address, &[], "{\"n\": 2}").await.status, 422, "another one with its id");
    assert_eq!(publish(&address, &[("ce-source", "/other")], "{\"n\": 2}").await.status, 200);
    // Its own key comes first.
    let keyed = [("idempotency-key", "\"k\"")];
    assert_eq!(publish(&address, &keyed, "{\"n\": 3}").await.status, 200);
    assert_eq!(script.requests().len(), 3);
    for (headers, body, status) in [
        (&[("ce-specversion", "0.3")][..], "{}", 400),
        (&[("ce-id", "")], "{}", 400),
        (&[("ce-id", "b"), ("content-type", "application/json")], "{", 400),
        // It fits as a body, and not as an event.
        (&[("ce-id", "c"), ("content-type", "text/plain")], &"x".repeat(1_000), 413),
    ] {
        assert_eq!(publish(&address, headers, body).await.status, status, "{headers:?}");
    }
}
