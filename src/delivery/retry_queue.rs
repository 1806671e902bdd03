//! Kept messages between their tries: the lanes they wait in, and who may answer their callers.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::lane::{LaneQueue, RetryItem, retry_wait};
use super::outcome::Outcome;
use super::registry::{RegisteredCaller, Registry, TryEnd};
use super::signal::{HoldReason, Requeue, Signal};
use crate::answer::AccessDenied;
use crate::config::Retry;
use crate::fair_queue::Weights;
use crate::message::{self, MessageId};
use crate::spool::{self, Doubt, Effect, HeldCounts};

/// Kept messages that are read and tried at once, over all lanes: each has its body in memory.
const MAX_TOGETHER: usize = 1_000;

/// The lanes and the registry are changed together, under one lock.
#[derive(Debug)]
pub(super) struct RetryQueue {
    retry: Retry,
    weights: Weights,
    state: Mutex<Queued>,
    /// Wakes the task that hands out.
    pub(super) changed: Arc<Notify>,
}

#[derive(Debug)]
struct Queued {
    lanes: Lanes,
    registry: Registry,
    under_way: usize,
    jitter: fastrand::Rng,
}

/// The lanes in which messages wait or are under way, or that are in trouble.
#[derive(Debug)]
struct Lanes {
    queues: HashMap<message::Lane, LaneQueue>,
    weights: Weights,
}

impl Lanes {
    /// The lane of this name, which begins if there is none.
    fn of(&mut self, lane: message::Lane) -> &mut LaneQueue {
        self.queues.entry(lane).or_insert_with(|| LaneQueue::new(self.weights.clone()))
    }
}

/// Messages of one lane, to be tried together.
pub(super) type Group = (message::Lane, Vec<RetryItem>);

/// A lane that waits for a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PausedLane {
    /// The instance and parent topic of its messages.
    pub lane: message::Lane,
    /// Why it waits.
    pub reason: PauseReason,
    /// Messages that wait.
    pub waiting: usize,
}

/// Why the messages of a lane wait for a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseReason {
    /// The provider fails.
    Failing,
    /// The provider does not let us in.
    Denied(AccessDenied),
}

impl PauseReason {
    /// What keeps us out, if the provider does not just fail.
    pub fn denied(self) -> Option<AccessDenied> {
        match self {
            Self::Failing => None,
            Self::Denied(why) => Some(why),
        }
    }

    fn of(lane: &LaneQueue) -> Option<Self> {
        let pauses = lane.in_trouble() && !lane.is_idle();
        pauses.then(|| lane.denied().map_or(Self::Failing, Self::Denied))
    }
}

/// Whether a call for a kept message may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MayCall {
    Yes,
    /// The message is not queued any more.
    Gone,
    /// The spool notes a call that is not this process's own.
    CalledByOther,
}

impl RetryQueue {
    pub(super) fn new(retry: Retry, weights: Weights, seed: u64) -> Self {
        let jitter = fastrand::Rng::with_seed(seed);
        let lanes = Lanes { queues: HashMap::new(), weights: weights.clone() };
        let registry = Registry::default();
        let state = Mutex::new(Queued { lanes, registry, under_way: 0, jitter });
        Self { retry, weights, state, changed: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, Queued> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn retry(&self) -> &Retry {
        &self.retry
    }

    /// By which callers are served.
    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// How long a message waits after this many calls for it have failed.
    pub(super) fn wait(&self, attempts: u32) -> Duration {
        let random = self.state().jitter.f64();
        retry_wait(&self.retry, attempts, random)
    }

    /// A message that is kept waits from now on. One that waits already waits on as it does; one that
    /// is under way waits when that has ended, unless it goes back by itself.
    pub(super) fn push(&self, lane: message::Lane, item: RetryItem, due: Instant) {
        let mut state = self.state();
        let Queued { lanes, registry, .. } = &mut *state;
        if let Some((lane, item, due)) = registry.push((lane, item, due)) {
            lanes.of(lane).push(item, due);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// As [`Self::push`], of a message that is to be held: it waits in no lane.
    pub(super) fn hold(
        &self,
        lane: message::Lane,
        item: RetryItem,
        due: Instant,
        reason: HoldReason,
    ) {
        self.state().registry.hold((lane, item, due), reason);
    }

    /// How many messages are held.
    pub(super) fn held_counts(&self) -> HeldCounts {
        self.state().registry.held_counts()
    }

    /// At most so many messages that are held, in the order of their ids, from behind this one.
    pub(super) fn held_page(&self, after: Option<MessageId>, most: usize) -> Vec<MessageId> {
        self.state().registry.held_page(after, most)
    }

    /// Those of these that are still held, and are not queued in the spool any more, are held no more.
    /// The spool is asked while none can come back to its lane.
    pub(super) fn remove_held(&self, ids: &[MessageId], is_queued: impl Fn(MessageId) -> bool) {
        let mut state = self.state();
        for id in ids {
            if state.registry.is_held(*id) && !is_queued(*id) {
                state.registry.leave_lane(*id);
            }
        }
    }

    /// Messages that are kept no more wait no more.
    pub(super) fn remove(&self, gone: &HashSet<MessageId>) {
        let mut state = self.state();
        let Queued { lanes, registry, .. } = &mut *state;
        let waited = gone.iter().copied().filter(|id| registry.leave_lane(*id));
        let waited: HashSet<_> = waited.collect();
        if !waited.is_empty() {
            for lane in lanes.queues.values_mut() {
                lane.remove(&waited);
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Until this is dropped a fresh call for the message is under way: what pushes the message
    /// meanwhile makes it wait afterwards.
    pub(super) fn fresh_call_begins(&self, id: MessageId) -> FreshCall<'_> {
        self.state().registry.fresh_call_begins(id);
        FreshCall { queue: self, id, end: TryEnd::Ended }
    }

    /// A fresh message of this lane was called for.
    pub(super) fn observe(&self, lane: message::Lane, id: MessageId, signal: Signal) {
        let mut state = self.state();
        let random = state.jitter.f64();
        let lane = match signal {
            // A lane in which nothing waits has nothing to learn from a call that passed.
            Signal::Works
            | Signal::OtherKey
            | Signal::NoCall
            | Signal::Postpone(_)
            | Signal::OverBudget(_) => state.lanes.queues.get_mut(&lane),
            Signal::Fails { .. } | Signal::Denied(_) => Some(state.lanes.of(lane)),
        };
        let Some(lane) = lane else { return };
        let was = lane.in_trouble();
        lane.observe(id, signal, Instant::now(), &self.retry, random);
        // What waits may go at once, or its next probe is due before anything else would be.
        if lane.in_trouble() != was {
            self.changed.notify_one();
        }
    }

    /// Whether, and why, new messages of this lane wait for a probe.
    pub(super) fn pause_reason(&self, lane: &message::Lane) -> Option<PauseReason> {
        self.state().lanes.queues.get(lane).and_then(PauseReason::of)
    }

    pub(super) fn paused(&self) -> Vec<PausedLane> {
        let state = self.state();
        let paused = state.lanes.queues.iter().filter_map(|(name, lane)| {
            let reason = PauseReason::of(lane)?;
            Some(PausedLane { lane: name.clone(), reason, waiting: lane.len() })
        });
        paused.collect()
    }

    /// Whether stored messages of this lane wait or are under way.
    pub(super) fn has_waiting(&self, lane: &message::Lane) -> bool {
        self.state().lanes.queues.get(lane).is_some_and(|lane| lane.len() > 0)
    }

    /// Messages that wait or are under way.
    pub(super) fn len(&self) -> usize {
        self.state().lanes.queues.values().map(LaneQueue::len).sum()
    }

    /// No caller waits, and nothing was handed out.
    #[cfg(test)]
    pub(super) fn is_quiet(&self) -> bool {
        let state = self.state();
        state.under_way == 0 && !state.registry.has_callers()
    }

    // === calls and drops: the spool is asked while no own call can begin or end ===

    /// Whether the spool notes a call for this message that is not this process's own.
    pub(super) fn was_called_by_other(
        &self,
        id: MessageId,
        find: impl FnOnce() -> Option<spool::State>,
    ) -> bool {
        let state = self.state();
        !state.registry.is_calling(id) && find() == Some(spool::State::Queued { calling: true })
    }

    /// A call for what was handed out is about to be noted, if it may be made. Afterwards a drop finds
    /// it under way.
    pub(super) fn call_begins(
        &self,
        id: MessageId,
        find: impl FnOnce() -> Option<spool::State>,
    ) -> MayCall {
        let mut state = self.state();
        let registry = &mut state.registry;
        match find() {
            Some(spool::State::Queued { calling: true }) if !registry.is_calling(id) => {
                registry.mark_uncertain(id);
                MayCall::CalledByOther
            }
            Some(spool::State::Queued { .. }) => {
                registry.call_begins(id);
                MayCall::Yes
            }
            _ => MayCall::Gone,
        }
    }

    /// Whether this process's own call for this message is under way, or about to leave.
    pub(super) fn is_calling(&self, id: MessageId) -> bool {
        self.state().registry.is_calling(id)
    }

    /// An earlier process or a peer had this message, which is about to be pushed: its call may have arrived.
    pub(super) fn taken_up(&self, id: MessageId) {
        self.state().registry.taken_up(id);
    }

    /// A call for this message may have arrived, and its outcome is unknown: its caller is not answered
    /// that none did.
    pub(super) fn mark_uncertain(&self, id: MessageId) {
        self.state().registry.mark_uncertain(id);
    }

    /// An operator drops a message. `note` notes the drop, and is given whether a call may have arrived.
    pub(super) fn drop_begins<T>(
        &self,
        id: MessageId,
        find: impl FnOnce() -> Option<spool::Brief>,
        note: impl FnOnce(Doubt) -> T,
    ) -> T {
        let mut state = self.state();
        let noted = find().is_some_and(|brief| brief.doubt).into();
        note(state.registry.drop_begins(id, noted))
    }

    /// The time to live of a message has ended. `note` notes that, and is given the caller who waits and whether
    /// a call may have arrived. `None`: a call is under way, and its outcome counts; or the message is not in its
    /// lane yet.
    pub(super) fn expiry_begins<T>(
        &self,
        id: MessageId,
        note: impl FnOnce(Option<RegisteredCaller>, Doubt) -> T,
    ) -> Option<T> {
        let mut state = self.state();
        let registry = &mut state.registry;
        let doubt = registry.settled_doubt(id)?;
        let caller = registry.take_caller(id);
        Some(note(caller, doubt))
    }

    /// A drop has had this effect.
    pub(super) fn drop_ends(&self, id: MessageId, calls: u32, effect: Effect) {
        self.state().registry.drop_ends(id, calls, effect);
    }

    /// Whether the end of an own call decides if a message that was dropped meanwhile has arrived.
    pub(super) fn take_dropped_during_call(&self, id: MessageId) -> bool {
        self.state().registry.take_dropped_during_call(id)
    }

    // === callers ===

    pub(super) fn register_caller(&self, id: MessageId) -> oneshot::Receiver<Outcome> {
        self.state().registry.register_caller(id)
    }

    pub(super) fn take_caller(&self, id: MessageId) -> Option<RegisteredCaller> {
        self.state().registry.take_caller(id)
    }

    pub(super) fn take_caller_if_certain(&self, id: MessageId) -> Option<RegisteredCaller> {
        self.state().registry.take_caller_if_certain(id)
    }

    /// No more calls are made: every waiting caller is answered.
    pub(super) fn dismiss(&self) {
        self.state().registry.dismiss();
    }

    // === handing out ===

    /// What to try now, and when to ask again: `None` when something has changed.
    pub(super) fn take_due(&self, now: Instant) -> (Vec<Group>, Option<Instant>) {
        let mut state = self.state();
        let mut room = MAX_TOGETHER.saturating_sub(state.under_way);
        let mut groups = Vec::new();
        let mut next = None::<Instant>;
        let Queued { lanes, registry, .. } = &mut *state;
        lanes.queues.retain(|_, lane| !lane.is_idle());
        for (name, lane) in &mut lanes.queues {
            let items = lane.take(now, room);
            let items: Vec<_> = items.into_iter().map(|item| registry.hand_out(item)).collect();
            room -= items.len();
            if let Some(at) = lane.next() {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
            if !items.is_empty() {
                groups.push((name.clone(), items));
            }
        }
        state.under_way += groups.iter().map(|(_, items)| items.len()).sum::<usize>();
        (groups, if room == 0 { None } else { next })
    }

    /// The try of a message that was handed out has ended.
    pub(super) fn ended(
        &self,
        lane: &message::Lane,
        item: RetryItem,
        signal: Signal,
        requeue: Requeue,
    ) {
        let mut state = self.state();
        state.under_way = state.under_way.saturating_sub(1);
        let random = state.jitter.f64();
        let Queued { lanes, registry, .. } = &mut *state;
        let pushed = registry.ended(item, requeue, TryEnd::now());
        // A lane stays as long as something of it is under way.
        let lane = lanes.of(lane.clone());
        lane.ended(item, signal, requeue, Instant::now(), &self.retry, random);
        if let Some((lane, item, due)) = pushed {
            lanes.of(lane).push(item, due);
        }
        drop(state);
        self.changed.notify_one();
    }
}

/// A fresh call for a message that is about to be kept.
pub(super) struct FreshCall<'a> {
    queue: &'a RetryQueue,
    id: MessageId,
    end: TryEnd,
}

impl FreshCall<'_> {
    /// Its task unwound.
    pub(super) fn panicked(mut self) {
        self.end = TryEnd::Panicked;
    }
}

impl Drop for FreshCall<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        let Queued { lanes, registry, .. } = &mut *state;
        if let Some((lane, item, due)) = registry.fresh_call_ends(self.id, self.end) {
            lanes.of(lane).push(item, due);
            drop(state);
            self.queue.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
