//! `tollgate demo`: the provider, the sidecar and its page in one process.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use super::run::{VerbError, runtime};
use super::{Stop, logging, open_files, traffic};
use crate::ceiling::Start;
use crate::config::{self, Config};
use crate::emulator::{self, DEMO_KEY_ID, DEMO_KEY_SECRET, Emulator};
use crate::keys::{Key, Keys};
use crate::sidecar::Sidecar;

/// The latency of a provider in the same region.
const LATENCY: Duration = Duration::from_millis(5);
/// The most egress addresses: four times 300 is more than the account's 1,000.
const MAX_ADDRESSES: u8 = 4;

/// Try tollgate: the provider, the sidecar and its page in one process, with nothing to set up
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tollgate demo --traffic 1500\n\n\
    1,000 messages a second are delivered, which is the account's ceiling; the others are refused with \
    Retry-After.")]
pub(super) struct Args {
    /// Also publish this many messages a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    traffic: Option<u32>,
    /// Where to listen for messages
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    publish: SocketAddr,
    /// Where to listen for browsers and Prometheus
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9464")]
    telemetry: SocketAddr,
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
    introduce(&publish, &telemetry, &provider.url(), addresses);
    tokio::select! {
        () = stop.received() => {}
        () = generate(args.traffic, publish, &provider) => {}
    }
    println!("\nStopping.");
    sidecar.drain(std::future::ready(())).await;
    provider.stop().await;
    Ok(())
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

async fn generate(rate: Option<u32>, publish: String, provider: &Emulator) {
    match rate {
        Some(rate) => traffic::run(publish, rate, || provider.report().worst_second).await,
        None => std::future::pending().await,
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
    let mut flags = vec![
        ("listen.publish", args.publish.to_string()),
        ("listen.telemetry", args.telemetry.to_string()),
        ("listen.control", "none".to_owned()),
        ("publish.wait", "1s".to_owned()),
        ("upstream.endpoint", endpoint.to_owned()),
        ("upstream.instance_id", "post-cn-demo".to_owned()),
        ("ceilings.account", "1000".to_owned()),
        ("spool.path", folder.0.display().to_string()),
        ("telemetry.log", "text".to_owned()),
        ("telemetry.level", if args.traffic.is_some() { "error" } else { "warn" }.to_owned()),
    ];
    if addresses > 1 {
        let names: Vec<_> = (1..=addresses).map(|last| format!("127.0.0.{last}")).collect();
        flags.push(("upstream.egress_addresses", names.join(", ")));
        flags.push(("ceilings.egress_ip", "300".to_owned()));
    }
    let flags: Vec<_> = flags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    match config::load(None, [], &flags) {
        Ok(loaded) => Ok(loaded.config),
        Err(mistakes) => Err(mistakes.to_string()),
    }
}

fn introduce(publish: &str, telemetry: &str, provider: &str, addresses: u8) {
    let ceilings = if addresses > 1 {
        "1,000 calls/s for the account, 300 for each of four egress addresses"
    } else {
        "1,000 calls/s for the account"
    };
    println!(
        "tollgate {version}: the provider, the sidecar and its page in one process\n\n  \
         publish   curl -d hello http://{publish}/publish/TopicA\n  \
         look      http://{telemetry}/\n  \
         metrics   curl http://{telemetry}/metrics\n  \
         provider  curl {provider}/_emulator/messages\n  \
         fail it   curl -d '[{{\"code\":\"SendMessageFailed\",\"for\":\"10s\"}}]' {provider}/_emulator/faults\n\n\
         Ceilings: {ceilings}. Ctrl-c stops.\n",
        version = super::VERSION,
    );
}
