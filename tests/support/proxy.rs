//! A small HTTP proxy that knows CONNECT only.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// The proxy, and the heads of the requests that it got.
#[derive(Clone)]
pub struct ConnectProxy {
    /// `host:port`.
    pub address: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl ConnectProxy {
    /// Connects each to where it wants; or answers with these bytes and closes.
    pub async fn start(refuses_with: Option<&'static [u8]>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let proxy = Self { address, heads: Arc::default() };
        let serving = proxy.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let proxy = serving.clone();
                tokio::spawn(async move { proxy.serve(stream, refuses_with).await });
            }
        });
        proxy
    }

    /// The head of each request so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    async fn serve(&self, mut stream: TcpStream, refuses_with: Option<&'static [u8]>) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap();
        let to = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().to_owned();
        self.heads.lock().unwrap().push(head);
        if let Some(bytes) = refuses_with {
            drop(stream.write_all(bytes).await);
            // Until the client closes: an early close could be a reset.
            drop(stream.shutdown().await);
            while stream.read_u8().await.is_ok() {}
            return;
        }
        let Ok(mut other) = TcpStream::connect(&to).await else { return };
        drop(stream.write_all(b"HTTP/1.1 200 Connection established\r\nx: y\r\n\r\n").await);
        drop(copy_bidirectional(&mut stream, &mut other).await);
    }
}
