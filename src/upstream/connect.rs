//! Opens a connection: name, address, TCP from a given source address, TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::cause;
use super::resolve::Resolver;
use super::tunnel::Tunnel;
use crate::answer::TransportError;
use crate::config::{self, Roots};

/// A name with more addresses is tried at this many of them.
const MAX_ADDRESSES: usize = 4;

/// A connection's bytes, plain or under TLS.
pub(super) trait ProviderStream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> ProviderStream for T {}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A CA file is unreadable or holds nothing.
    #[error("upstream.roots: no certificate could be read from {path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The system has no CA certificates.
    #[error("upstream.roots: the system has no CA certificates; use \"bundled\" or a file")]
    NoSystemRoots,
    /// The endpoint's host is neither a name nor an address.
    #[error("upstream.endpoint: {0:?} is not a host that a certificate could name")]
    Host(String),
    /// rustls does not accept its own defaults.
    #[error("TLS could not be set up: {0}")]
    Setup(#[from] rustls::Error),
}

pub(super) struct Connector {
    /// For the proxy, if there is one.
    resolver: Resolver,
    tunnel: Option<Tunnel>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    timeout: Duration,
}

impl Connector {
    pub(super) fn new(config: &config::Upstream) -> Result<Self, TlsError> {
        let endpoint = &config.endpoint;
        let tls = if endpoint.tls {
            let name = ServerName::try_from(endpoint.host.clone())
                .map_err(|_| TlsError::Host(endpoint.host.clone()))?;
            Some((TlsConnector::from(Arc::new(tls_config(&config.roots)?)), name))
        } else {
            None
        };
        let (host, port) = match &config.proxy {
            Some(proxy) => (&proxy.host, proxy.port),
            None => (&endpoint.host, endpoint.port),
        };
        Ok(Self {
            resolver: Resolver::system(host, port, config.dns_ttl),
            tunnel: config.proxy.as_ref().map(|proxy| Tunnel::new(proxy, endpoint)),
            tls,
            timeout: config.connect_timeout,
        })
    }

    /// Opens a connection from `source`, or from where the system likes. Returns the provider's
    /// address with it, or the proxy's.
    pub(super) async fn connect(
        &self,
        source: Option<IpAddr>,
    ) -> Result<(Pin<Box<dyn ProviderStream>>, SocketAddr), TransportError> {
        let deadline = Instant::now() + self.timeout;
        let (mut stream, to) = self.reach(source, deadline).await?;
        if let Some(tunnel) = &self.tunnel {
            let opened = timeout_at(deadline, tunnel.open(&mut stream)).await;
            opened.map_err(|_| TransportError::ConnectTimeout)??;
        }
        let Some((connector, name)) = &self.tls else { return Ok((Box::pin(stream), to)) };
        match timeout_at(deadline, connector.connect(name.clone(), stream)).await {
            Ok(Ok(stream)) => Ok((Box::pin(stream), to)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "TLS handshake failed");
                Err(cause::of_tls(&error))
            }
            Err(_) => Err(TransportError::ConnectTimeout),
        }
    }

    /// A TCP connection to the provider, or to the proxy.
    async fn reach(
        &self,
        source: Option<IpAddr>,
        deadline: Instant,
    ) -> Result<(TcpStream, SocketAddr), TransportError> {
        let reached = self.reach_any(source, deadline).await;
        reached.map_err(|lost| match lost {
            TransportError::ConnectTimeout | TransportError::SourceAddress => lost,
            _ if self.tunnel.is_some() => TransportError::ProxyUnreachable,
            lost => lost,
        })
    }

    async fn reach_any(
        &self,
        source: Option<IpAddr>,
        deadline: Instant,
    ) -> Result<(TcpStream, SocketAddr), TransportError> {
        let found = timeout_at(deadline, self.resolver.addresses()).await;
        let mut addresses = match found {
            Ok(found) => found.map_err(|error| cause::of_lookup(&error))?,
            Err(_) => return Err(TransportError::ResolverSilent),
        };
        if let Some(source) = source {
            addresses.retain(|to| to.is_ipv4() == source.is_ipv4());
            if addresses.is_empty() {
                return Err(TransportError::SourceAddress);
            }
        }
        addresses.truncate(MAX_ADDRESSES);
        self.open(&addresses, source, deadline).await
    }

    /// The first address that answers; each gets its part of the time that is left.
    async fn open(
        &self,
        addresses: &[SocketAddr],
        source: Option<IpAddr>,
        deadline: Instant,
    ) -> Result<(TcpStream, SocketAddr), TransportError> {
        let mut lost = TransportError::Connect;
        for (i, to) in addresses.iter().enumerate() {
            let left = u32::try_from(addresses.len() - i).unwrap_or(u32::MAX);
            let now = Instant::now();
            let until = now + (deadline - now) / left;
            match timeout_at(until, dial(*to, source)).await {
                Ok(Ok(stream)) => return Ok((stream, *to)),
                Ok(Err(error)) => {
                    tracing::debug!(%to, %error, "connection failed");
                    lost = cause::of_tcp(&error);
                }
                Err(_) => lost = TransportError::ConnectTimeout,
            }
        }
        Err(lost)
    }
}

async fn dial(to: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    // A closed call must be over: whatever the kernel has not sent by then is never sent, not even
    // by a process that was killed. Permits rely on it.
    stream.set_zero_linger()?;
    Ok(stream)
}

fn tls_config(roots: &Roots) -> Result<ClientConfig, TlsError> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::Bundled => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Roots::System => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if store.is_empty() {
                return Err(TlsError::NoSystemRoots);
            }
        }
        Roots::File(path) => {
            let problem = |problem: String| TlsError::File { path: path.clone(), problem };
            let certificates = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| problem(error.to_string()))?;
            if store.add_parsable_certificates(certificates).0 == 0 {
                return Err(problem("it holds no usable certificate".to_owned()));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::net::TcpListener;

    use super::*;

    /// A resolver that falls silent, on a real network: each connection asks, and none waits.
    #[tokio::test]
    async fn connections_while_the_resolver_is_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let flags = [("upstream.endpoint", "http://broker.invalid"), ("upstream.instance_id", "x")];
        let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let config = config::load(None, [], &flags).unwrap().config;
        let silent = Arc::new(AtomicBool::new(false));
        let is_silent = Arc::clone(&silent);
        let resolver = Resolver::new("broker.invalid", Duration::ZERO, move || {
            let is_silent = is_silent.load(Ordering::Relaxed);
            Box::pin(async move {
                if is_silent {
                    std::future::pending::<()>().await;
                }
                Ok(vec![to])
            })
        });
        let connector = Connector { resolver, ..Connector::new(&config.upstream).unwrap() };
        assert!(connector.connect(None).await.is_ok());
        silent.store(true, Ordering::Relaxed);
        for _ in 0..10 {
            assert_eq!(connector.connect(None).await.err(), None);
        }
    }
}
