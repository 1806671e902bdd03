//! Budgets: a message takes its place before its call, and gives it back when it is certain that
//! it is not billed.

use jiff::Timestamp;

use super::labels::Billed;
use super::ledger::SeriesName;
use super::money::Spent;
use super::period::Span;
use crate::config::{Budget, Limit, Prices};

/// Sums of prices are as exact as floats are.
const ROUNDING: f64 = 1.0 + 1e-12;

/// A budget that refuses messages is used up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the budget {budget} is used up until {until}")]
pub struct OverBudget {
    /// Its name.
    pub budget: String,
    /// When its next period begins.
    pub until: Timestamp,
    /// How many messages its period has, where it counts messages and not money.
    pub messages: Option<u64>,
    /// Seconds of its period.
    pub period: i64,
}

/// One budget as it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct BudgetStatus {
    /// What was configured.
    pub budget: Budget,
    /// Spent in this period, in the budget's unit: billed, or perhaps billed.
    pub used: f64,
    /// Of calls whose outcome is not known yet.
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
}

impl Account {
    pub(super) fn new(budget: Budget, now: i64) -> Self {
        let span = Span::around(now, budget.period, &budget.time_zone);
        Self { budget, span, used: Spent::default(), reserved: 0 }
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

    /// Takes a place, unless messages are refused and there is none.
    pub(super) fn reserve(&mut self, now: i64, prices: &Prices) -> Result<(), OverBudget> {
        self.admits(now, prices)?;
        self.reserved += 1;
        Ok(())
    }

    /// Whether there is a place for one more, or the budget does not refuse messages.
    pub(super) fn admits(&mut self, now: i64, prices: &Prices) -> Result<(), OverBudget> {
        self.roll(now);
        if !self.budget.refuse || self.taken(prices, 1) <= self.limit() * ROUNDING {
            return Ok(());
        }
        let messages = match self.budget.limit {
            Limit::Messages(messages) => Some(messages),
            Limit::Spend(_) => None,
        };
        let period = self.span.end - self.span.start;
        Err(OverBudget { budget: self.budget.name.clone(), until: self.until(), messages, period })
    }

    /// A call has ended: its place is spent, or free again.
    pub(super) fn commit(&mut self, now: i64, billed: Billed, spent: &Spent) {
        self.roll(now);
        self.reserved = self.reserved.saturating_sub(1);
        if billed != Billed::No {
            self.used.add(spent);
        }
    }

    /// Spent before this process, or by calls whose end was not recorded.
    pub(super) fn restore(&mut self, second: i64, spent: &Spent) {
        if self.span.contains(second) {
            self.used.add(spent);
        }
    }

    pub(super) fn status(&mut self, now: i64, prices: &Prices) -> BudgetStatus {
        self.roll(now);
        let used = self.taken(prices, 0) - self.unit(self.reserved, prices);
        let remaining = ((self.limit() - self.taken(prices, 0)) / self.limit()).clamp(0.0, 1.0);
        BudgetStatus {
            budget: self.budget.clone(),
            used,
            reserved: self.unit(self.reserved, prices),
            remaining,
            until: self.until(),
        }
    }

    fn until(&self) -> Timestamp {
        Timestamp::from_second(self.span.end).unwrap_or(Timestamp::MAX)
    }

    /// A clock that was set back begins no period anew.
    fn roll(&mut self, now: i64) {
        if now >= self.span.end {
            self.span = Span::around(now, self.budget.period, &self.budget.time_zone);
            self.used = Spent::default();
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
