//! RRSA: the key of a role that a pod's service account may assume, for the token that Kubernetes mounts.

use std::path::Path;

use super::error::KeyError;
use super::key::Key;
use super::proof::read_token;
use super::source::{Pace, Source};
use super::sts::Sts;
use crate::config;

/// The key of an OIDC provider's role: RRSA.
pub struct OidcKeys {
    sts: Sts,
    config: config::OidcRole,
}

impl OidcKeys {
    /// Nothing is read or fetched yet.
    pub fn new(config: &config::OidcRole) -> Result<Self, KeyError> {
        Ok(Self { sts: Sts::new(&config.sts)?, config: config.clone() })
    }
}

impl Source for OidcKeys {
    fn as_str(&self) -> &'static str {
        "oidc"
    }

    fn place(&self) -> String {
        self.sts.place()
    }

    fn pace(&self) -> Pace {
        Pace::BeforeExpiry
    }

    async fn load(&mut self) -> Result<Key, KeyError> {
        let path: &Path = &self.config.token_file;
        // Kubernetes replaces it about every hour.
        let token = read_token(path).await?;
        let Self { sts, config } = self;
        sts.assume_role_with_oidc(&token, &config.provider_arn, &config.session).await
    }
}
