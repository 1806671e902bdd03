//! The URI source against a server that behaves, and against all kinds that don't.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use hyper::{Method, Response};
use jiff::Timestamp;
use secrecy::ExposeSecret;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::{Instant, Interval, interval};
use tokio_util::sync::CancellationToken;
use tollgate::config::{KeySource, KeyUri};
use tollgate::keys::{CredentialsUri, Keys, Source};

use super::server::{Reply, Server, reply};
use crate::support::proxy::ConnectProxy;

fn answer(n: usize, life: Duration) -> String {
    let end = Timestamp::now() + life;
    format!(
        r#"{{"Code":"Success","AccessKeyId":"STS.{n}","AccessKeySecret":"hushsecret{n}",
        "SecurityToken":"hushtoken{n}","Expiration":"{end:.3}"}}"#
    )
}

fn good() -> String {
    answer(1, Duration::from_hours(1))
}

/// What one fetch says of a server; no secret may be in it.
async fn failure(uri: &str) -> String {
    let error = CredentialsUri::new(&KeyUri::plain(uri)).unwrap().load().await.unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("hush"), "{shown}");
    error.to_string()
}

fn start(uri: String) -> Keys {
    Keys::start(&KeySource::Uri(KeyUri::plain(uri)).into(), CancellationToken::new()).unwrap()
}

/// An https URI is fetched through the proxy of the environment, unless `NO_PROXY` names its host; an http
/// one never is.
#[tokio::test]
async fn a_proxy_of_the_environment() {
    let plain = Server::text(200, good()).await;
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = target.local_addr().unwrap().port();
    tokio::spawn(async move { while target.accept().await.is_ok() {} });
    let https = format!("https://localhost:{port}/key?for=hush");
    for (uri, variable, except, is_used) in [
        (&https, "HTTPS_PROXY", "", true),
        (&https, "https_proxy", "other.example,10.0.0.0/8", true),
        (&https, "ALL_PROXY", "", true),
        (&https, "HTTPS_PROXY", "localhost", false),
        (&https, "HTTPS_PROXY", "*", false),
        (&https, "HTTP_PROXY", "", false),
        (&plain.uri(), "HTTPS_PROXY", "", false),
        (&plain.uri(), "HTTP_PROXY", "", false),
    ] {
        let proxy = ConnectProxy::start(None).await;
        let mut source = CredentialsUri::with_environment(&KeyUri::plain(uri), |name| match name {
            "NO_PROXY" => Some(except.to_owned()),
            name if name == variable => Some(format!("http://user:hushword@{}", proxy.address)),
            _ => None,
        })
        .unwrap();
        // What listens there has no TLS: the way to it is what counts.
        let loaded = source.load().await;
        assert_eq!(loaded.is_ok(), uri.starts_with("http:"), "{loaded:?}");
        assert!(!format!("{loaded:?}").contains("hush"), "{loaded:?}");
        let heads = proxy.heads();
        assert_eq!(heads.len(), usize::from(is_used), "{variable} {except:?} {uri}");
        if let Some(head) = heads.first() {
            assert!(head.starts_with(&format!("CONNECT localhost:{port} ")), "{head}");
            assert!(!head.contains("hush"), "the key's path is for the key holder only: {head}");
        }
    }
    for wrong in ["socks5://user:hush@proxy:1080", "http://", "http://ho st"] {
        let set = |name: &str| (name == "HTTPS_PROXY").then(|| wrong.to_owned());
        let error = CredentialsUri::with_environment(&KeyUri::plain(&https), set).err().unwrap();
        assert!(!format!("{error} {error:?}").contains("hush"), "{error}");
    }
}

#[tokio::test]
async fn a_key_is_fetched_by_one_get_with_the_uris_password() {
    let server = Server::text(200, good()).await;
    let keys = start(server.uri());
    keys.loaded().await;
    let key = keys.current().unwrap();
    assert_eq!((key.id(), key.secret().expose_secret()), ("STS.1", "hushsecret1"));
    assert_eq!(key.token().unwrap().expose_secret(), "hushtoken1");
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(
        (requests[0].method(), requests[0].uri().to_string()),
        (&Method::GET, "/key?for=hushquery".to_owned())
    );
    assert_eq!(requests[0].headers()["authorization"], "Basic dXNlcjpodXNocGFzcw==");
    let shown = format!("{keys:?} {key:?}");
    // So short an id is not shown at all.
    assert!(shown.contains("****"), "{shown}");
    assert!(!shown.contains("STS") && !shown.contains("hush"), "{shown}");
}

#[tokio::test]
async fn a_dying_key_is_renewed_by_the_real_clock() {
    let server =
        Server::start(|n| std::future::ready(reply(200, answer(n, Duration::from_secs(10))))).await;
    let keys = start(server.uri());
    keys.loaded().await;
    let first = keys.current().unwrap();
    keys.changed_from(&first).await;
    assert!(Timestamp::now() < first.expires().unwrap());
    assert_eq!(keys.current().unwrap().id(), "STS.2");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Server::text(200, good()).await;
    for status in [301, 302, 307, 308] {
        let there = other.uri();
        let server = Server::start(move |_| {
            let mut answer = reply(status, good());
            answer.headers_mut().insert("location", there.parse().unwrap());
            std::future::ready(answer)
        })
        .await;
        let error = failure(&server.uri()).await;
        assert_eq!(error, format!("http://{}: answered with HTTP status {status}", server.address));
        assert_eq!(server.requests().len(), 1);
    }
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn other_statuses_and_bodies_are_no_key_and_not_tried_again() {
    for (status, body, expected) in [
        (500, good(), "HTTP status 500"),
        (404, good(), "HTTP status 404"),
        (206, good(), "HTTP status 206"),
        (200, "<html>hush</html>".to_owned(), "no JSON of a key"),
        (200, String::new(), "no JSON of a key"),
        (200, good().replace(r#""Success""#, r#""hush""#), "Code is not Success"),
        (200, good().replace("Expiration", "Hush"), "no Expiration"),
    ] {
        let server = Server::text(status, body).await;
        let error = failure(&server.uri()).await;
        assert!(error.contains(expected), "{error}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_body_of_64_kib_is_read_and_one_byte_more_is_not() {
    let padded = |len| {
        let mut body = good();
        body.push_str(&" ".repeat(len - body.len()));
        body
    };
    let server = Server::text(200, padded(64 * 1024)).await;
    assert!(CredentialsUri::new(&KeyUri::plain(server.uri())).unwrap().load().await.is_ok());
    let server = Server::text(200, padded(64 * 1024 + 1)).await;
    assert!(failure(&server.uri()).await.ends_with("answered with more than 65536 bytes"));
}

/// A body that never ends: a piece at every tick, or as fast as it is read.
struct Endless {
    tick: Option<Interval>,
    piece: Bytes,
}

impl Endless {
    fn reply(tick: Option<Interval>, piece: impl Into<Bytes>) -> Reply {
        Response::new(Self { tick, piece: piece.into() }.boxed())
    }
}

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.tick.as_mut().is_some_and(|tick| tick.poll_tick(context).is_pending()) {
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(Frame::data(self.piece.clone()))))
    }
}

#[tokio::test]
async fn an_endless_body_is_left_at_its_bound() {
    let server = Server::start(|_| std::future::ready(Endless::reply(None, "hush"))).await;
    assert!(failure(&server.uri()).await.ends_with("answered with more than 65536 bytes"));
}

/// A key is asked of this server, and given up after so long.
async fn times_out_after(server: &Server, bound: Duration) {
    let uri = server.uri();
    let begun = Instant::now();
    let fetch = tokio::spawn(async move { failure(&uri).await });
    // Connecting is real; only the waiting that follows is skipped.
    server.asked().await;
    tokio::time::pause();
    let asked = Instant::now();
    assert!(fetch.await.unwrap().ends_with(": timed out"));
    let waited = (begun.elapsed(), asked.elapsed());
    assert!(waited.0 >= bound && waited.1 < bound + Duration::from_secs(1), "{waited:?}");
}

#[tokio::test]
async fn a_server_that_never_answers_times_out() {
    let server = Server::start(|_| std::future::pending()).await;
    times_out_after(&server, Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_server_that_drips_times_out_as_a_whole() {
    let server = Server::start(|_| {
        std::future::ready(Endless::reply(Some(interval(Duration::from_secs(5))), " "))
    })
    .await;
    times_out_after(&server, Duration::from_secs(20)).await;
}

#[tokio::test]
async fn nobody_listening_is_said_plainly() {
    // Bound, and not listened at: nobody else can be given this port.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let free = nobody.local_addr().unwrap();
    let error = failure(&format!("http://user:hush@{free}/hush?hush")).await;
    assert!(error.starts_with(&format!("http://{free}: Connection refused")), "{error}");
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused() {
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![own.cert.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        tokio_rustls::TlsAcceptor::from(Arc::new(tls)).accept(stream).await.is_ok()
    });
    let error = failure(&format!("https://user:hush@{address}/hush?hush")).await;
    assert!(error.contains("invalid peer certificate"), "{error}");
    assert!(!accepted.await.unwrap(), "nothing was sent over it");
}
