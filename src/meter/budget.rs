//! Budgets: a message takes its place before its call, and gives it back when it is certain that
//! it is not billed.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use super::labels::Billed;
use super::ledger::SeriesName;
use super::money::Spent;
use super::parts::{NoPlace, Part, Parts, WithoutPart};
use super::period::Span;
use crate::config::{Budget, BudgetScope, CutOffPolicy, Limit, Prices};

/// Sums of prices are as exact as floats are.
const ROUNDING: f64 = 1.0 + 1e-12;

/// So many seconds later a budget is tried again whose Redis does not grant a part of it.
const TRY_AGAIN: i64 = 5;

/// A budget that refuses messages has no place for one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the budget {budget} {reason} until {until}")]
pub struct OverBudget {
    /// Its name.
    pub budget: String,
    /// Why.
    pub reason: OverBudgetReason,
    /// When its next period begins, or when it may have a place again.
    pub until: Timestamp,
    /// How many messages its period has, where it counts messages and not money.
    pub messages: Option<u64>,
    /// Seconds of its period.
    pub period: i64,
}

/// Why a budget has no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverBudgetReason {
    /// It is used up.
    UsedUp,
    /// It is shared by the fleet, whose Redis has not granted a part of it.
    NotGranted,
}

impl std::fmt::Display for OverBudgetReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::UsedUp => "is used up",
            Self::NotGranted => "is shared by the fleet, and its Redis grants no part of it,",
        })
    }
}

/// Why a message has no place in a budget now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NoBudget {
    Over(OverBudget),
    /// The fleet's Redis is about to grant a part; this is the case if it does not.
    NotYet(OverBudget),
}

impl NoBudget {
    pub(super) fn over(self) -> OverBudget {
        match self {
            Self::Over(over) | Self::NotYet(over) => over,
        }
    }
}

/// One budget as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetStatus {
    /// What was configured.
    pub budget: Budget,
    /// Spent in this period, in the budget's unit: billed, or perhaps billed.
    pub used: f64,
    /// Of calls whose outcome is not known yet; of a shared budget, this sidecar's part, too.
    pub reserved: f64,
    /// What is left, 0 to 1.
    pub remaining: f64,
    /// When the next period begins.
    pub until: Timestamp,
}

/// A budget and what was spent of it.
#[derive(Debug)]
pub(super) struct Account {
    budget: Budget,
    span: Span,
    used: Spent,
    reserved: u64,
    /// Its place among the budgets that the fleet shares.
    shared: Option<SharedPlace>,
}

#[derive(Debug)]
struct SharedPlace {
    parts: Arc<Parts>,
    place: usize,
}

impl SharedPlace {
    fn with<T>(&self, look: impl FnOnce(&mut Part) -> T) -> T {
        self.parts.with(self.place, look)
    }
}

impl Account {
    pub(super) fn new(budget: Budget, now: i64, prices: &Prices, parts: &Arc<Parts>) -> Self {
        let span = Span::around(now, budget.period, &budget.time_zone);
        let without = match budget.scope {
            BudgetScope::Sidecar => None,
            BudgetScope::Fleet { .. } if !budget.refuse => Some(WithoutPart::Count),
            BudgetScope::Fleet { cut_off: CutOffPolicy::Refuse } => Some(WithoutPart::Refuse),
            BudgetScope::Fleet { cut_off: CutOffPolicy::Send } => {
                Some(WithoutPart::RefuseUnlessCutOff)
            }
        };
        let shared = without.map(|without| {
            let limit = messages(budget.limit, prices);
            let part = Part::new(budget.name.clone(), limit, span, without, Instant::now());
            SharedPlace { parts: Arc::clone(parts), place: parts.add(part) }
        });
        Self { budget, span, used: Spent::default(), reserved: 0, shared }
    }

    /// Whether it is for the messages of a series.
    pub(super) fn covers(&self, name: &SeriesName) -> bool {
        self.budget.covers(&name.instance, &name.topic) && self.budget.covers_caller(&name.caller)
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// When this period began.
    pub(super) fn start(&self) -> i64 {
        self.span.start
    }

    /// Takes a place, unless messages are refused and there is none. Returns whether more of a shared budget is to be
    /// claimed now.
    pub(super) fn reserve(&mut self, now: i64, prices: &Prices) -> Result<bool, NoBudget> {
        self.roll(now);
        let is_due = match &self.shared {
            None => self.admits(now, prices).map(|()| false)?,
            Some(shared) => {
                let taken = shared.with(|part| part.take(Instant::now()));
                taken.map_err(|reason| self.no_place(now, reason))?
            }
        };
        self.reserved += 1;
        Ok(is_due)
    }

    /// Why a message has to wait for a part of a shared budget, if it has to.
    pub(super) fn waits(&mut self, now: i64) -> Option<OverBudget> {
        self.roll(now);
        let waits = self.shared.as_ref()?.with(|part| part.keeps_waiting(Instant::now()));
        waits.then(|| self.no_place(now, NoPlace::NoPartYet).over())
    }

    /// Whether there is a place for one more, or the budget does not refuse messages.
    pub(super) fn admits(&mut self, now: i64, prices: &Prices) -> Result<(), NoBudget> {
        self.roll(now);
        if let Some(shared) = &self.shared {
            let admitted = shared.with(|part| part.admits(Instant::now()));
            return admitted.map_err(|reason| self.no_place(now, reason));
        }
        if !self.budget.refuse || self.taken(prices, 1) <= self.limit() * ROUNDING {
            return Ok(());
        }
        Err(self.no_place(now, NoPlace::UsedUp))
    }

    fn no_place(&self, now: i64, place: NoPlace) -> NoBudget {
        let messages = match self.budget.limit {
            Limit::Messages(messages) => Some(messages),
            Limit::Spend(_) => None,
        };
        let (reason, until) = match place {
            NoPlace::UsedUp => (OverBudgetReason::UsedUp, self.until()),
            NoPlace::NoPartYet | NoPlace::CutOff => {
                let again = Timestamp::from_second(now.saturating_add(TRY_AGAIN));
                (OverBudgetReason::NotGranted, again.unwrap_or(Timestamp::MAX).min(self.until()))
            }
        };
        let period = self.span.end - self.span.start;
        let over = OverBudget { budget: self.budget.name.clone(), reason, until, messages, period };
        match place {
            NoPlace::NoPartYet => NoBudget::NotYet(over),
            NoPlace::UsedUp | NoPlace::CutOff => NoBudget::Over(over),
        }
    }

    /// A call has ended that took its place in this Unix second: the place is spent, or free again.
    pub(super) fn commit(&mut self, now: i64, taken_in: i64, billed: Billed, spent: &Spent) {
        self.roll(now);
        self.reserved = self.reserved.saturating_sub(1);
        match (&self.shared, billed) {
            (Some(shared), Billed::No) => shared.with(|part| part.give_back(taken_in)),
            (Some(_), _) | (None, Billed::No) => {}
            (None, _) => self.used.add(spent),
        }
    }

    /// A place that was taken a moment ago is not needed.
    pub(super) fn release(&mut self) {
        self.reserved = self.reserved.saturating_sub(1);
        if let Some(shared) = &self.shared {
            shared.with(Part::release);
        }
    }

    /// Spent before this process, or by calls whose end was not recorded.
    pub(super) fn restore(&mut self, second: i64, spent: &Spent) {
        if !self.span.contains(second) {
            return;
        }
        match &self.shared {
            Some(shared) => shared.with(|part| part.restore(spent.messages())),
            None => self.used.add(spent),
        }
    }

    /// Takes up other prices.
    pub(super) fn reprice(&self, prices: &Prices) {
        if let Some(shared) = &self.shared {
            let limit = messages(self.budget.limit, prices);
            shared.with(|part| part.set_limit(limit));
        }
    }

    pub(super) fn status(&mut self, now: i64, prices: &Prices) -> BudgetStatus {
        self.roll(now);
        let (used, reserved) = match &self.shared {
            None => {
                let reserved = self.unit(self.reserved, prices);
                (self.taken(prices, 0) - reserved, reserved)
            }
            Some(shared) => {
                let (used, reserved) = shared.with(|part| part.used());
                (self.unit(used, prices), self.unit(reserved, prices))
            }
        };
        let remaining = ((self.limit() - used - reserved) / self.limit()).clamp(0.0, 1.0);
        BudgetStatus { budget: self.budget.clone(), used, reserved, remaining, until: self.until() }
    }

    fn until(&self) -> Timestamp {
        Timestamp::from_second(self.span.end).unwrap_or(Timestamp::MAX)
    }

    /// A clock that was set back begins no period anew.
    fn roll(&mut self, now: i64) {
        if now >= self.span.end {
            self.span = Span::around(now, self.budget.period, &self.budget.time_zone);
            self.used = Spent::default();
            if let Some(shared) = &self.shared {
                shared.with(|part| part.begin(self.span));
            }
        }
    }

    fn limit(&self) -> f64 {
        match self.budget.limit {
            Limit::Messages(messages) => messages as f64,
            Limit::Spend(spend) => spend,
        }
    }

    /// Used, reserved, and so many more.
    fn taken(&self, prices: &Prices, more: u64) -> f64 {
        let used = match self.budget.limit {
            Limit::Messages(_) => self.used.messages() as f64,
            Limit::Spend(_) => self.used.cost(prices),
        };
        used + self.unit(self.reserved + more, prices)
    }

    /// So many messages in the budget's unit: money at the highest price, since the tier that they
    /// fall into is not known yet.
    fn unit(&self, messages: u64, prices: &Prices) -> f64 {
        match self.budget.limit {
            Limit::Messages(_) => messages as f64,
            Limit::Spend(_) => prices.highest() * messages as f64 / 1e6,
        }
    }
}

/// How many messages a limit is, at the highest price: the tier that a message of the fleet falls into is not known.
fn messages(limit: Limit, prices: &Prices) -> u64 {
    match limit {
        Limit::Messages(messages) => messages,
        Limit::Spend(_) if prices.highest() <= 0.0 => u64::MAX >> 11,
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded down")]
        Limit::Spend(spend) => (spend * 1e6 / prices.highest() * ROUNDING).floor() as u64,
    }
}
