//! Messages in the replies of the script.

use redis::Value;

use super::connection::SpoolRedisError;
use crate::message::MessageId;
use crate::spool::facts::StoredMessage;

/// A page of messages.
#[derive(Debug)]
pub(super) struct Page {
    /// Where the next one begins; empty: there is none.
    pub(super) next: String,
    pub(super) messages: Vec<StoredMessage>,
    /// Records whose id or size is not as a sidecar writes it. They are not asked for: Redis knows them
    /// by other names than ours.
    pub(super) unreadable: u64,
}

pub(super) fn page(reply: Vec<Value>) -> Result<Page, SpoolRedisError> {
    let mut reply = reply.into_iter();
    let next = reply.next().and_then(text).ok_or(SpoolRedisError::Malformed)?;
    let mut page = Page { next, messages: Vec::new(), unreadable: 0 };
    while let Some(id) = reply.next() {
        let (Some(bytes), Some(Value::BulkString(meta))) = (reply.next(), reply.next()) else {
            return Err(SpoolRedisError::Malformed);
        };
        match (canonical(id), text(bytes).and_then(|bytes| bytes.parse().ok())) {
            (Some(id), Some(bytes)) => page.messages.push(StoredMessage { id, bytes, meta }),
            _ => page.unreadable += 1,
        }
    }
    Ok(page)
}

/// An id, if its text is the one that tollgate writes: the same id has others, too.
fn canonical(id: Value) -> Option<MessageId> {
    let text = text(id)?;
    let id = text.parse::<MessageId>().ok()?;
    (id.to_string() == text).then_some(id)
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    #[test]
    fn what_no_sidecar_writes_does_not_hide_the_rest() {
        let id = MessageId::new();
        let hyphens = uuid::Uuid::from_u128(id.as_u128()).hyphenated().to_string();
        let others = [
            id.to_string().to_uppercase(),
            format!("{{{hyphens}}}"),
            format!("urn:uuid:{hyphens}"),
            hyphens,
            String::new(),
            "x".to_owned(),
        ];
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let mut reply = vec![bulk("5-0")];
        for (id, bytes) in others.iter().map(|id| (&**id, "9")).chain([
            (&*id.to_string(), "9"),
            (&*id.to_string(), "many"),
            (&*id.to_string(), "-1"),
        ]) {
            reply.extend([bulk(id), bulk(bytes), bulk("{}")]);
        }
        reply.extend([Value::BulkString(vec![0xff]), bulk("9"), bulk("{}")]);
        let page = page(reply).unwrap();
        assert_eq!((&*page.next, page.unreadable), ("5-0", 9));
        assert_eq!(page.messages.iter().map(|message| message.id).collect::<Vec<_>>(), [id]);
    }

    #[test]
    fn a_reply_that_is_cut_is_an_error() {
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        assert!(page(vec![bulk(""), bulk("x"), bulk("9")]).is_err());
        assert!(page(Vec::new()).is_err());
    }
}
