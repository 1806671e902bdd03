//! What happens to a message from acceptance to its end.
//!
//! A message is on a task of its own before its caller first waits: a caller who hangs up loses
//! the answer, never the message. Deadlines are data that this looks at, not futures that are
//! dropped.
//!
//! With a spool, a message that is not delivered at its first try is kept, and belongs to the retry
//! batches (`batches`, `lane`) until its end.

mod batches;
mod begun;
mod endings;
mod fresh;
mod held;
mod idempotency;
mod kept;
mod lane;
mod outcome;
mod take_up;
#[cfg(test)]
mod tests;
mod waiters;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ceiling::Ceiling;
use crate::config;
use crate::deadline;
use crate::log_limiter::LogLimiter;
use crate::message::{Message, MessageId};
use crate::meter::Meter;
use crate::spool::{Brief, Change, Claim, Effect, Picked, Spool};
use crate::upstream::Upstream;
use batches::Batches;
pub use batches::Paused;
pub use begun::Begun;
use fresh::Caller;
use idempotency::Keys;
use kept::Kept;
pub use outcome::{Disposition, Outcome, Settled};

/// What a caller wants.
#[derive(Debug, Clone, Copy)]
pub struct PublishOptions {
    /// How long it waits for the outcome.
    pub patience: Duration,
    /// It would rather have its message kept than be refused because of a ceiling.
    pub keep: bool,
    /// The claim of its `Idempotency-Key`.
    pub claim: Option<Claim>,
}

/// Delivers messages. Cheap to clone.
#[derive(Debug)]
pub struct Delivery<U> {
    shared: Arc<Shared<U>>,
}

impl<U> Clone for Delivery<U> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

#[derive(Debug)]
struct Shared<U> {
    upstream: Arc<U>,
    ceiling: Ceiling,
    meter: Meter,
    jitter: Mutex<fastrand::Rng>,
    under_way: TaskTracker,
    /// No more calls are made.
    stop: CancellationToken,
    keys: Arc<Keys>,
    kept: Option<Arc<Kept<U>>>,
}

impl<U: Upstream> Delivery<U> {
    /// Starts delivering what `spool` holds, if there is one. `seed` decides the jitter.
    pub fn new(
        config: &config::Config,
        upstream: U,
        spool: Option<Spool>,
        ceiling: Ceiling,
        meter: Meter,
        seed: u64,
    ) -> Self {
        let (upstream, under_way) = (Arc::new(upstream), TaskTracker::new());
        let stop = CancellationToken::new();
        let keys = Arc::new(Keys::new(&config.idempotency, spool.as_ref()));
        let kept = spool.map(|spool| {
            let kept = Arc::new(Kept {
                spool,
                keys: Arc::clone(&keys),
                batches: Batches::new(config.retry.clone(), seed),
                upstream: Arc::clone(&upstream),
                ceiling: ceiling.clone(),
                meter: meter.clone(),
                under_way: under_way.clone(),
                stop: stop.clone(),
                lines: LogLimiter::new(kept::MAX_LINES),
            });
            kept.recover();
            if let Some(adoptions) = kept.spool.adoptions() {
                tokio::spawn(take_up::adopt(Arc::downgrade(&kept), adoptions));
            }
            let changed = Arc::clone(&kept.batches.changed);
            tokio::spawn(batches::run(Arc::downgrade(&kept), changed));
            kept
        });
        let jitter = Mutex::new(fastrand::Rng::with_seed(seed));
        let shared = Shared { upstream, ceiling, meter, jitter, under_way, stop, keys, kept };
        Self { shared: Arc::new(shared) }
    }

    /// Delivers a message and says what became of it, at the latest when its caller's patience
    /// ends.
    pub async fn publish(&self, message: Message, wanted: PublishOptions) -> Outcome {
        self.begin(message, wanted).outcome().await
    }

    /// Begins to deliver a message, without waiting: it claims the key and decides the plan before it
    /// returns, and takes the place in the ceiling's line if the message has no key and is called at
    /// once. So messages that are begun one after the other have their keys and these places in that
    /// order. A task of its own carries the message on.
    pub fn begin(&self, message: Message, wanted: PublishOptions) -> Begun {
        let first = match wanted.claim.map(|claim| self.shared.keys.claim(claim)).transpose() {
            Ok(first) => first,
            Err(outcome) => return Begun::Done(outcome),
        };
        let deadline = Instant::now() + wanted.patience;
        let plan = match self.shared.plan(&message, &wanted, deadline) {
            Ok(plan) => plan,
            Err(ended) => return Begun::Done(Outcome::new(0, ended)),
        };
        let (to, outcome) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        self.shared.under_way.spawn(async move {
            shared.carry_out(plan, message, wanted.claim, Caller::new(to, deadline, first)).await;
        });
        Begun::UnderWay(outcome)
    }

    /// What is known of a message that was kept.
    pub fn find(&self, id: MessageId) -> Option<Brief> {
        self.shared.kept.as_ref()?.spool.find(id)
    }

    /// What is kept, if anything is.
    pub fn spool(&self) -> Option<&Spool> {
        self.shared.kept.as_ref().map(|kept| &kept.spool)
    }

    /// Tries the dead letters that are meant once more. Returns how many, once that is durable.
    pub async fn replay(&self, selection: &Picked) -> usize {
        let Some(kept) = &self.shared.kept else { return 0 };
        let note = |brief: &Brief| kept.spool.note(brief.id, Change::Replayed(Timestamp::now()));
        let again = |brief: &Brief, effect| {
            let is_made = effect == Effect::Made;
            if let Some(brief) = kept.spool.find(brief.id).filter(|_| is_made) {
                kept.keys.replayed(&brief);
                kept.enqueue(&Brief { attempts: 0, ..brief });
            }
        };
        kept.spool.change(&|brief| selection.means_dead(brief), &note, &again).await
    }

    /// Drops the messages that are meant, and answers the callers who wait for them. Returns how many,
    /// once that is durable. A call that is under way is not called back, and decides what its caller
    /// is answered.
    pub async fn discard(&self, selection: &Picked) -> usize {
        let Some(kept) = &self.shared.kept else { return 0 };
        let meant = |brief: &Brief| selection.means_droppable(brief);
        let gone = Mutex::new(HashSet::new());
        let note = |brief: &Brief| {
            kept.batches.waiters.drop_begins(brief.id);
            let note = |doubt| kept.spool.note(brief.id, Spool::dropped(brief, doubt));
            kept.batches.drops(brief.id, || kept.spool.find(brief.id), note)
        };
        let then = |brief: &Brief, effect| {
            kept.dropped(brief, effect);
            if effect == Effect::Made {
                gone.lock().unwrap_or_else(PoisonError::into_inner).insert(brief.id);
            }
        };
        let dropped = kept.spool.change(&meant, &note, &then).await;
        // Else a stop would wait for their next try.
        kept.batches.forget(&gone.into_inner().unwrap_or_else(PoisonError::into_inner));
        dropped
    }

    /// Lanes that do not deliver.
    pub fn paused(&self) -> Vec<Paused> {
        self.shared.kept.as_ref().map(|kept| kept.batches.paused()).unwrap_or_default()
    }

    /// Begins no new calls after `grace`, in which calls under way end, and what is kept and due is
    /// delivered. Then callers who wait for a kept message are answered that it stays kept. Calls that
    /// have begun go on: [`Self::close`] waits for them.
    pub async fn drain(&self, grace: Duration) {
        let shared = &self.shared;
        let quiet = async {
            let kept = || shared.kept.as_ref().map_or(0, |kept| kept.batches.len());
            while kept() > 0 || !shared.under_way.is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        drop(timeout(grace, quiet).await);
        shared.stop.cancel();
        if let Some(kept) = &shared.kept {
            kept.batches.dismiss();
        }
    }

    /// After [`Self::drain`]: waits for the calls that have begun, at most so long, so that their callers
    /// are answered and what became of them is recorded. Returns how many messages were left that are
    /// kept nowhere.
    pub async fn close(&self, at_most: Duration) -> usize {
        let shared = &self.shared;
        shared.under_way.close();
        drop(deadline::by(Instant::now() + at_most, shared.under_way.wait()).await);
        let under_way = shared.under_way.len();
        if under_way > 0 {
            tracing::warn!(
                messages = under_way,
                "stopped while the outcome of messages was not recorded: each may have been delivered"
            );
        }
        let Some(kept) = &shared.kept else { return under_way };
        drop(timeout(FLUSH, kept.spool.flush()).await);
        let left = kept.batches.len();
        if left > 0 {
            tracing::info!(messages = left, "kept for the next start");
        }
        0
    }
}

/// What a disk may take for the last writes.
const FLUSH: Duration = Duration::from_secs(2);
