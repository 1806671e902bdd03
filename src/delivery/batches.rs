//! The one owner of kept messages between their tries: lanes, and the task that hands out what is
//! due in them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::held::Held;
use super::kept::Kept;
use super::lane::{Item, Lane, Said, back_off};
use super::waiters::Waiters;
use crate::answer::AccessDenied;
use crate::config::Retry;
use crate::message::{self, MessageId};
use crate::spool;
use crate::upstream::Upstream;

/// Kept messages that are read and tried at once, over all lanes: each has its body in memory.
const MAX_TOGETHER: usize = 1_000;
/// Should a wake-up be missed, this is how late it gets noticed.
const LOOK: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct Batches {
    retry: Retry,
    state: Mutex<State>,
    pub(super) waiters: Waiters,
    /// Wakes the task that hands out.
    pub(super) changed: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    lanes: HashMap<message::Lane, Lane>,
    /// The messages in the lanes, each once.
    held: Held,
    under_way: usize,
    jitter: fastrand::Rng,
}

/// Lanes that do not deliver, for those who show them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paused {
    /// Which.
    pub lane: message::Lane,
    /// What keeps us out; `None`: the provider fails.
    pub bar: Option<AccessDenied>,
    /// Messages that wait.
    pub waiting: usize,
}

/// Why new messages of a lane wait for a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// The provider fails.
    Failing,
    /// It does not let us in.
    Denied(AccessDenied),
}

/// Whether a call for a kept message may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SetsOut {
    /// It may.
    Yes,
    /// The message is not queued any more.
    Gone,
    /// A call is noted that is not this process's own.
    Other,
}

impl Batches {
    pub(super) fn new(retry: Retry, seed: u64) -> Self {
        let jitter = fastrand::Rng::with_seed(seed);
        let (lanes, held) = (HashMap::new(), Held::default());
        let state = Mutex::new(State { lanes, held, under_way: 0, jitter });
        Self { retry, state, waiters: Waiters::new(), changed: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn retry(&self) -> &Retry {
        &self.retry
    }

    /// How long a message waits after so many calls have failed.
    pub(super) fn wait(&self, attempts: u32) -> Duration {
        let random = self.state().jitter.f64();
        back_off(&self.retry, attempts.saturating_sub(1), self.retry.cap, random)
    }

    /// A message that is kept waits from now on. One that waits already waits on as it does; one that
    /// is under way waits when that has ended, unless it goes back by itself.
    pub(super) fn push(&self, lane: message::Lane, item: Item, due: Instant) {
        let mut state = self.state();
        let State { lanes, held, .. } = &mut *state;
        if let Some((lane, item, due)) = held.push((lane, item, due)) {
            lanes.entry(lane).or_default().push(item, due);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Messages that are kept no more wait no more.
    pub(super) fn forget(&self, gone: &HashSet<MessageId>) {
        let mut state = self.state();
        let State { lanes, held, .. } = &mut *state;
        let waited: HashSet<_> = gone.iter().copied().filter(|id| held.forget(*id)).collect();
        if !waited.is_empty() {
            for lane in lanes.values_mut() {
                lane.forget(&waited);
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Until this is dropped a fresh call for the message is under way: what pushes the message
    /// meanwhile makes it wait afterwards.
    pub(super) fn reserve(&self, id: MessageId) -> Reserved<'_> {
        self.state().held.reserve(id);
        Reserved { batches: self, id }
    }

    /// Whether a call is noted for this message that is not this process's own. `find` looks for its
    /// state while no own call can begin or end.
    pub(super) fn was_called(
        &self,
        id: MessageId,
        find: impl FnOnce() -> Option<spool::State>,
    ) -> bool {
        let state = self.state();
        !state.held.calls(id) && find() == Some(spool::State::Queued { calling: true })
    }

    /// A call for what was handed out is about to be noted, if it may be made. Afterwards a drop finds
    /// it under way.
    pub(super) fn sets_out(
        &self,
        id: MessageId,
        find: impl FnOnce() -> Option<spool::State>,
    ) -> SetsOut {
        let mut state = self.state();
        match find() {
            Some(spool::State::Queued { calling: true }) if !state.held.calls(id) => SetsOut::Other,
            Some(spool::State::Queued { .. }) => {
                state.held.sets_out(id);
                SetsOut::Yes
            }
            _ => SetsOut::Gone,
        }
    }

    /// Another process has had these messages, and may have called for them without a note.
    pub(super) fn doubt(&self, id: MessageId) {
        self.state().held.doubt(id);
    }

    /// An operator drops a message. `find` looks for it, and `note` notes the drop, while no own call
    /// for it can begin or end. `note` is given whether a call may have arrived.
    pub(super) fn drops<T>(
        &self,
        id: MessageId,
        find: impl FnOnce() -> Option<spool::Brief>,
        note: impl FnOnce(bool) -> T,
    ) -> T {
        let mut state = self.state();
        let noted = find().is_some_and(|brief| brief.doubt);
        note(state.held.drops(id, noted))
    }

    /// Whether the end of an own call says whether a message has arrived that was dropped meanwhile.
    pub(super) fn decides(&self, id: MessageId) -> bool {
        self.state().held.decides(id)
    }

    /// What a fresh message's call says of its lane.
    pub(super) fn heard(&self, lane: message::Lane, id: MessageId, said: &Said) {
        let mut state = self.state();
        let random = state.jitter.f64();
        let lane = match said {
            // The lane of a message that passed is of interest only if there is one.
            Said::Works | Said::Nothing | Said::Waits(_) => state.lanes.get_mut(&lane),
            Said::Fails(_) | Said::Bars(_) => Some(state.lanes.entry(lane).or_default()),
        };
        let Some(lane) = lane else { return };
        let was = lane.in_trouble();
        lane.heard(id, false, said, Instant::now(), &self.retry, random);
        // What waits may go at once, or its next probe is due before anything else would be.
        if lane.in_trouble() != was {
            self.changed.notify_one();
        }
    }

    /// Whether, and why, new messages of this lane wait for a probe.
    pub(super) fn trouble(&self, lane: &message::Lane) -> Option<Hold> {
        let state = self.state();
        let lane = state.lanes.get(lane).filter(|lane| lane.in_trouble() && !lane.is_idle())?;
        Some(lane.barred().map_or(Hold::Failing, Hold::Denied))
    }

    pub(super) fn paused(&self) -> Vec<Paused> {
        let state = self.state();
        let paused = state.lanes.iter().filter(|(_, lane)| lane.in_trouble() && !lane.is_idle());
        paused
            .map(|(name, lane)| Paused {
                lane: name.clone(),
                bar: lane.barred(),
                waiting: lane.len(),
            })
            .collect()
    }

    /// Messages that wait or are under way.
    pub(super) fn len(&self) -> usize {
        self.state().lanes.values().map(Lane::len).sum()
    }

    /// Nobody waits, and nothing was handed out.
    #[cfg(test)]
    pub(super) fn is_quiet(&self) -> bool {
        self.state().under_way == 0 && self.waiters.is_empty()
    }

    /// No more calls are made: every waiting caller is answered.
    pub(super) fn dismiss(&self) {
        self.waiters.dismiss();
    }

    // === handing out ===

    fn take(&self, now: Instant) -> (Vec<(message::Lane, Vec<Item>)>, Option<Instant>) {
        let mut state = self.state();
        let mut room = MAX_TOGETHER.saturating_sub(state.under_way);
        let mut groups = Vec::new();
        let mut next = None::<Instant>;
        let State { lanes, held, .. } = &mut *state;
        lanes.retain(|_, lane| !lane.is_idle());
        for (name, lane) in lanes {
            let items = lane.take(now, room);
            let items: Vec<_> = items.into_iter().map(|item| held.hand_out(item)).collect();
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

    /// A message that was handed out comes back.
    pub(super) fn ended(&self, lane: &message::Lane, item: Item, said: &Said, again: bool) {
        let mut state = self.state();
        state.under_way = state.under_way.saturating_sub(1);
        let random = state.jitter.f64();
        let State { lanes, held, .. } = &mut *state;
        // A lane stays as long as something of it is under way.
        let pushed = held.ended(item.id, again, std::thread::panicking());
        let lane = lanes.entry(lane.clone()).or_default();
        lane.ended(item, said, again, Instant::now(), &self.retry, random);
        if let Some((lane, item, due)) = pushed {
            lanes.entry(lane).or_default().push(item, due);
        }
        drop(state);
        self.changed.notify_one();
    }
}

/// A fresh call for a message that is about to be kept.
pub(super) struct Reserved<'a> {
    batches: &'a Batches,
    id: MessageId,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut state = self.batches.state();
        let State { lanes, held, .. } = &mut *state;
        if let Some((lane, item, due)) = held.ended(self.id, false, false) {
            lanes.entry(lane).or_default().push(item, due);
            drop(state);
            self.batches.changed.notify_one();
        }
    }
}

/// Hands out what is due, until `delivery` is dropped or stops.
pub(super) async fn run<U: Upstream>(kept: std::sync::Weak<Kept<U>>, changed: Arc<Notify>) {
    let Some(stop) = kept.upgrade().map(|kept| kept.stop.clone()) else { return };
    while !stop.is_cancelled() {
        let changed = changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let next = {
            let Some(kept) = kept.upgrade() else { return };
            let now = Instant::now();
            let (groups, next) = kept.batches.take(now);
            for (lane, items) in groups {
                kept.meter.batch(items.len());
                for item in items {
                    let (kept, lane) = (Arc::clone(&kept), lane.clone());
                    let tasks = kept.under_way.clone();
                    tasks.spawn(async move { kept.attempt(lane, item).await });
                }
            }
            // A lane whose moment has come but that may not go yet is woken when a call ends.
            next.filter(|at| *at > now).unwrap_or(now + LOOK)
        };
        tokio::select! {
            () = sleep_until(next) => {}
            () = changed => {}
            () = stop.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests;
