//! The task that ends dead letters: it drops those that are old, and records in the audit log which it
//! has dropped and which have given way to new messages. It also ends the hold of messages that are gone.

use std::sync::Weak;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use super::contained::contained;
use super::kept::KeptMessages;
use crate::spool::{Affected, DropReason, Spool};
use crate::upstream::Upstream;

/// Between two passes: the audit log has at most one line of each reason in this time, and one for each
/// page of old dead letters.
pub(super) const PAUSE: Duration = Duration::from_secs(10);

/// Ends dead letters until the delivery is dropped or stops.
pub(super) async fn run<U: Upstream>(kept: Weak<KeptMessages<U>>) {
    loop {
        let Some(stop) = kept.upgrade().map(|kept| kept.dispatcher.stop.clone()) else { return };
        // A panic costs one pass.
        drop(contained(pass(&kept)).await);
        if stop.run_until_cancelled(sleep(PAUSE)).await.is_none() {
            return;
        }
    }
}

async fn pass<U: Upstream>(kept: &Weak<KeptMessages<U>>) {
    if let Some(kept) = kept.upgrade() {
        kept.release_gone().await;
    }
    while let Some((spool, keep)) = kept.upgrade().and_then(|kept| {
        let goes_on = !kept.dispatcher.stop.is_cancelled();
        goes_on.then(|| (kept.spool.clone(), kept.queue.retry().keep_dead))
    }) {
        record_given_way(&spool);
        // One page after the other: what the store has not taken does not pile up.
        let dropped = spool.drop_dead_since(keep, Timestamp::now()).await;
        if dropped.messages == 0 {
            return;
        }
        record(DropReason::Age, &dropped);
    }
}

/// Records in the audit log which dead letters have given way to new messages.
pub(super) fn record_given_way(spool: &Spool) {
    record(DropReason::Room, &spool.take_given_way());
}

fn record(reason: DropReason, dropped: &Affected) {
    if dropped.messages == 0 {
        return;
    }
    let why = match reason {
        DropReason::Age => "they are older than retry.keep_dead",
        DropReason::Room => "new messages needed their room (spool.max_bytes, spool.max_messages)",
    };
    tracing::warn!(
        target: "tollgate::audit",
        verb = "expire",
        reason = reason.as_str(),
        why,
        messages = dropped.messages,
        ids = dropped.ids(),
        "audit: dead letters were dropped: they will not be delivered, and cannot be replayed"
    );
}
