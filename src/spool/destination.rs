//! Where messages come from and go to. Each such path is in memory once, however many messages take it.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use crate::message::{CallerName, InstanceId, Lane, Topic};

/// Unused destinations are dropped when there are this many more than at the last sweep.
const SPARE: usize = 1_024;

/// Where a message goes, and whose it is.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Destination {
    pub(super) lane: Lane,
    pub(super) topic: Topic,
    pub(super) caller: Option<CallerName>,
}

/// The destinations in use, shared by their messages.
#[derive(Debug, Default)]
pub(super) struct Destinations {
    lanes: BTreeSet<Lane>,
    known: HashSet<Arc<Destination>>,
    /// How many there may be before the next sweep.
    limit: usize,
}

impl Destinations {
    /// The destination of this instance and topic, shared by the messages of a caller.
    pub(super) fn get(
        &mut self,
        instance: InstanceId,
        topic: Topic,
        caller: Option<CallerName>,
    ) -> Arc<Destination> {
        let lane = Lane { instance, parent: topic.parent().into() };
        let destination = Destination { lane, topic, caller };
        if let Some(destination) = self.known.get(&destination) {
            return Arc::clone(destination);
        }
        if self.known.len() >= self.limit {
            self.known.retain(|destination| Arc::strong_count(destination) > 1);
            self.lanes = self.known.iter().map(|destination| destination.lane.clone()).collect();
            self.limit = self.known.len() * 2 + SPARE;
        }
        let Destination { lane, topic, caller } = destination;
        let known = self.lanes.get(&lane).cloned();
        let lane = known.unwrap_or_else(|| {
            self.lanes.insert(lane.clone());
            lane
        });
        let destination = Arc::new(Destination { lane, topic, caller });
        self.known.insert(Arc::clone(&destination));
        destination
    }
}
