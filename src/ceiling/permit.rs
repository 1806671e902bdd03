//! The right to one call.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::leases::Lease;
use super::state::Taken;
use super::{Kind, Shared};

/// The right to one call from one egress address. Dropped, it counts as answered at that moment.
#[derive(Debug)]
#[must_use = "a permit that is dropped is spent"]
pub struct Permit {
    shared: Arc<Shared>,
    egress: usize,
    /// Where the ceilings are shared.
    lease: Option<Lease>,
    taken: Instant,
    waited: Option<(Kind, Duration)>,
    end: End,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Its connection is closed, or nobody said.
    Closed,
    Answered,
    Throttled,
    Unsent,
    /// The other side ended or refused the connection.
    Lost {
        sent: bool,
    },
}

impl End {
    /// Whether the provider may have seen the call.
    pub(super) fn sent(self) -> bool {
        !matches!(self, Self::Unsent | Self::Lost { sent: false })
    }
}

impl Permit {
    pub(super) fn new(
        shared: &Arc<Shared>,
        permit: Taken,
        taken: Instant,
        waited: Option<(Kind, Duration)>,
    ) -> Self {
        let Taken { egress, lease } = permit;
        Self { shared: Arc::clone(shared), egress, lease, taken, waited, end: End::Closed }
    }

    /// Whether a call may still begin: to be asked right before it is written. A process that was
    /// stopped meanwhile does not know how late it is.
    pub fn holds(&self) -> bool {
        self.lease.as_ref().is_none_or(|lease| lease.holds(Instant::now()))
    }

    /// Which egress address to send from: an index into `upstream.egress_addresses`.
    pub fn egress(&self) -> usize {
        self.egress
    }

    /// How long it was waited for, and because of which ceiling; `None` if it was free.
    pub fn waited(&self) -> Option<(Kind, Duration)> {
        self.waited
    }

    /// The call was answered: it counts for one more second.
    pub fn answered(mut self) {
        self.end = End::Answered;
    }

    /// The call was answered with push-back: it counts, and some permits rest.
    pub fn throttled(mut self) {
        self.end = End::Throttled;
    }

    /// The other side refused, reset or ended the connection; `sent`: after bytes were written.
    pub fn lost(mut self, sent: bool) {
        self.end = End::Lost { sent };
    }

    /// Nothing of the call was sent: the permit is free again.
    pub fn unsent(mut self) {
        self.end = End::Unsent;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        // Under the lock, so that windows see answers in order of time.
        let now = Instant::now();
        if matches!(self.end, End::Answered | End::Throttled) {
            state.call_took(now - self.taken);
        }
        let wake = state.ended(self.egress, self.lease.take(), self.end, now);
        drop(state);
        if wake {
            self.shared.changed.notify_one();
        }
    }
}
