//! What happens to a message from acceptance to its end.
//!
//! A message is on a task of its own before its caller first waits: a caller who hangs up loses
//! the answer, never the message. Deadlines are data, not futures that are dropped: a call that has left
//! is always waited for.
//!
//! Every call is an `attempt`: of a message that is not kept (`fresh`), or of a kept one (`retry`). With a
//! spool, a message that is not delivered at once is kept (`kept`), and waits in its lane (`lane`) of the
//! `retry_queue` until the `pump` hands it out. What its calls come to is recorded in `endings`.

mod attempt;
mod begun;
mod caller;
mod contained;
mod endings;
mod expiry;
mod fresh;
mod held;
mod idempotency;
mod kept;
mod lane;
mod order;
mod outcome;
mod position;
mod pump;
mod readers;
mod registry;
mod retention;
mod retry;
mod retry_queue;
mod signal;
mod spans;
mod stay;
mod take_up;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ceiling::Ceiling;
use crate::config;
use crate::deadline;
use crate::fair_queue::Weights;
use crate::log_limiter::LogLimiter;
use crate::memory::{MemoryPlan, MemoryQueue};
use crate::message::{Lifespan, Message, MessageId};
use crate::meter::{Meter, OverBudget};
use crate::spool::{AdoptionRules, Affected, Brief, Change, Effect, HeldCounts, Picked, Spool};
use crate::traces::Traces;
use crate::upstream::Upstream;
use attempt::Dispatcher;
pub use begun::Begun;
use caller::Caller;
pub use caller::{Keeping, PublishOptions};
use fresh::{Intake, Plan, Way};
use idempotency::IdempotencyKeys;
pub use idempotency::KeyUsage;
use kept::KeptMessages;
pub use order::CallOrder;
pub use outcome::{Disposition, Outcome, Settled};
pub use readers::TooManyReaders;
use readers::WaitingReaders;
use retry_queue::RetryQueue;
pub use retry_queue::{PauseReason, PausedLane};

/// Delivers messages. Cheap to clone.
#[derive(Debug)]
pub struct Delivery<U> {
    intake: Arc<Intake<U>>,
}

impl<U> Clone for Delivery<U> {
    fn clone(&self) -> Self {
        Self { intake: Arc::clone(&self.intake) }
    }
}

impl<U: Upstream> Delivery<U> {
    /// Starts delivering what `spool` holds, if there is one. `seed` decides the jitter.
    pub fn new(
        config: &config::Config,
        upstream: U,
        spool: Option<Spool>,
        ceiling: Ceiling,
        meter: Meter,
        traces: Traces,
        seed: u64,
    ) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let dispatcher = Arc::new(Dispatcher { upstream, ceiling, meter, traces, tasks, stop });
        let weighed =
            config.callers.iter().map(|caller| (caller.name.as_str().into(), caller.weight));
        let weights = Weights::of(weighed);
        dispatcher.ceiling.weigh(weights.clone());
        let keys = Arc::new(IdempotencyKeys::new(&config.idempotency, spool.as_ref()));
        let kept = spool.map(|spool| {
            let kept = Arc::new(KeptMessages {
                spool,
                keys: Arc::clone(&keys),
                queue: RetryQueue::new(config.retry.clone(), weights.clone(), seed),
                memory: MemoryQueue::new(MemoryPlan::of(config.runtime.memory).stored_bodies),
                dispatcher: Arc::clone(&dispatcher),
                log: LogLimiter::new(kept::MAX_LINES),
                topics: RwLock::new(config.topics.clone()),
                held_log: LogLimiter::each_minute(1),
                readers: WaitingReaders::of(config.publish.max_connections),
                expiries: Arc::default(),
            });
            kept.recover();
            if let Some(adoptions) = kept.spool.adoptions() {
                tokio::spawn(take_up::adopt(Arc::downgrade(&kept), adoptions));
            }
            tokio::spawn(pump::run(Arc::downgrade(&kept)));
            tokio::spawn(retention::run(Arc::downgrade(&kept)));
            tokio::spawn(expiry::run(Arc::downgrade(&kept)));
            kept
        });
        let jitter = Mutex::new(fastrand::Rng::with_seed(seed));
        Self { intake: Arc::new(Intake { dispatcher, keys, kept, weights, jitter }) }
    }

    /// Delivers a message and returns what became of it, at the latest when its caller's patience
    /// ends.
    pub async fn publish(&self, message: Message, wanted: PublishOptions) -> Outcome {
        let wanted = match self.with_part(&message, wanted).await {
            Ok(wanted) => wanted,
            Err(over) => return Outcome::new(0, Disposition::OverBudget(over)),
        };
        self.start(message, wanted, &mut CallOrder::default()).outcome().await
    }

    /// Waits for a part of a budget that the fleet shares, if none is in hand: before the message has a permit, which others
    /// could use meanwhile. One with a key may have been delivered already, and does not wait. Returns what is left of its
    /// caller's patience.
    async fn with_part(
        &self,
        message: &Message,
        mut wanted: PublishOptions,
    ) -> Result<PublishOptions, OverBudget> {
        let Dispatcher { meter, stop, .. } = &*self.intake.dispatcher;
        if wanted.claim.is_some() || wanted.patience.is_zero() || !meter.shares_budgets() {
            return Ok(wanted);
        }
        let deadline = Instant::now() + wanted.patience;
        tokio::select! {
            part = meter.part_by(message, deadline) => part?,
            () = stop.cancelled() => {}
        }
        // None at all would mean that it is to be stored at once.
        let left = deadline.saturating_duration_since(Instant::now());
        wanted.patience = left.max(Duration::from_millis(1));
        Ok(wanted)
    }

    /// Begins to deliver a message, without waiting: it claims the key and decides the plan before it
    /// returns, and takes the place in the ceiling's queue if the message has no key and is called at
    /// once. A message with a key, and all of its lane that are begun after it with the same `order`, are
    /// stored first and wait for their calls in that order. So messages that are begun one after the other
    /// have their keys and their calls in that order: with the same `order` none is more urgent than one of its
    /// lane before it. A message that is never stored has no place among stored ones. A task of its own carries
    /// the message on.
    pub fn begin(
        &self,
        mut message: Message,
        wanted: PublishOptions,
        order: &mut CallOrder,
    ) -> Begun {
        message.terms.urgency = order.at_most(&message.lane(), message.terms.urgency);
        self.start(message, wanted, order)
    }

    fn start(&self, message: Message, wanted: PublishOptions, order: &mut CallOrder) -> Begun {
        let first = match wanted.claim.map(|claim| self.intake.keys.claim(claim)).transpose() {
            Ok(first) => first,
            Err(outcome) => return Begun::Done(outcome),
        };
        let deadline = Instant::now() + wanted.patience;
        let lane = message.lane();
        let is_at_once = message.terms.lifespan == Lifespan::AtOnce;
        let is_stored = !is_at_once && (wanted.claim.is_some() || order.has(&lane));
        let way = if is_stored { Way::ThroughSpool } else { Way::Direct };
        let plan = match self.intake.plan(&message, &wanted, way, deadline) {
            Ok(plan) => plan,
            Err(ended) => return Begun::Done(Outcome::new(0, ended)),
        };
        let turn = matches!(plan, Plan::Keep(_)).then(|| order.next(lane));
        let (to, outcome) = oneshot::channel();
        let intake = Arc::clone(&self.intake);
        self.intake.dispatcher.tasks.spawn(async move {
            let caller = Caller::new(to, deadline, message.terms.by(deadline), first);
            // On the heap: it has kilobytes, and each step of a spawn would move it.
            Box::pin(intake.carry_out(plan, message, wanted, turn, caller)).await;
        });
        Begun::UnderWay(outcome)
    }

    /// What is known of a message that was kept.
    pub fn find(&self, id: MessageId) -> Option<Brief> {
        self.intake.kept.as_ref()?.spool.find(id)
    }

    /// As [`Self::find`], once the message has ended: at the latest after `patience`, or when no more calls
    /// are made.
    ///
    /// # Errors
    /// It has not ended, and as many readers wait as may.
    pub async fn find_ended(
        &self,
        id: MessageId,
        patience: Duration,
    ) -> Result<Option<Brief>, TooManyReaders> {
        let Some(kept) = &self.intake.kept else { return Ok(None) };
        if kept.queued(id).is_some() {
            let mut reader = kept.readers.join(id)?;
            // Again: it may have ended before there was a reader to wake.
            if kept.queued(id).is_some() {
                drop(timeout(patience, reader.woken()).await);
            }
        }
        Ok(kept.spool.find(id))
    }

    /// What is kept, if anything is.
    pub fn spool(&self) -> Option<&Spool> {
        self.intake.kept.as_ref().map(|kept| &kept.spool)
    }

    /// Tries the dead letters that are meant once more, but for those whose time to live has ended. Returns
    /// which, once that is durable.
    pub async fn replay(&self, selection: &Picked) -> Affected {
        let Some(kept) = &self.intake.kept else { return Affected::default() };
        let note = |brief: &Brief| kept.spool.note(brief.id, Change::Replayed(Timestamp::now()));
        let again = |brief: &Brief, effect| {
            let is_made = effect == Effect::Made;
            if let Some(brief) = kept.spool.find(brief.id).filter(|_| is_made) {
                kept.keys.replayed(&brief);
                kept.enqueue(&Brief { attempts: 0, ..brief });
            }
        };
        let expired = kept.spool.count_expired(selection);
        let meant = |brief: &Brief| selection.means_replayable(brief);
        Affected { expired, ..kept.spool.change(&meant, &note, &again).await }
    }

    /// Drops the messages that are meant, and answers the callers who wait for them. Returns which,
    /// once that is durable. A call that is under way is not called back, and decides what its caller
    /// is answered.
    pub async fn discard(&self, selection: &Picked) -> Affected {
        let Some(kept) = &self.intake.kept else { return Affected::default() };
        let meant = |brief: &Brief| selection.means_droppable(brief);
        let gone = Mutex::new(HashSet::new());
        let note = |brief: &Brief| {
            let note = |doubt| kept.spool.note(brief.id, Spool::dropped(doubt));
            kept.queue.drop_begins(brief.id, || kept.spool.find(brief.id), note)
        };
        let then = |brief: &Brief, effect| {
            kept.dropped(brief, effect);
            if effect == Effect::Made {
                gone.lock().unwrap_or_else(PoisonError::into_inner).insert(brief.id);
            }
        };
        let dropped = kept.spool.change(&meant, &note, &then).await;
        // Else a stop would wait for their next try.
        kept.queue.remove(&gone.into_inner().unwrap_or_else(PoisonError::into_inner));
        dropped
    }

    /// Idempotency keys that are reserved.
    pub fn keys(&self) -> KeyUsage {
        self.intake.keys.usage()
    }

    /// Sends, and takes over from peers, what this configuration allows from now on.
    pub fn reload(&self, config: &config::Config) {
        if let Some(kept) = &self.intake.kept {
            kept.spool.adopt_by(AdoptionRules::of(config));
            kept.allow(&config.topics);
        }
    }

    /// Stored messages of this sidecar for which no call is made, whatever the provider does.
    pub fn held(&self) -> HeldCounts {
        self.intake.kept.as_ref().map(|kept| kept.queue.held_counts()).unwrap_or_default()
    }

    /// Lanes in which nothing is delivered but by a probe.
    pub fn paused(&self) -> Vec<PausedLane> {
        self.intake.kept.as_ref().map(|kept| kept.queue.paused()).unwrap_or_default()
    }

    /// Begins no new calls after `grace`, in which calls under way end, and what is kept and due is
    /// delivered. Then callers who wait for a kept message are answered that it stays kept. Calls that
    /// have begun go on: [`Self::close`] waits for them.
    pub async fn drain(&self, grace: Duration) {
        let Intake { dispatcher, kept, .. } = &*self.intake;
        let quiet = async {
            let waiting = || kept.as_ref().map_or(0, |kept| kept.queue.len());
            while waiting() > 0 || !dispatcher.tasks.is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        drop(timeout(grace, quiet).await);
        dispatcher.stop.cancel();
        if let Some(kept) = kept {
            kept.queue.dismiss();
            kept.readers.dismiss();
        }
    }

    /// After [`Self::drain`]: waits for the calls that have begun, at most so long, so that their callers
    /// are answered and what became of them is recorded. Returns how many messages were left that are
    /// kept nowhere.
    pub async fn close(&self, at_most: Duration) -> usize {
        let Intake { dispatcher, kept, .. } = &*self.intake;
        dispatcher.tasks.close();
        drop(deadline::by(Instant::now() + at_most, dispatcher.tasks.wait()).await);
        let under_way = dispatcher.tasks.len();
        if under_way > 0 {
            tracing::warn!(
                messages = under_way,
                "tollgate stopped before the outcome of these messages was recorded: they may have been delivered, and may be delivered again"
            );
        }
        let Some(kept) = kept else { return under_way };
        retention::record_given_way(&kept.spool);
        drop(timeout(FLUSH, kept.spool.flush()).await);
        0
    }
}

/// Upper bound on the last writes.
const FLUSH: Duration = Duration::from_secs(2);
