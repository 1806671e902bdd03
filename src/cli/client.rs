//! An HTTP client of a running sidecar: of its control socket or its telemetry listener.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, ToSocketAddrs, UnixStream};
use tokio::time::timeout;

use crate::config::Config;
use crate::control::Identity;
use crate::sidecar;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Far more than a response has: a thousand messages, or a month's bill by the hour.
const MAX_BODY: usize = 64 << 20;
/// Of a response: a change of many messages is complete before it is sent.
const RESPONSE_TIMEOUT: Duration = Duration::from_mins(1);

type Sender = SendRequest<Full<Bytes>>;

/// A connection to a running sidecar.
pub(super) struct SidecarClient {
    sender: Sender,
    address: String,
}

impl SidecarClient {
    /// Connects to the control socket; `None`: no sidecar with this configuration runs.
    pub(super) async fn connect(config: &Config) -> Result<Option<Self>, String> {
        let ours = Identity::of(config.spool.as_ref().map(|spool| &*spool.path));
        for path in sidecar::control_sockets(config) {
            let Ok(stream) = UnixStream::connect(&path).await else { continue };
            let mut sidecar = Self::handshake(stream, path.display().to_string()).await?;
            // Another sidecar of this machine may be configured with the same socket.
            let theirs = sidecar.get("/sidecar").await?;
            if sidecar.read::<Identity>(&theirs)? == ours {
                return Ok(Some(sidecar));
            }
        }
        Ok(None)
    }

    /// Where it is.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Connects to a telemetry listener, at any address of a name.
    pub(super) async fn at(address: impl ToSocketAddrs + fmt::Display) -> Result<Self, String> {
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(&address)).await;
        let stream = stream.map_err(|_| "the connection does not open in time".to_owned())?;
        let stream = stream.map_err(|error| error.to_string())?;
        Self::handshake(stream, address.to_string()).await
    }

    async fn handshake<S>(stream: S, address: String) -> Result<Self, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let opened = timeout(CONNECT_TIMEOUT, handshake(TokioIo::new(stream))).await;
        let opened = opened.map_err(|_| format!("{address} does not answer"))?;
        let (sender, driver) = opened.map_err(|error| error.to_string())?;
        tokio::spawn(async move { drop(driver.await) });
        Ok(Self { sender, address })
    }

    pub(super) async fn get(&mut self, path: &str) -> Result<Bytes, String> {
        self.send("GET", path, String::new()).await
    }

    pub(super) async fn send(
        &mut self,
        method: &str,
        path: &str,
        body: String,
    ) -> Result<Bytes, String> {
        let (status, body) = self.ask(method, path, body).await?;
        if !(200..300).contains(&status) {
            let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
            return Err(match problem["detail"].as_str() {
                Some(detail) => detail.to_owned(),
                None => format!("{} answers {status}", self.address),
            });
        }
        Ok(body)
    }

    /// Sends a request, and returns the status and the body of any answer.
    pub(super) async fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: String,
    ) -> Result<(u16, Bytes), String> {
        let answer =
            timeout(RESPONSE_TIMEOUT, exchange(&mut self.sender, method, path, body)).await;
        answer.map_err(|_| format!("{} does not answer in time", self.address))?
    }

    pub(super) fn read<T: for<'de> serde::Deserialize<'de>>(
        &self,
        body: &[u8],
    ) -> Result<T, String> {
        let address = &self.address;
        serde_json::from_slice(body)
            .map_err(|error| format!("the response of {address} cannot be read: {error}"))
    }
}

async fn exchange(
    sender: &mut Sender,
    method: &str,
    path: &str,
    body: String,
) -> Result<(u16, Bytes), String> {
    let text = |error: &dyn fmt::Display| error.to_string();
    let request = Request::builder().method(method).uri(path).header("host", "localhost");
    let request = request.body(Full::new(Bytes::from(body))).map_err(|e| text(&e))?;
    sender.ready().await.map_err(|e| text(&e))?;
    let answer = sender.send_request(request).await.map_err(|e| text(&e))?;
    let status = answer.status().as_u16();
    let body = Limited::new(answer.into_body(), MAX_BODY).collect().await.map_err(|e| text(&e))?;
    Ok((status, body.to_bytes()))
}
