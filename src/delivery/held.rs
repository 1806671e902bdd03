//! Stored messages that are held: they are queued, and no call is made for them. What holds them is a
//! rule of this sidecar and not the provider, so no lane waits for them, and none expires.

use std::sync::{Arc, PoisonError};

use tokio::task::yield_now;

use super::kept::KeptMessages;
use super::signal::HoldReason;
use crate::config::Topics;
use crate::message::{MessageId, Topic};
use crate::upstream::Upstream;

/// Messages that are held and looked at together.
const TOGETHER: usize = 256;

impl<U: Upstream> KeptMessages<U> {
    /// Whether a stored message of this topic may be sent now. Its instance is not looked at: this
    /// sidecar has chosen it, or has looked at it before it took the message over.
    pub(super) fn may_send(&self, topic: &Topic) -> bool {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).allows(topic)
    }

    /// Logs that a message is held.
    pub(super) fn log_held(&self, id: MessageId, reason: HoldReason) {
        let Some(suppressed) = self.held_log.next() else { return };
        let trace_id = self.trace(id).map(tracing::field::display);
        match reason {
            HoldReason::NotAllowed => {
                tracing::warn!(%id, trace_id, suppressed, "a stored message is held: topics.allow does not allow its topic; allow it, or drop the message (tollgate messages drop)");
            }
            HoldReason::Unverified => {
                tracing::error!(%id, trace_id, suppressed, "a stored message is held: Redis has another body for it than was stored; find out who can write to Redis (docs/shared-spool.md)");
            }
        }
    }

    /// Puts a message that was held into its lane, if it may be sent now.
    pub(super) fn release(&self, id: MessageId) {
        if let Some(brief) = self.queued(id).filter(|brief| self.may_send(&brief.topic)) {
            self.enqueue(&brief);
        }
    }

    /// Sends by this rule from now on. What is held goes back to its lane, if it may: a task looks at it.
    pub(super) fn allow(self: &Arc<Self>, topics: &Topics) {
        topics.clone_into(&mut self.topics.write().unwrap_or_else(PoisonError::into_inner));
        let kept = Arc::clone(self);
        tokio::spawn(async move {
            kept.each_held(|ids| ids.iter().for_each(|id| kept.release(*id))).await;
        });
    }

    /// Holds no more what is not queued any more: a peer has taken it over, or the store has lost it.
    pub(super) async fn release_gone(&self) {
        let is_queued = |id| self.queued(id).is_some();
        self.each_held(|ids| {
            // Most often there are none, and then the lanes do not wait for the spool's index.
            let gone: Vec<_> = ids.iter().copied().filter(|id| !is_queued(*id)).collect();
            if !gone.is_empty() {
                self.queue.remove_held(&gone, is_queued);
            }
        })
        .await;
    }

    /// Looks at what is held, some after the other, and lets other tasks run between.
    async fn each_held(&self, look: impl Fn(&[MessageId])) {
        let mut after = None;
        loop {
            let ids = self.queue.held_page(after, TOGETHER);
            let Some(last) = ids.last() else { return };
            after = Some(*last);
            look(&ids);
            yield_now().await;
        }
    }
}
