//! One exchange with a server that gives out keys: bounded in time and size, and never more than one
//! request.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use reqwest::redirect::Policy;
use reqwest::{Client, NoProxy, Proxy, RequestBuilder, Response, StatusCode, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use secrecy::zeroize::Zeroizing;

use super::error::KeyError;

/// As in the provider's SDKs.
const CONNECT: Duration = Duration::from_secs(5);
const READ: Duration = Duration::from_secs(10);
/// One exchange in all: a server that sends a byte now and then never meets the read timeout.
const WHOLE: Duration = Duration::from_secs(20);
/// A machine's own metadata service answers at once. Elsewhere nothing is at its address, and the provider's SDKs
/// give up after a second to connect, and one for the answer, too.
const METADATA: Duration = Duration::from_secs(1);
/// The largest answer that is read.
const MAX_BODY: usize = 64 * 1024;
/// A `Date` is cut to a second, and an answer is on its way for some time. Less than this is no skew.
const COARSE: SignedDuration = SignedDuration::from_secs(2);

/// How long a server may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// As long as the provider's SDKs wait.
    Network,
    /// For a server on this machine.
    Machine,
}

/// A server that gives out keys.
pub(crate) struct KeyServer {
    client: Client,
    /// Scheme, host and port: what may be shown of its address.
    origin: String,
}

/// An answer.
pub(crate) struct FetchedAnswer {
    pub(crate) status: StatusCode,
    /// In one buffer that is wiped. The pieces that the HTTP library read are its own, and not.
    pub(crate) body: Zeroizing<Vec<u8>>,
    /// The server's clock minus ours, if it says what time it is.
    pub(crate) skew: SignedDuration,
}

impl FetchedAnswer {
    /// The body as text, without blanks around it.
    pub(crate) fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.body).ok().map(str::trim)
    }
}

impl KeyServer {
    /// Makes a client; nothing is fetched yet. An https server is reached through the proxy that `lookup`
    /// finds in the environment. `ca_file`: authorities besides the bundled ones and the system's.
    pub(crate) fn new(
        uri: &Url,
        patience: Patience,
        ca_file: Option<&Path>,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, KeyError> {
        // A key does not pass through a proxy in clear text.
        let proxy = if uri.scheme() == "https" { proxy(lookup)? } else { None };
        let (connect, read, whole) = match patience {
            Patience::Network => (CONNECT, READ, WHOLE),
            // The time to read runs from the start, too: otherwise it could end before the time to connect does.
            Patience::Machine => (METADATA, 2 * METADATA, 2 * METADATA),
        };
        // Nothing is read from the environment but what `proxy` has read.
        let client = Client::builder().no_proxy();
        let client = if let Some(proxy) = proxy { client.proxy(proxy) } else { client };
        let client = client
            .tls_backend_preconfigured(client_tls(uri.scheme() == "https", ca_file)?)
            // A redirect would carry the key's address, and its password, elsewhere.
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .http1_only()
            // Minutes pass between two fetches: no connection is worth keeping.
            .pool_max_idle_per_host(0)
            .connect_timeout(connect)
            .read_timeout(read)
            .timeout(whole)
            .build()
            .map_err(|error| KeyError::Client(innermost(&error)))?;
        Ok(Self { client, origin: uri.origin().ascii_serialization() })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// The server refused the key that asked it.
    pub(crate) fn refusal(&self, why: impl Into<String>) -> KeyError {
        KeyError::Refused { origin: self.origin.clone(), why: why.into() }
    }

    pub(crate) fn failure(&self, why: impl Into<String>) -> KeyError {
        KeyError::Server { origin: self.origin.clone(), why: why.into() }
    }

    /// Sends one request and reads the whole answer, whatever its status.
    pub(crate) async fn fetch(&self, request: RequestBuilder) -> Result<FetchedAnswer, KeyError> {
        let sent = request.send().await;
        self.whole(sent.map_err(|error| self.failure(innermost(&error)))?).await
    }

    /// The same. Where no connection can be made, there is no such server here.
    pub(crate) async fn fetch_if_there(
        &self,
        request: RequestBuilder,
    ) -> Result<FetchedAnswer, KeyError> {
        let sent = request.send().await.map_err(|error| {
            let failure = self.failure(innermost(&error));
            if self.is_nowhere(&error) { KeyError::Absent(failure.to_string()) } else { failure }
        });
        self.whole(sent?).await
    }

    /// Whether nothing is at the address, as on a machine of another provider: packets to it come back, or are
    /// dropped. What fails once there is a connection, such as an answer in time, is the failure of a server that
    /// is there; so is a name that cannot be looked up, as a moment later it may be.
    fn is_nowhere(&self, error: &reqwest::Error) -> bool {
        if !error.is_connect() || error.is_dns() {
            return false;
        }
        let mut cause = error.source();
        while let Some(deeper) = cause {
            if let Some(io) = deeper.downcast_ref::<io::Error>() {
                return matches!(
                    io.kind(),
                    io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::HostUnreachable
                        | io::ErrorKind::NetworkUnreachable
                        | io::ErrorKind::NetworkDown
                        | io::ErrorKind::PermissionDenied
                        // Of the connection, before TLS.
                        | io::ErrorKind::TimedOut
                );
            }
            cause = deeper.source();
        }
        // Of TLS, the time for a connection is that of the handshake, too.
        error.is_timeout() && self.origin.starts_with("http://")
    }

    async fn whole(&self, mut answer: Response) -> Result<FetchedAnswer, KeyError> {
        let failed = |error: reqwest::Error| self.failure(innermost(&error));
        let skew = skew(&answer);
        // As large as it can get: growing would leave copies behind that are not wiped.
        let mut body = Zeroizing::new(Vec::with_capacity(MAX_BODY));
        while let Some(piece) = answer.chunk().await.map_err(failed)? {
            if piece.len() > MAX_BODY - body.len() {
                return Err(self.failure(format!("answered with more than {MAX_BODY} bytes")));
            }
            body.extend_from_slice(&piece);
        }
        Ok(FetchedAnswer { status: answer.status(), body, skew })
    }

    /// The same; any status but 200 is an error.
    pub(crate) async fn fetch_ok(
        &self,
        request: RequestBuilder,
    ) -> Result<FetchedAnswer, KeyError> {
        let answer = self.fetch(request).await?;
        self.ok(answer)
    }

    /// The answer, if its status is 200.
    pub(crate) fn ok(&self, answer: FetchedAnswer) -> Result<FetchedAnswer, KeyError> {
        match answer.status {
            StatusCode::OK => Ok(answer),
            status => Err(self.failure(format!("answered with HTTP status {}", status.as_u16()))),
        }
    }
}

fn skew(answer: &Response) -> SignedDuration {
    let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
    let date = date.and_then(|date| Timestamp::try_from(date).ok());
    let skew = date.map_or(SignedDuration::ZERO, |date| date.duration_since(Timestamp::now()));
    if skew.abs() < COARSE { SignedDuration::ZERO } else { skew }
}

/// The proxy of `HTTPS_PROXY` (else `ALL_PROXY`) for hosts that `NO_PROXY` does not name. Of two
/// spellings, the one in small letters holds, as in curl.
fn proxy(lookup: impl Fn(&str) -> Option<String>) -> Result<Option<Proxy>, KeyError> {
    let set = |names: &[&str]| {
        names.iter().find_map(|name| lookup(name).filter(|value| !value.trim().is_empty()))
    };
    let Some(uri) = set(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]) else {
        return Ok(None);
    };
    // It may hold a password, so it is not repeated.
    let wrong = || KeyError::Client("HTTPS_PROXY is no http:// or https:// URI".to_owned());
    let uri = if uri.contains("://") { uri } else { format!("http://{uri}") };
    let uri = Url::parse(&uri).map_err(|_| wrong())?;
    if !matches!(uri.scheme(), "http" | "https") {
        return Err(wrong());
    }
    let except = set(&["no_proxy", "NO_PROXY"]).and_then(|list| NoProxy::from_string(&list));
    let proxy = Proxy::https(uri).map_err(|_| wrong())?;
    Ok(Some(proxy.no_proxy(except)))
}

/// Bundled authorities, so that an image without CA files works, and the system's and the file's, since a
/// key holder is often within the company. The provider is named, so no process default is needed.
pub(crate) fn client_tls(is_tls: bool, ca_file: Option<&Path>) -> Result<ClientConfig, KeyError> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    // Reading the system's takes milliseconds and memory that plain http doesn't need.
    if is_tls {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = ca_file {
            let failed = |why: String| KeyError::File { path: path.to_owned(), why };
            let certificates = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| failed(error.to_string()))?;
            if roots.add_parsable_certificates(certificates).0 == 0 {
                return Err(failed("holds no usable certificate".to_owned()));
            }
        }
    }
    Ok(ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| KeyError::Client(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// The innermost cause ("Connection refused"): the outer ones only say that sending failed, or
/// quote the URI.
pub(crate) fn innermost(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "timed out".to_owned();
    }
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(Error::source) {
        cause = Some(deeper);
    }
    cause.map_or_else(|| "the request failed".to_owned(), ToString::to_string)
}

/// A variable of this process's environment.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
