//! What callers are answered for what becomes of their messages.

use std::sync::Arc;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tollgate::sidecar::Sidecar;

use super::exchanges::{Exchanges, NDJSON, Sent, request};
use crate::support::http::post;
use crate::support::script::{Say, Script, error};
use crate::support::{config, sidecar, until};

/// No retry comes by itself as long as the test looks.
const RARELY: [(&str, &str); 2] = [("retry.base", "1h"), ("retry.cap", "1h")];

struct Stage {
    folder: TempDir,
    script: Script,
    sidecar: Sidecar,
    to: String,
}

/// A sidecar of its own, before an upstream that says these things first.
async fn stage(says: impl IntoIterator<Item = Say>, flags: &[(&str, &str)]) -> Stage {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool").display().to_string();
    let control = format!("unix:{}", folder.path().join("control.sock").display());
    let script = Script::start(says).await;
    let flags = [flags, &[("spool.path", &spool), ("listen.control", &control)]].concat();
    let (sidecar, to, _) = sidecar(&config(&script.url, &flags)).await;
    Stage { folder, script, sidecar, to }
}

const DISK: (&str, &str) = ("spool.store", "disk");

fn nine(say: &Say) -> Vec<Say> {
    vec![say.clone(); 9]
}

pub(super) async fn all(exchanges: &mut Exchanges) {
    delivered_and_refused(exchanges).await;
    over_limits(exchanges).await;
    upstream_fails(exchanges).await;
    keys(exchanges).await;
    ended(exchanges).await;
    expired(exchanges).await;
    full(exchanges).await;
    draining(exchanges).await;
}

pub(super) async fn delivered_and_refused(exchanges: &mut Exchanges) {
    let Stage { to, sidecar: _sidecar, .. } = &stage([], &[]).await;
    exchanges.both(to, Sent { prefer: "wait=20", ..Sent::new("x") }, 200).await;
    let Stage { to, sidecar: _sidecar, .. } =
        &stage(nine(&error(400, "ParameterCheckFailed")), &[]).await;
    exchanges.both(to, Sent::new("x"), 422).await;
}

async fn over_limits(exchanges: &mut Exchanges) {
    let flags = [("ceilings.account", "1"), ("publish.wait", "1ms")];
    let Stage { to, sidecar: _sidecar, .. } = &stage([], &flags).await;
    // The permit is free again after a second, in which a machine that stands still may do nothing.
    loop {
        exchanges.one(to, Sent { prefer: "wait=20", ..Sent::new("x") }).await;
        if exchanges.one(to, Sent::new("x")).await.status == 429 {
            break;
        }
    }
    let once = "[{ name = \"once\", messages = 1, period = \"day\", on_exceed = \"refuse\" }]";
    let Stage { to, sidecar: _sidecar, .. } = &stage([], &[("billing.budgets", once)]).await;
    exchanges.one(to, Sent::new("x")).await;
    exchanges.both(to, Sent::new("x"), 429).await;
    let Stage { to, sidecar: _sidecar, .. } =
        &stage(nine(&error(400, "Throttling.User")), &[]).await;
    exchanges.both(to, Sent::new("x"), 429).await;
}

async fn upstream_fails(exchanges: &mut Exchanges) {
    for code in ["PermissionCheckFailed", "SendMessageFailed"] {
        let status = if code == "SendMessageFailed" { 500 } else { 400 };
        let Stage { to, sidecar: _sidecar, .. } = &stage(nine(&error(status, code)), &[]).await;
        exchanges.both(to, Sent::new("x"), 502).await;
    }
    let Stage { to, sidecar: _sidecar, .. } = &stage([], &[]).await;
    exchanges.both(to, Sent { prefer: "wait=0", ..Sent::new("x") }, 504).await;
    let Stage { to, sidecar: _sidecar, .. } =
        &stage([Say::Close], &[DISK, ("retry.unknown", "park")]).await;
    let parked = Sent { key: "k", ..Sent::new("x") };
    let id = exchanges.both(to, parked, 504).await.json()["Id"].as_str().unwrap().to_owned();
    let message = exchanges.read(to, &format!("/messages/{id}"), &[]).await;
    assert_eq!(message.json()["Status"], "unknown");
}

async fn keys(exchanges: &mut Exchanges) {
    let held = Arc::new(Notify::new());
    let Stage { to, script, sidecar: _sidecar, .. } =
        &stage([Say::Later(Arc::clone(&held))], &[DISK]).await;
    let key = Sent { key: "k", ..Sent::new("x") };
    let first = tokio::spawn({
        let to = to.clone();
        async move { post(&to, "/publish/TopicA", &[("idempotency-key", "k")], b"x").await }
    });
    until("it is called", async || script.requests().len() == 1).await;
    exchanges.both(to, key, 409).await;
    held.notify_one();
    exchanges.add("POST", "/publish/TopicA", &first.await.unwrap());
    let again = exchanges.both(to, key, 200).await;
    assert_eq!(again.header("idempotency-replayed"), "true");
    exchanges.both(to, Sent { body: "other", ..key }, 422).await;
}

/// Messages that end after their 202.
async fn ended(exchanges: &mut Exchanges) {
    let flags = [&[DISK], &RARELY[..]].concat();
    let says = [error(400, "ParameterCheckFailed"), error(500, "SendMessageFailed")];
    let Stage { to, folder, sidecar: _sidecar, .. } = &stage(says, &flags).await;
    let key = |key| Sent { prefer: "respond-async", key, ..Sent::new("x") };
    let dead = exchanges.one(to, key("dead")).await;
    let dead = exchanges.read(to, dead.header("location"), &[("prefer", "wait=20")]).await;
    assert_eq!(dead.json()["Status"], "dead");
    exchanges.both(to, key("dead"), 202).await;

    let queued = exchanges.one(to, key("dropped")).await;
    let location = queued.header("location").to_owned();
    let queued = exchanges.read(to, &location, &[("prefer", "wait=1")]).await;
    assert_eq!(queued.json()["Status"], "queued");
    let selection = format!("{{\"ids\":[\"{}\"]}}", queued.json()["Id"].as_str().unwrap());
    let mut control = UnixStream::connect(folder.path().join("control.sock")).await.unwrap();
    control.write_all(&request("POST", "/messages/drop", &[], selection.as_bytes())).await.unwrap();
    let mut told = String::new();
    control.read_to_string(&mut told).await.unwrap();
    assert!(told.contains("\"messages\":1") || told.contains("\"Messages\":1"), "{told}");
    exchanges.both(to, key("dropped"), 410).await;
    assert_eq!(exchanges.read(to, &location, &[]).await.json()["Status"], "dropped");
}

/// Messages whose time to live ends while their callers wait.
async fn expired(exchanges: &mut Exchanges) {
    let says = [error(500, "SendMessageFailed"), error(500, "SendMessageFailed")];
    let flags = [&[DISK], &RARELY[..]].concat();
    let Stage { to, sidecar: _sidecar, .. } = &stage(says, &flags).await;
    let headers = [("ttl", "1"), ("prefer", "wait=20")];
    let one = exchanges.send(to, "POST", "/publish/TopicA", &headers, b"x").await;
    let line = "{\"topic\":\"TopicA\",\"payload\":\"x\",\"ttl\":1,\"urgency\":\"high\"}";
    let many = exchanges.many(to, &headers[1..], line).await;
    assert_eq!([one.status, many.status], [504, 504], "{} {}", one.text(), many.text());
    let message = format!("/messages/{}", one.json()["Id"].as_str().unwrap());
    assert_eq!(exchanges.read(to, &message, &[]).await.json()["Status"], "expired");
}

async fn full(exchanges: &mut Exchanges) {
    let flags = [DISK, ("spool.max_messages", "2")];
    let Stage { to, sidecar: _sidecar, .. } = &stage([], &flags).await;
    for key in ["k1", "k2"] {
        exchanges.one(to, Sent { key, ..Sent::new("x") }).await;
    }
    exchanges.both(to, Sent { key: "k3", ..Sent::new("x") }, 503).await;

    let flags = [DISK, ("idempotency.max_keys", "1")];
    let Stage { to, sidecar: _sidecar, .. } = &stage([], &flags).await;
    exchanges.one(to, Sent { key: "k1", ..Sent::new("x") }).await;
    exchanges.both(to, Sent { key: "k2", ..Sent::new("x") }, 503).await;

    // As many requests with many messages as are read at once.
    let Stage { to, sidecar: _sidecar, .. } = &stage([], &[]).await;
    let head = String::from_utf8(request("POST", "/publish", &[NDJSON], b"")).unwrap();
    let head = head.replace("content-length: 0", "content-length: 9");
    let mut open = Vec::new();
    for _ in 0..16 {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        open.push(stream);
    }
    let line = "{\"topic\":\"TopicA\",\"payload\":\"x\"}";
    while exchanges.many(to, &[], line).await.status != 503 {}
}

async fn draining(exchanges: &mut Exchanges) {
    // A call that is under way keeps the stop open.
    let held = Arc::new(Notify::new());
    let flags = [DISK, ("drain.grace", "60s")];
    let Stage { to, script, sidecar, folder } =
        stage([Say::Later(Arc::clone(&held))], &[&flags[..], &RARELY].concat()).await;
    exchanges.one(&to, Sent { prefer: "respond-async", ..Sent::new("x") }).await;
    until("it is called", async || !script.requests().is_empty()).await;
    let stopping = tokio::spawn(sidecar.drain(std::future::pending()));
    while exchanges.read(&to, "/healthz", &[]).await.status != 503 {}
    exchanges.read(&to, "/healthz", &[]).await;
    exchanges.both(&to, Sent::new("x"), 503).await;
    held.notify_one();
    stopping.await.unwrap();
    drop(folder);
}
