//! The flags of every verb that needs a configuration.

use std::path::PathBuf;

use super::file::ConfigFile;
use super::load::{load_file, load_over};
use super::{ConfigErrors, Loaded};

const FILE_HELP: &str = "Configuration file [default: $TOLLGATE_CONFIG, or /etc/tollgate/tollgate.toml if it \
                         exists]; without one, only the environment and --set are used";

/// Where the configuration is, and what holds over it.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// The configuration file.
    #[arg(long, global = true, value_name = "FILE", help = FILE_HELP)]
    pub config: Option<PathBuf>,
    /// Set one key; overrides the file and the environment, for example --set publish.wait=2s; repeatable
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
}

impl Flags {
    /// Where the configuration file is; `None`: there is none.
    pub fn file(&self) -> Option<PathBuf> {
        ConfigFile::path(self.config.as_deref())
    }

    /// Reads the file, this process's environment and the flags. Blocks.
    pub fn load(&self) -> Result<Loaded, ConfigErrors> {
        self.load_file(self.file().as_deref().map(ConfigFile::read).as_ref())
    }

    /// Like [`Self::load`], with a file that was read already.
    pub fn load_file(&self, file: Option<&ConfigFile>) -> Result<Loaded, ConfigErrors> {
        load_file(file, environment(), &self.set)
    }

    /// For a verb that asks a running sidecar, or reads what one has left: calls to the provider do
    /// not concern it, so `[upstream]` may be missing.
    pub fn load_for_operator(&self) -> Result<Loaded, ConfigErrors> {
        let unused = [("endpoint", "https://unset.invalid"), ("instance_id", "unset")];
        let unused = unused.map(|(key, value)| (format!("upstream.{key}"), value.to_owned()));
        let file = self.file().as_deref().map(ConfigFile::read);
        load_over(&unused, file.as_ref(), environment(), &self.set)
    }
}

/// All variables. One that is not UTF-8 is kept in a form that its check will not like.
fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

fn key_value(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}
