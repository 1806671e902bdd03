//! What lies behind the index and the queue: where a round of changes is written, and where bodies
//! are read from.

use std::sync::Arc;

use super::disk::Disk;
use super::index::Spot;
use super::log::Log;
use crate::message::MessageId;

/// Where bodies are read from.
#[derive(Debug)]
pub(super) enum Store {
    /// Segments of the log.
    Disk(Arc<dyn Disk>),
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
}

/// What has become of a frame that was written with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is durable, and lies here.
    At(Spot),
}

impl Writer {
    pub(super) fn new(end: End) -> Self {
        Self { end, regrets: Vec::new() }
    }
}
