//! What callers see of kept messages: 202, receipts, keys, a full disk, an ordered stop.

use std::process::Command;

use crate::support;
use crate::support::http::{Answer, get, post, series};
use crate::support::process::Serve;
use crate::support::script::{Say, Script, error, ok};
use crate::support::{config, sidecar};
use rustix::process::Signal;
use serde_json::Value;

async fn publish(address: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    post(address, "/publish/TopicA/sub", headers, body).await
}

/// Waits until a message has this status.
async fn becomes(address: &str, location: &str, status: &str) -> Value {
    let mut receipt = Value::Null;
    support::until(status, async || {
        receipt = get(address, location).await.json();
        receipt["Status"] == status
    })
    .await;
    receipt
}

#[tokio::test]
async fn kept_and_delivered_later() {
    let folder = tempfile::tempdir().unwrap();
    let script = Script::start([error(500, "SendMessageFailed"), ok()]).await;
    let spool = folder.path().display().to_string();
    let config = config(&script.url, &[("spool.store", "disk"), ("spool.path", &spool)]);
    let (sidecar, address, telemetry) = sidecar(&config).await;
    let answer = publish(&address, &[("prefer", "respond-async")], b"hello").await;
    assert_eq!(answer.status, 202);
    assert_eq!(answer.header("preference-applied"), "respond-async");
    let told = answer.json();
    assert_eq!((&told["Status"], &told["Durability"]), (&"queued".into(), &"disk".into()));
    let location = format!("/messages/{}", told["Id"].as_str().unwrap());
    assert_eq!(answer.header("location"), location);
    let receipt = becomes(&address, &location, "delivered").await;
    assert_eq!(receipt["Attempts"], 2, "{receipt}");
    assert_eq!(receipt["Topic"], "TopicA/sub");
    assert_eq!(receipt["MsgId"], "0B736D997B7F45FF54E61C1C1B580000");
    assert!(receipt["AcceptedAt"].as_str().unwrap().ends_with('Z'));

    // A caller who waits is told 200, though the first try fails.
    let says = [error(500, "SendMessageFailed"), ok()];
    let script = Script::start(says).await;
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let config = support::config(&script.url, &[("spool.store", "disk"), ("spool.path", &spool)]);
    let (_second, address, _) = support::sidecar(&config).await;
    let answer = publish(&address, &[], b"hello").await;
    assert_eq!((answer.status, answer.json()["Attempts"].as_u64()), (200, Some(2)));

    let metrics = get(&telemetry, "/metrics").await.text();
    for (name, value) in [
        ("tollgate_publish_requests_total{topic=\"TopicA\",outcome=\"queued\"}", 1.0),
        ("tollgate_upstream_calls_total{kind=\"first\",code=\"SendMessageFailed\"}", 1.0),
        ("tollgate_upstream_calls_total{kind=\"retry\",code=\"OK\"}", 1.0),
        ("tollgate_spool_messages{state=\"queued\"}", 0.0),
        ("tollgate_spool_messages{state=\"receipt\"}", 1.0),
        ("tollgate_retry_batches_total", 2.0),
        ("tollgate_retry_batch_messages_count", 2.0),
        ("tollgate_spool_damaged_total", 0.0),
    ] {
        assert!((series(&metrics, name) - value).abs() < 0.5, "{name}:\n{metrics}");
    }
    assert!(series(&metrics, "tollgate_spool_commit_duration_seconds_count") >= 2.0);
    assert_eq!(sidecar.drain(std::future::pending()).await.unanswered, 0);
}

/// An earlier configuration has accepted it, and this one does not allow its topic, until it does again.
#[tokio::test]
async fn a_stored_message_whose_topic_is_not_allowed_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let script = Script::start([error(500, "SendMessageFailed"), ok()]).await;
    let spool = folder.path().display().to_string();
    let base = [("spool.store", "disk"), ("spool.path", &*spool)];
    let patient = [&base[..], &[("retry.base", "1h"), ("retry.cap", "1h")]].concat();
    let (first, address, _) = sidecar(&config(&script.url, &patient)).await;
    let answer = publish(&address, &[("prefer", "respond-async")], b"hello").await;
    let location = answer.header("location").to_owned();
    support::until("its call fails", async || script.requests().len() == 1).await;
    first.drain(std::future::ready(())).await;

    let narrow = [&base[..], &[("topics.allow", "Other"), ("retry.base", "1ms")]].concat();
    let (second, address, telemetry) = sidecar(&config(&script.url, &narrow)).await;
    assert_eq!(publish(&address, &[], b"hello").await.status, 403);
    let metrics = get(&telemetry, "/metrics").await.text();
    let held = "tollgate_spool_held_messages{reason=\"not_allowed\",owner=\"self\"}";
    assert!((series(&metrics, held) - 1.0).abs() < 0.5, "{metrics}");
    support::until("it is shown", async || {
        let status = get(&telemetry, "/status.json").await.json();
        status["concerns"].to_string().contains("Stored messages may not be sent from here")
    })
    .await;
    assert_eq!(becomes(&address, &location, "queued").await["Attempts"], 1);
    assert_eq!(script.requests().len(), 1, "nothing was sent");

    second.reload(&config(&script.url, &[&base[..], &[("topics.allow", "TopicA/*")]].concat()));
    assert_eq!(becomes(&address, &location, "delivered").await["Attempts"], 2);
}

#[tokio::test]
async fn receipts_that_are_not_there() {
    let script = Script::start([]).await;
    let (_sidecar, address, _) = sidecar(&config(&script.url, &[])).await;
    for path in ["/messages/", "/messages/x", "/messages/01a2082df4757088bbc9b040e1f84a7d"] {
        let answer = get(&address, path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.json()["type"], "urn:tollgate:no-such-message");
    }
    let answer = post(&address, "/messages/x", &[], b"").await;
    assert_eq!((answer.status, answer.header("allow")), (405, "GET, HEAD"));
    // Nothing is kept: the preference is not honoured, and that is said.
    let answer = publish(&address, &[("prefer", "respond-async, wait=3")], b"x").await;
    assert_eq!((answer.status, answer.header("preference-applied")), (200, "wait=3"));
}

#[tokio::test]
async fn keys() {
    let folder = tempfile::tempdir().unwrap();
    let script = Script::start([]).await;
    let spool = folder.path().display().to_string();
    for store in ["disk", "none"] {
        let flags = [("spool.store", store), ("spool.path", &*spool)];
        let (sidecar, address, _) = sidecar(&config(&script.url, &flags)).await;
        let before = script.requests().len();
        let key = format!("\"{store}\"");
        let key = [("idempotency-key", &*key)];
        let first = publish(&address, &key, b"hello").await;
        assert_eq!((first.status, first.header("idempotency-replayed")), (200, ""));
        let again = publish(&address, &key, b"hello").await;
        assert_eq!((again.status, again.header("idempotency-replayed")), (200, "true"));
        assert_eq!(again.json(), first.json());
        assert_eq!(script.requests().len(), before + 1, "one call");
        let other = publish(&address, &key, b"other").await;
        assert_eq!((other.status, &other.json()["type"]), (422, &"urn:tollgate:key-reused".into()));
        for bad in ["\"open", "", "a b", &"k".repeat(300)] {
            let answer = publish(&address, &[("idempotency-key", bad)], b"x").await;
            assert_eq!(answer.status, 400, "{bad:?}");
        }
        sidecar.drain(std::future::pending()).await;
    }
    // After a restart as well.
    let flags = [("spool.store", "disk"), ("spool.path", &*spool)];
    let (_sidecar, address, _) = sidecar(&config(&script.url, &flags)).await;
    let before = script.requests().len();
    let again = publish(&address, &[("idempotency-key", "\"disk\"")], b"hello").await;
    assert_eq!((again.status, again.header("idempotency-replayed")), (200, "true"));
    assert_eq!(script.requests().len(), before);
}

/// The first request of a key hangs: others are told to come again.
#[tokio::test]
async fn a_key_in_flight() {
    let told = std::sync::Arc::new(tokio::sync::Notify::new());
    let script = Script::start([Say::Later(std::sync::Arc::clone(&told))]).await;
    let (_sidecar, address, _) = sidecar(&config(&script.url, &[])).await;
    let key = [("idempotency-key", "\"k\"")];
    let first = tokio::spawn({
        let address = address.clone();
        async move { publish(&address, &key, b"x").await }
    });
    while script.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    let second = publish(&address, &key, b"x").await;
    assert_eq!((second.status, second.header("retry-after")), (409, "1"));
    told.notify_one();
    assert_eq!(first.await.unwrap().status, 200);
}

/// A spool on a disk of one megabyte that somebody else has filled: 503, and back by itself.
#[tokio::test]
async fn a_disk_that_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs", &path])
        .status()
        .expect("mount is there");
    if !mount.success() {
        // Only root may mount. The same is shown with a disk in memory in src/spool/tests.
        println!("not allowed to mount a small disk: shown in src/spool/tests only");
        return;
    }
    let unmounted = Unmount(path.clone());
    let ballast = folder.path().join("ballast");
    let spool = folder.path().join("spool").display().to_string();
    let script = Script::start([]).await;
    let flags = [("spool.store", "disk"), ("spool.path", &*spool)];
    let (sidecar, address, telemetry) = sidecar(&config(&script.url, &flags)).await;
    let asynchronous = [("prefer", "respond-async")];
    assert_eq!(publish(&address, &asynchronous, b"before").await.status, 202);
    drop(std::fs::write(&ballast, vec![0; 2 << 20]));

    let large = vec![7; 40_000];
    let refused = publish(&address, &asynchronous, &large).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "5"));
    assert_eq!(refused.json()["type"], "urn:tollgate:spool-unavailable");
    let failing =
        async || series(&get(&telemetry, "/metrics").await.text(), "tollgate_spool_failing");
    let told = async {
        // A small note about the first message may have found room meanwhile.
        while failing().await < 0.5 {
            publish(&address, &asynchronous, &large).await;
        }
    };
    tokio::time::timeout(support::http::BOUND, told).await.expect("Prometheus is told");
    // Whoever waits needs no spool.
    assert_eq!(publish(&address, &[], b"direct").await.status, 200);
    assert_eq!(get(&telemetry, "/readyz").await.status, 200);

    std::fs::remove_file(&ballast).unwrap();
    let after = publish(&address, &asynchronous, &large).await;
    assert_eq!(after.status, 202, "{}", after.text());
    becomes(&address, after.header("location"), "delivered").await;
    assert!(get(&telemetry, "/readyz?verbose").await.text().contains("spool: ok"));
    assert!(failing().await < 0.5);
    sidecar.drain(std::future::pending()).await;
    drop(unmounted);
}

struct Unmount(String);

impl Drop for Unmount {
    fn drop(&mut self) {
        // Lazily: files may still be open.
        drop(Command::new("umount").args(["-l", &self.0]).status());
    }
}

/// SIGTERM: what is kept stays kept, and the next process delivers it.
#[tokio::test]
async fn an_ordered_stop() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let down = Script::start((0..100).map(|_| error(500, "SendMessageFailed"))).await;
    let settings = |url: &str| {
        [
            ("upstream.endpoint", url.to_owned()),
            ("spool.store", "disk".to_owned()),
            ("spool.path", spool.clone()),
            ("drain.grace", "500ms".to_owned()),
        ]
    };
    let borrowed = |settings: &[(&'static str, String); 4]| {
        settings.clone().map(|(key, value)| (key, Box::leak(value.into_boxed_str()) as &str))
    };
    let serve = Serve::start(&borrowed(&settings(&down.url)), &[]).await;
    for n in 0..10 {
        let body = format!("{n}");
        let answer = publish(&serve.publish, &[("prefer", "respond-async")], body.as_bytes()).await;
        assert_eq!(answer.status, 202);
    }
    // One process holds the folder.
    let clash = borrowed(&settings(&down.url));
    let clash: Vec<_> = clash.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut args =
        vec!["serve", "--set", "upstream.instance_id=x", "--set", "listen.publish=127.0.0.1:0"];
    args.extend(["--set", "listen.telemetry=127.0.0.1:0"]);
    for pair in &clash {
        args.extend(["--set", pair]);
    }
    let key = [("ALIBABA_CLOUD_ACCESS_KEY_ID", "a"), ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "b")];
    let said = support::process::run(&args, &key).await;
    assert!(
        said.code == 1 && said.stderr.contains("another process holds the spool"),
        "{}",
        said.stderr
    );

    serve.signal(Signal::TERM);
    let (status, log) = serve.ended().await;
    assert!(status.success(), "{log}");
    assert!(log.contains("messages stay in the spool"), "{log}");

    let up = Script::start([]).await;
    let serve = Serve::start(&borrowed(&settings(&up.url)), &[]).await;
    support::until("all ten are delivered", async || up.requests().len() >= 10).await;
    serve.signal(Signal::TERM);
    let (status, _) = serve.ended().await;
    assert!(status.success());
    assert_eq!(up.requests().len(), 10);
}

/// The provider takes a message and closes, or never answers: the caller sees `unknown` or 202, and
/// exactly these are counted as uncertain.
#[tokio::test]
async fn nobody_knows() {
    let emulator = support::process::Emulator::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let fault = async |then: &str| {
        // One call, however soon it is made again.
        let fault = format!("[{{\"then\":\"{then}\",\"times\":1}}]");
        let answer = post(&emulator.address, "/_emulator/faults", &[], fault.as_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    let uncertain = async |telemetry: &str| {
        let metrics = get(telemetry, "/metrics").await.text();
        let instance = support::INSTANCE;
        let name = "tollgate_uncertain_messages_total";
        series(&metrics, &format!("{name}{{instance=\"{instance}\",topic=\"TopicA\"}}"))
    };
    let is = |counted: f64, wanted: f64| assert!((counted - wanted).abs() < 0.5, "{counted}");

    for (n, (store, unknown)) in
        [("disk", "retry"), ("disk", "park"), ("none", "retry")].into_iter().enumerate()
    {
        let spool = folder.path().join(n.to_string()).display().to_string();
        let flags = [
            ("spool.store", store),
            ("spool.path", &*spool),
            ("retry.unknown", unknown),
            ("retry.base", "1s"),
            ("upstream.call_timeout", "5s"),
            ("upstream.connect_timeout", "5s"),
        ];
        let (sidecar, address, telemetry) = sidecar(&config(&emulator.url(), &flags)).await;
        for (then, seen) in [("deliver-then-close", 1.0), ("hang", 2.0)] {
            fault(then).await;
            let calls = async || emulator.report().await["calls"].as_u64().unwrap();
            let before = calls().await;
            let asked = tokio::spawn({
                let address = address.clone();
                async move { publish(&address, &[("prefer", "wait=3")], then.as_bytes()).await }
            });
            support::until("it is called", async || calls().await > before).await;
            let told = asked.await.unwrap();
            if (store, unknown) == ("disk", "retry") {
                // Sent again, at least once: in time for this caller, or later.
                if told.status == 202 {
                    becomes(&address, told.header("location"), "delivered").await;
                } else {
                    assert_eq!((told.status, told.json()["Attempts"].as_u64()), (200, Some(2)));
                }
            } else {
                assert_eq!((told.status, &told.json()["outcome"]), (504, &"unknown".into()));
            }
            support::until("it is counted", async || uncertain(&telemetry).await > seen - 0.5)
                .await;
            is(uncertain(&telemetry).await, seen);
        }
        sidecar.drain(std::future::pending()).await;
    }
}

/// A body that was accepted as bytes is not sent as text that it is not.
#[tokio::test]
async fn a_body_that_is_no_text() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().display().to_string();
    let later = [("retry.base", "1h"), ("retry.cap", "1h")];
    let kept = [("spool.store", "disk"), ("spool.path", &*spool)];
    let script = Script::start((0..10).map(|_| error(500, "SendMessageFailed"))).await;
    let flags = [&kept[..], &later, &[("upstream.payload", "base64")]].concat();
    let (sidecar, address, _) = sidecar(&config(&script.url, &flags)).await;
    let answer = publish(&address, &[("prefer", "respond-async")], b"\xff\xfe").await;
    assert_eq!(answer.status, 202);
    sidecar.drain(std::future::ready(())).await;

    let script = Script::start([]).await;
    let flags = [&kept[..], &[("upstream.payload", "plain")]].concat();
    let (_second, address, _) = support::sidecar(&config(&script.url, &flags)).await;
    let receipt = becomes(&address, answer.header("location"), "dead").await;
    assert_eq!(receipt["Reason"], "not_text", "{receipt}");
    assert!(script.requests().is_empty());
}

/// A caller's trace stands in the log lines about its message, also after a restart.
#[tokio::test]
async fn a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let script = Script::start([(); 10].map(|()| error(500, "SendMessageFailed"))).await;
    let spool = folder.path().display().to_string();
    let wait = [("retry.base", "1h"), ("retry.cap", "1h")];
    let settings = [
        ("upstream.endpoint", script.url.as_str()),
        ("spool.store", "disk"),
        ("spool.path", &spool),
    ];
    let settings = [&settings[..], &wait].concat();
    let serve = Serve::start(&settings, &[]).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let headers = [("prefer", "respond-async"), ("traceparent", &*parent)];
    let kept = publish(&serve.publish, &headers, b"x").await;
    assert_eq!(kept.status, 202);
    let headers = [&headers[..], &[("content-type", "application/x-ndjson")]].concat();
    let line = b"{\"topic\":\"TopicA\",\"payload\":\"x\"}";
    let line = post(&serve.publish, "/publish", &headers, line).await;
    assert_eq!(line.status, 202);
    let line = format!("/messages/{}", line.json()["Id"].as_str().unwrap());
    serve.signal(Signal::KILL);
    serve.ended().await;

    let script = Script::start([(); 10].map(|()| error(400, "ParameterCheckFailed"))).await;
    let settings = [
        ("upstream.endpoint", script.url.as_str()),
        ("spool.store", "disk"),
        ("spool.path", &spool),
    ];
    let serve = Serve::start(&settings, &[]).await;
    becomes(&serve.publish, kept.header("location"), "dead").await;
    becomes(&serve.publish, &line, "dead").await;
    let buried = || {
        let log = serve.log();
        let lines = log.lines().filter(|line| line.contains("the message became a dead letter"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    support::until("both are in the log", async || buried().len() == 2).await;
    for line in buried() {
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["trace_id"], trace);
    }
}
