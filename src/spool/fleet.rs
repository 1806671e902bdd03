//! What a spool can do that is shared with others: take over, retire, leave.

use std::sync::{Arc, Weak};

use tokio::time::Instant;

use super::Spool;
use super::adoption::AdoptionRules;
use super::facts::WriteError;
use super::ownership::{Durability, Ownership};
use super::record::Brief;
use super::writer::Engine;
use crate::config::Lifetime;

/// Messages that this sidecar takes over from others, as it does.
#[derive(Debug)]
pub struct Adoptions {
    engine: Weak<Engine>,
    ownership: Arc<Ownership>,
    begun: bool,
}

impl Adoptions {
    /// The next ones; `None`: there will be no more. Nothing is taken over from peers before the
    /// first call.
    pub async fn next(&mut self) -> Option<Vec<Brief>> {
        if !std::mem::replace(&mut self.begun, true) {
            self.ownership.start_taking_over();
        }
        let ids = self.ownership.next().await?;
        let engine = self.engine.upgrade()?;
        let index = engine.core.index();
        Some(ids.iter().filter_map(|id| Some(index.get(*id)?.brief(*id))).collect())
    }
}

/// Messages that were kept here may belong to peers now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("other sidecars may have taken over the messages of this one")]
pub struct NotOurs;

impl Spool {
    fn ownership(&self) -> Option<&Arc<Ownership>> {
        self.engine.core.ownership.as_ref()
    }

    /// What is taken over from others; `None`: no other process shares this spool.
    pub fn adoptions(&self) -> Option<Adoptions> {
        let ownership = Arc::clone(self.ownership()?);
        Some(Adoptions { engine: Arc::downgrade(&self.engine), ownership, begun: false })
    }

    /// Takes over by these rules from now on, also of what was left before.
    pub fn adopt_by(&self, rules: AdoptionRules) {
        if let Some(ownership) = self.ownership() {
            ownership.set_rules(rules);
            self.engine.wake();
        }
    }

    /// Takes nothing over any more.
    pub fn retire(&self) {
        if let Some(ownership) = self.ownership() {
            ownership.stop_taking_over();
        }
    }

    /// Whether calls for kept messages may begin, and until when: after that, peers may have taken
    /// them over.
    pub fn is_ours(&self) -> Result<Option<Instant>, NotOurs> {
        let Some(ownership) = self.ownership() else { return Ok(None) };
        match ownership.owned_until() {
            Some(until) if Instant::now() < until => Ok(Some(until)),
            _ => Err(NotOurs),
        }
    }

    /// How durable what is kept now is.
    pub fn durability(&self) -> Durability {
        match (self.ownership(), self.engine.core.options.lifetime) {
            (Some(ownership), _) => ownership.durability(),
            (None, Lifetime::Pod) => Durability::Pod,
            (None, Lifetime::Volume) => Durability::Disk,
        }
    }

    /// Accepted messages that would be lost if the pod were deleted now: queued ones and dead letters in a
    /// folder that ends with it.
    pub fn at_risk(&self) -> u64 {
        match self.durability() {
            Durability::Pod => {
                let usage = self.usage();
                usage.queued.messages + usage.dead.messages
            }
            _ => 0,
        }
    }

    /// Writes what waits, and leaves the rest to the peers at once. On a disk all stays.
    pub async fn close(&self) {
        let Some(ownership) = self.ownership() else { return };
        ownership.close();
        self.flush().await;
        let engine = Arc::clone(&self.engine);
        let left = async move { engine.backend.leave(&engine.view).await };
        if let Err(WriteError { error, .. }) = self.engine.run(Box::pin(left)).await {
            tracing::warn!(%error, "Redis did not record the stop: the other sidecars take over the stored messages about 15 s later");
        }
    }
}
