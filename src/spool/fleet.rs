//! What a spool can do that is shared with others: begin, take over, hand over, leave.

use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::disk::LOCK;
use super::index::{Entry, Stage};
use super::record::{Brief, Change, Record, State};
use super::shared::Shared;
use super::store::{End, Store};
use super::streams::{Durability, Owner, Streams, Times, Trouble};
use super::{KeepError, OpenError, Options, ReadError, Spool};
use crate::config::Fleet;

/// Messages that are handed over at once.
const SLICE: usize = 100;

/// Messages that this sidecar takes over from others, as it does.
#[derive(Debug)]
pub struct Adoptions {
    spool: std::sync::Weak<Shared>,
    streams: Arc<Streams>,
    begun: bool,
}

impl Adoptions {
    /// The next ones; `None`: there will be no more. Nothing is taken over before this is asked.
    pub async fn next(&mut self) -> Option<Vec<Brief>> {
        if !std::mem::replace(&mut self.begun, true) {
            self.streams.set_adopting(true);
        }
        loop {
            let adopted = self.streams.adopted.notified();
            let ids = self.streams.take_adopted()?;
            if ids.is_empty() {
                adopted.await;
                continue;
            }
            let shared = self.spool.upgrade()?;
            let index = shared.index();
            let briefs = ids.iter().filter_map(|id| Some(index.get(*id)?.brief(*id)));
            return Some(briefs.collect());
        }
    }
}

impl Spool {
    /// Opens the spool that an account's sidecars share in Redis. `folder`: where this machine
    /// remembers who we are, so that after a crash what we kept is ours again at once.
    ///
    /// Without an answer from Redis it opens all the same, and takes messages when there is one.
    pub async fn share(
        fleet: &Fleet,
        folder: Option<&Path>,
        options: Options,
    ) -> Result<Self, OpenError> {
        if let Some(path) = folder {
            Self::nothing_is_left(path, &options).await?;
        }
        Self::share_with(fleet, folder, options, Times::default()).await
    }

    /// Whoever kept on this disk before has delivered it, or handed it over.
    async fn nothing_is_left(path: &Path, options: &Options) -> Result<(), OpenError> {
        let lock = path.join(LOCK);
        if !tokio::task::spawn_blocking(move || lock.exists()).await.unwrap_or(true) {
            return Ok(());
        }
        let disk = Self::open(Options { path: path.to_owned(), ..options.clone() }).await?;
        let usage = disk.usage();
        let messages = usage.queued.messages + usage.dead.messages;
        if messages == 0 {
            return Ok(());
        }
        Err(OpenError::Left { path: path.to_owned(), messages })
    }

    pub(super) async fn share_with(
        fleet: &Fleet,
        folder: Option<&Path>,
        options: Options,
        times: Times,
    ) -> Result<Self, OpenError> {
        let (spool, begun) = Self::shared(fleet, folder, options, times).await?;
        match begun {
            Err(error) if error.may_pass() => {
                tracing::warn!(%error, "nothing can be kept until Redis takes it");
            }
            begun => begun.map_err(failed)?,
        }
        let weak = Arc::downgrade(&spool.shared);
        if let Store::Redis(streams) = &spool.shared.store {
            let streams = Arc::clone(streams);
            tokio::spawn(async move {
                loop {
                    streams.beat().await;
                    let Some(shared) = weak.upgrade() else { return };
                    shared.kick();
                }
            });
        }
        spool.shared.kick();
        Ok(spool)
    }

    async fn shared(
        fleet: &Fleet,
        folder: Option<&Path>,
        options: Options,
        times: Times,
    ) -> Result<(Self, Result<(), Trouble>), OpenError> {
        let (fleet, folder) = (fleet.clone(), folder.map(Path::to_owned));
        let runtime = Handle::current();
        let opened = tokio::task::spawn_blocking(move || {
            let owner = Owner::new(&fleet, folder.as_deref(), times)?;
            let shared = Shared::share(owner, options, runtime);
            let begun = shared.with_owner(Owner::begin);
            Ok::<_, std::io::Error>((shared, begun))
        });
        let (shared, begun) = opened.await.map_err(failed)?.map_err(failed)?;
        Ok((Self { shared }, begun))
    }

    /// All that the account's sidecars keep: to be looked at, not to be changed.
    pub async fn look(fleet: &Fleet, options: Options) -> Result<Self, OpenError> {
        let (spool, begun) = Self::shared(fleet, None, options, Times::default()).await?;
        begun.map_err(failed)?;
        spool.with_owner(Owner::read_all).await?;
        Ok(spool)
    }

    /// What the account's sidecars have left that are no more, and how many messages those have that
    /// live. To be closed.
    pub async fn take_over(fleet: &Fleet, options: Options) -> Result<(Self, u64), OpenError> {
        let (spool, begun) = Self::shared(fleet, None, options, Times::default()).await?;
        begun.map_err(failed)?;
        loop {
            let peers = spool.with_owner(|owner, shared| {
                owner.watch()?;
                while owner.take_some(shared)? {}
                Ok(owner.peers())
            });
            let peers = peers.await?;
            if !peers.undecided {
                return Ok((spool, peers.held));
            }
            sleep(Times::default().beat).await;
        }
    }

    async fn with_owner<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Owner, &Shared) -> Result<T, Trouble> + Send + 'static,
    ) -> Result<T, OpenError> {
        let shared = Arc::clone(&self.shared);
        let acted = tokio::task::spawn_blocking(move || shared.with_owner(act)).await;
        acted.map_err(failed)?.map_err(failed)
    }

    /// What is taken over from others; `None`: nobody shares this spool.
    pub fn adoptions(&self) -> Option<Adoptions> {
        let Store::Redis(streams) = &self.shared.store else { return None };
        let (spool, streams) = (Arc::downgrade(&self.shared), Arc::clone(streams));
        Some(Adoptions { spool, streams, begun: false })
    }

    /// Takes nothing over any more.
    pub fn retire(&self) {
        if let Store::Redis(streams) = &self.shared.store {
            streams.set_adopting(false);
        }
    }

    /// Whether calls for kept messages may begin, and until when: after that, others may have taken
    /// them over.
    pub fn is_ours(&self) -> Result<Option<Instant>, NotOurs> {
        let Store::Redis(streams) = &self.shared.store else { return Ok(None) };
        match streams.owned_until() {
            Some(until) if Instant::now() < until => Ok(Some(until)),
            _ => Err(NotOurs),
        }
    }

    /// How durable what is kept now is.
    pub fn durability(&self) -> Durability {
        match &self.shared.store {
            Store::Disk(_) => Durability::Disk,
            Store::Redis(streams) => streams.durability(),
        }
    }

    /// Writes what waits, and leaves the rest to the others at once. On a disk all stays.
    pub async fn close(&self) {
        let Store::Redis(streams) = &self.shared.store else { return };
        streams.close();
        self.flush().await;
        let shared = Arc::clone(&self.shared);
        let left = tokio::task::spawn_blocking(move || shared.with_owner(Owner::leave));
        if let Ok(Err(error)) = left.await {
            tracing::warn!(%error, "the other sidecars take over when they have noticed the end");
        }
    }

    /// Hands what is to be delivered, and dead letters, to another spool: each is durable there
    /// before it is forgotten here. Returns how many were handed over, and stops at the first that is
    /// not taken. Begins no slice after `until`; one that has begun is not to be given up.
    pub async fn hand_over(&self, to: &Self, until: Instant) -> Result<usize, KeepError> {
        let mut handed = 0;
        let mut after = None;
        while Instant::now() < until {
            let open = |brief: &Brief| !brief.state.is_final();
            let slice = self.list(after, SLICE, &mut |brief| open(brief));
            let Some(last) = slice.last() else { return Ok(handed) };
            after = Some(last.id);
            let mut keeps = Vec::with_capacity(slice.len());
            let mut failed = None;
            for brief in &slice {
                let submitted = match self.read(brief.id).await {
                    Ok(record) => to.submit_as(&record),
                    Err(ReadError::Absent | ReadError::Damaged) => continue,
                    Err(ReadError::Disk(error)) => Err(KeepError::Disk(error)),
                    Err(ReadError::Redis(error)) => Err(KeepError::Redis(error)),
                };
                match submitted {
                    Ok(kept) => keeps.push((brief.id, kept)),
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
            to.shared.kick();
            let mut forgotten = Vec::with_capacity(keeps.len());
            for (id, kept) in keeps {
                let stopped = || Err(KeepError::Redis("it was stopped".into()));
                match kept.await.unwrap_or_else(|_| stopped()) {
                    // Already: as an earlier hand-over was killed.
                    Ok(()) | Err(KeepError::Already) => {
                        forgotten.push(self.note(id, Change::Forgotten));
                    }
                    Err(error) => failed = Some(error),
                }
            }
            handed += forgotten.len();
            for durable in forgotten {
                durable.await;
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(handed)
    }

    /// Keeps a message as it was kept elsewhere.
    fn submit_as(
        &self,
        record: &Record,
    ) -> Result<oneshot::Receiver<Result<(), KeepError>>, KeepError> {
        let Record { message, brief } = record;
        let stage = match &brief.state {
            State::Queued { calling } => Stage::Queued { calling: *calling },
            State::Dead(death) => Stage::Dead(Box::new(death.clone())),
            State::Delivered(receipt) => Stage::Delivered(Box::new(receipt.clone())),
            State::Dropped(at) => Stage::Dropped(Box::new(*at)),
        };
        let mut index = self.shared.index();
        let (instance, topic) = (Arc::clone(&message.instance), message.topic.clone());
        let entry = Entry {
            attempts: brief.attempts,
            unknown: brief.unknown,
            doubt: brief.doubt,
            claim: brief.claim.map(Box::new),
            trace: brief.trace.map(Box::new),
            stage,
            ..Entry::new(index.places.get(instance, topic), brief.kept_at)
        };
        self.enqueue(&mut index, message, entry)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it maps an error")]
fn failed<E: ToString>(error: E) -> OpenError {
    OpenError::Redis(error.to_string())
}

/// Messages that were kept here may be others' now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("others may have taken over what was kept here")]
pub struct NotOurs;

impl Shared {
    fn with_owner<T>(
        &self,
        act: impl FnOnce(&mut Owner, &Self) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        match &mut self.writer().end {
            End::Log(_) => Err(Trouble::Garbled),
            End::Redis(owner) => act(owner, self),
        }
    }
}
