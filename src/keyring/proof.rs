//! Who asks: from a request to the caller that the configuration names.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use percent_encoding::percent_decode_str;
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;

use super::issuer_keys::IssuerKeys;
use super::token_check::{ProvenSubject, TokenFlaw, subject_of};
use crate::callers::{Named, SharedTokens};
use crate::config::{CallerProof, Keyring, KeyringCaller};
use crate::keys::KeyError;
use crate::message::TopicPattern;

/// The longest proof. Tokens of service accounts have about a thousand characters.
const MOST_CHARACTERS: usize = 8_192;

/// A caller that has proven who it is.
pub(super) struct ProvenCaller {
    pub(super) caller: Arc<KeyringCaller>,
    /// The subject of its token, or its own name.
    pub(super) subject: String,
}

/// Why who asks is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unproven {
    /// It says nothing.
    #[error("no token came with the request")]
    Absent,
    /// It cannot be one.
    #[error("what came as a token is none")]
    Malformed,
    /// It is of no caller's.
    #[error("the shared token is of no caller's")]
    Unknown,
    /// It is of a service account's, and not in order.
    #[error("the token is not in order: {0}")]
    Token(#[from] TokenFlaw),
    /// It is in order, and of no caller's.
    #[error("no caller has the subject {0:?} of this issuer")]
    Stranger(String),
}

impl Named for KeyringCaller {
    fn name(&self) -> &str {
        &self.name
    }
}

/// What proves callers.
pub(super) struct Proofs {
    audience: String,
    callers: Vec<Arc<KeyringCaller>>,
    issuers: Vec<Arc<IssuerKeys>>,
    shared: SharedTokens<KeyringCaller>,
}

impl Proofs {
    /// Reads the shared tokens once, and begins to read key sets.
    pub(super) async fn start(
        config: &Keyring,
        stop: &CancellationToken,
    ) -> Result<Self, KeyError> {
        let callers: Vec<_> = config.callers.iter().cloned().map(Arc::new).collect();
        let file = |caller: &'_ Arc<KeyringCaller>| match &caller.proof {
            CallerProof::TokenFile(path) => Some((Arc::clone(caller), path.clone())),
            CallerProof::ServiceAccount { .. } => None,
        };
        let files: Vec<_> = callers.iter().filter_map(file).collect();
        let files = files.iter().map(|(caller, path)| (Arc::clone(caller), path.as_path()));
        let shared = SharedTokens::start(files, stop);
        shared.first_look().await;
        let issuers = config.issuers.iter().map(|issuer| IssuerKeys::start(issuer, stop));
        let issuers = issuers.collect::<Result<_, _>>()?;
        Ok(Self { audience: config.audience.clone(), callers, issuers, shared })
    }

    /// Whether it may prove a caller. An issuer that is away does not stop the callers of the others.
    pub(super) fn is_ready(&self) -> bool {
        self.issuers.is_empty() || self.issuers.iter().any(|issuer| issuer.is_ready())
    }

    pub(super) async fn check(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
    ) -> Result<ProvenCaller, Unproven> {
        let secret = token(headers, query)?;
        let token = secret.expose_secret();
        if token.len() > MOST_CHARACTERS || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Unproven::Malformed);
        }
        if let Some(caller) = self.shared.caller(&secret) {
            let subject = caller.name.clone();
            return Ok(ProvenCaller { caller, subject });
        }
        if token.split('.').count() != 3 {
            return Err(Unproven::Unknown);
        }
        let ProvenSubject { issuer, subject } =
            subject_of(token, &self.issuers, &self.audience).await?;
        let is_meant = |caller: &&Arc<KeyringCaller>| match &caller.proof {
            CallerProof::ServiceAccount { issuer: of, subject: pattern } => {
                *of == issuer && fits(pattern, &subject)
            }
            CallerProof::TokenFile(_) => false,
        };
        match self.callers.iter().find(is_meant) {
            Some(caller) => Ok(ProvenCaller { caller: Arc::clone(caller), subject }),
            None => Err(Unproven::Stranger(subject)),
        }
    }
}

/// The token of a request: as Bearer, as the password of a URI, or, for SDKs which send neither, as `token`
/// in the query.
fn token(headers: &HeaderMap, query: Option<&str>) -> Result<SecretString, Unproven> {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    match (given.next(), given.next()) {
        (Some(_), Some(_)) => Err(Unproven::Malformed),
        (Some(value), None) => {
            let text = value.to_str().map_err(|_| Unproven::Malformed)?;
            let (scheme, rest) = text.split_once(' ').ok_or(Unproven::Malformed)?;
            if scheme.eq_ignore_ascii_case("bearer") {
                return Ok(SecretString::from(rest.trim()));
            }
            if !scheme.eq_ignore_ascii_case("basic") {
                return Err(Unproven::Malformed);
            }
            let bytes = STANDARD.decode(rest.trim()).map_err(|_| Unproven::Malformed)?;
            let bytes = Zeroizing::new(bytes);
            let text = std::str::from_utf8(&bytes).map_err(|_| Unproven::Malformed)?;
            let (_, password) = text.split_once(':').ok_or(Unproven::Malformed)?;
            Ok(SecretString::from(password))
        }
        (None, _) => {
            let mut pairs = query.unwrap_or_default().split('&');
            let token = pairs.find_map(|pair| pair.strip_prefix("token="));
            let token = token.filter(|token| !token.is_empty()).ok_or(Unproven::Absent)?;
            let mut bytes = Zeroizing::new(Vec::with_capacity(token.len()));
            bytes.extend(percent_decode_str(token));
            let token = std::str::from_utf8(&bytes).map_err(|_| Unproven::Malformed)?;
            Ok(SecretString::from(token))
        }
    }
}

/// Whether a subject fits a pattern, in which `*` stands for any characters, as in one over topics.
fn fits(pattern: &str, subject: &str) -> bool {
    TopicPattern::new(pattern).matches_text(subject)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_and_patterns() {
        for (pattern, subject, expected) in [
            ("a:b", "a:b", true),
            ("a:b", "a:bc", false),
            ("a:*", "a:b", true),
            ("a:*", "xa:b", false),
            ("a:*:c", "a:b:c", true),
            ("a:*:c", "a:c", false),
            ("a:*:c*", "a:b:cc", true),
            ("*", "anything", true),
            ("*:c", "a:b", false),
            ("", "a", false),
        ] {
            assert_eq!(fits(pattern, subject), expected, "{pattern} {subject}");
        }
    }

    #[test]
    fn tokens_come_in_three_ways() {
        let header = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            headers
        };
        for (headers, query, expected) in [
            (header("Bearer abc"), None, Some("abc")),
            (header("bearer  abc "), Some("token=other"), Some("abc")),
            (header("Basic dTphOmI="), None, Some("a:b")),
            (header("Basic dQ=="), None, None),
            (header("Basic %"), None, None),
            (header("Digest x"), None, None),
            (header("abc"), None, None),
            (HeaderMap::new(), Some("a=b&token=a%2Fb"), Some("a/b")),
            (HeaderMap::new(), Some("token="), None),
            (HeaderMap::new(), Some("mytoken=x"), None),
            (HeaderMap::new(), None, None),
        ] {
            let found = token(&headers, query).ok();
            let found = found.as_ref().map(ExposeSecret::expose_secret);
            assert_eq!(found, expected, "{headers:?} {query:?}");
        }
        let mut twice = header("Bearer a");
        twice.append(AUTHORIZATION, "Bearer b".parse().unwrap());
        assert!(matches!(token(&twice, None), Err(Unproven::Malformed)));
    }
}
