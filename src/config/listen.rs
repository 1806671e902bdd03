//! `[listen]` and `[publish]`: where tollgate listens, and what its callers may do.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::checks::{HOUR, MOST_CONNECTIONS, SHORTEST};
use super::error::ValueError;
use super::parse::{Raw, Scalar};
use super::read::{Reader, boolean, choice, duration, list, size, value, whole};
use super::row::Reload::{Live, LiveUnless};
use super::table::section;

/// What fits into the kernel's address of a Unix socket, less the closing zero.
const LONGEST_SOCKET_PATH: usize = 107;
/// hyper's buffer for a request head cannot be smaller.
const SMALLEST_HEADER: u64 = 8 * bytesize::KIB;

/// What becomes of a `CloudEvent` in binary mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloudEvents {
    /// It is refused.
    Refuse,
    /// Its payload is the event in its JSON format.
    Structured,
}

const CLOUD_EVENTS: [(&str, CloudEvents); 2] =
    [("refuse", CloudEvents::Refuse), ("structured", CloudEvents::Structured)];

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// `127.0.0.1:8080`
    Tcp(SocketAddr),
    /// `unix:/run/tollgate/publish.sock`
    Unix(PathBuf),
}

section! {
    /// `[listen]`: the servers.
    #[derive(Debug, Clone)]
    pub struct Listen [listen] {
        /// Where callers publish: one address or a list. Keep it inside the pod: a loopback address or a
        /// Unix socket, "unix:/run/tollgate/publish.sock".
        publish: Vec<Address> = "127.0.0.1:8080", list(Scalar::Allowed, address);

        /// Where Prometheus, the kubelet and a browser look. Read-only.
        telemetry: SocketAddr = "0.0.0.0:9464", value(socket_address);

        /// For `tollgate messages` on the same machine: a Unix socket that only this user may connect to,
        /// or "none". If tollgate cannot create it, it creates control.sock in spool.path.
        control: Option<PathBuf> = "unix:/run/tollgate/control.sock", value(control);

        /// Host names under which browsers and callers reach publish and telemetry through a loopback
        /// address. localhost and addresses always are. Another name there is answered 403, since a web
        /// page may have pointed it at this machine. "*" accepts every name.
        hosts: Vec<String> = [], list(Scalar::Allowed, host_name);
    }
    check addresses_differ(publish, telemetry, control);
}

section! {
    /// `[publish]`: the callers' server.
    #[derive(Debug, Clone)]
    pub struct Publish [publish] {
        /// How long a caller waits if its request has no Prefer: wait.
        wait: Duration = "5s", duration(SHORTEST..=Duration::from_mins(1)), Live;

        /// The largest body as it is posted. At most 48KiB with upstream.payload = "base64", which makes it
        /// a third longer, and 64KiB with "plain". Where upstream.payloads has rules, at most what its topic's
        /// encoding can carry.
        max_payload: usize = "48KiB", size(1..=64 * bytesize::KIB), LiveUnless("upstream.payload");

        /// Whether answers carry RateLimit and RateLimit-Policy.
        ratelimit_headers: bool = true, boolean();

        /// What becomes of a CloudEvent in binary mode (ce- headers), since MQTT messages have no headers: "refuse", 400;
        /// or "structured", the payload is the event in its JSON format. In structured mode an event is a body as any.
        cloud_events: CloudEvents = "refuse", choice(&CLOUD_EVENTS), Live;

        /// Whether source and id of such an event are its idempotency key, where there is no Idempotency-Key.
        cloud_event_keys: bool = false, boolean(), Live;

        /// The most messages that may wait for a permit at once; the next one is answered 503.
        max_waiting: usize = 4096, whole(1..=1_000_000);

        /// The most connections at once, over all addresses of listen.publish.
        max_connections: usize = 8192, whole(1..=MOST_CONNECTIONS);

        /// The largest request head.
        max_header: usize = "16KiB", size(SMALLEST_HEADER..=bytesize::MIB);

        /// Time limit for the whole request head.
        header_timeout: Duration = "5s", duration(SHORTEST..=HOUR);

        /// Time limit for the body, after the head.
        body_timeout: Duration = "10s", duration(SHORTEST..=HOUR), Live;

        /// How long a connection may stay without a request.
        idle_timeout: Duration = "75s", duration(SHORTEST..=HOUR);
    }
}

pub(super) fn address(raw: &Raw) -> Result<Address, ValueError> {
    let Some(path) = raw.text()?.strip_prefix("unix:") else {
        return socket_address(raw).map(Address::Tcp);
    };
    let is_path = path.starts_with('/') && !path.contains(char::is_control);
    if !is_path || path.len() > LONGEST_SOCKET_PATH {
        return Err(ValueError::new(
            "is not the path of a Unix socket",
            format!("write unix:/path, absolute and at most {LONGEST_SOCKET_PATH} bytes"),
        ));
    }
    Ok(Address::Unix(PathBuf::from(path)))
}

fn socket_address(raw: &Raw) -> Result<SocketAddr, ValueError> {
    raw.text()?.parse().map_err(|_| {
        ValueError::new(
            "is not an address with a port",
            "write an address, not a name, and a port: 127.0.0.1:8080 or [::1]:8080",
        )
    })
}

/// A host without its port, or `*`.
fn host_name(raw: &Raw) -> Result<String, ValueError> {
    let name = raw.text()?.trim_end_matches('.').to_ascii_lowercase();
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if name == "*" || !name.is_empty() && name.chars().all(allowed) {
        return Ok(name);
    }
    Err(ValueError::new("is not a host name", "write a name without a port: tollgate.test"))
}

/// A Unix socket, or `none`.
fn control(raw: &Raw) -> Result<Option<PathBuf>, ValueError> {
    if raw.text()? == "none" {
        return Ok(None);
    }
    match address(raw)? {
        Address::Unix(path) => Ok(Some(path)),
        Address::Tcp(_) => Err(ValueError::new(
            "is not a Unix socket",
            "write \"unix:/run/tollgate/control.sock\", or \"none\"",
        )),
    }
}

/// No two servers may want the same address.
fn addresses_differ(
    r: &mut Reader<'_>,
    publish: Option<&Vec<Address>>,
    telemetry: Option<&SocketAddr>,
    control: Option<&Option<PathBuf>>,
) {
    const KEY: &str = "listen.publish";
    let (Some(publish), Some(telemetry), Some(control)) = (publish, telemetry, control) else {
        return;
    };
    let remedy = "give each server an address of its own";
    let mut seen = HashSet::new();
    for address in publish {
        if let (Address::Unix(path), Some(control)) = (address, control)
            && path == control
        {
            r.conflict(KEY, "takes the socket of listen.control", remedy);
        }
        let is_free_port = matches!(address, Address::Tcp(tcp) if tcp.port() == 0);
        if !is_free_port && !seen.insert(address) {
            r.conflict(KEY, "names an address twice", remedy);
        }
        if let Address::Tcp(tcp) = address
            && overlap(*tcp, *telemetry)
        {
            let problem = format!("takes the port of listen.telemetry ({telemetry})");
            r.conflict(KEY, problem, remedy);
        }
    }
    if publish.is_empty() {
        r.conflict(KEY, "is empty, so no caller can publish", "name an address");
    }
}

fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (is_any || one.ip() == other.ip())
}
