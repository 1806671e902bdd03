//! What the lane of a message learns from one try, and whether the message waits for another.

use std::time::Duration;

use crate::answer::{AccessDenied, Answer, TransportError, Verdict};

/// How the provider treated a call, and so treats all messages of its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// The provider works: it took or refused the message.
    Works,
    /// The provider does not work, and may have asked to wait this long.
    Fails { retry_after: Option<Duration> },
    /// The provider does not let us in.
    Denied(AccessDenied),
    /// The provider has refused the key of this call, and the next has another one.
    OtherKey,
    /// No call was made.
    NoCall,
    /// No call was made; do not try again for this long.
    Postpone(Duration),
    /// No call was made: a budget is used up, perhaps that of its caller alone. It is not tried again for this long,
    /// and others of its lane may be.
    OverBudget(Duration),
}

/// Whether a message goes back into its lane after a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Requeue {
    Yes,
    No,
    /// It stays queued, and no lane has it.
    Hold(HoldReason),
}

/// Why no call is made for a message, whatever the provider does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HoldReason {
    /// `topics.allow` does not allow its topic.
    NotAllowed,
    /// Its body is not the one that was stored.
    Unverified,
}

impl Signal {
    pub(super) fn of(answer: &Answer) -> Self {
        match answer.verdict() {
            // The call did not leave.
            _ if matches!(
                answer,
                Answer::TransportError(TransportError::TooLate | TransportError::NotText)
            ) =>
            {
                Self::NoCall
            }
            Verdict::Delivered | Verdict::Refused => Self::Works,
            Verdict::Denied(_) if answer.has_other_key() => Self::OtherKey,
            Verdict::Denied(why) => Self::Denied(why),
            Verdict::Throttled { retry_after } => Self::Fails { retry_after },
            Verdict::Failed => Self::Fails { retry_after: None },
            Verdict::Unknown => Self::Fails { retry_after: answer.pause() },
        }
    }

    /// Whether no call left.
    pub(super) fn is_without_call(self) -> bool {
        matches!(self, Self::NoCall | Self::Postpone(_) | Self::OverBudget(_))
    }

    /// How long the provider asks us to wait before the next try; zero if it does not.
    pub(super) fn retry_after(self) -> Duration {
        match self {
            Self::Fails { retry_after } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        }
    }
}
