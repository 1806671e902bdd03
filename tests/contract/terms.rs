//! `TTL` and `Urgency` at the callers' door: headers, lines, rules by topic, and what callers and operators see of
//! messages that have expired.

use std::time::Duration;

use crate::support;
use crate::support::http::{Answer, get, post, series};
use crate::support::process::{Serve, run};
use crate::support::script::{Script, error};
use crate::support::{config, sidecar, until};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tollgate::message::Urgency;

const ASYNC: (&str, &str) = ("prefer", "respond-async");
const RULES: &str = r#"[{ topics = ["Alarm/*"], ttl = "30s", urgency = "high" }, { topics = ["Alarm/*", "Log"], ttl = "1h", urgency = "low" }, { topics = ["Slow*"], urgency = "very-low" }]"#;

/// Nothing gets through.
fn failures() -> impl Iterator<Item = support::script::Say> {
    (0..10_000).map(|_| error(500, "SendMessageFailed"))
}

fn expired(metrics: &str) -> [String; 2] {
    ["not_sent", "unknown"].map(|outcome| {
        let name = format!("tollgate_expired_messages_total{{outcome=\"{outcome}\"}}");
        series(metrics, &name).to_string()
    })
}

/// What is stored of the message of an answer: how long it has, and its urgency.
fn stored(sidecar: &tollgate::sidecar::Sidecar, id: &str) -> (Option<f64>, Urgency) {
    let brief = sidecar.delivery().find(id.parse().unwrap()).unwrap();
    let left = |at: Timestamp| at.duration_since(brief.kept_at).as_secs_f64();
    (brief.expiry.map(|expiry| left(expiry.timestamp())), brief.urgency)
}

#[tokio::test]
async fn headers_lines_and_rules() {
    let folder = tempfile::tempdir().unwrap();
    let script = Script::start(failures()).await;
    let spool = folder.path().display().to_string();
    let flags = [
        ("spool.store", "disk"),
        ("spool.path", &*spool),
        ("topics.rules", RULES),
        ("retry.base", "1h"),
        ("retry.cap", "1h"),
    ];
    let (sidecar, address, _) = sidecar(&config(&script.url, &flags)).await;
    let forever = 1_u64 << 31;
    let none: Option<u64> = None;
    for (topic, headers, ttl, urgency) in [
        ("TopicA", &[][..], none, Urgency::Normal),
        ("TopicA", &[("ttl", "60")], Some(60), Urgency::Normal),
        ("TopicA", &[("ttl", "007"), ("urgency", "HIGH")], Some(7), Urgency::High),
        ("TopicA", &[("ttl", "99999999999999999999999999")], Some(forever), Urgency::Normal),
        // By the first rule; the header wins.
        ("Alarm/x", &[], Some(30), Urgency::High),
        ("Alarm/x", &[("ttl", "600")], Some(600), Urgency::High),
        ("Alarm/x", &[("urgency", "very-low")], Some(30), Urgency::VeryLow),
        ("Log", &[("urgency", "normal")], Some(3_600), Urgency::Normal),
        ("Slow/a", &[], None, Urgency::VeryLow),
    ] {
        let about = format!("{topic} {headers:?}");
        let all = [headers, &[ASYNC]].concat();
        let answer = post(&address, &format!("/publish/{topic}"), &all, b"x").await;
        assert_eq!(answer.status, 202, "{about}: {}", answer.text());
        check(&stored(&sidecar, answer.json()["Id"].as_str().unwrap()), ttl, urgency, &about);
        // The same for a line whose request has the headers, and for a line that says so itself.
        let ndjson = [&all[..], &[("content-type", "application/x-ndjson")]].concat();
        let line = format!("{{\"topic\":\"{topic}\",\"payload\":\"x\"}}");
        let answer = post(&address, "/publish", &ndjson, line.as_bytes()).await;
        check(&stored(&sidecar, answer.json()["Id"].as_str().unwrap()), ttl, urgency, &about);
        let mut line = serde_json::json!({"topic": topic, "payload": "x", "urgency": urgency});
        let said = headers.iter().find(|(name, _)| *name == "ttl");
        line["ttl"] = said.map_or(Value::Null, |(_, ttl)| ttl.parse().unwrap_or(forever).into());
        // Other headers, which the line wins over where it says something.
        let mut others = vec![("urgency", "high"), ASYNC, ("content-type", "application/x-ndjson")];
        others.extend(said.map(|_| ("ttl", "5")));
        let answer = post(&address, "/publish", &others, line.to_string().as_bytes()).await;
        check(&stored(&sidecar, answer.json()["Id"].as_str().unwrap()), ttl, urgency, &about);
    }
}

#[allow(clippy::cast_precision_loss, reason = "seconds")]
fn check(stored: &(Option<f64>, Urgency), ttl: Option<u64>, urgency: Urgency, about: &str) {
    assert_eq!(stored.1, urgency, "{about}");
    assert_eq!(stored.0.is_some(), ttl.is_some(), "{about}: {stored:?}");
    if let (Some(left), Some(ttl)) = (stored.0, ttl) {
        // It counts from the request's head, a little before the message was stored.
        let ttl = ttl as f64;
        assert!((ttl - 5.0..=ttl).contains(&left), "{about}: {left} of {ttl}");
    }
}

#[tokio::test]
async fn malformed_values_are_refused() {
    let script = Script::start([]).await;
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let flags = [("spool.store", "disk"), ("spool.path", &*spool)];
    let (_sidecar, address, telemetry) = sidecar(&config(&script.url, &flags)).await;
    let ndjson = ("content-type", "application/x-ndjson");
    let line = b"{\"topic\":\"TopicA\",\"payload\":\"x\"}";
    for (headers, kind) in [
        (&[("ttl", "")][..], "malformed-ttl"),
        (&[("ttl", "-1")], "malformed-ttl"),
        (&[("ttl", "+1")], "malformed-ttl"),
        (&[("ttl", "1.5")], "malformed-ttl"),
        (&[("ttl", "1e3")], "malformed-ttl"),
        (&[("ttl", "30s")], "malformed-ttl"),
        (&[("ttl", "1, 2")], "malformed-ttl"),
        (&[("ttl", "soon")], "malformed-ttl"),
        (&[("ttl", "1"), ("ttl", "1")], "malformed-ttl"),
        (&[("urgency", "")], "malformed-urgency"),
        (&[("urgency", "urgent")], "malformed-urgency"),
        (&[("urgency", "high, low")], "malformed-urgency"),
        (&[("urgency", "high"), ("urgency", "high")], "malformed-urgency"),
        (&[("ttl", "0"), ("idempotency-key", "\"k\"")], "key-at-once"),
    ] {
        let many = [headers, &[ndjson]].concat();
        let mut answers = vec![post(&address, "/publish/TopicA", headers, b"x").await];
        if kind != "key-at-once" {
            answers.push(post(&address, "/publish", &many, line).await);
        }
        for answer in answers {
            is_refused(&answer, kind, &format!("{headers:?}"));
        }
    }
    for members in [
        r#""ttl":-1"#,
        r#""ttl":1.5"#,
        r#""ttl":"30""#,
        r#""ttl":true"#,
        r#""urgency":"urgent""#,
        r#""urgency":"HIGH ""#,
        r#""urgency":1"#,
        r#""ttl":0,"key":"k""#,
    ] {
        let line = format!(r#"{{"topic":"TopicA","payload":"x",{members}}}"#);
        let answer = post(&address, "/publish", &[ndjson], line.as_bytes()).await;
        let is_key = members.contains("key");
        let kind = if is_key { "key-at-once" } else { "malformed-line" };
        assert_eq!(answer.status, 400, "{members}: {}", answer.text());
        assert_eq!(answer.json()["type"], format!("urn:tollgate:{kind}"), "{members}");
    }
    assert!(script.requests().is_empty());
    // The known values are there from the start.
    assert_eq!(expired(&get(&telemetry, "/metrics").await.text()), ["0", "0"]);
}

fn is_refused(answer: &Answer, kind: &str, about: &str) {
    assert_eq!(answer.status, 400, "{about}: {}", answer.text());
    let problem = answer.json();
    assert_eq!(problem["type"], format!("urn:tollgate:{kind}"), "{about}");
    assert_eq!(problem["outcome"], "not-sent", "{about}");
}

/// `TTL: 0` is called while its caller waits, and never stored.
#[tokio::test]
async fn at_once() {
    let script = Script::start(failures().take(3)).await;
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let flags = [("spool.store", "disk"), ("spool.path", &*spool)];
    let (_sidecar, address, telemetry) = sidecar(&config(&script.url, &flags)).await;
    let headers = [("ttl", "0"), ASYNC];
    let failed = post(&address, "/publish/TopicA", &headers, b"x").await;
    assert_eq!((failed.status, failed.json()["attempts"].as_u64()), (502, Some(3)));
    assert_eq!(failed.header("preference-applied"), "");
    let answer = post(&address, "/publish/TopicA", &headers, b"x").await;
    assert_eq!((answer.status, answer.json()["Attempts"].as_u64()), (200, Some(1)));
    let kept = get(&telemetry, "/status.json").await.json()["kept"].clone();
    assert_eq!((&kept["queued"], &kept["dead"]), (&0.into(), &0.into()));
}

/// What is seen of a stored message whose time to live ends: by its caller, in `GET /messages`, in the metrics and by
/// operators, also after a crash. An expired one is not replayed.
#[tokio::test]
async fn an_expired_message_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let script = Script::start(failures()).await;
    let spool = folder.path().join("spool").display().to_string();
    let settings = [
        ("upstream.endpoint", script.url.as_str()),
        ("spool.store", "disk"),
        ("spool.path", &spool),
        ("listen.control", "none"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    let publish = async |headers: &[(&str, &str)]| {
        post(&serve.publish, "/publish/TopicA", headers, b"late").await
    };
    let kept = publish(&[("ttl", "4"), ASYNC]).await;
    assert_eq!(kept.status, 202);
    // Before the first answer, the ceiling opens slowly: that the provider has a call is not enough.
    until("a call is answered", async || {
        let receipt = get(&serve.publish, kept.header("location")).await.json();
        receipt["Attempts"].as_u64() > Some(0)
    })
    .await;
    let waits = [("ttl", "3"), ("prefer", "wait=30"), ("idempotency-key", "\"k\"")];
    let late = publish(&waits).await;
    let problem = late.json();
    assert_eq!((late.status, &problem["outcome"]), (504, &"not-sent".into()), "{problem}");
    assert_eq!(problem["type"], "urn:tollgate:expired");
    assert_eq!(problem["Status"], "expired");
    let again = publish(&waits).await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (504, "true"));
    let mut receipt = Value::Null;
    until("it is expired", async || {
        receipt = get(&serve.publish, kept.header("location")).await.json();
        receipt["Status"] == "expired"
    })
    .await;
    assert_eq!(receipt["Reason"], Value::Null, "{receipt}");
    assert_eq!(expired(&get(&serve.telemetry, "/metrics").await.text()), ["2", "0"]);
    // One that ends while no process runs, and one that does not.
    let soon = publish(&[("ttl", "2"), ("urgency", "high"), ASYNC]).await;
    let begun = Timestamp::now();
    let later = publish(&[("ttl", "3600"), ("urgency", "low"), ASYNC]).await;
    serve.signal(rustix::process::Signal::KILL);
    serve.ended().await;
    until("it is over", async || Timestamp::now() > begun + SignedDuration::from_secs(2)).await;
    let before = script.requests().len();

    let script = Script::start([]).await;
    let mut settings = settings;
    settings[0].1 = &script.url;
    let serve = Serve::start(&settings, &[]).await;
    let status = async |answer: &Answer| {
        let receipt = get(&serve.publish, answer.header("location")).await.json();
        (receipt["Status"].clone(), receipt["Reason"].clone())
    };
    until("the other is delivered", async || status(&later).await.0 == "delivered").await;
    // A call for it may have been under way when the process was killed.
    until("it is expired", async || status(&soon).await == ("expired".into(), "unknown".into()))
        .await;
    assert_eq!(status(&kept).await, ("expired".into(), Value::Null));
    assert_eq!(script.requests().len(), 1, "after {before}");
    serve.signal(rustix::process::Signal::TERM);
    serve.ended().await;
    let mut args = vec!["messages", "list", "--state", "expired", "-o", "json"];
    let flags: Vec<_> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    args.extend(["--set", "upstream.instance_id=x"]);
    args.extend(flags.iter().flat_map(|flag| ["--set", flag]));
    let said = run(&args, &[]).await;
    let listed: Vec<Value> =
        said.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(listed.len(), 3, "{}", said.stderr);
    assert!(listed.iter().all(|one| one["Status"] == "expired" && one["ExpiresAt"].is_string()));
    assert_eq!(listed[2]["Urgency"], "high", "{listed:?}");
}

/// A dead letter whose time to live has ended is not sent by a replay, and that is said.
#[tokio::test]
async fn a_replay_says_what_has_expired() {
    let folder = tempfile::tempdir().unwrap();
    let script = Script::start((0..2).map(|_| error(400, "ParameterCheckFailed"))).await;
    let spool = folder.path().join("spool").display().to_string();
    let control = format!("unix:{}", folder.path().join("control.sock").display());
    let settings = [
        ("upstream.endpoint", script.url.as_str()),
        ("spool.store", "disk"),
        ("spool.path", &spool),
        ("listen.control", &control),
    ];
    let serve = Serve::start(&settings, &[]).await;
    for headers in [&[("ttl", "2"), ASYNC][..], &[ASYNC]] {
        assert_eq!(post(&serve.publish, "/publish/TopicA", headers, b"x").await.status, 202);
    }
    let dead = async || get(&serve.telemetry, "/status.json").await.json()["kept"]["dead"].clone();
    until("they are dead letters", async || dead().await == 2).await;
    let begun = Timestamp::now();
    until("one is over", async || Timestamp::now() > begun + SignedDuration::from_secs(2)).await;
    let mut flags = vec!["--set".to_owned(), "upstream.instance_id=x".to_owned()];
    for (key, value) in settings {
        flags.extend(["--set".to_owned(), format!("{key}={value}")]);
    }
    let replay = async |more: &[&str]| {
        let mut args = vec!["messages", "replay", "--all"];
        args.extend(more);
        args.extend(flags.iter().map(String::as_str));
        run(&args, &[]).await
    };
    let said = replay(&[]).await;
    assert_eq!((said.code, &*said.stdout), (0, "1 replayed\n"), "{}", said.stderr);
    assert!(said.stderr.contains("1 dead letter not replayed"), "{}", said.stderr);
    until("it is delivered", async || script.requests().len() == 3).await;
    until("the other stays", async || dead().await == 1).await;
    // The same in a spool without a process.
    serve.signal(rustix::process::Signal::TERM);
    serve.ended().await;
    let said = replay(&["-o", "json"]).await;
    assert_eq!(said.stdout, "{\"Messages\":0,\"Expired\":1}\n", "{}", said.stderr);
}

/// The time to live counts from the head of a request, however long its body takes.
#[tokio::test]
async fn a_slow_body_takes_of_the_time_to_live() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let script = Script::start([]).await;
    let (_sidecar, address, _) = sidecar(&config(&script.url, &[])).await;
    let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let head = format!(
        "POST /publish/TopicA HTTP/1.1\r\nHost: {address}\r\nTTL: 1\r\nContent-Length: 1\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    stream.write_all(b"x").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 504") && answer.contains("urn:tollgate:expired"),
        "{answer}"
    );
    assert!(script.requests().is_empty());
}
