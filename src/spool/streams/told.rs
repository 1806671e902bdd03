//! Messages as the script tells of them.

use redis::Value;

use super::owner::Owner;
use super::{Entry, Trouble};
use crate::message::MessageId;
use crate::spool::index::Spot;
use crate::spool::meta;
use crate::spool::shared::Shared;

/// A message that is ours now.
#[derive(Debug)]
pub(in crate::spool) struct Claimed {
    pub(super) id: MessageId,
    bytes: u32,
    words: Vec<u8>,
}

/// A page: how to go on, and what is on it.
pub(super) fn page(answer: Vec<Value>) -> Result<(String, Vec<Claimed>), Trouble> {
    let mut answer = answer.into_iter();
    let head = answer.next().and_then(text).ok_or(Trouble::Garbled)?;
    let mut claimed = Vec::new();
    while let Some(id) = answer.next() {
        let id = text(id).and_then(|id| id.parse().ok());
        let bytes = answer.next().and_then(text).and_then(|bytes| bytes.parse().ok());
        let words = match answer.next() {
            Some(Value::BulkString(words)) => Some(words),
            _ => None,
        };
        let (Some(id), Some(bytes), Some(words)) = (id, bytes, words) else {
            return Err(Trouble::Garbled);
        };
        claimed.push(Claimed { id, bytes, words });
    }
    Ok((head, claimed))
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

impl Owner {
    /// Takes them into the index, and tells whoever delivers.
    pub(super) fn adopt(&self, shared: &Shared, claimed: Vec<Claimed>) {
        let ids = insert(shared, claimed);
        if !ids.is_empty() {
            self.streams.adopts(ids);
        }
    }
}

/// Takes them into the index.
pub(super) fn insert(shared: &Shared, claimed: Vec<Claimed>) -> Vec<MessageId> {
    let mut index = shared.index();
    let mut ids = Vec::with_capacity(claimed.len());
    for Claimed { id, bytes, words } in claimed {
        let spot = Spot { segment: 0, offset: 0, len: bytes };
        let entry: Option<Entry> = meta::entry(&words, spot, &mut index.places);
        let Some(entry) = entry else {
            tracing::warn!(message = %id, "what Redis says of a message cannot be read");
            index.damaged += 1;
            continue;
        };
        index.insert(id, entry);
        ids.push(id);
    }
    ids
}
