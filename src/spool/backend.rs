//! What the core needs of a store. `disk` and `redis` are the two there are.

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

use super::entry::{Entry, Location};
use super::facts::{Progress, Reported, WriteResult};
use super::frame::PendingRecord;
use super::queue::BatchLimits;
use super::record::Change;
use super::view::IndexView;
use super::{KeepError, ReadError};
use crate::message::MessageId;

/// The future of a method that a trait object has.
pub(super) type Job<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where records are written, and bodies are read from.
///
/// [`commit`](Self::commit), [`maintain`](Self::maintain) and [`leave`](Self::leave) are called one
/// after the other, in tasks that no caller cancels, and the facts of each are applied before the
/// next. They alone may block the thread that they run on, if the backend says so.
pub(super) trait Backend: Debug + Send + Sync {
    /// The store, for the log.
    fn name(&self) -> &'static str;
    /// Whether the writing half blocks its thread, which then is not one of the event loop's.
    fn blocks(&self) -> bool {
        false
    }
    /// The error of a message that the store did not take.
    fn refusal(&self, error: Arc<str>) -> KeepError;
    /// The error of a message that the store did not read.
    fn unreadable(&self, error: Arc<str>) -> ReadError;
    /// The most that one commit may have.
    fn limits(&self) -> BatchLimits;
    /// The record of a change; `entry` is the message after it.
    fn record(&self, id: MessageId, change: &Change, entry: &Entry) -> PendingRecord;
    /// Makes a batch durable, all or nothing. A store may refuse a record for itself.
    fn commit<'a>(
        &'a self,
        batch: Vec<PendingRecord>,
        view: &'a IndexView,
    ) -> Job<'a, Reported<Vec<WriteResult>>>;
    /// Does what is due besides writing.
    fn maintain<'a>(&'a self, view: &'a IndexView) -> Job<'a, Reported<Progress>>;
    /// Reads the body of a message.
    fn body(&self, id: MessageId, at: Location) -> Job<'_, Result<Bytes, BodyError>>;
    /// Sets damaged bytes aside, once the index has no message there.
    fn quarantine(&self, at: Location) -> Job<'_, ()> {
        let _ = at;
        Box::pin(std::future::ready(()))
    }
    /// Leaves all messages to the peers. Nothing is written after that.
    fn leave<'a>(&'a self, view: &'a IndexView) -> Job<'a, Reported<()>> {
        let _ = view;
        Box::pin(std::future::ready(Reported::without_facts(Ok(()))))
    }
}

/// Why a body was not read.
#[derive(Debug)]
pub(super) enum BodyError {
    /// The store has no such message.
    Absent,
    /// Its segment was deleted, perhaps because the record was moved.
    Moved,
    /// Its bytes are not what was written.
    Damaged,
    /// The store did not read; it may later.
    Failed(Arc<str>),
}
