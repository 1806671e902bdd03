//! Reads a segment from its beginning to its end, past whatever is damaged in it.

use std::io;

use super::files::Disk;
use crate::spool::frame::{HEAD, Head, MAGIC, RecordKind};

/// How much is read at a time. Only a longer frame takes more memory.
const CHUNK: u64 = 256 * 1024;

/// What lies in a segment.
pub(super) enum Scanned<'a> {
    /// A frame as it was written.
    Frame { kind: RecordKind, head: Head, offset: u64, meta: &'a [u8] },
    /// Bytes that are not what was written; their head, if that much is left.
    Damage { head: Option<Head>, offset: u64, len: u64 },
}

/// A segment on the disk.
#[derive(Clone, Copy)]
pub(super) struct ScannedFile<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) name: &'a str,
    pub(super) salt: u64,
    pub(super) len: u64,
}

/// Calls `found` for each thing in the file, in order; it says whether it understood the frame.
/// Zeros between frames are none: damage that was set aside, or room that was never written.
pub(super) fn scan(
    file: ScannedFile<'_>,
    found: &mut dyn FnMut(Scanned<'_>) -> bool,
) -> io::Result<()> {
    let mut window = FileWindow { file, base: 0, bytes: Vec::new() };
    let mut at = 0;
    // Where bytes began that belong to no frame.
    let mut lost: Option<u64> = None;
    let damage = |head, offset, len, found: &mut dyn FnMut(Scanned<'_>) -> bool| {
        found(Scanned::Damage { head, offset, len });
    };
    while at < file.len {
        if lost.is_none() {
            at = window.find(at, |byte| byte != 0)?;
        }
        let head = match window.get(at, HEAD as u64)? {
            Some(bytes) => Head::read(bytes, file.salt, at),
            None => None,
        };
        let Some(head) = head.filter(|head| at + head.len() <= file.len) else {
            if at < file.len {
                lost.get_or_insert(at);
                at = window.find(at + 1, |byte| byte == MAGIC[0])?;
            }
            continue;
        };
        if let Some(start) = lost.take() {
            damage(None, start, at - start, found);
        }
        let len = head.len();
        let frame = window.get(at, len)?.unwrap_or_default();
        let content = head.content(frame, file.salt, at);
        let understood = match (head.kind, content) {
            (Some(kind), Some((meta, _))) => found(Scanned::Frame { kind, head, offset: at, meta }),
            _ => false,
        };
        if !understood {
            damage(Some(head), at, len, found);
        }
        at += len;
    }
    if let Some(start) = lost {
        damage(None, start, file.len - start, found);
    }
    Ok(())
}

/// The part of a file that is in memory.
struct FileWindow<'a> {
    file: ScannedFile<'a>,
    base: u64,
    bytes: Vec<u8>,
}

impl FileWindow<'_> {
    /// The bytes at a place; `None` if the file ends before.
    fn get(&mut self, at: u64, len: u64) -> io::Result<Option<&[u8]>> {
        let end = at + len;
        if end > self.file.len {
            return Ok(None);
        }
        if at < self.base || end > self.base + self.bytes.len() as u64 {
            let wanted = len.max(CHUNK).min(self.file.len - at);
            self.bytes.resize(usize::try_from(wanted).unwrap_or(usize::MAX), 0);
            self.base = at;
            if let Err(error) = self.file.disk.read_at(self.file.name, at, &mut self.bytes) {
                self.bytes.clear();
                return Err(error);
            }
        }
        let start = usize::try_from(at - self.base).unwrap_or(usize::MAX);
        Ok(self.bytes.get(start..).and_then(|rest| rest.get(..usize::try_from(len).ok()?)))
    }

    /// The first place from `at` with such a byte; the end of the file if there is none.
    fn find(&mut self, mut at: u64, wanted: impl Fn(u8) -> bool) -> io::Result<u64> {
        while at < self.file.len {
            let within = at >= self.base && at < self.base + self.bytes.len() as u64;
            let here = self.base + self.bytes.len() as u64;
            let len = if within { here - at } else { CHUNK.min(self.file.len - at) };
            let bytes = self.get(at, len)?.unwrap_or_default();
            match bytes.iter().position(|byte| wanted(*byte)) {
                Some(position) => return Ok(at + position as u64),
                None => at += len,
            }
        }
        Ok(self.file.len)
    }
}
