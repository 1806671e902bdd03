//! Files with a token that proves who we are, such as a Kubernetes service account's. They are replaced
//! while we run, so each use reads them again.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::error::KeyError;

/// The provider takes OIDC tokens of at most 20,000 characters.
const MAX_TOKEN: u16 = 20_000;
/// A file system that works takes milliseconds.
const LONGEST_READ: Duration = Duration::from_secs(5);
/// Threads that read at once.
const MOST_HANGING: usize = 16;

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
/// hangs on: no more of them do than [`MOST_HANGING`].
pub(crate) async fn read_blocking<T: Send + 'static>(
    path: &Path,
    read: impl FnOnce() -> Result<T, KeyError> + Send + 'static,
) -> Result<T, KeyError> {
    static ROOM: Semaphore = Semaphore::const_new(MOST_HANGING);
    read_within(&ROOM, path, read).await
}

async fn read_within<T: Send + 'static>(
    room: &'static Semaphore,
    path: &Path,
    read: impl FnOnce() -> Result<T, KeyError> + Send + 'static,
) -> Result<T, KeyError> {
    let reading = async {
        let permit = room.acquire().await;
        let read = move || {
            let read = read();
            drop(permit);
            read
        };
        tokio::task::spawn_blocking(read).await
    };
    let failed = |why: &str| KeyError::File { path: path.to_owned(), why: why.to_owned() };
    match timeout(LONGEST_READ, reading).await {
        Ok(Ok(read)) => read,
        Ok(Err(_)) => Err(failed("reading it was cut off")),
        Err(_) => Err(failed("cannot be read in time: does its file system hang?")),
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

    use tokio::time::advance;

    use super::*;

    /// A mount whose server is gone: who reads it gets an answer in time, and threads do not pile up.
    #[tokio::test]
    async fn a_file_system_that_hangs() {
        static ROOM: Semaphore = Semaphore::const_new(1);
        let (release, hangs) = mpsc::channel::<()>();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let hung = tokio::spawn(read_within(&ROOM, Path::new("/nfs/token"), move || {
            begun.send(()).unwrap();
            hangs.recv().unwrap_err();
            Ok(1)
        }));
        begins.await.unwrap();
        tokio::time::pause();
        // It needs a place of its own, and there is none.
        let other = tokio::spawn(read_within(&ROOM, Path::new("/nfs/other"), || Ok(2)));
        tokio::task::yield_now().await;
        // Time that is paused does not go on by itself while a thread works.
        advance(LONGEST_READ * 2).await;
        let error = hung.await.unwrap().unwrap_err().to_string();
        assert!(error.starts_with("/nfs/token: ") && error.contains("hang"), "{error}");
        assert!(other.await.unwrap().is_err());
        drop(release);
        tokio::time::resume();
        let again = read_within(&ROOM, Path::new("/nfs/token"), || Ok(3)).await;
        assert_eq!(again, Ok(3), "a place is free again when the read has ended");
    }
}
