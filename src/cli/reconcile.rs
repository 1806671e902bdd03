//! `tollgate bill --against FILE`: the ledger beside an export of the provider's.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::moment::day_or_time;
use crate::config::Period;
use crate::meter::{Bill, period_around};

/// Rows of an export.
const MOST_ROWS: usize = 1_000_000;
/// Periods of it, each with its instances.
const MOST_PERIODS: usize = 20_000;

/// Seconds at the ends of a period, at its largest rate: the ledger counts a call at its answer and by its own clock, so
/// the provider may count it in the period before or after.
const EDGES: u64 = 5;

/// When a period begins, and an instance.
type Key = (Timestamp, String);

/// Messages that the provider counts, by period and instance.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Export(BTreeMap<Key, u64>);

/// Both counts, row by row.
#[derive(Debug, Serialize)]
pub(super) struct Reconciliation {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) time_zone: String,
    pub(super) rows: Vec<ReconciledRow>,
}

/// One period of an instance.
#[derive(Debug, Serialize)]
pub(super) struct ReconciledRow {
    start: String,
    instance: String,
    /// What the provider counts.
    provider: u64,
    /// What the ledger counts, and how many more calls may have been billed.
    messages: u64,
    uncertain: u64,
    /// The provider's without the ledger's.
    difference: i128,
    verdict: Difference,
}

/// What a difference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Difference {
    Equal,
    /// No larger than the calls whose outcome is not known.
    Uncertain,
    /// Not larger than what may have been counted in the period before or after.
    Edge,
    /// More than this ledger can explain.
    More,
    Fewer,
    /// The period is not over yet, and neither count is complete.
    Open,
}

impl Difference {
    const fn text(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Uncertain => "within uncertain",
            Self::Edge => "within a few seconds at its ends",
            Self::More => "the provider has more: other clients or sidecars",
            Self::Fewer => "the provider has fewer",
            Self::Open => "not over yet",
        }
    }
}

impl Export {
    /// Reads CSV with the columns `time`, `instance` and `messages`, in any order and among others. Times are summed
    /// up by this period of a time zone; only those in this range, which has whole periods, count.
    pub(super) fn read(
        from: impl Read,
        period: Period,
        zone: &TimeZone,
        range: (Option<Timestamp>, Option<Timestamp>),
    ) -> Result<Self, String> {
        let mut csv =
            csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_reader(from);
        let headers = csv.headers().map_err(|error| error.to_string())?.clone();
        let column = |name: &str| {
            let is_it = |text: &str| text.trim_start_matches('\u{feff}').eq_ignore_ascii_case(name);
            let found = headers.iter().position(is_it);
            found.ok_or_else(|| format!("its first line has no column {name:?}"))
        };
        let (time, instance, messages) =
            (column("time")?, column("instance")?, column("messages")?);
        let mut export = Self::default();
        for (at, record) in csv.records().enumerate() {
            if at >= MOST_ROWS {
                return Err(format!("has more than {MOST_ROWS} rows"));
            }
            let record = record.map_err(|error| error.to_string())?;
            let line = record.position().map_or(0, csv::Position::line);
            let text = |column: usize| record.get(column).unwrap_or_default();
            let wrong = |why: String| format!("line {line}: {why}");
            let time = day_or_time(text(time), zone).map_err(wrong)?;
            if range.0.is_some_and(|from| time < from) || range.1.is_some_and(|to| time >= to) {
                continue;
            }
            if text(instance).is_empty() {
                return Err(wrong("names no instance".to_owned()));
            }
            let messages: u64 = text(messages)
                .parse()
                .map_err(|_| wrong(format!("{:?} is no number of messages", text(messages))))?;
            let (start, _) = period_around(period, time, zone);
            let sum = export.0.entry((start, text(instance).to_owned())).or_default();
            *sum = sum.saturating_add(messages);
            if export.0.len() > MOST_PERIODS {
                return Err(format!("has more than {MOST_PERIODS} periods and instances"));
            }
        }
        if export.0.is_empty() {
            return Err("has no row of this time".to_owned());
        }
        Ok(export)
    }

    /// From its first period to the end of its last.
    pub(super) fn range(&self, period: Period, zone: &TimeZone) -> Option<(Timestamp, Timestamp)> {
        let (first, _) = self.0.first_key_value()?.0;
        let (last, _) = self.0.last_key_value()?.0;
        Some((*first, period_around(period, *last, zone).1))
    }

    /// Beside a bill by instance and this period.
    pub(super) fn beside(
        self,
        bill: &Bill,
        period: Period,
        zone: &TimeZone,
        now: Timestamp,
    ) -> Reconciliation {
        let mut both: BTreeMap<Key, (u64, u64, u64, u64)> = BTreeMap::new();
        for (key, provider) in self.0 {
            both.entry(key).or_default().0 = provider;
        }
        for row in &bill.rows {
            let start = row.start.as_deref().and_then(|start| start.parse().ok());
            let Some((start, instance)) = start.zip(row.instance.clone()) else { continue };
            let counts = both.entry((start, instance)).or_default();
            (counts.1, counts.2, counts.3) = (row.messages, row.uncertain, row.peak_tps);
        }
        let row = |((start, instance), counts): (Key, (u64, u64, u64, u64))| {
            let (provider, messages, uncertain, peak) = counts;
            let at_edges = peak.saturating_mul(EDGES);
            let largest = messages.saturating_add(uncertain);
            let verdict = if period_around(period, start, zone).1 > now {
                Difference::Open
            } else if provider == messages {
                Difference::Equal
            } else if (messages..=largest).contains(&provider) {
                Difference::Uncertain
            } else if messages.saturating_sub(provider) <= at_edges
                && provider.saturating_sub(largest) <= at_edges
            {
                Difference::Edge
            } else if provider < messages {
                Difference::Fewer
            } else {
                Difference::More
            };
            ReconciledRow {
                start: start.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
                instance,
                provider,
                messages,
                uncertain,
                difference: i128::from(provider) - i128::from(messages),
                verdict,
            }
        };
        let rows = both.into_iter().map(row).collect();
        let Bill { from, to, time_zone, .. } = bill.clone();
        Reconciliation { from, to, time_zone, rows }
    }
}

impl Reconciliation {
    /// Rows of which the ledger does not explain the difference.
    pub(super) fn unexplained(&self) -> usize {
        let is_unexplained =
            |row: &&ReconciledRow| matches!(row.verdict, Difference::More | Difference::Fewer);
        self.rows.iter().filter(is_unexplained).count()
    }

    pub(super) fn csv(&self, to: &mut impl Write) -> io::Result<()> {
        let mut csv = csv::Writer::from_writer(to);
        for row in &self.rows {
            csv.serialize(row).map_err(io::Error::other)?;
        }
        csv.flush()
    }

    pub(super) fn table(&self, to: &mut impl Write) -> io::Result<()> {
        let width = self.rows.iter().map(|row| row.instance.len()).max().unwrap_or(0).max(8);
        writeln!(to, "{} to {} ({})", self.from, self.to, self.time_zone)?;
        writeln!(
            to,
            "{:25}  {:width$}  {:>15}  {:>15}  {:>10}  {:>12}",
            "START", "INSTANCE", "PROVIDER", "TOLLGATE", "UNCERTAIN", "DIFFERENCE"
        )?;
        for row in &self.rows {
            let ReconciledRow { start, instance, provider, messages, uncertain, .. } = row;
            let (difference, verdict) = (row.difference, row.verdict.text());
            writeln!(
                to,
                "{start:25}  {instance:width$}  {provider:>15}  {messages:>15}  {uncertain:>10}  \
                 {difference:>+12}  {verdict}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::{BillRow, By, Subject};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn read(text: &str, zone: &TimeZone) -> Result<Export, String> {
        Export::read(text.as_bytes(), Period::Day, zone, (None, None))
    }

    #[test]
    fn exports_as_people_have_them() {
        let zone = TimeZone::get("Asia/Shanghai").unwrap();
        let export = "\u{feff}Instance , Region, TIME, Messages\n\
                      a, cn, 2026-11-01T00:30:00Z, 3\r\n\
                      a, cn, 2026-11-01 09:00, 4\n\
                      \"a\", cn, 2026-11-02, 5\n\
                      b, cn, 2026-11-01, 0\n";
        let export = read(export, &zone).unwrap();
        let day = |day: &str| at(&format!("{day}T16:00:00Z"));
        let rows = [
            ((day("2026-10-31"), "a".to_owned()), 7),
            ((day("2026-10-31"), "b".to_owned()), 0),
            ((day("2026-11-01"), "a".to_owned()), 5),
        ];
        assert_eq!(export, Export(rows.into()));
        let range = export.range(Period::Day, &zone);
        assert_eq!(range, Some((day("2026-10-31"), day("2026-11-02"))));
    }

    #[test]
    fn files_that_are_no_export() {
        for (text, words) in [
            ("", "no column \"time\""),
            ("time,instance\n", "no column \"messages\""),
            ("time,instance,messages\n", "has no row"),
            ("time,instance,messages\n2026-11-01,a,1.5\n", "line 2: \"1.5\" is no number"),
            ("time,instance,messages\n2026-11-01,a\n", "line 2: \"\" is no number"),
            ("time,instance,messages\nsoon,a,1\n", "line 2: \"soon\" is neither"),
            ("time,instance,messages\n09:00:00,a,1\n", "line 2: \"09:00:00\" is neither"),
            ("time,instance,messages\n24h,a,1\n", "line 2: \"24h\" is neither"),
            ("time,instance,messages\n2026-11-01,,1\n", "line 2: names no instance"),
            ("time,instance,messages\n\u{0},a,1\n", "line 2"),
        ] {
            let error = read(text, &TimeZone::UTC).unwrap_err();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }

    #[test]
    fn what_a_difference_means() {
        let export = "time,instance,messages\n\
                      2026-11-01,equal,10\n2026-11-01,within,12\n2026-11-01,more,13\n\
                      2026-11-01,fewer,9\n2026-11-01,edge,5\n2026-11-01,unknown,1\n2026-11-02,open,1\n";
        let export = read(export, &TimeZone::UTC).unwrap();
        let row = |instance: &str| BillRow {
            start: Some("2026-11-01T00:00:00+00:00".to_owned()),
            instance: Some(instance.to_owned()),
            messages: 10,
            uncertain: 2,
            peak_tps: u64::from(instance == "edge"),
            ..BillRow::default()
        };
        let bill = Bill {
            from: String::new(),
            to: String::new(),
            time_zone: "UTC".to_owned(),
            by: By { period: Some(Period::Day), subject: Some(Subject::Instance) },
            currency: "CNY".to_owned(),
            priced: false,
            peak_tps: 0,
            fleet: None,
            rows: ["equal", "within", "more", "fewer", "edge", "unbilled"].map(row).into(),
        };
        let now = at("2026-11-02T12:00:00Z");
        let both = export.beside(&bill, Period::Day, &TimeZone::UTC, now);
        let verdicts: BTreeMap<_, _> = both
            .rows
            .iter()
            .map(|row| (row.instance.as_str(), (row.verdict, row.difference)))
            .collect();
        let wanted = [
            ("equal", (Difference::Equal, 0)),
            ("within", (Difference::Uncertain, 2)),
            ("more", (Difference::More, 3)),
            ("fewer", (Difference::Fewer, -1)),
            ("edge", (Difference::Edge, -5)),
            ("unknown", (Difference::More, 1)),
            ("unbilled", (Difference::Fewer, -10)),
            ("open", (Difference::Open, 1)),
        ];
        assert_eq!(verdicts, wanted.into());
        assert_eq!(both.unexplained(), 4);
    }
}
