//! Damaged bytes are set aside, for an operator who wants to know what they were.

use std::io;

use super::files::{DAMAGED, Disk};

/// The most files that are set aside; the oldest go first.
const MAX_FILES: usize = 64;
/// The most bytes of one.
const MAX_BYTES: u64 = 1024 * 1024;
/// How much is overwritten at a time.
const CHUNK: u64 = 64 * 1024;

/// Bytes in a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// Copies a range away and then overwrites it with zeros, so that it is not found again. What
/// cannot be copied stays where it is.
pub(super) fn set_aside(disk: &dyn Disk, name: &str, range: Range) {
    let Range { offset, len } = range;
    match copy(disk, name, range).and_then(|()| zero(disk, name, range)) {
        Ok(()) => tracing::warn!(
            file = name,
            offset,
            bytes = len,
            "damaged bytes: copied to the folder damaged, and skipped"
        ),
        Err(error) => {
            tracing::warn!(file = name, offset, bytes = len, %error, "damaged bytes: they could not be copied aside, and stay in the file");
        }
    }
}

fn copy(disk: &dyn Disk, name: &str, Range { offset, len }: Range) -> io::Result<()> {
    let mut files = disk.list(DAMAGED)?;
    // Segments are numbered, and so are these: the first name is the oldest.
    files.sort();
    for (old, _) in files.iter().take((files.len() + 1).saturating_sub(MAX_FILES)) {
        disk.remove(&format!("{DAMAGED}/{old}"))?;
    }
    let mut bytes = vec![0; usize::try_from(len.min(MAX_BYTES)).unwrap_or(usize::MAX)];
    disk.read_at(name, offset, &mut bytes)?;
    let stem = name.strip_suffix(".log").unwrap_or(name);
    let copy = format!("{DAMAGED}/{stem}-{offset:08x}.bin");
    let mut file = match disk.create(&copy) {
        // Left by a crash before the zeros were written.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(&copy)?;
            disk.create(&copy)?
        }
        file => file?,
    };
    file.append(&bytes)?;
    file.sync_data()
}

fn zero(disk: &dyn Disk, name: &str, Range { offset, len }: Range) -> io::Result<()> {
    let zeros = vec![0; usize::try_from(len.min(CHUNK)).unwrap_or(usize::MAX)];
    let mut done = 0;
    while done < len {
        let now = CHUNK.min(len - done);
        disk.overwrite(name, offset + done, &zeros[..usize::try_from(now).unwrap_or(0)])?;
        done += now;
    }
    Ok(())
}
