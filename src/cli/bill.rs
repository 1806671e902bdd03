//! `tollgate bill`: what was sent and what it costs, from the ledger.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::client::SidecarClient;
use super::count;
use super::focus::{self, Account};
use super::moment::when;
use super::reconcile::Export;
use super::run::{VerbError, block_on, print, write_json};
use crate::config::{Config, Flags, Period};
use crate::control::bill_query;
use crate::meter::{
    Bill, BillRow, By, FleetCoverage, Loss, Meter, Query, SilentSidecar, Subject, fleet_bill,
    period_around,
};
use crate::sidecar;

/// Show message TPS and spend from the ledger
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tollgate bill --config tollgate.toml\n  \
    tollgate bill --from 2026-11-01 --to 2026-12-01 --by topic\n  \
    tollgate bill --from 24h --by topic,hour -o csv\n  \
    tollgate bill --by topic,day -o focus\n  \
    tollgate bill --against export.csv --by day\n  \
    tollgate bill --fleet --by caller,month\n\n\
    Asks a running sidecar over its control socket, or opens the ledger of a stopped one. The ledger \
    has this sidecar's own calls; the provider also bills deliveries to subscribers. With --fleet it reads from \
    the fleet's Redis what all its sidecars have counted, also those that are gone.")]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Start: a day, a time, or how long ago [default: the first of the month]
    #[arg(long, value_name = "WHEN")]
    from: Option<String>,
    /// End, which is not included: a day, a time, or how long ago [default: now]
    #[arg(long, value_name = "WHEN")]
    to: Option<String>,
    /// The bill of all sidecars that share fleet.url and fleet.account, by quarters of an hour
    #[arg(long)]
    fleet: bool,
    /// One row for each: hour, day or month; topic, instance or caller; or one of each, as in topic,day
    #[arg(long, value_name = "PERIOD|SUBJECT", default_value = "day")]
    by: By,
    /// Output format; focus is CSV in the columns of FOCUS 1.2, and needs a period in --by
    #[arg(short, long, value_enum, default_value = "table")]
    output: BillFormat,
    /// Compare with what the provider counts: CSV with the columns time, instance and messages. Exits with 1 if a
    /// difference is larger than the uncertain calls explain
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BillFormat {
    Table,
    Json,
    Csv,
    Focus,
}

pub(super) fn run(args: &Args) -> Result<(), VerbError> {
    let config = args.flags.load_for_operator()?.config;
    if let Some(file) = &args.against {
        return reconcile(args, file, &config);
    }
    let query = query(args, &config.billing.time_zone).map_err(VerbError::Usage)?;
    let focus = match (args.output, args.by.period) {
        (BillFormat::Focus, None) => {
            let what = "-o focus needs a period, as in --by topic,day";
            return Err(VerbError::Usage(what.to_owned()));
        }
        (_, period) => period.unwrap_or(Period::Day),
    };
    let bill = bill(args, query, &config)?;
    if args.output == BillFormat::Focus {
        in_zone(&bill, &config.billing.time_zone)?;
        if !bill.priced {
            eprintln!("No price is set (billing.price_per_million): every cost is 0.");
        }
    }
    print(|to| match args.output {
        BillFormat::Table => table(&bill, to),
        BillFormat::Csv => csv(&bill, to),
        BillFormat::Json => write_json(&bill, to),
        BillFormat::Focus => {
            let (id, region) =
                config.fleet.as_ref().map_or(("", ""), |fleet| (&fleet.account, &fleet.region));
            let account = Account { id, region, zone: &config.billing.time_zone };
            focus::write(&bill, focus, &account, to)
        }
    })
}

/// A sidecar that was started with another time zone counts other days.
fn in_zone(bill: &Bill, zone: &TimeZone) -> Result<(), String> {
    match zone.iana_name() {
        Some(name) if bill.time_zone != name => Err(format!(
            "the sidecar counts days of {}, and the configuration has {name} now: restart it first",
            bill.time_zone
        )),
        _ => Ok(()),
    }
}

/// Compares the ledger with an export of the provider's.
fn reconcile(args: &Args, file: &Path, config: &Config) -> Result<(), VerbError> {
    let zone = &config.billing.time_zone;
    let (Some(period), None) = (args.by.period, args.by.subject) else {
        let what = "--against compares instances: --by takes a period only (hour, day or month)";
        return Err(VerbError::Usage(what.to_owned()));
    };
    if args.output == BillFormat::Focus {
        return Err(VerbError::Usage("--against has no output in FOCUS".to_owned()));
    }
    let in_file = |error: String| VerbError::File(format!("{}: {error}", file.display()));
    let now = Timestamp::now();
    let given = |text: &Option<String>| {
        text.as_deref().map(|text| when(text, now, zone)).transpose().map_err(VerbError::Usage)
    };
    // Both sides count whole periods.
    let from = given(&args.from)?.map(|from| period_around(period, from, zone).0);
    let last = |to: Timestamp| {
        let (start, end) = period_around(period, to, zone);
        if start == to { to } else { end }
    };
    let range = (from, given(&args.to)?.map(last));
    if let (Some(from), Some(to)) = range
        && from >= to
    {
        return Err(VerbError::Usage(format!("--from ({from}) is not before --to ({to})")));
    }
    let opened = File::open(file).map_err(|error| in_file(error.to_string()))?;
    let export = Export::read(BufReader::new(opened), period, zone, range).map_err(in_file)?;
    let (from, to) = export.range(period, zone).unwrap_or((now, now));
    let (from, to) = (range.0.unwrap_or(from), range.1.unwrap_or(to));
    let by = By { period: Some(period), subject: Some(Subject::Instance) };
    let query = Query { from: from.as_second().div_euclid(60), to: minute_after(to), by };
    let bill = bill(args, query, config)?;
    in_zone(&bill, zone)?;
    let both = export.beside(&bill, period, zone, now);
    print(|to| match args.output {
        BillFormat::Table => both.table(to),
        BillFormat::Csv | BillFormat::Focus => both.csv(to),
        BillFormat::Json => write_json(&both, to),
    })?;
    match both.unexplained() {
        0 => Ok(()),
        rows => Err(VerbError::Runtime(format!(
            "the ledger does not explain {}",
            count(rows as u64, "row")
        ))),
    }
}

/// The bill of the sidecar with this configuration, or of its fleet.
fn bill(args: &Args, query: Query, config: &Config) -> Result<Bill, VerbError> {
    if !args.fleet {
        let (bill, source) = block_on(of_sidecar(query, config))?;
        // Of several on a machine, it may not be the one that was meant.
        if args.output == BillFormat::Table && args.against.is_none() {
            eprintln!("From {source}.");
        }
        return Ok(bill);
    }
    let Some(fleet) = &config.fleet else {
        return Err(VerbError::Usage("--fleet needs the fleet's Redis: set fleet.url".to_owned()));
    };
    let bill = block_on(fleet_bill(fleet, &config.billing, query))?;
    // Tables have this below them; other outputs have rows alone, or it is a part of them.
    if matches!(args.output, BillFormat::Csv | BillFormat::Focus) || args.against.is_some() {
        let mut notes = Vec::new();
        coverage(&bill, &mut notes)?;
        eprint!("{}", String::from_utf8_lossy(&notes));
    }
    Ok(bill)
}

/// The bill, and where it is from.
async fn of_sidecar(query: Query, config: &Config) -> Result<(Bill, String), String> {
    if let Some(mut sidecar) = SidecarClient::connect(config).await? {
        let body = sidecar.get(&format!("/bill?{}", bill_query(&query))).await?;
        return Ok((sidecar.read(&body)?, format!("the sidecar at {}", sidecar.address())));
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
    let source =
        format!("the ledger at {}; no sidecar runs with this spool.path", folder.display());
    let open =
        tokio::task::spawn_blocking(move || Meter::open(Some(&folder), topics, &billing, []));
    let meter =
        open.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let bill = meter.bill(query).await;
    meter.close().await;
    Ok((bill?, source))
}

// === which part ===

fn query(args: &Args, zone: &TimeZone) -> Result<Query, String> {
    let now = Timestamp::now();
    let when =
        |text: &Option<String>| text.as_deref().map(|text| when(text, now, zone)).transpose();
    let to = when(&args.to)?.unwrap_or(now);
    let month = || period_around(Period::Month, to, zone).0;
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
        peak_tps: bill.peak_tps,
        spend: bill.rows.iter().map(|row| row.spend).sum(),
        ..BillRow::default()
    };
    let period = bill.by.period.map(|period| By::period(period).to_string().to_uppercase());
    let subject_title = bill.by.subject.map(|subject| match subject {
        Subject::Topic => "INSTANCE TOPIC".to_owned(),
        Subject::Instance => "INSTANCE".to_owned(),
        Subject::Caller => "CALLER".to_owned(),
    });
    let title: Vec<_> = period.into_iter().chain(subject_title).collect();
    let title = title.join(" ");
    let rows = || bill.rows.iter().chain([&all]);
    let width = rows().map(|row| subject(row).len()).max().unwrap_or(0).max(title.len());
    writeln!(to, "{} to {} ({})", bill.from, bill.to, bill.time_zone)?;
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
    coverage(bill, to)
}

/// Which sidecars a fleet's bill is of, and what it lacks.
fn coverage(bill: &Bill, to: &mut impl Write) -> io::Result<()> {
    let Some(fleet) = &bill.fleet else { return Ok(()) };
    let FleetCoverage { account, reporting, ended, silent, .. } = fleet;
    let sidecars = count(fleet.sidecars as u64, "sidecar");
    writeln!(
        to,
        "Account {account}: {sidecars} in this time: {reporting} running, {ended} stopped in order, {silent} silent."
    )?;
    match &fleet.complete_from {
        None => writeln!(to, "Redis has no records of this account.")?,
        Some(from) => writeln!(to, "Complete from {from}; before, messages may be missing.")?,
    }
    for Loss { from, to: noticed } in fleet.losses.iter().take(MOST_NAMED) {
        writeln!(
            to,
            "Redis lost data between {from} and {noticed}: what sidecars wrote then that have ended may be missing."
        )?;
    }
    writeln!(
        to,
        "Uncertain: {} without a usable answer; {} that may have been made since a sidecar's last report.",
        count(fleet.unanswered, "call"),
        count(fleet.unreported, "call"),
    )?;
    for sidecar in fleet.silent_sidecars.iter().take(MOST_NAMED) {
        let SilentSidecar { name, id, reported, unreported } = sidecar;
        let calls = count(*unreported, "call");
        writeln!(to, "Silent since {reported}: {name} ({id}); up to {calls} since.")?;
    }
    match silent.saturating_sub(MOST_NAMED) {
        0 => {}
        more => writeln!(to, "And {more} more silent; -o json names a hundred.")?,
    }
    Ok(())
}

/// The most silent sidecars, and the most losses, below a table.
const MOST_NAMED: usize = 10;

/// Fields need no quotes: times, ids, topics, callers and numbers have neither commas nor quotes.
fn csv(bill: &Bill, to: &mut impl Write) -> io::Result<()> {
    let is_by_caller = bill.by.subject == Some(Subject::Caller);
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

    #[test]
    fn a_bill_of_a_fleet_says_what_it_lacks() {
        let silent = |n: usize| SilentSidecar {
            name: format!("pod-{n}"),
            id: "07".to_owned(),
            reported: "2026-11-29T09:00:00+08:00".to_owned(),
            unreported: 20,
        };
        let fleet = FleetCoverage {
            account: "shop".to_owned(),
            sidecars: 14,
            reporting: 1,
            ended: 1,
            silent: 12,
            silent_sidecars: (0..12).map(silent).collect(),
            complete_from: Some("2026-11-28T00:00:00+08:00".to_owned()),
            losses: vec![Loss { from: "09:00".to_owned(), to: "09:01".to_owned() }],
            unanswered: 1,
            unreported: 260,
        };
        let row =
            BillRow { start: Some("2026-11-29".to_owned()), messages: 7, ..BillRow::default() };
        let bill = Bill {
            from: "2026-11-01T00:00:00+08:00".to_owned(),
            to: "2026-12-01T00:00:00+08:00".to_owned(),
            time_zone: "Asia/Shanghai".to_owned(),
            by: By::period(Period::Day),
            currency: "CNY".to_owned(),
            priced: false,
            peak_tps: 90,
            fleet: Some(fleet),
            rows: vec![row],
        };
        let mut text = Vec::new();
        table(&bill, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for words in [
            "Account shop: 14 sidecars in this time: 1 running, 1 stopped in order, 12 silent.",
            "Complete from 2026-11-28T00:00:00+08:00;",
            "Redis lost data between 09:00 and 09:01: what",
            "Uncertain: 1 call without a usable answer; 260 calls that may have been made",
            "Silent since 2026-11-29T09:00:00+08:00: pod-9 (07); up to 20 calls since.",
            "And 2 more silent",
        ] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
        assert!(!text.contains("pod-10"));
        let mut text = Vec::new();
        table(&Bill { fleet: None, ..bill }, &mut text).unwrap();
        assert!(!String::from_utf8(text).unwrap().contains("sidecar"));
    }
}
