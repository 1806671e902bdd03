//! `tollgate serve`

use std::fmt::Display;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::logging::Log;
use super::reload::apply_changes;
use super::run::{VerbError, runtime};
use super::{Stop, dumps, logging, memory_share, open_files, spool_room};
use crate::ceiling::Start;
use crate::config::{Config, ConfigFile, Flags, Fleet, Lifetime, Loaded};
use crate::keys::Keys;
use crate::sidecar::{Sidecar, StartError};
use crate::spool::Spool;

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
    let file = args.flags.file().as_deref().map(ConfigFile::read);
    let mut loaded = args.flags.load_file(file.as_ref())?;
    // The lines that are still to be written are written when it is dropped, within about a second.
    let log = logging::start(&loaded.config.telemetry);
    prepare(&mut loaded.config);
    let runtime = runtime(loaded.config.worker_threads()).map_err(|error| logged(&error))?;
    let served = runtime.block_on(serve(&args.flags, loaded, file, &log));
    // Without a limit, a thread that waits for a hung disk would keep the process from ending.
    runtime.shutdown_timeout(LAST_WRITES);
    served
}

/// Protects the process, and lowers bounds to what its limits carry.
pub(super) fn prepare(config: &mut Config) {
    dumps::protect();
    open_files::raise();
    if let Some(clamped) = open_files::clamp(config) {
        tracing::warn!("{clamped}");
    }
    if let Some(clamped) = memory_share::clamp(config) {
        tracing::info!("{clamped}");
    }
}

async fn serve(
    flags: &Flags,
    loaded: Loaded,
    file: Option<ConfigFile>,
    log: &Log,
) -> Result<(), VerbError> {
    let config = &loaded.config;
    for warning in loaded.warnings() {
        tracing::warn!(key = warning.key, "{warning}");
    }
    tokio::spawn(spool_room::log(config));
    let signals = Stop::listen().and_then(|stop| Ok((stop, signal(SignalKind::hangup())?)));
    let (mut stop, hangup) = signals.map_err(|error| logged(&error))?;
    let started = async {
        let keys = Keys::start(&config.keys, CancellationToken::new())?;
        let (start, seed) = (Start::AfterOthers, fastrand::u64(..));
        Sidecar::start_unless(stop.received(), config, keys, start, seed).await
    };
    let sidecar = match started.await {
        Err(error @ StartError::Stopped) => {
            tracing::info!("{error}");
            warn_of_unread(config);
            return Ok(());
        }
        started => started.map_err(|error| {
            warn_of_unread(config);
            logged(&error)
        })?,
    };
    sidecar.configuration().read(loaded.hash(), Vec::new());
    let addresses = sidecar.addresses();
    tracing::info!(
        version = super::VERSION,
        publish = addresses.publish.join(", "),
        telemetry = addresses.telemetry,
        upstream = config.upstream.endpoint.authority(),
        account = config.ceilings.account,
        egress_ip = config.ceilings.egress_ip,
        fleet = config.fleet.as_ref().map(Fleet::shared_ceiling),
        "tollgate is serving"
    );
    tokio::select! {
        () = stop.received() => {}
        () = apply_changes(flags, &loaded, file, &sidecar, hangup, log) => {}
    }
    tracing::info!(grace = ?config.drain.grace, "stopping: tollgate finishes messages in progress");
    let left = sidecar.drain(stop.received()).await;
    if left.unanswered > 0 {
        // None of them was accepted: their callers got no reply.
        tracing::warn!(
            messages = left.unanswered,
            "stopped before these messages were finished: their callers got no answer"
        );
    }
    tracing::info!("stopped");
    if left.at_risk > 0 { Err(VerbError::AtRisk) } else { Ok(()) }
}

/// The log is where the operator looks for what a sidecar fails with.
fn logged(error: &dyn Display) -> VerbError {
    tracing::error!(%error, "tollgate does not start");
    VerbError::Logged
}

/// Of what an earlier container of this pod has left, if this one ends without a look at it.
fn warn_of_unread(config: &Config) {
    let Some(spool) = config.spool.as_ref().filter(|spool| spool.lifetime == Lifetime::Pod) else {
        return;
    };
    if Spool::is_at(&spool.path).unwrap_or(false) {
        tracing::warn!(
            path = %spool.path.display(),
            "ended before the spool was read: messages that an earlier container of this pod has left in it are lost \
             with the pod (spool.lifetime)"
        );
    }
}
