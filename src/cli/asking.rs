//! A conversation with a running sidecar: over its control socket, or with its telemetry listener.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::config::Config;
use crate::control::Identity;
use crate::sidecar;

/// What a running sidecar may take to be spoken to.
const HELLO: Duration = Duration::from_secs(10);
/// Far more than it says: a thousand messages, or a month's bill by the hour.
const MAX_BODY: usize = 64 << 20;
/// What it may take for an answer: a long selection is changed before it is given.
const ANSWER: Duration = Duration::from_mins(1);

type Sender = SendRequest<Full<Bytes>>;

/// A connection to a running sidecar.
pub(super) struct Asking {
    sender: Sender,
    socket: String,
}

impl Asking {
    /// `None`: no sidecar of this configuration runs.
    pub(super) async fn connect(config: &Config) -> Result<Option<Self>, String> {
        let ours = Identity::of(config.spool.as_ref().map(|spool| &*spool.path));
        for path in sidecar::control_sockets(config) {
            let Ok(stream) = UnixStream::connect(&path).await else { continue };
            let socket = path.display().to_string();
            let mut sidecar = Self::greet(stream, socket).await?;
            // It may be that of another sidecar on this machine, which was there before.
            let theirs = sidecar.get("/sidecar").await?;
            if sidecar.read::<Identity>(&theirs)? == ours {
                return Ok(Some(sidecar));
            }
        }
        Ok(None)
    }

    /// One whose telemetry listener is here.
    pub(super) async fn at(address: SocketAddr) -> Result<Self, String> {
        let stream = timeout(HELLO, TcpStream::connect(address)).await;
        let stream = stream.map_err(|_| format!("{address} does not answer"))?;
        let stream = stream.map_err(|error| format!("{address}: {error}"))?;
        Self::greet(stream, address.to_string()).await
    }

    async fn greet<S>(stream: S, socket: String) -> Result<Self, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let hello = timeout(HELLO, handshake(TokioIo::new(stream))).await;
        let hello = hello.map_err(|_| format!("{socket} does not answer"))?;
        let (sender, driver) = hello.map_err(|error| error.to_string())?;
        tokio::spawn(async move { drop(driver.await) });
        Ok(Self { sender, socket })
    }

    pub(super) async fn get(&mut self, path: &str) -> Result<Bytes, String> {
        self.ask("GET", path, String::new()).await
    }

    pub(super) async fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: String,
    ) -> Result<Bytes, String> {
        let answer = timeout(ANSWER, exchange(&mut self.sender, method, path, body)).await;
        let (status, body) = answer.map_err(|_| format!("{} does not answer", self.socket))??;
        if !(200..300).contains(&status) {
            let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
            return Err(problem["detail"].as_str().unwrap_or("it refuses").to_owned());
        }
        Ok(body)
    }

    pub(super) fn read<T: for<'de> serde::Deserialize<'de>>(
        &self,
        body: &[u8],
    ) -> Result<T, String> {
        let socket = &self.socket;
        serde_json::from_slice(body).map_err(|error| format!("{socket} answers oddly: {error}"))
    }
}

async fn exchange(
    sender: &mut Sender,
    method: &str,
    path: &str,
    body: String,
) -> Result<(u16, Bytes), String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let request = Request::builder().method(method).uri(path).header("host", "localhost");
    let request = request.body(Full::new(Bytes::from(body))).map_err(|e| said(&e))?;
    sender.ready().await.map_err(|e| said(&e))?;
    let answer = sender.send_request(request).await.map_err(|e| said(&e))?;
    let status = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), MAX_BODY).collect().await.map_err(|e| said(&e))?;
    Ok((status, body.to_bytes()))
}
