//! Many changes, one write: whoever comes first becomes the leader and writes for all who wait.
//!
//! The leader runs on a thread for blocking work, only while there is something to do. While it
//! does, tokio's paused clock stands still, so that tests with paused time are exact.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::frame::{Draft, Kind};
use super::index::{Entry, Index};
use super::log::{Failed, Log, Written};
use super::shared::Shared;
use super::store::{End, Fate, Writer};
use super::streams;
use super::{Effect, KeepError};
use crate::message::MessageId;

/// Longer than a disk takes that works.
const HANGS: Duration = Duration::from_secs(1);
/// How long to wait after a failure if nobody comes meanwhile.
const RETRY: Duration = Duration::from_secs(1);

/// Who waits for a change to be durable.
type Waiter<T> = Option<oneshot::Sender<T>>;

/// A change that is to be written.
#[derive(Debug)]
pub(super) enum Op {
    /// A new message. Fails with its write.
    Keep { draft: Draft, entry: Entry, done: oneshot::Sender<Result<(), KeepError>> },
    /// What became of one. Written sooner or later.
    Note { draft: Draft, done: Waiter<Effect> },
    /// Nothing: somebody waits for whatever was before.
    Fence { done: oneshot::Sender<Effect> },
}

impl Op {
    pub(super) fn draft(&self) -> Option<&Draft> {
        match self {
            Self::Keep { draft, .. } | Self::Note { draft, .. } => Some(draft),
            Self::Fence { .. } => None,
        }
    }
}

/// What waits to be written.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) ops: VecDeque<Op>,
    /// Somebody writes.
    leading: bool,
    /// When the round began that is being written.
    since: Option<Instant>,
    /// Somebody comes back after [`RETRY`].
    retrying: bool,
}

impl Queue {
    /// Queues a note that nobody waits for.
    pub(super) fn forget(&mut self, id: MessageId) {
        self.ops.push_back(Op::Note { draft: Draft::bare(Kind::Forgotten, id), done: None });
    }

    /// Messages whose end waits to be written.
    pub(super) fn forgotten(&self) -> impl Iterator<Item = MessageId> {
        let drafts = self.ops.iter().filter_map(Op::draft);
        drafts.filter(|draft| draft.kind == Kind::Forgotten).map(|draft| draft.id)
    }

    /// Whether the disk has not answered for long.
    pub(super) fn hangs(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= HANGS)
    }

    /// Whether somebody writes.
    #[cfg(test)]
    pub(super) fn is_led(&self) -> bool {
        self.leading
    }

    fn round(&mut self, (limit, most): (u64, usize)) -> Vec<Op> {
        self.since = Some(Instant::now());
        let mut bytes = 0;
        let mut ops = Vec::new();
        while let Some(op) = self.ops.front() {
            bytes += op.draft().map_or(0, |draft| u64::from(draft.len()));
            if (bytes > limit && !ops.is_empty()) || ops.len() >= most {
                break;
            }
            ops.extend(self.ops.pop_front());
        }
        ops
    }
}

impl Shared {
    /// Sees to it that somebody writes what waits.
    pub(super) fn kick(self: &Arc<Self>) {
        let mut queue = self.queue();
        if !queue.leading {
            queue.leading = true;
            drop(queue);
            let shared = Arc::clone(self);
            self.runtime.spawn_blocking(move || {
                let mut leader = Leader { shared: &shared, resigned: false };
                leader.lead();
            });
        }
    }

    fn retry_later(self: &Arc<Self>) {
        if std::mem::replace(&mut self.queue().retrying, true) {
            return;
        }
        let shared = Arc::downgrade(self);
        self.runtime.spawn(async move {
            sleep(RETRY).await;
            if let Some(shared) = shared.upgrade() {
                shared.queue().retrying = false;
                shared.kick();
            }
        });
    }

    /// Writes frames at once. Only for the leader, and before there is one.
    pub(super) fn append(
        &self,
        writer: &mut Writer,
        drafts: &[&Draft],
    ) -> Result<Vec<Fate>, Failed> {
        let owner = match &mut writer.end {
            End::Log(log) => {
                let written = self.append_log(log, drafts)?;
                return Ok(written.spots.into_iter().map(Fate::At).collect());
            }
            End::Redis(owner) => owner,
        };
        let started = Instant::now();
        let written = owner.commit(self, &writer.regrets, drafts);
        // That a full Redis takes what makes it emptier does not say that it takes the rest.
        if written.is_err() || streams::grows(drafts) {
            self.wrote(started, &written);
        }
        written
    }

    /// The same on a disk.
    pub(super) fn append_log(&self, log: &mut Log, drafts: &[&Draft]) -> Result<Written, Failed> {
        let started = Instant::now();
        let mut result = log.append(drafts);
        // Room may be found by deleting, which needs none.
        if let Err(first) = &result
            && first.is_full()
            && self.free_room(log)
        {
            let traces = first.traces;
            result = log.append(drafts).map_err(|mut second| {
                second.traces |= traces;
                second
            });
        }
        let mut index = self.index();
        for (segment, salt) in log.made.drain(..) {
            index.segments.entry(segment).or_default().salt = salt;
        }
        if let Ok(written) = &result {
            index.segments.entry(written.segment).or_default().len = written.len;
        }
        drop(index);
        self.wrote(started, &result);
        result
    }

    /// A write has ended so.
    pub(super) fn wrote<T>(&self, started: Instant, result: &Result<T, Failed>) {
        let mut index = self.index();
        match result {
            Ok(_) => {
                self.commits.observe(started.elapsed().as_secs_f64());
                index.failure = None;
            }
            Err(failed) => {
                let error = failed.error.to_string();
                if index.failure.is_none() {
                    tracing::warn!(
                        error,
                        "{} does not take what is to be kept",
                        self.store.as_str()
                    );
                }
                index.failure = Some(error.into());
            }
        }
    }

    /// Sees to what is written. Returns whether there is more to do.
    fn tend(&self, writer: &mut Writer) -> io::Result<bool> {
        let owner = match &mut writer.end {
            End::Log(log) => return self.tidy(log),
            End::Redis(owner) => owner,
        };
        let started = Instant::now();
        owner.tend(self, &writer.regrets).map(|()| false).map_err(|error| {
            let failed = || Failed { error: io::Error::other(error.to_string()), traces: false };
            self.wrote::<()>(started, &Err(failed()));
            failed().error
        })
    }
}

/// Whoever writes.
struct Leader<'a> {
    shared: &'a Arc<Shared>,
    resigned: bool,
}

impl Drop for Leader<'_> {
    /// Should writing ever panic, the next who comes leads.
    fn drop(&mut self) {
        if !self.resigned {
            self.resign(&mut self.shared.queue());
        }
    }
}

impl Leader<'_> {
    /// The next who comes leads.
    fn resign(&mut self, queue: &mut Queue) {
        (queue.leading, queue.since) = (false, None);
        self.resigned = true;
    }

    fn lead(&mut self) {
        let shared = self.shared;
        loop {
            let mut writer = shared.writer();
            let ops = shared.queue().round(shared.store.round(shared.segment_size()));
            shared.index().expire(shared.options.keep_receipts, Timestamp::now());
            let idle = ops.is_empty() && writer.regrets.is_empty();
            let written = if idle { self.probe(&mut writer) } else { self.write(&mut writer, ops) };
            if let Err(error) = written {
                drop(writer);
                return self.give_up(&error);
            }
            let tidied = shared.tend(&mut writer);
            drop(writer);
            if let Err(error) = &tidied {
                tracing::debug!(%error, "the spool's folder cannot be tidied");
                shared.retry_later();
            }
            let busy = tidied.unwrap_or(false);
            let mut queue = shared.queue();
            if !busy && queue.ops.is_empty() {
                return self.resign(&mut queue);
            }
        }
    }

    /// After a failure somebody has to find out that the disk works again: as long as it seems
    /// not to, perhaps nothing else comes that would be written.
    fn probe(&self, writer: &mut Writer) -> Result<(), Arc<str>> {
        if self.shared.index().failure.is_none() {
            return Ok(());
        }
        let nobody = Draft::bare(Kind::Forgotten, MessageId::from_u128(0));
        let written = self.shared.append(writer, &[&nobody]);
        written.map(drop).map_err(|failed| failed.error.to_string().into())
    }

    /// Keeps fail now, notes are tried again.
    fn give_up(&mut self, error: &Arc<str>) {
        let mut index = self.shared.index();
        let mut queue = self.shared.queue();
        let ops = std::mem::take(&mut queue.ops);
        let error = self.shared.store.refusal(Arc::clone(error));
        queue.ops = without_repeats(without_keeps(&mut index, ops, &error));
        self.resign(&mut queue);
        drop(queue);
        drop(index);
        self.shared.retry_later();
    }

    fn write(&self, writer: &mut Writer, ops: Vec<Op>) -> Result<(), Arc<str>> {
        let shared = self.shared;
        let back = |ops: Vec<Op>, error: &io::Error, traces: bool| {
            let error: Arc<str> = Arc::from(error.to_string());
            let told = if traces {
                KeepError::Unsure(Arc::clone(&error))
            } else {
                shared.store.refusal(Arc::clone(&error))
            };
            let notes = without_keeps(&mut shared.index(), ops.into(), &told);
            let mut queue = shared.queue();
            for op in notes.into_iter().rev() {
                queue.ops.push_front(op);
            }
            error
        };
        // First what must not come back. As long as that is not written nothing else is tried, so
        // that failures do not pile up.
        if !writer.regrets.is_empty() {
            let regrets: Vec<Draft> =
                writer.regrets.iter().map(|id| Draft::bare(Kind::Forgotten, *id)).collect();
            match shared.append(writer, &regrets.iter().collect::<Vec<_>>()) {
                Ok(_) => writer.regrets.clear(),
                Err(failed) => return Err(back(ops, &failed.error, false)),
            }
        }
        let drafts: Vec<&Draft> = ops.iter().filter_map(Op::draft).collect();
        if drafts.is_empty() {
            shared.done(ops, &[]);
            return Ok(());
        }
        match shared.append(writer, &drafts) {
            Ok(fates) => {
                shared.done(ops, &fates);
                Ok(())
            }
            Err(failed) => {
                if failed.traces {
                    let keeps = ops.iter().filter(|op| matches!(op, Op::Keep { .. }));
                    writer.regrets.extend(keeps.filter_map(Op::draft).map(|draft| draft.id));
                }
                Err(back(ops, &failed.error, failed.traces))
            }
        }
    }
}

impl Shared {
    /// All of it is durable.
    fn done(&self, ops: Vec<Op>, fates: &[Fate]) {
        let mut fates = fates.iter().copied();
        let mut index = self.index();
        let mut told = Vec::with_capacity(ops.len());
        for op in ops {
            match op {
                Op::Keep { draft, mut entry, done } => {
                    index.reserved.messages -= 1;
                    index.reserved.bytes -= u64::from(draft.len());
                    let kept = match fates.next() {
                        Some(Fate::At(spot)) => {
                            entry.spot = spot;
                            index.insert(draft.id, entry);
                            Ok(())
                        }
                        Some(Fate::Full) => Err(KeepError::Full),
                        Some(Fate::TransportError) => Err(KeepError::Already),
                        None => Err(self.store.refusal("it was not written".into())),
                    };
                    told.push(Told::Keep(done, kept));
                }
                Op::Note { draft, done } => {
                    let is_receipt = index.get(draft.id).is_some_and(Entry::is_receipt);
                    let fate = fates.next();
                    match fate {
                        Some(Fate::At(spot)) if draft.kind == Kind::Delivered && is_receipt => {
                            index.settle(draft.id, spot, true);
                        }
                        Some(Fate::TransportError) if index.remove(draft.id).is_some() => {
                            tracing::warn!(message = %draft.id, "another sidecar has taken over a message");
                        }
                        _ => {}
                    }
                    let effect = match fate {
                        Some(Fate::TransportError) => Effect::TransportError,
                        _ => Effect::Made,
                    };
                    told.extend(done.map(|done| Told::Note(done, effect)));
                }
                Op::Fence { done } => told.push(Told::Note(done, Effect::Unchanged)),
            }
        }
        drop(index);
        for told in told {
            // Whoever has gone away need not know.
            match told {
                Told::Keep(done, kept) => drop(done.send(kept)),
                Told::Note(done, effect) => drop(done.send(effect)),
            }
        }
    }
}

enum Told {
    Keep(oneshot::Sender<Result<(), KeepError>>, Result<(), KeepError>),
    Note(oneshot::Sender<Effect>, Effect),
}

/// Of the tries of a message that nobody waits for, the last says it all: a disk that takes nothing
/// for days must not fill the memory.
fn without_repeats(ops: VecDeque<Op>) -> VecDeque<Op> {
    let (mut told, mut rest) = (HashSet::new(), VecDeque::with_capacity(ops.len()));
    for op in ops.into_iter().rev() {
        let gone = match &op {
            Op::Note { draft, done } if matches!(draft.kind, Kind::Tried | Kind::Calling) => {
                !told.insert(draft.id) && done.as_ref().is_none_or(oneshot::Sender::is_closed)
            }
            Op::Fence { done } => done.is_closed(),
            Op::Keep { .. } | Op::Note { .. } => false,
        };
        if !gone {
            rest.push_front(op);
        }
    }
    rest
}

/// Tells those who keep that it is not taken.
fn without_keeps(index: &mut Index, ops: VecDeque<Op>, error: &KeepError) -> VecDeque<Op> {
    let mut rest = VecDeque::with_capacity(ops.len());
    for op in ops {
        match op {
            Op::Keep { draft, done, .. } => {
                index.reserved.messages -= 1;
                index.reserved.bytes -= u64::from(draft.len());
                drop(done.send(Err(error.clone())));
            }
            op => rest.push_back(op),
        }
    }
    rest
}
