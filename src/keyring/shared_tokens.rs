//! Tokens that a caller and the keyring have in a file each. Only their hashes are kept in memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::TRUSTED;
use crate::config::KeyringCaller;
use crate::keys::{KeyError, TokenFile, read_token_file};

/// How often the files are read again.
const POLL: Duration = Duration::from_secs(10);
/// A file system that works takes milliseconds.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// A token that can be guessed is none.
const SHORTEST: usize = 16;
/// A file in which there is no token so many times in a row has none: once, it may be half replaced.
const GONE: u32 = 2;

type Hash = [u8; 32];

/// In the order of the configuration.
pub(super) struct SharedTokens(Vec<Arc<SharedToken>>);

/// One file. It has a task of its own: one that is slow, or hangs, keeps no caller of another one waiting.
struct SharedToken {
    caller: Arc<KeyringCaller>,
    path: PathBuf,
    state: watch::Sender<TokenState>,
}

/// What looks at the file have found.
#[derive(Default)]
struct TokenState {
    /// The token, and when it was last read.
    known: Option<(Hash, Instant)>,
    /// Looks in a row that found none in it.
    gone: u32,
    trouble: Option<String>,
    /// Whether the first look has ended.
    is_looked_at: bool,
}

impl SharedTokens {
    /// Reads the files, and again and again until `stop`.
    pub(super) fn start(
        files: impl IntoIterator<Item = (Arc<KeyringCaller>, PathBuf)>,
        stop: &CancellationToken,
    ) -> Self {
        let follow = |(caller, path)| {
            let token = Arc::new(SharedToken::new(caller, path));
            let (followed, stop) = (Arc::clone(&token), stop.clone());
            tokio::spawn(async move { stop.run_until_cancelled(followed.follow()).await });
            token
        };
        Self(files.into_iter().map(follow).collect())
    }

    /// Until all files were read once, or one of them takes so long that the callers of the others should not
    /// wait for it.
    pub(super) async fn first_look(&self) {
        let looks = async {
            for token in &self.0 {
                drop(token.state.subscribe().wait_for(|state| state.is_looked_at).await);
            }
        };
        drop(timeout(FIRST_LOOK, looks).await);
    }

    /// Whose token this is: of several that have the same by now, the first one's. It takes as long whichever token is
    /// asked about.
    pub(super) fn caller(&self, token: &str) -> Option<Arc<KeyringCaller>> {
        let asked = hash(token);
        let mut found = None;
        for token in self.0.iter().rev() {
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

impl SharedToken {
    fn new(caller: Arc<KeyringCaller>, path: PathBuf) -> Self {
        Self { caller, path, state: watch::Sender::default() }
    }

    /// What the file had, while that is trusted: a file that is gone or empty has no token any more, and one
    /// that cannot be read has it for [`TRUSTED`].
    fn trusted(&self) -> Option<Hash> {
        let state = self.state.borrow();
        let (hash, read) = state.known?;
        (state.gone < GONE && read.elapsed() < TRUSTED).then_some(hash)
    }

    async fn follow(&self) {
        loop {
            self.look().await;
            sleep(POLL).await;
        }
    }

    /// Reads the file once more; each trouble is logged once.
    async fn look(&self) {
        let read = read_token_file(&self.path).await;
        self.state.send_modify(|state| self.note(state, read));
    }

    fn note(&self, state: &mut TokenState, read: Result<TokenFile, KeyError>) {
        state.is_looked_at = true;
        let is_short = |token: &SecretString| token.expose_secret().len() < SHORTEST;
        let error = match read {
            Ok(TokenFile::Holds(token)) if is_short(&token) => {
                state.gone += 1;
                Some(format!("{}: has fewer than {SHORTEST} characters", self.path.display()))
            }
            Ok(TokenFile::Holds(token)) => {
                state.known = Some((hash(token.expose_secret()), Instant::now()));
                state.gone = 0;
                None
            }
            Ok(TokenFile::HoldsNone(why)) => {
                state.gone += 1;
                Some(format!("{}: {why}", self.path.display()))
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = error.as_ref().filter(|error| state.trouble.as_ref() != Some(error)) {
            let caller = &*self.caller.name;
            tracing::warn!(caller, error, "a caller's shared token cannot be read");
        }
        state.trouble = error;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::sync::mpsc;

    use tempfile::TempDir;
    use tokio::sync::oneshot;
    use tokio::task::yield_now;
    use tokio::time::advance;

    use super::*;
    use crate::config::CallerProof;
    use crate::keys::read_blocking;

    const TOKEN: &str = "hush-a-token-of-the-batch-job";

    fn token(path: PathBuf) -> SharedToken {
        SharedToken::new(caller("batch", &path), path)
    }

    fn caller(name: &str, path: &Path) -> Arc<KeyringCaller> {
        Arc::new(KeyringCaller {
            name: name.to_owned(),
            proof: CallerProof::TokenFile(path.to_owned()),
            instances: Vec::new(),
            topics: Vec::new(),
            role_arn: None,
            policy: None,
        })
    }

    #[tokio::test]
    async fn a_file_that_is_gone_empty_or_short_has_no_token_any_more() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("token");
        let token = token(path.clone());
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
        let token = token(path.clone());
        std::fs::write(&path, TOKEN).unwrap();
        token.look().await;
        std::fs::remove_file(&path).unwrap();
        symlink("token", &path).unwrap();
        for _ in 0..10 {
            token.look().await;
        }
        assert!(token.state.borrow().trouble.is_some());
        assert_eq!(token.trusted(), Some(hash(TOKEN)));
        advance(TRUSTED).await;
        assert_eq!(token.trusted(), None);
    }

    #[allow(clippy::disallowed_methods, reason = "the tests' time is paused")]
    async fn until(done: impl Fn() -> bool) {
        let begun = std::time::Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_mins(1), "it does not come");
            yield_now().await;
        }
    }

    /// In paused time, which stands still while a thread hangs: what is waited for here comes without the file
    /// that hangs, or never.
    #[tokio::test(start_paused = true)]
    async fn a_file_that_hangs_keeps_no_caller_of_another_one_waiting() {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        let names = ["hangs", "a", "b", "same-as-b"];
        for (name, text) in names.iter().zip(["hush-never-read-in-time", TOKEN, "2", "2"]) {
            std::fs::write(path(name), text.repeat(20)).unwrap();
        }
        let (release, hangs) = mpsc::channel::<()>();
        let (begun, begins) = oneshot::channel();
        let hung = path("hangs");
        tokio::spawn(async move {
            let read = move || {
                begun.send(()).unwrap();
                hangs.recv().unwrap_err();
                Ok(())
            };
            read_blocking(&hung, read).await
        });
        begins.await.unwrap();

        let files = names.map(|name| (caller(name, &path(name)), path(name)));
        let stop = CancellationToken::new();
        let tokens = Arc::new(SharedTokens::start(files, &stop));
        let name = |tokens: &SharedTokens, text: &str| {
            tokens.caller(&text.repeat(20)).map(|caller| caller.name.clone())
        };
        let others = tokens.0.get(1..).unwrap();
        until(|| others.iter().all(|token| token.state.borrow().is_looked_at)).await;
        assert_eq!(name(&tokens, TOKEN).as_deref(), Some("a"));
        assert_eq!(
            name(&tokens, "2").as_deref(),
            Some("b"),
            "the first one's, in any order of reads"
        );
        assert_eq!(name(&tokens, "hush-never-read-in-time"), None);
        // Nor does the start wait for it.
        let first_look = tokio::spawn({
            let tokens = Arc::clone(&tokens);
            async move { tokens.first_look().await }
        });
        yield_now().await;
        assert!(!first_look.is_finished());
        advance(FIRST_LOOK).await;
        first_look.await.unwrap();
        drop(release);
        until(|| name(&tokens, "hush-never-read-in-time").is_some()).await;
    }
}
