//! The name of this owner in Redis, and the name of its predecessor in the folder.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

const FILE: &str = "owner";
/// The most that is read back.
const LONGEST: u64 = 256;

/// A unique name, with the host's in it for an operator.
pub(super) fn name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let fit = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let host: String = host.trim().chars().filter(fit).take(63).collect();
    let random = getrandom::u64().unwrap_or_else(|_| fastrand::u64(..));
    format!("{host}-{random:016x}")
}

/// Writes `name` into the folder, and returns the predecessor's: the kernel releases a lock when its
/// process ends, however it ends, so the predecessor is dead. What another machine wrote, or what is
/// in a copy of the file, proves nothing. `None`: without a folder a death is noticed later.
pub(super) fn register(folder: &Path, name: &str) -> Option<(File, Option<String>)> {
    match lock(folder, name) {
        Ok(locked) => Some(locked),
        Err(error) => {
            let folder = folder.display();
            tracing::warn!(%folder, %error, "the file owner in spool.path cannot be locked: after a crash the messages of this sidecar wait about 15 s until a peer takes them over");
            None
        }
    }
}

fn lock(folder: &Path, name: &str) -> io::Result<(File, Option<String>)> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true).mode(0o600);
    let mut file = options.open(folder.join(FILE))?;
    file.try_lock().map_err(io::Error::from)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let here = format!("{} {}", boot.trim(), file.metadata()?.ino());
    let mut before = String::new();
    (&file).take(LONGEST).read_to_string(&mut before)?;
    let before = before.split_once(' ').filter(|(_, there)| *there == here && !boot.is_empty());
    let before = before.map(|(name, _)| name.to_owned());
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(format!("{name} {here}").as_bytes())?;
    file.sync_data()?;
    Ok((file, before))
}
