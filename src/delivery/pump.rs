//! The task that hands out kept messages when they are due.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::contained::contained;
use super::kept::KeptMessages;
use super::order::CallOrder;
use super::retry::{HandedOut, Turns};
use super::retry_queue::Group;
use crate::message;
use crate::upstream::Upstream;

/// The longest time between two looks, in case a wake-up is missed.
const MAX_PAUSE: Duration = Duration::from_mins(1);

/// After a panic.
const RESTART: Duration = Duration::from_secs(1);

/// Hands out what is due, until the delivery is dropped or stops.
pub(super) async fn run<U: Upstream>(kept: Weak<KeptMessages<U>>) {
    while contained(hand_out(&kept)).await.is_err() {
        sleep(RESTART).await;
    }
}

async fn hand_out<U: Upstream>(kept: &Weak<KeptMessages<U>>) {
    let Some((stop, changed)) =
        kept.upgrade().map(|kept| (kept.dispatcher.stop.clone(), Arc::clone(&kept.queue.changed)))
    else {
        return;
    };
    let (mut memory_order, mut call_order) = (CallOrder::default(), CallOrder::default());
    while !stop.is_cancelled() {
        let changed = changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let next = {
            let Some(kept) = kept.upgrade() else { return };
            let now = Instant::now();
            let (groups, next) = kept.queue.take_due(now);
            memory_order.prune();
            call_order.prune();
            // All of them first: after a panic, what was not handed out comes back.
            let handed_out = |(lane, items): Group| -> Vec<_> {
                let item = |item| {
                    let lane = message::Lane::clone(&lane);
                    let turns = Turns {
                        memory: memory_order.next(lane.clone()),
                        call: call_order.next(lane.clone()),
                    };
                    HandedOut::new(&kept, lane, item, turns)
                };
                items.into_iter().map(item).collect()
            };
            let groups: Vec<_> = groups.into_iter().map(handed_out).collect();
            #[cfg(test)]
            super::tests::panics::at("hands out");
            for group in groups {
                kept.dispatcher.meter.batch(group.len());
                for handed_out in group {
                    kept.dispatcher.tasks.spawn(handed_out.try_again());
                }
            }
            // A lane whose moment has come but that may not go yet is woken when a call ends.
            next.filter(|at| *at > now).unwrap_or(now + MAX_PAUSE)
        };
        tokio::select! {
            () = sleep_until(next) => {}
            () = changed => {}
            () = stop.cancelled() => {}
        }
    }
}
