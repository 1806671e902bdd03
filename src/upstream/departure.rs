//! The moment from which a call may have arrived.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::time::Instant;

/// Until when a call may leave, and whether it has. A call whose caller can no longer be told of it
/// stays: else the caller, told that nobody knows, might send a second.
#[derive(Debug)]
pub struct Departure {
    closes: Instant,
    left: AtomicBool,
}

impl Departure {
    /// Calls may leave before `closes`.
    pub fn new(closes: Instant) -> Self {
        Self { closes, left: AtomicBool::new(false) }
    }

    /// When it closes.
    pub fn closes(&self) -> Instant {
        self.closes
    }

    /// Asks to leave now. Whoever may, has left.
    pub fn leave(&self) -> bool {
        let open = Instant::now() < self.closes;
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
