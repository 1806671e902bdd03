//! Why there is no key. No text here repeats a key's parts, a URI's query or an answer's body:
//! errors end up in logs and on pages.

use std::path::PathBuf;

use jiff::Timestamp;

/// Why there is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The source has brought none so far.
    #[error("no access key has been loaded yet")]
    NotLoaded,
    /// The only one is too old.
    #[error("the access key expired at {0}")]
    Expired(Timestamp),
    /// An environment variable is absent or empty.
    #[error("{0} is not set")]
    Missing(&'static str),
    /// A part of the key cannot be one.
    #[error("the {part} {flaw}")]
    Invalid {
        /// Which one.
        part: &'static str,
        /// What is wrong with it.
        flaw: Flaw,
    },
    /// A file of the key cannot be read.
    #[error("{}: {why}", path.display())]
    File {
        /// The file, or the folder.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
    /// The credentials URI is not one.
    #[error("the credentials URI must be an absolute http:// or https:// URI")]
    NotUri,
    /// No client for a server that gives out keys could be made.
    #[error("no HTTP client for the server that gives out keys: {0}")]
    Client(String),
    /// A server brought no key.
    #[error("{origin}: {why}")]
    Server {
        /// Scheme, host and port; neither user, path nor query, where secrets may stand.
        origin: String,
        /// What went wrong.
        why: String,
    },
    /// The source did not end in time.
    #[error("{0}: no answer while there was time")]
    Slow(String),
    /// The server refused the key that asked it.
    #[error("{origin}: {why}")]
    Refused {
        /// Scheme, host and port.
        origin: String,
        /// What it said.
        why: String,
    },
    /// There is no such source here: no variable, file or service of it. Others may have a key.
    #[error("{0}")]
    Absent(String),
    /// None of several sources has one.
    #[error("no source has a key: {0}")]
    NoSource(String),
    /// One of several sources is set up here, and does not work. No other takes its place.
    #[error("{source_word}, which is set up here: {why}")]
    NotYet {
        /// Its word in the configuration.
        source_word: &'static str,
        /// What went wrong.
        why: Box<Self>,
    },
}

/// What is wrong with a part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Nothing is there.
    #[error("is empty")]
    Empty,
    /// It holds what cannot stand in a header.
    #[error("has white space, control characters or characters outside ASCII")]
    Character,
    /// It is no text at all.
    #[error("is not text")]
    NotText,
    /// It is too long to be one.
    #[error("is longer than {0} characters")]
    Long(usize),
}
