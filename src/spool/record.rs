//! What is kept of a message.

use jiff::Timestamp;

use crate::message::{Lane, Message, MessageId, Topic, TraceId};

/// Whether and how a message has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It is to be delivered.
    Queued {
        /// A call for it was about to leave when this was written: it may have arrived.
        calling: bool,
    },
    /// It will not be tried again unless somebody asks for it.
    Dead(Death),
    /// It was delivered.
    Delivered(Receipt),
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
    /// Nobody knows whether it was delivered, and its topic is not to be delivered twice.
    Unknown,
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
    /// Its caller was told 202 before: it stopped waiting.
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

/// A message that is kept, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Brief {
    /// Its name.
    pub id: MessageId,
    /// What it fails and recovers with.
    pub lane: Lane,
    /// Where it goes.
    pub topic: Topic,
    /// When it was kept.
    pub kept_at: Timestamp,
    /// Calls that were made for it.
    pub attempts: u32,
    /// The claim of its request.
    pub claim: Option<Claim>,
    /// Its caller's trace, if it has one.
    pub trace: Option<TraceId>,
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

/// What becomes of a kept message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A call for it is about to leave.
    Calling,
    /// A call was made and failed; so many were made in all.
    Tried(u32),
    /// It was delivered, with so many calls.
    Delivered(u32, Receipt),
    /// It will not be tried again, after so many calls.
    Dead(u32, Death),
    /// A dead letter is to be delivered after all, and is as young as a new message.
    Replayed(Timestamp),
    /// Nothing of it is kept.
    Forgotten,
}
