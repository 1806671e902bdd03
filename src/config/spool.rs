//! `[spool]` and `[idempotency]`: what is kept, and for how long.

use std::path::PathBuf;
use std::time::Duration;

use super::ceilings::PUBLISHED_ACCOUNT;
use super::checks::{HOUR, SHORTEST, optional_path, path};
use super::read::{Reader, boolean, choice, duration, size, value, whole};
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

/// What ends with a spool's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// It is deleted with the pod, as an `emptyDir` is.
    Pod,
    /// It outlives pods.
    Volume,
}

/// `[spool]`: what is kept.
#[derive(Debug, Clone)]
pub struct Spool {
    /// Where.
    pub store: Store,
    /// The folder; the ledger is there, too.
    pub path: PathBuf,
    /// How long the folder lives.
    pub lifetime: Lifetime,
    /// The most bytes.
    pub max_bytes: u64,
    /// The most messages, dead letters and receipts.
    pub max_messages: usize,
    /// How long one can ask what became of a delivered message.
    pub keep_receipts: Duration,
    /// The keys that sign and verify records in Redis; `None`: neither is done.
    pub mac: Option<MacFile>,
}

/// What the folder needs beside twice the messages: segments in compaction, and up to 96 MiB of the ledger.
const OVERHEAD: u64 = 128 * bytesize::MIB;

impl Spool {
    /// The most bytes that the folder may take: messages with what compaction copies of them, the ledger and
    /// temporary files. In Redis the messages are elsewhere.
    pub fn most_on_disk(&self) -> u64 {
        let messages = match self.store {
            Store::Disk => self.max_bytes.saturating_mul(2),
            Store::Redis => 0,
        };
        messages.saturating_add(OVERHEAD)
    }

    /// The largest `spool.max_bytes` for a file system of so many bytes, for a disk's store.
    pub fn max_bytes_in(file_system: u64) -> u64 {
        file_system.saturating_sub(OVERHEAD) / 2
    }
}

/// The file with the keys for the MACs of records in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MacFile {
    /// The file.
    pub path: PathBuf,
    /// What is done with records without a MAC.
    pub unsigned: Unsigned,
}

/// What is done with a record that has no MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsigned {
    /// It is sent: not all sidecars sign yet.
    Sent,
    /// It is not sent.
    SetAside,
}

const STORES: [(&str, Option<Store>); 3] =
    [("disk", Some(Store::Disk)), ("redis", Some(Store::Redis)), ("none", None)];

const LIFETIMES: [(&str, Lifetime); 2] = [("pod", Lifetime::Pod), ("volume", Lifetime::Volume)];

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

        /// How long that folder lives: "volume": it outlives this process and its pod; "pod": it is deleted
        /// with the pod, as an emptyDir is. The manifests in deploy/ set it. With "pod" a 202 has
        /// "Durability": "pod", and tollgate exits with 3 if it ends with messages in the folder. Then set
        /// drain.handoff, or a drain.grace as long as the longest outage that a deleted pod must survive.
        lifetime: Lifetime = "volume", choice(&LIFETIMES);

        /// The size limit of messages, dead letters and receipts. Above it tollgate refuses new messages
        /// with 503. To a new message receipts give way first, then the oldest dead letters as long as they
        /// take more than half of this or of max_messages. While several parent topics are in use, one may
        /// hold at most 8 times the room that is free, about 89 %. The folder may need twice this size plus
        /// 128 MiB. With "redis" this and max_messages hold for all sidecars of the account together, and
        /// each makes room only among its own messages.
        max_bytes: u64 = "256MiB", size(bytesize::MIB..=bytesize::TIB);

        /// The most messages, dead letters and receipts: each takes about 720 bytes of memory. A key's
        /// message needs a place as long as the key is reserved. Lowered to a part of runtime.memory.
        max_messages: usize = 1000000, whole(1..=MOST_MESSAGES);

        /// How long GET /messages/<Id> knows a delivered message, unless new messages need the room sooner.
        keep_receipts: Duration = "10m", duration(SHORTEST..=HOUR * 24);

        /// With "redis": a file with the keys that sign and verify what sidecars store in Redis, each key a
        /// line: base64 of at least 32 random bytes. The first key signs, and all verify. tollgate reads the
        /// file at start and every 30 s. Use the same keys in all sidecars of the account. Empty: records
        /// are neither signed nor verified, and every client that can write to Redis can have messages sent.
        /// The threats, and the order of a rollout, are in docs/shared-spool.md.
        mac_file: Option<PathBuf> = "", value(optional_path);

        /// Whether records without a valid MAC are set aside: neither sent nor deleted. Write false as long
        /// as not all sidecars of the account have mac_file, and as long as Redis has older records: then
        /// records without a MAC are sent, and those with a wrong MAC are set aside.
        mac_required: bool = true, boolean();
    }
}

#[expect(clippy::option_option, reason = "outside: is it right; inside: is there one")]
pub(super) fn spool(r: &mut Reader<'_>) -> Option<Option<Spool>> {
    let rows = SpoolRows::read(r)?;
    let unsigned = if rows.mac_required { Unsigned::SetAside } else { Unsigned::Sent };
    Some(rows.store.map(|store| Spool {
        store,
        path: rows.path,
        lifetime: rows.lifetime,
        max_bytes: rows.max_bytes,
        max_messages: rows.max_messages,
        keep_receipts: rows.keep_receipts,
        mac: rows.mac_file.map(|path| MacFile { path, unsigned }),
    }))
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

        /// The most reserved keys; 0: as many as 1,000 messages/s reserve in `keep`. Each takes about 740
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
