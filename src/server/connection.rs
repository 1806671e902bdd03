//! Accepts connections and serves requests on them, a bounded number at once.

use std::any::Any;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceBuilder, ServiceExt};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{
    MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer,
};

use super::listener::Listener;
use super::problem::Problem;
use super::watched::{Patience, Phase, Watched};

/// An answer.
pub type Reply = Response<Full<Bytes>>;

const REQUEST_ID: &str = "x-request-id";
/// A longer one is replaced.
const MAX_REQUEST_ID: usize = 128;
/// The rest after an accept that failed, which the next would too: no file is free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// More header lines are answered 431.
const MAX_HEADERS: usize = 64;

/// What a door bears.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; more wait to be accepted.
    pub max_connections: usize,
    /// Bytes of a request's head; more are answered 431.
    pub max_header: usize,
    /// From a head's first byte to its last.
    pub header_timeout: Duration,
    /// Without a request.
    pub idle_timeout: Duration,
}

/// Connections of one room, over all its addresses.
#[derive(Debug, Clone)]
pub struct HttpServer {
    limits: Limits,
    slots: Arc<Semaphore>,
}

impl HttpServer {
    /// A door with these limits.
    pub fn new(limits: Limits) -> Self {
        Self { limits, slots: Arc::new(Semaphore::new(limits.max_connections)) }
    }

    /// Serves until `stop`, then lets requests under way end for at most `grace`.
    pub async fn serve<S>(
        &self,
        listener: Listener,
        service: S,
        stop: CancellationToken,
        grace: Duration,
    ) where
        S: Service<Request<Incoming>, Response = Reply, Error = Infallible>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        let graceful = GracefulShutdown::new();
        loop {
            let next = async {
                let slot = Arc::clone(&self.slots).acquire_owned().await;
                (slot, listener.accept().await)
            };
            let (slot, stream) = tokio::select! {
                accepted = next => accepted,
                () = stop.cancelled() => break,
            };
            let stream = match stream {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::error!(address = listener.address(), %error, "cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let phase = Phase::default();
            let patience =
                Patience { idle: self.limits.idle_timeout, head: self.limits.header_timeout };
            let io = TokioIo::new(Watched::new(stream, phase.clone(), patience));
            let service = TowerToHyperService::new(layers(service.clone(), phase));
            let connection = self.http().serve_connection(io, service);
            let connection = graceful.watch(connection);
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "connection ended");
                }
                drop(slot);
            });
        }
        drop(listener);
        // A client that never ends its request must not hold us.
        drop(timeout_at(Instant::now() + grace, graceful.shutdown()).await);
    }

    fn http(&self) -> http1::Builder {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            // `Watched` has the timers.
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

/// What happens around each request, outermost first. Nothing here ends a request by dropping it:
/// a message may be on its way.
fn layers<S>(
    service: S,
    phase: Phase,
) -> impl Service<
    Request<Incoming>,
    Response = Response<impl hyper::body::Body<Data = Bytes, Error = tower::BoxError> + Send>,
    Error = Infallible,
    Future: Send,
> + Clone
where
    S: Service<Request<Incoming>, Response = Reply, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let watched = tower::service_fn(move |request| {
        let busy = phase.busy();
        let answer = service.clone().oneshot(request);
        async move {
            let answer = answer.await;
            drop(busy);
            answer
        }
    });
    ServiceBuilder::new()
        .map_request(forget_odd_id)
        // Kept or made, always answered.
        .layer(SetRequestIdLayer::x_request_id(Made))
        .layer(PropagateRequestIdLayer::x_request_id())
        // Innermost, so that even this answer has an id.
        .layer(CatchPanicLayer::custom(panicked))
        .service(watched)
}

/// An id that is too long or not printable is nobody's; another is made.
fn forget_odd_id(mut request: Request<Incoming>) -> Request<Incoming> {
    let odd = |id: &HeaderValue| {
        id.is_empty()
            || id.len() > MAX_REQUEST_ID
            || !id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    if request.headers().get(REQUEST_ID).is_some_and(odd) {
        request.headers_mut().remove(REQUEST_ID);
    }
    request
}

#[derive(Clone, Copy)]
struct Made;

impl MakeRequestId for Made {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        let id = uuid::Uuid::now_v7().simple().to_string();
        HeaderValue::try_from(id).ok().map(RequestId::new)
    }
}

/// A bug of ours: the process serves on.
fn panicked(_: Box<dyn Any + Send + 'static>) -> Reply {
    tracing::error!("a request made us panic: this is a bug");
    let detail = "tollgate met a bug of its own. The message was not accepted; it may have been \
                  sent. Please report the request id and the log line.";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "bug", "Internal error", detail.to_owned())
        .outcome("unknown")
        .into_response()
}
