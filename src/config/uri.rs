//! Addresses with a host: the upstream's endpoint and the URI that answers with a key.

use std::fmt;
use std::net::Ipv4Addr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Uri;
use http::uri::Authority;
use percent_encoding::percent_decode_str;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};

use super::error::ValueError;

const ENDPOINT_REMEDY: &str =
    "write https://host, https://host:port, http://host:port, or a bare host for https";

/// Where the upstream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Endpoint {
    /// The `Host` header: with the port only where it is not the scheme's own, since the header
    /// is signed and a server sees it that way.
    pub fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// Host and port, always both, as CONNECT wants them.
    pub fn host_and_port(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The provider's region in a host such as `onsmqtt.cn-hangzhou.aliyuncs.com`,
    /// `onsmqtt-vpc.cn-hangzhou.aliyuncs.com`, or one of `PrivateLink`. `None`: there is none.
    pub fn region(&self) -> Option<String> {
        let host = self.host.trim_end_matches('.').to_ascii_lowercase();
        let host = host.strip_suffix(".aliyuncs.com")?;
        let host = host.strip_suffix(".privatelink").unwrap_or(host);
        let (_, region) = host.rsplit_once('.')?;
        let (continent, place) = region.split_once('-')?;
        let is_region = continent.len() == 2 && !place.is_empty();
        is_region.then(|| region.to_owned())
    }

    /// Whether this is the provider itself, whose published ceilings then hold.
    pub fn is_provider(&self) -> bool {
        let host = self.host.trim_end_matches('.').to_ascii_lowercase();
        host == "aliyuncs.com" || host.ends_with(".aliyuncs.com")
    }
}

/// An HTTP proxy between us and the upstream.
#[derive(Clone)]
pub struct Proxy {
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    authorization: Option<SecretString>,
}

impl Proxy {
    /// The value of `Proxy-Authorization`.
    pub fn authorization(&self) -> Option<&str> {
        self.authorization.as_ref().map(ExposeSecret::expose_secret)
    }
}

impl fmt::Debug for Proxy {
    /// It may have a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({}:{})", self.host, self.port)
    }
}

/// Reads `http://[user:password@]host[:port]`.
pub(super) fn proxy(text: &str) -> Result<Proxy, ValueError> {
    let wrong = |problem: &str| ValueError::new(problem, "write http://[user:password@]host:port");
    let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
    if !scheme.eq_ignore_ascii_case("http") {
        return Err(wrong("has a scheme other than http, which is how tollgate speaks to a proxy"));
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (user, place) = match rest.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, rest),
    };
    if place.contains(['/', '?', '#']) {
        return Err(wrong("has a path or query; only user, host and port belong here"));
    }
    let (host, port) = host_and_port(place).map_err(wrong)?;
    let authorization = user.map(|user| {
        let user = Zeroizing::new(percent_decode_str(user).collect::<Vec<u8>>());
        // Without a password, the colon is still there.
        let end: &[u8] = if user.contains(&b':') { b"" } else { b":" };
        let user = Zeroizing::new([&user, end].concat());
        SecretString::from(format!("Basic {}", STANDARD.encode(&*user)))
    });
    Ok(Proxy { host, port: port.unwrap_or(80), authorization })
}

/// Reads `https://host[:port]`, `http://host[:port]` or a bare host, which means https.
pub(super) fn endpoint(text: &str) -> Result<Endpoint, ValueError> {
    let wrong = |problem: &str| ValueError::new(problem, ENDPOINT_REMEDY);
    let whole = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let (scheme, rest) = whole.split_once("://").unwrap_or_default();
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "https" => true,
        "http" => false,
        _ => return Err(wrong("has a scheme other than https and http")),
    };
    if rest.contains('@') {
        return Err(wrong("has a user or password; keys belong under [keys]"));
    }
    if rest.contains(['/', '?', '#']) {
        return Err(wrong("has a path or query; only scheme, host and port belong here"));
    }
    let (host, port) = host_and_port(rest).map_err(wrong)?;
    Ok(Endpoint { tls, host, port: port.unwrap_or(if tls { 443 } else { 80 }) })
}

/// Reads an absolute http or https URI; it may carry a user, a password and a query.
pub(super) fn credentials(text: &str) -> Result<String, ValueError> {
    let wrong = |problem: &str| {
        ValueError::new(problem, "write a whole URI, such as http://127.0.0.1:8900/credentials")
    };
    let uri: Uri = text.parse().map_err(|_| wrong("is not a URI"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(wrong("has no scheme, or one other than http and https"));
    }
    if text.contains('#') {
        return Err(wrong("has a fragment, which is never sent"));
    }
    let authority = uri.authority().map_or("", Authority::as_str);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host_and_port(host).map_err(wrong)?;
    Ok(text.to_owned())
}

/// Splits and checks `host`, `host:port` or `[v6]:port`.
pub(super) fn host_and_port(text: &str) -> Result<(String, Option<u16>), &'static str> {
    let authority: Authority = text.parse().map_err(|_| "has no valid host")?;
    let host = authority.host();
    let port = match text.get(host.len()..) {
        None | Some("") => None,
        Some(rest) => match rest.strip_prefix(':').and_then(|port| port.parse().ok()) {
            None | Some(0) => return Err("has a port that is not a number from 1 to 65535"),
            port => port,
        },
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bare {
        Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_ok() => Ok((v6.to_owned(), port)),
        None if is_host_name(host) => Ok((host.to_owned(), port)),
        _ => Err("has no valid host"),
    }
}

fn is_host_name(host: &str) -> bool {
    let labels = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    // Resolvers take a name that ends in a number for an IPv4 address.
    let ends_in_number =
        labels.rsplit('.').next().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit()));
    labels.len() <= 253
        && labels.split('.').all(is_label)
        && (!ends_in_number || host.parse::<Ipv4Addr>().is_ok())
}

/// Hides what may be secret in a URI: user, password, query and fragment. It also takes what is
/// not quite a URI, and would rather hide too much.
pub(super) fn mask(text: &str) -> String {
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), text),
    };
    let end_of_host = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (user, rest) = match rest.rfind('@') {
        None => ("", rest),
        Some(at) if at < end_of_host => ("***@", &rest[at + 1..]),
        // A password with a slash, or a path with an @: they look alike.
        Some(_) => return format!("{scheme}***"),
    };
    match rest.find(['?', '#']) {
        Some(at) => format!("{scheme}{user}{}***", &rest[..=at]),
        None => format!("{scheme}{user}{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions() {
        for (host, region) in [
            ("onsmqtt.cn-hangzhou.aliyuncs.com", Some("cn-hangzhou")),
            ("onsmqtt-vpc.cn-hangzhou.aliyuncs.com", Some("cn-hangzhou")),
            ("OnsMqtt.CN-Hangzhou.aliyuncs.com.", Some("cn-hangzhou")),
            ("onsmqtt.cn-shanghai-finance-1.aliyuncs.com", Some("cn-shanghai-finance-1")),
            ("onsmqtt-vpc.ap-southeast-1.aliyuncs.com", Some("ap-southeast-1")),
            ("onsmqtt.mq-internet-access.aliyuncs.com", Some("mq-internet-access")),
            (
                "ep-1-cn-hangzhou-h.epsrv-1.cn-hangzhou.privatelink.aliyuncs.com",
                Some("cn-hangzhou"),
            ),
            ("onsmqtt.aliyuncs.com", None),
            ("onsmqtt.internal.aliyuncs.com", None),
            ("aliyuncs.com", None),
            (".aliyuncs.com", None),
            ("cn-hangzhou.aliyuncs.com", None),
            ("onsmqtt.cn-.aliyuncs.com", None),
            ("onsmqtt.cn-hangzhou.aliyuncs.com.example.com", None),
            ("127.0.0.1", None),
            ("mqtt.example.com", None),
        ] {
            let endpoint = Endpoint { tls: true, host: host.to_owned(), port: 443 };
            assert_eq!(endpoint.region().as_deref(), region, "{host}");
        }
    }

    #[test]
    fn endpoints() {
        for (text, tls, host, port) in [
            ("onsmqtt.cn-hangzhou.aliyuncs.com", true, "onsmqtt.cn-hangzhou.aliyuncs.com", 443),
            ("https://host:8443", true, "host", 8443),
            ("http://127.0.0.1:9460", false, "127.0.0.1", 9460),
            ("http://[::1]:9460", false, "::1", 9460),
            ("host:80", true, "host", 80),
            ("http://tollgate_emulator", false, "tollgate_emulator", 80),
        ] {
            let expected = Endpoint { tls, host: host.to_owned(), port };
            assert_eq!(endpoint(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn not_endpoints() {
        for text in [
            "",
            "https://",
            "ftp://host",
            "HTTPS//host",
            "https://host/",
            "https://host?x",
            "https://host#x",
            "https://u:p@host",
            "https://host:",
            "https://host:0",
            "https://host:99999",
            "https://ho st",
            "https://h..x",
            "https://1.2.3",
            "https://[::1",
            "https://[zz]",
            "::1",
        ] {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn proxies() {
        for (text, host, port, authorization) in [
            ("http://proxy:3128", "proxy", 3128, None),
            ("HTTP://proxy/", "proxy", 80, None),
            ("http://[::1]:3128", "::1", 3128, None),
            ("http://u:p%40ss@proxy:3128", "proxy", 3128, Some("Basic dTpwQHNz")),
            ("http://u@proxy:3128", "proxy", 3128, Some("Basic dTo=")),
        ] {
            let proxy = proxy(text).unwrap();
            assert_eq!((&*proxy.host, proxy.port), (host, port), "{text}");
            assert_eq!(proxy.authorization(), authorization, "{text}");
            assert!(!format!("{proxy:?}").contains("Basic"));
        }
        for text in [
            "",
            "proxy:3128",
            "https://proxy",
            "socks5://proxy",
            "http://",
            "http://p/x",
            "http://p:0",
        ] {
            assert!(proxy(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_secret_is_left() {
        for (text, masked) in [
            ("http://h/p", "http://h/p"),
            ("http://u:SECRET@h/p?token=SECRET#SECRET", "http://***@h/p?***"),
            ("http://u:SEC/R?E#T@h/p", "http://***"),
            ("u:SECRET@h", "***@h"),
            ("http://h/p?mail=a@SECRET", "http://***"),
        ] {
            assert_eq!(mask(text), masked);
        }
    }
}
