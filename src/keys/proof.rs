//! Files with a token that proves who we are, such as a Kubernetes service account's. They are replaced
//! while we run, so each use reads them again.

use std::fs;
use std::io::Read;
use std::path::Path;

use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;

use super::error::KeyError;

/// The provider takes OIDC tokens of at most 20,000 characters.
const MAX_TOKEN: u16 = 20_000;

/// Reads a token, on a thread for blocking work; blanks around it are cut off.
pub(crate) async fn read_token(path: &Path) -> Result<SecretString, KeyError> {
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || read(&owned)).await;
    read.unwrap_or_else(|_| Err("reading it was cut off".to_owned()))
        .map_err(|why| KeyError::File { path: path.to_owned(), why })
}

fn read(path: &Path) -> Result<SecretString, String> {
    let text = read_text(path, MAX_TOKEN)?;
    let token = text.trim_ascii();
    if token.is_empty() {
        return Err("is empty".to_owned());
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("holds no token: it has white space or control characters".to_owned());
    }
    Ok(SecretString::from(token))
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
