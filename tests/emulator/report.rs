//! What the emulator tells about itself.

use serde_json::Value;
use tollgate::emulator::{EmulatorOptions, Fault};

use crate::client::{Call, Client, INSTANCE};
use crate::{options, start, within_a_second};

#[tokio::test]
async fn the_report_counts_everything() {
    let before = jiff::Timestamp::now().as_second();
    let (emulator, mut client) = within_a_second(async || {
        let (emulator, mut client) = start(options()).await;
        client.publish("TopicA", "one").await;
        client.publish("TopicA", "one").await;
        client.publish("TopicB", "one").await;
        client.call(&Call::new("TopicA", "one").without("Payload")).await;
        emulator.set_faults(vec![Fault::answer("SystemOverFlow")]).unwrap();
        client.call(&Call::new("TopicA", "two")).await;
        let mut elsewhere = Client::connect_from("127.0.0.3", emulator.address()).await;
        elsewhere.call(&Call::new("TopicA", "two")).await;
        (emulator, client)
    })
    .await;

    let report = client.plain("GET", "/_emulator/report", "").await.json();
    assert_eq!(report["calls"], 6);
    assert_eq!(report["accepted"], 3);
    assert_eq!(report["duplicates"], 1);
    assert_eq!(report["refused"], serde_json::json!({"MissingParameter": 1, "SystemOverFlow": 2}));
    assert_eq!(report["worst_second"], 6);
    assert_eq!(
        report["worst_second_by_source"],
        serde_json::json!({"127.0.0.1": 5, "127.0.0.3": 1})
    );
    assert_eq!(report["blocked"], serde_json::json!([]));
    assert_eq!(report["keys"], serde_json::json!({"demo-key-id": 6}));
    assert!(report.get("mqtt").is_none());

    let after = jiff::Timestamp::now().as_second();
    let seconds = report["by_second"].as_array().unwrap();
    let sum = |name: &str| seconds.iter().map(|s| s[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("calls"), sum("accepted")), (6, 3));
    let within = |s: &Value| (before..=after).contains(&s["second"].as_i64().unwrap());
    assert!(seconds.iter().all(within), "{seconds:?}");
    assert_eq!(report, serde_json::to_value(emulator.report()).unwrap());

    client.plain("POST", "/_emulator/reset", "").await;
    let report = emulator.report();
    assert_eq!((report.calls, report.accepted, report.worst_second), (0, 0, 0));
    assert!(report.by_second.is_empty() && report.keys.is_empty());
    client.publish("TopicA", "one").await;
    assert_eq!(emulator.report().duplicates, 0, "reset forgets faults and contents");
}

#[tokio::test]
async fn messages_come_as_lines() {
    let (emulator, mut client) = start(options()).await;
    let mut ids = Vec::new();
    // more than fits into one chunk
    let payload = |n: usize| format!("{n} \"quoted\"\n{}", "é".repeat(400));
    for n in 0..200 {
        ids.push(client.publish("TopicA/sub", &payload(n)).await);
    }
    let answer = client.plain("GET", "/_emulator/messages", "").await;
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    let text = std::str::from_utf8(&answer.body).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 200);
    for (n, line) in lines.iter().enumerate() {
        assert_eq!(line["payload"], payload(n));
        assert_eq!(line["topic"], "TopicA/sub");
        assert_eq!(line["instance"], INSTANCE);
        assert_eq!(line["source"], "127.0.0.1");
        assert_eq!(line["MsgId"], ids[n]);
        line["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    }
    let upper_hex =
        |id: &String| id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    assert!(ids.iter().all(upper_hex));
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 200);
    assert_eq!(emulator.report().calls, 200, "administration does not count");
}

#[tokio::test]
async fn keeps_no_more_messages_than_told() {
    let (emulator, mut client) = start(EmulatorOptions { keep_messages: 2, ..options() }).await;
    for payload in ["a", "b", "c"] {
        client.publish("TopicA", payload).await;
    }
    let kept: Vec<_> = emulator.messages().iter().map(|m| m.payload.clone()).collect();
    assert_eq!(kept, ["b", "c"]);
    assert_eq!(emulator.report().forgotten, 1);
}

#[tokio::test]
async fn other_paths_and_methods() {
    let (_emulator, mut client) = start(options()).await;
    for (method, path, status, code) in [
        ("GET", "/_emulator", 404, "NotFound"),
        ("GET", "/_emulator/nothing", 404, "NotFound"),
        ("POST", "/_emulator/report", 405, "MethodNotAllowed"),
        ("DELETE", "/_emulator/messages", 405, "MethodNotAllowed"),
        ("GET", "/_emulator/faults", 405, "MethodNotAllowed"),
        ("GET", "/_emulator/reset", 405, "MethodNotAllowed"),
        ("POST", "/_emulator/blocked", 405, "MethodNotAllowed"),
        ("POST", "/elsewhere", 404, "InvalidApi.NotFound"),
        ("PUT", "/", 400, "UnsupportedHTTPMethod"),
    ] {
        let answer = client.plain(method, path, "").await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{path}");
        assert_eq!(answer.header("allow").is_empty(), status != 405, "{path}");
    }
}
