//! `tollgate keyring`

use tokio_util::sync::CancellationToken;

use super::run::{VerbError, runtime};
use super::{Stop, dumps, logging};
use crate::config::{self, Flags};
use crate::keyring::RunningKeyring;
use crate::keys::Keys;

/// Hold a cluster's key, and hand short-lived ones to sidecars
///
/// For clusters without RRSA: it alone has the lasting key ([keys]), and hands out keys of a role
/// ([keyring]) to callers that prove themselves. Sidecars fetch them with keys.source = "uri".
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tollgate keyring --config /etc/tollgate/keyring.toml
  curl -H \"Authorization: Bearer $(cat token)\" https://tollgate-keyring:9465/credentials")]
pub(super) struct Args {
    #[command(flatten)]
    flags: Flags,
}

pub(super) fn run(args: &Args) -> Result<(), VerbError> {
    let loaded = args.flags.load_for_operator()?;
    let Some(keyring) = &loaded.config.keyring else {
        let missing = "keyring.role_arn is not set: see section [keyring] of the configuration";
        return Err(VerbError::File(missing.to_owned()));
    };
    if let Some(missing) = keyring.missing() {
        return Err(VerbError::File(missing.to_owned()));
    }
    let _log = logging::start(&loaded.config.telemetry);
    dumps::protect();
    let runtime = runtime(loaded.config.worker_threads())?;
    let ended = runtime.block_on(async {
        let mut stop = Stop::listen()?;
        let logged = |error: String| {
            tracing::error!(error, "the keyring does not start");
            VerbError::Logged
        };
        let ends = CancellationToken::new();
        let _ends = ends.clone().drop_guard();
        // Sessions are asked for once in a while: a new key is used at once, or no call would ever try it.
        let source = config::Keys::from(loaded.config.keys.source.clone());
        let keys = Keys::start(&source, ends);
        let keys = keys.map_err(|error| logged(format!("keys: {error}")))?;
        let running = RunningKeyring::start(keyring, keys).await;
        let running = running.map_err(|error| logged(error.to_string()))?;
        let (listen, callers) = (running.address(), keyring.callers.len());
        let role = &*keyring.session.role_arn;
        tracing::info!(version = super::VERSION, %listen, callers, role, "the keyring is serving");
        stop.received().await;
        running.stop().await;
        tracing::info!("stopped");
        Ok(())
    });
    // A file that is still read, on a mount that hangs, does not hold up the end.
    runtime.shutdown_background();
    ended
}
