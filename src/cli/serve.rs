//! `tollgate serve`

use std::process::ExitCode;

use super::{asked_to_stop, exit, logging, raise_open_files, runtime};
use tokio_util::sync::CancellationToken;

use crate::ceiling::Start;
use crate::config::{Config, Flags};
use crate::keys::Keys;
use crate::sidecar::Sidecar;

/// Run the sidecar
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tollgate serve --config /etc/tollgate/tollgate.toml")]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let config = match args.flags.load() {
        Ok(loaded) => loaded.config,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return exit::BAD_CONFIG.into();
        }
    };
    logging::start(&config.telemetry);
    raise_open_files();
    let runtime = match runtime(config.runtime.threads) {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "the runtime does not start");
            return exit::FAILED.into();
        }
    };
    runtime.block_on(serve(&config))
}

async fn serve(config: &Config) -> ExitCode {
    if config.ceilings.above_published {
        tracing::warn!(
            account = config.ceilings.account,
            egress_ip = config.ceilings.egress_ip,
            "ceilings above the provider's published ones, as ceilings.allow_above_published asks: \
             the account may be throttled and this address blocked"
        );
    }
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
    asked_to_stop().await;
    tracing::info!(grace = ?config.drain.grace, "stopping: finishing messages on their way");
    let left = sidecar.drain(asked_to_stop()).await;
    if left > 0 {
        // None of them was accepted: their callers were told nothing.
        tracing::warn!(messages = left, "stopped with messages on their way");
    }
    tracing::info!("stopped");
    ExitCode::SUCCESS
}
