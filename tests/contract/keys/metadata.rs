//! A metadata service that is not there, and one that is and fails: "auto" goes on from the first only.

use std::fs;
use std::future::pending;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tollgate::config::{EcsMetadata, Endpoint, KeySource, MetadataV1};
use tollgate::keys::{KeyError, Keys, Source, source_of};

use super::server::Server;
use crate::support::ports::refusing;

/// An address where packets are dropped, as long as this is held.
struct Dropping {
    address: SocketAddr,
    _listener: TcpListener,
    _connected: Vec<TcpStream>,
}

impl Dropping {
    /// The kernel drops what begins a connection to a listener whose queue is full.
    async fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut connected = Vec::new();
        while let Ok(stream) =
            timeout(Duration::from_millis(100), TcpStream::connect(address)).await
        {
            connected.push(stream.unwrap());
        }
        Self { address, _listener: listener, _connected: connected }
    }
}

/// Takes connections, and does this with each.
async fn accepting<F: Future<Output = ()> + Send>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            serve(stream).await;
        }
    });
    address
}

#[tokio::test]
async fn only_where_nothing_can_be_connected_to_there_is_no_metadata_service() {
    let (_held, refused) = refusing();
    let dropping = Dropping::start().await;
    let silent = accepting(|stream| async move {
        let _open = stream;
        pending::<()>().await;
    })
    .await;
    let closing = accepting(|stream| async move { drop(stream) }).await;
    let failing = Server::text(503, "").await;
    let hanging = Server::start(|_| pending()).await;
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("access_key_id"), "LTAI-of-the-next").unwrap();
    fs::write(folder.path().join("access_key_secret"), "hush").unwrap();
    let rows = [
        ("refused", refused, false, true),
        ("dropped", dropping.address, false, true),
        ("refused, with TLS", refused, true, true),
        ("no answer", silent, false, false),
        ("no handshake", silent, true, false),
        ("closed", closing, false, false),
        ("a failure", failing.address, false, false),
        ("no answer to a request", hanging.address, false, false),
    ];
    let mut checks = JoinSet::new();
    for (what, address, tls, is_absent) in rows {
        checks.spawn(check(what, address, tls, is_absent, folder.path().to_owned()));
    }
    checks.join_all().await;
}

/// `next`: a folder with a key, for the source after it.
async fn check(what: &str, address: SocketAddr, tls: bool, is_absent: bool, next: PathBuf) {
    let (host, port) = (address.ip().to_string(), address.port());
    let endpoint = Endpoint { tls, host, port };
    let ecs = |role: Option<&str>| {
        let (role, endpoint) = (role.map(str::to_owned), endpoint.clone());
        KeySource::Ecs(EcsMetadata { role, endpoint, v1: MetadataV1::Refused })
    };
    let next = KeySource::File { path: next, poll: Duration::from_secs(1) };
    let chain = KeySource::Auto(vec![ecs(None), next]);
    let keys = Keys::start(&chain.into(), CancellationToken::new()).unwrap();
    let (mut unnamed, mut named) =
        (source_of(&ecs(None)).unwrap(), source_of(&ecs(Some("Role"))).unwrap());
    let (unnamed, named, ()) = tokio::join!(unnamed.load(), named.load(), keys.first_look());

    let error = unnamed.unwrap_err();
    assert_eq!(matches!(error, KeyError::Absent(_)), is_absent, "{what}: {error:?}");
    assert!(error.to_string().contains(&address.to_string()), "{what}: {error}");
    // A machine of which the operator names the role is one of the provider's.
    let named = named.unwrap_err();
    assert!(!matches!(named, KeyError::Absent(_)), "{what}: {named:?}");
    let shown = format!("{what}: {:?}", keys.status());
    assert_eq!(keys.current().is_ok(), is_absent, "{shown}");
    let error = keys.status().last_error.unwrap_or_default();
    assert_eq!(error.contains("ecs, which is set up here"), !is_absent, "{shown}");
}
