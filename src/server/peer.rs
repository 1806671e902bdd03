//! Who is at the other end of a connection.

use std::net::{IpAddr, SocketAddr};

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// This pod, or a Unix socket.
    Local,
    Remote(IpAddr),
}

impl Peer {
    /// All addresses of this pod are one client: a process in it may choose among them.
    pub(super) fn of(remote: IpAddr, local: IpAddr) -> Self {
        let (remote, local) = (remote.to_canonical(), local.to_canonical());
        match remote {
            _ if remote.is_loopback() || remote == local => Self::Local,
            // A machine has a whole /64 to choose among.
            IpAddr::V6(remote) => {
                let network = u128::from(remote) >> 64 << 64;
                Self::Remote(IpAddr::V6(network.into()))
            }
            IpAddr::V4(_) => Self::Remote(remote),
        }
    }
}

/// The address that a request comes from, if not over a Unix socket: an extension of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(pub SocketAddr);

/// The process that has opened a connection over a Unix socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerProcess {
    /// Its user.
    pub uid: u32,
    /// Its id, if the system knows it.
    pub pid: Option<i32>,
}
