//! What sidecars and the model of the script say to each other, and what to look for in what the
//! provider saw.

use std::time::Duration;

use super::plan::{MS, SECOND};
use super::simulation::CALL_TIMEOUT;
use crate::ceiling::exchange::{GrantedLease, LeaseReply, LeaseRequest, Scope};
use crate::ceiling::model::{self, Back, Gets};

pub(super) const CYCLE: i64 = CALL_TIMEOUT + SECOND + MS + 100 * MS;
pub(super) const HOLD: i64 = 301 * SECOND + MS;
/// What a member says of its calls.
pub(super) const TIMES: model::Ask = model::Ask {
    figures: Vec::new(),
    want: 0,
    core: 0,
    park: false,
    answered: 0,
    cycle: CYCLE,
    min: 10 * SECOND,
    hold: HOLD,
    back: Vec::new(),
};
pub(super) fn asked(ask: &LeaseRequest) -> model::Ask {
    let back = ask.back.iter().map(|back| Back {
        ids: back.ids.iter().map(|id| i64::from(*id)).collect(),
        nonce: i64::try_from(back.nonce).unwrap(),
        free_in: i64::try_from(back.free_in.as_micros()).unwrap(),
    });
    model::Ask {
        figures: ask.figures.iter().map(|n| i64::from(*n)).collect(),
        want: ask.want,
        core: ask.long_lived,
        park: ask.push_back,
        answered: ask.answered.map_or(0, |at| i64::try_from(at).unwrap()),
        cycle: micros(ask.times.cycle),
        min: micros(ask.times.min),
        hold: micros(ask.times.hold),
        back: back.collect(),
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap()
}

pub(super) fn reply(gets: Gets) -> LeaseReply {
    let number = |n: i64| u64::try_from(n).unwrap();
    let ids = |ids: Vec<i64>| ids.iter().map(|id| u32::try_from(*id).unwrap()).collect();
    LeaseReply {
        now: number(gets.now),
        warm_up: number(gets.learn_in),
        contended: gets.short > 0,
        ask_in: number(gets.ask_in),
        figures: ids(gets.figures),
        withheld: usize::try_from(gets.parked).unwrap(),
        debt: usize::try_from(gets.owed).unwrap(),
        scope: if gets.wide > 0 { Scope::AllRegions } else { Scope::Own },
        out: gets
            .out
            .into_iter()
            .map(|out| GrantedLease {
                ids: ids(out.ids),
                nonce: number(out.nonce),
                ready_in: number(out.ready_in),
            })
            .collect(),
    }
}

/// The most arrivals in any half-open second.
pub(super) fn worst(arrivals: &[i64]) -> usize {
    let mut first = 0;
    let mut worst = 0;
    for (i, at) in arrivals.iter().enumerate() {
        while at - arrivals[first] >= SECOND {
            first += 1;
        }
        worst = worst.max(i + 1 - first);
    }
    worst
}
