//! What an owner has seen of another one.

use std::time::Duration;

use super::Times;

/// The epoch of an owner that has left.
const LEFT: &str = "-";

/// Another owner, as it was seen last.
#[derive(Debug)]
pub(super) struct PeerState {
    pub(super) epoch: String,
    /// How long its epoch was unchanged while we looked. Time in which we could not look does not
    /// count: after an outage of Redis no epoch has moved.
    pub(super) unchanged: Duration,
    /// Its epoch has moved since we look.
    pub(super) moved: bool,
    pub(super) pending: u64,
}

impl PeerState {
    pub(super) fn is_dead(&self, times: &Times) -> bool {
        self.epoch == LEFT || self.unchanged >= times.lease_timeout
    }
}
