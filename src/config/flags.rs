//! The flags of every verb that needs a configuration.

use std::path::PathBuf;

use super::{ConfigErrors, Loaded, load};

/// Where the configuration is, and what holds over it.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Flags {
    /// The configuration file; without one, the environment and the flags are all there is
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Sets one key over the file and the environment, as in --set publish.wait=2s; repeatable
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
}

impl Flags {
    /// Reads the file, this process's environment and the flags.
    pub fn load(&self) -> Result<Loaded, ConfigErrors> {
        load(self.config.as_deref(), environment(), &self.set)
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
