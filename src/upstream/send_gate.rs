//! The moment from which a call may have arrived.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Until when a call may leave, and whether it has. A call whose caller can no longer be told of it
/// stays: else the caller, told that nobody knows, might send a second. So does one that would leave
/// when we have stopped: nobody would wait for its answer.
#[derive(Debug)]
pub struct SendGate {
    closes: Instant,
    stop: CancellationToken,
    left: AtomicBool,
}

impl SendGate {
    /// Calls may leave before `closes`, unless `stop` comes first.
    pub fn new(closes: Instant, stop: &CancellationToken) -> Self {
        Self { closes, stop: stop.clone(), left: AtomicBool::new(false) }
    }

    /// When it closes, if it is not stopped before.
    pub fn closes(&self) -> Instant {
        self.closes
    }

    /// Resolves when no call leaves any more because we stop.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Whether a call that has not left stays.
    pub fn is_closed(&self) -> bool {
        Instant::now() >= self.closes || self.stop.is_cancelled()
    }

    /// Asks to leave now. Whoever may, has left.
    pub fn leave(&self) -> bool {
        let open = !self.is_closed();
        if open {
            self.left.store(true, Ordering::Release);
        }
        open
    }

    /// Whether bytes of the call may have been sent.
    pub fn left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }
}
