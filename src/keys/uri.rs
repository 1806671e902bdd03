//! The key from a URI that answers with a short-lived one: a sidecar, an agent of the node, `tollgate
//! keyring`.

use std::path::PathBuf;

use reqwest::Url;
use secrecy::ExposeSecret;

use super::answer::{CredentialsAnswer, read_json};
use super::error::KeyError;
use super::fetch::{KeyServer, Patience, variable};
use super::key::Key;
use super::proof::read_token;
use super::source::{Pace, Source};
use crate::config::KeyUri;

/// A URI that answers with a short-lived key.
pub struct CredentialsUri {
    uri: Url,
    server: KeyServer,
    token_file: Option<PathBuf>,
}

impl CredentialsUri {
    /// Checks the URI and makes its client; nothing is fetched yet. An https URI is fetched through the
    /// proxy that the environment names.
    pub fn new(config: &KeyUri) -> Result<Self, KeyError> {
        Self::with_environment(config, variable)
    }

    /// The same, with variables of another environment.
    pub fn with_environment(
        config: &KeyUri,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, KeyError> {
        let uri = Url::parse(&config.uri).map_err(|_| KeyError::NotUri)?;
        if !matches!(uri.scheme(), "http" | "https") {
            return Err(KeyError::NotUri);
        }
        let server = KeyServer::new(&uri, Patience::Network, config.ca_file.as_deref(), lookup)?;
        Ok(Self { uri, server, token_file: config.token_file.clone() })
    }
}

impl Source for CredentialsUri {
    fn as_str(&self) -> &'static str {
        "uri"
    }

    fn place(&self) -> String {
        self.server.origin().to_owned()
    }

    fn pace(&self) -> Pace {
        Pace::BeforeExpiry
    }

    async fn load(&mut self) -> Result<Key, KeyError> {
        let mut request = self.server.client().get(self.uri.clone());
        if let Some(path) = &self.token_file {
            // Kubernetes replaces it about every hour.
            request = request.bearer_auth(read_token(path).await?.expose_secret());
        }
        let answer = self.server.fetch_ok(request).await?;
        let key = read_json::<CredentialsAnswer>(&answer.body)
            .and_then(|read| read.into_key(answer.skew));
        key.map_err(|why| self.server.failure(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_uris_are_taken() {
        let source = |uri: &str| CredentialsUri::new(&KeyUri::plain(uri));
        for uri in ["", "hush", "/hush", "ftp://hush/", "file:///hush", "http://"] {
            assert_eq!(source(uri).err(), Some(KeyError::NotUri), "{uri}");
        }
        assert!(source("https://keys.example/").is_ok(), "no default provider needed");
    }
}
