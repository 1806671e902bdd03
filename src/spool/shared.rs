//! What all clones of a spool share. Locks are taken in the order of the fields, and none but the
//! writer's is held while the disk works.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use prometheus::{Histogram, HistogramOpts, exponential_buckets};
use tokio::runtime::Handle;

use super::commit::{Op, Queue};
use super::damaged::{Range, set_aside};
use super::disk::Disk;
use super::frame::{Draft, Kind};
use super::index::Index;
use super::log::Log;
use super::meta;
use super::record::Change;
use super::recover::recover;
use super::store::{End, Fate, Store, Writer};
use super::streams::Owner;
use super::{OpenError, Options};
use crate::message::MessageId;

/// A segment is this part of all that may be kept, within bounds.
const PART: u64 = 32;
const MIN_SEGMENT: u64 = 64 * 1024;
const MAX_SEGMENT: u64 = 8 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) store: Store,
    pub(super) runtime: Handle,
    pub(super) commits: Histogram,
    writer: Mutex<Writer>,
    index: Mutex<Index>,
    queue: Mutex<Queue>,
}

impl Shared {
    /// Recovers what is on a disk. Blocks.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        options: Options,
        runtime: Handle,
    ) -> Result<Arc<Self>, OpenError> {
        let recovered =
            recover(&*disk).map_err(|error| OpenError::Io { path: options.path.clone(), error })?;
        let log = Log::new(Arc::clone(&disk), segment_size(&options), recovered.next);
        let mut index = recovered.index;
        index.set_keep_claims(options.keep_claims);
        index.expire(options.keep_receipts, Timestamp::now());
        let shared = Self {
            options,
            store: Store::Disk(disk),
            runtime,
            commits: histogram(),
            writer: Mutex::new(Writer::new(End::Log(log))),
            index: Mutex::new(index),
            queue: Mutex::default(),
        };
        shared.amend(&recovered.amends, &recovered.damage);
        let shared = Arc::new(shared);
        shared.kick();
        Ok(shared)
    }

    /// The spool of an account in Redis, with nothing in it yet.
    pub(super) fn share(owner: Owner, options: Options, runtime: Handle) -> Arc<Self> {
        let mut index = Index::default();
        index.set_keep_claims(options.keep_claims);
        Arc::new(Self {
            options,
            store: Store::Redis(owner.streams()),
            runtime,
            commits: histogram(),
            writer: Mutex::new(Writer::new(End::Redis(Box::new(owner)))),
            index: Mutex::new(index),
            queue: Mutex::default(),
        })
    }

    /// Writes anew what damage has hit, and then sets the damage aside: it says nothing at the
    /// next start.
    fn amend(&self, amends: &BTreeMap<MessageId, Change>, damage: &[(String, Range)]) {
        let Store::Disk(disk) = &self.store else { return };
        let drafts: Vec<Draft> = {
            let index = self.index();
            let found =
                amends.iter().filter_map(|(id, change)| Some((id, change, index.get(*id)?)));
            found.map(|(id, change, entry)| meta::change(*id, change, entry)).collect()
        };
        if !drafts.is_empty() {
            let written = self.append(&mut self.writer(), &drafts.iter().collect::<Vec<_>>());
            let Ok(fates) = written else {
                let note = |draft| Op::Note { draft, done: None };
                self.queue().ops.extend(drafts.into_iter().map(note));
                return;
            };
            let mut index = self.index();
            for (draft, fate) in drafts.iter().zip(fates) {
                if let (Kind::Delivered, Fate::At(spot)) = (draft.kind, fate) {
                    index.settle(draft.id, spot, true);
                }
            }
        }
        for (file, range) in damage {
            set_aside(&**disk, file, *range);
        }
    }

    /// Only the leader takes this lock, so nobody ever waits for it.
    pub(super) fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn segment_size(&self) -> u64 {
        segment_size(&self.options)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Store::Redis(streams) = &self.store {
            streams.close();
        }
    }
}

fn segment_size(options: &Options) -> u64 {
    (options.max_bytes / PART).clamp(MIN_SEGMENT, MAX_SEGMENT)
}

/// From a tenth of a millisecond to three seconds.
fn histogram() -> Histogram {
    let buckets = exponential_buckets(0.000_1, 2.0, 16).unwrap_or_default();
    let opts = HistogramOpts::new("unnamed", "named where it is shown").buckets(buckets);
    match Histogram::with_opts(opts) {
        Ok(histogram) => histogram,
        // The buckets are sorted and the name is valid: constants of this function.
        Err(error) => unreachable!("constant histogram options are invalid: {error}"),
    }
}
