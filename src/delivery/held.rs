//! The kept messages that lanes have. A message is in a lane once, however often it is pushed: a
//! spool in Redis lists messages that it hands over again after a reconnect, and a message may come
//! back from a peer while its call here is still under way.

use std::collections::HashMap;

use tokio::time::Instant;

use super::lane::Item;
use crate::message::{self, MessageId};

/// Each message that waits or is under way. No message is here longer than that.
#[derive(Debug, Default)]
pub(super) struct Held(HashMap<MessageId, One>);

/// What is to wait in a lane, and until when.
pub(super) type Push = (message::Lane, Item, Instant);

#[derive(Debug)]
struct One {
    place: Place,
    /// This process's own call for it is under way, or about to leave.
    calls: bool,
    /// Another call for it may have arrived: an earlier process's or a peer's, of which nothing may
    /// be noted, or an own one that has ended in a panic.
    doubt: bool,
    /// It was dropped during its call, and nothing but that call makes it uncertain whether it
    /// arrived.
    dropped_during_call: bool,
}

#[derive(Debug)]
enum Place {
    /// In its lane. `newer`: what a later push knows of it.
    Waits { newer: Option<Item> },
    /// Handed out, or a fresh call for it is under way. `next`: it was pushed meanwhile.
    UnderWay { next: Option<Box<Push>> },
}

impl One {
    fn new(place: Place, calls: bool) -> Self {
        Self { place, calls, doubt: false, dropped_during_call: false }
    }
}

impl Held {
    /// Returns what is to go into its lane now: nothing, if the message is held.
    pub(super) fn push(&mut self, push: Push) -> Option<Push> {
        let item = push.1;
        match self.0.get_mut(&item.id).map(|one| &mut one.place) {
            None => {
                self.0.insert(item.id, One::new(Place::Waits { newer: None }, false));
                return Some(push);
            }
            Some(Place::Waits { newer }) => *newer = Some(item),
            Some(Place::UnderWay { next }) => *next = Some(Box::new(push)),
        }
        None
    }

    /// Another process has had this message: a call of which nothing is noted may have arrived.
    pub(super) fn doubt(&mut self, id: MessageId) {
        if let Some(one) = self.0.get_mut(&id) {
            one.doubt = true;
        }
    }

    /// A lane hands a message out. Returns what is known of it last.
    pub(super) fn hand_out(&mut self, item: Item) -> Item {
        let place = Place::UnderWay { next: None };
        let one = self.0.entry(item.id).or_insert(One::new(Place::Waits { newer: None }, false));
        match std::mem::replace(&mut one.place, place) {
            Place::Waits { newer: Some(newer) } => Item { probe: item.probe, ..newer },
            Place::Waits { newer: None } | Place::UnderWay { .. } => item,
        }
    }

    /// A fresh call for this message is under way, and the message is about to be kept.
    pub(super) fn reserve(&mut self, id: MessageId) {
        self.0.insert(id, One::new(Place::UnderWay { next: None }, true));
    }

    /// What was handed out has ended. `again`: it goes back into its lane. `panicked`: its call may
    /// have left, and its end is not noted. Returns what was pushed meanwhile and is to go into its
    /// lane now.
    pub(super) fn ended(&mut self, id: MessageId, again: bool, panicked: bool) -> Option<Push> {
        let mut one = self.0.remove(&id)?;
        let Place::UnderWay { next } = one.place else { return None };
        one.doubt |= one.calls && panicked;
        // What is noted of it is no longer an own call's: a parked message is not called twice.
        one.calls = false;
        if again {
            one.place = Place::Waits { newer: next.map(|next| next.1) };
            self.0.insert(id, one);
            return None;
        }
        let pushed = self.push(*next?);
        if one.doubt {
            self.doubt(id);
        }
        pushed
    }

    /// A message is kept no more. One that is under way ends as it does. Returns whether it waited in a
    /// lane.
    pub(super) fn forget(&mut self, id: MessageId) -> bool {
        match self.0.get_mut(&id).map(|one| &mut one.place) {
            Some(Place::Waits { .. }) => self.0.remove(&id).is_some(),
            Some(Place::UnderWay { next }) => {
                *next = None;
                false
            }
            None => false,
        }
    }

    /// Whether a call that is noted for this message is this process's own.
    pub(super) fn calls(&self, id: MessageId) -> bool {
        self.0.get(&id).is_some_and(|one| one.calls)
    }

    /// A call for what was handed out is about to be noted.
    pub(super) fn sets_out(&mut self, id: MessageId) {
        if let Some(one) = self.0.get_mut(&id) {
            one.calls = true;
        }
    }

    /// An operator drops this message. `noted`: the spool knows of a call that may have arrived.
    /// Returns whether any may have.
    pub(super) fn drops(&mut self, id: MessageId, noted: bool) -> bool {
        let Some(one) = self.0.get_mut(&id) else { return noted };
        one.dropped_during_call = one.calls && !one.doubt && !noted;
        one.calls || one.doubt || noted
    }

    /// Whether this message was dropped during its call, and nothing but that call makes it uncertain
    /// whether it arrived. The call's end decides once.
    pub(super) fn decides(&mut self, id: MessageId) -> bool {
        let one = self.0.get_mut(&id);
        one.is_some_and(|one| std::mem::take(&mut one.dropped_during_call))
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}
