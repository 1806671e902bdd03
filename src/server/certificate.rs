//! The certificate that a listener shows, and the authorities of its clients', read again when their files
//! change.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::TlsFiles;
use crate::keys::{KeyError, read_blocking, read_text};
use crate::log_limiter::LogLimiter;

/// How often the files are compared.
const POLL: Duration = Duration::from_secs(5);
/// Log lines a second about certificates of clients that are refused.
const MOST_LINES: u64 = 5;

/// What the files say.
#[derive(Debug)]
pub(super) struct TlsTerms {
    pub(super) config: Arc<ServerConfig>,
    /// Verifies the certificates of clients, where those may show one.
    pub(super) clients: Option<Arc<dyn ClientCertVerifier>>,
}

/// What a listener speaks TLS by, from now on. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CurrentTls {
    terms: watch::Receiver<Arc<TlsTerms>>,
    /// Of clients that are refused.
    refused: Arc<LogLimiter>,
}

/// Certificate, key and authorities as files have them.
pub struct Certificates {
    files: TlsFiles,
    current: watch::Sender<Arc<TlsTerms>>,
    /// Of the files' contents.
    hash: [u8; 32],
    trouble: Option<String>,
}

type Read = (Arc<TlsTerms>, [u8; 32]);

impl CurrentTls {
    fn new(terms: watch::Receiver<Arc<TlsTerms>>) -> Self {
        Self { terms, refused: Arc::new(LogLimiter::new(MOST_LINES)) }
    }

    pub(super) fn terms(&self) -> Arc<TlsTerms> {
        Arc::clone(&self.terms.borrow())
    }

    /// Logs that the certificate of a client was refused: the client sees an alert at most.
    pub(super) fn refuse(&self, reason: &rustls::Error) {
        if let Some(suppressed) = self.refused.next() {
            tracing::warn!(%reason, suppressed, "the certificate of a client was refused");
        }
    }

    #[cfg(test)]
    pub(super) fn fixed(config: Arc<ServerConfig>) -> (watch::Sender<Arc<TlsTerms>>, Self) {
        let sender = watch::Sender::new(Arc::new(TlsTerms { config, clients: None }));
        let current = Self::new(sender.subscribe());
        (sender, current)
    }
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// One of them is missing or wrong, or they do not fit each other.
    pub async fn read(files: &TlsFiles) -> Result<Self, KeyError> {
        let unread = || {
            let why = "cannot be read".to_owned();
            KeyError::File { path: files.certificate.clone(), why }
        };
        let (terms, hash) = look(files, None).await?.ok_or_else(unread)?;
        let current = watch::Sender::new(terms);
        Ok(Self { files: files.clone(), current, hash, trouble: None })
    }

    /// What listeners are to speak by.
    pub fn current(&self) -> CurrentTls {
        CurrentTls::new(self.current.subscribe())
    }

    /// Compares the files until `stop`.
    pub async fn follow(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(sleep(POLL)).await.is_some() {
            self.compare().await;
        }
    }

    /// Compares the files. What does not fit keeps what was before: it may be half written.
    async fn compare(&mut self) {
        let error = match look(&self.files, Some(self.hash)).await {
            Ok(None) => None,
            Ok(Some((terms, hash))) => {
                self.hash = hash;
                self.current.send_replace(terms);
                tracing::info!("a new certificate is in use");
                None
            }
            Err(error) => Some(error.to_string()),
        };
        if error != self.trouble
            && let Some(error) = &error
        {
            tracing::warn!(error, "the new certificate cannot be used: the old one stays");
        }
        self.trouble = error;
    }
}

/// One look; `None`: the files are as they were.
async fn look(files: &TlsFiles, known: Option<[u8; 32]>) -> Result<Option<Read>, KeyError> {
    let owned = files.clone();
    read_blocking(&files.certificate, move || read(&owned, known)).await
}

fn read(files: &TlsFiles, known: Option<[u8; 32]>) -> Result<Option<Read>, KeyError> {
    let TlsFiles { certificate, key, client_ca } = files;
    let contents = |path: &Path| read_text(path, u16::MAX).map_err(|why| wrong(path, why));
    let (chain, secret) = (contents(certificate)?, contents(key)?);
    let authorities = client_ca.as_deref().map(|path| Ok((path, contents(path)?))).transpose()?;
    let mut hash = Sha256::new();
    for text in [&chain, &secret].into_iter().chain(authorities.iter().map(|(_, text)| text)) {
        hash.update(text.as_bytes());
    }
    let hash = hash.finalize().into();
    if known == Some(hash) {
        return Ok(None);
    }
    let chain = certificates(certificate, &chain)?;
    let secret = PrivateKeyDer::from_pem_slice(secret.as_bytes())
        .map_err(|error| wrong(key, error.to_string()))?;
    let clients = authorities.map(|(path, text)| verifier(path, &text)).transpose()?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(certificate, error.to_string()))?;
    let config = match &clients {
        Some(clients) => config.with_client_cert_verifier(Arc::clone(clients)),
        None => config.with_no_client_auth(),
    };
    let config = config
        .with_single_cert(chain, secret)
        .map_err(|error| wrong(certificate, error.to_string()))?;
    Ok(Some((Arc::new(TlsTerms { config: Arc::new(config), clients }), hash)))
}

/// Callers with a token need no certificate.
fn verifier(path: &Path, text: &str) -> Result<Arc<dyn ClientCertVerifier>, KeyError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path, text)? {
        roots.add(authority).map_err(|error| wrong(path, error.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build();
    verifier.map_err(|error| wrong(path, error.to_string()))
}

/// All certificates of a file, which has at least one.
fn certificates(path: &Path, text: &str) -> Result<Vec<CertificateDer<'static>>, KeyError> {
    let all = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(path, error.to_string()))?;
    if all.is_empty() {
        return Err(wrong(path, "holds no certificate".to_owned()));
    }
    Ok(all)
}

fn wrong(path: &Path, why: String) -> KeyError {
    KeyError::File { path: path.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use tracing::Level;

    use super::*;
    use crate::log_limiter::captured::capture;

    fn write(folder: &Path) {
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        std::fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
        std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
    }

    #[tokio::test]
    async fn a_certificate_is_read_again_and_one_that_cannot_be_used_changes_nothing() {
        let (log, _guard) = capture(Level::INFO);
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        write(folder.path());
        let (certificate, key) = (path("tls.crt"), path("tls.key"));
        let of = TlsFiles { certificate, key, client_ca: None };
        let mut files = Certificates::read(&of).await.unwrap();
        let mut current = files.current().terms;
        files.compare().await;
        assert!(!current.has_changed().unwrap(), "they are as they were");
        write(folder.path());
        files.compare().await;
        assert!(current.has_changed().unwrap());
        current.mark_unchanged();
        // Half of a pair, and nonsense.
        let old = std::fs::read(path("tls.key")).unwrap();
        write(folder.path());
        std::fs::write(path("tls.key"), old).unwrap();
        for text in [None, Some("hush"), Some("")] {
            if let Some(text) = text {
                std::fs::write(path("tls.crt"), text).unwrap();
            }
            files.compare().await;
            files.compare().await;
            assert!(!current.has_changed().unwrap(), "{text:?}");
        }
        std::fs::remove_file(path("tls.crt")).unwrap();
        files.compare().await;
        assert!(!current.has_changed().unwrap());
        let log = log.text();
        assert!(log.matches("the old one stays").count() >= 3, "{log}");
        assert!(!log.contains("hush"), "{log}");
        write(folder.path());
        files.compare().await;
        assert!(current.has_changed().unwrap(), "it is followed on");
    }
}
