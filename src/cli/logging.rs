//! Log lines: to standard error, as JSON or for a person.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, reload};

use crate::config::{self, LogFormat};

/// Sets what is logged.
pub(super) type SetLevel = Box<dyn Fn(&str) + Send>;

/// Starts logging, and returns how to change its level.
pub(super) fn start(config: &config::Telemetry) -> SetLevel {
    let (level, handle) = reload::Layer::new(filter(&config.level));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match config.log {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    if let Err(error) = tracing_subscriber::registry().with(level).with(lines).try_init() {
        eprintln!("logging does not start: {error}");
    }
    // It fails only when logging has ended, and then there is no level.
    Box::new(move |level| drop(handle.reload(filter(level))))
}

/// Checked with the configuration; one that is no filter logs what a newcomer needs.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"))
}
