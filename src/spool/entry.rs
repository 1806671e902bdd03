//! What is known of one message.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use super::Share;
use super::destination::Destination;
use super::record::{
    Brief, Change, Claim, DAMAGED_CODE, Death, Expired, Reason, Receipt, Record, State,
};
use crate::message::{
    Expiry, Lifespan, Message, MessageId, Payload, PayloadForm, Terms, Trace, Urgency,
};

/// Where a frame lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) segment: u32,
    pub(super) offset: u32,
    pub(super) len: u32,
}

/// One message. There may be many: this is small.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) destination: Arc<Destination>,
    pub(super) kept_at: Timestamp,
    pub(super) attempts: u32,
    /// Calls whose outcome is unknown.
    pub(super) unknown: u32,
    /// A call for it may have arrived.
    pub(super) doubt: bool,
    /// The bytes it takes, as soon as all that was noted is durable.
    pub(super) size: u32,
    pub(super) location: Location,
    pub(super) claim: Option<Box<Claim>>,
    pub(super) trace: Option<Box<Trace>>,
    /// What its body is.
    pub(super) form: PayloadForm,
    /// When its time to live ends.
    pub(super) expiry: Option<Box<Expiry>>,
    pub(super) urgency: Urgency,
    /// The digest of its body, where records have MACs.
    pub(super) digest: Option<Box<[u8; 32]>>,
    pub(super) stage: Stage,
}

/// [`State`], small.
#[derive(Debug, Clone)]
pub(super) enum Stage {
    Queued { calling: bool },
    Dead(Box<Death>),
    Delivered(Box<Receipt>),
    Dropped(Box<Timestamp>),
    Expired(Box<Expired>),
}

impl Entry {
    /// A message that nothing has happened to yet.
    pub(super) fn new(destination: Arc<Destination>, kept_at: Timestamp) -> Self {
        Self {
            destination,
            kept_at,
            attempts: 0,
            unknown: 0,
            doubt: false,
            size: 0,
            location: Location { segment: 0, offset: 0, len: 0 },
            claim: None,
            trace: None,
            form: PayloadForm::Body,
            expiry: None,
            urgency: Urgency::default(),
            digest: None,
            stage: Stage::Queued { calling: false },
        }
    }

    /// The message as callers see it.
    pub(super) fn brief(&self, id: MessageId) -> Brief {
        Brief {
            id,
            lane: self.destination.lane.clone(),
            topic: self.destination.topic.clone(),
            caller: self.destination.caller.clone(),
            kept_at: self.kept_at,
            attempts: self.attempts,
            unknown: self.unknown,
            doubt: self.doubt,
            claim: self.claim.as_deref().copied(),
            trace: self.trace.as_deref().copied(),
            expiry: self.expiry.as_deref().copied(),
            urgency: self.urgency,
            state: match &self.stage {
                Stage::Queued { calling } => State::Queued { calling: *calling },
                Stage::Dead(death) => State::Dead(Death::clone(death)),
                Stage::Delivered(receipt) => State::Delivered(Receipt::clone(receipt)),
                Stage::Dropped(at) => State::Dropped(**at),
                Stage::Expired(expired) => State::Expired(**expired),
            },
        }
    }

    /// The message, with its body where it still has one.
    pub(super) fn record(&self, id: MessageId, body: Bytes) -> Record {
        let lifespan = self.expiry.as_deref().map_or(Lifespan::Unlimited, |e| Lifespan::Until(*e));
        let message = Message {
            id,
            instance: self.destination.lane.instance.clone(),
            topic: self.destination.topic.clone(),
            payload: Payload::kept(body, self.form),
            caller: self.destination.caller.clone(),
            trace: self.trace.as_deref().copied(),
            terms: Terms { lifespan, urgency: self.urgency },
        };
        Record { message, brief: self.brief(id) }
    }

    /// What the store holds of the message, as soon as all that was noted is durable.
    pub(super) fn content(&self) -> Content {
        if self.is_receipt() { Content::Receipt } else { Content::Message }
    }

    /// Whether only a receipt is left: of a message that was delivered or dropped, or has expired.
    pub(super) fn is_receipt(&self) -> bool {
        matches!(self.stage, Stage::Delivered(_) | Stage::Dropped(_) | Stage::Expired(_))
    }

    /// When the message ended; of one that is queued, when it was kept.
    pub(super) fn ended_at(&self) -> Timestamp {
        match &self.stage {
            Stage::Queued { .. } => self.kept_at,
            Stage::Dead(death) => death.at,
            Stage::Delivered(receipt) => receipt.at,
            Stage::Dropped(at) => **at,
            Stage::Expired(expired) => expired.at,
        }
    }

    /// What it takes of the spool.
    pub(super) fn share(&self) -> Share {
        Share { messages: 1, bytes: self.size.into() }
    }

    /// Whether `change` says anything new to a message in this stage. An end is final, but for a
    /// dead letter's; and a call that was under way when its message was dropped decides what became
    /// of it.
    pub(super) fn takes(&self, change: &Change) -> bool {
        match (&self.stage, change) {
            (Stage::Queued { .. }, Change::Replayed(_))
            | (Stage::Dead(_), Change::Calling | Change::Tried(_) | Change::Expired { .. })
            | (Stage::Queued { .. } | Stage::Dead(_), Change::Decided { .. })
            | (Stage::Delivered(_), _) => false,
            (Stage::Dropped(_) | Stage::Expired(_), change) => {
                matches!(change, Change::Delivered(..) | Change::Decided { .. })
            }
            (Stage::Queued { .. } | Stage::Dead(_), _) => true,
        }
    }

    /// Whether a call may have arrived of a message that ends in this stage.
    fn leaves_doubt(&self) -> bool {
        match &self.stage {
            Stage::Queued { calling } => *calling,
            Stage::Dead(death) => death.reason == Reason::Unknown,
            Stage::Delivered(_) | Stage::Dropped(_) | Stage::Expired(_) => false,
        }
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Calling => self.stage = Stage::Queued { calling: true },
            Change::Tried(tries) => {
                (self.attempts, self.unknown) = (tries.calls, tries.unknown);
                self.doubt |= tries.unknown > 0;
                self.stage = Stage::Queued { calling: false };
            }
            Change::Delivered(attempts, receipt) => {
                self.attempts = *attempts;
                self.stage = Stage::Delivered(Box::new(receipt.clone()));
            }
            Change::Dead(attempts, death) => {
                self.attempts = *attempts;
                // Of what damage has hit, only the record is in doubt.
                let damaged = death.code.as_deref() == Some(DAMAGED_CODE);
                self.doubt |= death.reason == Reason::Unknown && !damaged;
                self.stage = Stage::Dead(Box::new(death.clone()));
            }
            Change::Replayed(at) => {
                (self.kept_at, self.unknown) = (*at, 0);
                self.stage = Stage::Queued { calling: false };
            }
            Change::Dropped { at, doubt } => {
                self.doubt |= *doubt || self.leaves_doubt();
                self.stage = Stage::Dropped(Box::new(*at));
            }
            Change::Expired { expired, doubt } => {
                self.doubt |= *doubt || self.leaves_doubt();
                self.stage = Stage::Expired(Box::new(*expired));
            }
            Change::Decided { doubt } => self.doubt = *doubt,
            Change::Forgotten => {}
        }
    }
}

/// What a record holds that says all about its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// The message with its body.
    Message,
    /// The receipt that is left of it.
    Receipt,
}
