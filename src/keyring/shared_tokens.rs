//! Tokens that a caller and the keyring have in a file each. Only their hashes are kept in memory.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::TRUSTED;
use crate::config::KeyringCaller;
use crate::keys::{TokenFile, read_token_file};

/// How often the files are read again.
const POLL: Duration = Duration::from_secs(10);
/// A token that can be guessed is none.
const SHORTEST: usize = 16;
/// A file in which there is no token so many times in a row has none: once, it may be half replaced.
const GONE: u32 = 2;

type Hash = [u8; 32];

pub(super) struct SharedTokens(Arc<RwLock<Vec<SharedToken>>>);

/// One file.
#[derive(Clone)]
struct SharedToken {
    caller: Arc<KeyringCaller>,
    path: PathBuf,
    /// The token, and when it was last read.
    known: Option<(Hash, Instant)>,
    /// Looks in a row that found none in it.
    gone: u32,
    trouble: Option<String>,
}

impl SharedTokens {
    /// Reads the files, and again and again until `stop`.
    pub(super) async fn start(
        files: Vec<(Arc<KeyringCaller>, PathBuf)>,
        stop: &CancellationToken,
    ) -> Self {
        let unread = |(caller, path)| SharedToken::new(caller, path);
        let mut tokens: Vec<_> = files.into_iter().map(unread).collect();
        look(&mut tokens).await;
        let shared = Arc::new(RwLock::new(tokens.clone()));
        if !tokens.is_empty() {
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            tokio::spawn(async move {
                while stop.run_until_cancelled(sleep(POLL)).await.is_some() {
                    look(&mut tokens).await;
                    shared.write().unwrap_or_else(PoisonError::into_inner).clone_from(&tokens);
                }
            });
        }
        Self(shared)
    }

    /// Whose token this is. It takes as long whichever token is asked about.
    pub(super) fn caller(&self, token: &str) -> Option<Arc<KeyringCaller>> {
        let asked = hash(token);
        let tokens = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for token in tokens.iter() {
            let Some(known) = token.trusted() else { continue };
            let differs = known.iter().zip(asked).fold(0, |sum, (a, b)| sum | (a ^ b));
            if differs == 0 {
                found = Some(Arc::clone(&token.caller));
            }
        }
        found
    }
}

fn hash(token: &str) -> Hash {
    Sha256::digest(token).into()
}

async fn look(tokens: &mut [SharedToken]) {
    for token in tokens {
        token.look().await;
    }
}

impl SharedToken {
    fn new(caller: Arc<KeyringCaller>, path: PathBuf) -> Self {
        Self { caller, path, known: None, gone: 0, trouble: None }
    }

    /// What the file had, while that is trusted: a file that is gone or empty has no token any more, and one
    /// that cannot be read has it for [`TRUSTED`].
    fn trusted(&self) -> Option<Hash> {
        let (hash, read) = self.known?;
        (self.gone < GONE && read.elapsed() < TRUSTED).then_some(hash)
    }

    /// Reads the file once more; each trouble is logged once.
    async fn look(&mut self) {
        let is_short = |token: &SecretString| token.expose_secret().len() < SHORTEST;
        let error = match read_token_file(&self.path).await {
            Ok(TokenFile::Holds(token)) if is_short(&token) => {
                self.gone += 1;
                Some(format!("{}: has fewer than {SHORTEST} characters", self.path.display()))
            }
            Ok(TokenFile::Holds(token)) => {
                self.known = Some((hash(token.expose_secret()), Instant::now()));
                self.gone = 0;
                None
            }
            Ok(TokenFile::HoldsNone(why)) => {
                self.gone += 1;
                Some(format!("{}: {why}", self.path.display()))
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = error.as_ref().filter(|error| self.trouble.as_ref() != Some(error)) {
            let caller = &*self.caller.name;
            tracing::warn!(caller, error, "a caller's shared token cannot be read");
        }
        self.trouble = error;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;
    use tokio::time::advance;

    use super::*;
    use crate::config::CallerProof;

    const TOKEN: &str = "hush-a-token-of-the-batch-job";

    fn token(path: PathBuf) -> SharedToken {
        let caller = KeyringCaller {
            name: "batch".to_owned(),
            proof: CallerProof::TokenFile(path.clone()),
            instances: Vec::new(),
            topics: Vec::new(),
            role_arn: None,
            policy: None,
        };
        SharedToken::new(Arc::new(caller), path)
    }

    #[tokio::test]
    async fn a_file_that_is_gone_empty_or_short_has_no_token_any_more() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("token");
        let mut token = token(path.clone());
        for bad in [None, Some(""), Some("\n"), Some("short")] {
            std::fs::write(&path, TOKEN).unwrap();
            token.look().await;
            assert_eq!(token.trusted(), Some(hash(TOKEN)));
            match bad {
                Some(text) => std::fs::write(&path, text).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            token.look().await;
            assert!(token.trusted().is_some(), "{bad:?}: once, it may be half replaced");
            token.look().await;
            assert_eq!(token.trusted(), None, "{bad:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_cannot_be_read_has_its_token_for_a_time() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("token");
        let mut token = token(path.clone());
        std::fs::write(&path, TOKEN).unwrap();
        token.look().await;
        std::fs::remove_file(&path).unwrap();
        symlink("token", &path).unwrap();
        for _ in 0..10 {
            token.look().await;
        }
        assert!(token.trouble.is_some());
        assert_eq!(token.trusted(), Some(hash(TOKEN)));
        advance(TRUSTED).await;
        assert_eq!(token.trusted(), None);
    }
}
