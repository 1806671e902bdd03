//! One entry for each message that waits in a lane, is called for, or has a caller who waits: it decides
//! who may answer the caller, and whether a call may have arrived.
//!
//! A caller is answered once, by the code that takes it out of here. When an operator drops a message
//! while a call for it is under way, the call's outcome decides what the caller is answered.
//!
//! A message is in a lane once, however often it is pushed: a spool in Redis lists messages that it hands
//! over again after a reconnect, and a message may come back from a peer while its call here is still
//! under way.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::lane::RetryItem;
use super::outcome::Outcome;
use super::position::{HeldMessages, Position, Push};
use super::signal::{HoldReason, Requeue};
use crate::message::MessageId;
use crate::spool::{Doubt, Effect, HeldCounts};

/// No entry stays once its message neither waits nor is called for, and its caller is gone.
#[derive(Debug, Default)]
pub(super) struct Registry {
    entries: HashMap<MessageId, MessageEntry>,
    held: HeldMessages,
    /// No caller may wait any more.
    is_dismissed: bool,
}

#[derive(Debug, Default)]
struct MessageEntry {
    position: Position,
    /// This process's own call is under way, or about to leave.
    is_calling: bool,
    /// A call whose outcome is unknown may have arrived: an own one, or an earlier process's or a peer's
    /// that the spool need not know of.
    is_uncertain: bool,
    /// It was dropped during its call, and only that call leaves open whether it arrived.
    dropped_during_call: bool,
    caller: Option<RegisteredCaller>,
}

/// How far an operator's drop of a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DropState {
    None,
    /// The drop is written, and may not be durable.
    Begun,
    Durable,
}

/// A caller that waits. The code that takes it out of the registry answers it.
#[derive(Debug)]
#[must_use = "a caller that is taken is answered"]
pub(super) struct RegisteredCaller {
    to: oneshot::Sender<Outcome>,
    drop: DropState,
    /// Whether a call may have arrived, as far as was known when the caller was taken.
    doubt: Doubt,
}

impl RegisteredCaller {
    /// The answer to a caller whose message was dropped.
    pub(super) fn dropped(&self, id: MessageId, calls: u32) -> Outcome {
        // A crash may undo what is not durable, and then a call follows.
        let doubt = self.doubt.or((self.drop != DropState::Durable).into());
        Outcome::dropped(id, calls, doubt)
    }

    /// Whether an operator drops its message, or has dropped it.
    pub(super) fn is_dropped(&self) -> bool {
        self.drop != DropState::None
    }

    /// The caller may have hung up.
    pub(super) fn respond(self, outcome: Outcome) {
        drop(self.to.send(outcome));
    }

    fn respond_dropped(self, id: MessageId, calls: u32) {
        let outcome = self.dropped(id, calls);
        self.respond(outcome);
    }
}

impl MessageEntry {
    fn is_done(&self) -> bool {
        matches!(self.position, Position::NoLane) && self.caller.is_none()
    }

    /// Whether a call may have arrived.
    fn doubt(&self) -> Doubt {
        (self.is_uncertain || self.is_calling).into()
    }

    fn is_dropped_for_good(&self) -> bool {
        self.caller.as_ref().is_some_and(|caller| caller.drop == DropState::Durable)
    }

    fn take_caller(&mut self) -> Option<RegisteredCaller> {
        let caller = self.caller.take()?;
        Some(RegisteredCaller { doubt: self.doubt(), ..caller })
    }
}

impl Registry {
    fn remove_if_done(&mut self, id: MessageId) {
        if self.entries.get(&id).is_some_and(MessageEntry::is_done) {
            self.entries.remove(&id);
        }
    }

    // === positions ===

    /// Returns what is to go into its lane now: nothing, if the message is there or under way.
    pub(super) fn push(&mut self, push: Push) -> Option<Push> {
        let item = push.1;
        match &mut self.entries.entry(item.id).or_default().position {
            position @ (Position::NoLane | Position::Held(_)) => {
                self.held.moves(item.id, position, Position::InLane { newer: None });
                return Some(push);
            }
            Position::InLane { newer } => *newer = Some(item),
            Position::UnderWay { next } => *next = Some(Box::new(push)),
        }
        None
    }

    /// As [`Self::push`], of a message that is to be held. One that is in its lane or under way is held
    /// when it is handed out.
    pub(super) fn hold(&mut self, push: Push, reason: HoldReason) {
        let id = push.1.id;
        match &mut self.entries.entry(id).or_default().position {
            position @ (Position::NoLane | Position::Held(_)) => {
                self.held.moves(id, position, Position::Held(reason));
            }
            Position::InLane { newer } => *newer = Some(push.1),
            Position::UnderWay { next } => *next = Some(Box::new(push)),
        }
    }

    /// How many messages are held.
    pub(super) fn held_counts(&self) -> HeldCounts {
        self.held.counts()
    }

    /// At most so many messages that are held, in the order of their ids, from behind this one.
    pub(super) fn held_page(&self, after: Option<MessageId>, most: usize) -> Vec<MessageId> {
        self.held.page(after, most)
    }

    pub(super) fn is_held(&self, id: MessageId) -> bool {
        self.held.contains(id)
    }

    /// A lane hands a message out. Returns the newest of what is known of it.
    pub(super) fn hand_out(&mut self, item: RetryItem) -> RetryItem {
        let position = &mut self.entries.entry(item.id).or_default().position;
        match self.held.moves(item.id, position, Position::UnderWay { next: None }) {
            Position::InLane { newer: Some(newer) } => RetryItem { probe: item.probe, ..newer },
            _ => item,
        }
    }

    /// A fresh call for this message is under way, and the message is about to be kept.
    pub(super) fn fresh_call_begins(&mut self, id: MessageId) {
        let entry = self.entries.entry(id).or_default();
        self.held.moves(id, &mut entry.position, Position::UnderWay { next: None });
        entry.is_calling = true;
    }

    /// The try of what was handed out has ended. Returns what was pushed meanwhile and is to go into its
    /// lane now.
    pub(super) fn ended(&mut self, item: RetryItem, requeue: Requeue, end: TryEnd) -> Option<Push> {
        let pushed = match requeue {
            Requeue::Yes => {
                let entry = self.entries.get_mut(&item.id)?;
                if let Position::UnderWay { next } = &mut entry.position {
                    let newer = next.take().map(|next| next.1);
                    self.held.moves(item.id, &mut entry.position, Position::InLane { newer });
                }
                None
            }
            Requeue::No => self.leave(item.id),
            Requeue::Hold(reason) => {
                let pushed = self.leave(item.id);
                if pushed.is_none() {
                    let position = &mut self.entries.entry(item.id).or_default().position;
                    self.held.moves(item.id, position, Position::Held(reason));
                }
                pushed
            }
        };
        self.call_ends(item.id, item.attempts, end);
        pushed
    }

    /// A fresh call for a message has ended. Returns what was pushed meanwhile and is to go into its
    /// lane now.
    pub(super) fn fresh_call_ends(&mut self, id: MessageId, end: TryEnd) -> Option<Push> {
        let pushed = self.leave(id);
        self.call_ends(id, 1, end);
        pushed
    }

    fn leave(&mut self, id: MessageId) -> Option<Push> {
        let entry = self.entries.get_mut(&id)?;
        entry.dropped_during_call = false;
        match self.held.moves(id, &mut entry.position, Position::NoLane) {
            Position::UnderWay { next: Some(next) } => self.push(*next),
            _ => None,
        }
    }

    /// A call has ended, or was not made: if the message was dropped meanwhile, its caller is answered
    /// so. What the spool notes of a call is no longer an own one's.
    fn call_ends(&mut self, id: MessageId, attempts: u32, end: TryEnd) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.is_calling && end == TryEnd::Panicked {
            entry.is_uncertain = true;
            // This call leaves it open for ever.
            entry.dropped_during_call = false;
        }
        entry.is_calling = false;
        if entry.is_dropped_for_good()
            && let Some(caller) = entry.take_caller()
        {
            caller.respond_dropped(id, attempts);
        }
        self.remove_if_done(id);
    }

    /// A message is kept no more. One that is under way ends as it does. Returns whether it waited in a
    /// lane.
    pub(super) fn leave_lane(&mut self, id: MessageId) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        let waited = match &mut entry.position {
            Position::NoLane => false,
            position @ Position::Held(_) => {
                self.held.moves(id, position, Position::NoLane);
                false
            }
            position @ Position::InLane { .. } => {
                self.held.moves(id, position, Position::NoLane);
                entry.dropped_during_call = false;
                true
            }
            Position::UnderWay { next } => {
                *next = None;
                false
            }
        };
        self.remove_if_done(id);
        waited
    }

    // === what is known of calls ===

    /// Whether a call that the spool notes for this message is this process's own.
    pub(super) fn is_calling(&self, id: MessageId) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.is_calling)
    }

    /// Whether a call for this message may have arrived, as far as this process knows. `None`: its call is under
    /// way, or it is not in its lane yet, and not all is known of it.
    pub(super) fn settled_doubt(&self, id: MessageId) -> Option<Doubt> {
        let entry = self.entries.get(&id)?;
        (!entry.is_calling).then(|| entry.doubt())
    }

    /// An earlier process or a peer had this message, which is about to be pushed: its call may have arrived.
    pub(super) fn taken_up(&mut self, id: MessageId) {
        self.entries.entry(id).or_default().is_uncertain = true;
    }

    /// A call for what was handed out is about to be noted.
    pub(super) fn call_begins(&mut self, id: MessageId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.is_calling = true;
        }
    }

    /// A call that may have arrived is known of this message.
    pub(super) fn mark_uncertain(&mut self, id: MessageId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.is_uncertain = true;
        }
    }

    // === drops ===

    /// An operator drops this message. `noted`: whether the spool knows of a call that may have arrived.
    /// Returns whether any may have.
    pub(super) fn drop_begins(&mut self, id: MessageId, noted: Doubt) -> Doubt {
        let Some(entry) = self.entries.get_mut(&id) else { return noted };
        // Another operator's drop may be durable already.
        if let Some(caller) = &mut entry.caller
            && caller.drop == DropState::None
        {
            caller.drop = DropState::Begun;
        }
        entry.dropped_during_call = entry.is_calling && !entry.is_uncertain && noted == Doubt::None;
        entry.doubt().or(noted)
    }

    /// The drop is durable, or has changed nothing: then another operator's counts, or the message has
    /// ended or is a peer's. A call that is under way decides what the caller is answered.
    pub(super) fn drop_ends(&mut self, id: MessageId, calls: u32, effect: Effect) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(caller) = &mut entry.caller else { return };
        match effect {
            Effect::Made => caller.drop = DropState::Durable,
            Effect::Unchanged => {}
            Effect::NotOwned => caller.drop = DropState::None,
        }
        if effect == Effect::Made
            && !entry.is_calling
            && let Some(caller) = entry.take_caller()
        {
            caller.respond_dropped(id, calls);
            self.remove_if_done(id);
        }
    }

    /// Whether this message was dropped during its call, and only that call leaves open whether it
    /// arrived. The call's end decides once.
    pub(super) fn take_dropped_during_call(&mut self, id: MessageId) -> bool {
        let entry = self.entries.get_mut(&id);
        entry.is_some_and(|entry| std::mem::take(&mut entry.dropped_during_call))
    }

    // === callers ===

    /// The caller of this message waits from now on.
    pub(super) fn register_caller(&mut self, id: MessageId) -> oneshot::Receiver<Outcome> {
        let (to, outcome) = oneshot::channel();
        if self.is_dismissed {
            // The caller has the other end.
            drop(to.send(Outcome::kept(id)));
        } else {
            let caller = RegisteredCaller { to, drop: DropState::None, doubt: Doubt::None };
            self.entries.entry(id).or_default().caller = Some(caller);
        }
        outcome
    }

    /// The caller of this message, if it still waits. The code that takes it answers it.
    pub(super) fn take_caller(&mut self, id: MessageId) -> Option<RegisteredCaller> {
        let caller = self.entries.get_mut(&id)?.take_caller();
        self.remove_if_done(id);
        caller
    }

    /// The caller of this message, if it can be answered that no call has arrived.
    pub(super) fn take_caller_if_certain(&mut self, id: MessageId) -> Option<RegisteredCaller> {
        if self.entries.get(&id)?.is_uncertain { None } else { self.take_caller(id) }
    }

    /// No more calls are made: every waiting caller is answered what its message is now.
    pub(super) fn dismiss(&mut self) {
        self.is_dismissed = true;
        self.entries.retain(|id, entry| {
            if let Some(caller) = entry.take_caller() {
                if caller.is_dropped() {
                    caller.respond_dropped(*id, 0);
                } else {
                    caller.respond(Outcome::kept(*id));
                }
            }
            !entry.is_done()
        });
    }

    /// Messages with an entry.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    #[cfg(test)]
    pub(super) fn has_callers(&self) -> bool {
        self.entries.values().any(|entry| entry.caller.is_some())
    }
}

/// How a try has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TryEnd {
    /// Its task went on to its end.
    Ended,
    /// Its task unwound: its call may have left, and its outcome is unknown.
    Panicked,
}

impl TryEnd {
    /// As it is where this thread unwinds, or not.
    pub(super) fn now() -> Self {
        if std::thread::panicking() { Self::Panicked } else { Self::Ended }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use super::*;

    /// Two operators drop the same message, in whatever order, and a peer has another.
    #[test]
    fn a_drop_counts_once() {
        let id = MessageId::new();
        for steps in [[0, 1, 2, 3], [0, 2, 1, 3], [0, 2, 3, 1]] {
            let mut registry = Registry::default();
            let mut outcome = registry.register_caller(id);
            registry.call_begins(id);
            for step in steps {
                match step {
                    0 | 1 => drop(registry.drop_begins(id, Doubt::None)),
                    2 => registry.drop_ends(id, 1, Effect::Made),
                    _ => registry.drop_ends(id, 1, Effect::Unchanged),
                }
            }
            assert!(outcome.try_recv().is_err(), "the call decides");
            assert_eq!(registry.fresh_call_ends(id, TryEnd::Ended), None);
            assert_eq!(outcome.try_recv().unwrap(), Outcome::dropped(id, 1, Doubt::None));
            assert!(registry.entries.is_empty());
        }
        let mut registry = Registry::default();
        let mut outcome = registry.register_caller(id);
        registry.drop_begins(id, Doubt::None);
        registry.drop_ends(id, 0, Effect::NotOwned);
        assert!(outcome.try_recv().is_err() && !registry.take_caller(id).unwrap().is_dropped());
        assert!(registry.entries.is_empty());
    }

    /// A call that panicked may have arrived: its caller is not answered that none did.
    #[test]
    fn a_call_that_panicked_may_have_arrived() {
        let id = MessageId::new();
        for dropped in [false, true] {
            let mut registry = Registry::default();
            let mut outcome = registry.register_caller(id);
            registry.call_begins(id);
            if dropped {
                registry.drop_begins(id, Doubt::None);
                registry.drop_ends(id, 1, Effect::Made);
            }
            assert_eq!(registry.fresh_call_ends(id, TryEnd::Panicked), None);
            if dropped {
                assert_eq!(outcome.try_recv().unwrap(), Outcome::dropped(id, 1, Doubt::Possible));
            } else {
                assert!(registry.take_caller_if_certain(id).is_none());
                assert!(registry.take_caller(id).is_some());
            }
        }
    }
}
