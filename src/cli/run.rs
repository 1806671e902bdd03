//! What all verbs share: how they fail and exit, the runtime, printing.

use std::io::{self, StdoutLock, Write};
use std::process::ExitCode;
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use serde::Serialize;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::config::ConfigErrors;

/// Why a verb fails. Its exit code is in `--help`.
pub(super) enum VerbError {
    /// At run time.
    Runtime(String),
    /// At run time, and already in the log.
    Logged,
    /// It stopped with accepted messages that end with the pod, and they are in the log.
    AtRisk,
    /// The command line is wrong in a way that clap cannot see.
    Usage(String),
    /// A file that the command line names is invalid.
    File(String),
    /// The configuration is invalid.
    Config(ConfigErrors),
}

impl VerbError {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Runtime(_) | Self::Logged => 1,
            // The same as clap's.
            Self::Usage(_) => 2,
            Self::AtRisk => 3,
            Self::File(_) | Self::Config(_) => 4,
        }
    }
}

impl From<String> for VerbError {
    fn from(error: String) -> Self {
        Self::Runtime(error)
    }
}

impl From<io::Error> for VerbError {
    fn from(error: io::Error) -> Self {
        Self::Runtime(error.to_string())
    }
}

impl From<ConfigErrors> for VerbError {
    fn from(errors: ConfigErrors) -> Self {
        Self::Config(errors)
    }
}

/// How `tollgate messages` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum MessagesFormat {
    Table,
    Json,
}

/// Prints why a verb failed, and turns that into its exit code.
pub(super) fn finish(verb: &str, done: Result<(), VerbError>) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    match &error {
        VerbError::Runtime(text) | VerbError::Usage(text) | VerbError::File(text) => {
            eprintln!("tollgate {verb}: {text}");
        }
        VerbError::Config(errors) => eprintln!("{errors}"),
        VerbError::Logged | VerbError::AtRisk => {}
    }
    error.exit_code().into()
}

/// Threads for blocking work that are there from the start, and remain: one for writes, and one for all else. When the
/// system gives no more (`pids.max`), work waits for these. With none there, the runtime panics in its caller.
const BLOCKING: usize = 2;
/// And the most: what hangs in a folder or a look-up of names keeps one each, within bounds of its own.
const MOST_BLOCKING: usize = 64;
/// How long a start waits for them.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer than any process lives.
const KEPT: Duration = Duration::from_hours(365 * 24);

/// A runtime with this many threads. An error: the system gives no thread.
pub(super) fn runtime(threads: usize) -> io::Result<Runtime> {
    let failed = |error| io::Error::other(format!("the runtime does not start: {error}"));
    first_threads(threads).map_err(|error| no_thread(&error.to_string()))?;
    let mut builder = if threads <= 1 {
        // A second thread costs more than it brings where there is one core.
        Builder::new_current_thread()
    } else {
        Builder::new_multi_thread()
    };
    let builder = builder.worker_threads(threads.max(1)).enable_all();
    let builder = builder.max_blocking_threads(MOST_BLOCKING).thread_keep_alive(KEPT);
    let runtime = builder.build().map_err(failed)?;
    // Each waits for the other, so that there are as many threads.
    let together = Arc::new(Barrier::new(BLOCKING));
    let waiting = std::iter::repeat_n(together, BLOCKING);
    let begun: Vec<_> = waiting.map(|all| runtime.spawn_blocking(move || all.wait())).collect();
    let all = runtime.block_on(async {
        let all = async {
            for thread in begun {
                drop(thread.await);
            }
        };
        timeout(PATIENCE, all).await
    });
    if all.is_err() {
        runtime.shutdown_background();
        return Err(no_thread("another process has taken the last"));
    }
    Ok(runtime)
}

fn no_thread(why: &str) -> io::Error {
    io::Error::other(format!(
        "no thread is to be had ({why}): raise the limit of processes (pids.max, podPidsLimit, RLIMIT_NPROC)"
    ))
}

/// Tries as many threads as the runtime is to begin with, which would panic without them.
fn first_threads(threads: usize) -> io::Result<()> {
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        // They remain until all are there, or one is not.
        let _shut = gate.lock();
        for _ in 0..threads.max(1) + BLOCKING {
            std::thread::Builder::new().spawn_scoped(scope, || drop(gate.lock()))?;
        }
        Ok(())
    })
}

/// Runs a future on one thread. A name that is still looked up does not hold up its result.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, VerbError> {
    let runtime = runtime(1)?;
    let result = runtime.block_on(future);
    runtime.shutdown_background();
    Ok(result?)
}

/// Writes to standard output. A reader that closes it early, such as `head`, is no error.
pub(super) fn print(
    write: impl FnOnce(&mut StdoutLock<'_>) -> io::Result<()>,
) -> Result<(), VerbError> {
    match write(&mut io::stdout().lock()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a value as JSON for a person.
pub(super) fn write_json(value: &impl Serialize, to: &mut impl Write) -> io::Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    writeln!(to, "{text}")
}
