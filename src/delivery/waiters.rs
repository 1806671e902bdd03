//! Callers who wait for what becomes of a kept message.
//!
//! A caller is answered once, by the code that takes it out of here. When an operator drops a message
//! while a call for it is under way, the call's outcome decides what its caller is answered.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::outcome::Outcome;
use crate::message::MessageId;
use crate::spool::Effect;

/// Callers by their messages; `None`: no caller may wait any more.
#[derive(Debug)]
pub(super) struct Waiters {
    waiting: Mutex<Option<HashMap<MessageId, Waiter>>>,
}

/// A caller who waits for what becomes of its message.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) to: oneshot::Sender<Outcome>,
    /// A call for it may have arrived.
    pub(super) doubt: bool,
    /// A call for it is under way, or about to leave.
    calling: bool,
    drop: DropState,
}

/// How far an operator's wish to drop a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DropState {
    None,
    /// The drop is written, and may not be durable.
    Begun,
    Durable,
}

impl Waiter {
    /// The answer to a caller whose message was dropped.
    pub(super) fn dropped(&self, id: MessageId, calls: u32) -> Outcome {
        // What is not durable may be undone by a crash, and then a call follows.
        let doubt = self.doubt || self.calling || self.drop != DropState::Durable;
        Outcome::dropped(id, calls, doubt)
    }

    /// Whether an operator drops its message, or has dropped it.
    pub(super) fn is_dropped(&self) -> bool {
        self.drop != DropState::None
    }
}

impl Waiters {
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::new(Some(HashMap::new())) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashMap<MessageId, Waiter>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, id: MessageId, then: impl FnOnce(&mut Waiter) -> T) -> Option<T> {
        self.lock().as_mut()?.get_mut(&id).map(then)
    }

    pub(super) fn wait_for(&self, id: MessageId) -> oneshot::Receiver<Outcome> {
        let (to, outcome) = oneshot::channel();
        match &mut *self.lock() {
            Some(waiting) => {
                let waiter = Waiter { to, doubt: false, calling: false, drop: DropState::None };
                drop(waiting.insert(id, waiter));
            }
            // The caller has the other end.
            None => drop(to.send(Outcome::kept(id))),
        }
        outcome
    }

    /// Whether no caller waits.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lock().as_ref().is_none_or(HashMap::is_empty)
    }

    /// The caller who waits for this message, if it still does. The code that takes it answers it.
    pub(super) fn take(&self, id: MessageId) -> Option<Waiter> {
        self.lock().as_mut()?.remove(&id)
    }

    /// The caller who waits for this message, if it can be answered that no call has arrived.
    pub(super) fn take_certain(&self, id: MessageId) -> Option<Waiter> {
        let mut waiting = self.lock();
        let waiting = waiting.as_mut()?;
        if waiting.get(&id)?.doubt { None } else { waiting.remove(&id) }
    }

    /// A call for this message may have arrived: its caller is not answered that none did.
    pub(super) fn doubt(&self, id: MessageId) {
        self.with(id, |waiter| waiter.doubt = true);
    }

    /// A call is about to leave. Marked before the spool is asked whether the message is still
    /// queued, so that a drop either sees the call or prevents it.
    pub(super) fn call_begins(&self, id: MessageId) {
        self.with(id, |waiter| waiter.calling = true);
    }

    /// The call has ended, or was not made: if the message was dropped meanwhile, its caller is
    /// answered that.
    pub(super) fn call_ends(&self, id: MessageId, calls: u32) {
        let dropped = self.with(id, |waiter| {
            waiter.calling = false;
            waiter.drop == DropState::Durable
        });
        if dropped == Some(true) {
            self.answer_dropped(id, calls);
        }
    }

    /// An operator drops the message: marked before the spool is, so that a caller whose wait
    /// expires in between is not answered that its message is queued.
    pub(super) fn drop_begins(&self, id: MessageId) {
        self.with(id, |waiter| {
            // Another operator's may be durable.
            if waiter.drop == DropState::None {
                waiter.drop = DropState::Begun;
            }
        });
    }

    /// The drop is durable, or has changed nothing: then another operator's counts, or the message
    /// has ended or is a peer's. A call that is under way decides what its caller is answered.
    pub(super) fn drop_ends(&self, id: MessageId, calls: u32, effect: Effect) {
        let answer = self.with(id, |waiter| {
            match effect {
                Effect::Made => waiter.drop = DropState::Durable,
                Effect::Unchanged => {}
                Effect::TransportError => waiter.drop = DropState::None,
            }
            effect == Effect::Made && !waiter.calling
        });
        if answer == Some(true) {
            self.answer_dropped(id, calls);
        }
    }

    fn answer_dropped(&self, id: MessageId, calls: u32) {
        if let Some(waiter) = self.take(id) {
            let outcome = waiter.dropped(id, calls);
            // The caller may have hung up.
            drop(waiter.to.send(outcome));
        }
    }

    /// No more calls are made: every waiting caller is answered what its message is now.
    pub(super) fn dismiss(&self) {
        let waiting = self.lock().take();
        for (id, waiter) in waiting.into_iter().flatten() {
            let outcome =
                if waiter.is_dropped() { waiter.dropped(id, 0) } else { Outcome::kept(id) };
            // The caller may have hung up.
            drop(waiter.to.send(outcome));
        }
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
            let waiters = Waiters::new();
            let mut outcome = waiters.wait_for(id);
            waiters.call_begins(id);
            for step in steps {
                match step {
                    0 | 1 => waiters.drop_begins(id),
                    2 => waiters.drop_ends(id, 1, Effect::Made),
                    _ => waiters.drop_ends(id, 1, Effect::Unchanged),
                }
            }
            assert!(outcome.try_recv().is_err(), "the call decides");
            waiters.call_ends(id, 1);
            assert_eq!(outcome.try_recv().unwrap(), Outcome::dropped(id, 1, false));
        }
        let waiters = Waiters::new();
        let mut outcome = waiters.wait_for(id);
        waiters.drop_begins(id);
        waiters.drop_ends(id, 0, Effect::TransportError);
        assert!(outcome.try_recv().is_err() && !waiters.take(id).unwrap().is_dropped());
    }
}
