//! Lends the memory that stored messages and keys do not use to messages in progress.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::delivery::Delivery;
use crate::memory::{MemoryBudget, MemoryPlan};
use crate::spool::Spool;
use crate::upstream::Upstream;

/// In this time only a small part of it can come into use.
const PERIOD: Duration = Duration::from_secs(1);

pub(super) async fn lend<U: Upstream>(
    plan: MemoryPlan,
    memory: MemoryBudget,
    delivery: Delivery<U>,
    stop: CancellationToken,
) {
    loop {
        let usage = delivery.spool().map(Spool::usage).unwrap_or_default();
        let stored = usage.queued.messages + usage.dead.messages + usage.receipts.messages;
        memory.lend(plan.unused(stored, delivery.keys().reserved as u64));
        if stop.run_until_cancelled(sleep(PERIOD)).await.is_none() {
            return;
        }
    }
}
