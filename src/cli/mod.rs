//! The verbs of the command line. The only module that prints.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "verbs print")]

mod bill;
pub mod check;
mod client;
mod deliver;
#[cfg(feature = "emulator")]
mod demo;
mod dumps;
#[cfg(feature = "emulator")]
mod emulator;
mod focus;
mod generated;
mod get;
#[cfg(feature = "emulator")]
mod key_press;
mod keyring;
mod logging;
mod memory_share;
mod messages;
mod moment;
mod open_files;
mod probe;
mod reconcile;
mod reload;
mod run;
mod serve;
mod spool_room;
mod status;
#[cfg(feature = "emulator")]
mod story;
#[cfg(feature = "emulator")]
mod traffic;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use jiff::Timestamp;
use tokio::signal::unix::{Signal, SignalKind, signal};

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("TOLLGATE_COMMIT"), ")");

const ABOUT: &str = "Between your services and Alibaba Cloud ApsaraMQ for MQTT: a service POSTs raw \
                     bytes, tollgate signs the call, stays under the provider's ceilings and \
                     counts what is billed.";

const TRY_IT: &str = "\
Try it, with nothing to set up:
  tollgate demo
  curl -d hello http://127.0.0.1:8080/publish/TopicA

";

const EXAMPLES: &str = "\
Run it:
  tollgate check --config tollgate.toml
  tollgate serve --config tollgate.toml

Exit codes: 0 done, 1 failed at run time, 2 wrong usage, 3 stopped with accepted\nmessages that end with the pod, 4 configuration invalid.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version = VERSION, about = ABOUT, after_help = after_help())]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Serve(serve::Args),
    #[cfg(feature = "emulator")]
    Demo(demo::Args),
    Check(check::Args),
    #[cfg(feature = "emulator")]
    Emulator(emulator::EmulatorArgs),
    Messages(messages::Args),
    Bill(bill::Args),
    Status(status::Args),
    Get(get::Args),
    Keyring(keyring::Args),
    Completions(generated::CompletionsArgs),
    Man(generated::ManArgs),
}

/// Without the emulator there is no demo to try.
fn after_help() -> String {
    let try_it = if cfg!(feature = "emulator") { TRY_IT } else { "" };
    format!("{try_it}{EXAMPLES}")
}

/// Parses the command line and runs its verb.
pub fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Serve(args) => run::finish("serve", serve::run(&args)),
        #[cfg(feature = "emulator")]
        Verb::Demo(args) => run::finish("demo", demo::run(&args)),
        Verb::Check(args) => check::run(args),
        Verb::Messages(args) => run::finish("messages", messages::run(args)),
        Verb::Bill(args) => run::finish("bill", bill::run(&args)),
        Verb::Keyring(args) => run::finish("keyring", keyring::run(&args)),
        Verb::Status(args) => run::finish("status", status::run(&args)),
        Verb::Get(args) => run::finish("get", get::run(&args)),
        Verb::Completions(args) => run::finish("completions", generated::completions(&args)),
        Verb::Man(args) => run::finish("man", generated::man(&args)),
        #[cfg(feature = "emulator")]
        Verb::Emulator(args) => run::finish("emulator", emulator::run(args)),
    }
}

/// How long ago that was, in a few characters.
fn age(at: Timestamp) -> String {
    match Timestamp::now().duration_since(at).as_secs().max(0) {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ 120..7_200 => format!("{}m", seconds / 60),
        seconds @ 7_200..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// `1 sidecar`, `2 sidecars`.
fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// SIGTERM and Ctrl-C. Created before a verb prints that it runs: until then either ends the process at
/// once.
struct Stop {
    term: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Self> {
        let term = signal(SignalKind::terminate())?;
        Ok(Self { term, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of them.
    async fn received(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
