//! What a backend may ask about the index and the queue, without changing either.

use std::collections::HashSet;
use std::sync::Arc;

use super::core::Core;
use super::entry::{Content, Entry};
use crate::message::MessageId;

/// Read-only access to the core.
#[derive(Debug, Clone)]
pub(super) struct IndexView(Arc<Core>);

impl IndexView {
    pub(super) fn new(core: &Arc<Core>) -> Self {
        Self(Arc::clone(core))
    }

    pub(super) fn contains(&self, id: MessageId) -> bool {
        self.0.index().get(id).is_some()
    }

    /// All messages, and what is stored of each.
    pub(super) fn all(&self) -> Vec<(MessageId, Content)> {
        self.0.index().after(None).map(|(id, entry)| (*id, entry.content())).collect()
    }

    /// Messages whose deletion is queued.
    pub(super) fn pending_deletions(&self) -> HashSet<MessageId> {
        self.0.queue().pending_deletions().collect()
    }

    /// Bytes of a segment that the index refers to.
    pub(super) fn live_bytes(&self, segment: u32) -> u64 {
        self.0.index().live_bytes(segment)
    }

    /// Bytes of all segments that the index refers to.
    pub(super) fn all_live_bytes(&self) -> u64 {
        self.0.index().all_live_bytes()
    }

    /// Messages whose record lies in the segment, until they have about so many bytes.
    pub(super) fn entries_in(&self, segment: u32, bytes: u64) -> Vec<(MessageId, Entry)> {
        self.0.index().entries_in(segment, bytes)
    }
}
