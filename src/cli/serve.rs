//! `tollgate serve`

use std::fmt::Display;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::logging::SetLevel;
use super::run::{VerbError, runtime};
use super::{Stop, logging, raise_open_files};
use crate::ceiling::Start;
use crate::config::{Flags, Loaded};
use crate::keys::Keys;
use crate::sidecar::{Sidecar, StartError};

/// How often the configuration file is checked for changes.
const POLL: Duration = Duration::from_secs(2);
/// Time limit for writes to the disk that are still under way at the end.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// Run the sidecar
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tollgate serve --config /etc/tollgate/tollgate.toml")]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn run(args: &Args) -> Result<(), VerbError> {
    // Before it is loaded: a change in between is then found as a later one.
    let contents = args.flags.config.as_ref().and_then(|path| std::fs::read(path).ok());
    let loaded = args.flags.load()?;
    let set_level = logging::start(&loaded.config.telemetry);
    raise_open_files();
    let runtime = runtime(loaded.config.runtime.threads).map_err(|error| logged(&error))?;
    let served = runtime.block_on(serve(&args.flags, loaded, contents, set_level));
    // Without a limit, a thread that waits for a hung disk would keep the process from ending.
    runtime.shutdown_timeout(LAST_WRITES);
    served
}

async fn serve(
    flags: &Flags,
    loaded: Loaded,
    contents: Option<Vec<u8>>,
    set_level: SetLevel,
) -> Result<(), VerbError> {
    let config = &loaded.config;
    if config.ceilings.above_published {
        tracing::warn!(
            account = config.ceilings.account,
            egress_ip = config.ceilings.egress_ip,
            "ceilings above the provider's published ones, as ceilings.allow_above_published asks: \
             the provider may throttle the account and block this address"
        );
    }
    let signals = Stop::listen().and_then(|stop| Ok((stop, signal(SignalKind::hangup())?)));
    let (mut stop, hangup) = signals.map_err(|error| logged(&error))?;
    let started = async {
        let keys = Keys::start(&config.keys, CancellationToken::new())?;
        Sidecar::start(config, keys, Start::AfterOthers, fastrand::u64(..)).await
    };
    let sidecar = started.await.map_err(|error: StartError| logged(&error))?;
    let addresses = sidecar.addresses();
    tracing::info!(
        version = super::VERSION,
        publish = addresses.publish.join(", "),
        telemetry = addresses.telemetry,
        upstream = config.upstream.endpoint.authority(),
        account = config.ceilings.account,
        egress_ip = config.ceilings.egress_ip,
        "tollgate is serving"
    );
    tokio::select! {
        () = stop.received() => {}
        () = reload_changes(flags, &loaded, contents, &sidecar, hangup, set_level) => {}
    }
    tracing::info!(grace = ?config.drain.grace, "stopping: finishing messages on their way");
    let left = sidecar.drain(stop.received()).await;
    if left > 0 {
        // None of them was accepted: their callers got no reply.
        tracing::warn!(messages = left, "stopped before all messages on their way finished");
    }
    tracing::info!("stopped");
    Ok(())
}

/// The log is where the operator looks for what a sidecar fails with.
fn logged(error: &dyn Display) -> VerbError {
    tracing::error!(%error, "tollgate does not start");
    VerbError::Logged
}

/// Reloads the configuration at SIGHUP and when its file has changed. Contents are compared:
/// a `ConfigMap` changes by a swap of links that fools file watchers.
async fn reload_changes(
    flags: &Flags,
    started: &Loaded,
    mut contents: Option<Vec<u8>>,
    sidecar: &Sidecar,
    mut hangup: Signal,
    set_level: SetLevel,
) {
    let mut polls = interval(POLL);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = hangup.recv() => {}
            _ = polls.tick() => {
                let now = self::contents(flags).await;
                // There may be no file for a moment while it is being replaced.
                if now.is_none() || now == contents {
                    continue;
                }
                contents = now;
            }
        }
        match flags.load() {
            Ok(newer) => {
                let (config, waiting) = started.reloaded(&newer);
                if let Some(config) = config {
                    sidecar.reload(&config);
                    set_level(&config.telemetry.level);
                    tracing::info!(
                        account = config.ceilings.account,
                        egress_ip = config.ceilings.egress_ip,
                        "configuration reloaded"
                    );
                }
                if !waiting.is_empty() {
                    tracing::warn!(keys = waiting.join(", "), "these changes need a restart");
                }
            }
            Err(mistakes) => {
                tracing::error!(%mistakes, "the new configuration is invalid: nothing has changed");
            }
        }
    }
}

/// The configuration file's bytes, read on a thread where a slow disk delays nothing else.
async fn contents(flags: &Flags) -> Option<Vec<u8>> {
    let path = flags.config.clone()?;
    tokio::task::spawn_blocking(move || std::fs::read(path).ok()).await.ok()?
}
