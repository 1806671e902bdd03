//! The order in which a sidecar stops, and how long each step may take.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Sidecar, spool_options};
use crate::config::{self, Config};
use crate::spool::{self, Spool};
use crate::traces;

/// For how long new slices of the remaining messages are migrated to the fleet's spool, and the limit
/// for all of it. The difference lets a slice finish: one given up half-way may be delivered twice.
const BEGIN_HAND_OVER: Duration = Duration::from_secs(6);
const HAND_OVER: Duration = Duration::from_secs(10);
/// Time limit for closing the spool.
const LEAVE: Duration = Duration::from_secs(5);
/// Time limit for writes of the spool that are still under way after that.
const LAST_WRITES: Duration = Duration::from_secs(1);
/// Time limit for recording the outcome of the last call.
const LAST_RECORDS: Duration = Duration::from_millis(2_500);
/// Time limit for sending the last replies, once everything else has ended.
pub(super) const LAST_REPLIES: Duration = Duration::from_secs(1);
/// Time for the rest of a stop: permits are given back, and the ledger and the log are written.
const LAST_STEPS: Duration = Duration::from_secs(5);

/// What a sidecar has left when it has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leftovers {
    /// Messages whose callers got no answer. None of them was accepted.
    pub unanswered: usize,
    /// Accepted messages in the spool that are to be delivered.
    pub queued: u64,
    /// Dead letters in the spool.
    pub dead_letters: u64,
    /// Accepted messages that end with the pod (`spool.lifetime`). What Redis has confirmed (`drain.handoff`) is none
    /// of them.
    pub at_risk: u64,
}

impl Sidecar {
    /// Stops: `/readyz` fails at once; after `drain.accept_for` new messages are refused; messages on
    /// their way finish within `drain.grace`; then the listeners close. `hurry` ends both waits.
    ///
    /// Every call must be able to end within the grace, so the last one begins `upstream.call_timeout`
    /// before its end, or at half of a shorter grace.
    pub async fn drain(self, hurry: impl Future<Output = ()>) -> Leftovers {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(rest) = &self.spool {
            rest.spool.retire();
            rest.warn_of_risk();
        }
        let uncertain = self.meter.uncertain();
        let grace = self.drain.grace;
        let in_order = async {
            tokio::time::sleep(self.drain.accept_for).await;
            self.draining.store(true, Ordering::Relaxed);
            self.delivery.drain(grace.saturating_sub(self.call_timeout.min(grace / 2))).await;
        };
        tokio::select! {
            () = in_order => {}
            () = hurry => {
                self.draining.store(true, Ordering::Relaxed);
                self.delivery.drain(Duration::ZERO).await;
            }
        }
        // While the listeners are open: a caller whose call ends now still gets its reply.
        let (unanswered, ()) = tokio::join!(
            self.delivery.close(self.call_timeout + LAST_RECORDS),
            self.passthrough.close(self.call_timeout),
        );
        let uncertain = self.meter.uncertain() - uncertain;
        if uncertain > 0 {
            tracing::warn!(
                calls = uncertain,
                "calls ended without an answer while stopping: each may have been delivered"
            );
        }
        self.servers.stop.cancel();
        self.servers.tasks.wait().await;
        tokio::join!(self.ceiling.close(), self.passthrough.leave());
        if let Some(rest) = &self.spool {
            rest.leave().await;
        }
        self.meter.close().await;
        // Last: a call may have ended since, and its note is written as long as the runtime runs. A collector that
        // hangs does not keep it.
        let settled = async {
            if let Some(rest) = &self.spool {
                drop(timeout(LAST_WRITES, rest.spool.settle()).await);
            }
        };
        tokio::join!(settled, self.traces.close());
        let mut left = Leftovers { unanswered, queued: 0, dead_letters: 0, at_risk: 0 };
        if let Some(rest) = &self.spool {
            rest.count(&mut left);
        }
        left
    }
}

/// The messages that are still stored when a sidecar ends.
pub(super) struct SpoolRemainder {
    pub(super) spool: Spool,
    /// The fleet's spool, to which those of a disk are migrated (`drain.handoff`).
    pub(super) to: Option<(config::Fleet, spool::Options)>,
}

impl SpoolRemainder {
    /// At the beginning of a stop, since its end may not come: a kubelet that evicts a pod waits a second.
    fn warn_of_risk(&self) {
        let messages = self.spool.at_risk();
        if messages > 0 {
            tracing::warn!(
                messages,
                "stopping with messages in a spool that is deleted with the pod (spool.lifetime): those that are \
                 neither delivered nor handed over (drain.handoff) by the end are lost with it"
            );
        }
    }

    /// Counts and logs what is left.
    fn count(&self, left: &mut Leftovers) {
        let usage = self.spool.usage();
        let (queued, dead_letters) = (usage.queued.messages, usage.dead.messages);
        *left = Leftovers { queued, dead_letters, at_risk: self.spool.at_risk(), ..*left };
        if left.at_risk > 0 {
            tracing::warn!(
                messages = left.at_risk,
                queued,
                dead_letters,
                "stopped with messages in a spool that is deleted with the pod (spool.lifetime): they are lost, \
                 unless a container of this pod starts again"
            );
        } else if queued > 0 {
            tracing::info!(
                messages = queued,
                "messages stay in the spool: the next start delivers them"
            );
        }
    }

    /// Migrates the messages, or closes the spool with them.
    async fn leave(&self) {
        let Some((fleet, options)) = &self.to else {
            if timeout(LEAVE, self.spool.close()).await.is_err() {
                tracing::warn!("the spool was not closed in time");
            }
            return;
        };
        let handed = timeout(HAND_OVER, hand_over(&self.spool, fleet, options.clone())).await;
        let usage = self.spool.usage();
        let left = usage.queued.messages + usage.dead.messages;
        match handed {
            Ok(Ok(messages)) if left == 0 => {
                tracing::info!(messages, "messages migrated to Redis");
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    error,
                    left,
                    "messages not migrated to Redis: they stay on this disk"
                );
            }
            Ok(Ok(_)) | Err(_) => {
                tracing::warn!(
                    left,
                    "messages not migrated to Redis in time: they stay on this disk"
                );
            }
        }
    }
}

async fn hand_over(
    from: &Spool,
    fleet: &config::Fleet,
    options: spool::Options,
) -> Result<usize, String> {
    let until = Instant::now() + BEGIN_HAND_OVER;
    let to = Spool::share(fleet, None, options).await.map_err(|error| error.to_string())?;
    let handed = from.hand_over(&to, until).await.map_err(|error| error.to_string());
    to.close().await;
    handed
}

pub(super) fn hand_over_to(config: &Config) -> Option<(config::Fleet, spool::Options)> {
    let spool = config.spool.as_ref()?;
    if !config.drain.handoff || spool.store == config::Store::Redis {
        return None;
    }
    Some((config.fleet.clone()?, spool_options(spool, &config.idempotency, &config.runtime)))
}

/// How long a predecessor with this configuration may take from SIGTERM to its end.
pub fn longest_stop(config: &Config) -> Duration {
    let drain = &config.drain;
    let calls = drain.accept_for + drain.grace + config.upstream.call_timeout + LAST_RECORDS;
    let leave = if hand_over_to(config).is_some() { HAND_OVER } else { LEAVE };
    let spans = if config.otlp.is_some() { traces::CLOSE * 2 } else { Duration::ZERO };
    calls + LAST_REPLIES + leave + spans + LAST_WRITES + LAST_STEPS
}
