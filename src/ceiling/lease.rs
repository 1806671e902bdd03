//! A permit that Redis counts as out.

use tokio::time::Instant;

/// Whether the provider may have seen a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Yes,
    No,
}

/// A permit of each shared ceiling, to use until then.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) ids: Vec<u32>,
    /// The lease's end as Redis wrote it, with the time in which a call without an answer may be read:
    /// proves whose it is.
    pub(super) nonce: u64,
    pub(super) long_lived: bool,
    /// Of the Redis that granted it: a new one begins whenever Redis has forgotten what is out.
    pub(super) epoch: u32,
    pub(super) ready: Instant,
    /// No call begins later.
    pub(super) until: Instant,
}

impl Lease {
    /// Whether a call may still begin.
    pub(super) fn holds(&self, now: Instant) -> bool {
        now <= self.until
    }
}
