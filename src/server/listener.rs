//! A bound address: a TCP port or a Unix socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use rustix::io::Errno;
use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;

use super::door::Reach;
use super::peer::{ClientAddress, Peer, PeerProcess};
use super::tls::TlsConnection;
use crate::config::Address;

/// Connections that wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

/// A bound address.
#[derive(Debug)]
pub enum Listener {
    /// A TCP port.
    Tcp(TcpListener),
    /// A TCP port with TLS, by the configuration that is current when a connection is accepted.
    Tls(TcpListener, watch::Receiver<Arc<ServerConfig>>),
    /// A Unix socket, removed when dropped.
    Unix(UnixListener, SocketFile),
}

/// The file of a Unix socket.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Of the file: a successor may have replaced it.
    id: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), id: file_id(path) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.id.is_some() && file_id(&self.path) == self.id {
            // It may be gone already.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

fn file_id(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// A new connection.
pub(super) struct AcceptedConnection {
    pub(super) stream: Pin<Box<dyn ClientStream>>,
    pub(super) reach: Reach,
    pub(super) peer: Peer,
    pub(super) from: Option<ClientAddress>,
}

/// A connection of either kind.
pub(super) trait ClientStream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> ClientStream for T {}

impl Listener {
    /// Binds an address. A Unix socket whose process no longer listens is replaced; anything else at its path
    /// stays, and is an error of the kind [`io::ErrorKind::AlreadyExists`].
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
            Self::Tcp(listener) | Self::Tls(listener, _) => {
                listener.local_addr().map_or_else(|e| e.to_string(), |address| address.to_string())
            }
            Self::Unix(_, file) => format!("unix:{}", file.path.display()),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<AcceptedConnection> {
        match self {
            Self::Tcp(listener) => {
                let (stream, remote, local) = accept_tcp(listener).await?;
                let is_loopback = local.to_canonical().is_loopback();
                let reach = if is_loopback { Reach::Loopback } else { Reach::Network };
                Ok(AcceptedConnection::tcp(Box::pin(stream), reach, remote, local))
            }
            Self::Tls(listener, config) => {
                let (stream, remote, local) = accept_tcp(listener).await?;
                let config = Arc::clone(&config.borrow());
                let stream = Box::pin(TlsConnection::new(stream, config));
                // No page can point a name at it: it would have to have a certificate for that.
                Ok(AcceptedConnection::tcp(stream, Reach::Network, remote, local))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let process = stream.peer_cred().ok();
                let process = process.map(|it| PeerProcess { uid: it.uid(), pid: it.pid() });
                let (stream, reach) = (Box::pin(stream), Reach::Socket(process));
                Ok(AcceptedConnection { stream, reach, peer: Peer::Local, from: None })
            }
        }
    }
}

impl AcceptedConnection {
    fn tcp(
        stream: Pin<Box<dyn ClientStream>>,
        reach: Reach,
        remote: SocketAddr,
        local: IpAddr,
    ) -> Self {
        let (peer, from) = (Peer::of(remote.ip(), local), Some(ClientAddress(remote)));
        Self { stream, reach, peer, from }
    }
}

/// A connection, where it comes from, and its own address here: the listener may be bound to all.
async fn accept_tcp(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr, IpAddr)> {
    let (stream, remote) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?.ip();
    Ok((stream, remote, local))
}

/// As `TcpListener::bind`, with the longest queue of connections that are not accepted yet. `[::]` is all
/// addresses of both families, also where `net.ipv6.bindv6only` has another default and where there is no IPv6.
fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let all = address.is_ipv6() && address.ip().is_unspecified();
    match listen_at(address, all) {
        Err(error) if all && is_without_ipv6(&error) => {
            listen_at((Ipv4Addr::UNSPECIFIED, address.port()).into(), false)
        }
        bound => bound,
    }
}

fn listen_at(address: SocketAddr, both_families: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if both_families {
        socket.set_only_v6(false)?;
    }
    // A restart takes its port again while old connections wait for their end.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A kernel without the family (`ipv6.disable=1`), or with it switched off in this network namespace.
fn is_without_ipv6(error: &io::Error) -> bool {
    let error = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(error, Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

async fn bind_unix(path: &Path, mode: u32) -> io::Result<Listener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            refuse_other_files(path)?;
            if UnixStream::connect(path).await.is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(Listener::Unix(listener, SocketFile::new(path)))
}

/// What is not a socket was not created by a sidecar: a path that is wrong by a letter must not cost a file.
fn refuse_other_files(path: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(path)?.file_type();
    if found.is_socket() {
        return Ok(());
    }
    let kind = if found.is_dir() { "a folder" } else { "a file" };
    let text = format!("there is {kind} that is not a socket; remove it, or set another path");
    Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_ipv6() {
        let is =
            |errno: Errno| is_without_ipv6(&io::Error::from_raw_os_error(errno.raw_os_error()));
        assert!(is(Errno::AFNOSUPPORT) && is(Errno::ADDRNOTAVAIL));
        // The port is taken: another family must not hide that.
        assert!(!is(Errno::ADDRINUSE) && !is(Errno::ACCESS));
        assert!(!is_without_ipv6(&io::Error::other("?")));
    }
}
