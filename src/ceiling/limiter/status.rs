//! What is used, withheld and waiting: for the page, metrics and `RateLimit` fields.

use std::time::Duration;

use tokio::time::Instant;

use super::Limiter;
use crate::ceiling::window::Window;
use crate::ceiling::{CeilingKind, Mode};

/// What became of the requests for permits, by ceiling.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Decisions {
    /// Let through at once.
    pub passed: u64,
    /// Let through after a wait.
    pub waited: u64,
    /// Refused at the door.
    pub refused: u64,
}

/// One ceiling now.
#[derive(Debug, Clone, PartialEq)]
pub struct CeilingStatus {
    /// The account's, or that of the egress addresses.
    pub kind: CeilingKind,
    /// Calls per second; `None`: no ceiling. Of all egress addresses together, if they are several.
    pub limit: Option<u32>,
    /// Whether a fleet shares it.
    pub shared: bool,
    /// Calls in flight, answered within the last second, or ended without an answer and perhaps not
    /// read yet.
    pub used: usize,
    /// Those of them that ended without an answer.
    pub unanswered: usize,
    /// What this sidecar may use of it now, calls per second; `None`: any number.
    pub share: Option<usize>,
    /// Permits withheld since the provider throttled calls; where the ceiling is shared, of all.
    pub withheld: usize,
    /// Calls that could be made now; `None`: any number.
    pub free: Option<usize>,
    /// What became of requests.
    pub decisions: Decisions,
}

/// Both ceilings now.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// In the order of [`CeilingKind::ALL`].
    pub ceilings: [CeilingStatus; 2],
    /// Messages in the queue of waiting calls.
    pub waiting: usize,
    /// How long the first of them has waited.
    pub longest_wait: Duration,
    /// When one more call could be made.
    pub next_in: Duration,
    /// Egress addresses that the provider probably blocks, in the configuration's order.
    pub blocked: Vec<bool>,
    /// For how long a call without an answer counts at most.
    pub unanswered_max: Duration,
    /// How the ceilings are shared.
    pub mode: Mode,
}

/// What `RateLimit` fields say of the ceilings now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Calls per second, in the order of [`CeilingKind::ALL`]; `None`: no ceiling.
    pub limits: [Option<u32>; 2],
    /// The ceiling with the fewest calls that could be made now, and how many; `None`: there is no ceiling.
    pub tightest: Option<(CeilingKind, usize)>,
    /// Messages in the queue of waiting calls.
    pub waiting: usize,
    /// When one more call could be made.
    pub next_in: Duration,
}

impl Limiter {
    /// Calls that could be made now; `None`: any number.
    fn free_of(&mut self, kind: CeilingKind, now: Instant) -> Option<usize> {
        self.limits[kind as usize]?;
        let unused = match kind {
            CeilingKind::Account => self.account.unused(now),
            CeilingKind::EgressIp => {
                let unused = self.egress.iter_mut().map(|egress| egress.window.unused(now));
                unused.fold(0, usize::saturating_add)
            }
        };
        let fleet = self.fleet.as_ref().filter(|_| self.kinds.contains(&kind));
        Some(fleet.map_or(unused, |fleet| fleet.free(now).min(unused)))
    }

    /// A part of [`Self::status`] that each answer to a caller has, so it allocates nothing.
    pub(in crate::ceiling) fn room(&mut self, now: Instant) -> Room {
        self.expire_unanswered(now);
        let free = |kind| Some((kind, self.free_of(kind, now)?));
        let tightest = CeilingKind::ALL.into_iter().filter_map(free).min_by_key(|(_, free)| *free);
        let waiting = self.queue.len();
        let (_, next) = self.estimate(waiting, now);
        Room { limits: self.limits, tightest, waiting, next_in: next - now }
    }

    pub(in crate::ceiling) fn status(&mut self, now: Instant) -> Status {
        self.expire_unanswered(now);
        let free = CeilingKind::ALL.map(|kind| self.free_of(kind, now));
        let counts = |w: &mut Window| (w.used(now), w.without_answer(), w.withheld(now));
        let account = counts(&mut self.account);
        let egress = self.egress.iter_mut().map(|egress| counts(&mut egress.window));
        let egress = egress.fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
        let (_, next) = self.estimate(self.queue.len(), now);
        let ceiling = |kind: CeilingKind, (used, unanswered, withheld)| {
            let limit = self.limits[kind as usize];
            let free = free[kind as usize];
            let decisions = self.decisions[kind as usize];
            let fleet = self.fleet.as_ref().filter(|_| self.kinds.contains(&kind));
            let (withheld, share) = match fleet {
                Some(fleet) if kind == CeilingKind::Account => {
                    (fleet.withheld(), Some(fleet.held()))
                }
                Some(fleet) => (withheld, Some(fleet.held())),
                None => (withheld, limit.map(|n| (n as usize).saturating_sub(withheld))),
            };
            let shared = fleet.is_some();
            CeilingStatus {
                kind,
                limit,
                shared,
                used,
                unanswered,
                share,
                withheld,
                free,
                decisions,
            }
        };
        Status {
            ceilings: [
                ceiling(CeilingKind::Account, account),
                ceiling(CeilingKind::EgressIp, egress),
            ],
            waiting: self.queue.len(),
            longest_wait: self.queue.longest(now),
            next_in: next - now,
            blocked: self.egress.iter().map(|egress| egress.watch.suspected()).collect(),
            unanswered_max: self.unanswered.bounds().max,
            mode: self.fleet.as_ref().map_or(Mode::Alone, |fleet| fleet.mode(now)),
        }
    }
}
