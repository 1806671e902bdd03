//! `tollgate check --probe`: tries what a start needs on this machine. It makes no call to the
//! provider, and sends no message.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use tokio::net::{TcpSocket, lookup_host};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, KeySource};
use crate::keys::Keys;
use crate::spool::MacKeys;
use crate::upstream::HttpUpstream;

/// Time limit of each probe: a hung disk or a silent resolver is a result, too.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// Longer than any password or list of certificates.
const MOST_BYTES: u64 = 1 << 20;

/// What one probe found: in the words of the result, or of the error.
pub(super) struct Probe {
    /// Key and value, as in `spool.path /var/lib/tollgate/spool`.
    pub(super) what: String,
    pub(super) result: Result<String, String>,
}

/// Probes everything, in the order of the documentation.
pub(super) async fn all(config: &Config) -> Vec<Probe> {
    let mut probes = vec![upstream_name(config).await];
    for address in &config.upstream.egress_addresses {
        probes.push(Probe {
            what: format!("upstream.egress_addresses {address}"),
            result: egress(*address).map(|()| "is an address of this machine".to_owned()),
        });
    }
    probes.extend(keys_and_roots(config).await);
    if let Some(fleet) = &config.fleet {
        for (host, port) in &fleet.redis.nodes {
            probes.push(name("fleet.url", host, *port).await);
        }
        for (key, path) in
            [("fleet.password_file", &fleet.password_file), ("fleet.ca_file", &fleet.ca_file)]
        {
            if let Some(path) = path {
                probes.push(blocking(key, path, readable).await);
            }
        }
    }
    if let Some(spool) = &config.spool {
        let needed = spool.most_on_disk();
        let probe = blocking("spool.path", &spool.path, move |path| folder(path, needed));
        probes.push(probe.await);
        if let Some(mac) = &spool.mac {
            probes.push(blocking("spool.mac_file", &mac.path, mac_keys).await);
        }
    }
    if let Some(path) = config.listen.control.as_ref().and_then(|path| path.parent()) {
        probes.push(blocking("listen.control", path, |path| folder(path, 0)).await);
    }
    probes
}

async fn upstream_name(config: &Config) -> Probe {
    // It resolves the endpoint's name.
    if let Some(proxy) = &config.upstream.proxy {
        return name("upstream.proxy", &proxy.host, proxy.port).await;
    }
    let endpoint = &config.upstream.endpoint;
    name("upstream.endpoint", &endpoint.host, endpoint.port).await
}

async fn name(key: &str, host: &str, port: u16) -> Probe {
    let result = match timeout(TIME_LIMIT, lookup_host((host, port))).await {
        Err(_) => Err(format!("the resolver does not answer within {TIME_LIMIT:?}")),
        Ok(Err(error)) => Err(format!("does not resolve: {error}")),
        Ok(Ok(addresses)) => match addresses.count() {
            0 => Err("has no address".to_owned()),
            n => Ok(format!("resolves to {}", super::count(n as u64, "address"))),
        },
    };
    Probe { what: format!("{key} {host}:{port}"), result }
}

fn egress(address: IpAddr) -> Result<(), String> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let bound = socket.and_then(|socket| socket.bind(SocketAddr::new(address, 0)));
    bound.map_err(|error| format!("cannot be sent from: {error}"))
}

/// Fetches the key once, as a start does, and reads the certificate authorities.
async fn keys_and_roots(config: &Config) -> Vec<Probe> {
    let what = match &config.keys.source {
        KeySource::Env => "keys.source env".to_owned(),
        KeySource::File { path, .. } => format!("keys.path {}", path.display()),
        // A URI may hold a token.
        KeySource::Uri(_) => "keys.uri".to_owned(),
        KeySource::Oidc(role) => format!("keys.oidc_role_arn {}", role.session.role_arn),
        KeySource::Role(role) => format!("keys.role_arn {}", role.session.role_arn),
        KeySource::Ecs(metadata) => format!("keys.ecs_endpoint {}", metadata.endpoint.authority()),
        KeySource::Cli(_) => "keys.source cli".to_owned(),
        KeySource::Auto(_) => "keys.source auto".to_owned(),
    };
    let stop = CancellationToken::new();
    let _stops = stop.clone().drop_guard();
    let keys = match Keys::start(&config.keys, stop) {
        Ok(keys) => keys,
        Err(error) => return vec![Probe { what, result: Err(error.to_string()) }],
    };
    let result = match timeout(TIME_LIMIT, keys.first_look()).await {
        Err(_) => Err(format!("no answer within {TIME_LIMIT:?}")),
        Ok(()) => key(&keys),
    };
    let mut probes = vec![Probe { what, result }];
    let codes = config.retry.codes.clone();
    if let Err(error) = HttpUpstream::new(&config.upstream, codes, keys) {
        probes.push(Probe { what: "upstream.roots".to_owned(), result: Err(error.to_string()) });
    }
    probes
}

fn key(keys: &Keys) -> Result<String, String> {
    let status = keys.status();
    let source = status.source;
    match (keys.current(), status.last_error, status.expires_at) {
        (Err(error), None, _) => Err(error.to_string()),
        (_, Some(error), _) => Err(error),
        (Ok(_), None, Some(at)) => Ok(format!("has a key (of \"{source}\") that expires at {at}")),
        (Ok(_), None, None) => Ok(format!("has a key (of \"{source}\")")),
    }
}

/// Runs a probe of a path on a thread for blocking work.
async fn blocking(
    key: &str,
    path: &Path,
    probe: impl FnOnce(&Path) -> Result<String, String> + Send + 'static,
) -> Probe {
    let owned = PathBuf::from(path);
    let result = match timeout(TIME_LIMIT, spawn_blocking(move || probe(&owned))).await {
        Err(_) => Err(format!("the disk does not answer within {TIME_LIMIT:?}")),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(result)) => result,
    };
    Probe { what: format!("{key} {}", path.display()), result }
}

fn readable(path: &Path) -> Result<String, String> {
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
        io::Result::Ok(bytes.len())
    };
    match read() {
        Ok(0) => Err("is empty".to_owned()),
        Ok(_) => Ok("is readable".to_owned()),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

fn mac_keys(path: &Path) -> Result<String, String> {
    MacKeys::read(path).map(|_| "has keys".to_owned()).map_err(|error| error.to_string())
}

/// Writes a file into the folder, or into the nearest one above that exists, and deletes it.
fn folder(path: &Path, needed: u64) -> Result<String, String> {
    // One that cannot be looked at is there: that a folder above it can be written proves nothing.
    let existing = path.ancestors().find(|path| path.try_exists().unwrap_or(true));
    let Some(existing) = existing else { return Err("does not exist".to_owned()) };
    let file = existing.join(format!(".tollgate-check-{}", std::process::id()));
    let written = (|| {
        let mut opened = OpenOptions::new().write(true).create_new(true).open(&file)?;
        opened.write_all(b"x").and_then(|()| opened.sync_all())
    })();
    // It may not have been created.
    drop(std::fs::remove_file(&file));
    written.map_err(|error| format!("cannot be written: {error}"))?;
    let state = if existing == path { "is writable" } else { "can be created" };
    let Ok(disk) = rustix::fs::statvfs(existing) else { return Ok(state.to_owned()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let shown = ByteSize(free);
    if free < needed {
        let needed = ByteSize(needed);
        return Err(format!("has {shown} free, and may need {needed} (spool.max_bytes)"));
    }
    Ok(format!("{state}, {shown} free"))
}
