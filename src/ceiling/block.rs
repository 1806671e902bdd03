//! Whether the provider blocks an egress address. It does not say so: how a block looks, and how
//! long it lasts, is not published. What one can see is that connections end, on this address while
//! others work, or right after it came near its ceiling.

use std::time::Duration;

use tokio::time::Instant;

/// So many connections in a row end without an answer …
const RUN: u32 = 10;
/// … over at least this time: less is a restart of one of the provider's machines.
const RUN_TIME: Duration = Duration::from_secs(1);
/// What counts as "while" and "right after".
const LATELY: Duration = Duration::from_secs(5);
/// How long a suspected address carries nothing, and how far apart probes then are.
const REST: Duration = Duration::from_mins(5);

/// Watches one address.
#[derive(Debug, Default)]
pub(super) struct BlockWatch {
    /// Connections that ended without an answer since the last answer, and since when.
    losses: u32,
    run_since: Option<Instant>,
    last_answer: Option<Instant>,
    last_near_ceiling: Option<Instant>,
    suspicion: Suspicion,
}

/// How much an address carries with one call more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// It comes near its ceiling.
    NearCeiling,
    /// Less.
    Low,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Suspicion {
    #[default]
    None,
    /// Nothing is sent before.
    Until(Instant),
    /// One call is on its way to find out.
    Probing,
}

impl BlockWatch {
    pub(super) fn suspected(&self) -> bool {
        self.suspicion != Suspicion::None
    }

    /// When this address may carry a call: `None`: when its probe has ended.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        match self.suspicion {
            Suspicion::None => Some(now),
            Suspicion::Until(at) => Some(at.max(now)),
            Suspicion::Probing => None,
        }
    }

    pub(super) fn may_carry(&self, now: Instant) -> bool {
        self.next(now).is_some_and(|at| at <= now)
    }

    /// It carries a call.
    pub(super) fn carries(&mut self, now: Instant, load: Load) {
        if load == Load::NearCeiling {
            self.last_near_ceiling = Some(now);
        }
        if self.suspected() {
            self.suspicion = Suspicion::Probing;
        }
    }

    /// A call was answered. Whether a suspicion is over.
    pub(super) fn answered(&mut self, now: Instant) -> bool {
        self.losses = 0;
        self.run_since = None;
        self.last_answer = Some(now);
        std::mem::take(&mut self.suspicion) != Suspicion::None
    }

    pub(super) fn answered_since(&self, then: Instant) -> bool {
        self.last_answer.is_some_and(|at| at >= then)
    }

    /// A call ended in a way that says nothing of a block, as by a time-out: a probe that did is
    /// not followed by another at once.
    pub(super) fn inconclusive(&mut self, now: Instant) {
        if self.suspicion == Suspicion::Probing {
            self.suspicion = Suspicion::Until(now + REST);
        }
    }

    /// A call never left. Whether it was a probe, which is then still debt.
    pub(super) fn probe_again(&mut self, now: Instant) -> bool {
        let probe = self.suspicion == Suspicion::Probing;
        if probe {
            self.suspicion = Suspicion::Until(now);
        }
        probe
    }

    /// When callers may count on this address: while a probe is on its way, as if it failed.
    pub(super) fn reopens(&self, now: Instant) -> Instant {
        self.next(now).unwrap_or(now + REST)
    }

    /// A connection ended without an answer. Whether this begins a suspicion; `others_work` is
    /// asked with the time since when another address must have had an answer.
    pub(super) fn lost(&mut self, now: Instant, others_work: impl FnOnce(Instant) -> bool) -> bool {
        if self.suspected() {
            self.suspicion = Suspicion::Until(now + REST);
            return false;
        }
        self.losses += 1;
        let since = *self.run_since.get_or_insert(now);
        if self.losses < RUN || now - since < RUN_TIME {
            return false;
        }
        let near = self.last_near_ceiling.is_some_and(|at| at + LATELY >= since);
        // An address that never had an answer may just be one that cannot be sent from.
        let suspect = near || others_work(since);
        if suspect {
            self.suspicion = Suspicion::Until(now + REST);
        }
        suspect
    }
}
