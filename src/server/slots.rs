//! The connections that a server has at once, and which of them gives way to a new one.
//!
//! A client that opens connections and sends nothing would keep all others away for as long as an idle
//! connection lives. So, once every slot is taken, a connection that has had no request yet, or else none for
//! longest, is closed for a new one, but not before it has had the time to send one. One that has a request in progress is never closed for another.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use super::peer::Peer;
use crate::log_limiter::LogLimiter;

/// A connection without a request is not closed for another sooner: its client may be about to send one.
const GRACE: Duration = Duration::from_millis(100);

/// Connections that have had a request come behind those that have not: a client that reuses one may lose the
/// request that it is sending just then.
const SERVED: u64 = 1 << 63;

/// Without a request, or with a head that has not ended: what may be closed for a new connection.
const IDLE: u8 = 0;
const HEAD: u8 = 1;
/// A request is being answered; then its answer is being written.
const BUSY: u8 = 2;
const ANSWERED: u8 = 3;
/// It gives way to a new connection.
const CLOSED: u8 = 4;

/// How many of the slots the connections of one client machine may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerShare {
    /// All: a listener with one client.
    All,
    /// Half of them: a listener whose clients must not keep each other away.
    Half,
}

/// The slots of the listeners of one server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ConnectionSlots(Arc<SlotTable>);

#[derive(Debug)]
struct SlotTable {
    name: &'static str,
    max: usize,
    max_of_peer: usize,
    free: Arc<Semaphore>,
    taken: Mutex<BTreeMap<u64, Arc<Occupant>>>,
    /// Orders connections by the time from which they have had no request.
    sequence: AtomicU64,
    begun: Instant,
    /// New connections that wait until one of the others has no request.
    waiting: AtomicUsize,
    turned_silent: Notify,
    made_room: AtomicU64,
    refused: AtomicU64,
    lines: LogLimiter,
}

/// What the connections of one server are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionUsage {
    /// The server: `publish`, `telemetry` or `control`.
    pub listener: &'static str,
    /// Open connections.
    pub open: usize,
    /// The most at once.
    pub max: usize,
    /// Connections without a request that were closed for a new one.
    pub made_room: u64,
    /// New connections that were closed at once: their client machine held its share of the slots, all of
    /// them with requests in progress.
    pub over_share: u64,
}

#[derive(Debug)]
struct Occupant {
    peer: Peer,
    phase: AtomicU8,
    /// When its last request ended, or it was accepted: as a number of the sequence, with [`SERVED`], and in
    /// ms.
    since: AtomicU64,
    since_ms: AtomicU64,
    closed: Notify,
}

impl Occupant {
    fn is_silent(&self) -> bool {
        matches!(self.phase.load(SeqCst), IDLE | HEAD)
    }

    /// Moves on, if it is in one of these phases.
    fn turn(&self, from: &[u8], to: u8) -> bool {
        let next = |phase| from.contains(&phase).then_some(to);
        self.phase.fetch_update(SeqCst, SeqCst, next).is_ok()
    }
}

/// A slot in use; free again when dropped.
#[derive(Debug)]
pub(super) struct HeldSlot {
    key: u64,
    phase: ConnectionPhase,
    _permit: Option<OwnedSemaphorePermit>,
}

impl HeldSlot {
    /// What its connection is doing.
    pub(super) fn phase(&self) -> ConnectionPhase {
        self.phase.clone()
    }

    /// Ready once its connection must give way.
    pub(super) async fn closed(&self) {
        self.phase.occupant.closed.notified().await;
    }
}

impl Drop for HeldSlot {
    fn drop(&mut self) {
        self.phase.slots.taken().remove(&self.key);
    }
}

impl ConnectionSlots {
    /// So many, for the listeners of the server with this name.
    pub fn new(name: &'static str, max: usize, share: PeerShare) -> Self {
        let max_of_peer = match share {
            PeerShare::All => usize::MAX,
            PeerShare::Half => max.div_ceil(2),
        };
        Self(Arc::new(SlotTable {
            name,
            max,
            max_of_peer,
            free: Arc::new(Semaphore::new(max)),
            taken: Mutex::default(),
            sequence: AtomicU64::new(0),
            begun: Instant::now(),
            waiting: AtomicUsize::new(0),
            turned_silent: Notify::new(),
            made_room: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            lines: LogLimiter::new(1),
        }))
    }

    /// How they are used now.
    pub fn usage(&self) -> ConnectionUsage {
        let slots = &self.0;
        ConnectionUsage {
            listener: slots.name,
            open: slots.taken().len(),
            max: slots.max,
            made_room: slots.made_room.load(SeqCst),
            over_share: slots.refused.load(SeqCst),
        }
    }

    /// A slot for a new connection of this peer, as soon as a connection without a request can give way.
    /// `None`: the peer's share is in use, and all of it has requests in progress.
    pub(super) async fn take(&self, peer: Peer) -> Option<HeldSlot> {
        let slots = &self.0;
        let permit = if !slots.has_share(peer) {
            slots.permit().await
        } else if slots.close_silent(|other| other == peer, Duration::ZERO) == Vacancy::Made {
            Arc::clone(&slots.free).acquire_owned().await.ok()
        } else {
            slots.refused.fetch_add(1, SeqCst);
            return None;
        };
        let since = slots.sequence.fetch_add(1, SeqCst);
        let occupant = Arc::new(Occupant {
            peer,
            phase: AtomicU8::new(IDLE),
            since: AtomicU64::new(since),
            since_ms: AtomicU64::new(slots.elapsed_ms()),
            closed: Notify::new(),
        });
        slots.taken().insert(since, Arc::clone(&occupant));
        let phase = ConnectionPhase { occupant, slots: Arc::clone(slots) };
        Some(HeldSlot { key: since, phase, _permit: permit })
    }
}

impl SlotTable {
    fn taken(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Occupant>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_share(&self, peer: Peer) -> bool {
        if self.max_of_peer >= self.max {
            return false;
        }
        let holds = |occupant: &&Arc<Occupant>| {
            occupant.peer == peer && occupant.phase.load(SeqCst) != CLOSED
        };
        self.taken().values().filter(holds).count() >= self.max_of_peer
    }

    /// A free slot, or that of a connection that gives way; waits while all have requests in progress.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let _waiting = WaitingConnection::of(&self.waiting);
        loop {
            let free = Arc::clone(&self.free);
            if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
                return Some(permit);
            }
            // Before the search, so that none that turns silent after it is missed.
            let silent = self.turned_silent.notified();
            let later = match self.close_silent(|_| true, GRACE) {
                Vacancy::Made => return free.acquire_owned().await.ok(),
                Vacancy::At(ms) => Some(self.begun + Duration::from_millis(ms)),
                Vacancy::None => None,
            };
            let later = async {
                match later {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                permit = free.acquire_owned() => return permit.ok(),
                () = silent => {}
                () = later => {}
            }
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Makes the connection give way that has had no request at all, or else none for longest, among those
    /// of these peers, if that is this long.
    fn close_silent(&self, of: impl Fn(Peer) -> bool, grace: Duration) -> Vacancy {
        let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let taken = self.taken();
        let silent = || taken.values().filter(|one| of(one.peer) && one.is_silent());
        while let Some(oldest) = silent().min_by_key(|one| one.since.load(SeqCst)) {
            let may_go = oldest.since_ms.load(SeqCst) + grace;
            if self.elapsed_ms() < may_go {
                return Vacancy::At(may_go);
            }
            // Else its request came just now.
            if oldest.turn(&[IDLE, HEAD], CLOSED) {
                oldest.closed.notify_one();
                drop(taken);
                self.count();
                return Vacancy::Made;
            }
        }
        Vacancy::None
    }

    fn count(&self) {
        self.made_room.fetch_add(1, SeqCst);
        if let Some(suppressed) = self.lines.next() {
            tracing::warn!(
                listener = self.name,
                max = self.max,
                suppressed,
                "no slot is free for a new connection: the one without a request for longest was closed; \
                 look for a client that opens many connections"
            );
        }
    }
}

/// Whether there is room for a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vacancy {
    /// One is being closed for it.
    Made,
    /// One can be closed for it then, in ms since the table's start.
    At(u64),
    /// All have requests in progress.
    None,
}

/// Counts a new connection that waits.
struct WaitingConnection<'a>(&'a AtomicUsize);

impl<'a> WaitingConnection<'a> {
    fn of(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, SeqCst);
        Self(count)
    }
}

impl Drop for WaitingConnection<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// What a connection is doing: idle, reading a head, answering, or writing an answer. The service and
/// the bytes set it.
#[derive(Debug, Clone)]
pub(super) struct ConnectionPhase {
    occupant: Arc<Occupant>,
    slots: Arc<SlotTable>,
}

/// Which timer holds for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timed {
    Idle,
    Head,
    /// None: a request is being answered.
    Busy,
}

/// While it lives, a request is being answered and no timer runs.
pub(super) struct Busy(ConnectionPhase);

impl ConnectionPhase {
    /// Its request begins. `None`: it came too late, and the connection is being closed.
    pub(super) fn busy(&self) -> Option<Busy> {
        let begun = self.occupant.turn(&[IDLE, HEAD, BUSY, ANSWERED], BUSY);
        begun.then(|| Busy(self.clone()))
    }

    /// Bytes have come; those of a body are no head.
    pub(super) fn received(&self) {
        self.occupant.turn(&[IDLE], HEAD);
    }

    /// All that there was to write is written. `next`: whether a head has begun.
    pub(super) fn flushed(&self, next: Timed) {
        if self.occupant.phase.load(SeqCst) != ANSWERED {
            return;
        }
        let ended = self.slots.sequence.fetch_add(1, SeqCst);
        self.occupant.since.store(ended | SERVED, SeqCst);
        self.occupant.since_ms.store(self.slots.elapsed_ms(), SeqCst);
        let next = if next == Timed::Head { HEAD } else { IDLE };
        if self.occupant.turn(&[ANSWERED], next) && self.slots.waiting.load(SeqCst) > 0 {
            self.slots.turned_silent.notify_waiters();
        }
    }

    /// Its last answer is written, and the client is still sending: it ends by itself, soon.
    pub(super) fn lingers(&self) {
        self.occupant.turn(&[IDLE, HEAD, ANSWERED], BUSY);
    }

    pub(super) fn timed(&self) -> Timed {
        match self.occupant.phase.load(SeqCst) {
            HEAD => Timed::Head,
            BUSY => Timed::Busy,
            _ => Timed::Idle,
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.occupant.turn(&[BUSY], ANSWERED);
    }
}

#[cfg(test)]
mod tests;
