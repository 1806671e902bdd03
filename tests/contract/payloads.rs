//! How bodies travel, by topic.

use crate::support::http::{Answer, post};
use crate::support::script::Script;
use crate::support::{config, sidecar};

const RULES: &str = r#"[
    { topics = ["Alarm/*", "Text"], encoding = "plain" },
    { topics = ["Alarm*"], encoding = "base64" },
]"#;

async fn publish(address: &str, topic: &str, body: &[u8]) -> Answer {
    post(address, &format!("/publish/{topic}"), &[], body).await
}

#[tokio::test]
async fn the_first_rule_that_matches_decides() {
    let script = Script::start([]).await;
    let flags = [
        ("upstream.payloads", RULES),
        ("publish.max_payload", "60KiB"),
        ("upstream.payload", "plain"),
    ];
    let (_sidecar, address, _) = sidecar(&config(&script.url, &flags)).await;
    for (topic, sent) in
        [("Alarm/fire", "hello"), ("Text", "hello"), ("Alarms", "aGVsbG8%3D"), ("Other", "hello")]
    {
        assert_eq!(publish(&address, topic, b"hello").await.status, 200, "{topic}");
        let request = script.requests().pop().unwrap();
        assert!(request.contains(&format!("Payload={sent}&")), "{topic}: {request}");
    }
    // Text only where bodies travel as text; as many bytes as the encoding of the topic can carry.
    let long = vec![b'x'; 50 << 10];
    for (topic, body, status) in [
        ("Alarm/fire", &b"\xff"[..], 400),
        ("Alarms", b"\xff", 200),
        ("Alarm/fire", &long, 200),
        ("Alarms", &long, 413),
    ] {
        assert_eq!(publish(&address, topic, body).await.status, status, "{topic}");
    }
    // Lines of a batch as messages of their own.
    let line = |topic: &str| format!("{{\"topic\":\"{topic}\",\"payloadBase64\":\"/w==\"}}\n");
    let lines = line("Alarm/fire") + &line("Alarms");
    let headers = [("content-type", "application/x-ndjson")];
    let answer = post(&address, "/publish", &headers, lines.as_bytes()).await;
    let text = answer.text();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&lines[0]["type"], &lines[1]["httpStatus"]),
        (&"urn:tollgate:invalid-payload".into(), &200.into())
    );
}
