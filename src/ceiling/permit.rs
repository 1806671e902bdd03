//! The right to one call.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Kind, Shared};

/// The right to one call from one egress address. Dropped, it counts as answered at that moment.
#[derive(Debug)]
#[must_use = "a permit that is dropped is spent"]
pub struct Permit {
    shared: Arc<Shared>,
    egress: usize,
    taken: Instant,
    waited: Option<(Kind, Duration)>,
    end: End,
}

/// How a call ended, for the windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its connection is closed, or nobody said.
    Closed,
    Answered,
    Throttled,
    Unsent,
}

impl Permit {
    pub(super) fn new(
        shared: &Arc<Shared>,
        egress: usize,
        taken: Instant,
        waited: Option<(Kind, Duration)>,
    ) -> Self {
        Self { shared: Arc::clone(shared), egress, taken, waited, end: End::Closed }
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
        let wake = match self.end {
            End::Unsent => state.unsent(self.egress),
            end => {
                if end != End::Closed {
                    state.call_took(now - self.taken);
                }
                if end == End::Throttled {
                    state.park(now);
                }
                state.answered(self.egress, now)
            }
        };
        drop(state);
        if wake {
            self.shared.changed.notify_one();
        }
    }
}
