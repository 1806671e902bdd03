//! Where a value came from.

use std::fmt;
use std::path::PathBuf;

use figment::{Metadata, Source};

/// Where a value came from; later ones win over earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// No source has one: the default holds.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// The environment variable of this name.
    Environment(String),
    /// `--set`, with its key.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(_) => f.write_str("flag --set"),
        }
    }
}

impl Origin {
    /// As the merged sources carry it; [`Origin::of`] reads it back.
    pub(super) fn metadata(&self) -> Metadata {
        match self {
            Self::Default => Metadata::named("default"),
            Self::File(path) => Metadata::from("file", path.as_path()),
            Self::Environment(name) => Metadata::from("environment", name.as_str()),
            Self::Flag(key) => Metadata::from("flag", key.as_str()),
        }
    }

    pub(super) fn of(metadata: &Metadata) -> Self {
        match (&*metadata.name, &metadata.source) {
            ("file", Some(Source::File(path))) => Self::File(path.clone()),
            ("environment", Some(Source::Custom(name))) => Self::Environment(name.clone()),
            ("flag", Some(Source::Custom(key))) => Self::Flag(key.clone()),
            _ => Self::Default,
        }
    }
}
