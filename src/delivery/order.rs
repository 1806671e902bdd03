//! The order of the calls for messages of one lane that tasks of their own carry on.

use std::collections::HashMap;

use tokio::sync::oneshot::{self, error::TryRecvError};

use crate::message::{Lane, Urgency};

/// Gives the messages of each lane their turns, one after the other.
#[derive(Debug, Default)]
pub struct CallOrder {
    /// Ready once the last message of the lane that was given a turn has had it.
    last: HashMap<Lane, oneshot::Receiver<()>>,
    /// The least urgent message of the lane so far.
    urgency: HashMap<Lane, Urgency>,
}

/// A message's turn. The next one comes when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    before: Option<oneshot::Receiver<()>>,
    _had: oneshot::Sender<()>,
}

impl CallOrder {
    /// Whether a message of the lane was given a turn and may not have had it yet.
    pub(super) fn has(&self, lane: &Lane) -> bool {
        self.last.contains_key(lane)
    }

    /// The urgency of the lane's next message, which would have this one alone: a message that is more urgent
    /// than one before it would overtake that.
    pub(super) fn at_most(&mut self, lane: &Lane, urgency: Urgency) -> Urgency {
        let least = self.urgency.entry(lane.clone()).or_insert(urgency);
        *least = urgency.min(*least);
        *least
    }

    /// The turn of the lane's next message.
    pub(super) fn next(&mut self, lane: Lane) -> Turn {
        let (had, next) = oneshot::channel();
        Turn { before: self.last.insert(lane, next), _had: had }
    }

    /// Forgets lanes in which all have had their turn.
    pub(super) fn prune(&mut self) {
        self.last.retain(|_, last| last.try_recv() == Err(TryRecvError::Empty));
    }
}

impl Turn {
    /// Waits until the one before has had its turn, or was given up.
    pub(super) async fn comes(&mut self) {
        if let Some(before) = &mut self.before {
            // It is dropped, not sent.
            drop(before.await);
            self.before = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn lane(parent: &str) -> Lane {
        Lane { instance: "x".into(), parent: parent.into() }
    }

    #[tokio::test]
    async fn one_after_the_other_in_each_lane() {
        let mut order = CallOrder::default();
        let [mut first, mut second, third] = [0; 3].map(|_| order.next(lane("a")));
        let mut other = order.next(lane("b"));
        let had = Mutex::new(Vec::new());
        let note = |name| had.lock().unwrap().push(name);
        let one = async {
            second.comes().await;
            note("second");
            drop(second);
        };
        let two = async {
            other.comes().await;
            note("other");
            first.comes().await;
            note("first");
            // One that was given up keeps no other waiting.
            drop((third, first));
        };
        tokio::join!(one, two);
        assert_eq!(*had.lock().unwrap(), ["other", "first", "second"]);
        assert!(order.has(&lane("a")) && !order.has(&lane("c")));
        order.prune();
        assert!(!order.has(&lane("a")) && order.has(&lane("b")));
        drop(other);
        order.prune();
        assert!(!order.has(&lane("b")));
    }
}
