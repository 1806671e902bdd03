//! Tokens that a caller and the keyring have in a file each. Only their hashes are kept in memory.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use secrecy::ExposeSecret;
use sha2::{Digest, Sha256};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::config::KeyringCaller;
use crate::keys::read_token;

/// How often the files are read again.
const POLL: Duration = Duration::from_secs(10);
/// A token that can be guessed is none.
const SHORTEST: usize = 16;

type Hash = [u8; 32];
type Hashes = Vec<(Arc<KeyringCaller>, Hash)>;

pub(super) struct SharedTokens(Arc<RwLock<Hashes>>);

impl SharedTokens {
    /// Reads the files, and again and again until `stop`.
    pub(super) async fn start(
        files: Vec<(Arc<KeyringCaller>, PathBuf)>,
        stop: &CancellationToken,
    ) -> Self {
        let mut errors = vec![None; files.len()];
        let hashes = Arc::new(RwLock::new(read(&files, Vec::new(), &mut errors).await));
        if !files.is_empty() {
            let (hashes, stop) = (Arc::clone(&hashes), stop.clone());
            tokio::spawn(async move {
                while stop.run_until_cancelled(sleep(POLL)).await.is_some() {
                    let before = hashes.read().unwrap_or_else(PoisonError::into_inner).clone();
                    let now = read(&files, before, &mut errors).await;
                    *hashes.write().unwrap_or_else(PoisonError::into_inner) = now;
                }
            });
        }
        Self(hashes)
    }

    /// Whose token this is. It takes as long whichever token is asked about.
    pub(super) fn caller(&self, token: &str) -> Option<Arc<KeyringCaller>> {
        let asked = hash(token);
        let hashes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for (caller, known) in hashes.iter() {
            let differs = known.iter().zip(asked).fold(0, |sum, (a, b)| sum | (a ^ b));
            if differs == 0 {
                found = Some(Arc::clone(caller));
            }
        }
        found
    }
}

fn hash(token: &str) -> Hash {
    Sha256::digest(token).into()
}

/// A file that cannot be read keeps the token that it had; each trouble is logged once.
async fn read(
    files: &[(Arc<KeyringCaller>, PathBuf)],
    before: Hashes,
    errors: &mut [Option<String>],
) -> Hashes {
    let mut hashes = Vec::new();
    for ((caller, path), known) in files.iter().zip(errors) {
        let error = match read_token(path).await {
            Ok(token) if token.expose_secret().len() >= SHORTEST => {
                hashes.push((Arc::clone(caller), hash(token.expose_secret())));
                None
            }
            Ok(_) => Some(format!("{}: has fewer than {SHORTEST} characters", path.display())),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = &error {
            let kept = before.iter().find(|(other, _)| Arc::ptr_eq(other, caller));
            hashes.extend(kept.cloned());
            if known.as_ref() != Some(error) {
                tracing::warn!(
                    caller = caller.name,
                    error,
                    "a caller's shared token cannot be read"
                );
            }
        }
        *known = error;
    }
    hashes
}
