//! Whether the file system that holds the spool has room for the spool's bounds.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::{ByteSize, MIB};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::run::{VerbError, runtime};
use crate::config::{Config, Spool};

/// A hung disk does not answer.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// A file system that is smaller than what the spool may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TooSmall {
    path: PathBuf,
    size: u64,
    needed: u64,
}

/// Looks at it for a verb without a runtime. `None`: it is large enough, or does not answer.
pub(super) fn find(config: &Config) -> Result<Option<TooSmall>, VerbError> {
    let runtime = runtime(1)?;
    let found = runtime.block_on(ask(config.spool.clone()));
    runtime.shutdown_background();
    Ok(found)
}

/// Logs it: beside the start, which does not wait for it.
pub(super) fn log(config: &Config) -> impl Future<Output = ()> + use<> {
    let asked = ask(config.spool.clone());
    async move {
        if let Some(too_small) = asked.await {
            tracing::warn!("{too_small}");
        }
    }
}

async fn ask(spool: Option<Spool>) -> Option<TooSmall> {
    let spool = spool?;
    timeout(TIME_LIMIT, spawn_blocking(move || measure(&spool))).await.ok()?.ok()?
}

/// Of the nearest folder above that exists: the spool's is made at a start.
fn measure(spool: &Spool) -> Option<TooSmall> {
    // One that cannot be looked at is there, and has no known size: that of another one says nothing.
    let existing = spool.path.ancestors().find(|path| path.try_exists().unwrap_or(true))?;
    let disk = rustix::fs::statvfs(existing).ok()?;
    let (size, needed) = (disk.f_blocks.saturating_mul(disk.f_frsize), spool.most_on_disk());
    (size < needed).then(|| TooSmall { path: spool.path.clone(), size, needed })
}

impl fmt::Display for TooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, size, needed } = self;
        let (shown, needed) = (ByteSize(*size), ByteSize(*needed));
        write!(
            f,
            "the file system of spool.path {} has {shown}, and the spool may take {needed} (spool.max_bytes, the \
             ledger and temporary files): when it is full, new messages are refused, and Kubernetes may evict \
             the pod; use a larger volume",
            path.display()
        )?;
        match Spool::max_bytes_in(*size) / MIB {
            0 => Ok(()),
            fits => write!(f, ", or set spool.max_bytes to at most {fits}MiB"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_the_bound_that_fits() {
        let of = |size: u64| {
            let path = PathBuf::from("/spool");
            TooSmall { path, size: size * MIB, needed: 640 * MIB }.to_string()
        };
        let (text, tiny) = (of(160), of(64));
        assert!(text.contains("has 160.0 MiB") && text.contains("may take 640.0 MiB"), "{text}");
        assert!(text.ends_with("at most 16MiB"), "{text}");
        assert!(tiny.ends_with("use a larger volume"), "{tiny}");
    }
}
