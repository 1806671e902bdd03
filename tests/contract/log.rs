//! An outage in the log: what begins, with its code and the provider's `RequestId`, and what is over.

use serde_json::Value;
use tempfile::TempDir;

use crate::support::http::{get, post};
use crate::support::process::{Emulator, Serve};

/// The log's lines about concerns: whether one begins, its kind, and the line.
fn concerns(log: &str) -> Vec<(bool, String, Value)> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter_map(|line| {
            let kind = line["concern"].as_str()?.to_owned();
            Some((line["message"].as_str()?.starts_with("begins: "), kind, line))
        })
        .collect()
}

/// A sidecar with a spool, and a provider that answers this code to every call.
async fn with_failing(code: &str) -> (TempDir, Emulator, Serve) {
    let (emulator, spool) = (Emulator::start(&[]).await, tempfile::tempdir().unwrap());
    let (url, path) = (emulator.url(), spool.path().display().to_string());
    let settings = [
        ("upstream.endpoint", &*url),
        ("spool.store", "disk"),
        ("spool.path", &*path),
        ("retry.base", "20ms"),
        ("telemetry.log", "json"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    set_faults(&emulator, &format!(r#"[{{"code":"{code}"}}]"#)).await;
    (spool, emulator, serve)
}

async fn set_faults(emulator: &Emulator, faults: &str) {
    let answer = post(&emulator.address, "/_emulator/faults", &[], faults.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Everybody is answered 202, and the log says all the same what is wrong, since when, and when it is over.
#[tokio::test]
async fn an_outage_with_every_caller_at_202() {
    let (_spool, emulator, serve) = with_failing("SendMessageFailed").await;
    let publish = async |times: usize| {
        for n in 0..times {
            let asynchronous = [("prefer", "respond-async")];
            let topic = format!("/publish/Topic{}", n % 2);
            assert_eq!(post(&serve.publish, &topic, &asynchronous, b"x").await.status, 202);
        }
    };
    publish(40).await;
    serve.logs("\"concern\":\"delivery\"").await;
    let status = get(&serve.telemetry, "/status.json").await.json();
    let request_id = status["errors"][0]["request_id"].as_str().unwrap().to_owned();
    assert!(!request_id.is_empty(), "{status}");
    let kinds = status["concerns"].as_array().unwrap().iter().map(|concern| &concern["kind"]);
    assert!(kinds.into_iter().any(|kind| kind == "delivery"), "{status}");
    publish(20).await;
    set_faults(&emulator, "[]").await;
    serve.logs("over: Delivery fails for Topic").await;
    let log = serve.log();
    let lines = concerns(&log);
    let of_delivery: Vec<_> = lines.iter().filter(|(_, kind, _)| kind == "delivery").collect();
    let [(true, _, begins), (false, _, over)] = &of_delivery[..] else {
        panic!("one begin and one end:\n{log}");
    };
    assert_eq!(begins["level"], "ERROR", "{begins}");
    let detail = begins["detail"].as_str().unwrap();
    assert!(detail.contains("SendMessageFailed") && detail.contains("RequestId "), "{detail}");
    assert!(begins["todo"].as_str().is_some_and(|todo| !todo.is_empty()), "{begins}");
    assert!(over["lasted_s"].as_u64().is_some(), "{over}");
    assert!(over["requests"].as_str().is_some_and(|counts| counts.contains("queued ")), "{over}");
    let begun = log.find("begins: Delivery fails").unwrap();
    assert!(log.find("over: Delivery fails").unwrap() > begun);
    let warnings =
        log.lines().filter(|line| line.contains("\"WARN\"") || line.contains("\"ERROR\""));
    assert!(warnings.count() <= 10, "a line a change, and none a message:\n{log}");
}

/// A dead letter is named with its topic, its code and the provider's `RequestId`.
#[tokio::test]
async fn a_dead_letter_with_all_its_names() {
    let (_spool, _emulator, serve) = with_failing("ParameterCheckFailed").await;
    let asynchronous = [("prefer", "respond-async")];
    assert_eq!(post(&serve.publish, "/publish/Dead/x", &asynchronous, b"x").await.status, 202);
    serve.logs("became a dead letter").await;
    let log = serve.log();
    let line = log.lines().find(|line| line.contains("became a dead letter")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["topic"], &line["code"]), (&"Dead/x".into(), &"ParameterCheckFailed".into()));
    assert!(line["upstream_request_id"].as_str().is_some_and(|id| id.len() > 8), "{line}");
}
