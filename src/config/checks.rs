//! Checks of single values that need more than a range, and of values beside each other.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use bytesize::ByteSize;
use tracing_subscriber::EnvFilter;

use super::error::ValueError;
use super::parse::Raw;
use super::read::Reader;
use super::upstream::encoding_word;
use super::{Address, Listen, Publish, Upstream};
use crate::message::TopicPattern;

/// What fits into the kernel's address of a Unix socket, less the closing zero.
const LONGEST_SOCKET_PATH: usize = 107;
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

// === One value ===

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

pub(super) fn socket_address(raw: &Raw) -> Result<SocketAddr, ValueError> {
    raw.text()?.parse().map_err(|_| {
        ValueError::new(
            "is not an address with a port",
            "write an address, not a name, and a port: 127.0.0.1:8080 or [::1]:8080",
        )
    })
}

pub(super) fn egress(raw: &Raw) -> Result<IpAddr, ValueError> {
    let address: IpAddr = raw.text()?.parse().map_err(|_| {
        ValueError::new("is not an IP address", "write one of this pod's own, such as 10.0.0.7")
    })?;
    let is_broadcast = address == IpAddr::from([255, 255, 255, 255]);
    if address.is_unspecified() || address.is_multicast() || is_broadcast {
        let remedy = "write one of this pod's own addresses, such as 10.0.0.7";
        return Err(ValueError::new("is an address that nothing can be sent from", remedy));
    }
    Ok(address)
}

/// A pattern that at least one topic could match.
pub(super) fn pattern(raw: &Raw) -> Result<TopicPattern, ValueError> {
    let text = raw.text()?;
    let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '*' | '@');
    let remedy = "use letters, digits, - _ / and *, which stands for anything: \"Alarm/*\"";
    match text.chars().find(|c| !is_fit(*c)) {
        _ if text.is_empty() => Err(ValueError::new("is empty and matches no topic", remedy)),
        Some('+' | '#') => {
            Err(ValueError::new("is an MQTT filter; patterns here have neither + nor #", remedy))
        }
        Some(c) => Err(ValueError::new(format!("has {c:?}, which no topic has"), remedy)),
        None => Ok(TopicPattern::new(text)),
    }
}

/// A level or tracing's directives. A bare word that is no level would be taken for a module's
/// name, so that `inof` would silence everything.
pub(super) fn level(raw: &Raw) -> Result<String, ValueError> {
    let text = raw.text()?;
    let remedy =
        || format!("write one of {}, or directives such as \"info,hyper=warn\"", LEVELS.join(", "));
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let stray = text
        .split(',')
        .map(str::trim)
        .find(|part| !part.contains(['=', '[', ']', '{', '}']) && !is_level(part));
    if let Some(stray) = stray {
        return Err(ValueError::new(format!("has {stray:?}, which is not a level"), remedy()));
    }
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(ValueError::new("is neither a level nor directives", remedy())),
    }
}

// === Values beside each other ===

/// No two doors may want the same address.
pub(super) fn doors_differ(r: &mut Reader<'_>, listen: &Listen) {
    let remedy = "give each door an address of its own";
    let mut seen = HashSet::new();
    for address in &listen.publish {
        if let (Address::Unix(path), Some(control)) = (address, &listen.control)
            && path == control
        {
            r.clash("listen.publish", "takes the socket of listen.control", remedy);
        }
        let is_free_port = matches!(address, Address::Tcp(tcp) if tcp.port() == 0);
        if !is_free_port && !seen.insert(address) {
            r.clash("listen.publish", "names an address twice", remedy);
        }
        if let Address::Tcp(tcp) = address
            && overlap(*tcp, listen.telemetry)
        {
            let problem = format!("takes the port of listen.telemetry ({})", listen.telemetry);
            r.clash("listen.publish", problem, remedy);
        }
    }
    if listen.publish.is_empty() {
        r.clash("listen.publish", "is empty, so nobody can publish", "name an address");
    }
}

fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (is_any || one.ip() == other.ip())
}

/// A body may not be longer than what the provider takes, as it is sent.
pub(super) fn payload_fits(r: &mut Reader<'_>, publish: &Publish, upstream: &Upstream) {
    let most = upstream.payload.max_payload();
    if publish.max_payload > most {
        let word = encoding_word(upstream.payload);
        let shown = ByteSize(most as u64);
        r.clash(
            "publish.max_payload",
            format!("is more than upstream.payload = {word:?} can carry"),
            format!("write at most \"{shown}\" ({most} bytes)"),
        );
    }
}

/// A ceiling above the provider's published one was not asked for by name.
pub(super) fn above_published(r: &mut Reader<'_>, key: &str, published: u32) {
    r.clash(
        key,
        format!("is above what the provider publishes, {published} calls per second"),
        format!(
            "write at most {published}, or set ceilings.allow_above_published = true if the \
             provider has raised it for you"
        ),
    );
}
