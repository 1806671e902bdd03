//! What every server refuses before its service sees a request: framings and hosts that HTTP forbids,
//! encoded bodies, and requests that another site's page makes a browser send.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN,
};
use http::{Request, StatusCode, Version};

use super::automatic::unknown_coding;
use super::heads::Framing;
use super::peer::{ClientAddress, PeerProcess};
use super::problem::Problem;
use super::slug::Slug;

/// From where a connection can come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// This machine or pod only, and its browsers.
    Loopback,
    /// A network.
    Network,
    /// A Unix socket, which no browser opens, from this process if the system knows it.
    Socket(Option<PeerProcess>),
}

/// What is checked of requests on a connection.
#[derive(Debug, Clone)]
pub(super) struct Door {
    pub(super) reach: Reach,
    pub(super) from: Option<ClientAddress>,
    /// Names, besides localhost and addresses, under which a loopback address is reached; `*` is any.
    pub(super) hosts: Arc<[String]>,
}

impl Door {
    /// Why a request is refused, if it is.
    pub(super) fn refusal<B>(&self, request: &Request<B>, framing: Framing) -> Option<Problem> {
        match framing {
            Framing::Clear => {}
            Framing::Both => return Some(both_framings()),
            Framing::UnknownCoding => return Some(unknown_coding()),
        }
        let host = match host(request) {
            Ok(host) => host,
            Err(problem) => return Some(problem),
        };
        let headers = request.headers();
        if is_foreign(headers, host) {
            return Some(foreign_site());
        }
        if self.reach == Reach::Loopback && !self.answers_to(host) {
            return Some(foreign_host(host));
        }
        is_encoded(headers).then(encoded)
    }

    /// Whether this is a name of ours. A page whose name an attacker has pointed at a loopback address
    /// is of the same origin as our answers, so only its name gives it away. No name is an address.
    fn answers_to(&self, host: &str) -> bool {
        let name = name(host).trim_end_matches('.').to_ascii_lowercase();
        name.is_empty()
            || is_address(&name)
            || name == "localhost"
            || name.ends_with(".localhost")
            || self.hosts.iter().any(|ours| ours == "*" || *ours == name)
    }
}

/// The host that a request names, with its port. HTTP/1.0 needs none.
fn host<B>(request: &Request<B>) -> Result<&str, Problem> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let named = match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return Err(bad_host("has several Host headers")),
        (Some(host), None) => host.to_str().ok().filter(|host| is_host(host)),
        (None, _) if request.version() < Version::HTTP_11 => Some(""),
        (None, _) => return Err(bad_host("has no Host header")),
    };
    let named = named.ok_or_else(|| bad_host("has a malformed Host header"))?;
    // In the absolute form, the path's own host is the one that counts (RFC 9112, 3.2.2).
    Ok(request.uri().authority().map_or(named, http::uri::Authority::as_str))
}

/// Whether this is a host and maybe a port (RFC 9110, 7.2).
fn is_host(host: &str) -> bool {
    let name = name(host);
    let port = host.get(name.len()..).unwrap_or_default();
    let port_is_valid = port.strip_prefix(':').map_or(port.is_empty(), |port| {
        port.is_empty() || port.parse::<u16>().is_ok() && !port.starts_with('+')
    });
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(&b);
    port_is_valid && (is_ipv6(name) || name.bytes().all(allowed))
}

/// A host without its port.
fn name(host: &str) -> &str {
    if host.starts_with('[') {
        return host.find(']').and_then(|end| host.get(..=end)).unwrap_or(host);
    }
    host.split(':').next().unwrap_or_default()
}

fn is_ipv6(name: &str) -> bool {
    let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok())
}

fn is_address(name: &str) -> bool {
    is_ipv6(name) || name.parse::<IpAddr>().is_ok()
}

/// Whether a page of another origin has made a browser send this.
fn is_foreign(headers: &HeaderMap, host: &str) -> bool {
    const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    let cross = |site: &HeaderValue| site.as_bytes().eq_ignore_ascii_case(b"cross-site");
    let foreign = |origin: &HeaderValue| !origin.to_str().is_ok_and(|o| is_own(o, host));
    headers.get_all(SITE).iter().any(cross) || headers.get_all(ORIGIN).iter().any(foreign)
}

/// Whether an origin is the one of this host. What stands before us may have ended TLS.
fn is_own(origin: &str, host: &str) -> bool {
    let of = |scheme: &str, port: &str| {
        let origin = origin.strip_prefix(scheme)?;
        let bare = |host: &str| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
        Some(!host.is_empty() && bare(origin) == bare(host))
    };
    of("http://", ":80").or_else(|| of("https://", ":443")).unwrap_or(false)
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let encoded = |value: &HeaderValue| {
        let Ok(codings) = value.to_str() else { return true };
        let mut codings = codings.split(',').map(str::trim).filter(|coding| !coding.is_empty());
        codings.any(|coding| !coding.eq_ignore_ascii_case("identity"))
    };
    headers.get_all(CONTENT_ENCODING).iter().any(encoded)
}

fn refused(status: StatusCode, slug: Slug, title: &'static str, detail: String) -> Problem {
    Problem::new(status, slug, title, detail).outcome("not-sent")
}

fn both_framings() -> Problem {
    let detail = "The request has a Content-Length and a Transfer-Encoding, so where its body ends is \
                  ambiguous. Nothing was sent. Send one of them.";
    refused(StatusCode::BAD_REQUEST, Slug::AmbiguousLength, "Ambiguous length", detail.to_owned())
        .close()
}

fn bad_host(what: &str) -> Problem {
    let detail = format!(
        "The request {what}. Nothing was sent. HTTP/1.1 needs exactly one, such as localhost:8080."
    );
    refused(StatusCode::BAD_REQUEST, Slug::MalformedHost, "Malformed Host", detail)
}

fn foreign_host(host: &str) -> Problem {
    let detail = format!(
        "The Host {host:?} is not a name of this listener, so a browser may have been led here. \
         Nothing was sent. Use localhost or an address, or add the name to listen.hosts."
    );
    refused(StatusCode::FORBIDDEN, Slug::ForeignHost, "Foreign host", detail)
}

fn foreign_site() -> Problem {
    let detail = "A page of another site had a browser send this request (Origin, Sec-Fetch-Site). \
                  Nothing was sent. Open this address directly, or send the request from a program.";
    refused(StatusCode::FORBIDDEN, Slug::ForeignOrigin, "Foreign origin", detail.to_owned())
}

fn encoded() -> Problem {
    let detail = "The body has a Content-Encoding, which is not undone here. Nothing was sent. Send \
                  the message as it is, without Content-Encoding.";
    let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    refused(status, Slug::EncodedBody, "Body is encoded", detail.to_owned())
        .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_as_http_has_them() {
        for host in [
            "",
            "x",
            "x:",
            "localhost:8080",
            "127.0.0.1",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:9464",
            "a-b.c_d",
            "tollgate.svc.cluster.local.:80",
            "%41",
        ] {
            assert!(is_host(host), "{host}");
        }
        for host in [
            "a b", "a/b", "a@b", "[::1", "[::1]x", "[x]", "::1", "x:y", "x:-1", "x:70000", "x:+1",
            "a:b:1", "http://x", "x?y", "é", "a,\u{7f}",
        ] {
            assert!(!is_host(host), "{host}");
        }
    }

    #[test]
    fn names_of_a_loopback_address() {
        let hosts = ["tollgate.test".to_owned()].into();
        let door = Door { reach: Reach::Loopback, from: None, hosts };
        for host in [
            "localhost:8080",
            "LOCALHOST",
            "localhost.",
            "a.localhost:1",
            "127.0.0.1:8080",
            "10.1.2.3:9464",
            "[::1]:9464",
            "[fd00::1]",
            "tollgate.test:1",
            "Tollgate.Test.",
            "",
        ] {
            assert!(door.answers_to(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "notlocalhost",
            "127.0.0.1.evil.example",
            "x.tollgate.test",
            "1",
        ] {
            assert!(!door.answers_to(host), "{host}");
        }
        assert!(Door { hosts: ["*".to_owned()].into(), ..door }.answers_to("evil.example"));
    }

    #[test]
    fn origins_of_a_host() {
        for (origin, host, own) in [
            ("http://localhost:9464", "localhost:9464", true),
            ("http://LocalHost:9464", "localhost:9464", true),
            ("https://page.example", "page.example", true),
            ("https://page.example", "page.example:443", true),
            ("http://page.example", "page.example:80", true),
            ("http://localhost:3000", "localhost:9464", false),
            ("http://localhost", "localhost:9464", false),
            ("https://evil.example", "localhost:9464", false),
            ("null", "localhost:9464", false),
            ("file://", "localhost:9464", false),
            ("", "localhost:9464", false),
            ("http://", "", false),
            ("http://localhost:9464.evil.example", "localhost:9464", false),
        ] {
            assert_eq!(is_own(origin, host), own, "{origin} {host}");
        }
    }

    #[test]
    fn encodings() {
        for (value, encoded) in [
            ("identity", false),
            ("Identity, identity", false),
            ("", false),
            ("gzip", true),
            ("identity, br", true),
            ("zstd", true),
            ("identityx", true),
        ] {
            let headers =
                HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(value))]);
            assert_eq!(is_encoded(&headers), encoded, "{value}");
        }
    }
}
