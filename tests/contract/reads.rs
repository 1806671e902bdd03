//! What is read at the callers' listener: receipts whose reader waits, and health.

use std::sync::Arc;

use crate::support::http::{Answer, BOUND, get, parse, post, raw};
use crate::support::script::{Say, Script, error};
use crate::support::{config, sidecar, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

async fn ask(address: &str, method: &str, path: &str, header: &str) -> Answer {
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{header}\r\n");
    raw(address, head.as_bytes()).await.unwrap()
}

#[tokio::test]
async fn a_receipt_whose_reader_waits() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let told = Arc::new(Notify::new());
    let script = Script::start([Say::Later(Arc::clone(&told))]).await;
    let flags = [("spool.store", "disk"), ("spool.path", &spool)];
    let (_sidecar, address, _) = sidecar(&config(&script.url, &flags)).await;
    let answer = post(&address, "/publish/TopicA", &[("prefer", "respond-async")], b"x").await;
    assert_eq!(answer.status, 202);
    let location = answer.header("location").to_owned();

    // A wait that ends before the message does.
    let queued = ask(&address, "GET", &location, "prefer: wait=1\r\n").await;
    assert_eq!((queued.status, queued.header("preference-applied")), (200, "wait=1"));
    assert_eq!(queued.json()["Status"], "queued");
    // A reader that asks for none has its answer at once, and no preference is applied.
    let now = ask(&address, "GET", &location, "prefer: respond-async\r\n").await;
    assert_eq!((&now.json()["Status"], now.header("preference-applied")), (&"queued".into(), ""));

    // The longest wait that is granted is longer than what this test waits for an answer.
    let mut reader = TcpStream::connect(&address).await.unwrap();
    let head = format!(
        "GET {location} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nprefer: wait=600\r\n\r\n"
    );
    reader.write_all(head.as_bytes()).await.unwrap();
    let reading = tokio::spawn(async move {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).await.unwrap();
        parse(&bytes).unwrap()
    });
    until("the call is made", async || script.requests().len() == 1).await;
    told.notify_one();
    let receipt = timeout(BOUND, reading).await.expect("it is woken").unwrap();
    assert_eq!((receipt.status, receipt.header("preference-applied")), (200, "wait=60"));
    assert_eq!(receipt.json()["Status"], "delivered");

    // HEAD is the same without its body.
    let head = ask(&address, "HEAD", &location, "prefer: wait=2\r\n").await;
    assert_eq!((head.status, head.header("preference-applied")), (200, "wait=2"));
    assert_eq!(head.header("content-type"), "application/json");
    let length = get(&address, &location).await.body.len().to_string();
    assert_eq!((head.header("content-length"), head.body.len()), (&*length, 0));
    let head = ask(&address, "HEAD", "/messages/x", "prefer: wait=60\r\n").await;
    assert_eq!((head.status, head.body.len()), (404, 0));
}

#[tokio::test]
async fn health_until_messages_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let told = Arc::new(Notify::new());
    let says = [error(500, "SendMessageFailed"), Say::Later(Arc::clone(&told))];
    let script = Script::start(says).await;
    let flags = [
        ("spool.store", "disk"),
        ("spool.path", &*spool),
        ("retry.base", "10ms"),
        ("drain.grace", "60s"),
    ];
    let (sidecar, address, telemetry) = sidecar(&config(&script.url, &flags)).await;
    for path in ["/healthz", "/openapi.json"] {
        let whole = get(&address, path).await;
        assert_eq!(whole.status, 200, "{path}");
        let head = ask(&address, "HEAD", path, "").await;
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        assert_eq!(head.header("content-length"), whole.body.len().to_string(), "{path}");
        let wrong = post(&address, path, &[], b"x").await;
        assert_eq!((wrong.status, wrong.header("allow")), (405, "GET, HEAD"), "{path}");
    }
    // It is no publish.
    let metrics = get(&telemetry, "/metrics").await.text();
    let counted =
        metrics.lines().filter(|line| line.starts_with("tollgate_publish_requests_total{"));
    assert!(counted.clone().all(|line| line.ends_with(" 0")), "{:?}", counted.collect::<Vec<_>>());

    // A message that waits for its call keeps the stop open.
    let answer = post(&address, "/publish/TopicA", &[("prefer", "respond-async")], b"x").await;
    assert_eq!(answer.status, 202);
    until("its second call is made", async || script.requests().len() >= 2).await;
    let stopping = tokio::spawn(sidecar.drain(std::future::pending()));
    let mut health = ask(&address, "GET", "/healthz", "").await;
    until("messages are refused", async || {
        health = ask(&address, "GET", "/healthz", "").await;
        health.status == 503
    })
    .await;
    assert_eq!(
        (health.text(), health.header("cache-control")),
        ("draining\n".to_owned(), "no-store")
    );
    assert_eq!(post(&address, "/publish/TopicA", &[], b"x").await.status, 503);
    told.notify_one();
    stopping.await.unwrap();
}
