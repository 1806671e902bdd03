//! The moment from which a call may have arrived.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Until when a call may be sent, and whether it was. A call is not sent once its caller can no longer
/// learn the result: the caller would be answered `unknown` and might resend. Nor is it sent once we
/// have stopped, when its answer would be lost.
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

    /// Asks to send now. A call that is let through counts as sent.
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
