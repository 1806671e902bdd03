//! The caller of a fresh message: what it asked for, and its one response.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::idempotency::FirstRequest;
use super::outcome::Outcome;
use crate::spool::Claim;

/// Whether a caller has its message kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// Rather than that it is refused because of a ceiling.
    Preferred,
    /// Where its delivery fails, or takes longer than the caller waits.
    IfNotDelivered,
    /// Not at all: the caller learns what became of it, or that this is not known.
    Never,
}

/// What a caller asks for.
#[derive(Debug, Clone, Copy)]
pub struct PublishOptions {
    /// How long it waits for the outcome.
    pub patience: Duration,
    /// Whether its message may be kept.
    pub keep: Keeping,
    /// The claim of its `Idempotency-Key`.
    pub claim: Option<Claim>,
}

/// The caller of a message, and until when it waits.
pub(super) struct Caller {
    to: Option<oneshot::Sender<Outcome>>,
    is_refused: bool,
    pub(super) deadline: Instant,
    /// From when on no call for its message begins while it waits.
    pub(super) sends_by: Instant,
    /// Its key is taken as long as this is here.
    first: Option<FirstRequest>,
}

impl Caller {
    pub(super) fn new(
        to: oneshot::Sender<Outcome>,
        deadline: Instant,
        sends_by: Instant,
        first: Option<FirstRequest>,
    ) -> Self {
        Self { to: Some(to), is_refused: false, deadline, sends_by, first }
    }

    /// Responds at most once. If the message is accepted after the response, the next request with the
    /// same `Idempotency-Key` gets that outcome.
    pub(super) fn respond(&mut self, outcome: Outcome) {
        if outcome.holds_key()
            && let Some(first) = self.first.take()
        {
            first.answered(&outcome);
        }
        if let Some(to) = self.to.take() {
            self.is_refused = !outcome.is_accepted();
            // The caller may have hung up.
            drop(to.send(outcome));
        }
    }

    pub(super) fn is_answered(&self) -> bool {
        self.to.is_none()
    }

    /// Whether it was answered that its message is not accepted, or may not be.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused
    }
}
