//! The key of a machine's RAM role, from the metadata service of the machine.

use reqwest::{RequestBuilder, StatusCode, Url};

use super::answer::{CredentialsAnswer, read_json};
use super::error::KeyError;
use super::fetch::{FetchedAnswer, KeyServer, Patience};
use super::key::Key;
use super::source::{Pace, Source};
use crate::config::{EcsMetadata, MetadataV1};

const TOKEN_PATH: &str = "/latest/api/token";
const ROLE_PATH: &str = "/latest/meta-data/ram/security-credentials/";
const TOKEN: &str = "X-aliyun-ecs-metadata-token";
const TOKEN_LIFE: (&str, &str) = ("X-aliyun-ecs-metadata-token-ttl-seconds", "60");
const MAX_TOKEN: usize = 1_024;
const MAX_ROLE: usize = 64;

/// The metadata service.
pub struct MetadataKeys {
    server: KeyServer,
    url: Url,
    role: Option<String>,
    v1: MetadataV1,
}

impl MetadataKeys {
    /// Nothing is fetched yet.
    pub fn new(config: &EcsMetadata) -> Result<Self, KeyError> {
        let scheme = if config.endpoint.tls { "https" } else { "http" };
        let url = Url::parse(&format!("{scheme}://{}/", config.endpoint.authority()));
        let url = url.map_err(|_| KeyError::NotUri)?;
        // No proxy is on the way to the machine's own service.
        let server = KeyServer::new(&url, Patience::Machine, None, |_| None)?;
        Ok(Self { server, url, role: config.role.clone(), v1: config.v1 })
    }

    fn at(&self, path: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(path);
        url
    }

    /// The token of version 2, without which a page that makes a server fetch a URI cannot ask.
    async fn token(&self) -> Result<Option<String>, KeyError> {
        let (name, seconds) = TOKEN_LIFE;
        let request = self.server.client().put(self.at(TOKEN_PATH)).header(name, seconds);
        let answer = self.reach(request).await?;
        let token = self.server.ok(answer).and_then(|answer| {
            let is_token = |token: &&str| {
                (1..=MAX_TOKEN).contains(&token.len())
                    && token.bytes().all(|byte| byte.is_ascii_graphic())
            };
            let token = answer.text().filter(is_token).map(str::to_owned);
            token.ok_or_else(|| self.server.failure("its metadata token is none"))
        });
        match (token, self.v1) {
            (Ok(token), _) => Ok(Some(token)),
            (Err(_), MetadataV1::Allowed) => Ok(None),
            (Err(error), MetadataV1::Refused) => Err(error),
        }
    }

    /// Where none can be connected to, this is no machine of the provider's, unless a role of it is configured.
    async fn reach(&self, request: RequestBuilder) -> Result<FetchedAnswer, KeyError> {
        match self.role {
            Some(_) => self.server.fetch(request).await,
            None => self.server.fetch_if_there(request).await,
        }
    }

    async fn role(&self, token: Option<&str>) -> Result<String, KeyError> {
        if let Some(role) = &self.role {
            return Ok(role.clone());
        }
        let answer = self.server.fetch(self.get(ROLE_PATH, token)).await?;
        if answer.status == StatusCode::NOT_FOUND {
            let none = self.server.failure("this machine has no RAM role");
            return Err(KeyError::Absent(none.to_string()));
        }
        let role = answer.text().filter(|_| answer.status == StatusCode::OK);
        let role = role.and_then(|text| text.lines().next()).filter(|role| is_role(role));
        role.map(str::to_owned).ok_or_else(|| self.server.failure("names no RAM role"))
    }

    fn get(&self, path: &str, token: Option<&str>) -> RequestBuilder {
        let request = self.server.client().get(self.at(path));
        if let Some(token) = token { request.header(TOKEN, token) } else { request }
    }
}

fn is_role(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MAX_ROLE).contains(&text.len()) && text.bytes().all(fits)
}

impl Source for MetadataKeys {
    fn as_str(&self) -> &'static str {
        "ecs"
    }

    fn place(&self) -> String {
        self.server.origin().to_owned()
    }

    fn pace(&self) -> Pace {
        Pace::BeforeExpiry
    }

    async fn load(&mut self) -> Result<Key, KeyError> {
        let token = self.token().await?;
        let role = self.role(token.as_deref()).await?;
        let request = self.get(&format!("{ROLE_PATH}{role}"), token.as_deref());
        let answer = self.server.fetch_ok(request).await?;
        let key = read_json::<CredentialsAnswer>(&answer.body)
            .and_then(|read| read.into_key(answer.skew));
        key.map_err(|why| self.server.failure(why))
    }
}
