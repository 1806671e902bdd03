//! Whose messages these are, where several processes share a store: what the backend learns about
//! it, and what callers ask.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Share;
use super::adoption::{AdoptionRules, HeldCounts};
use crate::message::MessageId;

/// How durable a message is that was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// On the disk, synced, in a folder that outlives the pod.
    #[default]
    Disk,
    /// On the disk, synced, in a folder that is deleted with the pod.
    Pod,
    /// In Redis's log, synced.
    RedisAofAlways,
    /// In Redis's log, synced within a second or two.
    RedisAofEverysec,
    /// In Redis's memory.
    RedisMemory,
}

impl Durability {
    /// The word in responses and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Pod => "pod",
            Self::RedisAofAlways => "redis-aof-always",
            Self::RedisAofEverysec => "redis-aof-everysec",
            Self::RedisMemory => "redis-memory",
        }
    }
}

/// What this process owns of a shared store.
#[derive(Debug)]
pub(super) struct Ownership {
    state: Mutex<OwnershipState>,
    takes_over: AtomicBool,
    /// Wakes the task that takes up messages: there are some, or this is the end.
    taken_over: Notify,
    /// Wakes the heartbeat before its time: a dead peer has left more.
    more: Notify,
}

#[derive(Debug)]
struct OwnershipState {
    /// Until when calls may begin; `None`: not now.
    owned_until: Option<Instant>,
    durability: Durability,
    /// What the account keeps, without receipts.
    account: Share,
    /// Taken over, and not taken up yet.
    taken_over: Vec<MessageId>,
    /// What is taken over.
    rules: Arc<AdoptionRules>,
    /// Counts changes of the rules.
    rules_version: u64,
    /// What is not taken over of what dead peers have left.
    left: HeldCounts,
    closed: bool,
}

impl Ownership {
    pub(super) fn new(rules: AdoptionRules) -> Self {
        let state = OwnershipState {
            owned_until: None,
            // Until Redis's configuration is known, the weakest.
            durability: Durability::RedisMemory,
            account: Share::default(),
            taken_over: Vec::new(),
            rules: Arc::new(rules),
            rules_version: 0,
            left: HeldCounts::default(),
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            takes_over: AtomicBool::new(false),
            taken_over: Notify::new(),
            more: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, OwnershipState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn owned_until(&self) -> Option<Instant> {
        self.state().owned_until
    }

    /// `None`: no calls may begin.
    pub(super) fn set_owned_until(&self, until: Option<Instant>) {
        self.state().owned_until = until;
    }

    pub(super) fn durability(&self) -> Durability {
        self.state().durability
    }

    /// Returns what it was before.
    pub(super) fn set_durability(&self, durability: Durability) -> Durability {
        std::mem::replace(&mut self.state().durability, durability)
    }

    pub(super) fn account(&self) -> Share {
        self.state().account
    }

    pub(super) fn set_account(&self, account: Share) {
        self.state().account = account;
    }

    pub(super) fn start_taking_over(&self) {
        self.takes_over.store(true, Ordering::Relaxed);
    }

    pub(super) fn stop_taking_over(&self) {
        self.takes_over.store(false, Ordering::Relaxed);
    }

    /// Whether messages of dead peers are to be taken over.
    pub(super) fn takes_over(&self) -> bool {
        self.takes_over.load(Ordering::Relaxed)
    }

    pub(super) fn rules(&self) -> Arc<AdoptionRules> {
        Arc::clone(&self.state().rules)
    }

    /// Changes when what was left is to be looked at again.
    pub(super) fn rules_version(&self) -> u64 {
        self.state().rules_version
    }

    pub(super) fn set_rules(&self, rules: AdoptionRules) {
        let mut state = self.state();
        state.rules = Arc::new(rules);
        state.rules_version += 1;
    }

    pub(super) fn left(&self) -> HeldCounts {
        self.state().left
    }

    pub(super) fn set_left(&self, left: HeldCounts) {
        self.state().left = left;
    }

    pub(super) fn announce(&self, ids: Vec<MessageId>) {
        self.state().taken_over.extend(ids);
        self.taken_over.notify_one();
    }

    /// What was taken over since the last call.
    pub(super) fn drain(&self) -> Vec<MessageId> {
        std::mem::take(&mut self.state().taken_over)
    }

    /// What was taken over since the last call, at least one; `None`: there will be no more.
    pub(super) async fn next(&self) -> Option<Vec<MessageId>> {
        loop {
            let notified = self.taken_over.notified();
            {
                let mut state = self.state();
                if state.closed {
                    return None;
                }
                if !state.taken_over.is_empty() {
                    return Some(std::mem::take(&mut state.taken_over));
                }
            }
            notified.await;
        }
    }

    pub(super) fn close(&self) {
        self.stop_taking_over();
        self.state().closed = true;
        self.taken_over.notify_one();
    }

    /// Asks for the next page of what a dead peer has left.
    pub(super) fn ask_for_more(&self) {
        self.more.notify_one();
    }

    pub(super) async fn more(&self) {
        self.more.notified().await;
    }
}
