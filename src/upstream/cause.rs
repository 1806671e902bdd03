//! Why a connection did not open: from the errors of the resolver, the kernel and rustls.

use std::io::{self, ErrorKind};

use rustls::{AlertDescription, CertificateError, PeerIncompatible};

use crate::answer::TransportError;

/// The lookup of a name failed.
pub(super) fn of_lookup(error: &io::Error) -> TransportError {
    match error.kind() {
        ErrorKind::TimedOut => TransportError::ResolverSilent,
        _ => TransportError::Resolve,
    }
}

/// A TCP connection did not open.
pub(super) fn of_tcp(error: &io::Error) -> TransportError {
    match error.kind() {
        ErrorKind::ConnectionRefused => TransportError::Refused,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => TransportError::Reset,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => {
            TransportError::Unreachable
        }
        ErrorKind::AddrNotAvailable => TransportError::SourceAddress,
        ErrorKind::TimedOut => TransportError::ConnectTimeout,
        _ => TransportError::Connect,
    }
}

/// A TLS handshake did not succeed.
pub(super) fn of_tls(error: &io::Error) -> TransportError {
    use rustls::Error;
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        // Not rustls: the other side, or a device on the way, ended the connection.
        return match error.kind() {
            ErrorKind::InvalidData => TransportError::Tls,
            _ => of_tcp(error),
        };
    };
    match error {
        Error::InvalidCertificate(error) => of_certificate(error),
        Error::AlertReceived(AlertDescription::ProtocolVersion)
        | Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => TransportError::TlsVersion,
        Error::InvalidMessage(_) => TransportError::NotTls,
        _ => TransportError::Tls,
    }
}

fn of_certificate(error: &CertificateError) -> TransportError {
    use CertificateError as Wrong;
    match error {
        Wrong::Expired | Wrong::ExpiredContext { .. } => TransportError::CertificateExpired,
        Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => {
            TransportError::CertificateNotYetValid
        }
        Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
            TransportError::CertificateName
        }
        Wrong::UnknownIssuer => TransportError::CertificateIssuer,
        _ => TransportError::Tls,
    }
}

#[cfg(test)]
mod tests {
    use rustls::InvalidMessage;

    use super::*;

    #[test]
    fn errors_of_the_kernel() {
        for (kind, cause) in [
            (ErrorKind::ConnectionRefused, TransportError::Refused),
            (ErrorKind::ConnectionReset, TransportError::Reset),
            (ErrorKind::HostUnreachable, TransportError::Unreachable),
            (ErrorKind::NetworkUnreachable, TransportError::Unreachable),
            (ErrorKind::AddrNotAvailable, TransportError::SourceAddress),
            (ErrorKind::TimedOut, TransportError::ConnectTimeout),
            (ErrorKind::PermissionDenied, TransportError::Connect),
        ] {
            assert_eq!(of_tcp(&io::Error::from(kind)), cause);
        }
        assert_eq!(of_lookup(&ErrorKind::TimedOut.into()), TransportError::ResolverSilent);
        assert_eq!(of_lookup(&ErrorKind::NotFound.into()), TransportError::Resolve);
    }

    #[test]
    fn errors_of_tls() {
        use rustls::Error;
        for (error, cause) in [
            (CertificateError::Expired.into(), TransportError::CertificateExpired),
            (CertificateError::NotValidYet.into(), TransportError::CertificateNotYetValid),
            (CertificateError::NotValidForName.into(), TransportError::CertificateName),
            (CertificateError::UnknownIssuer.into(), TransportError::CertificateIssuer),
            (CertificateError::BadSignature.into(), TransportError::Tls),
            (Error::AlertReceived(AlertDescription::ProtocolVersion), TransportError::TlsVersion),
            (
                Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13),
                TransportError::TlsVersion,
            ),
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), TransportError::NotTls),
            (Error::AlertReceived(AlertDescription::HandshakeFailure), TransportError::Tls),
        ] {
            assert_eq!(of_tls(&io::Error::new(ErrorKind::InvalidData, error)), cause);
        }
        let ended = io::Error::from(ErrorKind::UnexpectedEof);
        assert_eq!(of_tls(&ended), TransportError::Connect);
        assert_eq!(of_tls(&ErrorKind::ConnectionReset.into()), TransportError::Reset);
    }
}
