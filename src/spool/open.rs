//! Opens a spool: the only place that knows which store it has.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::core::Core;
use super::disk::{Disk, DiskBackend, Folder, LOCK};
use super::facts::WriteError;
use super::index::Index;
use super::ownership::Ownership;
use super::queue::WriteOp;
use super::redis::{RedisBackend, SpoolRedisError, Times};
use super::writer::Engine;
use super::{OpenError, Options, Spool};
use crate::config::Fleet;

/// How long to wait for another process that has the folder, about: it may be at its end.
const TAKEN: Duration = Duration::from_millis(500);

impl Spool {
    /// Opens a spool on the disk, and recovers what a crash has left of it.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        let mut wait = Duration::from_millis(1);
        loop {
            let (runtime, again) = (Handle::current(), options.clone());
            let opened = spawn_blocking(move || {
                let folder: Arc<dyn Disk> = Arc::new(Folder::take(&again.path)?);
                on_disk(&folder, again, runtime)
            });
            match opened.await {
                Ok(Err(OpenError::Taken(_))) if wait < TAKEN => {
                    sleep(wait).await;
                    wait *= 2;
                }
                Ok(opened) => return opened.map(|engine| Self { engine }),
                Err(error) => {
                    let error = io::Error::other(error);
                    return Err(OpenError::Io { path: options.path, error });
                }
            }
        }
    }

    /// Opens the spool that an account's sidecars share in Redis. `folder`: where this machine
    /// remembers its consumer, so that after a crash it has its messages again at once.
    ///
    /// Without an answer from Redis it opens all the same, and takes messages when there is one.
    pub async fn share(
        fleet: &Fleet,
        folder: Option<&Path>,
        options: Options,
    ) -> Result<Self, OpenError> {
        if let Some(path) = folder {
            nothing_is_left(path, &options).await?;
        }
        Self::share_with(fleet, folder, options, Times::default()).await
    }

    pub(super) async fn share_with(
        fleet: &Fleet,
        folder: Option<&Path>,
        options: Options,
        times: Times,
    ) -> Result<Self, OpenError> {
        let (shared, begun) = SharedSpool::begin(fleet, folder, options, times).await?;
        match begun {
            Err(error) if error.may_pass() => {
                tracing::warn!(%error, "nothing can be kept until Redis takes it");
            }
            begun => begun.map_err(failed)?,
        }
        // Delivery finds them in the index.
        drop(shared.ownership.drain());
        let weak = Arc::downgrade(&shared.engine);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = sleep(times.heartbeat) => {}
                    () = shared.ownership.more() => sleep(times.pace).await,
                }
                let Some(engine) = weak.upgrade() else { return };
                engine.wake();
            }
        });
        shared.engine.wake();
        Ok(Self { engine: shared.engine })
    }

    /// All that the account's sidecars keep: to be shown, not to be changed.
    pub async fn look(fleet: &Fleet, options: Options) -> Result<Self, OpenError> {
        let (shared, begun) = SharedSpool::begin(fleet, None, options, Times::default()).await?;
        begun.map_err(failed)?;
        let SharedSpool { engine, backend, .. } = shared;
        let spool = Self { engine: Arc::clone(&engine) };
        let read = spawn_blocking(move || engine.run(|_| backend.read_all()));
        read.await.map_err(failed)?.map_err(|failed| refused(&failed))?;
        Ok(spool)
    }

    /// Takes over what the account's dead sidecars have left, and returns how many messages the
    /// living have. To be closed.
    pub async fn take_over(fleet: &Fleet, options: Options) -> Result<(Self, u64), OpenError> {
        let times = Times::default();
        let (shared, begun) = SharedSpool::begin(fleet, None, options, times).await?;
        begun.map_err(failed)?;
        loop {
            let (engine, backend) = (Arc::clone(&shared.engine), Arc::clone(&shared.backend));
            let taken = spawn_blocking(move || engine.run(|view| backend.take_over(view)));
            let peers = taken.await.map_err(failed)?.map_err(|failed| refused(&failed))?;
            if !peers.undecided {
                return Ok((Self { engine: shared.engine }, peers.held));
            }
            sleep(times.heartbeat).await;
        }
    }
}

/// Recovers what is on a disk. Blocks.
pub(super) fn on_disk(
    disk: &Arc<dyn Disk>,
    options: Options,
    runtime: Handle,
) -> Result<Arc<Engine>, OpenError> {
    let path = options.path.clone();
    let opened = DiskBackend::open(disk, &options);
    let (backend, found) = opened.map_err(|error| OpenError::Io { path, error })?;
    let backend = Arc::new(backend);
    let core = Core::new(options, found.index, None);
    let engine = Engine::new(core, Arc::clone(&backend) as _, runtime);
    let repairs: Vec<_> = found.repairs.into_iter().map(WriteOp::unobserved).collect();
    let batch: Vec<_> = repairs.iter().filter_map(WriteOp::record).collect();
    let repaired = if batch.is_empty() { Ok(Vec::new()) } else { engine.commit(&batch) };
    match repaired {
        Ok(results) => {
            engine.core.complete(repairs, &results);
            backend.set_aside(&found.damage);
        }
        Err(_) => engine.core.queue().put_back(repairs),
    }
    engine.wake();
    Ok(engine)
}

/// Messages on this disk would never be delivered once the spool is in Redis.
async fn nothing_is_left(path: &Path, options: &Options) -> Result<(), OpenError> {
    let lock = path.join(LOCK);
    if !spawn_blocking(move || lock.exists()).await.unwrap_or(true) {
        return Ok(());
    }
    let disk = Spool::open(Options { path: path.to_owned(), ..options.clone() }).await?;
    let usage = disk.usage();
    let messages = usage.queued.messages + usage.dead.messages;
    if messages == 0 {
        return Ok(());
    }
    Err(OpenError::Left { path: path.to_owned(), messages })
}

/// A spool in Redis that is being opened.
struct SharedSpool {
    engine: Arc<Engine>,
    backend: Arc<RedisBackend>,
    ownership: Arc<Ownership>,
}

impl SharedSpool {
    /// Connects, and takes up what a predecessor has left.
    async fn begin(
        fleet: &Fleet,
        folder: Option<&Path>,
        options: Options,
        times: Times,
    ) -> Result<(Self, Result<(), SpoolRedisError>), OpenError> {
        let (fleet, folder) = (fleet.clone(), folder.map(Path::to_owned));
        let runtime = Handle::current();
        let opened = spawn_blocking(move || {
            let ownership = Arc::new(Ownership::default());
            let folder = folder.as_deref();
            let backend =
                RedisBackend::new(&fleet, folder, &options, times, &ownership, runtime.clone());
            let backend = Arc::new(backend);
            let core = Core::new(options, Index::default(), Some(Arc::clone(&ownership)));
            let engine = Engine::new(core, Arc::clone(&backend) as _, runtime);
            let begun = engine.run(|view| backend.begin(view)).unwrap_or(Ok(()));
            (Self { engine, backend, ownership }, begun)
        });
        opened.await.map_err(failed)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it maps an error")]
fn failed<E: ToString>(error: E) -> OpenError {
    OpenError::Redis(error.to_string())
}

fn refused(failed: &WriteError) -> OpenError {
    OpenError::Redis(failed.error.to_string())
}
