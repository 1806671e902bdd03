//! The store of a fleet: what sidecars of an account keep lies in Redis, and outlives them.
//!
//! **Exactly one owner.** A message is pending in the stream's consumer group for one consumer: its
//! owner. Every change to it is made by the script (`kept.lua`) in one step that checks whether the
//! caller still is the owner, so nothing that a former owner writes counts. Calls to the provider are
//! not made by Redis, so they need a lease:
//!
//! 1. Each call of an owner raises its epoch, at the latest every [`heartbeat`](Times::heartbeat).
//! 2. A peer takes over its messages only after it has seen the epoch unchanged for
//!    [`lease_timeout`](Times::lease_timeout) by the peer's own monotonic clock, counted from when it
//!    first had seen this epoch. The script hands them over only if the epoch is still this one.
//! 3. An owner begins calls only until [`lease_timeout`](Times::lease_timeout) −
//!    [`longest_call`](Times::longest_call) after it *sent* what raised its epoch last, by its own
//!    monotonic clock; it checks again right before a call's bytes are written. The peer cannot have
//!    seen that epoch before it was sent, and a call ends within `longest_call`.
//!
//! So this rests on: both clocks run equally fast, within a second in fifteen (what they show does
//! not matter, nor Redis's own clock); a call ends within `upstream.call_timeout`, at most 5 s in a
//! fleet; and Redis has one history. Where a fail-over or a restart takes back what was answered, the
//! epoch is not the one that the owner knows: it makes no calls until it has read anew what it owns
//! ([`Owner`]). Not covered: a process that stands still for longer than all this
//! between its last check and the write of the bytes, some microseconds; a machine that is suspended
//! with its clock.

mod connection;
mod identity;
mod owner;
mod peer_state;
mod peers;
mod reader;
mod reconcile;
mod reply;
mod trust;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard};

use super::backend::{Backend, BodyError, Job};
use super::entry::{Entry, Location};
use super::facts::{Progress, Reported, Residue, WriteError, WriteResult};
use super::frame::{PendingRecord, RecordKind};
use super::ownership::Ownership;
use super::queue::BatchLimits;
use super::record::Change;
use super::view::IndexView;
use super::{KeepError, OpenError, Options, ReadError, meta};
use crate::config::Fleet;
use crate::message::MessageId;
use connection::SpoolEndpoint;
pub(super) use connection::SpoolRedisError;
use owner::Owner;
pub(super) use peers::Peers;
use reader::BodyReader;
use trust::RecordTrust;

/// How long things take. The same for all of an account, but in tests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// How often an owner raises its epoch, and looks at its peers'.
    pub(super) heartbeat: Duration,
    /// An owner whose epoch is unchanged for so long loses its messages to the first peer.
    pub(super) lease_timeout: Duration,
    /// So long before that it begins no more calls: the longest call of a fleet, and a second.
    pub(super) longest_call: Duration,
    /// Between two pages of what a dead peer has left, so that other peers get some, too.
    pub(super) pace: Duration,
    /// How often durability is re-read; a 202 may be stale for this long.
    pub(super) config: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(2),
            lease_timeout: Duration::from_secs(15),
            longest_call: Duration::from_secs(6),
            pace: Duration::from_millis(100),
            config: Duration::from_secs(30),
        }
    }
}

/// Redis does nothing else while it takes one batch: a millisecond or two.
const LIMITS: BatchLimits = BatchLimits { bytes: 256 * 1024, records: 128 };

/// The messages of one owner in Redis.
#[derive(Debug)]
pub(super) struct RedisBackend {
    reader: BodyReader,
    owner: Mutex<Owner>,
}

impl RedisBackend {
    /// `folder`: where this machine remembers its owner. Blocks.
    pub(super) fn new(
        fleet: &Fleet,
        folder: Option<&Path>,
        options: &Options,
        times: Times,
        ownership: &Arc<Ownership>,
    ) -> Result<Self, OpenError> {
        let trust = RecordTrust::open(&fleet.account, options.mac.as_ref())?;
        let endpoint = Arc::new(SpoolEndpoint::new(fleet));
        let reader = BodyReader::new(Arc::clone(&endpoint));
        let (options, ownership) = (options.clone(), Arc::clone(ownership));
        let owner = Owner::new(endpoint, folder, options, times, ownership, trust);
        Ok(Self { reader, owner: Mutex::new(owner) })
    }

    /// The owner for one call of the writing half: the facts of the one before are applied.
    async fn owner(&self) -> MutexGuard<'_, Owner> {
        let mut owner = self.owner.lock().await;
        owner.confirm();
        owner
    }

    /// Connects, and takes over a page of what the predecessor in the folder has left.
    pub(super) async fn begin(
        &self,
        view: &IndexView,
    ) -> Reported<Result<Progress, SpoolRedisError>> {
        let mut owner = self.owner().await;
        let begun = owner.begin(view).await;
        owner.reported(Ok(begun))
    }

    /// Takes over a page of what dead peers have left, and returns how the others stand.
    pub(super) async fn take_over(&self, view: &IndexView) -> Reported<(Progress, Peers)> {
        let mut owner = self.owner().await;
        let taken = owner.take_page(view).await;
        owner.reported(taken.map_err(wrote_nothing))
    }

    /// Reports a page of all messages of the account, to be shown to an operator. Returns where the
    /// next one begins; `None`: this was the last.
    pub(super) async fn read_page(&self, from: Option<String>) -> Reported<Option<String>> {
        let mut owner = self.owner().await;
        let read = owner.read_page(from).await;
        owner.reported(read.map_err(wrote_nothing))
    }
}

impl Backend for RedisBackend {
    fn name(&self) -> &'static str {
        "Redis"
    }

    fn refusal(&self, error: Arc<str>) -> KeepError {
        KeepError::Redis(error)
    }

    fn unreadable(&self, error: Arc<str>) -> ReadError {
        ReadError::Redis(error)
    }

    fn limits(&self) -> BatchLimits {
        LIMITS
    }

    /// Redis has the latest words on a message only.
    fn record(&self, id: MessageId, change: &Change, entry: &Entry) -> PendingRecord {
        match change {
            Change::Forgotten => PendingRecord::bare(RecordKind::Forgotten, id),
            _ => meta::now(id, entry),
        }
    }

    fn commit<'a>(
        &'a self,
        batch: Vec<PendingRecord>,
        view: &'a IndexView,
    ) -> Job<'a, Reported<Vec<WriteResult>>> {
        Box::pin(async move {
            let mut owner = self.owner().await;
            let committed = owner.commit(&batch, view).await;
            owner.reported(committed)
        })
    }

    fn maintain<'a>(&'a self, view: &'a IndexView) -> Job<'a, Reported<Progress>> {
        Box::pin(async move {
            let mut owner = self.owner().await;
            let maintained = owner.maintain(view).await;
            owner.reported(maintained.map(|()| Progress::Done).map_err(wrote_nothing))
        })
    }

    fn body(&self, id: MessageId, _: Location) -> Job<'_, Result<Bytes, BodyError>> {
        Box::pin(async move {
            // It was deleted meanwhile, here or by the peer that has taken it over.
            self.reader.body(id).await.map_err(BodyError::Failed)?.ok_or(BodyError::Absent)
        })
    }

    fn leave<'a>(&'a self, view: &'a IndexView) -> Job<'a, Reported<()>> {
        Box::pin(async move {
            let mut owner = self.owner().await;
            let left = owner.leave(view).await;
            owner.reported(left.map_err(wrote_nothing))
        })
    }
}

/// The error of a call that has no records to write: a peer can find nothing of it.
#[expect(clippy::needless_pass_by_value, reason = "it maps an error")]
fn wrote_nothing(error: SpoolRedisError) -> WriteError {
    WriteError::new(&error, Residue::None)
}
