//! What messages cost: counts by price, so that no sum of fractions drifts.

use super::labels::Billed;
use super::period::Span;
use crate::config::{Billing, MAX_TIERS, Period, Prices};

/// Messages by the tier of the price that they fell into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Spent([u64; MAX_TIERS]);

impl Spent {
    pub(crate) fn messages(&self) -> u64 {
        self.0.iter().sum()
    }

    /// What they cost, in the currency.
    pub(crate) fn cost(&self, prices: &Prices) -> f64 {
        self.0.iter().enumerate().map(|(tier, messages)| prices.cost(tier, *messages)).sum()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum += more;
        }
    }
}

/// How far the month has got, which decides the tier.
#[derive(Debug, Clone)]
pub(crate) struct Month {
    span: Option<Span>,
    messages: u64,
}

impl Month {
    pub(crate) const fn new() -> Self {
        Self { span: None, messages: 0 }
    }

    /// So many more messages in this second: the tiers that they fall into. Uncertain ones cost as if
    /// they were billed, but do not advance the month.
    pub(crate) fn spend(
        &mut self,
        billing: &Billing,
        second: i64,
        messages: u64,
        billed: Billed,
    ) -> Spent {
        let mut spent = Spent::default();
        if !billing.prices.is_tiered() {
            spent.0[0] = messages;
            return spent;
        }
        // A clock that was set back does not begin the month anew.
        if self.span.is_none_or(|span| second >= span.end) {
            self.span = Some(Span::around(second, Period::Month, &billing.time_zone));
            self.messages = 0;
        }
        let (mut at, mut left) = (self.messages, messages);
        while left > 0 {
            let here = left.min(billing.prices.left_in_tier(at));
            spent.0[billing.prices.tier(at)] += here;
            (at, left) = (at + here, left - here);
        }
        if billed == Billed::Yes {
            self.messages = at;
        }
        spent
    }
}
