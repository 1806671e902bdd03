//! The provider's Security Token Service: exchanges a key, or an OIDC token, for a short-lived key of a role.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use reqwest::{RequestBuilder, StatusCode, Url};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::answer::{CredentialsAnswer, read_json};
use super::error::KeyError;
use super::fetch::{FetchedAnswer, KeyServer, Patience, variable};
use super::key::Key;
use crate::answer::{self, AccessDenied, Verdict};
use crate::config::{Endpoint, RoleSession, SignatureVersion};
use crate::signing::{self, Call, Credentials, Stamp};

const VERSION: &str = "2015-04-01";
/// The most of a code or request id that is shown.
const MAX_SHOWN: usize = 64;

/// The service at one endpoint.
pub(super) struct Sts {
    server: KeyServer,
    url: Url,
    authority: String,
    /// Its clock minus ours, where it has refused our time.
    skew: Mutex<SignedDuration>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Assumed {
    credentials: CredentialsAnswer,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StsRefusal {
    code: Option<String>,
    request_id: Option<String>,
}

impl Sts {
    pub(super) fn new(endpoint: &Endpoint) -> Result<Self, KeyError> {
        let scheme = if endpoint.tls { "https" } else { "http" };
        let authority = endpoint.authority();
        let url = Url::parse(&format!("{scheme}://{authority}/")).map_err(|_| KeyError::NotUri)?;
        let server = KeyServer::new(&url, Patience::Network, None, variable)?;
        Ok(Self { server, url, authority, skew: Mutex::default() })
    }

    pub(super) fn place(&self) -> String {
        self.server.origin().to_owned()
    }

    /// A key of the role, for one that may assume it.
    pub(super) async fn assume_role(
        &self,
        base: &Key,
        session: &RoleSession,
    ) -> Result<Key, KeyError> {
        let duration = seconds(session.duration);
        let mut params = vec![
            ("DurationSeconds", &*duration),
            ("RoleArn", &*session.role_arn),
            ("RoleSessionName", &*session.name),
        ];
        params.extend(session.external_id.as_deref().map(|id| ("ExternalId", id)));
        params.extend(session.policy.as_deref().map(|policy| ("Policy", policy)));
        params.sort_unstable_by_key(|(name, _)| *name);
        let answer = self.server.fetch(self.signed(base, &params)?).await?;
        if !self.corrects(&answer) {
            return self.key_of("AssumeRole", &answer);
        }
        let answer = self.server.fetch(self.signed(base, &params)?).await?;
        self.key_of("AssumeRole", &answer)
    }

    /// A key of the role, for a token that its OIDC provider has issued. The token stands in the body: a
    /// query would be in the logs of proxies.
    pub(super) async fn assume_role_with_oidc(
        &self,
        token: &SecretString,
        provider_arn: &str,
        session: &RoleSession,
    ) -> Result<Key, KeyError> {
        let duration = seconds(session.duration);
        let mut form = vec![
            ("DurationSeconds", &*duration),
            ("OIDCProviderArn", provider_arn),
            ("OIDCToken", token.expose_secret()),
            ("RoleArn", &*session.role_arn),
            ("RoleSessionName", &*session.name),
        ];
        form.extend(session.policy.as_deref().map(|policy| ("Policy", policy)));
        let answer = self.server.fetch(self.unsigned(&form)?).await?;
        if !self.corrects(&answer) {
            return self.key_of("AssumeRoleWithOIDC", &answer);
        }
        let answer = self.server.fetch(self.unsigned(&form)?).await?;
        self.key_of("AssumeRoleWithOIDC", &answer)
    }

    fn unsigned(&self, form: &[(&str, &str)]) -> Result<RequestBuilder, KeyError> {
        let stamp = self.stamp()?;
        let query = signing::encode::pairs(&[
            ("Action", "AssumeRoleWithOIDC"),
            ("Format", "JSON"),
            ("SignatureNonce", &stamp.nonce),
            ("Timestamp", &stamp.time),
            ("Version", VERSION),
        ]);
        // It has the token: wiped when it was sent.
        let body = Zeroizing::new(signing::encode::pairs(form).into_bytes());
        let request = self.post(&query).header("content-type", signing::FORM);
        Ok(request.body(Bytes::from_owner(body)))
    }

    fn signed(&self, base: &Key, params: &[(&str, &str)]) -> Result<RequestBuilder, KeyError> {
        let call =
            Call { authority: &self.authority, action: "AssumeRole", version: VERSION, params };
        let key = Credentials {
            id: base.id(),
            secret: base.secret().expose_secret(),
            token: base.token().map(ExposeSecret::expose_secret),
        };
        let signed = signing::sign(SignatureVersion::Acs3, &call, &key, &self.stamp()?);
        let mut request = self.post(&signed.query);
        for (name, value) in signed.headers {
            request = request.header(name, value);
        }
        Ok(request.body(signed.body))
    }

    fn post(&self, query: &str) -> RequestBuilder {
        let mut url = self.url.clone();
        // Already encoded, which it is a second time only where a sign is none of a query's.
        url.set_query(Some(query));
        self.server.client().post(url).header("accept", "application/json")
    }

    fn stamp(&self) -> Result<Stamp, KeyError> {
        let mut nonce = [0; 16];
        let failed = |_| self.server.failure("the system gave no random numbers");
        getrandom::fill(&mut nonce).map_err(failed)?;
        let now = Timestamp::now();
        let at = now.saturating_add(*self.skew()).unwrap_or(now);
        Ok(Stamp::new(at, u128::from_ne_bytes(nonce)))
    }

    fn skew(&self) -> MutexGuard<'_, SignedDuration> {
        self.skew.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the service refused our time and said which one it has: another try then has that one.
    fn corrects(&self, answer: &FetchedAnswer) -> bool {
        let code = refusal(answer).and_then(|refusal| refusal.code).unwrap_or_default();
        let is_time = code.starts_with("InvalidTimeStamp") || code == "IllegalTimestamp";
        let mut skew = self.skew();
        let corrects = is_time && *skew != answer.skew;
        if corrects {
            *skew = answer.skew;
            let (server, skew_s) = (self.server.origin(), answer.skew.as_secs());
            tracing::warn!(
                server,
                skew_s,
                "the service refused our time: check this machine's clock"
            );
        }
        corrects
    }

    fn key_of(&self, action: &str, answer: &FetchedAnswer) -> Result<Key, KeyError> {
        let failed = |why: String| self.server.failure(format!("{action}: {why}"));
        if answer.status == StatusCode::OK {
            let read = read_json::<Assumed>(&answer.body);
            return read.and_then(|read| read.credentials.into_key(answer.skew)).map_err(failed);
        }
        let status = answer.status.as_u16();
        let Some(StsRefusal { code: Some(code), request_id }) = refusal(answer) else {
            return Err(failed(format!("answered with HTTP status {status}")));
        };
        let id = request_id.as_deref().and_then(shown);
        let id = id.map(|id| format!(" (request {id})")).unwrap_or_default();
        match shown(&code) {
            Some(code) if is_of_the_key(code) => {
                Err(self.server.refusal(format!("{action}: refused with {code}{id}")))
            }
            Some(code) => Err(failed(format!("refused with {code}{id}"))),
            None => Err(failed(format!("answered with HTTP status {status}{id}"))),
        }
    }
}

/// Whether another key may be let in where this one is not.
fn is_of_the_key(code: &str) -> bool {
    answer::meaning(code) == Some(Verdict::Denied(AccessDenied::Key))
}

fn refusal(answer: &FetchedAnswer) -> Option<StsRefusal> {
    if answer.status == StatusCode::OK { None } else { serde_json::from_slice(&answer.body).ok() }
}

/// What another machine wrote, if it can be a code or an id.
fn shown(text: &str) -> Option<&str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (text.len() <= MAX_SHOWN && !text.is_empty() && text.bytes().all(fits)).then_some(text)
}

fn seconds(duration: Duration) -> String {
    duration.as_secs().to_string()
}
