//! Segments go oldest first, and only so: what says that a message has ended always lies behind
//! the message, so the end never vanishes before what it ends.

use std::io;

use bytes::Bytes;

use super::disk::Disk;
use super::frame::{Draft, HEAD, Head};
use super::index::{Entry, Spot};
use super::log::Log;
use super::recover::name;
use super::shared::Shared;
use super::{damaged, meta};
use crate::message::MessageId;

/// The most bytes that are moved at a time: so long a message may have to wait.
const STEP: u64 = 1024 * 1024;
/// How many segments may hold nothing of use before anything is moved.
const SPARE: u64 = 4;

/// Why a frame was not read.
#[derive(Debug)]
pub(super) enum Unread {
    Damaged,
    Io(io::Error),
}

impl Shared {
    /// Deletes what nobody needs, and moves a bit of what is needed out of the oldest segment if
    /// too much is kept around it. Returns whether there is more to do.
    pub(super) fn tidy(&self, log: &mut Log) -> io::Result<bool> {
        self.delete(log)?;
        let oldest = {
            let index = self.index();
            let disk: u64 = index.segments.values().map(|segment| segment.len).sum();
            let live: u64 = index.segments.values().map(|segment| segment.live).sum();
            let oldest = index.segments.keys().next().copied();
            oldest.filter(|oldest| {
                Some(*oldest) != log.active() && disk > 2 * live + SPARE * self.segment_size()
            })
        };
        match oldest {
            Some(oldest) => self.compact(log, oldest),
            None => Ok(false),
        }
    }

    /// Deletes until there is more room, if that can be.
    pub(super) fn free_room(&self, log: &mut Log) -> bool {
        let unneeded = |segment| {
            let index = self.index();
            index.segments.get(&segment).is_some_and(|found| found.live == 0 && found.len > 0)
        };
        if log.active().is_some_and(unneeded) {
            log.seal();
        }
        self.delete(log).unwrap_or(false)
    }

    fn delete(&self, log: &Log) -> io::Result<bool> {
        let mut deleted = false;
        loop {
            let (segment, salt) = {
                let index = self.index();
                match index.segments.first_key_value() {
                    Some((segment, found)) if found.live == 0 && Some(*segment) != log.active() => {
                        (*segment, found.salt)
                    }
                    _ => return Ok(deleted),
                }
            };
            match log.disk.remove(&name(segment, salt)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // Before the next one goes: a crash must not leave the older and lose the newer.
            log.disk.sync_folder()?;
            self.index().segments.remove(&segment);
            deleted = true;
        }
    }

    /// Moves some of the segment's messages to the end of the log.
    fn compact(&self, log: &mut Log, segment: u32) -> io::Result<bool> {
        let mut moved: Vec<(MessageId, Spot, Draft)> = Vec::new();
        let mut bytes = 0;
        while bytes < STEP {
            let Some((id, entry)) = self.next_in(segment) else { break };
            match self.redraft(&*log.disk, id, &entry) {
                Ok(draft) => {
                    bytes += u64::from(draft.len());
                    moved.push((id, entry.spot, draft));
                }
                Err(Unread::Damaged) => self.lose(&*log.disk, id, entry.spot),
                Err(Unread::Io(error)) => {
                    self.put_back(segment, moved.iter().map(|(id, ..)| *id).chain([id]));
                    return Err(error);
                }
            }
        }
        let drafts: Vec<&Draft> = moved.iter().map(|(_, _, draft)| draft).collect();
        if !drafts.is_empty() {
            let written = match self.append_log(log, &drafts) {
                Ok(written) => written,
                Err(failed) => {
                    self.put_back(segment, moved.iter().map(|(id, ..)| *id));
                    return Err(failed.error);
                }
            };
            let mut index = self.index();
            for ((id, old, draft), spot) in moved.iter().zip(written.spots) {
                if index.get(*id).is_some_and(|entry| entry.spot == *old) {
                    let receipt = draft.kind == super::frame::Kind::Delivered;
                    index.settle(*id, spot, receipt);
                }
            }
        }
        Ok(self.delete(log)? || !drafts.is_empty())
    }

    /// The next message whose frame is in the segment.
    fn next_in(&self, segment: u32) -> Option<(MessageId, Entry)> {
        let mut index = self.index();
        loop {
            let id = index.segments.get_mut(&segment)?.ids.pop()?;
            if let Some(entry) = index.get(id)
                && entry.spot.segment == segment
            {
                return Some((id, entry.clone()));
            }
        }
    }

    fn put_back(&self, segment: u32, ids: impl Iterator<Item = MessageId>) {
        if let Some(found) = self.index().segments.get_mut(&segment) {
            found.ids.extend(ids);
        }
    }

    fn redraft(&self, disk: &dyn Disk, id: MessageId, entry: &Entry) -> Result<Draft, Unread> {
        if entry.is_receipt() {
            return Ok(meta::whole(id, entry, Bytes::new()));
        }
        let body = self.body(disk, id, entry.spot)?;
        Ok(meta::whole(id, entry, body))
    }

    /// The body of the frame at a place.
    pub(super) fn body(&self, disk: &dyn Disk, id: MessageId, spot: Spot) -> Result<Bytes, Unread> {
        let salt = {
            let index = self.index();
            let gone = || Unread::Io(io::ErrorKind::NotFound.into());
            index.segments.get(&spot.segment).ok_or_else(gone)?.salt
        };
        let mut frame = vec![0; spot.len as usize];
        let offset = u64::from(spot.offset);
        let file = name(spot.segment, salt);
        match disk.read_at(&file, offset, &mut frame) {
            // The file has lost its end.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Unread::Damaged);
            }
            read => read.map_err(Unread::Io)?,
        }
        let head = Head::read(&frame, salt, offset).filter(|head| head.id == id);
        let content = head.and_then(|head| head.content(&frame, salt, offset));
        let (meta, body) = content.ok_or(Unread::Damaged)?;
        let start = HEAD + meta.len();
        let end = start + body.len();
        Ok(Bytes::from(frame).slice(start..end))
    }

    /// A message whose bytes are damaged is no longer kept.
    pub(super) fn lose(&self, disk: &dyn Disk, id: MessageId, spot: Spot) {
        let file = {
            let mut index = self.index();
            if index.get(id).is_none_or(|entry| entry.spot != spot) {
                return;
            }
            index.remove(id);
            index.damaged += 1;
            self.queue().forget(id);
            index.segments.get(&spot.segment).map(|found| name(spot.segment, found.salt))
        };
        tracing::warn!(message = %id, "a kept message is damaged and lost");
        if let Some(file) = file {
            let range = damaged::Range { offset: spot.offset.into(), len: spot.len.into() };
            damaged::set_aside(disk, &file, range);
        }
    }
}
