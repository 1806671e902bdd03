//! The right to one call.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::call_end::{CallEnd, EndedCall, LateEnd, Read, TakenPermit};
use super::lease::Lease;
use super::unanswered::CallKey;
use super::{CeilingInner, CeilingKind};

/// Where a call goes to whose address is not known: such calls share one.
const UNKNOWN: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));

/// The right to one call from one egress address. Dropped, its call has ended without an answer; before
/// [`Permit::goes_to`] nothing of it was sent, and the permit is free again.
#[derive(Debug)]
#[must_use = "a permit that is dropped after its call has begun is spent"]
pub struct Permit {
    shared: Arc<CeilingInner>,
    egress: usize,
    /// Where the ceilings are shared.
    lease: Option<Lease>,
    taken: Instant,
    waited: Option<(CeilingKind, Duration)>,
    to: SocketAddr,
    end: CallEnd,
    ended: bool,
    /// Of the ceiling of its operation, where that has one of its own. It ends as this one does.
    own: Option<Box<Permit>>,
}

/// A call that ended without an answer, while its connection is still open.
#[derive(Debug)]
pub struct Pending {
    shared: Arc<CeilingInner>,
    key: CallKey,
    over: oneshot::Receiver<()>,
    own: Option<Box<Pending>>,
}

impl Pending {
    /// Resolves when the call's answer would tell nothing new: close its connection then.
    pub async fn tells_nothing(&mut self) {
        // The other ends are dropped, never used.
        drop((&mut self.over).await);
        if let Some(own) = &mut self.own {
            drop((&mut own.over).await);
        }
    }

    /// The answer has arrived after all: the call counts for one more second.
    pub fn answered(self) {
        self.ended(LateEnd::Answered);
    }

    /// The provider closed the connection in order: the call counts for one more second.
    pub fn over(self) {
        self.ended(LateEnd::Over);
    }

    fn ended(self, late: LateEnd) {
        if let Some(own) = self.own {
            own.ended(late);
        }
        let mut limiter = self.shared.limiter();
        let wake = limiter.ended_late(self.key, late, Instant::now());
        drop(limiter);
        if wake {
            self.shared.changed.notify_one();
        }
    }
}

impl Permit {
    pub(super) fn new(
        shared: &Arc<CeilingInner>,
        permit: TakenPermit,
        taken: Instant,
        waited: Option<(CeilingKind, Duration)>,
    ) -> Self {
        let TakenPermit { egress, lease } = permit;
        let (shared, to, end) = (Arc::clone(shared), UNKNOWN, CallEnd::Unsent);
        Self { shared, egress, lease, taken, waited, to, end, ended: false, own: None }
    }

    /// The right to a call of an operation that has a ceiling of its own, and this permit of it.
    pub fn with_own(mut self, mut own: Self) -> Self {
        // The call is sent no earlier: what it has waited since is no part of how long calls take.
        own.taken = own.taken.max(self.taken);
        self.own = Some(Box::new(own));
        self
    }

    /// Whether a call may still begin: to be asked right before it is written. A process that was
    /// stopped meanwhile does not know how late it is.
    pub fn holds(&self) -> bool {
        let holds = self.lease.as_ref().is_none_or(|lease| lease.holds(Instant::now()));
        holds && self.own.as_ref().is_none_or(|own| own.holds())
    }

    /// Which egress address to send from: an index into `upstream.egress_addresses`.
    pub fn egress(&self) -> usize {
        self.egress
    }

    /// How long it was waited for, and because of which ceiling; `None` if it was free.
    pub fn waited(&self) -> Option<(CeilingKind, Duration)> {
        self.waited
    }

    /// The call was answered: it counts for one more second.
    pub fn answered(self) {
        self.end_as(CallEnd::Answered);
    }

    /// The call was answered with push-back: it counts, and some permits rest. Those of the operation's own
    /// ceiling, where it has one: the provider counts the calls of each operation.
    pub fn throttled(mut self) {
        match self.own.take() {
            Some(own) => {
                own.end_as(CallEnd::Throttled);
                self.end_as(CallEnd::Answered);
            }
            None => self.end_as(CallEnd::Throttled),
        }
    }

    /// The call is about to be written to this address of the provider's. From now on the provider may
    /// have read it.
    pub fn goes_to(&mut self, address: SocketAddr) {
        self.to = address;
        self.end = CallEnd::Unanswered;
        if let Some(own) = &mut self.own {
            own.goes_to(address);
        }
    }

    /// The other side refused, reset or ended the connection.
    pub fn lost(self, read: Read) {
        self.end_as(CallEnd::ConnectionLost(read));
    }

    /// Nothing of the call was sent: the permit is free again.
    pub fn unsent(self) {
        self.end_as(CallEnd::Unsent);
    }

    fn end_as(mut self, end: CallEnd) {
        if let Some(own) = self.own.take() {
            own.end_as(end);
        }
        self.end = end;
    }

    /// There was no answer in time, and the connection is still open: a late answer shows that the
    /// provider has read the call.
    pub fn unanswered(mut self) -> Option<Pending> {
        self.end = CallEnd::Unanswered;
        let own = self.own.take().and_then(|own| own.unanswered()).map(Box::new);
        let (key, over) = self.give_back()?;
        Some(Pending { shared: Arc::clone(&self.shared), key, over, own })
    }

    fn give_back(&mut self) -> Option<(CallKey, oneshot::Receiver<()>)> {
        self.ended = true;
        let mut limiter = self.shared.limiter();
        // Under the lock, so that windows see answers in order of time.
        let now = Instant::now();
        if matches!(self.end, CallEnd::Answered | CallEnd::Throttled) {
            limiter.call_took(now - self.taken);
        }
        let lease = self.lease.take();
        let call = EndedCall { egress: self.egress, lease, to: self.to, taken: self.taken };
        let (wake, pending) = limiter.ended(call, self.end, now);
        drop(limiter);
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
