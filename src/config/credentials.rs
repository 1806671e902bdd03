//! `[keys]`: where the access key comes from.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::checks::{HOUR, path};
use super::read::{Reader, choice, duration, optional, value};
use super::table::section;
use super::uri;

/// `[keys]`: where the key comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum Keys {
    /// `ALIBABA_CLOUD_ACCESS_KEY_ID`, `…_SECRET` and `ALIBABA_CLOUD_SECURITY_TOKEN`.
    Env,
    /// A folder with a file for each part, as Kubernetes mounts a Secret.
    File {
        /// The folder.
        path: PathBuf,
        /// How often its contents are compared.
        poll: Duration,
    },
    /// A URI that answers with a short-lived key.
    Uri {
        /// The URI.
        uri: String,
    },
}

impl fmt::Debug for Keys {
    /// A URI may hold a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env => f.write_str("Env"),
            Self::File { path, poll } => {
                f.debug_struct("File").field("path", path).field("poll", poll).finish()
            }
            Self::Uri { uri } => f.debug_struct("Uri").field("uri", &uri::mask(uri)).finish(),
        }
    }
}

#[derive(Clone, Copy)]
pub(super) enum KeySource {
    Env,
    File,
    Uri,
}

const SOURCES: [(&str, KeySource); 3] =
    [("env", KeySource::Env), ("file", KeySource::File), ("uri", KeySource::Uri)];

section! {
    pub(super) struct KeyRows [keys] {
        /// Where the key comes from:
        ///   "env"   ALIBABA_CLOUD_ACCESS_KEY_ID, ALIBABA_CLOUD_ACCESS_KEY_SECRET and, for a temporary key,
        ///           ALIBABA_CLOUD_SECURITY_TOKEN
        ///   "file"  a folder with a file for each part, as Kubernetes mounts a Secret; followed when changed
        ///   "uri"   a URI that answers with a temporary key
        source: KeySource = "env", choice(&SOURCES);

        /// For "file": the folder, and how often tollgate compares its contents.
        path: PathBuf = "/var/run/secrets/tollgate", value(path);
        poll: Duration = "2s", duration(Duration::from_millis(10)..=HOUR);

        /// For "uri": the URI, http or https. If it is not set, tollgate uses the variable
        /// ALIBABA_CLOUD_CREDENTIALS_URI.
        uri: Option<String> => Example "http://127.0.0.1:8900/credentials",
            optional(|raw| uri::credentials(raw.text()?));
    }
    check uri_is_set(source, uri);
}

fn uri_is_set(r: &mut Reader<'_>, source: Option<&KeySource>, uri: Option<&Option<String>>) {
    if let (Some(KeySource::Uri), Some(None)) = (source, uri) {
        r.conflict(
            "keys.uri",
            "is required where keys.source is \"uri\"",
            "set keys.uri or ALIBABA_CLOUD_CREDENTIALS_URI",
        );
    }
}

pub(super) fn keys(r: &mut Reader<'_>) -> Option<Keys> {
    let KeyRows { source, path, poll, uri } = KeyRows::read(r)?;
    match source {
        KeySource::Env => Some(Keys::Env),
        KeySource::File => Some(Keys::File { path, poll }),
        KeySource::Uri => Some(Keys::Uri { uri: uri? }),
    }
}
