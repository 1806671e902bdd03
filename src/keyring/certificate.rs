//! The certificate that the keyring shows, read again when its files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::KeyringError;
use crate::keys::{KeyError, read_blocking, read_text};

/// How often the files are compared.
const POLL: Duration = Duration::from_secs(5);

/// Certificate and key as files have them.
pub(super) struct Certificates {
    certificate: PathBuf,
    key: PathBuf,
    current: watch::Sender<Arc<ServerConfig>>,
    /// Of the files' contents.
    hash: [u8; 32],
    trouble: Option<String>,
}

type Read = (Arc<ServerConfig>, [u8; 32]);

impl Certificates {
    pub(super) async fn read(certificate: &Path, key: &Path) -> Result<Self, KeyringError> {
        let read = look(certificate, key, None).await;
        let read = read.map_err(|error| KeyringError::Certificate(error.to_string()))?;
        let missing = || KeyringError::Certificate("the certificate cannot be read".to_owned());
        let (config, hash) = read.ok_or_else(missing)?;
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        Ok(Self { certificate, key, current: watch::Sender::new(config), hash, trouble: None })
    }

    /// The one to show, from now on.
    pub(super) fn current(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.current.subscribe()
    }

    /// Compares the files until `stop`.
    pub(super) async fn follow(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(sleep(POLL)).await.is_some() {
            self.compare().await;
        }
    }

    /// Compares the files. A pair that does not fit keeps the one before: it may be half written.
    async fn compare(&mut self) {
        let error = match look(&self.certificate, &self.key, Some(self.hash)).await {
            Ok(None) => None,
            Ok(Some((config, hash))) => {
                self.hash = hash;
                self.current.send_replace(config);
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
async fn look(
    certificate: &Path,
    key: &Path,
    known: Option<[u8; 32]>,
) -> Result<Option<Read>, KeyError> {
    let (owned, secret) = (certificate.to_owned(), key.to_owned());
    read_blocking(certificate, move || read(&owned, &secret, known)).await
}

fn read(certificate: &Path, key: &Path, known: Option<[u8; 32]>) -> Result<Option<Read>, KeyError> {
    let wrong = |path: &Path, why: String| KeyError::File { path: path.to_owned(), why };
    let contents = |path: &Path| read_text(path, u16::MAX).map_err(|why| wrong(path, why));
    let (chain, secret) = (contents(certificate)?, contents(key)?);
    let mut hash = Sha256::new();
    hash.update(chain.as_bytes());
    hash.update(secret.as_bytes());
    let hash = hash.finalize().into();
    if known == Some(hash) {
        return Ok(None);
    }
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong(certificate, "holds no certificate".to_owned()));
    }
    let secret = PrivateKeyDer::from_pem_slice(secret.as_bytes())
        .map_err(|error| wrong(key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(certificate, error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| wrong(certificate, error.to_string()))?;
    Ok(Some((Arc::new(config), hash)))
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
        let mut files = Certificates::read(&path("tls.crt"), &path("tls.key")).await.unwrap();
        let mut current = files.current();
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
