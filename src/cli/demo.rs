//! `tollgate demo`: the provider, the sidecar and its page in one process.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;

use super::run::{VerbError, runtime};
use super::story::Story;
use super::traffic::DemoCallers;
use super::{Stop, key_press, logging, open_files};
use crate::ceiling::Start;
use crate::config::{self, Budget, BudgetScope, Config, Limit, Period};
use crate::emulator::{self, DEMO_KEY_ID, DEMO_KEY_SECRET, Emulator, Fault};
use crate::keys::{Key, Keys};
use crate::sidecar::Sidecar;

/// The latency of a provider in the same region.
const LATENCY: Duration = Duration::from_millis(5);
/// A price, what was bought, and a budget: what a day of the demo costs is for the page.
const PRICE_PER_MILLION: &str = "2";
const PLAN_TPS: &str = "800";
const BUDGET: f64 = 1.0;
/// The most egress addresses: four times 300 is more than the account's 1,000.
const MAX_ADDRESSES: u8 = 4;

/// Try tollgate: the provider, the sidecar and its page in one process, with nothing to set up
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  tollgate demo --story\n  tollgate demo --traffic 1500\n\n\
    The story takes two minutes, and ends with totals. Of 1,500 messages a second, 1,000 are delivered, which \
    is the account's ceiling; the others are refused with Retry-After. In a terminal, Enter begins and ends an \
    outage of the provider.")]
pub(super) struct Args {
    /// Also publish this many messages a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    traffic: Option<u32>,
    /// Tell what an outage, its retries and its recovery look like, in two minutes, and exit
    #[arg(long, conflicts_with = "traffic")]
    story: bool,
    /// How long each part of the story is, as a factor: for tests
    #[arg(long, hide = true, value_name = "FACTOR", default_value_t = 1.0, value_parser = pace, requires = "story")]
    story_pace: f64,
    /// Where to listen for messages
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    publish: SocketAddr,
    /// Where to listen for browsers and Prometheus
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
    telemetry: SocketAddr,
}

/// Reads how long each part of the story is.
fn pace(text: &str) -> Result<f64, String> {
    let pace = text.parse().ok().filter(|pace| (0.01..=10.0).contains(pace));
    pace.ok_or_else(|| "a pace is a number from 0.01 to 10".to_owned())
}

pub(super) fn run(args: &Args) -> Result<(), VerbError> {
    open_files::raise();
    Ok(runtime(2)?.block_on(demo(args))?)
}

async fn demo(args: &Args) -> Result<(), String> {
    let mut stop = Stop::listen().map_err(|error| error.to_string())?;
    let addresses = addresses();
    let options = emulator::EmulatorOptions {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        latency: LATENCY,
        egress_ip_qps: if addresses > 1 { 300 } else { 0 },
        ..emulator::EmulatorOptions::default()
    };
    let provider = Emulator::start(options).map_err(|error| error.to_string())?;
    let folder = TempFolder::new();
    let config = configuration(args, &provider.url(), addresses, &folder)?;
    let _log = logging::start(&config.telemetry);
    let key = Key::new(DEMO_KEY_ID, DEMO_KEY_SECRET.into(), None, None);
    let keys = Keys::fixed(key.map_err(|error| error.to_string())?);
    // The emulated provider has just started: its ceilings are unused.
    let sidecar = Sidecar::start(&config, keys, Start::Alone, fastrand::u64(..)).await;
    let sidecar = sidecar
        .map_err(|error| format!("{error}\nChoose other ports with --publish and --telemetry."))?;

    let publish = sidecar.addresses().publish.join(", ");
    let telemetry = sidecar.addresses().telemetry.clone();
    // The story has outages of its own.
    let presses = if args.story { None } else { key_press::enter() };
    introduce(&publish, &telemetry, &provider.url(), addresses, presses.is_some());
    let told = tokio::select! {
        () = stop.received() => Ok(()),
        () = outages(presses, &provider) => Ok(()),
        told = act(args, publish, telemetry, &provider) => told,
    };
    println!("\nStopping.");
    sidecar.drain(std::future::ready(())).await;
    provider.stop().await;
    told
}

/// Publishes as the arguments have it. Only a story has an end.
async fn act(
    args: &Args,
    publish: String,
    telemetry: String,
    provider: &Emulator,
) -> Result<(), String> {
    let callers = DemoCallers::new(publish);
    if args.story {
        return Story { callers, provider, telemetry, pace: args.story_pace }.tell().await;
    }
    if let Some(rate) = args.traffic {
        callers.publish_and_report(rate, || provider.report().worst_second).await;
    }
    std::future::pending().await
}

/// Begins an outage of the provider at a press, and ends it at the next one.
async fn outages(presses: Option<mpsc::Receiver<()>>, provider: &Emulator) {
    let Some(mut presses) = presses else { return std::future::pending().await };
    let mut fails = false;
    while presses.recv().await.is_some() {
        fails = !fails;
        let faults = if fails { vec![Fault::answer("SendMessageFailed")] } else { Vec::new() };
        if let Err(error) = provider.set_faults(faults) {
            println!("The provider takes no fault: {error}");
        } else if fails {
            println!(
                "The provider fails every call now: messages are stored (202). Enter ends it."
            );
        } else {
            println!("The provider works again: stored messages are delivered. Enter fails it.");
        }
    }
    // The terminal is gone, the demo is not.
    std::future::pending::<()>().await;
}

/// The folder of the demo's spool; removed at its end.
struct TempFolder(PathBuf);

impl TempFolder {
    fn new() -> Self {
        let name = format!("tollgate-demo-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        // What cannot be removed stays in the system's folder for temporary files.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// How many egress addresses there are: where 127.0.0.2 and the like can be used without
/// configuration, as on Linux, several.
fn addresses() -> u8 {
    let bindable = |last| TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), 0)).is_ok();
    if (2..=MAX_ADDRESSES).all(bindable) { MAX_ADDRESSES } else { 1 }
}

fn configuration(
    args: &Args,
    endpoint: &str,
    addresses: u8,
    folder: &TempFolder,
) -> Result<Config, String> {
    // A story, and the table of the traffic, say what happens in their own words.
    let level = match (args.story, args.traffic) {
        (true, _) => "off",
        (false, Some(_)) => "error",
        (false, None) => "warn",
    };
    let mut flags = vec![
        ("listen.publish", args.publish.to_string()),
        ("listen.telemetry", args.telemetry.to_string()),
        ("listen.control", "none".to_owned()),
        ("publish.wait", "1s".to_owned()),
        ("upstream.endpoint", endpoint.to_owned()),
        ("upstream.instance_id", "post-cn-demo".to_owned()),
        ("ceilings.account", "1000".to_owned()),
        ("spool.path", folder.0.display().to_string()),
        ("billing.price_per_million", PRICE_PER_MILLION.to_owned()),
        ("billing.plan_tps", PLAN_TPS.to_owned()),
        ("telemetry.log", "text".to_owned()),
        ("telemetry.level", level.to_owned()),
    ];
    if addresses > 1 {
        let names: Vec<_> = (1..=addresses).map(|last| format!("127.0.0.{last}")).collect();
        flags.push(("upstream.egress_addresses", names.join(", ")));
        flags.push(("ceilings.egress_ip", "300".to_owned()));
    }
    let flags: Vec<_> = flags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let loaded = config::load(None, [], &flags).map_err(|mistakes| mistakes.to_string())?;
    let mut config = loaded.config;
    config.billing.budgets.push(Budget {
        name: "demo".to_owned(),
        limit: Limit::Spend(BUDGET),
        period: Period::Day,
        time_zone: config.billing.time_zone.clone(),
        instance_id: None,
        parents: Vec::new(),
        callers: Vec::new(),
        refuse: false,
        scope: BudgetScope::Sidecar,
    });
    Ok(config)
}

fn introduce(publish: &str, telemetry: &str, provider: &str, addresses: u8, has_key: bool) {
    let ceilings = if addresses > 1 {
        "1,000 calls/s for the account, 300 for each of four egress addresses"
    } else {
        "1,000 calls/s for the account"
    };
    let enter = if has_key { "Enter begins and ends an outage of the provider. " } else { "" };
    println!(
        "tollgate {version}: the provider, the sidecar and its page in one process\n\n  \
         publish   curl -d hello http://{publish}/publish/TopicA\n  \
         look      http://{telemetry}/\n  \
         metrics   curl http://{telemetry}/metrics\n  \
         provider  curl {provider}/_emulator/messages\n  \
         fail it   curl -d '[{{\"code\":\"SendMessageFailed\",\"for\":\"10s\"}}]' {provider}/_emulator/faults\n\n\
         Ceilings: {ceilings}. {price} CNY per million messages, {plan} TPS bought, a budget of \
         {BUDGET:.2} CNY a day. {enter}Ctrl-c stops.\n",
        price = PRICE_PER_MILLION,
        plan = PLAN_TPS,
        version = super::VERSION,
    );
}
