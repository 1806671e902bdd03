//! Ports for servers that want to be told theirs.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below those that the kernel gives to whoever wants any (32768 and up), so that nobody gets a port
/// between its choice here and its server's start. With 10,000 more they are still ports: a Cluster's
/// nodes talk to each other there.
const FIRST: u16 = 10_000;
const PORTS: u16 = 10_000;

/// A port that nobody has, and that no other test of this process is given.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    // Other processes' tests begin elsewhere.
    let first = std::process::id().wrapping_mul(997) % u32::from(PORTS);
    loop {
        let nth = (u32::from(GIVEN.fetch_add(1, Ordering::Relaxed)) + first) % u32::from(PORTS);
        let port = FIRST + u16::try_from(nth).unwrap();
        if [port, port + PORTS].iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()) {
            return port;
        }
    }
}

/// An address that refuses connections as long as this is held: nobody else can be given its port.
pub fn refusing() -> (tokio::net::TcpSocket, std::net::SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}
