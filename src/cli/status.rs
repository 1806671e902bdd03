//! `tollgate status`: one screen of a running sidecar, from what its page shows.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::asking::Asking;
use super::{age, exit, runtime};
use crate::config::Flags;

/// What Redis may take to name the members of a fleet.
const MEMBERS: Duration = Duration::from_secs(5);

/// Show a running sidecar on one screen: ceilings, backlog, spend, key, and what is wrong
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tollgate status --config tollgate.toml\n  \
    tollgate status --at 127.0.0.1:9464 -o json\n  \
    tollgate status --fleet\n\n\
    Asks its telemetry listener, which has all of this as a page, too. Exits with 1 if it does not \
    answer.")]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Where its telemetry listener is; without it, listen.telemetry of the configuration
    #[arg(long, value_name = "ADDRESS")]
    at: Option<SocketAddr>,
    /// Show all sidecars that share its ceilings: permits, calls, who waits
    #[arg(long)]
    fleet: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let at = match args.at {
        Some(at) => at,
        None => match args.flags.load() {
            Ok(loaded) => here(loaded.config.listen.telemetry),
            Err(mistakes) => {
                eprintln!("{mistakes}");
                return exit::BAD_CONFIG.into();
            }
        },
    };
    let done = runtime(1)
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(ask(at, args.fleet)))
        .and_then(|status| print(&status, args));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("tollgate status: {problem}");
            exit::FAILED.into()
        }
    }
}

/// A listener on all addresses is one on this machine's own.
fn here(mut at: SocketAddr) -> SocketAddr {
    if at.ip().is_unspecified() {
        at.set_ip(match at.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    at
}

async fn ask(at: SocketAddr, fleet: bool) -> Result<Value, String> {
    let hidden = |error| format!("no sidecar is to be seen: {error}");
    let mut sidecar = Asking::at(at).await.map_err(hidden)?;
    let begun = Instant::now();
    loop {
        let body = sidecar.get("/status.json").await.map_err(hidden)?;
        let status: Value = sidecar.read(&body)?;
        // It asks Redis for the others when it is asked, and knows them a moment later.
        let shares = !status["fleet"].is_null();
        let knows = !status["fleet"]["at"].is_null() || begun.elapsed() >= MEMBERS;
        match (fleet, shares, knows) {
            (true, false, _) => {
                return Err("this sidecar shares its ceilings with nobody (fleet.url)".to_owned());
            }
            (true, true, false) => sleep(Duration::from_millis(50)).await,
            _ => return Ok(status),
        }
    }
}

/// Whoever reads may have seen enough: that is no error.
fn print(status: &Value, args: &Args) -> Result<(), String> {
    let status = if args.fleet { &status["fleet"] } else { status };
    let mut to = io::stdout().lock();
    let written = match args.output {
        Output::Json => serde_json::to_string_pretty(status)
            .map_err(io::Error::other)
            .and_then(|text| writeln!(to, "{text}")),
        Output::Text if args.fleet => members(status, &mut to),
        Output::Text => screen(status, &mut to),
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn screen(status: &Value, to: &mut impl Write) -> io::Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let (version, endpoint) = (text(&status["version"]), text(&status["endpoint"]));
    let up = since(&status["started"]);
    writeln!(to, "tollgate {version} -> {endpoint}, up {up}")?;
    match status["concerns"].as_array().map(Vec::as_slice) {
        Some([]) | None => writeln!(to, "All is well")?,
        Some(concerns) => {
            for concern in concerns {
                let mark = if concern["level"] == "bad" { "WRONG" } else { "MIND" };
                let (title, detail) = (text(&concern["title"]), text(&concern["detail"]));
                writeln!(
                    to,
                    "{mark:5}  {title}\n       {detail}\n       {}",
                    text(&concern["todo"])
                )?;
            }
        }
    }
    writeln!(to)?;
    let mut line = |name: &str, words: String| writeln!(to, "{name:14}{words}");
    let plan = status["plan_tps"].as_u64().map(|plan| format!(", {plan} bought"));
    let (tps, peak) = (&status["tps"], &status["tps_peak"]);
    line("message TPS", format!("{tps}, peak {peak}{}", plan.unwrap_or_default()))?;
    for ceiling in status["ceilings"].as_array().into_iter().flatten() {
        let limit =
            ceiling["limit"].as_u64().map_or("no ceiling".to_owned(), |n| format!("of {n}"));
        let parked = match ceiling["parked"].as_u64() {
            Some(parked) if parked > 0 => format!(", {parked} withheld after push-back"),
            _ => String::new(),
        };
        let unanswered = match ceiling["unanswered"].as_u64() {
            Some(unanswered) if unanswered > 0 => format!(", {unanswered} without an answer"),
            _ => String::new(),
        };
        let used = &ceiling["used"];
        line(&text(&ceiling["name"]), format!("{used} {limit}{unanswered}{parked}"))?;
    }
    if let Some(mode) = status["fleet"]["mode"].as_str() {
        line(
            "fleet",
            format!("{mode}, {} sidecars (--fleet shows them)", status["fleet"]["size"]),
        )?;
    }
    line("waiting", format!("{} for a permit", status["waiting"]))?;
    let kept = &status["kept"];
    let words = if kept.is_null() {
        "nothing (spool.store = \"none\")".to_owned()
    } else {
        let oldest = if kept["oldest"].is_null() {
            String::new()
        } else {
            format!(", the oldest for {}", since(&kept["oldest"]))
        };
        format!("{} to deliver{oldest}, {} dead letters", kept["queued"], kept["dead"])
    };
    line("kept", words)?;
    for paused in status["paused"].as_array().into_iter().flatten().take(10) {
        let (topic, why) = (text(&paused["topic"]), text(&paused["why"]));
        line("paused", format!("{topic}: {why}, {} wait", paused["messages"]))?;
    }
    let spend = &status["spend"];
    let today = &spend["today"];
    let money = match (spend["priced"].as_bool(), today["spend"].as_f64()) {
        (Some(true), Some(money)) => format!(", {money:.2} {}", text(&spend["currency"])),
        _ => String::new(),
    };
    line("today", format!("{} billed, {} perhaps{money}", today["messages"], today["uncertain"]))?;
    for budget in spend["budgets"].as_array().into_iter().flatten() {
        let left = budget["remaining_ratio"].as_f64().unwrap_or_default() * 100.0;
        line("budget", format!("{}: {left:.0} % left", text(&budget["name"])))?;
    }
    let key = &status["key"];
    let expires = if key["expires"].is_null() {
        "does not expire".to_owned()
    } else {
        format!("expires {}", text(&key["expires"]))
    };
    line(
        "key",
        format!("{}, taken up {} ago, {expires}", text(&key["source"]), since(&key["loaded"])),
    )?;
    line("last answer", format!("{} ago", since(&status["last_answer"])))?;
    for error in status["errors"].as_array().into_iter().flatten().take(5) {
        let (code, words) = (text(&error["code"]), text(&error["words"]));
        line(
            "error",
            format!(
                "{code}, {} times, last {} ago: {words}",
                error["count"],
                since(&error["last"])
            ),
        )?;
    }
    Ok(())
}

/// All sidecars of a fleet.
fn members(fleet: &Value, to: &mut impl Write) -> io::Result<()> {
    let (mode, account) = (&fleet["mode"], &fleet["account"]);
    writeln!(to, "Account {account}: {} sidecars; this one is {mode}", fleet["size"])?;
    if let Some(seconds) = fleet["opens_in_seconds"].as_f64().filter(|seconds| *seconds > 0.0) {
        writeln!(to, "Redis learns which permits are out, for {:.0} s more", seconds.ceil())?;
    }
    let Some(members) = fleet["members"].as_array().filter(|members| !members.is_empty()) else {
        return writeln!(to, "Redis does not say who they are");
    };
    let width = members.iter().filter_map(|member| member["name"].as_str().map(str::len));
    let width = width.max().unwrap_or(0).clamp(7, 60);
    writeln!(
        to,
        "\n{:width$}  {:>6}  {:>6}  {:>7}  {:>7}  {:>5}",
        "SIDECAR", "SHARE", "USED", "WAITING", "LONGEST", "SEEN"
    )?;
    for member in members {
        let name = member["name"].as_str().unwrap_or("-");
        // A `Value` is printed without its width.
        let [share, used, waiting] =
            [&member["share"], &member["used"], &member["waiting"]].map(ToString::to_string);
        let longest = format!("{:.1}s", member["longest_wait_seconds"].as_f64().unwrap_or(0.0));
        let group = member["egress_group"].as_str().unwrap_or_default();
        let starved = if member["starved"] == true { "STARVED" } else { "" };
        let seen = since(&member["seen"]);
        let line = format!(
            "{name:width$}  {share:>6}  {used:>6}  {waiting:>7}  {longest:>7}  {seen:>5}  {group} \
             {starved}"
        );
        writeln!(to, "{}", line.trim_end())?;
    }
    let (all, shown) = (fleet["size"].as_u64().unwrap_or(0), members.len() as u64);
    if all > shown {
        writeln!(to, "and {} more", all - shown)?;
    }
    Ok(())
}

/// How long ago.
fn since(at: &Value) -> String {
    let at = at.as_str().and_then(|at| at.parse::<Timestamp>().ok());
    at.map_or_else(|| "-".to_owned(), age)
}
