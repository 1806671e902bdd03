//! Tokens that a caller and we have in a file each. Only their hashes are kept in memory.

use std::path::Path;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::secret_file::{SecretFile, first_look};

type Hash = [u8; 32];

/// A caller that has a name.
pub trait Named: Send + Sync + 'static {
    /// For the log.
    fn name(&self) -> &str;
}

/// The callers that have such a token, in the order of the configuration.
pub struct SharedTokens<C>(Vec<(Arc<C>, Arc<SecretFile<Hash>>)>);

impl<C: Named> SharedTokens<C> {
    /// Reads the files, and again and again until `stop`.
    pub fn start<'a>(
        files: impl IntoIterator<Item = (Arc<C>, &'a Path)>,
        stop: &CancellationToken,
    ) -> Self {
        let follow = |(caller, path): (Arc<C>, &Path)| {
            let file = SecretFile::start(caller.name(), path, |token| hash(&token), stop);
            (caller, file)
        };
        Self(files.into_iter().map(follow).collect())
    }

    /// Until all files were read once, or one of them takes so long that the callers of the others should not
    /// wait for it.
    pub async fn first_look(&self) {
        let files = self.0.iter().map(|(_, file)| Arc::clone(file)).collect();
        first_look(files).await;
    }

    /// Whose token this is: of several that have the same by now, the first one's. It takes as long whichever token is
    /// asked about.
    pub fn caller(&self, token: &SecretString) -> Option<Arc<C>> {
        let asked = hash(token);
        let mut found = None;
        for (caller, file) in self.0.iter().rev() {
            let Some(known) = file.trusted() else { continue };
            let differs = known.iter().zip(asked).fold(0, |sum, (a, b)| sum | (a ^ b));
            if differs == 0 {
                found = Some(Arc::clone(caller));
            }
        }
        found
    }
}

fn hash(token: &SecretString) -> Hash {
    Sha256::digest(token.expose_secret()).into()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use tempfile::TempDir;
    use tokio::sync::oneshot;
    use tokio::task::yield_now;
    use tokio::time::advance;

    use super::*;
    use crate::keys::read_blocking;

    const TOKEN: &str = "hush-a-token-of-the-batch-job";

    struct Called(&'static str);

    impl Named for Called {
        fn name(&self) -> &str {
            self.0
        }
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

        let paths = names.map(path);
        let callers = names.map(|name| Arc::new(Called(name)));
        let files = callers.into_iter().zip(paths.iter().map(std::path::PathBuf::as_path));
        let stop = CancellationToken::new();
        let tokens = Arc::new(SharedTokens::start(files, &stop));
        let name = |tokens: &SharedTokens<Called>, text: &str| {
            tokens.caller(&text.repeat(20).into()).map(|caller| caller.0)
        };
        let others = tokens.0.get(1..).unwrap();
        until(|| others.iter().all(|(_, file)| file.is_looked_at())).await;
        assert_eq!(name(&tokens, TOKEN), Some("a"));
        assert_eq!(name(&tokens, "2"), Some("b"), "the first one's, in any order of reads");
        assert_eq!(name(&tokens, "hush-never-read-in-time"), None);
        // Nor does the start wait for it.
        let first_look = tokio::spawn({
            let tokens = Arc::clone(&tokens);
            async move { tokens.first_look().await }
        });
        yield_now().await;
        assert!(!first_look.is_finished());
        advance(Duration::from_secs(1)).await;
        first_look.await.unwrap();
        drop(release);
        until(|| name(&tokens, "hush-never-read-in-time").is_some()).await;
    }
}
