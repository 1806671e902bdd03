//! The one entrance of messages that were kept before: those that a start finds, and those that a
//! sidecar takes over from a peer or finds again after it was cut off.

use std::sync::Weak;

use super::contained::contained;
use super::endings::death;
use super::idempotency::is_queued;
use super::kept::KeptMessages;
use crate::spool::{Adoptions, Brief, Reason};
use crate::upstream::Upstream;

impl<U: Upstream> KeptMessages<U> {
    /// Takes up what the spool holds at the start.
    pub(super) fn recover(&self) {
        let mut wanted = |brief: &Brief| is_queued(brief) || brief.claim.is_some();
        let found = self.spool.list(None, usize::MAX, &mut wanted);
        let messages = found.iter().filter(|brief| is_queued(brief)).count();
        if messages > 0 {
            tracing::info!(messages, "messages were left in the spool: delivering them");
        }
        self.take_up(&found);
    }

    /// Takes these up together; after a panic one by one, so that it costs no other message.
    pub(super) async fn adopt(&self, found: &[Brief]) {
        if contained(async { self.take_up(found) }).await.is_err() {
            for brief in found {
                drop(contained(async { self.take_up(std::slice::from_ref(brief)) }).await);
            }
        }
    }

    /// Remembers the keys of these messages, and delivers those that are queued. What is taken up
    /// again while it waits or is under way is delivered once.
    fn take_up(&self, found: &[Brief]) {
        self.keys.remember(found.iter().filter(|brief| brief.claim.is_some()).cloned().collect());
        let queued = found.iter().filter(|brief| is_queued(brief));
        let was_called =
            |brief: &&Brief| self.queue.was_called_by_other(brief.id, || self.find_state(brief.id));
        let (called, waits): (Vec<_>, Vec<_>) = queued.partition(was_called);
        // No lane hands out what is about to become a dead letter.
        self.queue.remove(&called.iter().map(|brief| brief.id).collect());
        for brief in called {
            // A call may have left, and the topic is not to be delivered twice. The ledger has
            // counted it, like all that were under way.
            let death = death(Reason::Unknown, None);
            drop(self.note_dead(brief.id, brief.attempts + 1, death, None));
        }
        for brief in waits {
            #[cfg(test)]
            super::tests::panics::at("takes up");
            // A call of a topic that may be delivered twice is not noted before its end.
            self.queue.taken_up(brief.id);
            self.enqueue(brief);
        }
    }
}

/// Takes up what the spool hands over, until the delivery is dropped.
pub(super) async fn adopt<U: Upstream>(kept: Weak<KeptMessages<U>>, mut adoptions: Adoptions) {
    while let Some(briefs) = adoptions.next().await {
        let Some(kept) = kept.upgrade() else { return };
        kept.adopt(&briefs).await;
    }
}
