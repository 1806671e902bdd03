//! The certificate that the keyring shows, read again when its files change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::KeyringError;

/// How often the files are compared.
const POLL: Duration = Duration::from_secs(5);

/// Certificate and key as files have them.
#[derive(Clone)]
pub(super) struct Certificates {
    files: Arc<(PathBuf, PathBuf)>,
    current: Arc<RwLock<ReadCertificate>>,
}

#[derive(Clone)]
struct ReadCertificate {
    config: Arc<ServerConfig>,
    /// Of the files' contents.
    hash: [u8; 32],
}

impl Certificates {
    pub(super) async fn read(certificate: &Path, key: &Path) -> Result<Self, KeyringError> {
        let files = Arc::new((certificate.to_owned(), key.to_owned()));
        let read = look(Arc::clone(&files), None).await.map_err(KeyringError::Certificate)?;
        let missing = || KeyringError::Certificate("the certificate cannot be read".to_owned());
        let current = Arc::new(RwLock::new(read.ok_or_else(missing)?));
        Ok(Self { files, current })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&current.config))
    }

    /// Compares the files until `stop`. A pair that does not fit keeps the one before: it may be half
    /// written.
    pub(super) async fn follow(self, stop: CancellationToken) {
        let mut trouble = None;
        while stop.run_until_cancelled(sleep(POLL)).await.is_some() {
            let known = self.current.read().unwrap_or_else(PoisonError::into_inner).hash;
            let error = match look(Arc::clone(&self.files), Some(known)).await {
                Ok(None) => None,
                Ok(Some(read)) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = read;
                    tracing::info!("a new certificate is in use");
                    None
                }
                Err(error) => Some(error),
            };
            if error != trouble
                && let Some(error) = &error
            {
                tracing::warn!(error, "the new certificate cannot be used: the old one stays");
            }
            trouble = error;
        }
    }
}

/// One look; `None`: the files are as they were.
async fn look(
    files: Arc<(PathBuf, PathBuf)>,
    known: Option<[u8; 32]>,
) -> Result<Option<ReadCertificate>, String> {
    let look = tokio::task::spawn_blocking(move || read(&files.0, &files.1, known));
    look.await.unwrap_or_else(|_| Err("reading it was cut off".to_owned()))
}

fn read(
    certificate: &Path,
    key: &Path,
    known: Option<[u8; 32]>,
) -> Result<Option<ReadCertificate>, String> {
    let contents = |path: &Path| {
        crate::keys::read_text(path, u16::MAX).map_err(|why| format!("{}: {why}", path.display()))
    };
    let (chain, secret) = (contents(certificate)?, contents(key)?);
    let mut hash = Sha256::new();
    hash.update(chain.as_bytes());
    hash.update(secret.as_bytes());
    let hash = hash.finalize().into();
    if known == Some(hash) {
        return Ok(None);
    }
    let wrong = |path: &Path, why: String| format!("{}: {why}", path.display());
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
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|error| wrong(certificate, error.to_string()))?;
    Ok(Some(ReadCertificate { config: Arc::new(config), hash }))
}
