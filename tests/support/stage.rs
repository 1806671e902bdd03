//! The page's files as a sidecar serves them, with a status of the test's making.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::http::{Answer, get};

/// A server with the page's own files, as a sidecar serves them, and a status of the test's making.
pub struct Stage {
    pub address: String,
    status: Arc<Mutex<(u16, String)>>,
    /// A sidecar's status that nothing has happened to.
    idle: Value,
}

impl Stage {
    pub async fn start() -> Self {
        let script = super::script::Script::start([]).await;
        let (_sidecar, _, telemetry) = super::sidecar(&super::config(&script.url, &[])).await;
        let idle = get(&telemetry, "/status.json").await.json();
        let html = get(&telemetry, "/").await.text();
        let mut files = HashMap::new();
        let named = html.split('"').filter(|word| word.starts_with("page/"));
        for path in std::iter::once(String::new()).chain(named.map(str::to_owned)) {
            let path = format!("/{path}");
            files.insert(path.clone(), get(&telemetry, &path).await);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let status = Arc::new(Mutex::new((200, idle.to_string())));
        let (told, files) = (Arc::clone(&status), Arc::new(files));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (told, files) = (Arc::clone(&told), Arc::clone(&files));
                tokio::spawn(async move { answer(stream, &files, &told).await });
            }
        });
        Self { address, status, idle }
    }

    /// From now on, the status of an idle sidecar but for these parts.
    pub fn show(&self, parts: &Value) {
        let mut status = self.idle.clone();
        for (name, part) in parts.as_object().unwrap() {
            status[name] = part.clone();
        }
        self.answer(200, &status.to_string());
    }

    /// From now on, this.
    pub fn answer(&self, code: u16, body: &str) {
        *self.status.lock().unwrap() = (code, body.to_owned());
    }
}

async fn answer(
    mut stream: TcpStream,
    files: &HashMap<String, Answer>,
    status: &Mutex<(u16, String)>,
) {
    let mut lines = BufReader::new(&mut stream).lines();
    let Ok(Some(first)) = lines.next_line().await else { return };
    while lines.next_line().await.is_ok_and(|line| line.is_some_and(|line| !line.is_empty())) {}
    let path = first.split([' ', '?']).nth(1).unwrap_or_default();
    let (code, kind, policy, body) = if path == "/status.json" {
        let (code, body) = status.lock().unwrap().clone();
        (code, "application/json", "", body.into_bytes())
    } else if let Some(file) = files.get(path) {
        let policy = file.header("content-security-policy");
        (200, file.header("content-type"), policy, file.body.clone())
    } else {
        (404, "text/plain", "", Vec::new())
    };
    let head = format!(
        "HTTP/1.1 {code} X\r\ncontent-type: {kind}\r\ncontent-security-policy: {policy}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    drop(stream.write_all(&[head.as_bytes(), &body].concat()).await);
}
