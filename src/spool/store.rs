//! What lies behind the index and the queue: where a round of changes is written, and where bodies
//! are read from.

use std::sync::Arc;

use super::disk::Disk;
use super::frame::{Draft, Kind};
use super::index::{Entry, Spot};
use super::log::Log;
use super::record::Change;
use super::streams::{Owner, Streams};
use super::{KeepError, meta};
use crate::message::MessageId;

/// The most bytes of one round, but that one frame may be longer.
const ROUND: u64 = 4 * 1024 * 1024;
/// Redis does nothing else while it takes one: a millisecond or two.
const REDIS_ROUND: (u64, usize) = (256 * 1024, 128);

/// Where bodies are read from.
#[derive(Debug)]
pub(super) enum Store {
    /// Segments of the log.
    Disk(Arc<dyn Disk>),
    /// Redis.
    Redis(Arc<Streams>),
}

/// Where a round is written. Only the leader has it.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) end: End,
    /// Messages that may have been written although we said that they are not kept.
    pub(super) regrets: Vec<MessageId>,
}

/// What is written to.
#[derive(Debug)]
pub(super) enum End {
    /// The end of the log.
    Log(Log),
    /// Redis.
    Redis(Box<Owner>),
}

/// What has become of a frame that was written with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is durable, and lies here.
    At(Spot),
    /// There is no room for it.
    Full,
    /// Its message is no longer ours.
    TransportError,
}

impl Writer {
    pub(super) fn new(end: End) -> Self {
        Self { end, regrets: Vec::new() }
    }
}

impl Store {
    /// Who takes what is written, for the log.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Disk(_) => "the disk",
            Self::Redis(_) => "Redis",
        }
    }

    /// Bytes and operations of one round.
    pub(super) fn round(&self, segment: u64) -> (u64, usize) {
        match self {
            Self::Disk(_) => (ROUND.min(segment), usize::MAX),
            Self::Redis(_) => REDIS_ROUND,
        }
    }

    pub(super) fn refusal(&self, error: Arc<str>) -> KeepError {
        match self {
            Self::Disk(_) => KeepError::Disk(error),
            Self::Redis(_) => KeepError::Redis(error),
        }
    }

    /// The frame of a change; `entry` is the message after it.
    pub(super) fn draft(&self, id: MessageId, change: &Change, entry: &Entry) -> Draft {
        match (self, change) {
            (Self::Redis(_), Change::Forgotten) => Draft::bare(Kind::Forgotten, id),
            // A log is read from its beginning; Redis has the last word only.
            (Self::Redis(_), _) => meta::now(id, entry),
            (Self::Disk(_), _) => meta::change(id, change, entry),
        }
    }
}
