//! What became of a message, as far as its caller is concerned.

use crate::answer::{Answer, Bar, Verdict};
use crate::ceiling::Refused;
use crate::message::MessageId;
use crate::meter::OverBudget;
use crate::spool::KeepError;

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Calls that were made for it.
    pub calls: u32,
    /// How it ended.
    pub ended: Ended,
    /// An earlier request with the same key was told so.
    pub replayed: bool,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The last answer decides; its verdict says what it means.
    Answered(Answer),
    /// It is kept and will be delivered.
    Kept(MessageId),
    /// It could not be kept, and nothing was sent.
    NotKept(KeepError),
    /// Nothing was sent: there was no permit in time.
    NoPermit(Refused),
    /// Nothing was sent: the provider does not let us in, and a probe finds out when it does.
    Barred(Bar),
    /// Nothing was sent: a budget is used up.
    OverBudget(OverBudget),
    /// The caller's patience ended while a call was on its way, or the disk did not answer: nobody
    /// knows yet.
    Unanswered,
    /// A request with the same key and another topic or body was made before.
    OtherRequest,
    /// The first request with the same key is being answered.
    SameUnderWay,
    /// As many keys are remembered as may be.
    TooManyKeys,
    /// Nothing was sent: no more calls are made.
    Stopping,
}

impl Outcome {
    pub(super) fn new(calls: u32, ended: Ended) -> Self {
        Self { calls, ended, replayed: false }
    }

    /// It is kept, whatever becomes of it.
    pub(super) fn kept(id: MessageId) -> Self {
        Self::new(0, Ended::Kept(id))
    }

    /// Whether the message is delivered, or ours to deliver.
    pub fn is_accepted(&self) -> bool {
        match &self.ended {
            Ended::Answered(answer) => answer.verdict() == Verdict::Delivered,
            Ended::Kept(_) => true,
            _ => false,
        }
    }
}
