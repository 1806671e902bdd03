//! The right to one call.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::leases::Lease;
use super::state::{Ended, Taken};
use super::unanswered::Key;
use super::{Kind, Shared};

/// Where a call goes to whose address is not known: such calls share one.
const UNKNOWN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));

/// The right to one call from one egress address. Dropped, its call has ended without an answer; before
/// [`Permit::goes_to`] nothing of it was sent, and the permit is free again.
#[derive(Debug)]
#[must_use = "a permit that is dropped after its call has begun is spent"]
pub struct Permit {
    shared: Arc<Shared>,
    egress: usize,
    /// Where the ceilings are shared.
    lease: Option<Lease>,
    taken: Instant,
    waited: Option<(Kind, Duration)>,
    to: SocketAddr,
    end: End,
    ended: bool,
}

/// Whether the provider may still read a call whose connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// Nothing of the call was sent.
    Never,
    /// The provider closed the connection in order: it has read the call, or never will.
    Over,
    /// The connection was reset, which anything on the way may do: what had arrived is still there.
    Possible,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Without an answer: the provider may read it yet.
    Unanswered,
    Answered,
    Throttled,
    Unsent,
    /// The other side ended or refused the connection.
    TransportError(Read),
}

/// A call that ended without an answer, while its connection is still open.
#[derive(Debug)]
pub struct Pending {
    shared: Arc<Shared>,
    key: Key,
    over: oneshot::Receiver<()>,
}

impl Pending {
    /// Resolves when the call's answer would tell nothing new: close its connection then.
    pub async fn tells_nothing(&mut self) {
        // The other end is dropped, never used.
        drop((&mut self.over).await);
    }

    /// The answer has arrived after all: the call counts for one more second.
    pub fn answered(self) {
        self.ended(Late::Answered);
    }

    /// The provider closed the connection in order: the call counts for one more second.
    pub fn over(self) {
        self.ended(Late::Over);
    }

    fn ended(self, late: Late) {
        let mut state = self.shared.state();
        let wake = state.ended_late(self.key, late, Instant::now());
        drop(state);
        if wake {
            self.shared.changed.notify_one();
        }
    }
}

/// How a call ended after it had been given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// With an answer: the provider goes on.
    Answered,
    /// Its connection was closed in order.
    Over,
}

impl Permit {
    pub(super) fn new(
        shared: &Arc<Shared>,
        permit: Taken,
        taken: Instant,
        waited: Option<(Kind, Duration)>,
    ) -> Self {
        let Taken { egress, lease } = permit;
        let (shared, to, end) = (Arc::clone(shared), UNKNOWN, End::Unsent);
        Self { shared, egress, lease, taken, waited, to, end, ended: false }
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

    /// The call is about to be written to this address of the provider's. From now on the provider may
    /// have read it.
    pub fn goes_to(&mut self, address: SocketAddr) {
        self.to = address;
        self.end = End::Unanswered;
    }

    /// The other side refused, reset or ended the connection.
    pub fn lost(mut self, read: Read) {
        self.end = End::TransportError(read);
    }

    /// Nothing of the call was sent: the permit is free again.
    pub fn unsent(mut self) {
        self.end = End::Unsent;
    }

    /// There was no answer in time, and the connection is still open: a late answer shows that the
    /// provider has read the call.
    pub fn unanswered(mut self) -> Option<Pending> {
        self.end = End::Unanswered;
        let (key, over) = self.give_back()?;
        Some(Pending { shared: Arc::clone(&self.shared), key, over })
    }

    fn give_back(&mut self) -> Option<(Key, oneshot::Receiver<()>)> {
        self.ended = true;
        let mut state = self.shared.state();
        // Under the lock, so that windows see answers in order of time.
        let now = Instant::now();
        if matches!(self.end, End::Answered | End::Throttled) {
            state.call_took(now - self.taken);
        }
        let lease = self.lease.take();
        let call = Ended { egress: self.egress, lease, to: self.to, taken: self.taken };
        let (wake, pending) = state.ended(call, self.end, now);
        drop(state);
        if wake {
            self.shared.changed.notify_one();
        }
        pending
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.ended {
            self.give_back();
        }
    }
}
