//! The folder source: Kubernetes' symlink swap, plain files, and everything that can be wrong.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use secrecy::ExposeSecret;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tollgate::config::KeySource;
use tollgate::keys::{Key, KeyError, KeyFolder, Keys, Source};

const POLL: Duration = Duration::from_secs(5);

/// A Secret's folder, changed as the kubelet does it.
struct Mount {
    folder: TempDir,
    version: usize,
}

impl Mount {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for part in ["access_key_id", "access_key_secret", "security_token"] {
            symlink(format!("..data/{part}"), folder.path().join(part)).unwrap();
        }
        Self { folder, version: 0 }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// Version `n` has an id, a secret and, if `n` is odd, a token that belong together.
    fn publish_next(&mut self) {
        self.version += 1;
        let n = self.version;
        self.publish(|version| {
            fs::write(version.join("access_key_id"), format!("id-{n}")).unwrap();
            fs::write(version.join("access_key_secret"), format!("secret-{n}\n")).unwrap();
            if n % 2 == 1 {
                fs::write(version.join("security_token"), format!("token-{n}")).unwrap();
            }
        });
    }

    fn publish(&mut self, fill: impl FnOnce(&Path)) {
        let old = fs::read_link(self.path().join("..data"));
        let unique = format!("..{}", fastrand::u64(..));
        let version = self.path().join(&unique);
        fs::create_dir(&version).unwrap();
        fill(&version);
        symlink(&unique, self.path().join("..data_tmp")).unwrap();
        fs::rename(self.path().join("..data_tmp"), self.path().join("..data")).unwrap();
        if let Ok(old) = old {
            let old = self.path().join(old);
            // The optional part first: a reader that is still there could take it for absent.
            fs::remove_file(old.join("security_token")).ok();
            fs::remove_dir_all(old).unwrap();
        }
    }
}

fn version_of(key: &Key) -> usize {
    let n: usize = key.id().strip_prefix("id-").unwrap().parse().unwrap();
    assert_eq!(key.secret().expose_secret(), format!("secret-{n}"));
    let token = (n % 2 == 1).then(|| format!("token-{n}"));
    assert_eq!(key.token().map(ExposeSecret::expose_secret), token.as_deref(), "version {n}");
    n
}

#[tokio::test(start_paused = true)]
async fn swaps_under_continuous_reading_never_mix_two_versions() {
    let mut mount = Mount::new();
    mount.publish_next();
    let mut folder = KeyFolder::new(mount.path(), POLL);
    let done = Arc::new(AtomicBool::new(false));
    let swapping = {
        let done = Arc::clone(&done);
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                mount.publish_next();
            }
            mount
        })
    };
    let (mut read, mut unlucky) = (0, 0);
    let mut versions = HashSet::new();
    // A version counts once it was seen: enough reads alone say nothing if swaps are slow.
    while read < 5_000 || versions.len() < 500 {
        match folder.load().await {
            Ok(key) => {
                read += 1;
                versions.insert(version_of(&key));
            }
            Err(error) => {
                unlucky += 1;
                assert!(error.to_string().ends_with("changes while it is read"), "{error}");
                assert!(unlucky < 5_000, "reads hardly ever succeed");
            }
        }
    }
    done.store(true, Ordering::Relaxed);
    let mount = swapping.join().unwrap();
    println!("{read} reads, {unlucky} unlucky, {} versions seen", versions.len());
    assert_eq!(version_of(&folder.load().await.unwrap()), mount.version);
}

/// Not read as plain files, which could be of two versions.
#[tokio::test(start_paused = true)]
async fn a_link_to_a_version_that_is_gone() {
    let mut mount = Mount::new();
    mount.publish_next();
    fs::remove_dir_all(fs::canonicalize(mount.path().join("..data")).unwrap()).unwrap();
    let error = KeyFolder::new(mount.path(), POLL).load().await.unwrap_err().to_string();
    assert!(error.ends_with("..data: leads to a folder that does not exist"), "{error}");
}

fn start(path: PathBuf) -> Keys {
    Keys::start(&KeySource::File { path, poll: POLL }.into(), CancellationToken::new()).unwrap()
}

// Paused time moves on by itself only while nothing reads a file.
#[tokio::test(start_paused = true)]
async fn a_mounted_secret_is_waited_for_taken_up_and_outlived() {
    let mut mount = Mount::new();
    let keys = start(mount.path());
    assert!(matches!(keys.current(), Err(KeyError::NotLoaded)));
    mount.publish_next();
    keys.loaded().await;
    let first = keys.current().unwrap();
    assert_eq!(version_of(&first), 1);

    mount.publish_next();
    keys.changed_from(&first).await;
    let second = keys.current().unwrap();
    assert_eq!(version_of(&second), 2);

    // A version without a secret; then no version at all; then nothing at all.
    mount.publish(|version| fs::write(version.join("access_key_id"), "id-3").unwrap());
    assert!(!keys.refresh(&second).await);
    let error = keys.status().last_error.unwrap();
    assert!(error.ends_with("/access_key_secret: does not exist"), "{error}");
    assert!(!error.contains("/..data"), "as the operator knows it: {error}");
    fs::remove_file(mount.path().join("..data")).unwrap();
    assert!(!keys.refresh(&second).await);
    let failed = keys.status().reloads_failed;
    fs::remove_dir_all(mount.path()).unwrap();
    assert!(!keys.refresh(&second).await);
    assert!(keys.status().reloads_failed > failed);
    assert_eq!(version_of(&keys.current().unwrap()), 2, "the last good key stays");
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_is_looked_for_anew_without_waiting_for_the_poll() {
    let mut mount = Mount::new();
    mount.publish_next();
    let keys = start(mount.path());
    keys.loaded().await;
    let first = keys.current().unwrap();
    let before = tokio::time::Instant::now();
    assert!(!keys.refresh(&first).await);
    mount.publish_next();
    assert!(keys.refresh(&first).await);
    assert_eq!(version_of(&keys.current().unwrap()), 2);
    assert!(before.elapsed() < POLL);
}

// === Plain files ===

fn plain(id: &[u8], secret: &[u8]) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("access_key_id"), id).unwrap();
    fs::write(folder.path().join("access_key_secret"), secret).unwrap();
    folder
}

#[tokio::test(start_paused = true)]
async fn plain_files_are_believed_once_they_stay_the_same() {
    let folder = plain(b"id-2\n", b"secret-2\r\n");
    let mut source = KeyFolder::new(folder.path().to_owned(), POLL);
    assert_eq!(version_of(&source.load().await.unwrap()), 2);

    // Somebody writes the next key while we look.
    fs::write(folder.path().join("access_key_id"), "id-4").unwrap();
    let writer = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        fs::write(folder.path().join("access_key_secret"), "secret-4").unwrap();
    };
    let (found, ()) = tokio::join!(source.load(), writer);
    assert!(found.unwrap_err().to_string().ends_with("changes while it is read"));
    assert_eq!(version_of(&source.load().await.unwrap()), 4);
    // Known files need no second look.
    let before = tokio::time::Instant::now();
    assert_eq!(version_of(&source.load().await.unwrap()), 4);
    assert_eq!(before.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn files_that_are_no_key_are_refused_without_being_repeated() {
    let huge = vec![b'h'; 16 * 1024 + 1];
    let large = vec![b'h'; 16 * 1024];
    for (id, secret, expected) in [
        (b"id".as_slice(), b"".as_slice(), "secret is empty"),
        (b"", b"hush", "id is empty"),
        (b"id", b"\n", "secret is empty"),
        (b"id", b"hush\nhush", "white space"),
        (b"id", b"hush\0hush", "control characters"),
        (b"id", b"\xff\xfehush", "secret is not text"),
        (b"\x7fELF\x02\xb8", b"hush", "id is not text"),
        (b"id", &large, "longer than 256 characters"),
        (b"id", &huge, "access_key_secret: is larger than 16384 bytes"),
    ] {
        let folder = plain(id, secret);
        let error = KeyFolder::new(folder.path().to_owned(), POLL).load().await.unwrap_err();
        let shown = error.to_string();
        assert!(shown.contains(expected), "{shown}");
        let named = folder.path().display().to_string();
        let shown = format!("{shown} {error:?}").replace(&named, "");
        assert!(!shown.contains("hush") && !shown.contains("hhh"), "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_folder_or_a_pipe_in_a_files_place_does_not_hold_us_up() {
    let folder = plain(b"id-2", b"secret-2");
    let token = folder.path().join("security_token");
    let mut source = KeyFolder::new(folder.path().to_owned(), POLL);
    fs::create_dir(&token).unwrap();
    let error = source.load().await.unwrap_err().to_string();
    assert!(error.ends_with("security_token: is not a file"), "{error}");
    fs::remove_dir(&token).unwrap();
    assert!(Command::new("mkfifo").arg(&token).status().unwrap().success());
    let error = source.load().await.unwrap_err().to_string();
    assert!(error.ends_with("security_token: is not a file"), "{error}");
    fs::remove_file(&token).unwrap();
    assert_eq!(version_of(&source.load().await.unwrap()), 2);
}
