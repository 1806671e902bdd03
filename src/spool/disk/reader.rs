//! Reads bodies from the segments. Everything here blocks.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::damaged::{self, Range};
use super::files::Disk;
use super::segments::{Segments, name};
use crate::message::MessageId;
use crate::spool::backend::BodyError;
use crate::spool::entry::Location;
use crate::spool::frame::{HEAD, Head};

/// Reads while the writer writes, and deletes.
#[derive(Debug)]
pub(super) struct SegmentReader {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) segments: Arc<Segments>,
}

impl SegmentReader {
    /// The body of the record at a location.
    pub(super) fn body(&self, id: MessageId, at: Location) -> Result<Bytes, BodyError> {
        let salt = self.segments.get(at.segment).ok_or(BodyError::Moved)?.salt;
        let mut frame = vec![0; at.len as usize];
        let offset = u64::from(at.offset);
        if let Err(error) = self.disk.read_at(&name(at.segment, salt), offset, &mut frame) {
            return Err(match error.kind() {
                // The file has lost its end.
                io::ErrorKind::UnexpectedEof => BodyError::Damaged,
                io::ErrorKind::NotFound => BodyError::Moved,
                _ => BodyError::Failed(error.to_string().into()),
            });
        }
        let head = Head::read(&frame, salt, offset).filter(|head| head.id == id);
        let content = head.and_then(|head| head.content(&frame, salt, offset));
        let (meta, body) = content.ok_or(BodyError::Damaged)?;
        let start = HEAD + meta.len();
        let end = start + body.len();
        Ok(Bytes::from(frame).slice(start..end))
    }

    /// Sets the bytes at a location aside.
    pub(super) fn quarantine(&self, at: Location) {
        if let Some(file) = self.segments.get(at.segment) {
            let range = Range { offset: at.offset.into(), len: at.len.into() };
            damaged::set_aside(&*self.disk, &name(at.segment, file.salt), range);
        }
    }
}
