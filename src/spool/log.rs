//! The end of the log, where everything is written.

use std::io;
use std::sync::Arc;

use super::disk::{Disk, Tail};
use super::frame::Draft;
use super::index::Spot;
use super::recover::name;

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
pub(super) struct Log {
    pub(super) disk: Arc<dyn Disk>,
    /// How long a segment gets.
    size: u64,
    next: u32,
    active: Option<Active>,
    /// Segments that were made since somebody asked, with their salts: the ones that hold nothing
    /// but failures, too, since they must not outlive what forgets these.
    pub(super) made: Vec<(u32, u64)>,
}

/// What a write has changed about the files.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) segment: u32,
    /// The segment's length.
    pub(super) len: u64,
    /// Where each frame lies.
    pub(super) spots: Vec<Spot>,
}

/// Nothing was written.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: io::Error,
    /// Bytes of it may be found after a crash all the same.
    pub(super) traces: bool,
}

impl Failed {
    /// There was no room.
    pub(super) fn is_full(&self) -> bool {
        matches!(self.error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

impl Log {
    /// Goes on after what was found. An old segment is never appended to: how it ends is not ours.
    pub(super) fn new(disk: Arc<dyn Disk>, size: u64, next: u32) -> Self {
        Self { disk, size, next, active: None, made: Vec::new() }
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
    pub(super) fn append(&mut self, drafts: &[&Draft]) -> Result<Written, Failed> {
        let total: u64 = drafts.iter().map(|draft| u64::from(draft.len())).sum();
        if self.active.as_ref().is_some_and(|a| a.len > 0 && a.len + total > self.size) {
            self.seal();
        }
        let active = match self.active.take() {
            Some(active) => active,
            None => self.create().map_err(|error| Failed { error, traces: false })?,
        };
        let active = self.active.insert(active);
        let mut bytes = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
        let mut spots = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let offset = active.len + bytes.len() as u64;
            let at = u32::try_from(offset).unwrap_or(u32::MAX);
            spots.push(Spot { segment: active.segment, offset: at, len: draft.len() });
            draft.encode(active.salt, offset, &mut bytes);
        }
        let appended = active.tail.append(&bytes);
        let whole = appended.is_ok();
        match appended.and_then(|()| active.tail.sync_data()) {
            Ok(()) => {
                active.len += total;
                Ok(Written { segment: active.segment, len: active.len, spots })
            }
            Err(error) => {
                let cut = active.tail.truncate(active.len).is_ok();
                // After a failed sync nobody knows which pages the kernel has given up: what we
                // would append after them might stand behind a hole.
                if whole || !cut {
                    self.abandon();
                }
                Err(Failed { error, traces: whole || !cut })
            }
        }
    }

    fn create(&mut self) -> io::Result<Active> {
        let salt = getrandom::u64().map_err(io::Error::other)?;
        let segment = self.next;
        let tail = self.disk.create(&name(segment, salt))?;
        self.next += 1;
        self.made.push((segment, salt));
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
            Ok(()) => self.made.retain(|(segment, _)| *segment != active.segment),
            Err(error) => tracing::debug!(%error, "an abandoned segment is still there"),
        }
    }
}
