//! Why a call has no answer, and why the provider rejects all calls: for each, its word in metrics
//! and logs, and the only sentences that explain it to people.

/// Why there is no answer, in the order in which a call proceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransportError {
    /// The endpoint's name did not resolve.
    Resolve,
    /// The resolver did not answer.
    ResolverSilent,
    /// No connection of this egress address became free in time.
    NoConnection,
    /// The connection failed otherwise than by one of the next causes.
    Connect,
    /// The provider's address refused the connection.
    Refused,
    /// The connection was reset before it was ready.
    Reset,
    /// There is no route to the provider's address.
    Unreachable,
    /// Nothing can be sent to the provider from an address of `upstream.egress_addresses`.
    SourceAddress,
    /// No connection to the proxy of `upstream.proxy` opened.
    ProxyUnreachable,
    /// The proxy wants a user and password, or others.
    ProxyPassword,
    /// The proxy opened no connection to the provider.
    ProxyRefused,
    /// The connection did not open in time.
    ConnectTimeout,
    /// The TLS handshake failed otherwise than by one of the next causes.
    Tls,
    /// The server's certificate has expired.
    CertificateExpired,
    /// The server's certificate is not valid yet.
    CertificateNotYetValid,
    /// The server's certificate is for another host.
    CertificateName,
    /// No authority of `upstream.roots` has issued the server's certificate.
    CertificateIssuer,
    /// There is no version of TLS that both sides accept.
    TlsVersion,
    /// The server does not speak TLS.
    NotTls,
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
    pub const ALL: [Self; 26] = [
        Self::Resolve,
        Self::ResolverSilent,
        Self::NoConnection,
        Self::Connect,
        Self::Refused,
        Self::Reset,
        Self::Unreachable,
        Self::SourceAddress,
        Self::ProxyUnreachable,
        Self::ProxyPassword,
        Self::ProxyRefused,
        Self::ConnectTimeout,
        Self::Tls,
        Self::CertificateExpired,
        Self::CertificateNotYetValid,
        Self::CertificateName,
        Self::CertificateIssuer,
        Self::TlsVersion,
        Self::NotTls,
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

    /// Whether no connection opened: because of DNS, TCP or TLS.
    pub fn is_of_connection(self) -> bool {
        ["resolve", "connect", "connect_timeout", "tls"].contains(&self.as_str())
    }

    /// Its name in metrics and logs. The causes of one step share one; the first of them in
    /// [`ALL`](Self::ALL) is the general one.
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
    #[expect(clippy::too_many_lines, reason = "one table")]
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
            Self::ResolverSilent => (
                "resolve",
                "The DNS resolver did not answer when asked for the provider's host name.",
                "Check the resolver of this machine, and whether a network policy lets DNS through.",
            ),
            Self::NoConnection => (
                "no_connection",
                "All connections to the provider were in use.",
                "The provider answers slowly; if it persists, raise upstream.max_connections.",
            ),
            Self::Connect => ("connect", "The connection to the provider failed.", NETWORK),
            Self::Refused => (
                "connect",
                "The provider's address refused the connection.",
                "Check the host and port in upstream.endpoint, and the firewall on the way to it.",
            ),
            Self::Reset => (
                "connect",
                "The connection to the provider was reset before it was ready.",
                NETWORK,
            ),
            Self::Unreachable => {
                ("connect", "There is no route to the provider's address.", NETWORK)
            }
            Self::SourceAddress => (
                "connect",
                "No connection can be made from the source address to the provider.",
                "Check that upstream.egress_addresses are this pod's, and of the same family (IPv4 or \
                 IPv6) as the provider's addresses.",
            ),
            Self::ProxyUnreachable => (
                "connect",
                "No connection to the proxy could be opened.",
                "Check the host and port in upstream.proxy, and the network to the proxy.",
            ),
            Self::ProxyPassword => (
                "connect",
                "The proxy asks for a user and password.",
                "Write them into upstream.proxy: http://user:password@host:port.",
            ),
            Self::ProxyRefused => (
                "connect",
                "The proxy did not open a connection to the provider.",
                "Check that the proxy allows CONNECT to the host and port of upstream.endpoint.",
            ),
            Self::ConnectTimeout => {
                ("connect_timeout", "The connection to the provider did not open in time.", NETWORK)
            }
            Self::Tls => (
                "tls",
                "The TLS handshake with the provider failed.",
                "Check upstream.endpoint and upstream.roots, and whether a proxy is in between.",
            ),
            Self::CertificateExpired => (
                "tls",
                "The certificate of the provider's host has expired.",
                "Check this machine's clock, and which server upstream.endpoint leads to; otherwise that \
                 server needs a new certificate.",
            ),
            Self::CertificateNotYetValid => (
                "tls",
                "The certificate of the provider's host is not valid yet.",
                "Check this machine's clock, and which server upstream.endpoint leads to.",
            ),
            Self::CertificateName => (
                "tls",
                "The certificate of the server is not for the host name in upstream.endpoint.",
                "Check the host in upstream.endpoint, and whether DNS or a proxy leads to another server.",
            ),
            Self::CertificateIssuer => (
                "tls",
                "The certificate of the provider's host is from an unknown authority.",
                "Check whether a proxy intercepts TLS, and add its authority with upstream.roots.",
            ),
            Self::TlsVersion => (
                "tls",
                "The server and tollgate have no TLS version in common: tollgate has 1.2 and 1.3.",
                "Check which server upstream.endpoint leads to, and let it accept TLS 1.2 or newer.",
            ),
            Self::NotTls => (
                "tls",
                "The server answers without TLS.",
                "Check the scheme and port in upstream.endpoint, and whether a proxy is in between.",
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
                "The body is not UTF-8, and upstream.payload or a rule of upstream.payloads sends bodies as text.",
                "Set the encoding of its topic back to base64 and replay the dead letter, or publish text.",
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
