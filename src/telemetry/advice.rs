//! What to say of a call that did not deliver, and what a person can do: the only table of such
//! words. What a code means is [`answer::meaning`]'s to say.

use crate::answer::{self, AccessDenied, TransportError, Verdict};

/// What happened, and what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) words: &'static str,
    pub(super) todo: &'static str,
}

const fn advice(words: &'static str, todo: &'static str) -> Advice {
    Advice { words, todo }
}

/// For a code or a transport word, as metrics name it.
pub(super) fn of(label: &str) -> Advice {
    if let Some(lost) = TransportError::ALL.into_iter().find(|lost| lost.as_str() == label) {
        return of_lost(lost);
    }
    match answer::meaning(label) {
        Some(Verdict::Denied(bar)) => of_bar(bar),
        Some(Verdict::Throttled { .. }) => advice(
            "The provider takes fewer calls than we make.",
            "tollgate slows down by itself. If it stays: somebody else uses the account, or the \
             bought TPS is too small; lower ceilings.account or buy more.",
        ),
        Some(Verdict::Refused) => advice(
            "The provider refuses this message.",
            "Correct the topic or the payload; the log has the RequestId for the provider's support.",
        ),
        Some(Verdict::Failed) => advice(
            "The provider failed and did not take the message.",
            "tollgate tries again by itself. If it stays: the provider's status page, then its \
             support with a RequestId of the log.",
        ),
        Some(Verdict::Unknown) => advice(
            "The message may have been taken; nobody knows.",
            "It is sent again, or parked, as retry.unknown says. Subscribers may see it twice.",
        ),
        Some(Verdict::Delivered) | None => advice(
            "A code that tollgate does not know.",
            "Look it up at the provider's; retry.codes can say what it means.",
        ),
    }
}

/// For what keeps us out.
pub(super) const fn of_bar(bar: AccessDenied) -> Advice {
    match bar {
        AccessDenied::Key => advice(
            "The provider refuses our key.",
            "Check that the key is active and its secret right, and give tollgate the new one. \
             Delivery goes on by itself.",
        ),
        AccessDenied::Clock => advice(
            "The provider refuses our clock.",
            "Set this machine's clock (NTP). Delivery goes on by itself.",
        ),
        AccessDenied::Permission => advice(
            "The provider denies permission.",
            "Let a RAM policy allow the key's owner to publish to this instance and topic, and check \
             upstream.instance_id.",
        ),
        AccessDenied::Endpoint => advice(
            "The provider does not know the call.",
            "Check upstream.endpoint (region, https) and upstream.signature.",
        ),
    }
}

const fn of_lost(lost: TransportError) -> Advice {
    const NETWORK: &str =
        "Check network, proxy and firewall from here to upstream.endpoint. tollgate tries again.";
    const PERHAPS: &str = "Subscribers may see the message twice, as retry.unknown says. If it \
                           stays: the network, or upstream.call_timeout is too short.";
    match lost {
        TransportError::Resolve => advice(
            "The provider's name does not resolve.",
            "Check DNS and the host in upstream.endpoint. tollgate tries again.",
        ),
        TransportError::NoConnection => advice(
            "No connection became free in time.",
            "The provider answers slowly; if it stays, raise upstream.max_connections.",
        ),
        TransportError::Connect => advice("The provider cannot be reached.", NETWORK),
        TransportError::ConnectTimeout => advice("No connection opens in time.", NETWORK),
        TransportError::Tls => advice(
            "TLS with the provider fails.",
            "Check upstream.endpoint and upstream.roots, and whether a proxy stands between.",
        ),
        TransportError::Unwritten => advice(
            "A connection was gone before the call was written.",
            "Nothing, if it is rare: the call is made again.",
        ),
        TransportError::NoKey => advice(
            "There was no key to sign with.",
            "Give tollgate a key: see the section on the key.",
        ),
        TransportError::TooLate => advice(
            "Its caller's patience ended before the call was sent.",
            "Callers may wait longer (Prefer: wait=…), or publish less at once.",
        ),
        TransportError::NotText => advice(
            "A body is no UTF-8, and bodies are sent as they are.",
            "It was accepted when upstream.payload was base64: set it back, replay the dead letter.",
        ),
        TransportError::Closed => advice("The connection ended without an answer.", PERHAPS),
        TransportError::Timeout => advice("No answer came in time.", PERHAPS),
        TransportError::Garbled => advice(
            "What came is no answer of the provider's.",
            "Check upstream.endpoint, and whether a proxy stands between.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_follow_the_meaning() {
        for (label, words) in [
            ("SignatureDoesNotMatch", of_bar(AccessDenied::Key).words),
            ("PermissionCheckFailed", of_bar(AccessDenied::Permission).words),
            ("InvalidTimeStamp.Expired", of_bar(AccessDenied::Clock).words),
            ("Throttling.User", "The provider takes fewer calls than we make."),
            ("http_429", "The provider takes fewer calls than we make."),
            ("SendMessageFailed", "The provider failed and did not take the message."),
            ("http_503", "The message may have been taken; nobody knows."),
            ("empty_msgid", "The message may have been taken; nobody knows."),
            ("timeout", "No answer came in time."),
            ("other", "A code that tollgate does not know."),
            ("NobodyKnows", "A code that tollgate does not know."),
        ] {
            assert_eq!(of(label).words, words, "{label}");
        }
    }
}
