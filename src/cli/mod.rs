//! The verbs. The only place that prints.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where tollgate speaks")]

mod asking;
mod bill;
pub mod check;
#[cfg(feature = "emulator")]
mod demo;
#[cfg(feature = "emulator")]
mod emulator;
mod logging;
mod messages;
mod serve;
mod status;
#[cfg(feature = "emulator")]
mod traffic;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use jiff::Timestamp;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Exit codes; `--help` has them in words.
mod exit {
    pub(super) const FAILED: u8 = 1;
    /// As clap says it.
    pub(super) const USAGE: u8 = 2;
    pub(super) const BAD_CONFIG: u8 = 4;
}

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("TOLLGATE_COMMIT"), ")");

const ABOUT: &str = "Between your services and Alibaba Cloud ApsaraMQ for MQTT: a service POSTs raw \
                     bytes, tollgate signs the call, keeps under the provider's ceilings and \
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

Exit codes: 0 done, 1 failed at run time, 2 wrong usage, 4 configuration invalid.";

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
}

/// Without the emulator there is no demo to try.
fn after_help() -> String {
    let try_it = if cfg!(feature = "emulator") { TRY_IT } else { "" };
    format!("{try_it}{EXAMPLES}")
}

/// Parses the command line and runs its verb.
pub fn main() -> ExitCode {
    match Cli::parse().verb {
        Verb::Serve(args) => serve::run(&args),
        #[cfg(feature = "emulator")]
        Verb::Demo(args) => demo::run(&args),
        Verb::Check(args) => check::run(args),
        Verb::Messages(args) => messages::run(args),
        Verb::Bill(args) => bill::run(&args),
        Verb::Status(args) => status::run(&args),
        #[cfg(feature = "emulator")]
        Verb::Emulator(args) => match runtime(1) {
            Ok(runtime) => runtime.block_on(emulator::run(args)),
            Err(error) => {
                eprintln!("tollgate emulator: the runtime does not start: {error}");
                exit::FAILED.into()
            }
        },
    }
}

/// How long ago it was, in few characters.
fn age(at: Timestamp) -> String {
    match Timestamp::now().duration_since(at).as_secs().max(0) {
        seconds @ ..120 => format!("{seconds}s"),
        seconds @ 120..7_200 => format!("{}m", seconds / 60),
        seconds @ 7_200..172_800 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// A runtime with this many threads.
fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = if threads <= 1 {
        // A second thread costs more than it brings where there is one core.
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    builder.worker_threads(threads.max(1)).enable_all().build()
}

/// Raises the soft limit of open files to the hard one: each waiting caller holds a connection.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

/// SIGTERM and ctrl-c. Made before anything is announced: until then either ends the process at
/// once, whatever it is doing.
struct Stop {
    term: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Self> {
        let term = signal(SignalKind::terminate())?;
        Ok(Self { term, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Resolves at the next of them.
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
