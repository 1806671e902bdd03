//! One lane: messages of one instance and parent topic, which fail and recover together.
//!
//! Failures are systemic: a storage exception hits one topic, an overflow hits all. So a lane in
//! trouble probes with one message; when it passes, the others follow in groups that double; when
//! it fails, all wait longer. One message that fails alone is not trouble and delays no others.
//!
//! Of messages that are due, callers are served by weight; of those of one caller, the one goes first that waits
//! the longest, as its urgency has it ([`Urgency::handicap`]): a less urgent one is overtaken only by messages that
//! came soon after it.
//!
//! Pure: time, random numbers and the signals of calls come from outside.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::signal::{Requeue, Signal};
use crate::answer::AccessDenied;
use crate::backoff::Backoff;
use crate::config::Retry;
use crate::fair_queue::{CallersQueue, FairQueue, Flow, Weights};
use crate::message::{MessageId, Urgency};

/// This many different messages that fail, with none that passes between them, are trouble.
const TROUBLE: usize = 5;
/// The end of trouble is noticed within this, or a thirtieth of how long it lasted: with a probe
/// for each of these moments, ten minutes cost about two hundred calls.
const NOTICE: Duration = Duration::from_millis(3_500);
const NOTICE_PART: u32 = 30;

/// Before a message is handed out again for which no call was made after all.
const PAUSE: Duration = Duration::from_millis(50);

/// A message that waits for its next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RetryItem {
    pub(super) id: MessageId,
    /// Calls that were made for it.
    pub(super) attempts: u32,
    /// When it becomes a dead letter.
    pub(super) expires: Instant,
    /// Its call finds out whether the lane works again.
    pub(super) probe: bool,
    /// Whose it is.
    pub(super) caller: Flow,
    pub(super) urgency: Urgency,
    /// Since when it waits for a call, or is to wait: when it was kept, or its pause after a call ends.
    pub(super) since: Instant,
    /// Until when it is no probe: its budget is used up, which says nothing of the lane.
    pub(super) over_budget: Option<Instant>,
}

impl RetryItem {
    /// Messages that are due go in the order of these moments.
    fn turn(&self) -> Instant {
        self.since + self.urgency.handicap()
    }

    fn may_probe(&self, now: Instant) -> bool {
        self.over_budget.is_none_or(|until| until <= now)
    }
}

/// What a call for a message of the lane is to the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LaneCall {
    Probe,
    Other,
}

#[derive(Debug)]
struct LaneTrouble {
    since: Instant,
    /// Probes that failed.
    level: u32,
    next: Instant,
    denied: Option<AccessDenied>,
}

/// Messages of one caller that are due, by their turns.
#[derive(Debug, Default)]
struct DueItems(BTreeMap<(Instant, MessageId), RetryItem>);

impl CallersQueue for DueItems {
    fn len(&self) -> usize {
        self.0.len()
    }
}

/// The kept messages of one lane, and how the provider treats them.
#[derive(Debug)]
pub(super) struct LaneQueue {
    /// By when they are due.
    waiting: BTreeMap<(Instant, MessageId), RetryItem>,
    /// Those that were due when a group was taken.
    ready: FairQueue<DueItems>,
    /// Calls that were handed out.
    under_way: usize,
    /// The most that go together.
    group: usize,
    /// Messages that failed since one passed; no more than make trouble.
    failing: Vec<MessageId>,
    trouble: Option<LaneTrouble>,
}

impl LaneQueue {
    /// An empty one, that serves callers by these weights.
    pub(super) fn new(weights: Weights) -> Self {
        Self {
            waiting: BTreeMap::new(),
            ready: FairQueue::new(weights),
            under_way: 0,
            group: 0,
            failing: Vec::new(),
            trouble: None,
        }
    }

    pub(super) fn push(&mut self, item: RetryItem, due: Instant) {
        self.waiting.insert((due, item.id), item);
    }

    /// These wait no more; a call that is under way ends as it does.
    pub(super) fn remove(&mut self, gone: &HashSet<MessageId>) {
        self.waiting.retain(|(_, id), _| !gone.contains(id));
        self.ready.change_all(|due| due.0.retain(|(_, id), _| !gone.contains(id)));
    }

    /// Whether new messages should not be tried before a probe has passed.
    pub(super) fn in_trouble(&self) -> bool {
        self.trouble.is_some()
    }

    /// Why the provider lets no message of this lane in, if that is its trouble.
    pub(super) fn denied(&self) -> Option<AccessDenied> {
        self.trouble.as_ref().and_then(|trouble| trouble.denied)
    }

    /// Nothing waits and nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.nothing_waits() && self.under_way == 0
    }

    fn nothing_waits(&self) -> bool {
        self.waiting.is_empty() && self.ready.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.ready.len() + self.under_way
    }

    /// What to call now, at most `room`.
    pub(super) fn take(&mut self, now: Instant, room: usize) -> Vec<RetryItem> {
        if let Some(trouble) = &self.trouble {
            if self.under_way > 0 || now < trouble.next || room == 0 {
                return Vec::new();
            }
            // The least tried, since the failure of a much tried message may be its own.
            let due = self.ready.queues().flat_map(|due| &due.0);
            let all = due.chain(&self.waiting).filter(|(_, item)| item.may_probe(now));
            let probe = all.min_by_key(|(_, item)| (item.attempts, item.turn()));
            let Some((key, item)) = probe.map(|(key, item)| (*key, *item)) else {
                return Vec::new();
            };
            let turn = (item.turn(), item.id);
            if self.ready.change(item.caller, |due| due.0.remove(&turn)).is_none() {
                self.waiting.remove(&key);
            }
            self.under_way += 1;
            return vec![RetryItem { probe: true, ..item }];
        }
        let group = self.group.max(1);
        if self.under_way * 4 > group {
            return Vec::new();
        }
        while let Some(first) = self.waiting.first_entry()
            && first.key().0 <= now
        {
            let item = first.remove();
            let turn = (item.turn(), item.id);
            self.ready.change(item.caller, |due| due.0.insert(turn, item));
        }
        let next = || self.ready.pop(|due| due.0.pop_first()).map(|(_, item)| item);
        let items: Vec<_> = std::iter::from_fn(next).take(group.min(room)).collect();
        self.under_way += items.len();
        items
    }

    /// When to look again; `None`: when something has happened.
    pub(super) fn next(&self) -> Option<Instant> {
        match &self.trouble {
            Some(_) if self.under_way > 0 || self.nothing_waits() => None,
            Some(trouble) => Some(trouble.next),
            None if self.under_way * 4 > self.group.max(1) => None,
            None => match self.ready.queues().find_map(|due| due.0.first_key_value()) {
                Some((_, item)) => Some(item.since),
                None => self.waiting.first_key_value().map(|((due, _), _)| *due),
            },
        }
    }

    /// The try of a message that was handed out has ended. `random` is from 0 to 1.
    pub(super) fn ended(
        &mut self,
        item: RetryItem,
        signal: Signal,
        requeue: Requeue,
        now: Instant,
        retry: &Retry,
        random: f64,
    ) {
        self.under_way = self.under_way.saturating_sub(1);
        let call = if item.probe { LaneCall::Probe } else { LaneCall::Other };
        self.react(item.id, call, signal, now, retry, random);
        if requeue == Requeue::Yes {
            let wait = match signal {
                Signal::NoCall | Signal::OtherKey => PAUSE,
                Signal::Postpone(wait) | Signal::OverBudget(wait) => wait,
                _ => retry_wait(retry, item.attempts, random).max(signal.retry_after()),
            };
            let due = now + wait;
            // No call was made: it has waited on.
            let since = if signal.is_without_call() { item.since.min(due) } else { due };
            let over_budget = matches!(signal, Signal::OverBudget(_)).then_some(due);
            self.push(RetryItem { probe: false, since, over_budget, ..item }, due);
        }
    }

    /// A fresh message of this lane was called for.
    pub(super) fn observe(
        &mut self,
        id: MessageId,
        signal: Signal,
        now: Instant,
        retry: &Retry,
        random: f64,
    ) {
        self.react(id, LaneCall::Other, signal, now, retry, random);
    }

    fn react(
        &mut self,
        id: MessageId,
        call: LaneCall,
        signal: Signal,
        now: Instant,
        retry: &Retry,
        random: f64,
    ) {
        let denied = match signal {
            Signal::NoCall | Signal::OtherKey | Signal::Postpone(_) | Signal::OverBudget(_) => {
                if let Some(trouble) = self.trouble.as_mut().filter(|_| call == LaneCall::Probe) {
                    // Another probe, but not at once.
                    let wait = if let Signal::Postpone(wait) = signal { wait } else { PAUSE };
                    trouble.next = trouble.next.max(now + wait);
                }
                return;
            }
            Signal::Works => {
                self.failing.clear();
                self.group = (self.group.max(1) + 1).min(retry.batch);
                if self.trouble.take().is_some() {
                    // The trouble was the lane's, not theirs: all may go.
                    let all = std::mem::take(&mut self.waiting).into_values();
                    let mut due = BTreeMap::new();
                    self.ready.change_all(|items| due.append(&mut items.0));
                    let all = all.chain(due.into_values());
                    let due_now =
                        |item: RetryItem| RetryItem { since: item.since.min(now), ..item };
                    self.waiting = all.map(|item| ((now, item.id), due_now(item))).collect();
                }
                return;
            }
            Signal::Fails { .. } => None,
            Signal::Denied(why) => Some(why),
        };
        let at_least = signal.retry_after();
        if !self.failing.contains(&id) {
            self.failing.push(id);
            self.failing.truncate(TROUBLE);
        }
        match &mut self.trouble {
            Some(trouble) if call == LaneCall::Probe => {
                let lasted = now.duration_since(trouble.since);
                let cap = retry.cap.min(NOTICE.max(lasted / NOTICE_PART));
                trouble.level = trouble.level.saturating_add(1);
                let backoff = Backoff::exponential(retry.base, cap);
                let wait = backoff.after(trouble.level.saturating_add(1), random);
                trouble.next = now + at_least.max(wait);
                trouble.denied = denied;
            }
            // A call that left before the trouble was known is no news, but may ask for more time.
            Some(trouble) => trouble.next = trouble.next.max(now + at_least),
            None if denied.is_some() || self.failing.len() >= TROUBLE => {
                self.group = 1;
                let next = now + at_least.max(retry_wait(retry, 1, random));
                self.trouble = Some(LaneTrouble { since: now, level: 0, next, denied });
            }
            None => {}
        }
    }
}

/// How long a message waits after so many calls: up to `retry.base` after the first.
pub(super) fn retry_wait(retry: &Retry, attempts: u32, random: f64) -> Duration {
    Backoff::exponential(retry.base, retry.cap).after(attempts, random)
}

#[cfg(test)]
mod tests;
