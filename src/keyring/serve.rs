//! What is answered, on connections that are bounded as those of all servers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::{
    CACHE_CONTROL, CONNECTION, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Method, Request, StatusCode};
use tokio_util::sync::CancellationToken;

use super::KeyringInner;
use super::hand_out::Withheld;
use crate::server::{
    ClientAddress, ConnectionSlots, HttpServer, Limits, Listener, PeerShare, Problem, Reply,
    RequestBody, Slug, reply,
};

/// The path of the keys.
const KEYS: &str = "/credentials";
/// The largest part of a head is a token.
const LIMITS: Limits = Limits {
    max_header: 16 * 1024,
    header_timeout: Duration::from_secs(5),
    // A handshake is a part of it.
    idle_timeout: Duration::from_secs(5),
};
/// What is under way at the end has so long.
const LAST: Duration = Duration::from_secs(5);

/// Accepts until `stop`. No client machine has more than half of the connections, and those without a request
/// give way to others.
pub(super) async fn run(
    listener: Listener,
    keyring: Arc<KeyringInner>,
    most: usize,
    stop: CancellationToken,
) {
    let service = tower::service_fn(move |request: Request<RequestBody>| {
        let keyring = Arc::clone(&keyring);
        async move { Ok::<_, Infallible>(answer(&keyring, &request).await) }
    });
    let slots = ConnectionSlots::new("keyring", most, PeerShare::Half);
    // Without TLS it is behind a proxy, which passes the name on; and each answer needs a proof.
    let hosts = ["*".to_owned()];
    HttpServer::new(LIMITS, slots, &hosts, service).serve(listener, stop, LAST).await;
}

async fn answer(keyring: &KeyringInner, request: &Request<RequestBody>) -> Reply {
    let uri = request.uri();
    let mut reply = if matches!(*request.method(), Method::GET | Method::HEAD) {
        match uri.path() {
            KEYS => {
                let from = request.extensions().get().map(|ClientAddress(address)| *address);
                match keyring.key_for(request.headers(), uri.query(), from).await {
                    Ok(key) => reply(StatusCode::OK, "application/json", key),
                    Err(withheld) => withhold(&withheld),
                }
            }
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match keyring.readiness() {
                Ok(()) => text(StatusCode::OK, "ok\n"),
                Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
            },
            _ => text(StatusCode::NOT_FOUND, "there are /credentials, /livez and /readyz\n"),
        }
    } else {
        text(StatusCode::METHOD_NOT_ALLOWED, "only GET goes here\n")
    };
    let mut add = |name: HeaderName, value| {
        reply.headers_mut().insert(name, HeaderValue::from_static(value));
    };
    add(CACHE_CONTROL, "no-store");
    // Callers come minutes apart.
    add(CONNECTION, "close");
    reply
}

/// What a caller without a key is answered. Which part of its proof is wrong stands in the log only.
fn withhold(withheld: &Withheld) -> Reply {
    let (status, slug, title, detail) = match withheld {
        Withheld::Unproven(_) => (
            StatusCode::UNAUTHORIZED,
            Slug::Unproven,
            "No valid proof of who asks",
            "Send a token of a service account, or a shared token, as Authorization: Bearer. The log of \
             the keyring says what is wrong with this one.",
        ),
        Withheld::TooOften(_) => (
            StatusCode::TOO_MANY_REQUESTS,
            Slug::TooOften,
            "Too many requests of this caller",
            "A key serves for minutes: keep it.",
        ),
        Withheld::TooMany(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Slug::TooManyCallers,
            "Too many callers",
            "As many accounts of this caller as its part of keyring.max_callers allows have keys.",
        ),
        Withheld::Failed(..) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Slug::NoKey,
            "No key could be made",
            "The Security Token Service gave none. The log of the keyring says why.",
        ),
    };
    let mut reply = Problem::new(status, slug, title, detail.to_owned()).into_response();
    let (name, value) = match status {
        StatusCode::UNAUTHORIZED => (WWW_AUTHENTICATE, "Bearer"),
        _ => (RETRY_AFTER, "1"),
    };
    reply.headers_mut().insert(name, HeaderValue::from_static(value));
    reply
}

fn text(status: StatusCode, body: &'static str) -> Reply {
    reply(status, "text/plain; charset=utf-8", body)
}
