//! What a backend reports. It never changes the index itself: the core decides what follows.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use super::entry::{Content, Location};
use crate::message::MessageId;

/// Something that a backend found out while it worked.
#[derive(Debug)]
pub(super) enum Fact {
    /// A write that needed room became durable and took this long.
    Wrote(Duration),
    /// These messages belong to this process from now on, or are shown to an operator.
    TakenOver(Vec<StoredMessage>),
    /// Peers own these now.
    OwnedByPeers(Vec<MessageId>),
    /// The store has lost these.
    Vanished(Vec<MessageId>),
    /// The store may have older words on these: write what the index holds.
    Outdated(Vec<MessageId>),
    /// The record of a message lies elsewhere now.
    Moved { id: MessageId, from: Location, to: Location, content: Content },
    /// The record of a message is damaged.
    Damaged { id: MessageId, at: Location },
}

/// A message as a store holds it, without its body.
#[derive(Debug)]
pub(super) struct StoredMessage {
    pub(super) id: MessageId,
    pub(super) bytes: u32,
    /// The JSON of `meta`.
    pub(super) meta: Vec<u8>,
}

/// What became of one record of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteResult {
    /// It is durable, and lies here.
    Stored(Location),
    /// There is no room for it.
    Full,
    /// Its message belongs to a peer.
    NotOwned,
}

/// Why a whole batch was not written.
#[derive(Debug, Clone)]
pub(super) struct WriteError {
    pub(super) error: Arc<str>,
    pub(super) residue: Residue,
}

impl WriteError {
    pub(super) fn new(error: &dyn Display, residue: Residue) -> Self {
        Self { error: error.to_string().into(), residue }
    }
}

/// What a failed write may have left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Residue {
    /// Certainly nothing.
    None,
    /// A restart or a peer may find parts of it.
    Possible,
}

/// How a backend's work ended, and what it found out. The facts hold whatever the result is, and
/// are applied before the backend is called again.
#[derive(Debug)]
pub(super) struct Reported<T> {
    pub(super) facts: Vec<Fact>,
    pub(super) result: Result<T, WriteError>,
}

impl<T> Reported<T> {
    /// What was found out is in the result.
    pub(super) fn without_facts(result: Result<T, WriteError>) -> Self {
        Self { facts: Vec::new(), result }
    }
}

/// How far maintenance has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is nothing more to do now.
    Done,
    /// There is more to do at once.
    More,
    /// It failed, and is worth another try a second later.
    Later,
}
