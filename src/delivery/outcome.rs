//! What became of a message, as far as its caller is concerned.

use crate::answer::Answer;
use crate::ceiling::Refused;

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Calls that were made for it.
    pub calls: u32,
    /// How it ended.
    pub ended: Ended,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The last answer decides; its verdict says what it means.
    Answered(Answer),
    /// Nothing was sent: there was no permit in time.
    NoPermit(Refused),
    /// The caller's patience ended while a call was on its way: nobody knows yet.
    Unanswered,
}

impl Outcome {
    pub(super) fn new(calls: u32, ended: Ended) -> Self {
        Self { calls, ended }
    }
}
