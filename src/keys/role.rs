//! The key of a role that another source's key may assume.

use super::boxed::BoxedSource;
use super::error::KeyError;
use super::key::Key;
use super::source::{Pace, Source};
use super::sts::Sts;
use crate::config::{Endpoint, RoleSession};

/// A role, and where the key comes from that assumes it.
pub struct AssumedRole {
    base: BoxedSource,
    sts: Sts,
    session: RoleSession,
}

impl AssumedRole {
    /// Nothing is fetched yet.
    pub(super) fn new(
        base: BoxedSource,
        endpoint: &Endpoint,
        session: RoleSession,
    ) -> Result<Self, KeyError> {
        Ok(Self { base, sts: Sts::new(endpoint)?, session })
    }
}

impl Source for AssumedRole {
    fn as_str(&self) -> &'static str {
        "role"
    }

    fn place(&self) -> String {
        self.sts.place()
    }

    fn pace(&self) -> Pace {
        Pace::BeforeExpiry
    }

    /// The base's key is fetched anew each time: it is not kept in memory between renewals.
    async fn load(&mut self) -> Result<Key, KeyError> {
        let base = self.base.load().await?;
        self.sts.assume_role(&base, &self.session).await
    }
}
