//! A file with a secret that a caller has as well, read again and again.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::file_watch::{Found, WatchedFile};
use crate::keys::{KeyError, TokenFile, read_token_file};

/// What proves callers is trusted for so long after it was last read.
pub const TRUSTED: Duration = Duration::from_hours(1);
/// A file system that works takes milliseconds.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// A secret that can be guessed is none.
const SHORTEST: usize = 16;
/// A file in which there is no secret so many times in a row has none: once, it may be half replaced.
const GONE: u32 = 2;

/// Of a secret.
pub(super) type Hash = [u8; 32];

pub(super) fn hash(secret: &SecretString) -> Hash {
    Sha256::digest(secret.expose_secret()).into()
}

/// One file, and what is kept in memory of its secret. It has a task of its own: one that is slow, or hangs,
/// keeps no caller of another one waiting.
pub(super) struct SecretFile<T> {
    caller: Box<str>,
    watched: Arc<WatchedFile>,
    keep: fn(SecretString, Hash) -> T,
    state: watch::Sender<SecretState<T>>,
    /// Counts the secrets that were found anew in this file and in others.
    changes: Arc<AtomicU64>,
}

/// What looks at the file have found.
struct SecretState<T> {
    /// What is kept of the secret, and when it was last read.
    known: Option<(T, Instant)>,
    /// Of the secret.
    hash: Option<Hash>,
    /// Looks in a row that found none in it.
    gone: u32,
    trouble: Option<String>,
    /// Whether the first look has ended.
    is_looked_at: bool,
}

/// Until all files were read once, or one of them takes so long that the callers of the others should not
/// wait for it.
pub(super) async fn first_look<T>(files: Vec<Arc<SecretFile<T>>>) {
    let looks = async {
        for file in files {
            drop(file.state.subscribe().wait_for(|state| state.is_looked_at).await);
        }
    };
    drop(timeout(FIRST_LOOK, looks).await);
}

impl<T> fmt::Debug for SecretFile<T> {
    /// Not what it holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretFile").field("path", &self.watched.path).finish_non_exhaustive()
    }
}

impl<T: Clone + Send + Sync + 'static> SecretFile<T> {
    /// Reads the file of this caller, and again when it is to be, until `stop`. `changes` counts the secrets that are
    /// found anew.
    pub(super) fn start(
        caller: &str,
        path: &Path,
        keep: fn(SecretString, Hash) -> T,
        changes: &Arc<AtomicU64>,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let file = Arc::new(Self::new(caller, path, keep, Arc::clone(changes)));
        let (followed, stop) = (Arc::clone(&file), stop.clone());
        tokio::spawn(async move { stop.run_until_cancelled(followed.follow()).await });
        file
    }

    fn new(
        caller: &str,
        path: &Path,
        keep: fn(SecretString, Hash) -> T,
        changes: Arc<AtomicU64>,
    ) -> Self {
        let (known, hash, trouble) = (None, None, None);
        let state = SecretState { known, hash, gone: 0, trouble, is_looked_at: false };
        let state = watch::Sender::new(state);
        let watched = Arc::new(WatchedFile::new(path));
        Self { caller: caller.into(), watched, keep, state, changes }
    }

    /// To be looked at for changes.
    pub(super) fn watched(&self) -> Arc<WatchedFile> {
        Arc::clone(&self.watched)
    }

    /// What the file had, while that is trusted: a file that is gone or empty has no secret any more, and one
    /// that cannot be read has it for [`TRUSTED`].
    pub(super) fn trusted(&self) -> Option<T> {
        let state = self.state.borrow();
        let (kept, read) = state.known.as_ref()?;
        (state.gone < GONE && read.elapsed() < TRUSTED).then(|| kept.clone())
    }

    /// What the file had when it was last read, trusted or not.
    pub(super) fn known(&self) -> Option<T> {
        self.state.borrow().known.as_ref().map(|(kept, _)| kept.clone())
    }

    async fn follow(&self) {
        loop {
            self.look().await;
            self.watched.next().await;
        }
    }

    /// Reads the file once more; each trouble is logged once.
    async fn look(&self) {
        let read = read_token_file(&self.watched.path).await;
        self.state.send_modify(|state| {
            self.note(state, read);
            let is_well = state.trouble.is_none();
            self.watched.was_read(if is_well { Found::Secret } else { Found::None });
        });
    }

    fn note(&self, state: &mut SecretState<T>, read: Result<TokenFile, KeyError>) {
        state.is_looked_at = true;
        let is_short = |secret: &SecretString| secret.expose_secret().len() < SHORTEST;
        let error = match read {
            Ok(TokenFile::Holds(secret)) if is_short(&secret) => {
                state.gone += 1;
                Some(format!(
                    "{}: has fewer than {SHORTEST} characters",
                    self.watched.path.display()
                ))
            }
            Ok(TokenFile::Holds(secret)) => {
                let hash = hash(&secret);
                if state.hash.replace(hash) != Some(hash) {
                    self.changes.fetch_add(1, Ordering::Release);
                }
                state.known = Some(((self.keep)(secret, hash), Instant::now()));
                state.gone = 0;
                None
            }
            Ok(TokenFile::HoldsNone(why)) => {
                state.gone += 1;
                Some(format!("{}: {why}", self.watched.path.display()))
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = error.as_ref().filter(|error| state.trouble.as_ref() != Some(error)) {
            let caller = &*self.caller;
            tracing::warn!(caller, error, "a caller's shared token cannot be read");
        }
        state.trouble = error;
    }

    #[cfg(test)]
    pub(super) fn is_looked_at(&self) -> bool {
        self.state.borrow().is_looked_at
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;
    use tokio::time::advance;

    use super::*;

    const TOKEN: &str = "hush-a-token-of-the-batch-job";

    fn file(path: &Path) -> SecretFile<String> {
        let keep = |secret: SecretString, _| secret.expose_secret().to_owned();
        SecretFile::new("batch", path, keep, Arc::default())
    }

    #[tokio::test]
    async fn a_file_that_is_gone_empty_or_short_has_no_token_any_more() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("token");
        let file = file(&path);
        for bad in [None, Some(""), Some("\n"), Some("short")] {
            std::fs::write(&path, TOKEN).unwrap();
            file.look().await;
            assert_eq!(file.trusted().as_deref(), Some(TOKEN));
            match bad {
                Some(text) => std::fs::write(&path, text).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            file.look().await;
            assert!(file.trusted().is_some(), "{bad:?}: once, it may be half replaced");
            file.look().await;
            assert_eq!(file.trusted(), None, "{bad:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_cannot_be_read_has_its_token_for_a_time() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("token");
        let file = file(&path);
        std::fs::write(&path, TOKEN).unwrap();
        file.look().await;
        std::fs::remove_file(&path).unwrap();
        symlink("token", &path).unwrap();
        for _ in 0..10 {
            file.look().await;
        }
        assert!(file.state.borrow().trouble.is_some());
        assert_eq!(file.trusted().as_deref(), Some(TOKEN));
        advance(TRUSTED).await;
        assert_eq!(file.trusted(), None);
    }
}
