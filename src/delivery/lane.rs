//! One lane: messages of one instance and parent topic, which fail and recover together.
//!
//! Failures are systemic: a storage exception hits a topic, an overflow everyone. So a lane in
//! trouble probes with one message; when it passes, the others follow in groups that double; when
//! it fails, all wait longer. One message that fails alone is not trouble and holds nobody.
//!
//! Pure: it is told the time and what became of calls, and says what to call and when to look again.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::answer::AccessDenied;
use crate::config::Retry;
use crate::message::MessageId;

/// So many messages that failed one after another, without one that passed, are trouble.
const TROUBLE: usize = 5;
/// The end of trouble is noticed within this, or a thirtieth of how long it lasted: with a probe
/// for each of these moments, ten minutes cost about two hundred calls.
const NOTICE: Duration = Duration::from_millis(3_500);
const NOTICE_PART: u32 = 30;

/// Before a message is handed out again that was not called after all.
const PAUSE: Duration = Duration::from_millis(50);

/// A message that waits for its next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) id: MessageId,
    /// Calls that were made for it.
    pub(super) attempts: u32,
    /// When it becomes a dead letter.
    pub(super) expires: Instant,
    /// Its call finds out whether the lane works again.
    pub(super) probe: bool,
}

/// What a call says of its lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// The provider works: it took or refused the message.
    Works,
    /// It does not, and asks to wait so long.
    Fails(Option<Duration>),
    /// It does not let us in.
    Bars(AccessDenied),
    /// Nothing: there was no call.
    Nothing,
    /// Nothing, and there is to be none before so long.
    Waits(Duration),
}

#[derive(Debug)]
struct Trouble {
    since: Instant,
    /// Probes that failed.
    level: u32,
    next: Instant,
    bar: Option<AccessDenied>,
}

/// Messages of one lane that are kept, and what is known of it.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// By when they are due.
    waiting: BTreeMap<(Instant, MessageId), Item>,
    /// Calls that were handed out.
    under_way: usize,
    /// The most that go together.
    group: usize,
    /// Messages that failed since one passed; no more than make trouble.
    failing: Vec<MessageId>,
    trouble: Option<Trouble>,
}

impl Lane {
    pub(super) fn push(&mut self, item: Item, due: Instant) {
        self.waiting.insert((due, item.id), item);
    }

    /// These wait no more; a call that is under way ends as it does.
    pub(super) fn forget(&mut self, gone: &HashSet<MessageId>) {
        self.waiting.retain(|(_, id), _| !gone.contains(id));
    }

    /// Whether new messages should not be tried before a probe has passed.
    pub(super) fn in_trouble(&self) -> bool {
        self.trouble.is_some()
    }

    pub(super) fn barred(&self) -> Option<AccessDenied> {
        self.trouble.as_ref().and_then(|trouble| trouble.bar)
    }

    /// Nothing waits, nothing is under way, and nothing is to be remembered.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.under_way == 0
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.under_way
    }

    /// What to call now, at most `room`.
    pub(super) fn take(&mut self, now: Instant, room: usize) -> Vec<Item> {
        if let Some(trouble) = &self.trouble {
            if self.under_way > 0 || now < trouble.next || room == 0 {
                return Vec::new();
            }
            // The least tried, since one that fails by itself says nothing of the others.
            let probe = self.waiting.iter().min_by_key(|(_, item)| item.attempts);
            let Some((key, item)) = probe.map(|(key, item)| (*key, *item)) else {
                return Vec::new();
            };
            self.waiting.remove(&key);
            self.under_way += 1;
            return vec![Item { probe: true, ..item }];
        }
        let group = self.group.max(1);
        if self.under_way * 4 > group {
            return Vec::new();
        }
        let due: Vec<_> = self
            .waiting
            .range(..=(now, MAX_ID))
            .take(group.min(room))
            .map(|(key, _)| *key)
            .collect();
        let items: Vec<_> = due.iter().filter_map(|key| self.waiting.remove(key)).collect();
        self.under_way += items.len();
        items
    }

    /// When to look again; `None`: when something has happened.
    pub(super) fn next(&self) -> Option<Instant> {
        match &self.trouble {
            Some(_) if self.under_way > 0 || self.waiting.is_empty() => None,
            Some(trouble) => Some(trouble.next),
            None if self.under_way * 4 > self.group.max(1) => None,
            None => self.waiting.first_key_value().map(|((due, _), _)| *due),
        }
    }

    /// A call that was handed out has ended, and what it says. `again`: its message waits on.
    /// `random` is from 0 to 1.
    pub(super) fn ended(
        &mut self,
        item: Item,
        said: &Said,
        again: bool,
        now: Instant,
        retry: &Retry,
        random: f64,
    ) {
        self.under_way = self.under_way.saturating_sub(1);
        self.heard(item.id, item.probe, said, now, retry, random);
        if again {
            let wait = match said {
                Said::Nothing => PAUSE,
                Said::Waits(wait) => *wait,
                Said::Fails(Some(at_least)) => {
                    (*at_least).max(back_off(retry, item.attempts, retry.cap, random))
                }
                _ => back_off(retry, item.attempts, retry.cap, random),
            };
            self.push(Item { probe: false, ..item }, now + wait);
        }
    }

    /// What a call says of the lane, be it one of the lane's own or a fresh message's.
    pub(super) fn heard(
        &mut self,
        id: MessageId,
        probe: bool,
        said: &Said,
        now: Instant,
        retry: &Retry,
        random: f64,
    ) {
        let (bar, at_least) = match said {
            Said::Nothing | Said::Waits(_) => {
                if let Some(trouble) = self.trouble.as_mut().filter(|_| probe) {
                    // Another probe, but not at once.
                    let wait = if let Said::Waits(wait) = said { *wait } else { PAUSE };
                    trouble.next = trouble.next.max(now + wait);
                }
                return;
            }
            Said::Works => {
                self.failing.clear();
                self.group = (self.group.max(1) + 1).min(retry.batch);
                if self.trouble.take().is_some() {
                    // That they failed was not their fault: all may go.
                    let all = std::mem::take(&mut self.waiting);
                    self.waiting = all.into_values().map(|item| ((now, item.id), item)).collect();
                }
                return;
            }
            Said::Fails(at_least) => (None, at_least.unwrap_or_default()),
            Said::Bars(bar) => (Some(*bar), Duration::ZERO),
        };
        if !self.failing.contains(&id) {
            self.failing.push(id);
            self.failing.truncate(TROUBLE);
        }
        match &mut self.trouble {
            Some(trouble) if probe => {
                let lasted = now.duration_since(trouble.since);
                let cap = retry.cap.min(NOTICE.max(lasted / NOTICE_PART));
                trouble.level = trouble.level.saturating_add(1);
                trouble.next = now + at_least.max(back_off(retry, trouble.level, cap, random));
                trouble.bar = bar;
            }
            // What left before trouble was known says nothing new, but may ask for more time.
            Some(trouble) => trouble.next = trouble.next.max(now + at_least),
            None if bar.is_some() || self.failing.len() >= TROUBLE => {
                self.group = 1;
                let next = now + at_least.max(back_off(retry, 0, retry.cap, random));
                self.trouble = Some(Trouble { since: now, level: 0, next, bar });
            }
            None => {}
        }
    }
}

/// The last of all ids.
const MAX_ID: MessageId = MessageId::MAX;

/// Full jitter over a wait that doubles from `base`.
pub(super) fn back_off(retry: &Retry, times: u32, cap: Duration, random: f64) -> Duration {
    let most = retry.base.saturating_mul(1 << times.min(20)).min(cap).min(retry.cap);
    most.mul_f64(random)
}

#[cfg(test)]
mod tests;
