//! What an error code means and what an operator can do, for the page. What a code means for a
//! message is decided by [`answer::meaning`].

use crate::answer::{self, TransportError, Verdict};

/// What happened, and what to do: a sentence or two each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Explanation {
    pub(super) what: &'static str,
    pub(super) remedy: &'static str,
}

const fn explain(what: &'static str, remedy: &'static str) -> Explanation {
    Explanation { what, remedy }
}

/// For a transport error whose cause is known.
pub(super) const fn of_transport(error: TransportError) -> Explanation {
    explain(error.explanation(), error.remedy())
}

/// For a code or a transport error, as metrics name it.
pub(super) fn of(label: &str) -> Explanation {
    if let Some(error) = TransportError::ALL.into_iter().find(|error| error.as_str() == label) {
        return of_transport(error);
    }
    match answer::meaning(label) {
        Some(Verdict::Denied(denied)) => explain(denied.explanation(), denied.remedy()),
        Some(Verdict::Throttled { .. }) => explain(
            "The provider accepts fewer calls than tollgate makes.",
            "tollgate slows down by itself. If it persists, other clients use the account, or the \
             bought TPS is too small: lower ceilings.account, or buy more.",
        ),
        Some(Verdict::Refused) => explain(
            "The provider refuses this message.",
            "Correct the topic or the payload. The RequestId for the provider's support is in the problem \
             details of the request, and in the log line \"call failed\".",
        ),
        Some(Verdict::Failed) => explain(
            "The provider failed and did not accept the message.",
            "tollgate retries by itself. If it persists, see the provider's status page, then ask its \
             support with a RequestId from the log line \"call failed\" (one per code and minute).",
        ),
        Some(Verdict::Unknown) => explain(
            "It is not known whether the provider accepted the message.",
            "It is sent again, or becomes a dead letter, as retry.unknown says. Subscribers may get it \
             twice.",
        ),
        Some(Verdict::Delivered) | None => explain(
            "An error code that tollgate does not know.",
            "Look it up in the provider's documentation; retry.codes can set what it means.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::AccessDenied;

    #[test]
    fn explanations_follow_the_meaning() {
        for (label, what) in [
            ("SignatureDoesNotMatch", AccessDenied::Key.explanation()),
            ("PermissionCheckFailed", AccessDenied::Permission.explanation()),
            ("InvalidTimeStamp.Expired", AccessDenied::Clock.explanation()),
            ("Throttling.User", "The provider accepts fewer calls than tollgate makes."),
            ("http_429", "The provider accepts fewer calls than tollgate makes."),
            ("SendMessageFailed", "The provider failed and did not accept the message."),
            ("http_503", "It is not known whether the provider accepted the message."),
            ("empty_msgid", "It is not known whether the provider accepted the message."),
            ("timeout", TransportError::Timeout.explanation()),
            ("other", "An error code that tollgate does not know."),
            ("NotInTheTable", "An error code that tollgate does not know."),
        ] {
            assert_eq!(of(label).what, what, "{label}");
        }
    }
}
