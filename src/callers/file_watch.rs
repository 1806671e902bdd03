//! One look at many files for changes: to read a file takes a thread of its own, which hangs with its file system,
//! and a thousand files that hardly ever change are not worth that.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How often all files are looked at.
pub(super) const LOOK: Duration = Duration::from_secs(10);
/// A look that takes longer hangs with the file system of one of the files: the others are read without it, each time
/// that it has lasted so long again.
const HANGS: Duration = Duration::from_secs(50);
/// How often a file is read in any case: so that what it holds is trusted on, and for a file system on which changes
/// cannot be seen.
const READ: Duration = Duration::from_mins(10);

/// What tells a changed file. An atomic replacement has another inode, and a change in place another time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileStamp {
    /// Of what a path leads to; `None`: to nothing, or it cannot be seen. Blocks.
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            file: (found.dev(), found.ino()),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// A file that is read when it has changed.
#[derive(Debug)]
pub(super) struct WatchedFile {
    pub(super) path: PathBuf,
    changed: Notify,
    /// Whether the last read has found what it is read for.
    is_well: AtomicBool,
}

impl WatchedFile {
    pub(super) fn new(path: &Path) -> Self {
        let (changed, is_well) = (Notify::new(), AtomicBool::new(false));
        Self { path: path.to_owned(), changed, is_well }
    }

    /// The file was read.
    pub(super) fn was_read(&self, outcome: Found) {
        self.is_well.store(outcome == Found::Secret, Ordering::Relaxed);
    }

    /// Until it is to be read again. One that was not well is, after as long as a look comes: it may have been half
    /// replaced, so two reads are not to follow each other at once.
    pub(super) async fn next(&self) {
        if !self.is_well.load(Ordering::Relaxed) {
            return sleep(LOOK).await;
        }
        tokio::select! {
            () = self.changed.notified() => {}
            () = sleep(READ) => {}
        }
    }
}

/// What a read has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Secret,
    None,
}

/// Looks at these files again and again, until `stop`.
pub(super) fn watch(files: Vec<Arc<WatchedFile>>, stop: &CancellationToken) {
    if files.is_empty() {
        return;
    }
    let stop = stop.clone();
    let looks = look_again_and_again(files, look_at);
    tokio::spawn(async move { stop.run_until_cancelled(looks).await });
}

/// A file, and its stamp when it was last looked at.
type Seen = (Arc<WatchedFile>, Option<FileStamp>);

async fn look_again_and_again(
    files: Vec<Arc<WatchedFile>>,
    look_at: impl Fn(&mut [Seen]) + Clone + Send + 'static,
) {
    let mut seen: Vec<Seen> = files.iter().map(|file| (Arc::clone(file), None)).collect();
    loop {
        sleep(LOOK).await;
        let look_at = look_at.clone();
        let look = move || {
            look_at(&mut seen);
            seen
        };
        let mut look = spawn_blocking(look);
        seen = loop {
            match timeout(HANGS, &mut look).await {
                Ok(Ok(seen)) => break seen,
                // It ends without them only with the runtime.
                Ok(Err(_)) => return,
                Err(_) => files.iter().for_each(|file| file.changed.notify_one()),
            }
        };
    }
}

fn look_at(files: &mut [Seen]) {
    for (file, seen) in files {
        let stamp = FileStamp::of(&file.path);
        if stamp.is_none() || *seen != stamp {
            file.changed.notify_one();
        }
        *seen = stamp;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::{Mutex, mpsc};

    use tempfile::TempDir;
    use tokio::task::yield_now;
    use tokio::time::advance;

    use super::*;

    /// Whether it is to be read now.
    async fn is_due(file: &WatchedFile) -> bool {
        timeout(Duration::ZERO, file.next()).await.is_ok()
    }

    #[tokio::test]
    async fn what_is_read_again() {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["one", "two"] {
            fs::write(path(name), "hush-of-the-same-length").unwrap();
        }
        symlink("one", path("link")).unwrap();
        let file = Arc::new(WatchedFile::new(&path("link")));
        file.was_read(Found::Secret);
        let mut files = [(Arc::clone(&file), None)];
        let mut due = async || {
            look_at(&mut files);
            is_due(&file).await
        };
        assert!(due().await, "it may have changed since it was read first");
        assert!(!due().await);
        // In place, with another file's content, and as a volume of Kubernetes changes.
        fs::write(path("one"), "hush-of-another-length-than-before").unwrap();
        assert!(due().await);
        symlink("two", path("next")).unwrap();
        fs::rename(path("next"), path("link")).unwrap();
        assert!(due().await);
        assert!(!due().await);
        // Gone, and as long as it is.
        fs::remove_file(path("link")).unwrap();
        assert!(due().await);
        assert!(due().await);
        symlink("one", path("link")).unwrap();
        assert!(due().await);
        assert!(!due().await);
    }

    #[tokio::test(start_paused = true)]
    async fn files_are_read_while_a_look_hangs() {
        let file = Arc::new(WatchedFile::new(Path::new("/nowhere")));
        file.was_read(Found::Secret);
        let (release, hangs) = mpsc::channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        let look = move |_: &mut [Seen]| assert!(hangs.lock().unwrap().recv().is_err());
        let looks = tokio::spawn(look_again_and_again(vec![Arc::clone(&file)], look));
        yield_now().await;
        advance(LOOK).await;
        for _ in 0..3 {
            yield_now().await;
            assert!(!is_due(&file).await);
            advance(HANGS).await;
            yield_now().await;
            assert!(is_due(&file).await);
        }
        looks.abort();
        drop(release);
    }

    /// Without any look; and two reads of one that has no secret are a look apart.
    #[tokio::test(start_paused = true)]
    async fn a_file_is_read_in_any_case() {
        let file = WatchedFile::new(Path::new("/nowhere"));
        let begun = tokio::time::Instant::now();
        file.was_read(Found::Secret);
        file.next().await;
        assert_eq!(begun.elapsed(), READ);
        file.changed.notify_one();
        file.was_read(Found::None);
        file.next().await;
        assert_eq!(begun.elapsed(), READ + LOOK);
    }
}
