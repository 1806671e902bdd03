//! Where a sidecar listens, and the bounds of each listener.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Request;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use super::StartError;
use super::stop::LAST_REPLIES;
use crate::config::{self, Address, Config};
use crate::memory::MemoryBudget;
use crate::publish::PublishService;
use crate::server::{
    Certificates, ConnectionSlots, CurrentTls, HttpServer, Limits, Listener, PeerShare, Reply,
    RequestBody, SocketAccess,
};

/// Connections of the listeners for telemetry and control, each.
const FEW: usize = 64;
/// Limits of the listeners for telemetry and control: a scraper, a kubelet, a few browsers and
/// operators.
pub(super) const SMALL: Limits = Limits {
    max_header: 16 * 1024,
    header_timeout: Duration::from_secs(5),
    idle_timeout: Duration::from_secs(75),
};

/// Where a sidecar listens.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// For callers.
    pub publish: Vec<String>,
    /// For callers with an SDK of the provider's, if that has addresses of its own.
    pub sdk: Vec<String>,
    /// For Prometheus, the kubelet and a browser.
    pub telemetry: String,
}

/// What serves the listeners of a sidecar until it stops.
#[derive(Default)]
pub(super) struct Servers {
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl Servers {
    pub(super) fn serve<S>(&self, server: &HttpServer<S>, listener: Listener)
    where
        S: Service<Request<RequestBody>, Response = Reply, Error = Infallible>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        let (server, stop) = (server.clone(), self.stop.clone());
        self.tasks.spawn(async move { server.serve(listener, stop, LAST_REPLIES).await });
    }
}

/// The connections of each server.
pub(super) struct ServerSlots {
    pub(super) publish: ConnectionSlots,
    pub(super) telemetry: ConnectionSlots,
    pub(super) control: ConnectionSlots,
}

impl ServerSlots {
    pub(super) fn new(config: &Config) -> Self {
        let max = config.publish.max_connections;
        Self {
            publish: ConnectionSlots::new("publish", max, PeerShare::All),
            // A neighbour in the pod must not keep the kubelet and Prometheus away.
            telemetry: ConnectionSlots::new("telemetry", FEW, PeerShare::Half),
            control: ConnectionSlots::new("control", FEW, PeerShare::All),
        }
    }

    pub(super) fn all(&self) -> [ConnectionSlots; 3] {
        [self.publish.clone(), self.telemetry.clone(), self.control.clone()]
    }
}

fn publish_limits(config: &config::Publish) -> Limits {
    Limits {
        max_header: config.max_header,
        header_timeout: config.header_timeout,
        idle_timeout: config.idle_timeout,
    }
}

/// Where the control socket may be, best first: a container may not be allowed to write `/run`.
pub fn control_sockets(config: &Config) -> Vec<PathBuf> {
    let Some(configured) = &config.listen.control else { return Vec::new() };
    let beside = config.spool.as_ref().map(|spool| spool.path.join("control.sock"));
    std::iter::once(configured.clone()).chain(beside).collect()
}

pub(super) async fn bind_control(config: &Config) -> Result<Option<Listener>, StartError> {
    let mut failed = None;
    for path in control_sockets(config) {
        match Listener::bind_private(&path).await {
            Ok(listener) => return Ok(Some(listener)),
            // The operator's file is at this path: another one is not what the configuration means.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StartError::Bind { address: unix(&path), error });
            }
            Err(error) => failed = Some((path, error)),
        }
    }
    if let Some((path, error)) = failed {
        let path = path.display();
        tracing::warn!(
            %path,
            %error,
            "the control socket cannot be created: `tollgate messages` and `tollgate bill` do not work \
             with this sidecar; set listen.control"
        );
    }
    Ok(None)
}

/// The callers' listeners, not yet served.
pub(super) struct CallersListeners {
    publish: Vec<Listener>,
    /// Of the provider's SDKs, if those have addresses of their own.
    sdk: Vec<Listener>,
}

impl CallersListeners {
    /// `certificates`: what TCP addresses speak TLS with. They are followed from now on.
    pub(super) async fn bind(
        config: &Config,
        certificates: Option<Certificates>,
        servers: &Servers,
    ) -> Result<Self, StartError> {
        let tls = certificates.as_ref().map(Certificates::current);
        let listen = &config.listen;
        let access = SocketAccess { mode: listen.socket_mode, group: listen.socket_group };
        let publish = bind_all(&listen.publish, tls.as_ref(), access).await?;
        let sdk = bind_all(sdk_addresses(config), tls.as_ref(), access).await?;
        if let Some(certificates) = certificates {
            servers.tasks.spawn(certificates.follow(servers.stop.clone()));
        }
        Ok(Self { publish, sdk })
    }

    pub(super) fn addresses(&self, telemetry: String) -> Addresses {
        let all = |listeners: &[Listener]| listeners.iter().map(Listener::address).collect();
        Addresses { publish: all(&self.publish), sdk: all(&self.sdk), telemetry }
    }

    pub(super) fn serve(
        self,
        config: &Config,
        service: &PublishService,
        memory: &MemoryBudget,
        slots: &ConnectionSlots,
        servers: &Servers,
    ) {
        let (limits, hosts) = (publish_limits(&config.publish), &config.listen.hosts);
        let answering = service.clone();
        let answer = tower::service_fn(move |request| answering.clone().answer(request));
        let mut server = HttpServer::new(limits, slots.clone(), hosts, answer);
        if service.takes_sdk_calls() {
            server = server.with_long_queries(memory.clone());
        }
        for listener in self.publish {
            servers.serve(&server, listener);
        }
        let answering = service.clone();
        let answer = tower::service_fn(move |request| answering.clone().answer_sdk(request));
        let server =
            HttpServer::new(limits, slots.clone(), hosts, answer).with_long_queries(memory.clone());
        for listener in self.sdk {
            servers.serve(&server, listener);
        }
    }
}

/// Addresses of the provider's SDKs alone.
fn sdk_addresses(config: &Config) -> &[Address] {
    if config.sdk.enabled { &config.sdk.listen } else { &[] }
}

/// The certificate of the callers' listeners, if one of them shows it.
pub(super) async fn certificates(config: &Config) -> Result<Option<Certificates>, StartError> {
    let mut addresses = config.listen.publish.iter().chain(sdk_addresses(config));
    let shows = addresses.any(|address| matches!(address, Address::Tcp(_)));
    let Some(files) = config.tls.as_ref().filter(|_| shows) else { return Ok(None) };
    Certificates::read(files).await.map(Some).map_err(StartError::Certificate)
}

async fn bind_all(
    addresses: &[Address],
    tls: Option<&CurrentTls>,
    access: SocketAccess,
) -> Result<Vec<Listener>, StartError> {
    let mut listeners = Vec::new();
    for address in addresses {
        let bound = Listener::bind(address, tls, access).await;
        listeners.push(bound.map_err(|error| {
            let address = match address {
                Address::Tcp(address) => address.to_string(),
                Address::Unix(path) => unix(path),
            };
            StartError::Bind { address, error }
        })?);
    }
    Ok(listeners)
}

/// Plain HTTP on a TCP port.
pub(super) fn bind_tcp(address: SocketAddr) -> Result<Listener, StartError> {
    let failed = |error| StartError::Bind { address: address.to_string(), error };
    Listener::bind_tcp(address).map_err(failed)
}

/// A socket's path as the configuration writes it.
fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}
