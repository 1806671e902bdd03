//! `[[callers]]`: what proves a caller, and what it may do.

use std::path::Path;

use crate::support::http::{Answer, get, post};
use crate::support::process::Serve;
use crate::support::script::Script;
use crate::support::until;
use serde_json::Value;
use tempfile::TempDir;

const ORDERS: &str = "hushsecret-of-the-orders";
const ALARMS: &str = "hushsecret-of-the-alarms";

/// A sidecar with callers, and what the provider was sent.
pub(crate) struct Stand {
    pub(crate) folder: TempDir,
    pub(crate) script: Script,
    pub(crate) serve: Serve,
}

impl Stand {
    /// With secrets in files of these names, and the settings that are made of the files' paths.
    pub(crate) async fn with(
        secrets: &[(&str, &str)],
        settings: impl FnOnce(&dyn Fn(&str) -> String) -> Vec<(&'static str, String)>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, secret) in secrets {
            std::fs::write(folder.path().join(name), secret).unwrap();
        }
        let settings = settings(&|name| folder.path().join(name).display().to_string());
        let script = Script::start([]).await;
        let base = [("upstream.endpoint", &*script.url)];
        let settings: Vec<_> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let serve = Serve::start(&[&base[..], &settings].concat(), &[]).await;
        for (_, secret) in secrets {
            serve.has_secret(secret);
        }
        Self { folder, script, serve }
    }

    async fn start(more: &[(&'static str, &str)]) -> Self {
        let uid = rustix::process::getuid().as_raw();
        let settings = |path: &dyn Fn(&str) -> String| {
            let callers = format!(
                r#"[{{ name = "orders", token_file = "{}", topics = ["Order*"], calls_per_second = 1000 }},
                    {{ name = "alarms", token_file = "{}", topics = ["Alarm/*"], calls_per_second = 2 }},
                    {{ name = "local", uid = {uid}, topics = ["Local"] }}]"#,
                path("orders"),
                path("alarms")
            );
            let socket = format!("127.0.0.1:0,unix:{}", path("publish.sock"));
            let more = more.iter().map(|(key, value)| (*key, (*value).to_owned()));
            [("callers", callers), ("listen.publish", socket)].into_iter().chain(more).collect()
        };
        Self::with(&[("orders", ORDERS), ("alarms", ALARMS)], settings).await
    }

    fn tcp(&self) -> &str {
        self.serve.publish.split(", ").next().unwrap()
    }

    async fn publish(&self, topic: &str, token: Option<&str>) -> Answer {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> =
            bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        post(self.tcp(), &format!("/publish/{topic}"), &headers, b"x").await
    }
}

fn slug(answer: &Answer) -> String {
    let body: Value = answer.json();
    body["type"].as_str().unwrap_or_default().trim_start_matches("urn:tollgate:").to_owned()
}

#[tokio::test]
async fn who_may_publish_what() {
    let stand = Stand::start(&[]).await;
    for (topic, token, status, problem) in [
        ("Order1", Some(ORDERS), 200, ""),
        ("Order1/sub", Some(ORDERS), 200, ""),
        ("Alarm/fire", Some(ALARMS), 200, ""),
        ("%41larm/fire", Some(ALARMS), 200, ""),
        // Another caller's, in every spelling.
        ("Alarm/fire", Some(ORDERS), 403, "forbidden-topic"),
        ("Order1", Some(ALARMS), 403, "forbidden-topic"),
        ("%4Frder1", Some(ALARMS), 403, "forbidden-topic"),
        ("order1", Some(ORDERS), 403, "forbidden-topic"),
        ("Alarm", Some(ALARMS), 403, "forbidden-topic"),
        ("Local", Some(ORDERS), 403, "forbidden-topic"),
        // No proof, or none that counts.
        ("Order1", None, 401, "unproven-caller"),
        ("Order1", Some(""), 401, "unproven-caller"),
        ("Order1", Some("hushsecret-of-nothing-here"), 401, "unproven-caller"),
        ("Order1", Some(&ORDERS[1..]), 401, "unproven-caller"),
        ("Order1", Some(&format!("{ORDERS}x")), 401, "unproven-caller"),
        ("Order1", Some(&format!("{ORDERS}, Bearer {ALARMS}")), 401, "unproven-caller"),
    ] {
        let answer = stand.publish(topic, token).await;
        assert_eq!((answer.status, slug(&answer).as_str()), (status, problem), "{topic} {token:?}");
        if status == 401 {
            assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"tollgate\"");
        }
    }
    assert_eq!(stand.script.requests().len(), 4);
    // What is published by others is not shown to strangers, and the listener's health is.
    let id = "0".repeat(32);
    assert_eq!(get(stand.tcp(), &format!("/messages/{id}")).await.status, 401);
    assert_eq!(get(stand.tcp(), "/healthz").await.status, 200);
    stand.serve.logs("a caller was refused").await;
}

#[tokio::test]
async fn lines_of_a_batch() {
    let stand = Stand::start(&[]).await;
    let lines =
        "{\"topic\":\"Order1\",\"payload\":\"x\"}\n{\"topic\":\"Alarm/x\",\"payload\":\"x\"}\n";
    let kind = ("content-type", "application/x-ndjson");
    let bearer = format!("Bearer {ORDERS}");
    let headers = [kind, ("authorization", &bearer)];
    let answer = post(stand.tcp(), "/publish", &headers, lines.as_bytes()).await;
    let statuses: Vec<_> = answer
        .text()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["httpStatus"].as_u64().unwrap())
        .collect();
    assert_eq!((answer.status, statuses), (207, vec![200, 403]));
    assert_eq!(post(stand.tcp(), "/publish", &[kind], lines.as_bytes()).await.status, 401);
    assert_eq!(stand.script.requests().len(), 1);
}

#[tokio::test]
async fn a_caller_has_a_rate_and_keys_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool").display().to_string();
    let stand = Stand::start(&[("spool.store", "disk"), ("spool.path", &spool)]).await;
    let mut refused = 0;
    for _ in 0..12 {
        let answer = stand.publish("Alarm/x", Some(ALARMS)).await;
        if answer.status == 429 {
            assert_eq!(slug(&answer), "caller-rate");
            assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
            refused += 1;
        }
    }
    assert!(refused > 0, "two a second");
    assert_eq!(
        stand.publish("Order1", Some(ORDERS)).await.status,
        200,
        "another's rate is its own"
    );
    // The same key of another caller is another key.
    let publish = async |topic: &str, token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", &*bearer), ("idempotency-key", "\"one\"")];
        post(stand.tcp(), &format!("/publish/{topic}"), &headers, b"x").await
    };
    assert_eq!(publish("Order1", ORDERS).await.status, 200);
    assert_eq!(publish("Order1", ORDERS).await.header("idempotency-replayed"), "true");
    until("its rate allows it", async || publish("Alarm/x", ALARMS).await.status == 200).await;
}

#[tokio::test]
async fn the_user_of_a_process_and_a_new_token() {
    let stand = Stand::start(&[]).await;
    let socket = stand.folder.path().join("publish.sock");
    let over_socket = async |head: &str| request(&socket, head).await;
    assert!(over_socket("POST /publish/Local").await.starts_with("HTTP/1.1 200"));
    assert!(over_socket("POST /publish/Order1").await.starts_with("HTTP/1.1 403"));
    // A file that is replaced counts within seconds; what was in it does not.
    std::fs::write(stand.folder.path().join("orders"), "hushsecret-that-is-new").unwrap();
    until("the new token counts", async || {
        stand.publish("Order1", Some("hushsecret-that-is-new")).await.status == 200
    })
    .await;
    assert_eq!(stand.publish("Order1", Some(ORDERS)).await.status, 401);
}

async fn request(socket: &Path, head: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let text =
        format!("{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}
