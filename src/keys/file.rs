//! The key from a folder with a file for each part, as Kubernetes mounts a Secret.
//!
//! The kubelet writes each version of a Secret into a folder of its own, `..2026_11_20_…`, and then
//! renames a symlink, `..data`, over the old one; `access_key_id` is itself a symlink through
//! `..data`. Who opens the parts one after the other by those names can get the id of one version
//! and the secret of the next. So `..data` is resolved once, all parts are read from that one
//! version, and in the end `..data` must still lead there: the kubelet removes an old version only
//! after the rename, so if it hasn't moved, a part that was absent was really absent.
//!
//! File watchers are fooled by the swap (they watch the file of the old version), so contents are
//! compared every few seconds instead.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::sleep;

use super::error::{Flaw, KeyError};
use super::key::Key;
use super::proof::read_blocking;
use super::source::{Pace, Source};

const ID: &str = "access_key_id";
const SECRET: &str = "access_key_secret";
const TOKEN: &str = "security_token";
const DATA: &str = "..data";

/// The largest file that is read. A part of a key is far smaller.
const MAX_FILE: u16 = 16 * 1024;
/// How often a read is begun anew because `..data` moved meanwhile.
const TRIES: u32 = 8;
/// How long plain files must stay the same before they are believed.
const SETTLE: Duration = Duration::from_millis(200);

/// A folder with `access_key_id`, `access_key_secret` and, for short-lived keys, `security_token`.
pub struct KeyFolder {
    path: PathBuf,
    poll: Duration,
    /// The plain files that were found stable.
    settled: Option<Parts>,
}

/// What one read found.
enum FoundKey {
    /// Parts that were put there in one step.
    Version(Parts),
    /// Files that an operator or a script writes one after the other.
    Plain(Parts),
}

#[derive(Clone)]
struct Parts {
    id: SecretString,
    secret: SecretString,
    token: Option<SecretString>,
}

impl KeyFolder {
    /// A folder, and how often its contents are compared.
    pub fn new(path: PathBuf, poll: Duration) -> Self {
        Self { path, poll, settled: None }
    }

    async fn read(&self) -> Result<FoundKey, KeyError> {
        let path = self.path.clone();
        read_blocking(&self.path, move || read(&path)).await
    }
}

impl Source for KeyFolder {
    fn as_str(&self) -> &'static str {
        "file"
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn pace(&self) -> Pace {
        Pace::Every(self.poll)
    }

    async fn load(&mut self) -> Result<Key, KeyError> {
        match self.read().await? {
            FoundKey::Version(parts) => parts.into_key(),
            FoundKey::Plain(parts) if self.settled.as_ref() == Some(&parts) => parts.into_key(),
            // Nothing says when the last of several plain files is written. That they stay the
            // same for a moment is the best sign there is: it catches a writer at work, not one
            // that rests longer between two files. Only the swap of `..data` is free of doubt.
            FoundKey::Plain(parts) => {
                sleep(SETTLE).await;
                match self.read().await? {
                    FoundKey::Version(parts) => parts.into_key(),
                    FoundKey::Plain(again) if again == parts => {
                        self.settled = Some(again);
                        parts.into_key()
                    }
                    FoundKey::Plain(_) => Err(failure(&self.path, CHANGING)),
                }
            }
        }
    }
}

const CHANGING: &str = "changes while it is read";

fn failure(path: &Path, why: impl Into<String>) -> KeyError {
    KeyError::File { path: path.to_owned(), why: why.into() }
}

fn read(folder: &Path) -> Result<FoundKey, KeyError> {
    let data = folder.join(DATA);
    let mut broken = 0;
    for _ in 0..TRIES {
        let Some(version) = resolve(&data)? else {
            if fs::symlink_metadata(&data).is_ok() {
                // A link whose version is gone: most likely a swap came between. Read as plain files,
                // two versions could mix.
                broken += 1;
                continue;
            }
            return Parts::read(folder, folder).map(FoundKey::Plain);
        };
        let parts = Parts::read(&version, folder);
        // A failure, too, counts only if the version was not being removed.
        if resolve(&data)?.as_ref() == Some(&version) {
            return parts.map(FoundKey::Version);
        }
    }
    if broken == TRIES {
        return Err(failure(&data, "leads to a folder that does not exist"));
    }
    Err(failure(folder, CHANGING))
}

/// The folder that a symlink leads to; `None` if there is none.
fn resolve(data: &Path) -> Result<Option<PathBuf>, KeyError> {
    match fs::canonicalize(data) {
        Ok(version) => Ok(Some(version)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failure(data, error.to_string())),
    }
}

impl Parts {
    /// Reads from one version; errors name the file as the operator knows it.
    fn read(version: &Path, folder: &Path) -> Result<Self, KeyError> {
        let part = |name: &str, part| read_part(&version.join(name), &folder.join(name), part);
        let needed = |name: &str, found: Option<SecretString>| {
            found.ok_or_else(|| failure(&folder.join(name), "does not exist"))
        };
        Ok(Self {
            id: needed(ID, part(ID, "access key id")?)?,
            secret: needed(SECRET, part(SECRET, "access key secret")?)?,
            token: part(TOKEN, "security token")?,
        })
    }

    fn into_key(self) -> Result<Key, KeyError> {
        Key::new(self.id.expose_secret(), self.secret, self.token, None)
    }
}

impl PartialEq for Parts {
    fn eq(&self, other: &Self) -> bool {
        self.id.expose_secret() == other.id.expose_secret()
            && self.secret.expose_secret() == other.secret.expose_secret()
            && self.token.as_ref().map(ExposeSecret::expose_secret)
                == other.token.as_ref().map(ExposeSecret::expose_secret)
    }
}

fn read_part(
    path: &Path,
    named: &Path,
    part: &'static str,
) -> Result<Option<SecretString>, KeyError> {
    let failed = |error: io::Error| failure(named, error.to_string());
    // Asked before opening, since opening a named pipe would wait for its writer.
    match fs::metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(failure(named, "is not a file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    // As large as it can get: growing would leave copies behind that are not wiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::from(MAX_FILE) + 64));
    file.take(u64::from(MAX_FILE) + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > usize::from(MAX_FILE) {
        return Err(failure(named, format!("is larger than {MAX_FILE} bytes")));
    }
    let text = std::str::from_utf8(&bytes);
    let text = text.map_err(|_| KeyError::Invalid { part, flaw: Flaw::NotText })?;
    Ok(Some(SecretString::from(text)))
}
