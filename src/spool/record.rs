//! What is kept of a message.

use jiff::Timestamp;

use crate::message::{CallerName, Expiry, Lane, Message, MessageId, Topic, Trace, Urgency};

/// Stands for the provider's words where damage has hit a record.
pub(super) const DAMAGED_CODE: &str = "damaged";

/// Whether and how a message has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It is to be delivered.
    Queued {
        /// A call for it was about to leave when this was written: it may have arrived.
        calling: bool,
    },
    /// It will not be tried again unless an operator replays it.
    Dead(Death),
    /// It was delivered.
    Delivered(Receipt),
    /// It was dropped at this moment. A message with a claim leaves this trace, so that the next request
    /// with its key is answered with it; so does a dead letter that tollgate dropped.
    Dropped(Timestamp),
    /// Its time to live has ended before it was delivered for certain.
    Expired(Expired),
}

impl State {
    /// When the message ended; `None`: it is to be delivered.
    pub fn ended_at(&self) -> Option<Timestamp> {
        match self {
            Self::Queued { .. } => None,
            Self::Dead(death) => Some(death.at),
            Self::Delivered(receipt) => Some(receipt.at),
            Self::Dropped(at) => Some(*at),
            Self::Expired(expired) => Some(expired.at),
        }
    }

    /// Whether the message has its body no more, and never comes back.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Delivered(_) | Self::Dropped(_) | Self::Expired(_))
    }
}

/// Why a message is no longer tried.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The provider refuses this message.
    Refused,
    /// It grew older than `retry.max_age`.
    Expired,
    /// A call may have delivered it, and tollgate makes no more calls for it (`retry.park`,
    /// `retry.unknown_tries`).
    Unknown,
}

impl Reason {
    /// Its word in logs, the API and `tollgate messages`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a dead letter was dropped without an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// It was a dead letter for `retry.keep_dead`.
    Age,
    /// A new message needed its room.
    Room,
}

impl DropReason {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Age, Self::Room];

    /// Its word in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Room => "room",
        }
    }
}

/// A dead letter's end.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Death {
    /// Why.
    pub reason: Reason,
    /// The provider's last code, or a transport word.
    pub code: Option<Box<str>>,
    /// The provider's last `RequestId`.
    pub request_id: Option<Box<str>>,
    /// When.
    pub at: Timestamp,
    /// Its caller was answered 202 before. Older records do not say so, and it was so.
    #[serde(default = "yes")]
    pub accepted: bool,
}

fn yes() -> bool {
    true
}

/// What is left of a delivered message for a while.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Receipt {
    /// The provider's `MsgId`.
    pub msg_id: Box<str>,
    /// The provider's `RequestId`.
    pub request_id: Box<str>,
    /// When.
    pub at: Timestamp,
    /// Its caller was answered 202 before: it stopped waiting.
    pub accepted: bool,
}

/// What is left for a while of a message whose time to live has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expired {
    /// When it was dropped.
    pub at: Timestamp,
    /// Its caller was answered 202 before: it stopped waiting.
    pub accepted: bool,
}

/// The claim that a request made with an `Idempotency-Key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Claim {
    /// A digest of the key.
    pub key: u128,
    /// A digest of the topic and the body.
    pub print: u128,
}

/// Calls that were made for a message.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tries {
    /// All of them.
    pub calls: u32,
    /// Those whose outcome is unknown.
    pub unknown: u32,
}

impl From<u32> for Tries {
    /// Calls of which each has failed for certain.
    fn from(calls: u32) -> Self {
        Self { calls, unknown: 0 }
    }
}

/// A message that is kept, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brief {
    /// The message's id, as its caller got it.
    pub id: MessageId,
    /// The messages with which it fails and recovers.
    pub lane: Lane,
    /// Where it goes.
    pub topic: Topic,
    /// Who has sent it; `None`: all callers are one.
    pub caller: Option<CallerName>,
    /// When it was kept.
    pub kept_at: Timestamp,
    /// Calls that were made for it.
    pub attempts: u32,
    /// Calls of these whose outcome is unknown; a replay starts at 0.
    pub unknown: u32,
    /// A call for it may have arrived, also before a replay.
    pub doubt: bool,
    /// The claim of its request.
    pub claim: Option<Claim>,
    /// Its trace, if it has one.
    pub trace: Option<Trace>,
    /// When its time to live ends, if it has one.
    pub expiry: Option<Expiry>,
    /// Its order among others.
    pub urgency: Urgency,
    /// Whether and how it has ended.
    pub state: State,
}

/// A message that is kept, whole. A delivered one has lost its bytes.
#[derive(Debug, Clone)]
pub struct Record {
    /// What was posted.
    pub message: Message,
    /// What became of it.
    pub brief: Brief,
}

/// Whether a call may have arrived of a message that was not delivered for certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// None may have.
    None,
    /// One may have.
    Possible,
}

impl Doubt {
    /// Of two calls, or of two sources that know of calls.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        if self == Self::None { other } else { self }
    }
}

impl From<bool> for Doubt {
    fn from(doubt: bool) -> Self {
        if doubt { Self::Possible } else { Self::None }
    }
}

impl From<Doubt> for bool {
    fn from(doubt: Doubt) -> Self {
        doubt == Doubt::Possible
    }
}

impl Change {
    /// Whether only a receipt is left of its message.
    pub(super) fn leaves_receipt(&self) -> bool {
        matches!(
            self,
            Self::Delivered(..)
                | Self::Dropped { .. }
                | Self::Expired { .. }
                | Self::Decided { .. }
        )
    }
}

/// What becomes of a kept message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A call for it is about to leave.
    Calling,
    /// A call was made, and the message was not delivered for certain; so many were made in all.
    Tried(Tries),
    /// It was delivered, with so many calls.
    Delivered(u32, Receipt),
    /// It will not be tried again, after so many calls.
    Dead(u32, Death),
    /// A dead letter is to be delivered after all, and is as young as a new message.
    Replayed(Timestamp),
    /// It was dropped: its bytes go, its claim stays.
    Dropped {
        /// When.
        at: Timestamp,
        /// A call that is not noted may have arrived.
        doubt: bool,
    },
    /// Its time to live has ended: its bytes go, its claim stays.
    Expired {
        /// When, and whether its caller had been answered.
        expired: Expired,
        /// A call that is not noted may have arrived.
        doubt: bool,
    },
    /// The call has ended that was under way when the message was dropped.
    Decided {
        /// It may have arrived, or another one.
        doubt: bool,
    },
    /// Nothing of it is kept.
    Forgotten,
}
