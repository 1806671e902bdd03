//! The end of the log, where everything is written.

use std::io;
use std::sync::Arc;

use super::files::{Disk, Tail};
use super::segments::{Segments, name};
use crate::spool::entry::Location;
use crate::spool::facts::Residue;
use crate::spool::frame::PendingRecord;

/// The segment that is written.
#[derive(Debug)]
struct Active {
    segment: u32,
    salt: u64,
    tail: Box<dyn Tail>,
    /// Its durable length.
    len: u64,
}

/// The log.
#[derive(Debug)]
pub(super) struct SegmentLog {
    pub(super) disk: Arc<dyn Disk>,
    /// How long a segment gets.
    size: u64,
    next: u32,
    active: Option<Active>,
    /// All files, the ones that hold nothing but failures, too: these must not outlive what
    /// deletes their messages.
    segments: Arc<Segments>,
}

/// Why nothing was written.
#[derive(Debug)]
pub(super) struct AppendError {
    pub(super) error: io::Error,
    /// Bytes of it may be found after a crash all the same.
    pub(super) residue: Residue,
}

impl AppendError {
    /// There was no room.
    pub(super) fn is_full(&self) -> bool {
        matches!(self.error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

impl SegmentLog {
    /// Goes on after what was found. An old segment is never appended to: this process did not write
    /// its end.
    pub(super) fn new(disk: Arc<dyn Disk>, segments: Arc<Segments>, size: u64, next: u32) -> Self {
        Self { disk, size, next, active: None, segments }
    }

    /// The segment that is written, if there is one.
    pub(super) fn active(&self) -> Option<u32> {
        self.active.as_ref().map(|active| active.segment)
    }

    /// What comes next goes into a new segment.
    pub(super) fn seal(&mut self) {
        self.active = None;
    }

    /// Writes frames, all or none, and makes them durable.
    pub(super) fn append(&mut self, batch: &[PendingRecord]) -> Result<Vec<Location>, AppendError> {
        let total: u64 = batch.iter().map(|record| u64::from(record.len())).sum();
        if self.active.as_ref().is_some_and(|a| a.len > 0 && a.len + total > self.size) {
            self.seal();
        }
        let active = match self.active.take() {
            Some(active) => active,
            None => self.create().map_err(|error| AppendError { error, residue: Residue::None })?,
        };
        let active = self.active.insert(active);
        let mut bytes = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
        let mut locations = Vec::with_capacity(batch.len());
        for record in batch {
            let offset = active.len + bytes.len() as u64;
            let at = u32::try_from(offset).unwrap_or(u32::MAX);
            locations.push(Location { segment: active.segment, offset: at, len: record.len() });
            record.encode(active.salt, offset, &mut bytes);
        }
        let appended = active.tail.append(&bytes);
        let whole = appended.is_ok();
        match appended.and_then(|()| active.tail.sync_data()) {
            Ok(()) => {
                active.len += total;
                self.segments.set_len(active.segment, active.len);
                Ok(locations)
            }
            Err(error) => {
                let cut = active.tail.truncate(active.len).is_ok();
                // After a failed sync it is unknown which pages the kernel has dropped: what is
                // appended after them might stand behind a hole.
                let residue = if whole || !cut { Residue::Possible } else { Residue::None };
                if residue == Residue::Possible {
                    self.abandon();
                }
                Err(AppendError { error, residue })
            }
        }
    }

    fn create(&mut self) -> io::Result<Active> {
        let salt = getrandom::u64().map_err(io::Error::other)?;
        let segment = self.next;
        let tail = self.disk.create(&name(segment, salt))?;
        self.next += 1;
        self.segments.insert(segment, salt, 0);
        let active = Active { segment, salt, tail, len: 0 };
        if let Err(error) = self.disk.sync_folder() {
            self.active = Some(active);
            self.abandon();
            return Err(error);
        }
        Ok(active)
    }

    fn abandon(&mut self) {
        let Some(active) = self.active.take() else { return };
        if active.len > 0 {
            return;
        }
        match self.disk.remove(&name(active.segment, active.salt)) {
            Ok(()) => self.segments.remove(active.segment),
            Err(error) => tracing::debug!(%error, "an abandoned segment is still there"),
        }
    }
}
