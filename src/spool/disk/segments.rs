//! The files of the log, for the writer and for those who read.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A file of the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentFile {
    pub(super) salt: u64,
    /// Its durable length.
    pub(super) len: u64,
}

/// All files, by number.
#[derive(Debug, Default)]
pub(super) struct Segments(Mutex<BTreeMap<u32, SegmentFile>>);

impl Segments {
    fn all(&self) -> MutexGuard<'_, BTreeMap<u32, SegmentFile>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, segment: u32, salt: u64, len: u64) {
        self.all().insert(segment, SegmentFile { salt, len });
    }

    pub(super) fn remove(&self, segment: u32) {
        self.all().remove(&segment);
    }

    pub(super) fn set_len(&self, segment: u32, len: u64) {
        if let Some(file) = self.all().get_mut(&segment) {
            file.len = len;
        }
    }

    pub(super) fn get(&self, segment: u32) -> Option<SegmentFile> {
        self.all().get(&segment).copied()
    }

    pub(super) fn oldest(&self) -> Option<(u32, SegmentFile)> {
        self.all().first_key_value().map(|(segment, file)| (*segment, *file))
    }

    pub(super) fn total_len(&self) -> u64 {
        self.all().values().map(|file| file.len).sum()
    }
}

/// The name of a segment's file. Its salt is in the name, so that no damaged byte can spoil it.
pub(super) fn name(segment: u32, salt: u64) -> String {
    format!("{segment:08x}-{salt:016x}.log")
}

/// The number and the salt in the name of a segment's file.
pub(super) fn parse(file: &str) -> Option<(u32, u64)> {
    let (segment, salt) = file.strip_suffix(".log")?.split_once('-')?;
    let found = (u32::from_str_radix(segment, 16).ok()?, u64::from_str_radix(salt, 16).ok()?);
    (name(found.0, found.1) == file).then_some(found)
}
