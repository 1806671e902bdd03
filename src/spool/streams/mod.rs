//! The store of a fleet: what sidecars of an account keep lies in Redis, and outlives them.
//!
//! **Exactly one owner.** A message is pending in the stream's consumer group for one consumer: its
//! owner. Every change to it is made by the script (`kept.lua`) in one step that looks whether the
//! owner still is the owner, so nothing that a former owner says counts. Calls are not made by Redis:
//!
//! 1. Each thing that an owner asks Redis moves its turn, at the latest every [`beat`](Times::beat).
//! 2. A peer takes its messages only after it has seen the turn stand still for [`silent`](Times::silent) by the
//!    peer's own monotonic clock, counted from when it first had seen this turn. The script takes
//!    them only if the turn is still this one.
//! 3. An owner begins calls only until [`silent`](Times::silent) − [`calls`](Times::calls) after it *sent* what moved its turn
//!    last, by its own monotonic clock; it looks again right before a call's bytes are written. The
//!    peer cannot have seen that turn before it was sent, and a call ends within `calls`.
//!
//! So this rests on: both clocks run equally fast, within a second in fifteen (what they show does
//! not matter, nor Redis's own clock); a call ends within `upstream.call_timeout`, at most 5 s in a
//! fleet; and Redis has one history. Where a fail-over or a restart takes back what was answered, the
//! turn is not the one that the owner knows: it makes no calls until it has asked anew what is its
//! own ([`Owner`](owner::Owner)). Not covered: a process that stands still for longer than all this
//! between its last look and the write of the bytes, some microseconds; a machine that is suspended
//! with its clock.

mod folder;
mod line;
mod owner;
mod peers;
mod reader;
mod told;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Share;
use super::index::Entry;
use super::store::Fate;
use crate::message::MessageId;
use line::Place;
pub(super) use line::Trouble;
pub(super) use owner::{Owner, grows};
use reader::Reader;
use told::Claimed;

/// How long things take. The same for all of an account, but in tests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// How often an owner says that it lives, and looks after the others.
    pub(super) beat: Duration,
    /// An owner that has said nothing for so long has lost its messages to whoever comes.
    pub(super) silent: Duration,
    /// So long before, it begins no more calls: the longest call of a fleet, and a second.
    pub(super) calls: Duration,
    /// Between two slices of what a dead one has left: others want some, too.
    pub(super) pace: Duration,
    /// How often is asked how Redis is configured: for so long may a 202 promise what holds no more.
    pub(super) config: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            beat: Duration::from_secs(2),
            silent: Duration::from_secs(15),
            calls: Duration::from_secs(6),
            pace: Duration::from_millis(100),
            config: Duration::from_secs(30),
        }
    }
}

/// How durable a message is that was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// On the disk, synced.
    #[default]
    Disk,
    /// In Redis's log, synced.
    RedisAofAlways,
    /// In Redis's log, synced within a second or two.
    RedisAofEverysec,
    /// In Redis's memory.
    RedisMemory,
}

impl Durability {
    /// In a word, as callers are told.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::RedisAofAlways => "redis-aof-always",
            Self::RedisAofEverysec => "redis-aof-everysec",
            Self::RedisMemory => "redis-memory",
        }
    }
}

/// What whoever writes to Redis and those who ask share.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) reader: Arc<Reader>,
    pub(super) times: Times,
    state: Mutex<State>,
    adopting: AtomicBool,
    /// Something was adopted, or this is the end.
    pub(super) adopted: Notify,
    /// There is more to take.
    more: Notify,
}

#[derive(Debug)]
struct State {
    /// Until when calls may begin; `None`: not now.
    owned_until: Option<Instant>,
    durability: Durability,
    /// What the account keeps, without receipts.
    account: Share,
    /// Taken over, and not handed out yet.
    adopted: Vec<MessageId>,
    closed: bool,
}

impl Streams {
    fn new(reader: Reader, times: Times) -> Self {
        let state = State {
            owned_until: None,
            // Until it is known, the weakest.
            durability: Durability::RedisMemory,
            account: Share::default(),
            adopted: Vec::new(),
            closed: false,
        };
        Self {
            reader: Arc::new(reader),
            times,
            state: Mutex::new(state),
            adopting: AtomicBool::new(false),
            adopted: Notify::new(),
            more: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was sent at this moment has moved our turn.
    fn renewed(&self, sent: Instant) {
        self.state().owned_until = Some(sent + self.times.silent.saturating_sub(self.times.calls));
    }

    fn lapsed(&self) {
        self.state().owned_until = None;
    }

    pub(super) fn owned_until(&self) -> Option<Instant> {
        self.state().owned_until
    }

    pub(super) fn durability(&self) -> Durability {
        self.state().durability
    }

    pub(super) fn account(&self) -> Share {
        self.state().account
    }

    pub(super) fn set_adopting(&self, adopting: bool) {
        self.adopting.store(adopting, Ordering::Relaxed);
    }

    fn is_adopting(&self) -> bool {
        self.adopting.load(Ordering::Relaxed)
    }

    fn adopts(&self, ids: Vec<MessageId>) {
        self.state().adopted.extend(ids);
        self.adopted.notify_one();
    }

    /// What was adopted since the last time; `None`: this is the end.
    pub(super) fn take_adopted(&self) -> Option<Vec<MessageId>> {
        let mut state = self.state();
        (!state.closed).then(|| std::mem::take(&mut state.adopted))
    }

    pub(super) fn close(&self) {
        self.set_adopting(false);
        self.state().closed = true;
        self.adopted.notify_one();
    }

    /// When it is time to see to things.
    pub(super) async fn beat(&self) {
        tokio::select! {
            () = tokio::time::sleep(self.times.beat) => {}
            () = self.more.notified() => tokio::time::sleep(self.times.pace).await,
        }
    }
}
