//! The configuration file: where it is, and its contents as one look found them.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where the file is, if no flag says so.
const VARIABLE: &str = "TOLLGATE_CONFIG";
const USUAL: &str = "/etc/tollgate/tollgate.toml";
/// More than a configuration needs. A path like `/dev/zero` has no end.
const MOST_BYTES: u64 = 1 << 20;

/// The contents of the configuration file, or why it was not read. Two are equal if two looks agree.
#[derive(Clone, PartialEq, Eq)]
pub struct ConfigFile {
    path: PathBuf,
    text: Result<String, String>,
}

impl ConfigFile {
    /// The path of the file: the flag's; else that of the variable `TOLLGATE_CONFIG`; else
    /// `/etc/tollgate/tollgate.toml`, if it exists.
    pub fn path(flag: Option<&Path>) -> Option<PathBuf> {
        let variable = || std::env::var_os(VARIABLE).filter(|path| !path.is_empty());
        // One that cannot be looked at is there: reading it says why.
        let usual = || Some(PathBuf::from(USUAL)).filter(|path| path.try_exists().unwrap_or(true));
        flag.map(Path::to_owned).or_else(|| variable().map(PathBuf::from)).or_else(usual)
    }

    /// Looks at the file once. Blocks.
    pub fn read(path: &Path) -> Self {
        Self { path: path.to_owned(), text: contents(path) }
    }

    /// Whether its contents were read.
    pub fn is_readable(&self) -> bool {
        self.text.is_ok()
    }

    /// Looks at the file again. Blocks.
    #[must_use]
    pub fn read_again(&self) -> Self {
        Self::read(&self.path)
    }

    /// Whether it is a file that can be looked at again, and no pipe. Blocks.
    pub fn can_change(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|metadata| metadata.is_file())
    }

    pub(super) fn origin(&self) -> PathBuf {
        self.path.clone()
    }

    pub(super) fn text(&self) -> Result<&str, &str> {
        self.text.as_deref().map_err(String::as_str)
    }
}

impl fmt::Debug for ConfigFile {
    /// Its values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ConfigFile").field(&self.path).finish()
    }
}

fn contents(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > MOST_BYTES {
        return Err(format!("it is larger than {MOST_BYTES} bytes"));
    }
    Ok(text)
}
