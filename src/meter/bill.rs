//! The bill, as far as a sidecar knows it: its own messages, from its ledger.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::Meter;
use super::labels::Billed;
use super::ledger::{Minute, SeriesName};
use super::money::{Month, Spent};
use super::period::Span;
use crate::config::{Billing, Period};

/// What rows of a bill stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Hours of `billing.time_zone`.
    Hour,
    /// Days of `billing.time_zone`.
    Day,
    /// Parent topics of an instance.
    Topic,
    /// Instances.
    Instance,
    /// Callers, as the configuration names them.
    Caller,
}

/// Which part of the ledger a bill is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query {
    /// From this Unix minute on.
    pub from: i64,
    /// Up to, and without, this one.
    pub to: i64,
    /// What its rows stand for.
    pub by: By,
}

/// A bill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bill {
    /// Its first moment, in `billing.time_zone`.
    pub from: String,
    /// The moment after its last.
    pub to: String,
    /// What its rows stand for.
    pub by: By,
    /// What money is counted in.
    pub currency: String,
    /// Whether a price is set.
    pub priced: bool,
    /// In order.
    pub rows: Vec<BillRow>,
}

/// A row of a bill.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BillRow {
    /// When the hour or day begins, in `billing.time_zone`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// The instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The parent topic, or `other`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// The caller; none: the messages of before there were callers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// Billed messages.
    pub messages: u64,
    /// Messages that may have been billed, too.
    pub uncertain: u64,
    /// The largest second; of one instance, where there are several, and of one topic, for messages without a
    /// caller.
    pub peak_tps: u64,
    /// What the billed messages cost, in the currency.
    pub spend: f64,
}

#[derive(Default)]
struct Sum {
    billed: Spent,
    uncertain: u64,
    peak: u64,
}

impl Meter {
    /// A bill.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub async fn bill(&self, query: Query) -> Result<Bill, String> {
        let billing = self.billing();
        let shown = |minute| shown(minute * 60, &billing.time_zone);
        let (from, to, by) = (shown(query.from), shown(query.to), query.by);
        let (currency, priced) = (billing.currency.clone(), billing.prices.is_set());
        let rows = self.rows(query, billing).await?;
        Ok(Bill { from, to, by, currency, priced, rows })
    }

    async fn rows(&self, query: Query, billing: Billing) -> Result<Vec<BillRow>, String> {
        let Some(ledger) = self.shared.ledger.clone() else { return Ok(Vec::new()) };
        ledger.flush().await;
        let rows = tokio::task::spawn_blocking(move || {
            let mut bill = Sums { query, billing, month: Month::new(), rows: BTreeMap::new() };
            let from = bill.reads_from();
            ledger.minutes(from..query.to, |minute, name, counted| {
                bill.add(minute, name, &counted);
            })?;
            Ok(bill.rows())
        });
        rows.await.map_err(|error| error.to_string())?
    }
}

/// What tells rows apart: when, whose, and about what.
#[derive(Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct RowKey {
    start: Option<i64>,
    instance: Option<String>,
    topic: Option<String>,
    caller: Option<String>,
}

struct Sums {
    query: Query,
    billing: Billing,
    month: Month,
    rows: BTreeMap<RowKey, Sum>,
}

impl Sums {
    /// Tiers depend on what the month had before.
    fn reads_from(&self) -> i64 {
        if !self.billing.prices.is_tiered() {
            return self.query.from;
        }
        let month = Span::around(self.query.from * 60, Period::Month, &self.billing.time_zone);
        month.start.div_euclid(60)
    }

    fn add(&mut self, minute: i64, name: &SeriesName, counted: &Minute) {
        let (is_sum, of_caller) = (name.is_sum(), !name.caller.is_empty());
        let is_whole = name.topic.is_empty() && !of_caller;
        let is_topic = is_sum && !name.topic.is_empty();
        let second = minute * 60;
        let mut billed = Spent::default();
        if !is_sum {
            billed = self.month.spend(&self.billing, second, counted.billable, Billed::Yes);
        }
        if minute < self.query.from {
            return;
        }
        let zone = &self.billing.time_zone;
        let within = |period| Some(Span::around(second, period, zone).start);
        let instance = || Some(name.instance.to_string());
        let none = RowKey::default;
        let (key, peaks) = match self.query.by {
            By::Hour => (RowKey { start: within(Period::Hour), ..none() }, is_whole),
            By::Day => (RowKey { start: within(Period::Day), ..none() }, is_whole),
            By::Instance => (RowKey { instance: instance(), ..none() }, is_whole),
            By::Topic if name.topic.is_empty() => return,
            By::Topic => {
                let topic = Some(name.topic.to_string());
                (RowKey { instance: instance(), topic, ..none() }, is_topic || !of_caller)
            }
            By::Caller if is_whole || is_topic => return,
            By::Caller => {
                let caller = of_caller.then(|| name.caller.to_string());
                (RowKey { caller, ..none() }, is_sum || !of_caller)
            }
        };
        let row = self.rows.entry(key).or_default();
        row.billed.add(&billed);
        if !is_sum {
            row.uncertain += counted.uncertain;
        }
        if peaks {
            row.peak = row.peak.max(counted.peak);
        }
    }

    fn rows(self) -> Vec<BillRow> {
        let (prices, zone) = (self.billing.prices, self.billing.time_zone);
        let row = |(key, sum): (RowKey, Sum)| BillRow {
            start: key.start.map(|start| shown(start, &zone)),
            instance: key.instance,
            topic: key.topic,
            caller: key.caller,
            messages: sum.billed.messages(),
            uncertain: sum.uncertain,
            peak_tps: sum.peak,
            spend: sum.billed.cost(&prices),
        };
        self.rows.into_iter().map(row).collect()
    }
}

fn shown(second: i64, zone: &TimeZone) -> String {
    let at = jiff::Timestamp::from_second(second).unwrap_or_default().to_zoned(zone.clone());
    at.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}
