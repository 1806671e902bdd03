//! Requests, and what they were answered.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::http::{Answer, raw};

pub(super) const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");

/// All exchanges of a test, in the form that `tests/python/openapi.py` reads.
#[derive(Default)]
pub(super) struct Exchanges(Vec<Value>);

/// A message that is published in both ways.
#[derive(Clone, Copy, Default)]
pub(super) struct Sent<'a> {
    pub(super) topic: &'a str,
    pub(super) body: &'a str,
    /// Empty: none.
    pub(super) prefer: &'a str,
    /// Empty: none.
    pub(super) key: &'a str,
}

impl<'a> Sent<'a> {
    pub(super) fn new(body: &'a str) -> Self {
        Self { topic: "TopicA", body, ..Self::default() }
    }
}

pub(super) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let lines = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
    let length = body.len();
    let mut bytes = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{}content-length: {length}\r\n\r\n",
        lines.collect::<String>()
    )
    .into_bytes();
    bytes.extend(body);
    bytes
}

impl Exchanges {
    pub(super) fn add(&mut self, method: &str, path: &str, answer: &Answer) {
        let Answer { status, headers, body } = answer;
        let body = STANDARD.encode(body);
        self.0.push(json!({
            "method": method, "path": path, "status": status, "headers": headers, "body": body,
        }));
    }

    pub(super) fn lines(&self) -> String {
        self.0.iter().flat_map(|exchange| [exchange.to_string(), "\n".to_owned()]).collect()
    }

    /// Sends these bytes, which are a request for this path.
    pub(super) async fn bytes(
        &mut self,
        to: &str,
        method: &str,
        path: &str,
        bytes: &[u8],
    ) -> Answer {
        let answer =
            raw(to, bytes).await.unwrap_or_else(|| panic!("{method} {path} has no answer"));
        self.add(method, path, &answer);
        answer
    }

    pub(super) async fn send(
        &mut self,
        to: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.bytes(to, method, path, &request(method, path, headers, body)).await
    }

    pub(super) async fn many(&mut self, to: &str, headers: &[(&str, &str)], lines: &str) -> Answer {
        let headers = [&[NDJSON], headers].concat();
        self.send(to, "POST", "/publish", &headers, lines.as_bytes()).await
    }

    pub(super) async fn one(&mut self, to: &str, sent: Sent<'_>) -> Answer {
        let headers = [("prefer", sent.prefer), ("idempotency-key", sent.key)];
        let headers: Vec<_> = headers.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let path = format!("/publish/{}", sent.topic);
        self.send(to, "POST", &path, &headers, sent.body.as_bytes()).await
    }

    /// As a request of its own, and as a line of many: both have this status.
    pub(super) async fn both(&mut self, to: &str, sent: Sent<'_>, status: u16) -> Answer {
        let alone = self.one(to, sent).await;
        assert_eq!(alone.status, status, "{}: {}", sent.body, alone.text());
        let mut line = json!({"topic": sent.topic, "payload": sent.body});
        if !sent.key.is_empty() {
            line["key"] = sent.key.into();
        }
        let prefer = [("prefer", sent.prefer)];
        let prefer = if sent.prefer.is_empty() { &[][..] } else { &prefer };
        let many = self.many(to, prefer, &line.to_string()).await;
        assert_eq!(many.status, status, "{}: {}", sent.body, many.text());
        alone
    }

    /// With both methods.
    pub(super) async fn read(&mut self, to: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(to, "HEAD", path, headers, b"").await;
        self.send(to, "GET", path, headers, b"").await
    }
}
