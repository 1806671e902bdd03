//! A client that opens connections and sends nothing does not keep others away, and no request in progress
//! is cut for a new connection.

use std::sync::Arc;

use crate::support::http::{BOUND, get, post, series};
use crate::support::script::{Say, Script};
use crate::support::{config, sidecar, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

const PROBE: &[u8] = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
const PUBLISH: &[u8] =
    b"POST /publish/TopicA HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nx";

/// Connections that have sent these bytes.
async fn open(address: &str, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..count {
        let mut stream = timeout(BOUND, TcpStream::connect(address)).await.unwrap().unwrap();
        // One that was closed already for another.
        drop(stream.write_all(bytes).await);
        all.push(stream);
    }
    all
}

/// The status line of the next answer, whose body is short.
async fn status(stream: &mut TcpStream) -> String {
    let mut answer = vec![0; 4_096];
    let bytes = timeout(BOUND, stream.read(&mut answer)).await.expect("an answer").unwrap();
    let answer = String::from_utf8_lossy(&answer[..bytes]).into_owned();
    answer.lines().next().unwrap_or_default().to_owned()
}

/// A metric, which is a whole number.
async fn metric(telemetry: &str, name: &str) -> usize {
    let metrics = get(telemetry, "/metrics").await.text();
    format!("{:.0}", series(&metrics, name)).parse().unwrap()
}

#[tokio::test]
async fn silent_connections_give_way_to_a_probe() {
    let script = Script::start([]).await;
    let (_sidecar, _, telemetry) = sidecar(&config(&script.url, &[])).await;
    for bytes in [b"".as_slice(), b"GET /livez HTTP/1.1\r\nhost: loc", PROBE] {
        let silent = open(&telemetry, 100, bytes).await;
        assert_eq!(get(&telemetry, "/livez").await.status, 200);
        drop(silent);
    }
    let closed = "tollgate_connections_closed_total{listener=\"telemetry\",reason=\"made_room\"}";
    assert!(metric(&telemetry, closed).await >= 100);
}

/// This pod is one client machine, whatever its connections do.
#[tokio::test]
async fn a_client_machine_holds_half_of_the_slots_of_telemetry() {
    let script = Script::start([]).await;
    let (_sidecar, _, telemetry) = sidecar(&config(&script.url, &[])).await;
    let mut idle = open(&telemetry, 0, b"").await;
    for _ in 0..40 {
        let mut stream = open(&telemetry, 1, PROBE).await.remove(0);
        assert_eq!(status(&mut stream).await, "HTTP/1.1 200 OK");
        idle.push(stream);
    }
    assert_eq!(metric(&telemetry, "tollgate_connections_max{listener=\"telemetry\"}").await, 64);
    let open = metric(&telemetry, "tollgate_connections{listener=\"telemetry\"}").await;
    assert!((1..=32).contains(&open), "{open}");
    // The youngest are still served.
    let last = idle.last_mut().unwrap();
    last.write_all(PROBE).await.unwrap();
    assert_eq!(status(last).await, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn silent_connections_give_way_to_a_caller_and_requests_do_not() {
    let answer = Arc::new(Notify::new());
    let script = Script::start([Say::Later(Arc::clone(&answer))]).await;
    let flags = [("publish.max_connections", "4")];
    let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &flags)).await;
    let mut held = open(&publish, 1, PUBLISH).await.remove(0);
    until("the first call", async || script.requests().len() == 1).await;
    for bytes in [b"".as_slice(), b"POST /publish/TopicA HTTP/1.1\r\n"] {
        let silent = open(&publish, 20, bytes).await;
        assert_eq!(post(&publish, "/publish/TopicA", &[], b"good").await.status, 200);
        drop(silent);
    }
    answer.notify_one();
    assert_eq!(status(&mut held).await, "HTTP/1.1 200 OK");
    assert_eq!(script.requests().len(), 3);
    let closed = "tollgate_connections_closed_total{listener=\"publish\",reason=\"made_room\"}";
    assert!(metric(&telemetry, closed).await >= 17);
}

/// A new connection waits while all have requests in progress, and takes the place of the first one that
/// has none.
#[tokio::test]
async fn new_connections_wait_for_requests_in_progress() {
    let answers = [Arc::new(Notify::new()), Arc::new(Notify::new())];
    let script = Script::start(answers.clone().map(Say::Later)).await;
    let flags = [("publish.max_connections", "2")];
    let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &flags)).await;
    let mut held = Vec::new();
    for count in 1..=2 {
        held.extend(open(&publish, 1, PUBLISH).await);
        until("a call", async || script.requests().len() == count).await;
    }
    let mut waiting = open(&publish, 1, PUBLISH).await.remove(0);
    let closed = "tollgate_connections_closed_total{listener=\"publish\",reason=\"made_room\"}";
    assert_eq!(metric(&telemetry, closed).await, 0);
    assert_eq!(script.requests().len(), 2);
    answers[0].notify_one();
    assert_eq!(status(&mut held[0]).await, "HTTP/1.1 200 OK");
    assert_eq!(status(&mut waiting).await, "HTTP/1.1 200 OK");
    assert_eq!(metric(&telemetry, closed).await, 1);
    answers[1].notify_one();
    assert_eq!(status(&mut held[1]).await, "HTTP/1.1 200 OK");
}
