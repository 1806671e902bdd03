//! Connections to the upstream: reused, capped, bound to their egress address, under TLS; and keys
//! that change while calls are made.
#![allow(clippy::float_cmp, reason = "counts are whole")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support;
use crate::support::authority::{certify, certify_for};
use crate::support::http::{BOUND, get, post, series};
use crate::support::process::Serve;
use crate::support::proxy::ConnectProxy;
use crate::support::script::{Say, Script, error, ok};
use crate::support::{config, sidecar, sidecar_with, until};
use rcgen::{Certificate, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tollgate::keys::Keys;

/// Answers every request on a connection with a success, until it is closed.
async fn answer_all(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let Say::Bytes(ok) = ok() else { return };
    let mut buffer = Vec::new();
    while stream.read_buf(&mut buffer).await.is_ok_and(|n| n > 0) {
        // Requests of these tests fit into one read and end with their signature.
        if String::from_utf8_lossy(&buffer).contains("&Signature=") {
            buffer.clear();
            if stream.write_all(&ok).await.is_err() {
                return;
            }
        }
    }
}

/// An upstream that notes where connections come from, and each that has ended.
async fn peers() -> (String, Arc<Mutex<Vec<SocketAddr>>>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let peers = Arc::new(Mutex::new(Vec::new()));
    let ended = Arc::new(AtomicUsize::new(0));
    let (noted, ends) = (Arc::clone(&peers), Arc::clone(&ended));
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            noted.lock().unwrap().push(peer);
            let ends = Arc::clone(&ends);
            tokio::spawn(async move {
                answer_all(stream).await;
                ends.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    (url, peers, ended)
}

#[tokio::test]
async fn connections_are_reused_and_not_for_too_long() {
    let (url, peers, ended) = peers().await;
    let flags = [("upstream.idle_timeout", "9s")];
    let (_sidecar, publish, _) = sidecar(&config(&url, &flags)).await;
    for _ in 0..10 {
        assert_eq!(post(&publish, "/publish/TopicA", &[], b"x").await.status, 200);
    }
    assert_eq!(peers.lock().unwrap().len(), 1, "one connection for ten calls in a row");
    let flags = [("upstream.idle_timeout", "1s")];
    let (_sidecar, publish, _) = sidecar(&config(&url, &flags)).await;
    assert_eq!(post(&publish, "/publish/TopicA", &[], b"x").await.status, 200);
    until("it is closed after a second", async || ended.load(Ordering::Relaxed) > 0).await;
    assert_eq!(post(&publish, "/publish/TopicA", &[], b"x").await.status, 200);
    assert_eq!(peers.lock().unwrap().len(), 3, "and a new one after a pause");
}

#[tokio::test]
async fn each_egress_address_is_sent_from() {
    let (url, peers, _) = peers().await;
    let flags = [
        ("upstream.egress_addresses", "127.0.0.2, 127.0.0.3, 127.0.0.4"),
        ("ceilings.egress_ip", "10"),
    ];
    let (_sidecar, publish, _) = sidecar(&config(&url, &flags)).await;
    for _ in 0..6 {
        assert_eq!(post(&publish, "/publish/TopicA", &[], b"x").await.status, 200);
    }
    let from: BTreeSet<_> =
        peers.lock().unwrap().iter().map(|peer| peer.ip().to_string()).collect();
    assert_eq!(from, ["127.0.0.2", "127.0.0.3", "127.0.0.4"].map(String::from).into());
}

/// Two callers whose calls are on their way; the statuses that they will get.
async fn two_calls(publish: &str, script: &Script) -> [JoinHandle<u16>; 2] {
    let calls = [(); 2].map(|()| {
        let publish = publish.to_owned();
        tokio::spawn(async move { post(&publish, "/publish/TopicA", &[], b"x").await.status })
    });
    until("two calls are on their way", async || script.requests().len() == 2).await;
    calls
}

#[tokio::test]
async fn connections_are_capped() {
    let told = Arc::new(Notify::new());
    let script = Script::start([(); 2].map(|()| Say::Later(Arc::clone(&told)))).await;
    let flags = [("upstream.max_connections", "2")];
    let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &flags)).await;
    let calls = two_calls(&publish, &script).await;
    // A third finds no connection as long as they are.
    let third = post(&publish, "/publish/TopicA", &[("prefer", "wait=1")], b"x").await;
    assert_eq!((third.status, &third.json()["outcome"]), (504, &"not-sent".into()));
    assert_eq!(script.requests().len(), 2);
    told.notify_waiters();
    for call in calls {
        assert_eq!(timeout(BOUND, call).await.unwrap().unwrap(), 200);
    }
    assert_eq!(post(&publish, "/publish/TopicA", &[], b"x").await.status, 200);
    let metrics = get(&telemetry, "/metrics").await.text();
    let ok = "tollgate_upstream_calls_total{kind=\"first\",code=\"OK\"}";
    assert_eq!(series(&metrics, ok), 3.0, "{metrics}");
}

/// A connection that the provider has closed while it was idle costs nobody anything.
#[tokio::test]
async fn a_connection_closed_by_the_provider_is_not_used() {
    let Say::Bytes(bytes) = ok() else { panic!() };
    let script = Script::start(vec![Say::BytesAndClose(bytes); 5]).await;
    let (_sidecar, publish, _) = sidecar(&config(&script.url, &[])).await;
    for _ in 0..5 {
        let answer = post(&publish, "/publish/TopicA", &[], b"x").await;
        assert_eq!(answer.status, 200, "{}", answer.json());
        // The close is on its way.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// An upstream under TLS, vouched for by an authority of its own.
async fn tls_upstream(folder: &Path) -> String {
    serve_tls(certify(folder, &["localhost"])).await
}

async fn serve_tls((certificate, key): (Certificate, KeyPair)) -> String {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    answer_all(stream).await;
                }
            });
        }
    });
    format!("https://localhost:{port}")
}

#[tokio::test]
async fn tls_with_an_authority_of_ones_own() {
    let folder = tempfile::tempdir().unwrap();
    let url = tls_upstream(folder.path()).await;
    let roots = folder.path().join("ca.pem");
    let flags = [("upstream.roots", roots.to_str().unwrap())];
    let (_sidecar, publish, _) = sidecar(&config(&url, &flags)).await;
    let answer = post(&publish, "/publish/TopicA", &[], b"x").await;
    assert_eq!(answer.status, 200, "{}", answer.json());

    // Nobody vouches for it: nothing is sent.
    let (_sidecar, publish, telemetry) = sidecar(&config(&url, &[])).await;
    let answer = post(&publish, "/publish/TopicA", &[], b"x").await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (502, &"not-sent".into()));
    let metrics = get(&telemetry, "/metrics").await.text();
    assert_eq!(series(&metrics, "tollgate_upstream_calls_total{kind=\"first\",code=\"tls\"}"), 1.0);
}

/// A server that answers each connection's first bytes with these, and closes.
async fn answers_with(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut first = vec![0; 16 * 1024];
            drop(stream.read(&mut first).await);
            drop(stream.write_all(bytes).await);
            // Until tollgate closes it: an early close could be a reset.
            while stream.read(&mut first).await.is_ok_and(|n| n > 0) {}
        }
    });
    format!("https://localhost:{port}")
}

/// Why no connection opens is in the problem, on the page and in the verbose readiness.
#[tokio::test]
async fn why_no_connection_opens() {
    let folder = tempfile::tempdir().unwrap();
    let roots = |name: &str| {
        let folder = folder.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        (folder.join("ca.pem").to_str().unwrap().to_owned(), folder)
    };
    let certified = async |name: &str, host: &str, years| {
        let (ca, folder) = roots(name);
        (serve_tls(certify_for(&folder, &[host], years)).await, ("upstream.roots", ca))
    };
    let (_closed, refusing) = support::ports::refusing();
    let bundled = || ("upstream.roots", "bundled".to_owned());
    let from = |address: &str| ("upstream.egress_addresses", address.to_owned());
    let (unvouched, _) = certified("issuer", "localhost", (1975, 4096)).await;
    let (expired, expired_ca) = certified("expired", "localhost", (2019, 2020)).await;
    let (early, early_ca) = certified("early", "localhost", (4000, 4096)).await;
    let (other, other_ca) = certified("name", "other.example", (1975, 4096)).await;
    let alert = answers_with(b"\x15\x03\x03\x00\x02\x02\x46").await;
    let plain = answers_with(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    for (endpoint, flag, code, why) in [
        (expired, expired_ca, "tls", "certificate of the provider's host has expired"),
        (early, early_ca, "tls", "certificate of the provider's host is not valid yet"),
        (other, other_ca, "tls", "not for the host name in upstream.endpoint"),
        (unvouched, bundled(), "tls", "from an unknown authority"),
        (alert, bundled(), "tls", "no TLS version in common"),
        (plain, bundled(), "tls", "answers without TLS"),
        (format!("http://{refusing}"), bundled(), "connect", "refused the connection"),
        (format!("http://{refusing}"), from("192.0.2.1"), "connect", "from the source address"),
        (format!("http://{refusing}"), from("::1"), "connect", "from the source address"),
        ("http://nowhere.invalid".to_owned(), bundled(), "resolve", "did not resolve"),
    ] {
        let flags = [(flag.0, &*flag.1), ("upstream.connect_timeout", "5s")];
        let (_sidecar, publish, telemetry) = sidecar(&config(&endpoint, &flags)).await;
        let problem = post(&publish, "/publish/TopicA", &[], b"x").await.json();
        assert_eq!(problem["outcome"], "not-sent", "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(why), "{why}: {problem}");
        let ready = get(&telemetry, "/readyz?verbose").await.text();
        let line = ready.lines().find(|line| line.starts_with("upstream: ")).unwrap();
        assert!(line.contains(why), "{why}: {ready}");
        let status = get(&telemetry, "/status.json").await.json();
        assert_eq!(status["errors"][0]["code"], code, "{why}");
        assert!(status["errors"][0]["words"].as_str().unwrap().contains(why), "{status}");
        until("it is shown", async || {
            let status = get(&telemetry, "/status.json").await.json();
            status["concerns"].to_string().contains(why)
        })
        .await;
    }
    // Once a call is answered, it is over.
    let script = Script::start([]).await;
    let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &[])).await;
    assert_eq!(post(&publish, "/publish/TopicA", &[], b"x").await.status, 200);
    assert!(!get(&telemetry, "/readyz?verbose").await.text().contains("upstream: "));
}

/// Calls go through the proxy, over as few connections as without one, and with its password.
#[tokio::test]
async fn through_a_proxy() {
    let folder = tempfile::tempdir().unwrap();
    let tls = tls_upstream(folder.path()).await;
    let (plain, peers, _) = peers().await;
    let roots = folder.path().join("ca.pem");
    for (url, user, password) in [
        (&tls, "", None),
        (&tls, "user:p%40ss@", Some("Proxy-Authorization: Basic dXNlcjpwQHNz\r\n")),
        (&plain, "", None),
    ] {
        let proxy = ConnectProxy::start(None).await;
        let address = format!("http://{user}{}", proxy.address);
        let flags = [
            ("upstream.proxy", &*address),
            ("upstream.roots", roots.to_str().unwrap()),
            ("upstream.idle_timeout", "9s"),
        ];
        let (_sidecar, publish, _) = sidecar(&config(url, &flags)).await;
        for _ in 0..10 {
            let answer = post(&publish, "/publish/TopicA", &[], b"x").await;
            assert_eq!(answer.status, 200, "{}", answer.json());
        }
        let heads = proxy.heads();
        assert_eq!(heads.len(), 1, "{heads:?}");
        let (_, authority) = url.split_once("://").unwrap();
        assert!(heads[0].starts_with(&format!("CONNECT {authority} HTTP/1.1\r\n")), "{heads:?}");
        assert_eq!(heads[0].contains("Proxy-Authorization"), password.is_some());
        assert!(password.is_none_or(|password| heads[0].contains(password)), "{heads:?}");
    }
    assert_eq!(peers.lock().unwrap().len(), 1);
}

/// Nothing is sent to a proxy that opens no connection, and the problem says why.
#[tokio::test]
async fn a_proxy_that_opens_no_connection() {
    let (_closed, refusing) = support::ports::refusing();
    for (answer, why) in [
        (Some(&b"HTTP/1.1 407 Authenticate\r\n\r\n"[..]), "asks for a user and password"),
        (Some(b"HTTP/1.1 403 Forbidden\r\nx: y\r\n\r\n"), "did not open a connection"),
        (Some(b"HTTP/1.1 200"), "did not open a connection"),
        (Some(b"no HTTP\r\n\r\n"), "did not open a connection"),
        (None, "No connection to the proxy"),
    ] {
        let script = Script::start([]).await;
        let proxy = match answer {
            Some(_) => ConnectProxy::start(answer).await.address,
            None => refusing.to_string(),
        };
        let address = format!("http://user:hush@{proxy}");
        let flags = [("upstream.proxy", &*address)];
        let (_sidecar, publish, telemetry) = sidecar(&config(&script.url, &flags)).await;
        let problem = post(&publish, "/publish/TopicA", &[], b"x").await.json();
        assert_eq!(problem["outcome"], "not-sent", "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(why), "{why}: {problem}");
        assert!(get(&telemetry, "/readyz?verbose").await.text().contains(why), "{why}");
        assert!(!get(&telemetry, "/status.json").await.text().contains("hush"));
        assert!(script.requests().is_empty());
    }
}

/// The ceiling of an egress address counts calls, over however many connections of the proxy's they go.
#[tokio::test]
async fn an_egress_ceiling_behind_a_proxy() {
    let told = Arc::new(Notify::new());
    let script = Script::start([(); 2].map(|()| Say::Later(Arc::clone(&told)))).await;
    let proxy = ConnectProxy::start(None).await;
    let address = format!("http://{}", proxy.address);
    let flags = [("upstream.proxy", &*address), ("ceilings.egress_ip", "2")];
    let (_sidecar, publish, _) = sidecar(&config(&script.url, &flags)).await;
    let calls = two_calls(&publish, &script).await;
    assert_eq!(proxy.heads().len(), 2);
    let third = post(&publish, "/publish/TopicA", &[("prefer", "wait=1")], b"x").await;
    assert_eq!(third.json()["outcome"], "not-sent", "{}", third.json());
    assert_eq!(script.requests().len(), 2);
    told.notify_waiters();
    for call in calls {
        assert_eq!(timeout(BOUND, call).await.unwrap().unwrap(), 200);
    }
}

/// A proxy in the environment that is not used is one line at start.
#[tokio::test]
async fn a_proxy_variable_that_is_not_used() {
    let script = Script::start([]).await;
    let said = "calls to the provider do not use it";
    let settings = [("upstream.endpoint", &*script.url)];
    let set = [("http_proxy", "http://user:hush@proxy.invalid:1")];
    for (env, lines) in [(&set[..], 1), (&[], 0)] {
        let serve = Serve::start(&settings, env).await;
        assert_eq!(post(&serve.publish, "/publish/TopicA", &[], b"x").await.status, 200);
        let log = serve.log();
        assert_eq!(log.matches(said).count(), lines, "{log}");
        assert!(!log.contains("hush"), "{log}");
    }
}

/// The old key stops working the moment the new one is mounted, long before the next poll: no
/// caller sees it.
#[tokio::test]
async fn a_rotated_key_fails_no_call() {
    let folder = tempfile::tempdir().unwrap();
    let mount = |version: &str| {
        // As the kubelet does it: a new folder, then one atomic rename of the link.
        let data = folder.path().join(format!("..{version}"));
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("access_key_id"), format!("id-{version}\n")).unwrap();
        std::fs::write(data.join("access_key_secret"), format!("secret-{version}")).unwrap();
        let link = folder.path().join("..data_tmp");
        std::os::unix::fs::symlink(&data, &link).unwrap();
        std::fs::rename(link, folder.path().join("..data")).unwrap();
    };
    mount("one");
    for part in ["access_key_id", "access_key_secret"] {
        let target = Path::new("..data").join(part);
        std::os::unix::fs::symlink(target, folder.path().join(part)).unwrap();
    }
    let script = Script::start([ok(), error(404, "InvalidAccessKeyId.NotFound")]).await;
    let flags = [
        ("keys.source", "file"),
        ("keys.path", folder.path().to_str().unwrap()),
        ("keys.poll", "1h"),
    ];
    let config = config(&script.url, &flags);
    let keys = Keys::start(&config.keys, CancellationToken::new()).unwrap();
    timeout(BOUND, keys.loaded()).await.unwrap();
    let (_sidecar, publish, telemetry) = sidecar_with(&config, keys).await;
    assert_eq!(post(&publish, "/publish/TopicA", &[], b"x").await.status, 200);
    mount("two");
    let answer = post(&publish, "/publish/TopicA", &[], b"x").await;
    assert_eq!((answer.status, &answer.json()["Attempts"]), (200, &2.into()));
    let ids: Vec<_> = script
        .requests()
        .iter()
        .map(|r| r.split("AccessKeyId=").nth(1).unwrap().split('&').next().unwrap().to_owned())
        .collect();
    assert_eq!(ids, ["id-one", "id-one", "id-two"]);
    let metrics = get(&telemetry, "/metrics").await.text();
    let reloads = "tollgate_key_reloads_total{source=\"file\",result=\"ok\"}";
    assert_eq!(series(&metrics, reloads), 2.0, "{metrics}");
}

/// Without a key nothing is sent, and one sees why.
#[tokio::test]
async fn no_key_yet() {
    let folder = tempfile::tempdir().unwrap();
    let script = Script::start([]).await;
    let flags = [("keys.source", "file"), ("keys.path", folder.path().to_str().unwrap())];
    let config = config(&script.url, &flags);
    let keys = Keys::start(&config.keys, CancellationToken::new()).unwrap();
    let (_sidecar, publish, telemetry) = sidecar_with(&config, keys).await;
    let begun = Instant::now();
    let answer = post(&publish, "/publish/TopicA", &[("prefer", "wait=60")], b"x").await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (502, &"not-sent".into()));
    // At once, however long the caller would wait.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(script.requests().is_empty());
    for path in ["/startupz", "/readyz"] {
        assert_eq!(get(&telemetry, path).await.status, 503, "{path}");
    }
    let verbose = get(&telemetry, "/readyz?verbose").await;
    assert!(verbose.text().contains("key: no"), "{}", verbose.text());
}

/// An upstream that answers each call with these bytes, once it is told so.
async fn late(bytes: Vec<u8>) -> (String, Arc<tokio::sync::Semaphore>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let goes_on = Arc::new(tokio::sync::Semaphore::new(0));
    let waits = Arc::clone(&goes_on);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (waits, bytes) = (Arc::clone(&waits), bytes.clone());
            tokio::spawn(async move {
                let mut request = vec![0; 16 * 1024];
                drop(stream.read(&mut request).await);
                waits.acquire().await.unwrap().forget();
                drop(stream.write_all(&bytes).await);
                // Until tollgate closes it.
                drop(stream.read(&mut request).await);
            });
        }
    });
    (url, goes_on)
}

/// A late answer shows that the provider has read the call. A gateway that gives up waiting for the
/// provider shows nothing.
#[tokio::test]
async fn what_a_late_answer_shows() {
    let gateway = support::script::http(504, "text/html", &[], "timeout");
    let throttled = [("x-acs-retry-after", "1")];
    let throttling = support::script::http(504, "text/html", &throttled, "timeout");
    let Say::Bytes(ok) = ok() else { unreachable!() };
    for (bytes, reads) in [(ok, true), (gateway, false), (throttling, false)] {
        let (url, goes_on) = late(bytes).await;
        let flags = [
            ("upstream.connect_timeout", "200ms"),
            ("upstream.call_timeout", "200ms"),
            ("ceilings.account", "10"),
        ];
        let (_sidecar, publish, telemetry) = sidecar(&config(&url, &flags)).await;
        let unanswered = async || {
            let metrics = get(&telemetry, "/metrics").await.text();
            series(&metrics, "tollgate_ceiling_unanswered_calls{ceiling=\"account\"}")
        };
        let answer = post(&publish, "/publish/TopicA", &[], b"x").await;
        assert_eq!(answer.status, 504, "{}", answer.text());
        assert_eq!(unanswered().await, 1.0);
        goes_on.add_permits(1);
        if reads {
            until("the call is read", async || unanswered().await == 0.0).await;
        } else {
            // The second call's late answer comes after the first's.
            post(&publish, "/publish/TopicA", &[], b"y").await;
            goes_on.add_permits(1);
            until("both have their answer", async || goes_on.available_permits() == 0).await;
            assert_eq!(unanswered().await, 2.0);
        }
    }
}
