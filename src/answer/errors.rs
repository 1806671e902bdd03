//! Why a call has no answer, and why the provider rejects all calls: for each, its word in metrics
//! and logs, and the only sentences that explain it to people.

/// Why there is no answer, in the order in which a call proceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransportError {
    /// The endpoint's name did not resolve.
    Resolve,
    /// No connection of this egress address became free in time.
    NoConnection,
    /// The connection was refused, reset or unreachable.
    Connect,
    /// The connection did not open in time.
    ConnectTimeout,
    /// The TLS handshake failed.
    Tls,
    /// The connection was gone before the first byte of the request was written.
    Unwritten,
    /// There is no key to sign with.
    NoKey,
    /// Its caller's wait ended before it could be sent.
    TooLate,
    /// Its body is not UTF-8, and bodies are sent as text (`upstream.payload`): the message was
    /// accepted when they were not.
    NotText,
    /// Bytes were written, then the connection ended.
    Closed,
    /// Bytes were written, and no answer came in time.
    Timeout,
    /// The response is not HTTP, or is too large to be one of the provider's.
    Garbled,
}

impl TransportError {
    /// All, in order.
    pub const ALL: [Self; 12] = [
        Self::Resolve,
        Self::NoConnection,
        Self::Connect,
        Self::ConnectTimeout,
        Self::Tls,
        Self::Unwritten,
        Self::NoKey,
        Self::TooLate,
        Self::NotText,
        Self::Closed,
        Self::Timeout,
        Self::Garbled,
    ];

    /// Whether the provider cannot have seen the call.
    pub const fn nothing_sent(self) -> bool {
        !matches!(self, Self::Closed | Self::Timeout | Self::Garbled)
    }

    /// Its name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        self.row().0
    }

    /// What went wrong: one sentence.
    pub const fn explanation(self) -> &'static str {
        self.row().1
    }

    /// What the operator can do: one sentence.
    pub const fn remedy(self) -> &'static str {
        self.row().2
    }

    /// Name, explanation, remedy.
    const fn row(self) -> (&'static str, &'static str, &'static str) {
        const NETWORK: &str =
            "Check the network, proxy and firewall between tollgate and upstream.endpoint.";
        const SLOW: &str = "If it persists, check the network to the provider, and whether \
                            upstream.call_timeout is too short.";
        match self {
            Self::Resolve => (
                "resolve",
                "The provider's host name did not resolve.",
                "Check DNS and the host in upstream.endpoint.",
            ),
            Self::NoConnection => (
                "no_connection",
                "All connections to the provider were in use.",
                "The provider answers slowly; if it persists, raise upstream.max_connections.",
            ),
            Self::Connect => ("connect", "The connection to the provider failed.", NETWORK),
            Self::ConnectTimeout => {
                ("connect_timeout", "The connection to the provider did not open in time.", NETWORK)
            }
            Self::Tls => (
                "tls",
                "The TLS handshake with the provider failed.",
                "Check upstream.endpoint and upstream.roots, and whether a proxy is in between.",
            ),
            Self::Unwritten => (
                "unwritten",
                "The connection closed before the request was written.",
                "Nothing, if it is rare: tollgate makes the call again on another connection.",
            ),
            Self::NoKey => (
                "no_key",
                "There was no access key to sign with.",
                "Give tollgate a key (section [keys] of the configuration).",
            ),
            Self::TooLate => (
                "too_late",
                "The caller's wait expired before the call could be sent.",
                "Let callers wait longer (Prefer: wait=<seconds>), or publish less at once.",
            ),
            Self::NotText => (
                "not_text",
                "The body is not UTF-8, and upstream.payload sends bodies as text.",
                "Set upstream.payload back to base64 and replay the dead letter, or publish text.",
            ),
            Self::Closed => {
                ("closed", "The provider closed the connection without an answer.", SLOW)
            }
            Self::Timeout => ("timeout", "The provider did not answer in time.", SLOW),
            Self::Garbled => (
                "garbled",
                "The response is not a valid HTTP answer of the provider.",
                "Check upstream.endpoint, and whether a proxy is in between.",
            ),
        }
    }
}

/// Why the provider rejects all our calls, whatever the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessDenied {
    /// The access key, its secret or its token. A newer key may help.
    Key,
    /// Our clock. The provider's `Date` shows how far it is off.
    Clock,
    /// What the key's owner may do.
    Permission,
    /// The endpoint or what it supports.
    Endpoint,
}

impl AccessDenied {
    /// All, in the order in which they are reported.
    pub const ALL: [Self; 4] = [Self::Key, Self::Clock, Self::Permission, Self::Endpoint];

    /// Its name in logs.
    pub const fn as_str(self) -> &'static str {
        self.row().0
    }

    /// What is wrong: one sentence.
    pub const fn explanation(self) -> &'static str {
        self.row().1
    }

    /// What the operator can do: one sentence.
    pub const fn remedy(self) -> &'static str {
        self.row().2
    }

    /// Name, explanation, remedy.
    const fn row(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Key => (
                "key",
                "The provider rejects the access key.",
                "Check that the key is active and its secret correct, and give tollgate a valid one.",
            ),
            Self::Clock => (
                "clock",
                "The provider rejects this machine's clock.",
                "Set this machine's clock (NTP).",
            ),
            Self::Permission => (
                "permission",
                "The provider denies permission.",
                "Let a RAM policy allow the key's owner to publish (mq:SendMessage) to this instance \
                 and topic, and check upstream.instance_id.",
            ),
            Self::Endpoint => (
                "endpoint",
                "The provider's endpoint does not support the call.",
                "Check upstream.endpoint (region, https) and upstream.signature.",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_explained_in_whole_sentences() {
        let transport = TransportError::ALL.iter().map(|error| error.row());
        let denied = AccessDenied::ALL.iter().map(|denied| denied.row());
        for (name, explanation, remedy) in transport.chain(denied) {
            for sentence in [explanation, remedy] {
                let starts = sentence.starts_with(char::is_uppercase);
                assert!(starts && sentence.ends_with('.'), "{name}: {sentence}");
            }
        }
    }
}
