//! Segments are deleted strictly oldest first, so a tombstone always outlives the record it
//! cancels.

use std::io;

use bytes::Bytes;
use tokio::time::Instant;

use super::DiskWriter;
use super::reader::SegmentReader;
use super::segments::{SegmentFile, name};
use crate::message::MessageId;
use crate::spool::backend::BodyError;
use crate::spool::entry::{Content, Entry, Location};
use crate::spool::facts::{Fact, Progress, Reported, WriteError};
use crate::spool::frame::PendingRecord;
use crate::spool::meta;
use crate::spool::view::IndexView;

/// The most bytes that are moved at a time: a message that is to be kept waits for that long.
const STEP: u64 = 1024 * 1024;
/// How many segments' worth of bytes may be of no use before anything is moved.
const SPARE: u64 = 4;

impl DiskWriter {
    /// Deletes what is not needed, and moves a bit of what is needed out of the oldest segment if
    /// too much is kept around it.
    pub(super) fn tidy(&mut self, view: &IndexView) -> Reported<Progress> {
        let mut facts = Vec::new();
        let result = match self.delete(view) {
            Ok(_) => match self.oldest_to_compact(view) {
                Some(oldest) => self.compact(oldest, view, &mut facts),
                None => Ok(Progress::Done),
            },
            Err(error) => Ok(later(&error)),
        };
        Reported { facts, result }
    }

    fn oldest_to_compact(&self, view: &IndexView) -> Option<u32> {
        let (oldest, _) = self.segments.oldest()?;
        let wasteful =
            self.segments.total_len() > 2 * view.all_live_bytes() + SPARE * self.segment_size;
        (Some(oldest) != self.log.active() && wasteful).then_some(oldest)
    }

    /// Deletes until there is more room, if that can be.
    pub(super) fn free_room(&mut self, view: &IndexView) -> bool {
        let unneeded = |segment| {
            let written = self.segments.get(segment).is_some_and(|file| file.len > 0);
            written && view.live_bytes(segment) == 0
        };
        if self.log.active().is_some_and(unneeded) {
            self.log.seal();
        }
        self.delete(view).unwrap_or(false)
    }

    fn oldest_to_delete(&self, view: &IndexView) -> Option<(u32, SegmentFile)> {
        let (segment, file) = self.segments.oldest()?;
        let needed = view.live_bytes(segment) > 0 || Some(segment) == self.log.active();
        (!needed).then_some((segment, file))
    }

    fn delete(&self, view: &IndexView) -> io::Result<bool> {
        let mut deleted = false;
        while let Some((segment, file)) = self.oldest_to_delete(view) {
            match self.disk.remove(&name(segment, file.salt)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // Before the next one goes: a crash must not leave the older and lose the newer.
            self.disk.sync_folder()?;
            self.segments.remove(segment);
            deleted = true;
        }
        Ok(deleted)
    }

    /// Moves some of the segment's messages to the end of the log.
    fn compact(
        &mut self,
        segment: u32,
        view: &IndexView,
        facts: &mut Vec<Fact>,
    ) -> Result<Progress, WriteError> {
        let (mut batch, mut moved): (Vec<PendingRecord>, Vec<(Location, Content)>) =
            (vec![], vec![]);
        for (id, entry) in view.entries_in(segment, STEP) {
            match copy(&self.reader, id, &entry) {
                Ok(record) => {
                    batch.push(record);
                    moved.push((entry.location, entry.content()));
                }
                Err(BodyError::Damaged) => facts.push(Fact::Damaged { id, at: entry.location }),
                Err(BodyError::Failed(error)) => return Ok(later(&error)),
                // The writer alone deletes segments, and this one is not deleted.
                Err(BodyError::Absent | BodyError::Moved) => {}
            }
        }
        if !batch.is_empty() {
            let begun = Instant::now();
            let locations = self.append(&batch, view)?;
            facts.push(Fact::Wrote(begun.elapsed()));
            let moved = batch.iter().zip(moved).zip(locations);
            facts.extend(moved.map(|((record, (from, content)), to)| Fact::Moved {
                id: record.id,
                from,
                to,
                content,
            }));
        }
        Ok(if facts.is_empty() { Progress::Done } else { Progress::More })
    }
}

/// The whole record of a message, to be written elsewhere.
fn copy(reader: &SegmentReader, id: MessageId, entry: &Entry) -> Result<PendingRecord, BodyError> {
    let body = if entry.is_receipt() { Bytes::new() } else { reader.body(id, entry.location)? };
    Ok(meta::whole(id, entry, body))
}

fn later(error: &dyn std::fmt::Display) -> Progress {
    tracing::debug!(%error, "the spool's folder cannot be tidied");
    Progress::Later
}
