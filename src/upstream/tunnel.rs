//! A connection to the provider through an HTTP proxy (`upstream.proxy`): CONNECT, and nothing of a call
//! before the proxy has opened it.

use std::ffi::OsString;

use secrecy::zeroize::Zeroizing;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::answer::TransportError;
use crate::config::{self, Endpoint, Proxy};

/// No proxy's answer to CONNECT comes near it.
const MAX_HEAD: usize = 8 * 1024;

/// Asks the proxy for a connection to the provider.
pub(super) struct Tunnel {
    /// Holds the proxy's password.
    request: Zeroizing<Vec<u8>>,
}

impl Tunnel {
    pub(super) fn new(proxy: &Proxy, endpoint: &Endpoint) -> Self {
        let authority = endpoint.host_and_port();
        let mut request = Zeroizing::new(Vec::with_capacity(1_024));
        for line in ["CONNECT ", &authority, " HTTP/1.1\r\nHost: ", &authority, "\r\n"] {
            request.extend_from_slice(line.as_bytes());
        }
        if let Some(authorization) = proxy.authorization() {
            for part in ["Proxy-Authorization: ", authorization, "\r\n"] {
                request.extend_from_slice(part.as_bytes());
            }
        }
        request.extend_from_slice(b"\r\n");
        Self { request }
    }

    /// Opens the way through the proxy. The caller bounds how long that may take.
    pub(super) async fn open(&self, stream: &mut TcpStream) -> Result<(), TransportError> {
        let lost = |_| TransportError::ProxyRefused;
        stream.write_all(&self.request).await.map_err(lost)?;
        let mut head = Vec::with_capacity(1_024);
        while !head.ends_with(b"\r\n\r\n") {
            // Byte by byte, so that nothing behind the head is taken: it is short, and read once for
            // each connection.
            let byte = stream.read_u8().await.map_err(lost)?;
            head.push(byte);
            if head.len() > MAX_HEAD {
                return Err(TransportError::ProxyRefused);
            }
        }
        match status(&head) {
            Some(200..300) => Ok(()),
            status => {
                tracing::debug!(status, "the proxy opens no connection");
                Err(match status {
                    Some(407) => TransportError::ProxyPassword,
                    _ => TransportError::ProxyRefused,
                })
            }
        }
    }
}

/// The status of an answer that is HTTP.
fn status(head: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(head).ok()?.lines().next()?;
    let (version, rest) = line.split_once(' ')?;
    version.starts_with("HTTP/1.").then(|| rest.split(' ').next()?.parse().ok()).flatten()
}

/// The variable that names a proxy which calls to the provider do not use.
pub(super) fn unused_variable(
    config: &config::Upstream,
    lookup: impl Fn(&str) -> Option<OsString>,
) -> Option<&'static str> {
    const TLS: &[&str] = &["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    const PLAIN: &[&str] = &["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
    if config.proxy.is_some() {
        return None;
    }
    let names = if config.endpoint.tls { TLS } else { PLAIN };
    names.iter().copied().find(|name| lookup(name).is_some_and(|value| !value.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_proxys_answer() {
        for (head, of) in [
            ("HTTP/1.1 200 Connection established\r\n\r\n", Some(200)),
            ("HTTP/1.0 200\r\n\r\n", Some(200)),
            ("HTTP/1.1 407 Proxy Authentication Required\r\nx: y\r\n\r\n", Some(407)),
            ("SSH-2.0-x\r\n\r\n", None),
            ("HTTP/2 200\r\n\r\n", None),
            ("\r\n\r\n", None),
        ] {
            assert_eq!(status(head.as_bytes()), of, "{head:?}");
        }
    }

    #[test]
    fn a_variable_that_is_set_and_not_used_is_named() {
        let load = |endpoint: &str, proxy: Option<&str>| {
            let mut flags = vec![("upstream.endpoint", endpoint), ("upstream.instance_id", "x")];
            flags.extend(proxy.map(|proxy| ("upstream.proxy", proxy)));
            let flags: Vec<_> = flags.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
            config::load(None, [], &flags).unwrap().config.upstream
        };
        for (endpoint, proxy, set, named) in [
            ("https://h", None, "HTTPS_PROXY", Some("HTTPS_PROXY")),
            ("https://h", None, "all_proxy", Some("all_proxy")),
            ("https://h", None, "HTTP_PROXY", None),
            ("http://h", None, "http_proxy", Some("http_proxy")),
            ("http://h", None, "HTTPS_PROXY", None),
            ("https://h", Some("http://p:1"), "HTTPS_PROXY", None),
        ] {
            let lookup = |name: &str| (name == set).then(|| OsString::from("http://p:1"));
            assert_eq!(unused_variable(&load(endpoint, proxy), lookup), named, "{endpoint} {set}");
            assert_eq!(unused_variable(&load(endpoint, proxy), |_| Some("".into())), None);
        }
    }
}
