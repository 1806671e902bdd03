//! An upstream that answers with the bytes it is told, and keeps what it was sent.
#![allow(clippy::format_push_string, reason = "short is better here")]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What to do with a request.
#[derive(Debug, Clone)]
pub enum Say {
    /// Answer with these bytes.
    Bytes(Vec<u8>),
    /// Answer with these bytes and close.
    BytesAndClose(Vec<u8>),
    /// Close without an answer.
    Close,
    /// Never answer.
    Hang,
    /// Answer that all is well, once told so.
    Later(Arc<Notify>),
}

#[derive(Clone)]
pub struct Script {
    pub url: String,
    left: Arc<Mutex<VecDeque<Say>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Script {
    /// Says these things in turn, then that all is well.
    pub async fn start(says: impl IntoIterator<Item = Say>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let script = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            left: Arc::new(Mutex::new(says.into_iter().collect())),
            requests: Arc::default(),
        };
        let serving = script.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let script = serving.clone();
                tokio::spawn(async move { script.serve(stream).await });
            }
        });
        script
    }

    /// The requests so far, each as text.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    async fn serve(&self, mut stream: TcpStream) {
        let mut buffer = Vec::new();
        while let Some(request) = read_request(&mut stream, &mut buffer).await {
            self.requests.lock().unwrap().push(request);
            let say = self.left.lock().unwrap().pop_front().unwrap_or_else(ok);
            match say {
                Say::Bytes(bytes) => stream.write_all(&bytes).await.unwrap(),
                Say::BytesAndClose(bytes) => {
                    stream.write_all(&bytes).await.unwrap();
                    return;
                }
                Say::Close => return,
                Say::Hang => std::future::pending().await,
                Say::Later(told) => {
                    told.notified().await;
                    let Say::Bytes(bytes) = ok() else { return };
                    stream.write_all(&bytes).await.unwrap();
                }
            }
        }
    }
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            let length = head
                .lines()
                .find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0);
            if buffer.len() >= end + 4 + length {
                let request: Vec<u8> = buffer.drain(..end + 4 + length).collect();
                return Some(String::from_utf8_lossy(&request).into_owned());
            }
        }
        match stream.read_buf(buffer).await {
            Ok(n) if n > 0 => {}
            _ => return None,
        }
    }
}

/// An HTTP answer with a JSON body.
pub fn json(status: u16, headers: &[(&str, &str)], body: &str) -> Say {
    Say::Bytes(http(status, "application/json;charset=utf-8", headers, body))
}

pub fn http(status: u16, kind: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        answer.push_str(&format!("{name}: {value}\r\n"));
    }
    format!("{answer}\r\n{body}").into_bytes()
}

/// The provider's error, as it documents it.
pub fn error(status: u16, code: &str) -> Say {
    error_with(status, code, &[])
}

pub fn error_with(status: u16, code: &str, headers: &[(&str, &str)]) -> Say {
    json(
        status,
        headers,
        &format!(
            r#"{{"RequestId":"REQ-1","HostId":"h","Code":"{code}","Message":"m","Recommend":"r"}}"#
        ),
    )
}

pub fn ok() -> Say {
    json(200, &[], r#"{"MsgId":"0B736D997B7F45FF54E61C1C1B580000","RequestId":"REQ-OK"}"#)
}
