//! Log lines: to standard error, as JSON or for a person.
//!
//! A thread of its own writes them, from a bounded queue: a reader of standard error that stalls (a
//! pipe, a terminal, a full disk of the container runtime) would else stop every thread that logs. Lines
//! that find the queue full are dropped, and counted in `tollgate_log_lines_dropped_total`.

use std::io::IsTerminal;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::Handle;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{self, LogFormat};
use crate::log_limiter;

/// The most lines that wait to be written: at some hundred bytes each, a megabyte or two.
const MOST_LINES: usize = 4_096;

/// The running log. When it is dropped, the lines that wait are written, within about a second.
pub(super) struct Log {
    level: Handle<EnvFilter, Registry>,
    _writer: WorkerGuard,
}

impl Log {
    /// Changes what is logged.
    pub(super) fn set_level(&self, level: &str) {
        // It fails only when logging has ended, and then there is no level.
        drop(self.level.reload(filter(level)));
    }
}

/// Starts logging.
pub(super) fn start(config: &config::Telemetry) -> Log {
    let (level, handle) = reload::Layer::new(filter(&config.level));
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MOST_LINES)
        .thread_name("log")
        .finish(std::io::stderr());
    let dropped = writer.error_counter();
    log_limiter::count_dropped_lines(move || dropped.dropped_lines() as u64);
    let lines = fmt::layer().with_writer(writer);
    let lines = match config.log {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    if let Err(error) = tracing_subscriber::registry().with(level).with(lines).try_init() {
        eprintln!("logging does not start: {error}");
    }
    // The default hook writes to standard error from the thread that panics.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a task has panicked")));
    Log { level: handle, _writer: guard }
}

/// Checked with the configuration; one that is no filter logs what a newcomer needs.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"))
}
