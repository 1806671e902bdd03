//! Where messages go, each place once in memory however many messages go there.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use crate::message::{InstanceId, Lane, Topic};

/// Places that nobody needs are let go when there are this many more than at the last look.
const SPARE: usize = 1_024;

/// Where a message goes.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) lane: Lane,
    pub(super) topic: Topic,
}

/// The places in use.
#[derive(Debug, Default)]
pub(super) struct Places {
    lanes: BTreeSet<Lane>,
    known: HashSet<Arc<Place>>,
    /// How many there may be before the next look.
    limit: usize,
}

impl Places {
    /// The place of this instance and topic.
    pub(super) fn get(&mut self, instance: InstanceId, topic: Topic) -> Arc<Place> {
        let lane = Lane { instance, parent: topic.parent().into() };
        let place = Place { lane, topic };
        if let Some(place) = self.known.get(&place) {
            return Arc::clone(place);
        }
        if self.known.len() >= self.limit {
            self.known.retain(|place| Arc::strong_count(place) > 1);
            self.lanes = self.known.iter().map(|place| place.lane.clone()).collect();
            self.limit = self.known.len() * 2 + SPARE;
        }
        let Place { lane, topic } = place;
        let known = self.lanes.get(&lane).cloned();
        let lane = known.unwrap_or_else(|| {
            self.lanes.insert(lane.clone());
            lane
        });
        let place = Arc::new(Place { lane, topic });
        self.known.insert(Arc::clone(&place));
        place
    }
}
