//! Reads one message back.

use std::io;

use bytes::Bytes;

use super::shared::Shared;
use super::store::Store;
use super::tidy::Unread;
use super::{ReadError, Record};
use crate::message::{Message, MessageId, Payload};

impl Shared {
    /// A kept message. Blocks.
    pub(super) fn read(&self, id: MessageId) -> Result<Record, ReadError> {
        let Store::Disk(disk) = &self.store;
        let disk = &**disk;
        let mut before = None;
        loop {
            let entry = self.index().get(id).cloned().ok_or(ReadError::Absent)?;
            let body = if entry.is_delivered() {
                Ok(Bytes::new())
            } else {
                self.body(disk, id, entry.spot)
            };
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
            let message = Message {
                id,
                instance: entry.place.lane.instance.clone(),
                topic: entry.place.topic.clone(),
                payload: Payload::kept(body),
                trace: entry.trace.as_deref().copied(),
            };
            return Ok(Record { message, brief: entry.brief(id) });
        }
    }
}
