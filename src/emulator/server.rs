//! Connections: accepting them, reading requests off them, and closing them without a word.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::faults::Then;
use super::issued_key::KeyAnswer;
use super::operation::{self, Operation, received};
use super::reply::{self, Body};
use super::send_message::{self, CallOutcome, DelayedOutcome};
use super::state::EmulatorInner;
use super::traffic::Arrival;
use super::{admin, metadata, other_operation, sts};
use crate::verification::Refusal;

const MOST_CONNECTIONS: usize = 16_384;
/// Connections that wait to be accepted: tests open thousands at once.
const BACKLOG: u32 = 4096;
const MOST_BODY: usize = 1 << 20;
/// A call that hangs is let go after this long even if its caller never gives up.
const LONGEST_HANG: Duration = Duration::from_mins(2);

/// Makes hyper close the connection without an answer.
#[derive(Debug, Error)]
#[error("the connection is closed without an answer")]
struct HangUp;

pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts until stopped.
pub(super) async fn accept(
    listener: TcpListener,
    shared: Arc<EmulatorInner>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let accepting = async {
        while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let (shared, stop) = (Arc::clone(&shared), stop.clone());
                    tasks.spawn(async move {
                        tokio::select! {
                            () = connection(stream, peer.ip().to_canonical(), shared) => {}
                            () = stop.cancelled() => {}
                        }
                        drop(permit);
                    });
                }
                // out of file descriptors, or a caller that was gone too soon
                Err(error) => {
                    tracing::warn!(%error, "no connection accepted");
                    sleep(Duration::from_millis(20)).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = stop.cancelled() => {}
    }
}

async fn connection(stream: TcpStream, source: IpAddr, shared: Arc<EmulatorInner>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let idle = shared.options.idle;
    let service = service_fn(|request| handle(&shared, source, request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        // its time runs while a kept-alive connection waits for the next request, too
        .header_read_timeout(idle)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%source, %error, "connection ended");
    }
}

async fn handle(
    shared: &EmulatorInner,
    source: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>, HangUp> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if path.starts_with(admin::PREFIX) {
        let body = read(shared, body).await?;
        return Ok(admin::answer(shared, &parts.method, path, &body));
    }

    if path.starts_with(metadata::PREFIX) {
        return answer_with_keys(shared, metadata::answer(shared, &parts), &parts).await;
    }
    if path == "/" && operation::is_for_sts(&parts) {
        let body = read(shared, body).await?;
        let issued = sts::answer(shared, &received(&parts, &body));
        return answer_with_keys(shared, issued, &parts).await;
    }

    let arrival = shared.arrive(source);
    if arrival == Arrival::Blocked {
        return Err(HangUp);
    }
    let body = read(shared, body).await?;
    let verdict = match arrival {
        Arrival::OverAccount(room_in) => send_message::over_account(shared, room_in),
        _ if path == "/" => {
            let call = received(&parts, &body);
            match Operation::of(&call) {
                Ok(Operation::SendMessage) => send_message::settle(shared, source, &call),
                Ok(Operation::Other(operation)) => {
                    let done = other_operation::answer(shared, operation, &call);
                    return answer_with_keys(shared, done, &parts).await;
                }
                // Its operation stood in the body.
                Ok(_) => {
                    return answer_with_keys(shared, sts::answer(shared, &call), &parts).await;
                }
                Err(refusal) => send_message::refuse(shared, refusal),
            }
        }
        _ => send_message::refuse(shared, Refusal::new("InvalidApi.NotFound")),
    };
    let DelayedOutcome { outcome, delay } = verdict;
    let delay = delay + shared.options.latency;
    if !delay.is_zero() {
        sleep(delay).await;
    }
    let mut reply = match outcome {
        CallOutcome::Accepted { msg_id } => reply::taken(&msg_id),
        CallOutcome::EmptyMsgId => reply::taken(""),
        CallOutcome::Refused(refusal) => reply::refused(&refusal, &parts.headers),
        CallOutcome::Html503 => reply::html_503(),
        CallOutcome::Close | CallOutcome::AcceptedThenClose => return Err(HangUp),
        CallOutcome::Hang => {
            sleep(LONGEST_HANG).await;
            return Err(HangUp);
        }
    };
    if shared.options.clock_offset != 0 {
        reply::set_date(&mut reply, shared.wall());
    }
    Ok(reply)
}

/// The answer of a service that gives out keys, or of an operation that does nothing.
async fn answer_with_keys(
    shared: &EmulatorInner,
    issued: KeyAnswer,
    parts: &http::request::Parts,
) -> Result<Response<Body>, HangUp> {
    let KeyAnswer { answer, fault } = issued;
    let delay = fault.as_ref().and_then(|fault| fault.latency).unwrap_or_default();
    if !delay.is_zero() {
        sleep(delay).await;
    }
    let mut reply = match fault.map(|fault| (fault.then, fault.code, fault.status)) {
        None | Some((Then::Answer, None, _)) => match answer {
            Ok(reply) => reply,
            Err(refusal) => reply::refused(&refusal, &parts.headers),
        },
        Some((Then::Answer, Some(code), status)) => {
            let refusal = Refusal::new(code);
            let status = status.unwrap_or(refusal.status);
            reply::refused(&Refusal { status, ..refusal }, &parts.headers)
        }
        Some((Then::Html503 | Then::EmptyMsgid, ..)) => reply::html_503(),
        Some((Then::Close | Then::DeliverThenClose, ..)) => return Err(HangUp),
        Some((Then::Hang, ..)) => {
            sleep(LONGEST_HANG).await;
            return Err(HangUp);
        }
    };
    if shared.options.clock_offset != 0 {
        reply::set_date(&mut reply, shared.wall());
    }
    Ok(reply)
}

/// The whole body; one that is too large or too slow is not worth an answer.
async fn read(shared: &EmulatorInner, body: Incoming) -> Result<Bytes, HangUp> {
    let whole = timeout(shared.options.idle, Limited::new(body, MOST_BODY).collect()).await;
    Ok(whole.map_err(|_| HangUp)?.map_err(|_| HangUp)?.to_bytes())
}
