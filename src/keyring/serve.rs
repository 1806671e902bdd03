//! Connections: bounded in number, in size and in time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::KeyringInner;
use super::certificate::Certificates;
use super::hand_out::Withheld;
use crate::server::Problem;

/// The path of the keys.
const KEYS: &str = "/credentials";
/// A handshake, the head of a request, and a whole connection take no longer than this.
const HANDSHAKE: Duration = Duration::from_secs(5);
const HEAD: Duration = Duration::from_secs(5);
const WHOLE: Duration = Duration::from_secs(30);
/// What is under way at the end has so long.
const LAST: Duration = Duration::from_secs(5);
/// For the head of a request, whose largest part is a token.
const BUFFER: usize = 16 * 1024;

type KeyringReply = Response<Full<Bytes>>;

/// Accepts until `stop`.
pub(super) async fn run(
    listener: TcpListener,
    certificates: Option<Certificates>,
    keyring: Arc<KeyringInner>,
    most: usize,
    stop: CancellationToken,
) {
    let tasks = TaskTracker::new();
    let room = Arc::new(Semaphore::new(most));
    let accepting = async {
        while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let (certificates, keyring) = (certificates.clone(), Arc::clone(&keyring));
                    tasks.spawn(async move {
                        let served = connection(stream, from, certificates, keyring);
                        // Its end, whichever it is, is no matter of the keyring's.
                        drop(timeout(WHOLE, served).await);
                        drop(permit);
                    });
                }
                // Out of file descriptors, or a client that was gone too soon.
                Err(error) => {
                    tracing::debug!(%error, "no connection accepted");
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    };
    stop.run_until_cancelled(accepting).await;
    tasks.close();
    drop(timeout(LAST, tasks.wait()).await);
}

async fn connection(
    stream: TcpStream,
    from: SocketAddr,
    certificates: Option<Certificates>,
    keyring: Arc<KeyringInner>,
) {
    let Some(certificates) = certificates else { return http(stream, from, keyring).await };
    match timeout(HANDSHAKE, certificates.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => http(stream, from, keyring).await,
        Ok(Err(error)) => tracing::debug!(%from, %error, "no TLS"),
        Err(_) => tracing::debug!(%from, "no TLS in time"),
    }
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    from: SocketAddr,
    keyring: Arc<KeyringInner>,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let keyring = Arc::clone(&keyring);
        async move { Ok::<_, Infallible>(answer(&keyring, &request, from).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        // Callers come minutes apart.
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%from, %error, "connection ended");
    }
}

async fn answer(
    keyring: &KeyringInner,
    request: &Request<Incoming>,
    from: SocketAddr,
) -> KeyringReply {
    let uri = request.uri();
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET goes here\n".to_owned());
    }
    match uri.path() {
        KEYS => match keyring.key_for(request.headers(), uri.query(), from).await {
            Ok(key) => json(StatusCode::OK, key),
            Err(withheld) => withhold(&withheld),
        },
        "/livez" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match keyring.readiness() {
            Ok(()) => text(StatusCode::OK, "ok\n".to_owned()),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        _ => text(StatusCode::NOT_FOUND, format!("there are {KEYS}, /livez and /readyz\n")),
    }
}

/// What a caller without a key is answered. Which part of its proof is wrong stands in the log only.
fn withhold(withheld: &Withheld) -> KeyringReply {
    let (status, slug, title, detail) = match withheld {
        Withheld::Unproven(_) => (
            StatusCode::UNAUTHORIZED,
            "unproven",
            "No valid proof of who asks",
            "Send a token of a service account, or a shared token, as Authorization: Bearer. The log of \
             the keyring says what is wrong with this one.",
        ),
        Withheld::TooOften(_) => (
            StatusCode::TOO_MANY_REQUESTS,
            "too-often",
            "Too many requests of this caller",
            "A key serves for minutes: keep it.",
        ),
        Withheld::TooMany => (
            StatusCode::SERVICE_UNAVAILABLE,
            "too-many-callers",
            "Too many callers",
            "As many callers as keyring.max_callers allows have keys.",
        ),
        Withheld::Failed(..) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "no-key",
            "No key could be made",
            "The Security Token Service gave none. The log of the keyring says why.",
        ),
    };
    let problem = Problem::new(status, slug, title, detail.to_owned());
    let mut reply = json(status, problem.to_json());
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status == StatusCode::UNAUTHORIZED {
        reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    } else {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    reply
}

fn json(status: StatusCode, body: Vec<u8>) -> KeyringReply {
    whole(status, HeaderValue::from_static("application/json"), body.into())
}

fn text(status: StatusCode, body: String) -> KeyringReply {
    whole(status, HeaderValue::from_static("text/plain; charset=utf-8"), body.into())
}

fn whole(status: StatusCode, kind: HeaderValue, body: Bytes) -> KeyringReply {
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, kind);
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}
