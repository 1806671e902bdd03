//! `[spool]` and `[idempotency]`: what is kept, and for how long.

use std::path::PathBuf;
use std::time::Duration;

use super::ceilings::PUBLISHED_ACCOUNT;
use super::checks::{HOUR, SHORTEST, path};
use super::read::{Reader, choice, duration, size, value, whole};
use super::table::section;

/// The most messages and keys that can be configured.
const MOST_MESSAGES: usize = 10_000_000;

/// Where messages are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// On the disk, by each sidecar for itself.
    Disk,
    /// In the fleet's Redis, by all sidecars of the account together.
    Redis,
}

/// `[spool]`: what is kept.
#[derive(Debug, Clone)]
pub struct Spool {
    /// Where.
    pub store: Store,
    /// The folder; the ledger is there, too.
    pub path: PathBuf,
    /// The most bytes.
    pub max_bytes: u64,
    /// The most messages, dead letters and receipts.
    pub max_messages: usize,
    /// How long one can ask what became of a delivered message.
    pub keep_receipts: Duration,
}

const STORES: [(&str, Option<Store>); 3] =
    [("disk", Some(Store::Disk)), ("redis", Some(Store::Redis)), ("none", None)];

section! {
    pub(super) struct SpoolRows [spool] {
        /// Where messages are stored that are not delivered yet: "disk"; "redis": the Redis of [fleet],
        /// where other sidecars deliver the messages of a dead one (docs/shared-spool.md); "none": nothing
        /// is stored, tollgate never answers 202, and callers must retry. tollgate does not start with
        /// "redis" while the folder holds messages of "disk".
        store: Option<Store> = "disk", choice(&STORES);

        /// The folder. Only one process can open it. Put it on a volume that outlives the container. With
        /// "redis" it holds the ledger and the sidecar's name.
        path: PathBuf = "/var/lib/tollgate/spool", value(path);

        /// The size limit of messages, dead letters and receipts. Above it tollgate refuses new messages
        /// with 503. To a new message receipts give way first, then the oldest dead letters as long as they
        /// take more than half of this or of max_messages. While several parent topics are in use, one may
        /// hold at most 8 times the room that is free, about 89 %. The folder may need twice this size plus
        /// 32 MiB. With "redis" this and max_messages hold for all sidecars of the account together, and
        /// each makes room only among its own messages.
        max_bytes: u64 = "256MiB", size(bytesize::MIB..=bytesize::TIB);

        /// The most messages, dead letters and receipts: each takes about 250 bytes of memory. A key's
        /// message needs a place as long as the key is reserved. Lowered to a part of runtime.memory.
        max_messages: usize = 1000000, whole(1..=MOST_MESSAGES);

        /// How long GET /messages/<Id> knows a delivered message, unless new messages need the room sooner.
        keep_receipts: Duration = "10m", duration(SHORTEST..=HOUR * 24);
    }
}

#[expect(clippy::option_option, reason = "outside: is it right; inside: is there one")]
pub(super) fn spool(r: &mut Reader<'_>) -> Option<Option<Spool>> {
    let SpoolRows { store, path, max_bytes, max_messages, keep_receipts } = SpoolRows::read(r)?;
    Some(store.map(|store| Spool { store, path, max_bytes, max_messages, keep_receipts }))
}

section! {
    /// `[idempotency]`
    #[derive(Debug, Clone)]
    pub struct Idempotency [idempotency] {
        /// How long an Idempotency-Key stays reserved after its message was delivered, dropped, or became a
        /// dead letter. It is always reserved while the message is queued. tollgate never removes reserved
        /// keys early: if the spool or max_keys is full, it refuses new messages with 503. Keys of finished
        /// messages stay on this disk when drain.handoff moves the queue.
        keep: Duration = "10m", duration(SHORTEST..=HOUR * 24);

        /// The most reserved keys; 0: as many as 1,000 messages/s reserve in `keep`. Each takes about 250
        /// bytes of memory besides its message. Lowered to a part of runtime.memory.
        max_keys: usize = 0, whole(0..=MOST_MESSAGES);
    }
}

/// `idempotency.max_keys = 0`: the bound follows the rate. That of the configuration may change meanwhile.
pub(super) fn keys_follow_the_rate(r: &mut Reader<'_>, idempotency: &mut Idempotency) {
    if idempotency.max_keys > 0 {
        return;
    }
    let seconds = idempotency.keep.as_secs() + 1;
    let keys = seconds.saturating_mul(PUBLISHED_ACCOUNT.into());
    let keys = usize::try_from(keys).unwrap_or(usize::MAX).min(MOST_MESSAGES);
    r.show("idempotency.max_keys", format!("0 (here {keys})"));
    idempotency.max_keys = keys;
}
