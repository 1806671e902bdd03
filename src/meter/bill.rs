//! The bill, as far as a sidecar knows it: its own messages, from its ledger.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::Meter;
use super::coverage::FleetCoverage;
use super::labels::Billed;
use super::ledger::{Minute, SeriesName};
use super::money::{Month, Spent};
use super::period::Span;
use crate::config::{Billing, Period};

/// What rows of a bill stand for: periods, subjects of messages, or subjects in each period. As text, `day`, `topic`
/// or `topic,day`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct By {
    /// Periods of `billing.time_zone`.
    pub period: Option<Period>,
    /// What is told apart within a period.
    pub subject: Option<Subject>,
}

/// What messages are told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// Parent topics of an instance.
    Topic,
    /// Instances.
    Instance,
    /// Callers, as the configuration names them.
    Caller,
}

/// A text that names no rows of a bill.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a period (hour, day, month), a subject (topic, instance, caller) or one of each, as in topic,day"
)]
pub struct NotBy(String);

impl By {
    const PERIODS: [(&str, Period); 3] =
        [("hour", Period::Hour), ("day", Period::Day), ("month", Period::Month)];
    const SUBJECTS: [(&str, Subject); 3] =
        [("topic", Subject::Topic), ("instance", Subject::Instance), ("caller", Subject::Caller)];

    /// Of periods alone.
    pub const fn period(period: Period) -> Self {
        Self { period: Some(period), subject: None }
    }

    /// Of subjects alone.
    pub const fn subject(subject: Subject) -> Self {
        Self { period: None, subject: Some(subject) }
    }
}

impl FromStr for By {
    type Err = NotBy;

    fn from_str(text: &str) -> Result<Self, NotBy> {
        let mut by = Self { period: None, subject: None };
        for word in text.split(',').map(str::trim) {
            let period = Self::PERIODS.iter().find(|(name, _)| *name == word);
            let subject = Self::SUBJECTS.iter().find(|(name, _)| *name == word);
            let replaced = match (period, subject) {
                (Some((_, period)), _) => by.period.replace(*period).is_some(),
                (_, Some((_, subject))) => by.subject.replace(*subject).is_some(),
                (None, None) => true,
            };
            if replaced {
                return Err(NotBy(text.to_owned()));
            }
        }
        Ok(by)
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = Self::SUBJECTS.iter().find(|(_, subject)| Some(*subject) == self.subject);
        let period = Self::PERIODS.iter().find(|(_, period)| Some(*period) == self.period);
        match (subject, period) {
            (Some((subject, _)), Some((period, _))) => write!(f, "{subject},{period}"),
            (Some((name, _)), None) | (None, Some((name, _))) => f.write_str(name),
            (None, None) => Ok(()),
        }
    }
}

impl From<By> for String {
    fn from(by: By) -> Self {
        by.to_string()
    }
}

impl TryFrom<String> for By {
    type Error = NotBy;

    fn try_from(text: String) -> Result<Self, NotBy> {
        text.parse()
    }
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

/// Rows of a bill: it is made in the memory of a running sidecar.
const MOST_ROWS: usize = 50_000;

/// A bill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bill {
    /// Its first moment, in `billing.time_zone`.
    pub from: String,
    /// The moment after its last.
    pub to: String,
    /// `billing.time_zone`: whose hours, days and months these are.
    #[serde(default)]
    pub time_zone: String,
    /// What its rows stand for.
    pub by: By,
    /// What money is counted in.
    pub currency: String,
    /// Whether a price is set.
    pub priced: bool,
    /// The largest second of all: of one instance, where there are several.
    /// Of a fleet, of all its sidecars together.
    #[serde(default)]
    pub peak_tps: u64,
    /// Which sidecars it is of, if it is a fleet's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fleet: Option<FleetCoverage>,
    /// In order.
    pub rows: Vec<BillRow>,
}

/// A row of a bill.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BillRow {
    /// When the hour, day or month begins, in `billing.time_zone`.
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
        let mut sums = Sums::new(query, self.billing());
        let Some(ledger) = self.shared.ledger.clone() else { return sums.bill() };
        ledger.flush().await;
        let bill = tokio::task::spawn_blocking(move || {
            ledger.minutes(sums.reads_from()..query.to, |minute, name, counted| {
                sums.add(minute, name, &counted);
            })?;
            sums.bill()
        });
        bill.await.map_err(|error| error.to_string())?
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

/// Messages of each row.
pub(super) struct Sums {
    query: Query,
    billing: Billing,
    month: Month,
    rows: BTreeMap<RowKey, Sum>,
    /// The largest second of an instance.
    peak: u64,
    is_too_large: bool,
}

impl Sums {
    pub(super) fn new(query: Query, billing: Billing) -> Self {
        let (month, rows) = (Month::new(), BTreeMap::new());
        Self { query, billing, month, rows, peak: 0, is_too_large: false }
    }

    /// From which Unix minute on messages are to be [added](Self::add), in order of time. Tiers depend on what the month had before.
    pub(super) fn reads_from(&self) -> i64 {
        if !self.billing.prices.is_tiered() {
            return self.query.from;
        }
        let month = Span::around(self.query.from * 60, Period::Month, &self.billing.time_zone);
        month.start.div_euclid(60)
    }

    pub(super) fn add(&mut self, minute: i64, name: &SeriesName, counted: &Minute) {
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
        if is_whole {
            self.peak = self.peak.max(counted.peak);
        }
        let By { period, subject } = self.query.by;
        let zone = &self.billing.time_zone;
        let start = period.map(|period| Span::around(second, period, zone).start);
        let key = RowKey { start, ..RowKey::default() };
        let instance = Some(name.instance.to_string());
        let (key, peaks) = match subject {
            None => (key, is_whole),
            Some(Subject::Instance) => (RowKey { instance, ..key }, is_whole),
            Some(Subject::Topic) if name.topic.is_empty() => return,
            Some(Subject::Topic) => {
                let topic = Some(name.topic.to_string());
                (RowKey { instance, topic, ..key }, is_topic || !of_caller)
            }
            Some(Subject::Caller) if is_whole || is_topic => return,
            Some(Subject::Caller) => {
                let caller = of_caller.then(|| name.caller.to_string());
                (RowKey { caller, ..key }, is_sum || !of_caller)
            }
        };
        if self.rows.len() >= MOST_ROWS && !self.rows.contains_key(&key) {
            self.is_too_large = true;
            return;
        }
        let row = self.rows.entry(key).or_default();
        row.billed.add(&billed);
        if !is_sum {
            row.uncertain += counted.uncertain;
        }
        if peaks {
            row.peak = row.peak.max(counted.peak);
        }
    }

    /// The bill of all that was added.
    pub(super) fn bill(self) -> Result<Bill, String> {
        if self.is_too_large {
            return Err(format!(
                "the bill has more than {MOST_ROWS} rows: ask for longer periods or a shorter time"
            ));
        }
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
        Ok(Bill {
            from: shown(self.query.from * 60, &zone),
            to: shown(self.query.to * 60, &zone),
            time_zone: zone.iana_name().unwrap_or("UTC").to_owned(),
            by: self.query.by,
            currency: self.billing.currency,
            priced: prices.is_set(),
            peak_tps: self.peak,
            fleet: None,
            rows: self.rows.into_iter().map(row).collect(),
        })
    }
}

/// A moment in a time zone.
pub(super) fn shown(second: i64, zone: &TimeZone) -> String {
    let at = jiff::Timestamp::from_second(second).unwrap_or_default().to_zoned(zone.clone());
    at.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::tests::billing;

    #[test]
    fn a_bill_is_bounded() {
        let by = By { period: Some(Period::Hour), subject: Some(Subject::Topic) };
        let query = Query { from: 0, to: i64::MAX / 60, by };
        let mut sums = Sums::new(query, billing());
        let counted = Minute { billable: 1, uncertain: 0, peak: 1 };
        let mut add = |topic: usize| {
            let (instance, topic) = ("post-cn-1".into(), topic.to_string().into());
            sums.add(1, &SeriesName { instance, topic, caller: "".into() }, &counted);
            (sums.rows.len(), sums.is_too_large)
        };
        for topic in 0..MOST_ROWS {
            add(topic);
        }
        assert_eq!(add(0), (MOST_ROWS, false), "it has a row");
        assert_eq!(add(MOST_ROWS), (MOST_ROWS, true));
    }

    #[test]
    fn words_of_rows() {
        for text in ["hour", "day", "month", "topic", "instance", "caller", "topic,day"] {
            assert_eq!(text.parse::<By>().unwrap().to_string(), text);
        }
        assert_eq!("month, caller".parse::<By>().unwrap().to_string(), "caller,month");
        for text in ["", "week", "day,hour", "topic,caller", "day,", "topic,day,day", "Day"] {
            assert_eq!(text.parse::<By>(), Err(NotBy(text.to_owned())), "{text}");
        }
    }
}
