//! `[listen]` and `[publish]`: where tollgate listens, and what its callers may do.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::checks::{HOUR, MOST_CONNECTIONS, SHORTEST, optional_path};
use super::error::ValueError;
use super::parse::{self, Raw, Scalar};
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

        /// Who may connect to the Unix sockets of listen.publish and sdk.listen: the mode of their files (octal,
        /// "0600" to "0777"; connecting takes the right to write), and the number of their group. Empty: the group
        /// that the system gives them. tollgate must be in that group. The folder's permissions hold as well.
        socket_mode: u32 = "0666", value(socket_mode);
        socket_group: Option<u32> = "", value(socket_group);
    }
    check addresses_differ(publish, telemetry, control);
}

section! {
    pub(super) struct TlsRows [listen.tls] {
        /// Files of a certificate and its private key (PEM): with them, the TCP addresses of listen.publish and
        /// sdk.listen speak TLS 1.2 and 1.3, and no plain HTTP. Unix sockets do not, nor does telemetry. The files
        /// of this section are read again when they change. Empty: no TLS.
        certificate: Option<PathBuf> = "", value(optional_path);
        key: Option<PathBuf> = "", value(optional_path);

        /// A file with the authorities of callers' certificates (PEM). With it a caller may show a certificate:
        /// one that they did not sign ends the connection, and its names prove a caller ([[callers]], certificate).
        /// Callers with a token need none.
        client_ca: Option<PathBuf> = "", value(optional_path);
    }
}

/// Files that a listener speaks TLS with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Its certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// The certificate's private key.
    pub key: PathBuf,
    /// Authorities of the clients' certificates; `None`: clients show none.
    pub client_ca: Option<PathBuf>,
}

/// `[listen.tls]`; `None` without a certificate: there is no TLS then.
#[expect(clippy::option_option, reason = "a value that is wrong, and one that is not there")]
pub(super) fn tls(r: &mut Reader<'_>) -> Option<Option<TlsFiles>> {
    let TlsRows { certificate, key, client_ca } = TlsRows::read(r)?;
    let remedy = "set listen.tls.certificate and listen.tls.key, or neither";
    match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Some(TlsFiles { certificate, key, client_ca })),
        (None, None) if client_ca.is_none() => Some(None),
        (certificate, key) => {
            let alone = match (certificate, key) {
                (Some(_), _) => "listen.tls.certificate",
                (None, Some(_)) => "listen.tls.key",
                (None, None) => "listen.tls.client_ca",
            };
            let missing = if alone == "listen.tls.certificate" { "key" } else { "certificate" };
            r.conflict(alone, format!("is set, and listen.tls.{missing} is not"), remedy);
            None
        }
    }
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
    check event_keys_fit(cloud_events, cloud_event_keys);
}

/// Events that are refused have no keys.
fn event_keys_fit(r: &mut Reader<'_>, events: Option<&CloudEvents>, keys: Option<&bool>) {
    if (events, keys) == (Some(&CloudEvents::Refuse), Some(&true)) {
        let problem = "is true, and events in binary mode are refused";
        let remedy = "set publish.cloud_events = \"structured\", or leave it out";
        r.conflict("publish.cloud_event_keys", problem, remedy);
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

/// The mode of a file that its owner may use.
fn socket_mode(raw: &Raw) -> Result<u32, ValueError> {
    const OWNERS: u32 = 0o600;
    let remedy = "write three or four octal digits in quotes, from \"0600\" to \"0777\": \"0660\"";
    let text = raw.text().map_err(|error| ValueError::new(error.problem, remedy))?;
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|c| matches!(c, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
    let mode = mode.ok_or_else(|| ValueError::new("is not a mode", remedy))?;
    if mode & OWNERS == OWNERS {
        return Ok(mode);
    }
    Err(ValueError::new("does not let the socket's own user read and write", remedy))
}

/// A number: names of groups are the image's, and it has none.
fn socket_group(raw: &Raw) -> Result<Option<u32>, ValueError> {
    if raw.text().is_ok_and(str::is_empty) {
        return Ok(None);
    }
    // The last one stands for "unchanged" in the system's call.
    parse::whole(raw, &(0..=u32::MAX - 1)).map(Some).map_err(|ValueError { problem, remedy }| {
        ValueError::new(problem, format!("{remedy}: `getent group NAME` shows it"))
    })
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
