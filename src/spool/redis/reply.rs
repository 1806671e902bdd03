//! Messages in the replies of the script.

use redis::Value;

use super::connection::SpoolRedisError;
use crate::spool::facts::StoredMessage;

/// A page of messages: where the next one begins, and what is on this one.
pub(super) fn page(reply: Vec<Value>) -> Result<(String, Vec<StoredMessage>), SpoolRedisError> {
    let mut reply = reply.into_iter();
    let head = reply.next().and_then(text).ok_or(SpoolRedisError::Malformed)?;
    let mut messages = Vec::new();
    while let Some(id) = reply.next() {
        let id = text(id).and_then(|id| id.parse().ok());
        let bytes = reply.next().and_then(text).and_then(|bytes| bytes.parse().ok());
        let meta = match reply.next() {
            Some(Value::BulkString(meta)) => Some(meta),
            _ => None,
        };
        let (Some(id), Some(bytes), Some(meta)) = (id, bytes, meta) else {
            return Err(SpoolRedisError::Malformed);
        };
        messages.push(StoredMessage { id, bytes, meta });
    }
    Ok((head, messages))
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}
