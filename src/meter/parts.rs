//! What this sidecar has in hand of the budgets that its fleet shares.
//!
//! The fleet's Redis has how many messages of a budget were granted in its period, to all sidecars. A message takes its
//! place from the part that was granted to its sidecar before, so no call waits for Redis, but for the first one after a
//! pause. What is granted counts as spent until it is given back: so a sidecar that dies takes its part with it, and no
//! message is ever over the budget. Pure: the caller passes the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::period::Span;
use super::recent_rate::RecentRate;

/// Without an answer of Redis for so long, a sidecar is cut off.
const CUT_OFF: Duration = Duration::from_secs(3);
/// How long a period is remembered in Redis after its end.
const REMEMBERED: Duration = Duration::from_hours(48);

/// What is done without a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WithoutPart {
    /// Messages are counted, and never refused.
    Count,
    /// They are refused.
    Refuse,
    /// They are refused, but while Redis does not answer.
    RefuseUnlessCutOff,
}

/// Why there is no place for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// The fleet has used up the budget.
    UsedUp,
    /// Redis has not granted a part yet.
    NoPartYet,
    /// Redis does not answer.
    CutOff,
}

/// What is asked of Redis for one budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BudgetClaim {
    /// Its place among the shared budgets.
    pub(super) budget: usize,
    pub(super) name: String,
    /// Messages of a period.
    pub(super) limit: u64,
    pub(super) period: Span,
    /// What the fleet had of it at the last answer, as far as this sidecar knows.
    pub(super) seen: u64,
    /// Messages that were counted without a part; negative: that were not billed.
    pub(super) counted: i64,
    /// Given back of the part.
    pub(super) back: u64,
    /// How many more are wanted in hand.
    pub(super) want: u64,
}

impl BudgetClaim {
    /// How long after this Unix second the budget's period is remembered: a clock may be set back.
    pub(super) fn life(&self, second: i64) -> Duration {
        let left = self.period.end.saturating_sub(second);
        Duration::from_secs(u64::try_from(left).unwrap_or(0)) + REMEMBERED
    }
}

/// The part of one budget.
#[derive(Debug)]
pub(super) struct Part {
    name: String,
    limit: u64,
    period: Span,
    without: WithoutPart,
    in_hand: u64,
    /// Counted without a part, and not in Redis yet.
    counted: i64,
    seen: u64,
    is_used_up: bool,
    /// Messages that have no place and wait for one.
    waiting: u64,
    /// Of a whole second: what is in hand is lost if the process dies.
    rate: RecentRate<1_000>,
    /// With so many in hand, the next claim is due: half of what was wanted is used.
    due_at: u64,
    answered_at: Instant,
}

impl Part {
    /// Of a budget of which nothing is known.
    pub(super) fn new(
        name: String,
        limit: u64,
        period: Span,
        without: WithoutPart,
        now: Instant,
    ) -> Self {
        Self {
            name,
            limit,
            period,
            without,
            in_hand: 0,
            counted: 0,
            seen: 0,
            is_used_up: false,
            waiting: 0,
            rate: RecentRate::default(),
            due_at: 0,
            answered_at: now,
        }
    }

    /// What the ledger has of this sidecar's messages: the fleet has at least as many.
    pub(super) fn restore(&mut self, messages: u64) {
        self.seen = self.seen.saturating_add(messages);
    }

    /// A period has begun: nothing is in hand of it.
    pub(super) fn begin(&mut self, period: Span) {
        self.period = period;
        (self.in_hand, self.counted, self.seen, self.due_at) = (0, 0, 0, 0);
        self.is_used_up = false;
    }

    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
        self.is_used_up &= self.seen >= limit;
    }

    /// Whether there may be a place for a message, or there will be in a moment.
    pub(super) fn admits(&self, now: Instant) -> Result<(), NoPlace> {
        match self.has_place(now) {
            Err(NoPlace::NoPartYet) => Ok(()),
            other => other,
        }
    }

    fn has_place(&self, now: Instant) -> Result<(), NoPlace> {
        let is_cut_off = now.saturating_duration_since(self.answered_at) > CUT_OFF;
        match self.without {
            WithoutPart::Count => Ok(()),
            _ if self.in_hand > 0 => Ok(()),
            WithoutPart::RefuseUnlessCutOff if is_cut_off && !self.is_used_up => Ok(()),
            _ if self.is_used_up => Err(NoPlace::UsedUp),
            _ if is_cut_off => Err(NoPlace::CutOff),
            _ => Err(NoPlace::NoPartYet),
        }
    }

    /// Takes a place. Returns whether a claim is due.
    pub(super) fn take(&mut self, now: Instant) -> Result<bool, NoPlace> {
        if let Err(reason) = self.has_place(now) {
            self.waiting += u64::from(reason == NoPlace::NoPartYet);
            return Err(reason);
        }
        self.rate.add(1);
        if self.without == WithoutPart::Count || self.in_hand == 0 {
            self.counted += 1;
            return Ok(false);
        }
        self.in_hand -= 1;
        Ok(self.in_hand == self.due_at)
    }

    /// Whether a message has to wait for a part; then it is counted as one that waits.
    pub(super) fn keeps_waiting(&mut self, now: Instant) -> bool {
        let waits = self.has_place(now) == Err(NoPlace::NoPartYet);
        self.waiting += u64::from(waits);
        waits
    }

    /// A message that took its place in this Unix second was not billed for certain.
    pub(super) fn give_back(&mut self, taken_in: i64) {
        // The place was one of a period that is over.
        if !self.period.contains(taken_in) {
            return;
        }
        if self.without == WithoutPart::Count {
            self.counted -= 1;
        } else {
            self.in_hand += 1;
        }
    }

    /// A place that was taken a moment ago is not needed.
    pub(super) fn release(&mut self) {
        self.rate.remove();
        if self.without == WithoutPart::Count {
            self.counted -= 1;
        } else {
            self.in_hand += 1;
        }
    }

    fn claim(&mut self, budget: usize, now: Instant, phase: ClaimPhase) -> BudgetClaim {
        if phase == ClaimPhase::First {
            return self.claimed(budget);
        }
        let rate = self.rate.look(now);
        let wanted = match (self.without, phase) {
            (WithoutPart::Count, _) | (_, ClaimPhase::Closing) => 0,
            _ => rate.max(self.waiting),
        };
        // What is more than twice of it is given back, so that others have it.
        let back = if self.in_hand > wanted.saturating_mul(2) { self.in_hand - wanted } else { 0 };
        self.in_hand -= back;
        let want = if phase == ClaimPhase::Reconnected { 0 } else { wanted };
        BudgetClaim {
            counted: std::mem::take(&mut self.counted),
            back,
            want: want.saturating_sub(self.in_hand),
            ..self.claimed(budget)
        }
    }

    /// Nothing, but what is known.
    fn claimed(&self, budget: usize) -> BudgetClaim {
        BudgetClaim {
            budget,
            name: self.name.clone(),
            limit: self.limit,
            period: self.period,
            seen: self.seen,
            counted: 0,
            back: 0,
            want: 0,
        }
    }

    /// Redis has done what was claimed: so many are granted, and the fleet has so many in all.
    fn granted(&mut self, claim: &BudgetClaim, grant: u64, total: u64, now: Instant) {
        self.answered_at = now;
        if claim.period != self.period {
            return;
        }
        self.in_hand = self.in_hand.saturating_add(grant);
        self.seen = total;
        self.waiting = 0;
        self.due_at = self.in_hand / 2;
        self.is_used_up = total >= self.limit && self.in_hand == 0;
    }

    /// Redis has not done it.
    fn undone(&mut self, claim: &BudgetClaim) {
        if claim.period == self.period {
            self.in_hand += claim.back;
            self.counted += claim.counted;
        }
    }

    /// Spent by the fleet, and in hand here.
    pub(super) fn used(&self) -> (u64, u64) {
        let seen = self.seen.saturating_add_signed(self.counted);
        (seen.saturating_sub(self.in_hand), self.in_hand)
    }
}

/// When a claim is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimPhase {
    /// The first write to a Redis that has none of this sidecar: it only says what is known.
    First,
    Running,
    /// Another server may have come: first it is to learn from all sidecars what was granted.
    Reconnected,
    /// No messages follow.
    Closing,
}

/// The parts of all shared budgets.
#[derive(Debug, Default)]
pub(super) struct Parts {
    by_budget: Mutex<Vec<Part>>,
    /// Redis has answered.
    pub(super) changed: Notify,
    /// More was wanted than was granted: asking again at once is of no use.
    is_dry: AtomicBool,
}

impl Parts {
    fn lock(&self) -> MutexGuard<'_, Vec<Part>> {
        self.by_budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one, and returns its place.
    pub(super) fn add(&self, part: Part) -> usize {
        let mut parts = self.lock();
        parts.push(part);
        parts.len() - 1
    }

    /// Looks at one, or changes it.
    pub(super) fn with<T>(&self, budget: usize, look: impl FnOnce(&mut Part) -> T) -> T {
        look(&mut self.lock()[budget])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Whether Redis granted nothing that was wanted.
    pub(super) fn is_dry(&self) -> bool {
        self.is_dry.load(Ordering::Relaxed)
    }

    /// What to ask of Redis.
    pub(super) fn claims(&self, now: Instant, phase: ClaimPhase) -> Vec<BudgetClaim> {
        let mut parts = self.lock();
        parts.iter_mut().enumerate().map(|(at, part)| part.claim(at, now, phase)).collect()
    }

    /// Redis has done these: by claim, what it has granted, and what the fleet has in all.
    pub(super) fn granted(&self, claims: &[BudgetClaim], answers: &[(u64, u64)], now: Instant) {
        let mut parts = self.lock();
        let mut is_dry = false;
        for (claim, (grant, total)) in claims.iter().zip(answers) {
            let part = &mut parts[claim.budget];
            is_dry |= *grant == 0 && (claim.want > 0 || part.waiting > 0);
            part.granted(claim, *grant, *total, now);
        }
        drop(parts);
        self.is_dry.store(is_dry, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// Redis has not done these.
    pub(super) fn undone(&self, claims: &[BudgetClaim]) {
        let mut parts = self.lock();
        for claim in claims {
            parts[claim.budget].undone(claim);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Span = Span { start: 0, end: 3_600 };

    fn part(limit: u64, without: WithoutPart, now: Instant) -> Part {
        Part::new("all".to_owned(), limit, HOUR, without, now)
    }

    fn claim(part: &mut Part, now: Instant) -> BudgetClaim {
        part.claim(0, now, ClaimPhase::Running)
    }

    /// A first message waits, the next ones have a part; what is not needed goes back.
    #[test]
    fn a_part_follows_the_rate() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut part = part(1_000, WithoutPart::Refuse, start);
        assert_eq!(part.take(start), Err(NoPlace::NoPartYet));
        assert_eq!(part.admits(start), Ok(()), "in a moment");
        let first = claim(&mut part, start);
        assert_eq!((first.want, first.back, first.seen), (1, 0, 0));
        part.granted(&first, 1, 1, start);
        assert!(part.take(start).is_ok());
        for second in 1..4 {
            let wanted = claim(&mut part, at(second));
            part.granted(&wanted, 20, 100, at(second));
            let due = (0..20).filter(|_| part.take(at(second)).unwrap()).count();
            assert_eq!(due, 1, "half of it is used once");
        }
        let wanted = claim(&mut part, at(4));
        assert_eq!(wanted.want, 20);
        part.granted(&wanted, 20, 120, at(4));
        // The rate halves with each second, and in the end all goes back.
        let back: u64 = (5..20).map(|second| claim(&mut part, at(second)).back).sum();
        assert_eq!((back, part.in_hand), (20, 0));
    }

    #[test]
    fn a_used_up_budget_has_a_place_again() {
        let now = Instant::now();
        let mut part = part(10, WithoutPart::Refuse, now);
        let wanted = claim(&mut part, now);
        part.granted(&wanted, 0, 10, now);
        assert_eq!(part.take(now), Err(NoPlace::UsedUp));
        // Another sidecar has given some back.
        let wanted = claim(&mut part, now);
        part.granted(&wanted, 0, 7, now);
        assert_eq!(part.take(now), Err(NoPlace::NoPartYet));
        // The limit changes.
        part.granted(&wanted, 0, 10, now);
        part.set_limit(11);
        assert_eq!(part.take(now), Err(NoPlace::NoPartYet));
        // And a period begins.
        part.granted(&wanted, 0, 11, now);
        assert_eq!(part.take(now), Err(NoPlace::UsedUp));
        part.begin(Span { start: 3_600, end: 7_200 });
        assert_eq!(part.take(now), Err(NoPlace::NoPartYet));
        part.granted(&wanted, 5, 11, now);
        assert_eq!((part.in_hand, part.seen), (0, 0), "a late answer of the period before");
        let wanted = claim(&mut part, now);
        part.granted(&wanted, 5, 5, now);
        part.give_back(3_599);
        assert_eq!(part.in_hand, 5, "a place of the period before");
        part.give_back(3_600);
        assert_eq!(part.in_hand, 6);
    }

    #[test]
    fn without_redis() {
        let start = Instant::now();
        let later = start + CUT_OFF + Duration::from_millis(1);
        let mut refuses = part(10, WithoutPart::Refuse, start);
        let wanted = claim(&mut refuses, start);
        refuses.granted(&wanted, 1, 1, start);
        assert!(refuses.take(later).is_ok(), "the part in hand");
        assert_eq!(refuses.take(later), Err(NoPlace::CutOff));
        let mut sends = part(10, WithoutPart::RefuseUnlessCutOff, start);
        assert_eq!(sends.take(start), Err(NoPlace::NoPartYet));
        assert!(sends.take(later).is_ok());
        assert_eq!(claim(&mut sends, later).counted, 1, "it is counted later");
    }

    /// Messages of a budget that only warns are added up, and never refused; what was not billed is taken off.
    #[test]
    fn messages_are_counted() {
        let now = Instant::now();
        let mut part = part(3, WithoutPart::Count, now);
        for _ in 0..5 {
            assert!(part.take(now).is_ok());
        }
        part.give_back(7);
        let first = claim(&mut part, now);
        assert_eq!((first.counted, first.want, first.back), (4, 0, 0));
        part.undone(&first);
        let again = claim(&mut part, now);
        assert_eq!(again, first);
        part.granted(&again, 0, 40, now);
        part.give_back(7);
        assert_eq!((part.used(), claim(&mut part, now).counted), ((39, 0), -1));
    }
}
