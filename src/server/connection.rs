//! Accepts connections and serves requests on them, a bounded number at once.

use std::any::Any;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::UnixTime;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};
use uuid::fmt::Simple;

use super::automatic::AutomaticAnswers;
use super::body::{RequestBody, Settling};
use super::client_certificate::ClientCertificate;
use super::door::{Door, Reach};
use super::heads::{Framing, HiddenPart, HiddenParts};
use super::listener::{AcceptedConnection, Listener};
use super::problem::Problem;
use super::query_taker::QueryTaker;
use super::reply::Reply;
use super::returned::Returned;
use super::slots::{Busy, ConnectionPhase, ConnectionSlots, HeldSlot};
use super::slug::Slug;
use super::watched::{Timeouts, Watched};
use crate::memory::MemoryBudget;

const REQUEST_ID: &str = "x-request-id";
/// Bytes of a caller's request id; a longer one is replaced.
const MAX_REQUEST_ID: usize = 128;
/// Pause after a failed accept: it fails when no file descriptor is free, and so would the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Header lines of a request; more are answered 431.
const MAX_HEADERS: usize = 64;

/// Limits of a server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a request's head; more are answered 431.
    pub max_header: usize,
    /// Time from the first byte of a request's head to its last.
    pub header_timeout: Duration,
    /// Time without a request.
    pub idle_timeout: Duration,
}

/// One service with its limits, on any number of listeners. `service` may be wrapped in layers of
/// its own (`tower::ServiceBuilder`), such as authentication: they run inside the request id and the
/// panic handler that all servers have, and hold for this server's listeners only.
#[derive(Debug, Clone)]
pub struct HttpServer<S> {
    limits: Limits,
    /// Names under which callers reach a loopback address.
    hosts: Arc<[String]>,
    service: S,
    /// Connections at once, over all listeners.
    slots: ConnectionSlots,
    /// For queries that are taken out of request lines; `None`: hyper reads them.
    queries: Option<MemoryBudget>,
}

impl<S> HttpServer<S>
where
    S: Service<Request<RequestBody>, Response = Reply, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
{
    /// A server of `service`. `hosts`: names, besides localhost, of its loopback addresses.
    pub fn new(limits: Limits, slots: ConnectionSlots, hosts: &[String], service: S) -> Self {
        Self { limits, hosts: hosts.into(), service, slots, queries: None }
    }

    /// Takes the query of a request to `/` out of its line, up to [`MAX_QUERY`](super::MAX_QUERY) bytes, which
    /// `memory` counts: the service finds it as an extension of the request ([`TakenQuery`](super::TakenQuery)).
    #[must_use]
    pub fn with_long_queries(mut self, memory: MemoryBudget) -> Self {
        self.queries = Some(memory);
        self
    }

    /// Accepts on `listener` until `stop`, then lets requests under way end for at most `grace`.
    pub async fn serve(&self, listener: Listener, stop: CancellationToken, grace: Duration) {
        let graceful = GracefulShutdown::new();
        loop {
            // A connection is accepted before it has a slot: which one gives way depends on its peer.
            let next = async {
                let accepted = listener.accept().await?;
                let slot = self.slots.take(accepted.peer).await;
                Ok::<_, io::Error>(slot.map(|slot| (slot, accepted)))
            };
            let next = tokio::select! {
                next = next => next,
                () = stop.cancelled() => break,
            };
            match next {
                Ok(Some((slot, accepted))) => {
                    self.spawn(slot, accepted, &graceful);
                    // It reads what has come before the next ones are accepted, for which it might have
                    // to give way: after a pause of the process, many wait.
                    yield_now().await;
                }
                // Its peer has enough connections.
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(address = listener.address(), %error, "cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        // A client that never ends its request must not delay the shutdown.
        drop(timeout_at(Instant::now() + grace, graceful.shutdown()).await);
    }

    fn spawn(&self, slot: HeldSlot, accepted: AcceptedConnection, graceful: &GracefulShutdown) {
        let AcceptedConnection { stream, reach, from, certificate, .. } = accepted;
        let (phase, hidden) = (slot.phase(), HiddenParts::default());
        let timeouts =
            Timeouts { idle: self.limits.idle_timeout, head: self.limits.header_timeout };
        let automatic = AutomaticAnswers {
            hidden: hidden.clone(),
            max_header: self.limits.max_header,
            max_lines: MAX_HEADERS,
        };
        let taker = self.queries.clone().map(QueryTaker::new);
        let watched = Watched::new(stream, phase.clone(), timeouts, taker, automatic);
        let (io, mut dropped) = Returned::lend(watched);
        let door = Door { reach, from, hosts: Arc::clone(&self.hosts) };
        let service = layers(self.service.clone(), door, certificate, phase, hidden);
        let service = TowerToHyperService::new(service);
        let connection = self.http().serve_connection(TokioIo::new(io), service);
        let connection = graceful.watch(connection);
        let served = async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
            if let Ok(watched) = dropped.try_recv() {
                watched.finish().await;
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                () = served => {}
                () = slot.closed() => tracing::debug!("closed for a new connection"),
            }
            drop(slot);
        });
    }

    fn http(&self) -> http1::Builder {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            // `Watched` has timers of its own.
            .header_read_timeout(None)
            // A caller that has ended its side still gets its answer, and one that hangs up is still
            // counted and logged: its message goes on.
            .half_close(true)
            .max_headers(MAX_HEADERS)
            .max_header_size(self.limits.max_header)
            .max_buf_size(self.limits.max_header.max(8 * 1024) + 64 * 1024);
        http
    }
}

/// The layers of every server, outermost first. None of them may drop a request's future: its
/// message may be on its way.
fn layers<S>(
    service: S,
    door: Door,
    certificate: Option<ClientCertificate>,
    phase: ConnectionPhase,
    hidden: HiddenParts,
) -> impl Service<
    Request<Incoming>,
    Response = Response<impl Body<Data = Bytes, Error = tower::BoxError> + Send>,
    Error = Infallible,
    Future: Send,
> + Clone
where
    S: Service<Request<RequestBody>, Response = Reply, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let checked = tower::service_fn(move |mut request: Request<RequestBody>| {
        if let Reach::Socket(Some(peer)) = door.reach {
            request.extensions_mut().insert(peer);
        }
        if let Some(from) = door.from {
            request.extensions_mut().insert(from);
        }
        let names = certificate.as_ref().and_then(|shown| shown.names(UnixTime::now()));
        if let Some(names) = names {
            request.extensions_mut().insert(names);
        }
        let framing = request.extensions().get().copied().unwrap_or(Framing::Clear);
        let answer = match door.refusal(&request, framing) {
            Some(problem) => Err(problem.into_response()),
            // On the heap: each layer, and hyper, would move it otherwise, and it has kilobytes.
            None => Ok(Box::pin(service.clone().oneshot(request))),
        };
        async move {
            match answer {
                Ok(answer) => answer.await,
                Err(refused) => Ok(refused),
            }
        }
    });
    let caught = ServiceBuilder::new()
        // Innermost, so that the reply to a panic has an id, too.
        .layer(CatchPanicLayer::custom(panicked))
        .service(checked);
    let watched = tower::service_fn(move |mut request: Request<Incoming>| {
        let busy = phase.busy();
        let HiddenPart { framing, query } = hidden.next();
        request.extensions_mut().insert(framing);
        if let Some(query) = query {
            request.extensions_mut().insert(query);
        }
        let settling = Settling::of(request.headers());
        let (request, rest) = RequestBody::of(request);
        let answer = caught.clone().oneshot(request);
        async move {
            // The connection is being closed for another, before its request began.
            let Some(busy) = busy else { return std::future::pending().await };
            let mut response = answer.await?;
            rest.settle(settling, &mut response).await;
            Ok(response.map(|body| BusyBody { body, _busy: busy }))
        }
    });
    ServiceBuilder::new()
        .map_request(drop_invalid_id)
        // The caller's id or a new one; on every response and log line.
        .layer(SetRequestIdLayer::x_request_id(NewRequestId))
        .layer(PropagateRequestIdLayer::x_request_id())
        .service(watched)
}

/// The body of an answer that is being sent: its connection is busy until its end.
struct BusyBody<B> {
    body: B,
    _busy: Busy,
}

impl<B: Body + Unpin> Body for BusyBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Drops a request id that is too long or not printable; `NewRequestId` makes another.
fn drop_invalid_id(mut request: Request<Incoming>) -> Request<Incoming> {
    let invalid = |id: &HeaderValue| {
        id.is_empty()
            || id.len() > MAX_REQUEST_ID
            || !id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    if request.headers().get(REQUEST_ID).is_some_and(invalid) {
        request.headers_mut().remove(REQUEST_ID);
    }
    request
}

#[derive(Clone, Copy)]
struct NewRequestId;

impl MakeRequestId for NewRequestId {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        let mut id = [0; Simple::LENGTH];
        let id = uuid::Uuid::now_v7().simple().encode_lower(&mut id);
        HeaderValue::from_str(id).ok().map(RequestId::new)
    }
}

/// A panic is a bug of tollgate's; the process goes on serving.
fn panicked(_: Box<dyn Any + Send + 'static>) -> Reply {
    tracing::error!("a request caused a panic: this is a bug");
    let detail = "A bug in tollgate. The message was not accepted, but it may have been sent. Please \
                  report the request id and the log line.";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, Slug::Bug, "Internal error", detail.to_owned())
        .outcome("unknown")
        .into_response()
}
