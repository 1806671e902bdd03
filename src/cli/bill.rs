//! `tollgate bill`: what was sent and what it costs, from the ledger.

use std::io::{self, Write};

use clap::ValueEnum;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::client::SidecarClient;
use super::run::{VerbError, block_on, print, write_json};
use crate::config::{Config, Flags, Period};
use crate::control::bill_query;
use crate::meter::{Bill, BillRow, By, Meter, Query};
use crate::sidecar;

/// Show message TPS and spend from the ledger
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tollgate bill --config tollgate.toml\n  \
    tollgate bill --from 2026-11-01 --to 2026-12-01 --by topic\n  \
    tollgate bill --from 24h --by hour -o csv\n\n\
    Asks a running sidecar over its control socket, or opens the ledger of a stopped one. The ledger \
    has this sidecar's own calls; the provider also bills deliveries to subscribers.")]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Start: a day, a time, or how long ago [default: the first of the month]
    #[arg(long, value_name = "WHEN")]
    from: Option<String>,
    /// End, which is not included: a day, a time, or how long ago [default: now]
    #[arg(long, value_name = "WHEN")]
    to: Option<String>,
    /// One row for each of these
    #[arg(long, value_enum, default_value = "day")]
    by: By,
    /// Output format
    #[arg(short, long, value_enum, default_value = "table")]
    output: BillFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BillFormat {
    Table,
    Json,
    Csv,
}

pub(super) fn run(args: &Args) -> Result<(), VerbError> {
    let config = args.flags.load_for_operator()?.config;
    let query = query(args, &config.billing.time_zone).map_err(VerbError::Usage)?;
    let bill = block_on(bill(query, &config))?;
    print(|to| match args.output {
        BillFormat::Table => table(&bill, to),
        BillFormat::Csv => csv(&bill, to),
        BillFormat::Json => write_json(&bill, to),
    })
}

async fn bill(query: Query, config: &Config) -> Result<Bill, String> {
    if let Some(mut sidecar) = SidecarClient::connect(config).await? {
        let body = sidecar.get(&format!("/bill?{}", bill_query(&query))).await?;
        return sidecar.read(&body);
    }
    let Some(spool) = &config.spool else {
        return Err(
            "no sidecar runs with this configuration, and spool.store = \"none\" has no ledger"
                .to_owned(),
        );
    };
    let folder = sidecar::ledger_folder(spool);
    // Of one that cannot be looked at, opening it says why.
    if matches!(folder.try_exists(), Ok(false)) {
        return Err(format!("there is no ledger at {}", folder.display()));
    }
    let (topics, billing) = (config.telemetry.max_topics, config.billing.clone());
    let open =
        tokio::task::spawn_blocking(move || Meter::open(Some(&folder), topics, &billing, []));
    let meter =
        open.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let bill = meter.bill(query).await;
    meter.close().await;
    bill
}

// === which part ===

fn query(args: &Args, zone: &TimeZone) -> Result<Query, String> {
    let now = Timestamp::now();
    let when =
        |text: &Option<String>| text.as_deref().map(|text| when(text, now, zone)).transpose();
    let to = when(&args.to)?.unwrap_or(now);
    let month = || crate::meter::start_of(Period::Month, to, zone);
    let from = when(&args.from)?.unwrap_or_else(month);
    // The ledger has whole minutes for ninety days, and nothing finer.
    let query = Query { from: from.as_second().div_euclid(60), to: minute_after(to), by: args.by };
    if query.from >= query.to {
        return Err(format!("--from ({from}) is not before --to ({to})"));
    }
    Ok(query)
}

/// The first Unix minute that begins at this moment or later: of the first second of a minute, too, what
/// has passed belongs to the bill.
fn minute_after(moment: Timestamp) -> i64 {
    let second = moment.as_second();
    let has_begun = second.rem_euclid(60) > 0 || moment.subsec_nanosecond() > 0;
    second.div_euclid(60) + i64::from(has_begun)
}

/// `2026-11-01`, `2026-11-01T12:00`, `2026-11-01T12:00:00Z`, or `24h` ago.
fn when(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    if let Ok(ago) = text.parse::<SignedDuration>() {
        return now.checked_sub(ago).map_err(|error| error.to_string());
    }
    let at = text.parse::<DateTime>().or_else(|_| text.parse::<Date>().map(DateTime::from));
    let at = at.map_err(|_| {
        format!("{text:?} is neither a day (2026-11-01), a time (2026-11-01T12:00:00Z) nor a duration (24h)")
    })?;
    at.to_zoned(zone.clone()).map(|at| at.timestamp()).map_err(|error| error.to_string())
}

// === printing ===

/// A row's first column: a time, an instance, a topic or a caller.
fn subject(row: &BillRow) -> String {
    let parts = [&row.start, &row.instance, &row.topic, &row.caller];
    let parts: Vec<_> = parts.into_iter().flatten().map(String::as_str).collect();
    if parts.is_empty() { "(none)".to_owned() } else { parts.join(" ") }
}

fn table(bill: &Bill, to: &mut impl Write) -> io::Result<()> {
    let all = BillRow {
        start: Some("TOTAL".to_owned()),
        messages: bill.rows.iter().map(|row| row.messages).sum(),
        uncertain: bill.rows.iter().map(|row| row.uncertain).sum(),
        peak_tps: bill.rows.iter().map(|row| row.peak_tps).max().unwrap_or(0),
        spend: bill.rows.iter().map(|row| row.spend).sum(),
        ..BillRow::default()
    };
    let title = match bill.by {
        By::Hour => "HOUR",
        By::Day => "DAY",
        By::Topic => "INSTANCE TOPIC",
        By::Instance => "INSTANCE",
        By::Caller => "CALLER",
    };
    let rows = || bill.rows.iter().chain([&all]);
    let width = rows().map(|row| subject(row).len()).max().unwrap_or(0).max(title.len());
    writeln!(to, "{} to {}", bill.from, bill.to)?;
    let money = if bill.priced { format!("SPEND {}", bill.currency) } else { String::new() };
    let head = format!(
        "{title:width$}  {:>15}  {:>10}  {:>8}  {money:>14}",
        "MESSAGES", "UNCERTAIN", "PEAK TPS"
    );
    writeln!(to, "{}", head.trim_end())?;
    for row in rows() {
        let money = if bill.priced { format!("{:.4}", row.spend) } else { String::new() };
        let (messages, uncertain, peak) = (row.messages, row.uncertain, row.peak_tps);
        let subject = subject(row);
        let line =
            format!("{subject:width$}  {messages:>15}  {uncertain:>10}  {peak:>8}  {money:>14}");
        writeln!(to, "{}", line.trim_end())?;
    }
    if !bill.priced {
        writeln!(to, "No price is set (billing.price_per_million), so there is no spend.")?;
    }
    Ok(())
}

/// Fields need no quotes: times, ids, topics, callers and numbers have neither commas nor quotes.
fn csv(bill: &Bill, to: &mut impl Write) -> io::Result<()> {
    let is_by_caller = bill.by == By::Caller;
    let more = if is_by_caller { ",caller" } else { "" };
    writeln!(to, "start,instance,topic,messages,uncertain,peak_tps,spend,currency{more}")?;
    for row in &bill.rows {
        let texts = [&row.start, &row.instance, &row.topic, &row.caller];
        let [start, instance, topic, caller] =
            texts.map(|text| text.as_deref().unwrap_or_default());
        let (messages, uncertain, peak, spend) =
            (row.messages, row.uncertain, row.peak_tps, row.spend);
        let currency = &bill.currency;
        writeln!(
            to,
            "{start},{instance},{topic},{messages},{uncertain},{peak},{spend:.6},{currency}{caller}"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bill_to_now_has_the_first_second_of_a_minute() {
        let after = |text: &str| minute_after(text.parse().unwrap());
        assert_eq!(after("1970-01-01T00:02:00Z"), 2);
        assert_eq!(after("1970-01-01T00:02:00.2Z"), 3);
        assert_eq!(after("1970-01-01T00:02:59Z"), 3);
    }
}
