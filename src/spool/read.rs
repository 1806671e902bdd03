//! Reads one message back.

use std::io;

use bytes::Bytes;

use super::disk::Disk;
use super::index::Entry;
use super::shared::Shared;
use super::streams::Streams;
use super::tidy::Unread;
use super::{ReadError, Record};
use crate::message::{Message, MessageId, Payload};

impl Shared {
    /// A kept message, from Redis.
    pub(super) async fn fetch(
        &self,
        streams: &Streams,
        id: MessageId,
    ) -> Result<Record, ReadError> {
        let entry = self.index().get(id).cloned().ok_or(ReadError::Absent)?;
        if entry.is_receipt() {
            return Ok(record(id, &entry, Bytes::new()));
        }
        match streams.reader.body(id, &self.runtime).await {
            Ok(Some(body)) => Ok(record(id, &entry, body)),
            // It was forgotten meanwhile, here or by whoever has taken it over.
            Ok(None) => Err(ReadError::Absent),
            Err(error) => Err(ReadError::Redis(error)),
        }
    }

    /// A kept message, from a disk. Blocks.
    pub(super) fn read(&self, disk: &dyn Disk, id: MessageId) -> Result<Record, ReadError> {
        let mut before = None;
        loop {
            let entry = self.index().get(id).cloned().ok_or(ReadError::Absent)?;
            let body =
                if entry.is_receipt() { Ok(Bytes::new()) } else { self.body(disk, id, entry.spot) };
            let body = match body {
                Ok(body) => body,
                // Its segment may have gone meanwhile; then it was moved, and lies elsewhere now.
                Err(Unread::Io(error))
                    if error.kind() == io::ErrorKind::NotFound && before != Some(entry.spot) =>
                {
                    before = Some(entry.spot);
                    continue;
                }
                Err(Unread::Io(error)) => return Err(ReadError::Disk(error.to_string().into())),
                Err(Unread::Damaged) => {
                    self.lose(disk, id, entry.spot);
                    return Err(ReadError::Damaged);
                }
            };
            return Ok(record(id, &entry, body));
        }
    }
}

fn record(id: MessageId, entry: &Entry, body: Bytes) -> Record {
    let message = Message {
        id,
        instance: entry.place.lane.instance.clone(),
        topic: entry.place.topic.clone(),
        payload: Payload::kept(body),
        trace: entry.trace.as_deref().copied(),
    };
    Record { message, brief: entry.brief(id) }
}
