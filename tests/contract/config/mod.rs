//! The configuration: what is documented holds, every mistake is found, and each value says where
//! it came from.
mod anything;
mod documented;
mod explained;
mod reloaded;
mod sources;
mod wrong;

use std::path::PathBuf;

use tempfile::TempDir;
use tollgate::config::{ConfigErrors, Loaded, load};

/// The least that is valid.
const LEAST: &str =
    "[upstream]\nendpoint = \"http://127.0.0.1:9460\"\ninstance_id = \"post-cn-x\"\n";

/// A file on disk for as long as the test runs.
struct File {
    path: PathBuf,
    _folder: TempDir,
}

impl File {
    fn new(content: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tollgate.toml");
        std::fs::write(&path, content).unwrap();
        Self { path, _folder: folder }
    }
}

fn read(file: &str) -> Result<Loaded, ConfigErrors> {
    read_with(file, &[], &[])
}

fn read_with(
    file: &str,
    env: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Loaded, ConfigErrors> {
    load(Some(&File::new(file).path), owned(env), &owned(flags))
}

fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// The value of one key as `check` shows it.
fn shown<'a>(loaded: &'a Loaded, key: &str) -> &'a str {
    let setting = loaded.settings.iter().find(|setting| setting.key == key);
    &setting.unwrap_or_else(|| panic!("{key} is not shown")).value
}

/// Where the value of one key came from, as `check` says it.
fn origin(loaded: &Loaded, key: &str) -> String {
    loaded.settings.iter().find(|setting| setting.key == key).unwrap().origin.to_string()
}
