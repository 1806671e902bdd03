//! A bound address: a TCP port or a Unix socket.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixStream};

use super::door::Reach;
use super::slots::Peer;
use crate::config::Address;

/// Connections that wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: u32 = 65_535;

/// A bound address.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A Unix socket, removed when dropped.
    Unix(UnixListener, SocketFile),
}

/// The file of a Unix socket.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // It may be gone already.
        drop(std::fs::remove_file(&self.0));
    }
}

/// A new connection.
pub(super) struct AcceptedConnection {
    pub(super) stream: Pin<Box<dyn ClientStream>>,
    pub(super) reach: Reach,
    pub(super) peer: Peer,
}

/// A connection of either kind.
pub(super) trait ClientStream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> ClientStream for T {}

impl Listener {
    /// Binds an address. A Unix socket whose process no longer listens is replaced.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => Ok(Self::Tcp(bind_tcp(*address)?)),
            // The pod's other containers may run as other users. The folder's permissions decide
            // which of them can publish.
            Address::Unix(path) => bind_unix(path, 0o666).await,
        }
    }

    /// Binds a Unix socket that only this user may connect to.
    pub async fn bind_private(path: &Path) -> io::Result<Self> {
        bind_unix(path, 0o600).await
    }

    /// The address as the configuration writes it.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map_or_else(|e| e.to_string(), |address| address.to_string())
            }
            Self::Unix(_, SocketFile(path)) => format!("unix:{}", path.display()),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<AcceptedConnection> {
        match self {
            Self::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                stream.set_nodelay(true)?;
                // Of the connection: the listener may be bound to all addresses.
                let local = stream.local_addr()?.ip();
                let is_loopback = local.to_canonical().is_loopback();
                let reach = if is_loopback { Reach::Loopback } else { Reach::Network };
                let peer = Peer::of(remote.ip(), local);
                Ok(AcceptedConnection { stream: Box::pin(stream), reach, peer })
            }
            Self::Unix(listener, _) => {
                let stream = Box::pin(listener.accept().await?.0);
                Ok(AcceptedConnection { stream, reach: Reach::Socket, peer: Peer::Local })
            }
        }
    }
}

/// As `TcpListener::bind`, with the longest queue of connections that are not accepted yet.
fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart takes its port again while old connections wait for their end.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn bind_unix(path: &Path, mode: u32) -> io::Result<Listener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).await.is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(Listener::Unix(listener, SocketFile(path.to_owned())))
}
