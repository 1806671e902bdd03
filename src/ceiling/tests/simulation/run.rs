//! A plan from its beginning to its end, with what Redis forgets on the way.

use super::super::plan::{Fault, Plan, SECOND};
use super::{Fleet, Seen, Server};
use crate::ceiling::model::Kept;

/// What becomes of what Redis knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    LastCopy,
    Empty,
    Expired,
    New,
    Promoted { clock: i64 },
}

/// Runs a fleet, and returns what the provider saw.
pub(in crate::ceiling::tests) fn run(plan: &Plan) -> Seen {
    let mut fleet = Fleet::new(plan.clone());
    // Redis forgets at the end of a kill, and at once in a flush.
    let mut turns = Vec::new();
    for trouble in &plan.troubles {
        match trouble.fault {
            Fault::Killed => turns.push((trouble.to, Turn::New)),
            Fault::Flushed => turns.push((trouble.from, Turn::Empty)),
            Fault::Expired => turns.push((trouble.from, Turn::Expired)),
            Fault::Failover { clock } => {
                let behind = (trouble.to - trouble.from).min(3 * SECOND);
                turns.push((trouble.from - behind, Turn::LastCopy));
                turns.push((trouble.from, Turn::Promoted { clock }));
            }
            _ => {}
        }
    }
    turns.sort_unstable();
    let mut copy = Server::new();
    for (at, turn) in turns {
        fleet.run(at);
        match turn {
            Turn::LastCopy => copy.clone_from(&fleet.redis),
            Turn::Empty => fleet.redis.fill(Kept::default()),
            Turn::Expired => fleet.redis[0] = Kept::default(),
            Turn::New => {
                fleet.redis.fill(Kept::default());
                fleet.run += 1;
            }
            Turn::Promoted { clock } => {
                fleet.redis.clone_from(&copy);
                fleet.run += 1;
                fleet.clock = clock;
            }
        }
    }
    fleet.run(plan.until);
    let mut seen = fleet.seen;
    seen.arrivals.sort_unstable();
    seen.by_group.iter_mut().for_each(|arrivals| arrivals.sort_unstable());
    seen
}
