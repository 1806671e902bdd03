//! `tollgate serve`

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::logging::SetLevel;
use super::{Stop, exit, logging, raise_open_files, runtime};
use tokio_util::sync::CancellationToken;

use crate::ceiling::Start;
use crate::config::{Flags, Loaded};
use crate::keys::Keys;
use crate::sidecar::Sidecar;

/// How often the configuration file is compared.
const LOOK: Duration = Duration::from_secs(2);
/// What the disk may take for what was still being written at the end.
const LAST_WRITES: Duration = Duration::from_secs(1);

/// Run the sidecar
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tollgate serve --config /etc/tollgate/tollgate.toml")]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn run(args: &Args) -> ExitCode {
    // Before it is read: a change in between is taken up as a later one.
    let contents = args.flags.config.as_ref().and_then(|path| std::fs::read(path).ok());
    let loaded = match args.flags.load() {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return exit::BAD_CONFIG.into();
        }
    };
    let set_level = logging::start(&loaded.config.telemetry);
    raise_open_files();
    let runtime = match runtime(loaded.config.runtime.threads) {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime does not start");
            return exit::FAILED.into();
        }
    };
    let code = runtime.block_on(serve(&args.flags, loaded, contents, set_level));
    // A thread that waits for a disk that hangs would be waited for.
    runtime.shutdown_timeout(LAST_WRITES);
    code
}

async fn serve(
    flags: &Flags,
    loaded: Loaded,
    contents: Option<Vec<u8>>,
    set_level: SetLevel,
) -> ExitCode {
    let config = &loaded.config;
    if config.ceilings.above_published {
        tracing::warn!(
            account = config.ceilings.account,
            egress_ip = config.ceilings.egress_ip,
            "ceilings above the provider's published ones, as ceilings.allow_above_published asks: \
             the account may be throttled and this address blocked"
        );
    }
    let signals = Stop::listen().and_then(|stop| Ok((stop, signal(SignalKind::hangup())?)));
    let (mut stop, hangup) = match signals {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "signals cannot be listened for");
            return exit::FAILED.into();
        }
    };
    let started = async {
        let keys = Keys::start(&config.keys, CancellationToken::new())?;
        Sidecar::start(config, keys, Start::AfterOthers, fastrand::u64(..)).await
    };
    let sidecar = match started.await {
        Ok(sidecar) => sidecar,
        Err(error) => {
            tracing::error!(%error, "tollgate does not start");
            return exit::FAILED.into();
        }
    };
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
        () = stop.asked() => {}
        () = take_up_changes(flags, &loaded, contents, &sidecar, hangup, set_level) => {}
    }
    tracing::info!(grace = ?config.drain.grace, "stopping: finishing messages on their way");
    let left = sidecar.drain(stop.asked()).await;
    if left > 0 {
        // None of them was accepted: their callers were told nothing.
        tracing::warn!(messages = left, "stopped with messages on their way");
    }
    tracing::info!("stopped");
    ExitCode::SUCCESS
}

/// Reloads the configuration at SIGHUP and when its file has changed. Contents are compared:
/// a `ConfigMap` changes by a swap of links that fools file watchers.
async fn take_up_changes(
    flags: &Flags,
    started: &Loaded,
    mut contents: Option<Vec<u8>>,
    sidecar: &Sidecar,
    mut hangup: Signal,
    set_level: SetLevel,
) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = hangup.recv() => {}
            _ = looks.tick() => {
                let now = self::contents(flags).await;
                // While the file is being replaced there is none for a moment.
                if now.is_none() || now == contents {
                    continue;
                }
                contents = now;
            }
        }
        match flags.load() {
            Ok(newer) => {
                let (config, waiting) = started.reloaded(&newer);
                sidecar.reload(&config);
                set_level(&config.telemetry.level);
                tracing::info!(
                    account = config.ceilings.account,
                    egress_ip = config.ceilings.egress_ip,
                    "configuration reloaded"
                );
                if !waiting.is_empty() {
                    tracing::warn!(keys = waiting.join(", "), "these changes wait for a restart");
                }
            }
            Err(mistakes) => {
                tracing::error!(%mistakes, "the new configuration is invalid: nothing has changed");
            }
        }
    }
}

/// The configuration file's bytes; read where a slow disk holds nobody.
async fn contents(flags: &Flags) -> Option<Vec<u8>> {
    let path = flags.config.clone()?;
    tokio::task::spawn_blocking(move || std::fs::read(path).ok()).await.ok()?
}
