//! Permits: never over a ceiling, in any sliding second.
//!
//! [`Ceiling::request`] answers at the door: a permit, a place in the queue of waiting calls, or an honest
//! refusal. A [`Permit`] names the egress address and is good for one call. Every permit counts
//! against the account's window and against its egress address's.

mod block;
mod call_end;
mod call_time;
mod exchange;
mod free_leases;
mod lease;
mod leases;
mod limiter;
mod members;
#[cfg(test)]
mod model;
mod permit;
mod redis_clock;
mod redis_task;
mod reserve;
mod script_client;
mod shaper;
#[cfg(test)]
mod tests;
mod unanswered;
mod unread;
mod wait_queue;
mod window;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

pub use call_end::Read;
pub use exchange::Scope;
pub use limiter::{CeilingStatus, Decisions, Room, Status};
pub use members::{FleetStatus, Member, member_name};
pub use permit::{Pending, Permit};
pub use wait_queue::{Class, PermitRequest};
pub use window::WINDOW;

use crate::config;
use crate::fair_queue::Weights;
use limiter::Limiter;
use members::Members;
use wait_queue::PermitWaiter;

/// The two ceilings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CeilingKind {
    /// Calls of the whole account: excess is throttled.
    Account,
    /// Calls from one source address: excess gets it blocked.
    EgressIp,
}

impl CeilingKind {
    /// Both, in the order of [`Status`].
    pub const ALL: [Self; 2] = [Self::Account, Self::EgressIp];

    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::EgressIp => "egress_ip",
        }
    }

    /// The name of its policy in `RateLimit` fields.
    pub const fn policy(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::EgressIp => "egress-ip",
        }
    }
}

/// How the ceilings are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They are not.
    Alone,
    /// Through Redis.
    Shared,
    /// Redis does not answer: calls go on with permits that it counts as out.
    CutOff,
    /// Redis does not answer, and the leases have ended: nothing is sent.
    Closed,
}

impl Mode {
    /// All.
    pub const ALL: [Self; 4] = [Self::Alone, Self::Shared, Self::CutOff, Self::Closed];

    /// The word for it in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Shared => "shared",
            Self::CutOff => "cut_off",
            Self::Closed => "closed",
        }
    }
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its turn would come too late.
    #[error("a permit would be free in {wait:?}, later than the caller waits")]
    WaitTooLong {
        /// The ceiling that makes it wait.
        ceiling: CeilingKind,
        /// How long the wait would be.
        wait: Duration,
        /// When a caller as patient as this one would be let in.
        retry_after: Duration,
    },
    /// As many wait already as may.
    #[error("the queue of waiting calls is full")]
    QueueFull {
        /// When the first of them will have gone.
        retry_after: Duration,
    },
    /// The deadline passed while waiting.
    #[error("no permit came free before the deadline")]
    TimedOut,
}

/// What is known at start of calls that were made before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Processes before this one may have used everything a moment ago, and may have left calls
    /// without an answer. The first permit comes after one second, so that a crash loop is no source
    /// of calls; all but the reserve after the first answer.
    AfterOthers,
    /// The process before this one left these calls without an answer, and may have used everything
    /// a moment ago.
    After {
        /// By when they were sent.
        left: Vec<Left>,
        /// How long a call took there at most.
        call_timeout: Duration,
    },
    /// There was no call before: for an upstream that was started by us.
    Alone,
}

/// Calls that a process left without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// How long ago the last of them was sent, at least.
    pub ago: Duration,
    /// How many.
    pub calls: usize,
    /// How many of them had not ended when the process did, at most: a ledger also keeps room for calls
    /// that are about to begin.
    pub under_way: usize,
    /// Whether a call that was sent later has been answered.
    pub later_answered: bool,
}

/// How long permits may take to go back to Redis at the end.
const CLOSE: Duration = Duration::from_secs(1);

/// Hands out permits. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ceiling {
    shared: Arc<CeilingInner>,
}

#[derive(Debug)]
struct CeilingInner {
    limiter: Mutex<Limiter>,
    /// Wakes the dispatcher.
    changed: Arc<Notify>,
    /// Wakes the task that talks to Redis.
    wakeup: redis_task::Wakeup,
    members: Arc<Members>,
}

impl Drop for CeilingInner {
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}

impl CeilingInner {
    fn limiter(&self) -> MutexGuard<'_, Limiter> {
        // Nothing panics while holding it; a state that was whole before a panic still is.
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place at the door: a permit, or the right to one.
#[derive(Debug)]
pub enum Ticket {
    /// It was free.
    Ready(Permit),
    /// It will be, in the order of [`PermitRequest`]s.
    Waiting(Waiting),
}

/// A place in the queue of waiting calls.
#[derive(Debug)]
pub struct Waiting {
    grant: oneshot::Receiver<Permit>,
    send_by: Instant,
}

impl Ticket {
    /// The permit, when its turn has come.
    ///
    /// # Errors
    /// [`Refused::TimedOut`] when it is too late for a call to be answered by the deadline.
    pub async fn permit(self) -> Result<Permit, Refused> {
        match self {
            Self::Ready(permit) => Ok(permit),
            Self::Waiting(Waiting { grant, send_by }) => {
                match tokio::time::timeout_at(send_by, grant).await {
                    Ok(Ok(permit)) => Ok(permit),
                    // The dispatcher drops who is too late, too.
                    Ok(Err(_)) | Err(_) => Err(Refused::TimedOut),
                }
            }
        }
    }
}

impl Ceiling {
    /// Starts the dispatcher on the current runtime; it ends with the last clone. `egress` is the
    /// number of egress addresses, at least 1.
    pub fn start(
        config: &config::Ceilings,
        egress: usize,
        max_waiting: usize,
        start: Start,
    ) -> Self {
        let now = Instant::now();
        let opens = if start == Start::Alone { now } else { now + WINDOW };
        let mut limiter = Limiter::new(config, egress.max(1), max_waiting, opens);
        match start {
            Start::AfterOthers => limiter.inherit_unknown(config, now),
            Start::After { left, call_timeout } => limiter.inherit(config, left, call_timeout, now),
            Start::Alone => {}
        }
        let changed = Arc::new(Notify::new());
        let wakeup = redis_task::Wakeup::default();
        let (limiter, members) = (Mutex::new(limiter), Arc::default());
        let shared = CeilingInner { limiter, changed: Arc::clone(&changed), wakeup, members };
        let shared = Arc::new(shared);
        tokio::spawn(dispatch(Arc::downgrade(&shared), changed));
        Self { shared }
    }

    /// Names the egress addresses for the log, in their order; without it they are numbered.
    pub fn name_egress(&self, names: Vec<String>) {
        self.shared.limiter().name_egress(names);
    }

    /// Serves the calls of callers that wait by these weights. Before the first request.
    pub fn weigh(&self, weights: Weights) {
        self.shared.limiter().weigh(weights);
    }

    /// Shares the account's ceiling, and with a group also its egress addresses', with all sidecars
    /// of a fleet. Before the first request; a call lasts `call_timeout` at most.
    pub fn share(&self, config: &config::Ceilings, fleet: &config::Fleet, call_timeout: Duration) {
        self.share_as(config, fleet, call_timeout, None);
    }

    /// Shares the account's ceiling of one operation. Otherwise as [`Ceiling::share`].
    pub fn share_action(
        &self,
        config: &config::Ceilings,
        fleet: &config::Fleet,
        call_timeout: Duration,
        action: &str,
    ) {
        self.share_as(config, fleet, call_timeout, Some(action));
    }

    fn share_as(
        &self,
        config: &config::Ceilings,
        fleet: &config::Fleet,
        call_timeout: Duration,
        action: Option<&str>,
    ) {
        let account = config.account.map(|_| CeilingKind::Account);
        let egress = config.egress_ip.filter(|_| !fleet.egress_group.is_empty());
        let kinds: Vec<_> =
            account.into_iter().chain(egress.map(|_| CeilingKind::EgressIp)).collect();
        self.shared.limiter().share(config, kinds.clone(), call_timeout, fleet.expected_sidecars);
        let (shared, wakeup) = (Arc::downgrade(&self.shared), self.shared.wakeup.clone());
        let members = Arc::clone(&self.shared.members);
        let keys = redis_task::CeilingKeys::new(fleet, &kinds, action);
        tokio::spawn(members::run(members, shared.clone(), fleet.clone(), keys.own.clone()));
        tokio::spawn(redis_task::run(shared, fleet.clone(), keys, wakeup));
    }

    /// Sends nothing more, and gives back what is held of a fleet's ceilings.
    pub async fn close(&self) {
        {
            let mut limiter = self.shared.limiter();
            let Some(fleet) = &mut limiter.fleet else { return };
            fleet.close(Instant::now());
        }
        self.shared.wakeup.wake.notify_one();
        // Else the leases end by themselves.
        let ends =
            async { tokio::join!(self.shared.wakeup.done.notified(), self.shared.members.leave()) };
        drop(tokio::time::timeout(CLOSE, ends).await);
    }

    /// Asks for a permit for one call of normal urgency that should be answered by `deadline`.
    ///
    /// # Errors
    /// As [`Ceiling::ask`].
    pub fn request(&self, class: Class, deadline: Instant) -> Result<Ticket, Refused> {
        self.ask(&PermitRequest::new(class, deadline))
    }

    /// Asks for a permit for one call.
    ///
    /// # Errors
    /// At once, if its turn would come too late or the queue of waiting calls is full.
    pub fn ask(&self, asks: &PermitRequest) -> Result<Ticket, Refused> {
        let mut limiter = self.shared.limiter();
        let now = Instant::now();
        if asks.is_over(now) {
            return Err(Refused::TimedOut);
        }
        limiter.make_room_for(asks.caller, now);
        let first = limiter.queue_is_empty();
        if first && let Ok(egress) = limiter.take(now) {
            limiter.passed();
            drop(limiter);
            return Ok(Ticket::Ready(Permit::new(&self.shared, egress, now, None)));
        }
        // A call that is sent later may end after its caller has left.
        let send_by = limiter.send_by(now, asks);
        let ceiling = limiter.admit(now, send_by, asks)?;
        let (to, grant) = oneshot::channel();
        limiter.enqueue(asks, PermitWaiter { to, since: now, send_by, ceiling });
        let is_shared = limiter.fleet.is_some();
        drop(limiter);
        if first {
            self.shared.changed.notify_one();
        }
        if is_shared {
            self.shared.wakeup.wake.notify_one();
        }
        Ok(Ticket::Waiting(Waiting { grant, send_by }))
    }

    /// Whether a request now would be let in, without a place for it.
    ///
    /// # Errors
    /// As [`Ceiling::ask`].
    pub fn admits(&self, asks: &PermitRequest) -> Result<(), Refused> {
        let mut limiter = self.shared.limiter();
        let now = Instant::now();
        if asks.is_over(now) {
            return Err(Refused::TimedOut);
        }
        limiter.make_room_for(asks.caller, now);
        let send_by = limiter.send_by(now, asks);
        limiter.admit(now, send_by, asks).map(drop)
    }

    /// Takes up other ceilings without forgetting what was spent.
    pub fn resize(&self, config: &config::Ceilings) {
        self.shared.limiter().resize(config);
        self.shared.changed.notify_one();
    }

    /// What is used, withheld and waiting now.
    pub fn status(&self) -> Status {
        self.shared.limiter().status(Instant::now())
    }

    /// What `RateLimit` fields say now.
    pub fn room(&self) -> Room {
        self.shared.limiter().room(Instant::now())
    }

    /// The sidecars that share the ceilings, as last read; from now on they are read often. `None`: no
    /// ceiling is shared.
    pub fn fleet(&self) -> Option<FleetStatus> {
        self.fleet_with(Members::look)
    }

    /// The same, without reading them more often.
    pub fn fleet_as_known(&self) -> Option<FleetStatus> {
        self.fleet_with(Members::as_known)
    }

    fn fleet_with(&self, members: fn(&Members) -> FleetStatus) -> Option<FleetStatus> {
        let (opens_in, scope) = {
            let limiter = self.shared.limiter();
            let leases = limiter.fleet.as_ref()?;
            (leases.opens_in(Instant::now()), leases.scope())
        };
        Some(FleetStatus { scope, opens_in, ..members(&self.shared.members) })
    }

    /// How many sidecars share the ceilings, this one among them; 0: it is not known, or none do.
    pub fn fleet_size(&self) -> usize {
        self.shared.members.size()
    }
}

/// Gives permits to waiters, one at a time and in their order, as they become free. One task: were each
/// waiter to watch for itself, all would wake for every permit.
async fn dispatch(shared: Weak<CeilingInner>, changed: Arc<Notify>) {
    loop {
        let changed = changed.notified();
        tokio::pin!(changed);
        // Registers before the state is looked at, so that no change goes unnoticed.
        changed.as_mut().enable();
        // HeldPermits only while looking: the last handle or permit ends this task.
        let next = match shared.upgrade() {
            Some(shared) => grant(&shared),
            None => return,
        };
        match next {
            Next::Again => {}
            Next::At(at) => {
                tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = changed => {}
                }
            }
            Next::Changed => changed.await,
        }
    }
}

/// When the dispatcher has something to do next.
enum Next {
    Again,
    At(Instant),
    Changed,
}

fn grant(shared: &Arc<CeilingInner>) -> Next {
    let mut limiter = shared.limiter();
    let now = Instant::now();
    loop {
        limiter.drop_expired(now);
        if limiter.queue_is_empty() {
            return Next::Changed;
        }
        match limiter.take(now) {
            Ok(egress) => {
                let Some(waiter) = limiter.dequeue(now) else {
                    // What was to be served has given up: the permit goes back through the same lock.
                    let permit = Permit::new(shared, egress, now, None);
                    drop(limiter);
                    permit.unsent();
                    return Next::Again;
                };
                limiter.waited(waiter.ceiling);
                let wait = Some((waiter.ceiling, now - waiter.since));
                let permit = Permit::new(shared, egress, now, wait);
                if let Err(permit) = waiter.to.send(permit) {
                    // It hung up. Unlocked: the permit goes back through the same lock.
                    drop(limiter);
                    permit.unsent();
                    return Next::Again;
                }
            }
            Err(at) => {
                limiter.looks_at = at;
                return at.map_or(Next::Changed, Next::At);
            }
        }
    }
}
