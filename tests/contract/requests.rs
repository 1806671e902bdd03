//! Bad input of every kind at the callers' door gets the contract's clear answer, and the process
//! serves on.
#![allow(clippy::too_many_lines, reason = "tables are long")]

use std::sync::Arc;
use std::time::Duration;

use crate::support::http::{Answer, BOUND, get, parse, post, raw};
use crate::support::script::{Say, Script};
use crate::support::{config, sidecar, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::timeout;

/// What a bad request is told.
#[derive(Debug, Clone, Copy)]
struct Told(u16, &'static str);

const MALFORMED: Told = Told(400, "malformed-topic");
const TOO_LARGE: Told = Told(413, "payload-too-large");
const NOT_FOUND: Told = Told(404, "not-found");
const UNSUPPORTED: Told = Told(415, "unsupported-media-type");
const WRONG_METHOD: Told = Told(405, "method-not-allowed");

fn check(answer: Option<Answer>, told: Told, what: &str) {
    let answer = answer.unwrap_or_else(|| panic!("no answer: {what}"));
    assert_eq!(answer.status, told.0, "{what}: {:?}", String::from_utf8_lossy(&answer.body));
    let problem = answer.json();
    assert_eq!(answer.header("content-type"), "application/problem+json", "{what}");
    assert_eq!(problem["type"], format!("urn:tollgate:{}", told.1), "{what}");
    assert_eq!(problem["status"], told.0, "{what}");
    assert_eq!(problem["outcome"], "not-sent", "{what}");
    assert!(!problem["title"].as_str().unwrap().is_empty(), "{what}");
    assert!(problem["detail"].as_str().unwrap().len() > 20, "{what}: {problem}");
    assert!(!answer.header("x-request-id").is_empty(), "{what}");
    if told.0 == 405 {
        assert_eq!(answer.header("allow"), "POST", "{what}");
    }
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong() {
    let script = Script::start([]).await;
    let flags = [
        ("topics.allow", "TopicA, TopicA/*, Plain*"),
        ("publish.max_payload", "1KiB"),
        ("ceilings.account", "1000"),
    ];
    let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &flags)).await;

    let p2p_long = format!("/publish/TopicA/p2p/GID@@@{}", "d".repeat(60));
    let long = format!("/publish/{}", "t".repeat(65));
    let very_long = format!("/publish/{}", "t".repeat(5_000));
    let table: Vec<(&str, &str, Told)> = vec![
        // Topics.
        ("POST", "/publish/", MALFORMED),
        ("POST", "/publish//", MALFORMED),
        ("POST", "/publish/TopicA/", MALFORMED),
        ("POST", "/publish//TopicA", MALFORMED),
        ("POST", "/publish/TopicA//x", MALFORMED),
        ("POST", "/publish/ab", MALFORMED),
        ("POST", &long, MALFORMED),
        ("POST", &very_long, MALFORMED),
        ("POST", "/publish/TopicA/+", MALFORMED),
        ("POST", "/publish/TopicA/%2B", MALFORMED),
        ("POST", "/publish/TopicA/%23", MALFORMED),
        ("POST", "/publish/$SYS/broker", MALFORMED),
        ("POST", "/publish/%24SYS", MALFORMED),
        ("POST", "/publish/TopicA%00", MALFORMED),
        ("POST", "/publish/TopicA%0d%0aX-Evil:%201", MALFORMED),
        ("POST", "/publish/TopicA%20b", MALFORMED),
        ("POST", "/publish/Topic%C3%A9", MALFORMED),
        ("POST", "/publish/Topic%ff%fe", MALFORMED),
        ("POST", "/publish/TopicA%", MALFORMED),
        ("POST", "/publish/TopicA%4", MALFORMED),
        ("POST", "/publish/TopicA%zz", MALFORMED),
        ("POST", "/publish/TopicA%2541", MALFORMED),
        ("POST", "/publish/TopicA?x=1", MALFORMED),
        ("POST", "/publish/TopicA?", MALFORMED),
        ("POST", "/publish/TopicA/../x", MALFORMED),
        ("POST", "/publish/TopicA/p2p", MALFORMED),
        ("POST", "/publish/TopicA/p2p/nobody", MALFORMED),
        ("POST", "/publish/TopicA/p2p/@@@x", MALFORMED),
        ("POST", "/publish/TopicA/p2p/a@@@b/c", MALFORMED),
        ("POST", "/publish/TopicA/p2p/a@@@b@@@c", MALFORMED),
        ("POST", &p2p_long, MALFORMED),
        ("POST", "/publish/TopicB", Told(403, "forbidden-topic")),
        ("POST", "/publish/topica", Told(403, "forbidden-topic")),
        // Paths and methods.
        ("POST", "/", NOT_FOUND),
        ("POST", "/publish", UNSUPPORTED),
        ("POST", "/publisher/TopicA", NOT_FOUND),
        ("POST", "/PUBLISH/TopicA", NOT_FOUND),
        ("GET", "/metrics", NOT_FOUND),
        ("GET", "/publish/TopicA", WRONG_METHOD),
        ("PUT", "/publish/TopicA", WRONG_METHOD),
        ("DELETE", "/publish/TopicA", WRONG_METHOD),
        ("PATCH", "/publish/TopicA", WRONG_METHOD),
        ("OPTIONS", "/publish/TopicA", WRONG_METHOD),
        ("BREW", "/publish/TopicA", WRONG_METHOD),
    ];
    assert!(table.len() >= 40);
    for (method, path, told) in table {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx"
        );
        check(raw(&publish, request.as_bytes()).await, told, &format!("{method} {path}"));
    }

    // Bodies: declared too large, grown too large, ended early, badly framed.
    let head = "POST /publish/TopicA HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let big = format!("{head}content-length: 1025\r\n\r\n{}", "x".repeat(1_025));
    check(raw(&publish, big.as_bytes()).await, TOO_LARGE, "1,025 bytes");
    let huge = format!("{head}content-length: 999999999999\r\n\r\n");
    check(raw(&publish, huge.as_bytes()).await, TOO_LARGE, "a terabyte announced");
    let chunk = format!("400\r\n{}\r\n", "x".repeat(0x400));
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n");
    check(raw(&publish, chunked.as_bytes()).await, TOO_LARGE, "chunks without end");
    let broken = format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\nxx\r\n");
    check(raw(&publish, broken.as_bytes()).await, Told(400, "incomplete-body"), "no chunk");
    let mut stream = TcpStream::connect(&publish).await.unwrap();
    stream.write_all(format!("{head}content-length: 10\r\n\r\nabc").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    drop(timeout(BOUND, stream.read_to_end(&mut answer)).await.expect("no hang"));
    check(parse(&answer), Told(400, "incomplete-body"), "a body that ends early");

    // A body of exactly the limit is fine, and so is an empty one; nothing above was sent.
    assert!(script.requests().is_empty(), "{:?}", script.requests());
    assert_eq!(post(&publish, "/publish/TopicA", &[], &[b'x'; 1_024]).await.status, 200);
    assert_eq!(post(&publish, "/publish/TopicA%2Fp2p/a@@@b", &[], b"").await.status, 200);
    assert_eq!(get(&telemetry, "/livez").await.status, 200);
}

/// What is not HTTP at all is answered 400 or 4xx by the HTTP library or closed, at once.
#[tokio::test]
async fn garbage_on_the_socket() {
    let script = Script::start([]).await;
    let flags = [("publish.max_header", "8KiB")];
    let (_sidecar, publish, _) = sidecar(&config(&script.url, &flags)).await;
    let host = "POST /publish/TopicA HTTP/1.1\r\nhost: localhost\r\n";
    let many = format!("{host}{}\r\n", "a: b\r\n".repeat(500));
    let long = format!("{host}x: {}\r\n\r\n", "y".repeat(20_000));
    let path = format!("POST /publish/{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "t".repeat(70_000));
    let lengths = format!("{host}content-length: 1\r\ncontent-length: 2\r\n\r\nx");
    let negative = format!("{host}content-length: -1\r\n\r\nx");
    let folded = format!("{host}x: a\r\n b\r\nconnection: close\r\n\r\n");
    for (what, bytes, statuses) in [
        ("random bytes", &[0x80_u8, 0x81, 0, 0xff, b'\r', b'\n', b'\r', b'\n'][..], &[400][..]),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", &[400]),
        // hyper knows the preface and closes.
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0]),
        ("no version", b"POST /publish/TopicA\r\n\r\n", &[400]),
        ("HTTP/3.7", b"POST /publish/TopicA HTTP/3.7\r\n\r\n", &[400, 505]),
        ("header without a colon", b"POST /publish/TopicA HTTP/1.1\r\nnonsense\r\n\r\n", &[400]),
        ("header with NUL", b"POST /publish/TopicA HTTP/1.1\r\nx: \0\r\n\r\n", &[400]),
        ("too many headers", many.as_bytes(), &[431]),
        ("too long a header", long.as_bytes(), &[431]),
        ("too long a path", path.as_bytes(), &[414, 431]),
        ("two lengths", lengths.as_bytes(), &[400]),
        ("a negative length", negative.as_bytes(), &[400]),
        ("a folded header", folded.as_bytes(), &[400]),
        ("nothing but line ends", b"\r\n\r\n\r\n\r\nx\r\n\r\n", &[400]),
    ] {
        let answer = raw(&publish, bytes).await;
        let status = answer.map_or(0, |answer| answer.status);
        assert!(statuses.contains(&status), "{what}: {status}");
    }
    assert!(script.requests().is_empty());
    assert_eq!(post(&publish, "/publish/TopicA", &[], b"still here").await.status, 200);
}

#[tokio::test]
async fn slow_clients_do_not_hold_us() {
    let script = Script::start([]).await;
    let flags = [
        ("publish.header_timeout", "200ms"),
        ("publish.body_timeout", "200ms"),
        ("publish.idle_timeout", "200ms"),
    ];
    let (_sidecar, publish, _) = sidecar(&config(&script.url, &flags)).await;
    let read = async |mut stream: TcpStream| {
        let mut answer = Vec::new();
        drop(timeout(BOUND, stream.read_to_end(&mut answer)).await.expect("closed in time"));
        parse(&answer)
    };
    // A connection without a request, and one that never ends its head: closed.
    let idle = TcpStream::connect(&publish).await.unwrap();
    assert!(read(idle).await.is_none());
    let mut head = TcpStream::connect(&publish).await.unwrap();
    head.write_all(b"POST /publish/TopicA HTTP/1.1\r\nhost:").await.unwrap();
    assert!(read(head).await.is_none());
    // A head that trickles does not live longer for it.
    let mut trickle = TcpStream::connect(&publish).await.unwrap();
    let begun = tokio::time::Instant::now();
    while trickle.write_all(b"x").await.is_ok() && begun.elapsed() < BOUND {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(begun.elapsed() < BOUND, "a trickling head is closed");
    // A body that never comes: told so.
    let mut body = TcpStream::connect(&publish).await.unwrap();
    let request =
        b"POST /publish/TopicA HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nab";
    body.write_all(request).await.unwrap();
    check(read(body).await, Told(408, "body-timeout"), "a slow body");
    // A used one that is idle is closed, too.
    let request = b"POST /publish/TopicA HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\na";
    let mut used = TcpStream::connect(&publish).await.unwrap();
    used.write_all(request).await.unwrap();
    assert_eq!(read(used).await.unwrap().status, 200);
    // But an idle keep-alive connection lives on between requests for longer than a head may take.
    let flags = [flags[0], ("publish.idle_timeout", "1m")];
    let (_sidecar, publish, _) = sidecar(&config(&script.url, &flags)).await;
    let mut keep = TcpStream::connect(&publish).await.unwrap();
    for _ in 0..2 {
        keep.write_all(request).await.unwrap();
        let mut answer = [0; 2_048];
        let n = timeout(BOUND, keep.read(&mut answer)).await.unwrap().unwrap();
        assert_eq!(parse(&answer[..n]).unwrap().status, 200);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(script.requests().len(), 3);
}

#[tokio::test]
async fn plain_payloads_are_text() {
    let script = Script::start([]).await;
    let flags = [("upstream.payload", "plain")];
    let (_sidecar, publish, _) = sidecar(&config(&script.url, &flags)).await;
    let bad = post(&publish, "/publish/TopicA", &[], &[0xff, 0xfe]).await;
    check(Some(bad), Told(400, "invalid-payload"), "bytes that are no text");
    assert_eq!(post(&publish, "/publish/TopicA", &[], "日本 +/=".as_bytes()).await.status, 200);
    assert!(script.requests()[0].contains("Payload=%E6%97%A5%E6%9C%AC%20%2B%2F%3D&"));
}

#[tokio::test]
async fn topics_without_an_instance() {
    let script = Script::start([]).await;
    let toml = format!(
        "[listen]\npublish = \"127.0.0.1:0\"\ntelemetry = \"127.0.0.1:0\"\n[upstream]\nendpoint = {:?}\n\
         [[upstream.instances]]\ninstance_id = \"post-cn-alarm\"\ntopics = [\"Alarm/*\"]\n",
        script.url
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tollgate.toml");
    std::fs::write(&file, toml).unwrap();
    let config = tollgate::config::load(Some(&file), [], &[]).unwrap().config;
    let (_sidecar, publish, _) = sidecar(&config).await;
    let other = post(&publish, "/publish/Other", &[], b"x").await;
    check(Some(other), Told(403, "forbidden-topic"), "no instance");
    assert_eq!(post(&publish, "/publish/Alarm/fire", &[], b"x").await.status, 200);
    assert!(script.requests()[0].contains("InstanceId=post-cn-alarm&"));
}

#[tokio::test]
async fn the_callers_headers() {
    let held = Arc::new(Notify::new());
    let script = Script::start([Say::Later(Arc::clone(&held))]).await;
    let flags = [("ceilings.account", "1000"), ("ceilings.egress_ip", "300")];
    let (_sidecar, publish, _) = sidecar(&config(&script.url, &flags)).await;
    // A call on its way, and its permit: what is free does not depend on how long this takes.
    let first = tokio::spawn({
        let publish = publish.clone();
        let headers = [("x-request-id", "abc-1"), ("prefer", "wait=60")];
        async move { post(&publish, "/publish/TopicA", &headers, b"x").await }
    });
    until("it is called", async || script.requests().len() == 1).await;
    // A refusal has them, too.
    let answer = post(&publish, "/publish/x", &[], b"x").await;
    assert_eq!((answer.status, answer.header("ratelimit")), (400, "\"egress-ip\";r=299;t=1"));
    held.notify_one();
    let answer = first.await.unwrap();
    assert_eq!(answer.header("x-request-id"), "abc-1");
    assert_eq!(
        answer.header("ratelimit-policy"),
        "\"account\";q=1000;w=1, \"egress-ip\";q=300;w=1"
    );
    assert!(answer.header("ratelimit").starts_with("\"egress-ip\";r="), "{answer:?}");
    assert_eq!(answer.header("preference-applied"), "wait=60");
    // An id that nobody should have to read is replaced.
    let odd = "x".repeat(200);
    let answer = post(&publish, "/publish/TopicA", &[("x-request-id", &odd)], b"x").await;
    assert_eq!(answer.header("x-request-id").len(), 32);
    assert_eq!(answer.header("preference-applied"), "");
    let answer = post(&publish, "/publish/TopicA", &[("prefer", "wait=3, foo")], b"x").await;
    assert_eq!(answer.header("preference-applied"), "wait=3");
    let answer = post(&publish, "/publish/TopicA", &[("prefer", "wait=0")], b"x").await;
    assert_eq!((answer.status, answer.json()["outcome"].as_str()), (504, Some("not-sent")));
    let answer = post(&publish, "/publish/TopicA", &[("prefer", "wait=9999")], b"x").await;
    assert_eq!(answer.header("preference-applied"), "wait=60");
}

#[tokio::test]
async fn a_unix_socket_is_a_door_too() {
    let script = Script::start([]).await;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("deep/publish.sock");
    // Somebody crashed and left it behind.
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let address = format!("127.0.0.1:0, unix:{}", socket.display());
    let flags = [("listen.publish", address.as_str())];
    let (sidecar, _, _) = sidecar(&config(&script.url, &flags)).await;
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    let request = b"POST /publish/TopicA HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx";
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    timeout(BOUND, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(parse(&answer).unwrap().status, 200);
    sidecar.drain(std::future::pending()).await;
    assert!(!socket.exists(), "it is removed at the end");
}

#[tokio::test]
async fn more_connections_than_allowed_wait_their_turn() {
    let answer = Arc::new(Notify::new());
    let script = Script::start([Say::Later(Arc::clone(&answer)), Say::Hang]).await;
    let flags = [("publish.max_connections", "2")];
    let (_sidecar, publish, _) = sidecar(&config(&script.url, &flags)).await;
    // Requests in progress; connections without one would give way.
    let request = b"POST /publish/TopicA HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\n\r\nx";
    let mut busy = Vec::new();
    for count in 1..=2 {
        let mut stream = TcpStream::connect(&publish).await.unwrap();
        stream.write_all(request).await.unwrap();
        busy.push(stream);
        until("its call", async || script.requests().len() == count).await;
    }
    let third = tokio::spawn({
        let publish = publish.clone();
        async move { post(&publish, "/publish/TopicA", &[], b"x").await.status }
    });
    // It may look longer, and never sees the third answered.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!third.is_finished(), "it is answered before its turn");
    answer.notify_one();
    assert_eq!(timeout(BOUND, third).await.unwrap().unwrap(), 200);
}
