//! Keys of roles for others: what a central holder hands out.

use super::Keys;
use super::error::KeyError;
use super::key::Key;
use super::sts::Sts;
use crate::config::{Endpoint, RoleSession};

/// Makes short-lived keys with a key that is kept fresh.
pub struct RoleIssuer {
    base: Keys,
    sts: Sts,
}

impl RoleIssuer {
    /// Nothing is fetched yet.
    pub fn new(base: Keys, endpoint: &Endpoint) -> Result<Self, KeyError> {
        Ok(Self { base, sts: Sts::new(endpoint)? })
    }

    /// The key that assumes roles.
    pub fn base(&self) -> &Keys {
        &self.base
    }

    /// A new key. Where the service refuses the base's as a key, and its source has another one, that is tried;
    /// any other failure would be the same with that.
    pub async fn issue(&self, session: &RoleSession) -> Result<Key, KeyError> {
        let base = self.base.current()?;
        let issued = self.sts.assume_role(&base, session).await;
        match issued {
            Err(KeyError::Refused { .. }) if self.base.refresh(&base).await => {
                let base = self.base.current()?;
                self.sts.assume_role(&base, session).await
            }
            issued => issued,
        }
    }
}
