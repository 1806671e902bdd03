//! Files with a token that proves who we are, such as a Kubernetes service account's. They are replaced
//! while we run, so each use reads them again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::error::KeyError;

/// The provider takes OIDC tokens of at most 20,000 characters.
const MAX_TOKEN: u16 = 20_000;
/// A file system that works takes milliseconds.
const LONGEST_READ: Duration = Duration::from_secs(5);
/// Threads that read at once, each another path. They are some of those that the runtime has for blocking work.
const MOST_READS: usize = 16;
/// Reads at once while none hangs: so a thousand files need no more threads than a few. Threads remain: with 64 of them,
/// the kernel's `futex_wake` had 2.6 % of the process's CPU instead of 0.15 %.
const TURNS: usize = 2;
/// Those that have a turn hang when none of them ends for so long: then others read beside them.
const LONGEST_TURN: Duration = Duration::from_millis(100);
const HANGS: &str = "cannot be read in time: does its file system hang?";
const NO_ROOM: &str = "is not read: as many other files hang as may at once";

/// What a file with a token holds.
pub(crate) enum TokenFile {
    /// This token; blanks around it are cut off.
    Holds(SecretString),
    /// None: the file does not exist, is empty, or holds white space within.
    HoldsNone(String),
}

/// Reads a token, on a thread for blocking work.
pub(crate) async fn read_token(path: &Path) -> Result<SecretString, KeyError> {
    match read_token_file(path).await? {
        TokenFile::Holds(token) => Ok(token),
        TokenFile::HoldsNone(why) => Err(KeyError::File { path: path.to_owned(), why }),
    }
}

/// The same; that there is none is no error.
pub(crate) async fn read_token_file(path: &Path) -> Result<TokenFile, KeyError> {
    let owned = path.to_owned();
    read_blocking(path, move || read(&owned).map_err(|why| KeyError::File { path: owned, why }))
        .await
}

/// Reads files on a thread for blocking work, and gives up where their file system hangs. The thread then
/// hangs on: one for each path, and no more of them than [`MOST_READS`].
pub(crate) async fn read_blocking<T: Send + 'static>(
    path: &Path,
    read: impl FnOnce() -> Result<T, KeyError> + Send + 'static,
) -> Result<T, KeyError> {
    static READS: Reads = Reads::new(MOST_READS);
    READS.read(path, read).await
}

/// Reads under way.
struct Reads {
    /// Held until the caller has its answer: by then the thread is free for the next one.
    turns: Semaphore,
    /// Reads that had one, and have ended.
    had_turn: AtomicU64,
    room: Semaphore,
    paths: Mutex<BTreeMap<PathBuf, PathRead>>,
}

/// The one read of a path.
#[derive(Clone)]
struct PathRead {
    begun: Instant,
    /// Closed at its end.
    ended: watch::Receiver<()>,
}

/// A read's turn.
struct Turn {
    reads: &'static Reads,
    _permit: SemaphorePermit<'static>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.reads.had_turn.fetch_add(1, Ordering::Relaxed);
    }
}

/// A read's place. Held by its thread, which may outlive its caller by hours.
struct ReadPlace {
    reads: &'static Reads,
    path: PathBuf,
    _permit: SemaphorePermit<'static>,
    _ended: watch::Sender<()>,
}

impl Drop for ReadPlace {
    fn drop(&mut self) {
        self.reads.paths().remove(&self.path);
    }
}

impl Reads {
    const fn new(most: usize) -> Self {
        let (turns, room) = (Semaphore::const_new(TURNS), Semaphore::const_new(most));
        let had_turn = AtomicU64::new(0);
        Self { turns, had_turn, room, paths: Mutex::new(BTreeMap::new()) }
    }

    fn paths(&self) -> MutexGuard<'_, BTreeMap<PathBuf, PathRead>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read<T: Send + 'static>(
        &'static self,
        path: &Path,
        read: impl FnOnce() -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, KeyError> {
        let failed = |why: &str| KeyError::File { path: path.to_owned(), why: why.to_owned() };
        let deadline = Instant::now() + LONGEST_READ;
        // Who waits for the same path takes no turn from others.
        self.other_read(path, deadline).await.map_err(failed)?;
        // The wait for a turn is none for this file.
        let left = deadline - Instant::now();
        let _turn = self.turn().await;
        let deadline = Instant::now() + left;
        let place = self.place(path, deadline).await.map_err(failed)?;
        let read = tokio::task::spawn_blocking(move || {
            let read = read();
            drop(place);
            read
        });
        match timeout_at(deadline, read).await {
            Ok(Ok(read)) => read,
            Ok(Err(_)) => Err(failed("reading it was cut off")),
            Err(_) => Err(failed(HANGS)),
        }
    }

    /// Waits for a turn while those that have one do not hang.
    async fn turn(&'static self) -> Option<Turn> {
        loop {
            let before = self.had_turn.load(Ordering::Relaxed);
            match timeout(LONGEST_TURN, self.turns.acquire()).await {
                Ok(permit) => {
                    return permit.ok().map(|permit| Turn { reads: self, _permit: permit });
                }
                Err(_) if self.had_turn.load(Ordering::Relaxed) == before => return None,
                Err(_) => {}
            }
        }
    }

    /// Waits for the read of this path that is under way, unless that one hangs.
    async fn other_read(&self, path: &Path, deadline: Instant) -> Result<(), &'static str> {
        let other = self.paths().get(path).cloned();
        if let Some(PathRead { begun, mut ended }) = other {
            // Nothing is sent: what comes is that it has ended.
            let latest = deadline.min(begun + LONGEST_READ);
            drop(timeout_at(latest, ended.changed()).await.map_err(|_| HANGS)?);
        }
        Ok(())
    }

    /// Waits for the read of this path that is under way, and then for room. Who waits for the same path takes no
    /// room from others.
    async fn place(
        &'static self,
        path: &Path,
        deadline: Instant,
    ) -> Result<ReadPlace, &'static str> {
        loop {
            self.other_read(path, deadline).await?;
            let permit = timeout_at(deadline, self.room.acquire()).await;
            let permit = permit.ok().and_then(Result::ok).ok_or(NO_ROOM)?;
            if let Entry::Vacant(place) = self.paths().entry(path.to_owned()) {
                let (sender, ended) = watch::channel(());
                place.insert(PathRead { begun: Instant::now(), ended });
                let path = path.to_owned();
                return Ok(ReadPlace { reads: self, path, _permit: permit, _ended: sender });
            }
        }
    }
}

fn read(path: &Path) -> Result<TokenFile, String> {
    if let Err(error) = fs::metadata(path)
        && error.kind() == io::ErrorKind::NotFound
    {
        return Ok(TokenFile::HoldsNone(error.to_string()));
    }
    let text = read_text(path, MAX_TOKEN)?;
    let token = text.trim_ascii();
    if token.is_empty() {
        return Ok(TokenFile::HoldsNone("is empty".to_owned()));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(TokenFile::HoldsNone(
            "holds no token: it has white space or control characters".to_owned(),
        ));
    }
    Ok(TokenFile::Holds(SecretString::from(token)))
}

/// Reads a text that holds secrets, in one buffer that is wiped. Blocks.
pub(crate) fn read_text(path: &Path, most: u16) -> Result<Zeroizing<String>, String> {
    // Asked before opening, since opening a named pipe would wait for its writer.
    let found = fs::metadata(path).map_err(|error| error.to_string())?;
    if !found.is_file() {
        return Err("is not a file".to_owned());
    }
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    // As large as it can get: growing would leave copies behind that are not wiped.
    let mut text = Zeroizing::new(String::with_capacity(usize::from(most) + 64));
    let read = file.take(u64::from(most) + 1).read_to_string(&mut text);
    read.map_err(|error| error.to_string())?;
    if text.len() > usize::from(most) {
        return Err(format!("is larger than {most} bytes"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::sync::oneshot;
    use tokio::task::{JoinHandle, JoinSet};
    use tokio::time::advance;

    use super::*;

    /// A read that has begun, and hangs until the sender is dropped.
    async fn hang(
        reads: &'static Reads,
        path: &'static str,
    ) -> (JoinHandle<Result<u8, KeyError>>, mpsc::Sender<()>) {
        let (release, hangs) = mpsc::channel::<()>();
        let (begun, begins) = oneshot::channel();
        let hung = tokio::spawn(reads.read(Path::new(path), move || {
            begun.send(()).unwrap();
            hangs.recv().unwrap_err();
            Ok(1)
        }));
        begins.await.unwrap();
        (hung, release)
    }

    fn assert_hangs(read: Result<u8, KeyError>, path: &str) {
        let error = read.unwrap_err().to_string();
        assert!(error.starts_with(path) && error.contains("hang"), "{error}");
    }

    /// A mount whose server is gone: who reads it gets an answer in time, and threads do not pile up.
    #[tokio::test]
    async fn a_file_system_that_hangs() {
        static READS: Reads = Reads::new(1);
        let (hung, release) = hang(&READS, "/nfs/token").await;
        tokio::time::pause();
        // It needs a place of its own, and there is none.
        let other = tokio::spawn(READS.read(Path::new("/nfs/other"), || Ok(2)));
        tokio::task::yield_now().await;
        // Time that is paused does not go on by itself while a thread works.
        advance(LONGEST_READ * 2).await;
        assert_hangs(hung.await.unwrap(), "/nfs/token: ");
        let error = other.await.unwrap().unwrap_err().to_string();
        assert!(error.starts_with("/nfs/other: is not read"), "{error}");
        drop(release);
        tokio::time::resume();
        // The thread ends when it ends.
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < Duration::from_mins(1), "it does not end");
            match READS.read(Path::new("/nfs/token"), || Ok(3)).await {
                Err(_) => tokio::task::yield_now().await,
                again => break assert_eq!(again, Ok(3), "a place is free again"),
            }
        }
        assert!(READS.paths().is_empty());
    }

    /// Nor do they take the places of others: however often it is asked for, a path that hangs has one.
    #[tokio::test]
    async fn a_path_that_hangs_does_not_keep_others_from_being_read() {
        static READS: Reads = Reads::new(2);
        let (hung, release) = hang(&READS, "/nfs/token").await;
        let mut again = JoinSet::new();
        for _ in 0..20 {
            again.spawn(READS.read(Path::new("/nfs/token"), || Ok(2)));
        }
        tokio::task::yield_now().await;
        assert_eq!(READS.read(Path::new("/run/token"), || Ok(3)).await, Ok(3));
        tokio::time::pause();
        advance(LONGEST_READ * 2).await;
        assert_hangs(hung.await.unwrap(), "/nfs/token: ");
        while let Some(read) = again.join_next().await {
            assert_hangs(read.unwrap(), "/nfs/token: ");
        }
        // It is known to hang by now.
        let asked = Instant::now();
        assert_hangs(READS.read(Path::new("/nfs/token"), || Ok(2)).await, "/nfs/token: ");
        assert_eq!(asked.elapsed(), Duration::ZERO);
        assert_eq!(READS.room.available_permits(), 1);
        drop(release);
    }

    /// Files that hang hold others up for a moment, and then they are read beside them.
    #[tokio::test(start_paused = true)]
    async fn reads_take_turns_while_none_hangs() {
        static READS: Reads = Reads::new(8);
        let mut reads = JoinSet::new();
        for path in 0..100 {
            let path = PathBuf::from(format!("/run/{path}"));
            let under_way = || Ok(8 - READS.room.available_permits());
            reads.spawn(async move { READS.read(&path, under_way).await });
        }
        while let Some(read) = reads.join_next().await {
            assert!((1..=TURNS).contains(&read.unwrap().unwrap()));
        }
        let (_one, release_one) = hang(&READS, "/nfs/1").await;
        let (_two, release_two) = hang(&READS, "/nfs/2").await;
        let third = tokio::spawn(READS.read(Path::new("/run/token"), || Ok(3)));
        tokio::task::yield_now().await;
        assert!(!third.is_finished());
        advance(LONGEST_TURN * 2).await;
        assert_eq!(third.await.unwrap(), Ok(3));
        drop((release_one, release_two));
    }

    /// Two that read one file at the same time both have it.
    #[tokio::test]
    async fn a_file_that_is_read_already_is_waited_for() {
        static READS: Reads = Reads::new(2);
        let (first, release) = hang(&READS, "/run/token").await;
        let second = tokio::spawn(READS.read(Path::new("/run/token"), || Ok(2)));
        tokio::task::yield_now().await;
        drop(release);
        assert_eq!((first.await.unwrap(), second.await.unwrap()), (Ok(1), Ok(2)));
    }
}
