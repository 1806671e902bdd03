//! Tokens that a caller and we have in a file each. Only their hashes are kept in memory.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use super::file_watch::watch;
use super::secret_file::{Hash, SecretFile, first_look, hash};

/// A caller that has a name.
pub trait Named: Send + Sync + 'static {
    /// For the log.
    fn name(&self) -> &str;
}

/// The callers that have such a token.
pub struct SharedTokens<C> {
    /// In the order of the configuration.
    callers: Vec<(Arc<C>, Arc<SecretFile<Hash>>)>,
    /// Of all files.
    changes: Arc<AtomicU64>,
    index: RwLock<TokenIndex>,
}

/// Which callers have a token with this hash: a request looks at these, however many there are. A hash that is
/// looked up tells nothing of tokens with nearly the same one, and the table's order is secret.
#[derive(Default)]
struct TokenIndex {
    /// What changes it has.
    of: Option<u64>,
    callers: HashMap<Hash, Vec<usize>>,
}

impl<C: Named> SharedTokens<C> {
    /// Reads the files, and again and again until `stop`.
    pub fn start<'a>(
        files: impl IntoIterator<Item = (Arc<C>, &'a Path)>,
        stop: &CancellationToken,
    ) -> Self {
        let changes = Arc::default();
        let follow = |(caller, path): (Arc<C>, &Path)| {
            let file = SecretFile::start(caller.name(), path, |_, hash| hash, &changes, stop);
            (caller, file)
        };
        let callers: Vec<_> = files.into_iter().map(follow).collect();
        watch(callers.iter().map(|(_, file)| file.watched()).collect(), stop);
        Self { callers, changes, index: RwLock::default() }
    }

    /// Until all files were read once, or one of them takes so long that the callers of the others should not
    /// wait for it.
    pub async fn first_look(&self) {
        let files = self.callers.iter().map(|(_, file)| Arc::clone(file)).collect();
        first_look(files).await;
    }

    /// Whose token this is: of several that have the same by now, the first one's.
    pub fn caller(&self, token: &SecretString) -> Option<Arc<C>> {
        let asked = hash(token);
        let changes = self.changes.load(Ordering::Acquire);
        let known = |index: &TokenIndex| -> Option<Arc<C>> {
            let mut callers =
                index.callers.get(&asked)?.iter().filter_map(|at| self.callers.get(*at));
            let is_trusted = |file: &SecretFile<Hash>| file.trusted() == Some(asked);
            let (caller, _) = callers.find(|(_, file)| is_trusted(file))?;
            Some(Arc::clone(caller))
        };
        {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            if index.of == Some(changes) {
                return known(&index);
            }
        }
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.of = Some(changes);
        index.callers.clear();
        for (at, (_, file)) in self.callers.iter().enumerate() {
            if let Some(hash) = file.known() {
                index.callers.entry(hash).or_default().push(at);
            }
        }
        known(&index)
    }
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
        let others = tokens.callers.get(1..).unwrap();
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
