//! What became of a message, as far as its caller is concerned.

use std::time::Duration;

use crate::answer::{AccessDenied, Answer, HttpAnswer, Verdict};
use crate::ceiling::Refused;
use crate::message::MessageId;
use crate::meter::OverBudget;
use crate::spool::{Brief, Death, Doubt, Expired, KeepError, Reason, State};

/// What became of a message, and after how many calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Calls that were made for it.
    pub calls: u32,
    /// What became of it.
    pub ended: Disposition,
    /// The request of an earlier caller with the same key had this outcome.
    pub replayed: bool,
}

/// How a message ended, or what holds it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// The answer to its last call; its verdict is what the caller is answered.
    Answered(Answer),
    /// It is kept and will be delivered.
    Kept(MessageId),
    /// It was kept, and this is what became of it since.
    Settled(MessageId, Settled),
    /// A call may have delivered it. It is kept as a dead letter, since it is not to be sent again.
    Unresolved(MessageId),
    /// It was dropped before a call had delivered it for certain.
    Dropped {
        /// The message that was dropped.
        id: MessageId,
        /// A call may have delivered it.
        doubt: bool,
    },
    /// Its time to live has ended before a call had delivered it for certain.
    Expired {
        /// The message, if it was kept.
        id: Option<MessageId>,
        /// A call may have delivered it.
        doubt: bool,
    },
    /// It could not be kept, and nothing was sent.
    NotKept(KeepError),
    /// Nothing was sent: there was no permit in time.
    NoPermit(Refused),
    /// Nothing was sent: its topic is paused until a stored message is delivered, and it may not be stored.
    Paused,
    /// Nothing was sent: the provider does not let us in, and a probe finds out when it does.
    Denied(AccessDenied),
    /// Nothing was sent: a budget is used up.
    OverBudget(OverBudget),
    /// The caller's patience ended while a call was on its way, or before the disk finished: the outcome
    /// is not known yet.
    Unanswered,
    /// A request with the same key and another topic or body was made before.
    OtherRequest,
    /// The first request with the same key is being answered.
    SameUnderWay,
    /// As many keys are reserved as may be; the next one is free after this.
    TooManyKeys(Duration),
    /// Nothing was sent: no more calls are made.
    Stopping,
}

/// What became of a message that was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It was delivered.
    Delivered,
    /// It is a dead letter: it was not delivered for certain, or a call of it may have arrived and a
    /// later one was refused.
    Dead,
    /// It is a dead letter or has expired, and a call may have delivered it.
    Unknown,
    /// Its time to live has ended, and it was not delivered.
    Expired,
}

impl Outcome {
    pub(super) fn new(calls: u32, ended: Disposition) -> Self {
        Self { calls, ended, replayed: false }
    }

    /// It is kept, whatever becomes of it.
    pub(super) fn kept(id: MessageId) -> Self {
        Self::new(0, Disposition::Kept(id))
    }

    pub(super) fn dropped(id: MessageId, calls: u32, doubt: Doubt) -> Self {
        Self::new(calls, Disposition::Dropped { id, doubt: doubt.into() })
    }

    /// What became of a message as the spool knows it: the answer to a caller who asks now.
    pub(super) fn of(brief: &Brief) -> Self {
        let id = brief.id;
        let ended = match &brief.state {
            State::Queued { .. } => Disposition::Kept(id),
            State::Delivered(receipt) if receipt.accepted => {
                Disposition::Settled(id, Settled::Delivered)
            }
            State::Delivered(receipt) => Disposition::Answered(Answer::Http(HttpAnswer {
                status: 200,
                msg_id: Some(receipt.msg_id.clone().into()),
                request_id: Some(receipt.request_id.clone().into()),
                ..HttpAnswer::default()
            })),
            State::Dead(Death { reason: Reason::Unknown, accepted, .. }) => {
                if *accepted {
                    Disposition::Settled(id, Settled::Unknown)
                } else {
                    Disposition::Unresolved(id)
                }
            }
            State::Dead(_) => Disposition::Settled(id, Settled::Dead),
            State::Dropped(_) => Disposition::Dropped { id, doubt: brief.doubt },
            State::Expired(Expired { accepted: false, .. }) => {
                Disposition::Expired { id: Some(id), doubt: brief.doubt }
            }
            // As a reader of its receipt is told.
            State::Expired(_) if brief.unknown > 0 => Disposition::Settled(id, Settled::Unknown),
            State::Expired(_) => Disposition::Settled(id, Settled::Expired),
        };
        Self::new(brief.attempts, ended)
    }

    /// The kept message that it is about.
    pub fn id(&self) -> Option<MessageId> {
        match self.ended {
            Disposition::Kept(id)
            | Disposition::Settled(id, _)
            | Disposition::Unresolved(id)
            | Disposition::Dropped { id, .. } => Some(id),
            Disposition::Expired { id, .. } => id,
            _ => None,
        }
    }

    /// Whether the message is delivered, or ours.
    pub fn is_accepted(&self) -> bool {
        match &self.ended {
            Disposition::Answered(answer) => answer.verdict() == Verdict::Delivered,
            Disposition::Kept(_) | Disposition::Settled(..) => true,
            _ => false,
        }
    }

    /// Whether the next request with its key gets it again.
    pub(super) fn holds_key(&self) -> bool {
        self.is_accepted() || self.id().is_some()
    }
}
