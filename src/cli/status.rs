//! `tollgate status`: one screen of a running sidecar, from its `/status.json`.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::client::SidecarClient;
use super::run::{VerbError, block_on, print, write_json};
use super::{age, count};
use crate::config::Flags;
use crate::telemetry::{Concern, FleetView, MemberView, SidecarStatus};

/// How long Redis may take to list the members of a fleet.
const MEMBERS_TIMEOUT: Duration = Duration::from_secs(5);

/// Show a running sidecar on one screen: ceilings, backlog, spend, key, and problems
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tollgate status --config tollgate.toml\n  \
    tollgate status --at 127.0.0.1:9464 -o json\n  \
    tollgate status --fleet\n\n\
    Asks the sidecar's telemetry listener, which also serves all of this as a page. Exits with 1 if \
    the sidecar does not answer.")]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Address of the telemetry listener, or a name with its port [default: listen.telemetry of the configuration]
    #[arg(long, value_name = "ADDRESS")]
    at: Option<String>,
    /// Show all sidecars that share its ceilings: their permits, calls and waiting messages
    #[arg(long)]
    fleet: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value = "text")]
    output: StatusFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum StatusFormat {
    Text,
    Json,
}

pub(super) fn run(args: &Args) -> Result<(), VerbError> {
    let at = match &args.at {
        Some(at) => at.clone(),
        None => local(args.flags.load_for_operator()?.config.listen.telemetry).to_string(),
    };
    let (body, status) = block_on(fetch(&at, args))?;
    match (args.output, &status.fleet) {
        (StatusFormat::Json, _) => {
            let status: Value = serde_json::from_slice(&body).map_err(io::Error::other)?;
            print(|to| write_json(if args.fleet { &status["fleet"] } else { &status }, to))
        }
        (StatusFormat::Text, Some(fleet)) if args.fleet => print(|to| members(fleet, to)),
        (StatusFormat::Text, _) => print(|to| screen(&status, to)),
    }
}

/// A listener on all addresses is reached at the loopback address.
pub(super) fn local(mut at: SocketAddr) -> SocketAddr {
    if at.ip().is_unspecified() {
        at.set_ip(match at.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    at
}

/// The status, also as it was sent. With `--fleet`, it has a fleet with its members.
async fn fetch(at: &str, args: &Args) -> Result<(Bytes, SidecarStatus), String> {
    let silent =
        |error| format!("no sidecar answers at {at}: {error}; check --at or listen.telemetry");
    let mut sidecar = SidecarClient::at(at).await.map_err(silent)?;
    let begun = Instant::now();
    loop {
        let body = sidecar.get("/status.json").await.map_err(silent)?;
        let status: SidecarStatus = sidecar.read(&body)?;
        match &status.fleet {
            None if args.fleet => {
                return Err("this sidecar does not share its ceilings (fleet.url)".to_owned());
            }
            // A request makes it ask Redis for the members; a later one has them.
            Some(fleet)
                if args.fleet && fleet.at.is_none() && begun.elapsed() < MEMBERS_TIMEOUT =>
            {
                sleep(Duration::from_millis(50)).await;
            }
            _ => return Ok((body, status)),
        }
    }
}

fn screen(status: &SidecarStatus, to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "{}", head(status))?;
    if status.concerns.is_empty() {
        writeln!(to, "No problems")?;
    }
    for concern in &status.concerns {
        let Concern { level, title, detail, remedy, .. } = concern;
        let (mark, times) = (level.word().to_uppercase(), times(concern));
        writeln!(to, "{mark}  {title}{times}\n         {detail}\n         {remedy}")?;
    }
    writeln!(to)?;
    for (name, text) in figures(status) {
        writeln!(to, "{name:14}{text}")?;
    }
    Ok(())
}

/// Which sidecar it is.
fn head(status: &SidecarStatus) -> String {
    let SidecarStatus { version, endpoint, started, name, region, fleet, .. } = status;
    let names = status.instances.iter().map(|instance| ("instance", &**instance));
    let names = names.chain([("region", &**region)]);
    let names = names.chain(fleet.as_ref().map(|fleet| ("fleet", &*fleet.account)));
    let names = names.filter(|(_, name)| !name.is_empty());
    let names = names.map(|(what, name)| format!("{what} {name}")).collect::<Vec<_>>().join(", ");
    let which = match (&**name, &*names) {
        ("", _) => String::new(),
        (name, "") => format!(" {name}"),
        (name, names) => format!(" {name} ({names})"),
    };
    format!("tollgate {version}{which} -> {endpoint}, up {}", age(*started))
}

/// When a concern began, and whether it is there now.
fn times(concern: &Concern) -> String {
    let since = concern.since.map(|at| format!(", began {} ago", age(at)));
    let gone = concern.last_seen.map(|at| format!(", last seen {} ago", age(at)));
    since.unwrap_or_default() + &gone.unwrap_or_default()
}

/// What callers got in the last minute.
fn accepted(status: &SidecarStatus) -> String {
    let minute = &status.last_minute;
    let Some(ratio) = minute.accepted_ratio else {
        return "no request in the last minute".to_owned();
    };
    let parts = [("delivered", minute.delivered), ("stored", minute.stored)];
    let parts = parts.into_iter().chain([("refused", minute.refused), ("failed", minute.failed)]);
    let parts = parts.filter(|(_, n)| *n > 0).map(|(word, n)| format!("{n} {word}"));
    let parts = parts.collect::<Vec<_>>().join(", ");
    let quantile = |name, seconds: Option<f64>| {
        seconds.map(|seconds| format!(", {name} {}", short(seconds))).unwrap_or_default()
    };
    let (p50, p99) = (quantile("p50", minute.p50_seconds), quantile("p99", minute.p99_seconds));
    format!("{} of the last minute: {parts}{p50}{p99}", share(ratio))
}

/// A share is 100 % only if nothing is missing.
fn share(ratio: f64) -> String {
    let percent = (ratio * 1_000.0).floor() / 10.0;
    if percent.fract() == 0.0 { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

/// A wait, in the unit that suits it.
fn short(seconds: f64) -> String {
    match seconds {
        ..0.001 => "under 1 ms".to_owned(),
        ..1.0 => format!("{:.0} ms", seconds * 1_000.0),
        _ => format!("{seconds:.1} s"),
    }
}

/// The lines below the problems, each with its name. The page has the same names.
fn figures(status: &SidecarStatus) -> Vec<(&str, String)> {
    let plan = status.plan_tps.map(|plan| format!(", {plan} bought")).unwrap_or_default();
    let mut lines = vec![
        ("accepted", accepted(status)),
        ("message TPS", format!("{}, peak {}{plan}", status.tps, status.tps_peak)),
    ];
    for ceiling in &status.ceilings {
        let limit = ceiling.limit.map_or("no ceiling".to_owned(), |limit| format!("of {limit}"));
        let part = |n: usize, what: &str| match n {
            0 => String::new(),
            _ => format!(", {n} {what}"),
        };
        let unanswered = part(ceiling.unanswered, "without an answer");
        let parked = part(ceiling.parked, "withheld after throttling");
        lines.push((&ceiling.name, format!("{} {limit}{unanswered}{parked}", ceiling.used)));
    }
    if let Some(fleet) = &status.fleet {
        let size = match fleet.size {
            0 => String::new(),
            size => format!(", {} (--fleet shows them)", count(size as u64, "sidecar")),
        };
        lines.push(("fleet", format!("{}{size}", fleet.mode.as_str())));
    }
    lines.push(("waiting", format!("{} for a permit", status.waiting)));
    let kept = status.kept.as_ref().map_or("nothing (spool.store = \"none\")".to_owned(), |kept| {
        let outlook = match (kept.queued, &*status.backlog.outlook) {
            (0, _) | (_, "") => String::new(),
            (_, outlook) => format!(", {outlook}"),
        };
        let oldest = kept.oldest.map(|at| format!(", the oldest for {}", age(at)));
        let (oldest, dead) = (oldest.unwrap_or_default(), count(kept.dead, "dead letter"));
        format!("{}{oldest}{outlook}; {dead}", count(kept.queued, "message"))
    });
    lines.push(("backlog", kept));
    for paused in status.paused.iter().take(10) {
        let text = format!("{}: {}, {} stored", paused.topic, paused.why, paused.messages);
        lines.push(("paused", text));
    }
    let (spend, today) = (&status.spend, &status.spend.today);
    let money = if spend.priced {
        format!(", {:.2} {}", today.spend, spend.currency)
    } else {
        String::new()
    };
    let text = format!("{} billed, {} uncertain{money}", today.messages, today.uncertain);
    lines.push(("today", text));
    for budget in &spend.budgets {
        let left = budget.remaining_ratio * 100.0;
        lines.push(("budget", format!("{}: {left:.0} % left", budget.name)));
    }
    let key = &status.key;
    let loaded = key.loaded.map_or("not loaded yet".to_owned(), |at| {
        let expires = key.expires.map(|at| format!("expires {at}"));
        format!("loaded {} ago, {}", age(at), expires.as_deref().unwrap_or("does not expire"))
    });
    let refused = key.refused.as_ref().map(|id| format!("; the new key {id} is refused"));
    lines.push(("key", format!("{}, {loaded}{}", key.source, refused.unwrap_or_default())));
    let answer = status.last_answer.map_or("none yet".to_owned(), |at| format!("{} ago", age(at)));
    lines.push(("last answer", answer));
    for error in status.errors.iter().take(5) {
        let (times, last) = (count(error.count, "time"), age(error.last));
        let id = error.request_id.as_deref().map(|id| format!(" (RequestId {id})"));
        let (code, what, id) = (&error.code, &error.explanation, id.unwrap_or_default());
        let text = format!("{code}, {times}, last {last} ago{id}: {what}");
        lines.push(("error", text));
    }
    lines
}

/// All sidecars of a fleet.
fn members(fleet: &FleetView, to: &mut impl Write) -> io::Result<()> {
    let (mode, size) = (fleet.mode.as_str(), count(fleet.size as u64, "sidecar"));
    let region = match (&*fleet.region, fleet.all_regions) {
        ("", _) => "all regions".to_owned(),
        (region, false) => format!("region {region}"),
        (region, true) => format!("region {region}, whose ceiling is shared with all regions"),
    };
    writeln!(to, "Account {}, {region}: {size}; this one is {mode}", fleet.account)?;
    if fleet.opens_in_seconds > 0.0 {
        let seconds = fleet.opens_in_seconds.ceil();
        writeln!(to, "Redis is learning which permits are in use, for {seconds:.0} s more")?;
    }
    if fleet.members.is_empty() {
        return writeln!(to, "Redis does not list them");
    }
    let width = fleet.members.iter().map(|member| member.name.len()).max().unwrap_or(0);
    let width = width.clamp(7, 60);
    writeln!(
        to,
        "\n{:width$}  {:>6}  {:>6}  {:>7}  {:>7}  {:>5}",
        "SIDECAR", "SHARE", "USED", "WAITING", "LONGEST", "SEEN"
    )?;
    for member in &fleet.members {
        let MemberView { name, share, used, waiting, region, egress_group, .. } = member;
        let longest = format!("{:.1}s", member.longest_wait_seconds);
        let starved = if member.starved { "STARVED" } else { "" };
        let seen = age(member.seen);
        let line = format!(
            "{name:width$}  {share:>6}  {used:>6}  {waiting:>7}  {longest:>7}  {seen:>5}  \
             {region} {egress_group} {starved}"
        );
        writeln!(to, "{}", line.trim_end())?;
    }
    match fleet.size.saturating_sub(fleet.members.len()) {
        0 => Ok(()),
        unlisted => writeln!(to, "and {unlisted} more"),
    }
}
