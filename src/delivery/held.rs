//! The kept messages that lanes have. A message is in a lane once, however often it is pushed: a
//! spool in Redis lists messages that it hands over again after a reconnect, and a message may come
//! back from a peer while its call here is still under way.

use std::collections::HashMap;

use tokio::time::Instant;

use super::lane::Item;
use crate::message::{self, MessageId};

/// Where each message is that waits or is under way. No message is here longer than that.
#[derive(Debug, Default)]
pub(super) struct Held(HashMap<MessageId, Place>);

/// What is to wait in a lane, and until when.
pub(super) type Push = (message::Lane, Item, Instant);

#[derive(Debug)]
enum Place {
    /// In its lane. `newer`: what a later push knows of it.
    Waits { newer: Option<Item>, calls: bool },
    /// Handed out, or a fresh call for it is under way. `next`: it was pushed meanwhile.
    UnderWay { next: Option<Box<Push>>, calls: bool },
}

impl Held {
    /// Returns what is to go into its lane now: nothing, if the message is held.
    pub(super) fn push(&mut self, push: Push) -> Option<Push> {
        let item = push.1;
        match self.0.get_mut(&item.id) {
            None => {
                self.0.insert(item.id, Place::Waits { newer: None, calls: false });
                return Some(push);
            }
            Some(Place::Waits { newer, .. }) => *newer = Some(item),
            Some(Place::UnderWay { next, .. }) => *next = Some(Box::new(push)),
        }
        None
    }

    /// A lane hands a message out. Returns what is known of it last.
    pub(super) fn hand_out(&mut self, item: Item) -> Item {
        let waited = self.0.remove(&item.id);
        let (newer, calls) = match waited {
            Some(Place::Waits { newer, calls }) => (newer, calls),
            Some(Place::UnderWay { .. }) | None => (None, false),
        };
        self.0.insert(item.id, Place::UnderWay { next: None, calls });
        newer.map_or(item, |newer| Item { probe: item.probe, ..newer })
    }

    /// A fresh call for this message is under way, and the message is about to be kept.
    pub(super) fn reserve(&mut self, id: MessageId) {
        self.0.insert(id, Place::UnderWay { next: None, calls: true });
    }

    /// What was handed out has ended. `again`: it goes back into its lane. `doubt`: whether its call
    /// was noted and its end was not. Returns what was pushed meanwhile and is to go into its lane
    /// now.
    pub(super) fn ended(&mut self, id: MessageId, again: bool, doubt: bool) -> Option<Push> {
        let Some(Place::UnderWay { next, calls }) = self.0.remove(&id) else { return None };
        if again {
            self.0.insert(id, Place::Waits { newer: None, calls: calls && doubt });
            return None;
        }
        next.and_then(|next| self.push(*next))
    }

    /// A message is kept no more. One that is under way ends as it does.
    pub(super) fn forget(&mut self, id: MessageId) {
        match self.0.get_mut(&id) {
            Some(Place::Waits { .. }) => drop(self.0.remove(&id)),
            Some(Place::UnderWay { next, .. }) => *next = None,
            None => {}
        }
    }

    /// Whether a call that is noted for this message is this process's own.
    pub(super) fn calls(&self, id: MessageId) -> bool {
        match self.0.get(&id) {
            Some(Place::Waits { calls, .. } | Place::UnderWay { calls, .. }) => *calls,
            None => false,
        }
    }

    /// A call for what was handed out is about to be noted.
    pub(super) fn sets_out(&mut self, id: MessageId) {
        if let Some(Place::Waits { calls, .. } | Place::UnderWay { calls, .. }) =
            self.0.get_mut(&id)
        {
            *calls = true;
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
