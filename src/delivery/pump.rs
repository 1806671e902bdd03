//! The task that hands out kept messages when they are due.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::kept::KeptMessages;
use crate::upstream::Upstream;

/// The longest time between two looks, in case a wake-up is missed.
const MAX_PAUSE: Duration = Duration::from_mins(1);

/// Hands out what is due, until the delivery is dropped or stops.
pub(super) async fn run<U: Upstream>(kept: Weak<KeptMessages<U>>) {
    let Some((stop, changed)) =
        kept.upgrade().map(|kept| (kept.dispatcher.stop.clone(), Arc::clone(&kept.queue.changed)))
    else {
        return;
    };
    while !stop.is_cancelled() {
        let changed = changed.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        let next = {
            let Some(kept) = kept.upgrade() else { return };
            let now = Instant::now();
            let (groups, next) = kept.queue.take_due(now);
            for (lane, items) in groups {
                kept.dispatcher.meter.batch(items.len());
                for item in items {
                    let task = Arc::clone(&kept).try_again(lane.clone(), item);
                    kept.dispatcher.tasks.spawn(task);
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
