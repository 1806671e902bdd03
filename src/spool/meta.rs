//! The words in a frame.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::destination::Destinations;
use super::entry::{Entry, Location, Stage};
use super::frame::{PendingRecord, RecordKind};
use super::record::{Change, Claim, Death, Expired, Receipt, Tries};
use crate::message::{
    Expiry, InstanceId, MessageId, PayloadForm, SpanId, Topic, Trace, TraceId, Urgency,
};

/// Of a kept message: all that is known. Of one that was delivered or dropped: all that is left.
#[derive(Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "they are what is stored")]
struct FullRecord<'a> {
    #[serde(borrow)]
    instance: Cow<'a, str>,
    #[serde(borrow)]
    topic: Cow<'a, str>,
    /// An older sidecar does not know this, and counts the message as no caller's.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    caller: Option<Cow<'a, str>>,
    kept_at: Timestamp,
    #[serde(default, skip_serializing_if = "is_default")]
    attempts: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    unknown: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    doubt: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claim: Option<Claim>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trace: Option<TraceId>,
    /// The span of its request, where the trace is sampled. An older sidecar does not know this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    span: Option<SpanId>,
    /// An older sidecar does not know this, and encodes a body that is encoded again.
    #[serde(default, skip_serializing_if = "is_default")]
    form: PayloadForm,
    #[serde(default, skip_serializing_if = "is_default")]
    calling: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    death: Option<Cow<'a, Death>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    receipt: Option<Cow<'a, Receipt>>,
    /// It was dropped, at the moment of the receipt. An older sidecar, which does not know this,
    /// reads a message that has ended, and does not deliver it.
    #[serde(default, skip_serializing_if = "is_default")]
    dropped: bool,
    /// It was dropped because its time to live had ended.
    #[serde(default, skip_serializing_if = "is_default")]
    expired: bool,
    /// When its time to live ends. An older sidecar does not know this, and sends it later than that, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "is_default")]
    urgency: Urgency,
    /// The digest of the body, in Base64, where the words get a MAC.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    body_sha256: Option<Cow<'a, str>>,
}

#[derive(Serialize, Deserialize)]
struct TriedMeta {
    attempts: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    unknown: u32,
}

#[derive(Serialize, Deserialize)]
struct DeadMeta<'a> {
    attempts: u32,
    death: Cow<'a, Death>,
}

#[derive(Serialize, Deserialize)]
struct ReplayedMeta {
    at: Timestamp,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn json<T: Serialize>(words: &T) -> Bytes {
    match serde_json::to_vec(words) {
        Ok(json) => json.into(),
        // No map with odd keys and no writer that fails: constants of this file.
        Err(error) => unreachable!("words of a frame are not JSON: {error}"),
    }
}

/// The receipt of a message that was not delivered.
fn undelivered(at: Timestamp, accepted: bool) -> Receipt {
    Receipt { msg_id: Box::default(), request_id: Box::default(), at, accepted }
}

/// The frame that says all that is known of a message. A receipt has no body.
pub(super) fn whole(id: MessageId, entry: &Entry, body: Bytes) -> PendingRecord {
    let (mut calling, mut death, mut receipt) = (false, None, None);
    let (mut dropped, mut expired) = (false, false);
    match &entry.stage {
        Stage::Queued { calling: now } => calling = *now,
        Stage::Dead(end) => death = Some(Cow::Borrowed(&**end)),
        Stage::Delivered(end) => receipt = Some(Cow::Borrowed(&**end)),
        Stage::Dropped(at) => {
            (receipt, dropped) = (Some(Cow::Owned(undelivered(**at, true))), true);
        }
        Stage::Expired(end) => {
            receipt = Some(Cow::Owned(undelivered(end.at, end.accepted)));
            (dropped, expired) = (true, true);
        }
    }
    let is_receipt = receipt.is_some();
    let digest = entry.digest.as_deref().filter(|_| !is_receipt);
    let meta = json(&FullRecord {
        instance: Cow::Borrowed(&entry.destination.lane.instance),
        topic: Cow::Borrowed(entry.destination.topic.as_str()),
        caller: entry.destination.caller.as_deref().map(Cow::Borrowed),
        kept_at: entry.kept_at,
        attempts: entry.attempts,
        unknown: entry.unknown,
        doubt: entry.doubt,
        claim: entry.claim.as_deref().copied(),
        trace: entry.trace.as_deref().map(|trace| trace.id),
        span: entry.trace.as_deref().and_then(|trace| trace.span),
        form: entry.form,
        calling,
        death,
        receipt,
        dropped,
        expired,
        expires: entry.expiry.as_ref().map(|expiry| expiry.timestamp()),
        urgency: entry.urgency,
        body_sha256: digest.map(|digest| STANDARD.encode(digest).into()),
    });
    if is_receipt {
        PendingRecord { kind: RecordKind::Delivered, id, meta, body: Bytes::new() }
    } else {
        PendingRecord { kind: RecordKind::Kept, id, meta, body }
    }
}

/// The same without its body, for where that is already.
pub(super) fn now(id: MessageId, entry: &Entry) -> PendingRecord {
    let kind = match &entry.stage {
        Stage::Queued { calling: true } => RecordKind::Calling,
        Stage::Queued { calling: false } => RecordKind::Tried,
        Stage::Dead(_) => RecordKind::Dead,
        Stage::Delivered(_) | Stage::Dropped(_) | Stage::Expired(_) => RecordKind::Delivered,
    };
    PendingRecord { kind, ..whole(id, entry, Bytes::new()) }
}

/// The frame of a change; `entry` is the message after it.
pub(super) fn change(id: MessageId, change: &Change, entry: &Entry) -> PendingRecord {
    let (kind, meta) = match change {
        Change::Calling => return PendingRecord::bare(RecordKind::Calling, id),
        Change::Forgotten => return PendingRecord::bare(RecordKind::Forgotten, id),
        Change::Tried(Tries { calls, unknown }) => {
            (RecordKind::Tried, json(&TriedMeta { attempts: *calls, unknown: *unknown }))
        }
        Change::Dead(attempts, death) => {
            (RecordKind::Dead, json(&DeadMeta { attempts: *attempts, death: Cow::Borrowed(death) }))
        }
        Change::Replayed(at) => (RecordKind::Replayed, json(&ReplayedMeta { at: *at })),
        Change::Delivered(..)
        | Change::Dropped { .. }
        | Change::Expired { .. }
        | Change::Decided { .. } => return whole(id, entry, Bytes::new()),
    };
    PendingRecord { kind, id, meta, body: Bytes::new() }
}

/// What a frame says.
pub(super) enum Decoded {
    /// All of a message.
    Full(Entry),
    /// What became of it.
    Change(Change),
}

/// Reads the words of a frame; `None` if they are not the ones of its kind.
pub(super) fn read(
    kind: RecordKind,
    meta: &[u8],
    location: Location,
    destinations: &mut Destinations,
) -> Option<Decoded> {
    let change = match kind {
        RecordKind::Kept | RecordKind::Delivered => {
            let entry = entry(meta, location, destinations)?;
            let fits = entry.is_receipt() == (kind == RecordKind::Delivered);
            return fits.then_some(Decoded::Full(entry));
        }
        RecordKind::Calling => Change::Calling,
        RecordKind::Forgotten => Change::Forgotten,
        RecordKind::Tried => {
            let TriedMeta { attempts: calls, unknown } = serde_json::from_slice(meta).ok()?;
            Change::Tried(Tries { calls, unknown })
        }
        RecordKind::Dead => {
            let dead: DeadMeta<'_> = serde_json::from_slice(meta).ok()?;
            Change::Dead(dead.attempts, dead.death.into_owned())
        }
        RecordKind::Replayed => {
            Change::Replayed(serde_json::from_slice::<ReplayedMeta>(meta).ok()?.at)
        }
    };
    Some(Decoded::Change(change))
}

/// Reads all that is known of a message.
pub(super) fn entry(
    meta: &[u8],
    location: Location,
    destinations: &mut Destinations,
) -> Option<Entry> {
    let words: FullRecord<'_> = serde_json::from_slice(meta).ok()?;
    let topic = Topic::parse(&words.topic).ok()?;
    let stage = match (words.death, words.receipt) {
        (None, None) => Stage::Queued { calling: words.calling },
        (Some(death), None) => Stage::Dead(Box::new(death.into_owned())),
        (None, Some(receipt)) if words.expired => {
            Stage::Expired(Box::new(Expired { at: receipt.at, accepted: receipt.accepted }))
        }
        (None, Some(receipt)) if words.dropped => Stage::Dropped(Box::new(receipt.at)),
        (None, Some(receipt)) => Stage::Delivered(Box::new(receipt.into_owned())),
        (Some(_), Some(_)) => return None,
    };
    Some(Entry {
        destination: destinations.get(
            Arc::from(&*words.instance),
            topic,
            words.caller.as_deref().map(Arc::from),
        ),
        kept_at: words.kept_at,
        attempts: words.attempts,
        unknown: words.unknown,
        doubt: words.doubt,
        size: location.len,
        location,
        claim: words.claim.map(Box::new),
        trace: words.trace.map(|id| Box::new(Trace { id, span: words.span })),
        form: words.form,
        expiry: words.expires.map(|at| Box::new(Expiry::at_time(at, words.kept_at))),
        urgency: words.urgency,
        digest: words.body_sha256.as_deref().and_then(decoded),
        stage,
    })
}

fn decoded(digest: &str) -> Option<Box<[u8; 32]>> {
    STANDARD.decode(digest).ok()?.try_into().ok().map(Box::new)
}

/// What decides whether a sidecar takes a message over, of all that is known of it.
pub(super) struct Summary {
    pub(super) instance: InstanceId,
    pub(super) topic: Topic,
    pub(super) is_receipt: bool,
    pub(super) is_queued: bool,
    /// Whether it has a digest of the body.
    pub(super) has_digest: bool,
}

/// `None`: it cannot be read.
pub(super) fn summary(meta: &[u8]) -> Option<Summary> {
    let words: FullRecord<'_> = serde_json::from_slice(meta).ok()?;
    Some(Summary {
        instance: Arc::from(&*words.instance),
        topic: Topic::parse(&words.topic).ok()?,
        is_receipt: words.receipt.is_some(),
        is_queued: words.receipt.is_none() && words.death.is_none(),
        has_digest: words.body_sha256.as_deref().and_then(decoded).is_some(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]
mod tests {
    use super::*;

    const LOCATION: Location = Location { segment: 0, offset: 0, len: 9 };

    fn entry_of(words: &str) -> Entry {
        entry(words.as_bytes(), LOCATION, &mut Destinations::default()).unwrap()
    }

    /// What older sidecars have written.
    #[test]
    fn older_words() {
        let words =
            r#"{"instance":"i","topic":"abc/d","kept_at":"2026-01-01T00:00:00Z","attempts":3}"#;
        let queued = entry_of(words);
        assert_eq!((queued.attempts, queued.unknown, queued.doubt), (3, 0, false));
        let death = r#","death":{"reason":"unknown","code":null,"request_id":null,"at":"2026-01-01T00:00:00Z"}}"#;
        let dead = entry_of(&words.replace('}', death));
        let Stage::Dead(death) = dead.stage else { panic!("{:?}", dead.stage) };
        assert!(death.accepted, "its caller was answered 202");
        let destinations = &mut Destinations::default();
        let Some(Decoded::Change(tried)) =
            read(RecordKind::Tried, br#"{"attempts":4}"#, LOCATION, destinations)
        else {
            panic!("it is readable")
        };
        assert_eq!(tried, Change::Tried(4.into()));
    }

    /// The end of life and the urgency are read again, and older sidecars read the rest.
    #[test]
    fn terms_and_an_expired_message() {
        #[derive(Deserialize)]
        struct Older {
            topic: String,
            receipt: Option<Receipt>,
            #[serde(default)]
            dropped: bool,
        }
        let topic = Topic::parse("abc/d").unwrap();
        let destination = Destinations::default().get("i".into(), topic, None);
        let at = "2026-01-01T00:00:00Z".parse().unwrap();
        let expiry = Some(Box::new(Expiry::at_time(
            "2026-01-01T00:00:30Z".parse().unwrap(),
            Timestamp::MIN,
        )));
        let queued = Entry { expiry, urgency: Urgency::VeryLow, ..Entry::new(destination, at) };
        let draft = whole(MessageId::new(), &queued, Bytes::new());
        let older: Older = serde_json::from_slice(&draft.meta).unwrap();
        assert!(older.topic == "abc/d" && older.receipt.is_none() && !older.dropped);
        let read = entry(&draft.meta, LOCATION, &mut Destinations::default()).unwrap();
        assert_eq!((read.expiry, read.urgency), (queued.expiry.clone(), Urgency::VeryLow));
        // Older records have neither.
        let words = r#"{"instance":"i","topic":"abc/d","kept_at":"2026-01-01T00:00:00Z"}"#;
        let none = entry_of(words);
        assert_eq!((none.expiry, none.urgency), (None, Urgency::Normal));
        for accepted in [false, true] {
            let stage = Stage::Expired(Box::new(Expired { at, accepted }));
            let draft = now(MessageId::new(), &Entry { stage, ..queued.clone() });
            assert_eq!(draft.kind, RecordKind::Delivered);
            // An older sidecar reads a message that was dropped.
            let older: Older = serde_json::from_slice(&draft.meta).unwrap();
            assert!(older.dropped && older.receipt.is_some_and(|receipt| receipt.at == at));
            let read = entry(&draft.meta, LOCATION, &mut Destinations::default()).unwrap();
            let Stage::Expired(end) = read.stage else { panic!("{:?}", read.stage) };
            assert_eq!(*end, Expired { at, accepted });
        }
    }

    /// A message that is delivered after a restart is still linked to the span of its request.
    #[test]
    fn traces() {
        let topic = Topic::parse("abc/d").unwrap();
        let destination = Destinations::default().get("i".into(), topic, None);
        let at = "2026-01-01T00:00:00Z".parse().unwrap();
        let id: TraceId = "4bf92f3577b34da6a3ce929d0e0e4736".parse().unwrap();
        for span in [None, "00f067aa0ba902b7".parse().ok()] {
            let trace = Some(Box::new(Trace { id, span }));
            let queued = Entry { trace: trace.clone(), ..Entry::new(Arc::clone(&destination), at) };
            let draft = whole(MessageId::new(), &queued, Bytes::new());
            let read = entry(&draft.meta, LOCATION, &mut Destinations::default()).unwrap();
            assert_eq!(read.trace, trace);
        }
        // As older sidecars have written it.
        let words = r#"{"instance":"i","topic":"abc/d","kept_at":"2026-01-01T00:00:00Z","trace":"4bf92f3577b34da6a3ce929d0e0e4736"}"#;
        assert_eq!(entry_of(words).trace, Some(Box::new(Trace { id, span: None })));
    }

    /// What older sidecars make of a dropped message: one that has ended.
    #[test]
    fn a_dropped_message_for_older_sidecars() {
        #[derive(Deserialize)]
        struct Older {
            receipt: Option<Receipt>,
        }
        let topic = Topic::parse("abc/d").unwrap();
        let destination = Destinations::default().get("i".into(), topic, None);
        let at = "2026-01-01T00:00:00Z".parse().unwrap();
        let stage = Stage::Dropped(Box::new(at));
        let dropped = Entry { stage, doubt: true, ..Entry::new(destination, at) };
        let draft = now(MessageId::new(), &dropped);
        assert_eq!(draft.kind, RecordKind::Delivered);
        let older: Older = serde_json::from_slice(&draft.meta).unwrap();
        assert!(older.receipt.is_some_and(|receipt| receipt.at == at && receipt.accepted));
        let newer = entry(&draft.meta, LOCATION, &mut Destinations::default()).unwrap();
        assert!(newer.doubt && matches!(newer.stage, Stage::Dropped(found) if *found == at));
    }
}
