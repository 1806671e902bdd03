//! The store of one process: a log in segments on this machine's disk.

mod compact;
mod damaged;
mod files;
mod log;
mod reader;
mod recover;
mod scan;
mod segments;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::backend::{Backend, BodyError, Job};
use super::entry::{Entry, Location};
use super::facts::{Fact, Progress, Reported, Residue, WriteError, WriteResult};
use super::frame::PendingRecord;
use super::index::Index;
use super::queue::BatchLimits;
use super::record::Change;
use super::view::IndexView;
use super::{KeepError, Options, ReadError, meta};
use crate::message::MessageId;
use damaged::Range;
#[cfg(test)]
pub(super) use files::Tail;
pub(super) use files::{Disk, LOCK, LockedFolder};
use log::{AppendError, SegmentLog};
use reader::SegmentReader;
use segments::Segments;

/// A segment is this part of all that may be kept, within bounds.
const PART: u64 = 32;
const MIN_SEGMENT: u64 = 64 * 1024;
const MAX_SEGMENT: u64 = 8 * 1024 * 1024;
/// The most bytes of one batch.
const BATCH: u64 = 4 * 1024 * 1024;

/// Bodies that are read at once. More would fill the threads for blocking work, and a write would wait
/// behind them.
const MOST_READS: usize = 64;

/// Messages in a folder of files.
#[derive(Debug)]
pub(super) struct DiskBackend {
    segment_size: u64,
    reader: Arc<SegmentReader>,
    reads: Semaphore,
    writer: Mutex<DiskWriter>,
}

/// What only the writer uses.
#[derive(Debug)]
struct DiskWriter {
    log: SegmentLog,
    segment_size: u64,
    disk: Arc<dyn Disk>,
    segments: Arc<Segments>,
    reader: Arc<SegmentReader>,
}

/// What a start has found in the folder.
pub(super) struct Opened {
    pub(super) index: Index,
    /// Written anew, because damage has hit what says so.
    pub(super) repairs: Vec<PendingRecord>,
    /// To be set aside once the repairs are durable.
    pub(super) damage: Damage,
}

/// Damaged bytes, by file.
pub(super) struct Damage(Vec<(String, Range)>);

impl DiskBackend {
    /// Reads all that is there. Blocks.
    pub(super) fn open(disk: &Arc<dyn Disk>, options: &Options) -> io::Result<(Self, Opened)> {
        let recovered = recover::recover(&**disk)?;
        let segments = Arc::new(recovered.segments);
        let segment_size = (options.max_bytes / PART).clamp(MIN_SEGMENT, MAX_SEGMENT);
        let segments = &segments;
        let log =
            SegmentLog::new(Arc::clone(disk), Arc::clone(segments), segment_size, recovered.next);
        let reader =
            Arc::new(SegmentReader { disk: Arc::clone(disk), segments: Arc::clone(segments) });
        let writer = DiskWriter {
            log,
            segment_size,
            disk: Arc::clone(disk),
            segments: Arc::clone(segments),
            reader: Arc::clone(&reader),
        };
        let index = recovered.index;
        let repairs = recovered.repairs.iter();
        let repairs =
            repairs.filter_map(|(id, change)| Some(meta::change(*id, change, index.get(*id)?)));
        let found = Opened { repairs: repairs.collect(), index, damage: Damage(recovered.damage) };
        let (reads, writer) = (Semaphore::new(MOST_READS), Mutex::new(writer));
        Ok((Self { segment_size, reader, reads, writer }, found))
    }

    /// Has the writer work on this thread. A panic is a failure of unknown extent.
    fn write<T>(&self, job: impl FnOnce(&mut DiskWriter) -> Reported<T>) -> Reported<T> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        catch_unwind(AssertUnwindSafe(|| job(&mut writer))).unwrap_or_else(|_| {
            // It is unknown what stands at its end.
            writer.log.seal();
            let failed = WriteError::new(&"the spool's writer panicked", Residue::Possible);
            Reported::without_facts(Err(failed))
        })
    }

    /// Sets aside what was damaged at the start: it says nothing at the next one. Blocks.
    pub(super) fn set_aside(&self, damage: &Damage) {
        for (file, range) in &damage.0 {
            damaged::set_aside(&*self.reader.disk, file, *range);
        }
    }
}

impl Backend for DiskBackend {
    fn name(&self) -> &'static str {
        "the disk"
    }

    fn blocks(&self) -> bool {
        true
    }

    fn refusal(&self, error: Arc<str>) -> KeepError {
        KeepError::Disk(error)
    }

    fn unreadable(&self, error: Arc<str>) -> ReadError {
        ReadError::Disk(error)
    }

    fn limits(&self) -> BatchLimits {
        BatchLimits { bytes: BATCH.min(self.segment_size), records: usize::MAX }
    }

    /// A log is read from its beginning: the change is enough.
    fn record(&self, id: MessageId, change: &Change, entry: &Entry) -> PendingRecord {
        meta::change(id, change, entry)
    }

    fn commit<'a>(
        &'a self,
        batch: Vec<PendingRecord>,
        view: &'a IndexView,
    ) -> Job<'a, Reported<Vec<WriteResult>>> {
        Box::pin(async move { self.write(|writer| writer.commit(&batch, view)) })
    }

    fn maintain<'a>(&'a self, view: &'a IndexView) -> Job<'a, Reported<Progress>> {
        Box::pin(async move { self.write(|writer| writer.tidy(view)) })
    }

    fn body(&self, id: MessageId, at: Location) -> Job<'_, Result<Bytes, BodyError>> {
        let reader = Arc::clone(&self.reader);
        Box::pin(async move {
            // It is never closed.
            let _slot = self.reads.acquire().await;
            let read = spawn_blocking(move || reader.body(id, at)).await;
            read.unwrap_or_else(|error| Err(BodyError::Failed(error.to_string().into())))
        })
    }

    fn quarantine(&self, at: Location) -> Job<'_, ()> {
        let reader = Arc::clone(&self.reader);
        Box::pin(async move { drop(spawn_blocking(move || reader.quarantine(at)).await) })
    }
}

impl DiskWriter {
    fn commit(&mut self, batch: &[PendingRecord], view: &IndexView) -> Reported<Vec<WriteResult>> {
        let begun = Instant::now();
        let appended = self.append(batch, view);
        let facts = appended.iter().map(|_| Fact::Wrote(begun.elapsed())).collect();
        let result =
            appended.map(|locations| locations.into_iter().map(WriteResult::Stored).collect());
        Reported { facts, result }
    }

    /// Writes records, all or none, and makes them durable.
    fn append(
        &mut self,
        batch: &[PendingRecord],
        view: &IndexView,
    ) -> Result<Vec<Location>, WriteError> {
        let mut result = self.log.append(batch);
        // Room may be found by deleting, which needs none.
        if let Err(first) = &result
            && first.is_full()
        {
            let residue = first.residue;
            if self.free_room(view) {
                result = self.log.append(batch).map_err(|second| match residue {
                    Residue::None => second,
                    Residue::Possible => AppendError { residue, ..second },
                });
            }
        }
        result.map_err(|AppendError { error, residue }| WriteError::new(&error, residue))
    }
}
