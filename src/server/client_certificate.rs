//! The certificate that a client has shown over TLS, and what it proves.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::EndEntityCert;

use super::certificate::{CurrentTls, TlsTerms};

/// Names of a certificate that are looked at, of each kind: a service's has one or two.
const MOST_NAMES: usize = 16;
/// A connection may live for days, and its client's certificate may end, or its authority go, before it does: it is
/// verified again after so long, and whenever the authorities are read anew.
const VERIFIED_FOR: Duration = Duration::from_mins(1);

/// The names that the verified certificate of a connection proves, as an extension of its requests: DNS names in
/// small letters, and URIs. None where it is not valid any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerNames(Arc<[Box<str>]>);

impl PeerNames {
    /// All of them.
    pub fn all(&self) -> &[Box<str>] {
        &self.0
    }
}

/// What the client of one connection has shown. The handshake, which the first read makes, sets it for the requests
/// that come after.
#[derive(Debug, Clone)]
pub(super) struct ClientCertificate(Arc<ClientProof>);

#[derive(Debug)]
struct ClientProof {
    current: CurrentTls,
    shown: OnceLock<ShownCertificate>,
}

#[derive(Debug)]
struct ShownCertificate {
    chain: Vec<CertificateDer<'static>>,
    names: PeerNames,
    verified: Mutex<Option<Verified>>,
}

/// When a certificate was last verified, and by what.
#[derive(Debug)]
struct Verified {
    by: Arc<TlsTerms>,
    at: UnixTime,
}

impl ClientCertificate {
    /// For a new connection, if clients may show one.
    pub(super) fn awaited(tls: &CurrentTls) -> Option<Self> {
        let proof = || ClientProof { current: tls.clone(), shown: OnceLock::new() };
        tls.terms().clients.is_some().then(|| Self(Arc::new(proof())))
    }

    /// Sets the chain that the client has shown in its handshake, which has verified it. A handshake that resumes a
    /// session has not, so that the first request verifies it as well.
    pub(super) fn show(&self, chain: &[CertificateDer<'_>]) {
        let chain: Vec<_> = chain.iter().map(|part| part.clone().into_owned()).collect();
        let names = chain.first().map(names).unwrap_or_default();
        let (names, verified) = (PeerNames(names.into()), Mutex::new(None));
        // There is one handshake.
        drop(self.0.shown.set(ShownCertificate { chain, names, verified }));
    }

    /// What it proves now; `None`: the client has shown none.
    pub(super) fn names(&self, now: UnixTime) -> Option<PeerNames> {
        let shown = self.0.shown.get()?;
        match shown.verify(self.0.current.terms(), now) {
            Ok(()) => Some(shown.names.clone()),
            Err(reason) => {
                self.0.current.refuse(&reason);
                Some(PeerNames([].into()))
            }
        }
    }
}

impl ShownCertificate {
    fn verify(&self, by: Arc<TlsTerms>, now: UnixTime) -> Result<(), rustls::Error> {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        let is_recent = verified.as_ref().is_some_and(|before| {
            let age = now.as_secs().abs_diff(before.at.as_secs());
            Arc::ptr_eq(&before.by, &by) && age < VERIFIED_FOR.as_secs()
        });
        if is_recent {
            return Ok(());
        }
        *verified = None;
        let (Some(clients), [own, intermediates @ ..]) = (&by.clients, &*self.chain) else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        clients.verify_client_cert(own, intermediates, now)?;
        *verified = Some(Verified { by, at: now });
        Ok(())
    }
}

/// The names of a certificate. A URI without a colon is none, and could be taken for a DNS name.
fn names(certificate: &CertificateDer<'_>) -> Vec<Box<str>> {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return Vec::new() };
    let dns = certificate.valid_dns_names().take(MOST_NAMES);
    let uris = certificate.valid_uri_names().take(MOST_NAMES).filter(|uri| uri.contains(':'));
    dns.map(|name| name.to_ascii_lowercase().into()).chain(uris.map(Into::into)).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
    };
    use tempfile::TempDir;

    use super::super::certificate::Certificates;
    use super::*;
    use crate::config::TlsFiles;

    /// What a connection has shown proves nothing once its time is over, and is not verified for each request.
    #[tokio::test]
    async fn a_certificate_that_ends_while_its_connection_is_open() {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new([]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = authority.self_signed(&key).unwrap();
        std::fs::write(path("crt"), own.pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        let issuer = Issuer::new(authority, key);
        let (certificate, key) = (path("crt"), path("key"));
        let files = TlsFiles { client_ca: Some(certificate.clone()), certificate, key };
        let certificates = Certificates::read(&files).await.unwrap();

        let mut client = CertificateParams::new(["A.Svc".to_owned()]).unwrap();
        client.subject_alt_names.push(SanType::URI("spiffe://c/A".try_into().unwrap()));
        client.subject_alt_names.push(SanType::URI("b.svc".try_into().unwrap()));
        client.not_after = date_time_ymd(2026, 1, 1);
        let client = client.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        let at = |seconds: u64| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let end = 1_767_225_600;

        let shown = ClientCertificate::awaited(&certificates.current()).unwrap();
        assert_eq!(shown.names(at(end - 100)), None, "there was no handshake");
        shown.show(&[client.der().clone()]);
        let names = |seconds| {
            let names = shown.names(at(seconds)).unwrap();
            names.all().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let all = ["a.svc", "spiffe://c/A"];
        assert_eq!(names(end - 30), all);
        assert_eq!(names(end + 20), all, "it was verified a moment ago");
        assert!(names(end + 31).is_empty());
        assert!(names(end + 32).is_empty());
        assert_eq!(names(end - 10), all);
    }
}
