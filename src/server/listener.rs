//! A bound address: a TCP port or a Unix socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::certificate::CurrentTls;
use super::client_certificate::ClientCertificate;
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
    Tls(TcpListener, CurrentTls),
    /// A Unix socket, removed when dropped.
    Unix(UnixListener, SocketFile),
}

/// Who may connect to a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketAccess {
    /// The mode of its file. The folder's permissions hold as well.
    pub mode: u32,
    /// The group of its file; `None`: as the system has it.
    pub group: Option<u32>,
}

/// This user only.
const PRIVATE: SocketAccess = SocketAccess { mode: 0o600, group: None };

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
    /// What the client shows, where it may show a certificate.
    pub(super) certificate: Option<ClientCertificate>,
}

/// A connection of either kind.
pub(super) trait ClientStream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> ClientStream for T {}

impl Listener {
    /// Binds an address. A Unix socket whose process no longer listens is replaced; anything else at its path
    /// stays, and is an error of the kind [`io::ErrorKind::AlreadyExists`].
    ///
    /// `tls`: what a TCP port speaks TLS by, if it does; `access`: who may connect to a socket.
    pub async fn bind(
        address: &Address,
        tls: Option<&CurrentTls>,
        access: SocketAccess,
    ) -> io::Result<Self> {
        match (address, tls) {
            (Address::Tcp(address), None) => Self::bind_tcp(*address),
            (Address::Tcp(address), Some(tls)) => Ok(Self::Tls(bind_tcp(*address)?, tls.clone())),
            (Address::Unix(path), _) => bind_unix(path, access).await,
        }
    }

    /// Binds a TCP port without TLS.
    pub fn bind_tcp(address: SocketAddr) -> io::Result<Self> {
        bind_tcp(address).map(Self::Tcp)
    }

    /// Binds a Unix socket that only this user may connect to.
    pub async fn bind_private(path: &Path) -> io::Result<Self> {
        bind_unix(path, PRIVATE).await
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
            Self::Tls(listener, tls) => {
                let (stream, remote, local) = accept_tcp(listener).await?;
                let certificate = ClientCertificate::awaited(tls);
                let stream = Box::pin(TlsConnection::new(stream, tls, certificate.clone()));
                // No page can point a name at it: it would have to have a certificate for that.
                let accepted = AcceptedConnection::tcp(stream, Reach::Network, remote, local);
                Ok(AcceptedConnection { certificate, ..accepted })
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let process = stream.peer_cred().ok();
                let process = process.map(|it| PeerProcess { uid: it.uid(), pid: it.pid() });
                let (stream, reach) = (Box::pin(stream), Reach::Socket(process));
                let (peer, from, certificate) = (Peer::Local, None, None);
                Ok(AcceptedConnection { stream, reach, peer, from, certificate })
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
        Self { stream, reach, peer, from, certificate: None }
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

async fn bind_unix(path: &Path, access: SocketAccess) -> io::Result<Listener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let address = SockAddr::unix(path)?;
    if let Err(error) = socket.bind(&address) {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(error);
        }
        refuse_other_files(path)?;
        if UnixStream::connect(path).await.is_ok() {
            return Err(error);
        }
        std::fs::remove_file(path)?;
        socket.bind(&address)?;
    }
    // Removed again if what follows fails.
    let file = SocketFile::new(path);
    // The umask, which is the whole process's, decides what mode the file has by now, and that may be wider. But no
    // process can connect before `listen`: the kernel refuses it.
    permit(path, access)?;
    socket.listen(BACKLOG)?;
    Ok(Listener::Unix(UnixListener::from_std(socket.into())?, file))
}

/// Gives the file of a socket its group and its mode.
fn permit(path: &Path, SocketAccess { mode, group }: SocketAccess) -> io::Result<()> {
    if let Some(group) = group {
        lchown(path, None, Some(group)).map_err(|error| {
            let remedy = "run tollgate with this group, or set another one in listen.socket_group";
            let text = format!("the group {group} cannot have the socket ({error}); {remedy}");
            io::Error::new(error.kind(), text)
        })?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
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
