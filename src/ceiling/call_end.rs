//! What a permit takes from the ceilings, and how its call ends.

use std::net::SocketAddr;

use tokio::time::Instant;

use super::lease::Lease;

/// What a call takes.
#[derive(Debug)]
pub(super) struct TakenPermit {
    pub(super) egress: usize,
    /// Where the ceilings are shared.
    pub(super) lease: Option<Lease>,
}

/// A call that has ended, and what it had taken.
#[derive(Debug)]
pub(super) struct EndedCall {
    pub(super) egress: usize,
    pub(super) lease: Option<Lease>,
    pub(super) to: SocketAddr,
    /// When its permit was taken: the call was sent no earlier.
    pub(super) taken: Instant,
}

/// Whether the provider may still read a call whose connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// Nothing of the call was sent.
    Never,
    /// The provider closed the connection in order: it has read the call, or never will.
    Over,
    /// The connection was reset, which any device on the way may do: the provider may still read
    /// what had arrived.
    Possible,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallEnd {
    /// Without an answer: the provider may read it yet.
    Unanswered,
    Answered,
    Throttled,
    Unsent,
    /// The other side ended or refused the connection.
    ConnectionLost(Read),
}

/// How a call ended after it had been given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LateEnd {
    /// With an answer: the provider goes on.
    Answered,
    /// Its connection was closed in order.
    Over,
}
