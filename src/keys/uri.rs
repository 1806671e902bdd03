//! The key from a URI that answers with a short-lived one: a sidecar, an agent of the node, a
//! central key holder.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::temporal::Pieces;
use reqwest::redirect::Policy;
use reqwest::{Client, NoProxy, Proxy, StatusCode, Url};
use rustls::{ClientConfig, RootCertStore};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};

use super::error::KeyError;
use super::key::Key;
use super::source::{Pace, Source};

/// As in the provider's SDKs.
const CONNECT: Duration = Duration::from_secs(5);
const READ: Duration = Duration::from_secs(10);
/// One fetch in all: a server that sends a byte now and then never meets the read timeout.
const WHOLE: Duration = Duration::from_secs(20);
/// The largest answer that is read.
const MAX_BODY: usize = 64 * 1024;

/// A URI that answers with a short-lived key.
pub struct CredentialsUri {
    uri: Url,
    /// What may be shown of it.
    origin: String,
    client: Client,
}

/// The answer, as the provider's metadata service gives it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CredentialsAnswer {
    code: Option<String>,
    access_key_id: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    access_key_secret: Option<SecretString>,
    #[serde(default, deserialize_with = "secret")]
    security_token: Option<SecretString>,
    expiration: Option<String>,
}

impl CredentialsUri {
    /// Checks the URI and makes its client; nothing is fetched yet. An https URI is fetched through the
    /// proxy that the environment names.
    pub fn new(uri: &str) -> Result<Self, KeyError> {
        Self::with_environment(uri, |name| std::env::var(name).ok())
    }

    /// The same, with variables of another environment.
    pub fn with_environment(
        uri: &str,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, KeyError> {
        let uri = Url::parse(uri).map_err(|_| KeyError::NotUri)?;
        if !matches!(uri.scheme(), "http" | "https") {
            return Err(KeyError::NotUri);
        }
        let origin = uri.origin().ascii_serialization();
        // A key does not pass through a proxy in clear text.
        let proxy = if uri.scheme() == "https" { proxy(lookup)? } else { None };
        let client = client(&uri, proxy)?;
        Ok(Self { uri, origin, client })
    }

    fn failure(&self, why: impl Into<String>) -> KeyError {
        KeyError::Uri { origin: self.origin.clone(), why: why.into() }
    }

    /// The whole body in one buffer that is wiped. The pieces that the HTTP library read are its
    /// own, and not.
    async fn fetch(&self) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let failed = |error: reqwest::Error| self.failure(reason(&error));
        let mut answer = self.client.get(self.uri.clone()).send().await.map_err(failed)?;
        if answer.status() != StatusCode::OK {
            let status = answer.status().as_u16();
            return Err(self.failure(format!("answered with HTTP status {status}")));
        }
        let mut body = Zeroizing::new(Vec::with_capacity(MAX_BODY));
        while let Some(piece) = answer.chunk().await.map_err(failed)? {
            if piece.len() > MAX_BODY - body.len() {
                return Err(self.failure(format!("answered with more than {MAX_BODY} bytes")));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    fn read(&self, body: &[u8]) -> Result<Key, KeyError> {
        // serde_json's own words quote what they stumble over.
        let answer: CredentialsAnswer = serde_json::from_slice(body).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            self.failure(format!("its answer is no JSON of a key (line {line}, column {column})"))
        })?;
        if answer.code.is_some_and(|code| code != "Success") {
            return Err(self.failure("its answer's Code is not Success"));
        }
        let missing = |name| self.failure(format!("its answer has no {name}"));
        // A key without an end would never be renewed.
        let expires = answer.expiration.ok_or_else(|| missing("Expiration"))?;
        let expires = moment(&expires)
            .ok_or_else(|| self.failure("its answer's Expiration is not a time"))?;
        let id = answer.access_key_id.ok_or_else(|| missing("AccessKeyId"))?;
        let secret = answer.access_key_secret.ok_or_else(|| missing("AccessKeySecret"))?;
        let token = answer.security_token.filter(|token| !token.expose_secret().is_empty());
        Key::new(id, secret, token, Some(expires)).map_err(|error| self.failure(error.to_string()))
    }
}

impl Source for CredentialsUri {
    fn as_str(&self) -> &'static str {
        "uri"
    }

    fn pace(&self) -> Pace {
        Pace::BeforeExpiry
    }

    async fn load(&mut self) -> Result<Key, KeyError> {
        let body = self.fetch().await?;
        self.read(&body)
    }
}

/// A client whose one send is exactly one request to exactly that URI.
fn client(uri: &Url, proxy: Option<Proxy>) -> Result<Client, KeyError> {
    // Nothing is read from the environment but what `proxy` has read.
    let client = Client::builder().no_proxy();
    let client = if let Some(proxy) = proxy { client.proxy(proxy) } else { client };
    client
        .tls_backend_preconfigured(tls_config(uri)?)
        // A redirect would carry the key's address, and its password, elsewhere.
        .redirect(Policy::none())
        .retry(reqwest::retry::never())
        .http1_only()
        // Minutes pass between two fetches: no connection is worth keeping.
        .pool_max_idle_per_host(0)
        .connect_timeout(CONNECT)
        .read_timeout(READ)
        .timeout(WHOLE)
        .build()
        .map_err(|error| KeyError::Client(reason(&error)))
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

/// Bundled authorities, so that an image without CA files works, and the system's, since a key
/// holder is often within the company. The provider is named, so no process default is needed.
fn tls_config(uri: &Url) -> Result<ClientConfig, KeyError> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    // Reading the system's takes milliseconds and memory that plain http doesn't need.
    if uri.scheme() == "https" {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    Ok(ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| KeyError::Client(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// The innermost cause ("Connection refused"): the outer ones only say that sending failed, or
/// quote the URI.
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "timed out".to_owned();
    }
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(Error::source) {
        cause = Some(deeper);
    }
    cause.map_or_else(|| "the request failed".to_owned(), ToString::to_string)
}

/// A moment with an offset from UTC. One that is too far away for a [`Timestamp`], such as the
/// `9999-12-31T23:59:59Z` of a key that never ends, is the nearest that is one.
fn moment(text: &str) -> Option<Timestamp> {
    if let Ok(at) = text.parse() {
        return Some(at);
    }
    let pieces = Pieces::parse(text).ok()?;
    let at = pieces.date().to_datetime(pieces.time()?);
    let offset = pieces.to_numeric_offset()?;
    let far = if at.year() > 0 { Timestamp::MAX } else { Timestamp::MIN };
    Some(offset.to_timestamp(at).unwrap_or(far))
}

/// Wraps at once, so that a mistake further on in the JSON drops it wiped.
fn secret<'de, D: Deserializer<'de>>(json: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(json)?.map(SecretString::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> CredentialsUri {
        CredentialsUri::new("http://user:hush@127.0.0.1:1/path?token=hush#hush").unwrap()
    }

    #[test]
    fn the_documented_answer_is_a_key() {
        let key = source()
            .read(
                br#"{"Code":"Success","AccessKeyId":"STS.abc","AccessKeySecret":"s\/x",
                "SecurityToken":"t0k","Expiration":"2024-01-02T09:04:05Z","LastUpdated":"x"}"#,
            )
            .unwrap();
        assert_eq!((key.id(), key.secret().expose_secret()), ("STS.abc", "s/x"));
        assert_eq!(key.token().unwrap().expose_secret(), "t0k");
        assert_eq!(key.expires(), Some("2024-01-02T09:04:05Z".parse().unwrap()));
    }

    #[test]
    fn code_and_token_may_be_absent() {
        for rest in ["", r#","SecurityToken":"""#, r#","SecurityToken":null,"Code":null"#] {
            let json = format!(
                r#"{{"AccessKeyId":"i","AccessKeySecret":"s","Expiration":"2024-01-02T09:04:05Z"{rest}}}"#
            );
            assert!(source().read(json.as_bytes()).unwrap().token().is_none(), "{rest}");
        }
    }

    #[test]
    fn an_end_at_the_edge_of_time_is_clamped() {
        for (text, end) in [
            ("9999-12-31T23:59:59Z", Some(Timestamp::MAX)),
            ("9999-12-30T22:00:01Z", Some(Timestamp::MAX)),
            ("9999-12-31T23:59:59.999999999-23:00", Some(Timestamp::MAX)),
            ("9999-12-30T22:00:00Z", Some("9999-12-30T22:00:00Z".parse().unwrap())),
            ("-009999-01-01T00:00:00Z", Some(Timestamp::MIN)),
            ("2024-01-02T09:04:05Z", Some("2024-01-02T09:04:05Z".parse().unwrap())),
            ("9999-12-31", None),
            ("9999-12-31T23:59:59", None),
            ("9999-13-31T23:59:59Z", None),
            ("never", None),
        ] {
            assert_eq!(moment(text), end, "{text}");
            let json =
                format!(r#"{{"AccessKeyId":"i","AccessKeySecret":"s","Expiration":"{text}"}}"#);
            let key = source().read(json.as_bytes());
            assert_eq!(key.ok().and_then(|key| key.expires()), end, "{text}");
        }
    }

    #[test]
    fn other_answers_are_refused_without_being_repeated() {
        let end = r#""Expiration":"2024-01-02T09:04:05Z""#;
        for (json, expected) in [
            (String::new(), "no JSON of a key (line 1, column 0)"),
            ("hush".to_owned(), "no JSON of a key"),
            ("[]".to_owned(), "no JSON of a key"),
            (r#"{"AccessKeySecret":{"hush":1}}"#.to_owned(), "no JSON of a key"),
            (r#"{"AccessKeyId":"hush","AccessKeySecret":17}"#.to_owned(), "no JSON of a key"),
            (r#"{"Expiration":"hush"}"#.to_owned(), "Expiration is not a time"),
            (r#"{"Code":"hush"}"#.to_owned(), "Code is not Success"),
            (r#"{"AccessKeyId":"hush","AccessKeySecret":"hush"}"#.to_owned(), "no Expiration"),
            (format!(r#"{{"AccessKeySecret":"hush",{end}}}"#), "no AccessKeyId"),
            (format!(r#"{{"AccessKeyId":"hush",{end}}}"#), "no AccessKeySecret"),
            (
                format!(r#"{{"AccessKeyId":"hush","AccessKeySecret":"hush hush",{end}}}"#),
                "the access key secret has white space",
            ),
        ] {
            let error = source().read(json.as_bytes()).unwrap_err();
            let shown = error.to_string();
            assert!(shown.starts_with("http://127.0.0.1:1: "), "{shown}");
            assert!(shown.contains(expected), "{shown}");
            assert!(!format!("{shown} {error:?}").contains("hush"), "{shown}");
        }
    }

    #[test]
    fn only_http_uris_are_taken() {
        for uri in ["", "hush", "/hush", "ftp://hush/", "file:///hush", "http://"] {
            assert_eq!(CredentialsUri::new(uri).err(), Some(KeyError::NotUri), "{uri}");
        }
        assert!(CredentialsUri::new("https://keys.example/").is_ok(), "no default provider needed");
    }
}
