//! Opens a spool: the only place that knows which store it has.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::core::Core;
use super::disk::{Disk, DiskBackend, LOCK, LockedFolder};
use super::facts::{Progress, Residue, WriteError};
use super::index::Index;
use super::ownership::Ownership;
use super::queue::WriteOp;
use super::redis::{Peers, RedisBackend, SpoolRedisError, Times};
use super::writer::Engine;
use super::{OpenError, Options, Spool};
use crate::config::Fleet;

/// How long to wait for another process that has the folder: it may be at its end.
const TAKEN: Duration = Duration::from_millis(500);
/// The longest pause between two tries to lock the folder.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

impl Spool {
    /// Whether a folder has, or had, the spool of a disk. Blocks.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn is_at(path: &Path) -> io::Result<bool> {
        path.join(LOCK).try_exists()
    }

    /// Opens a spool on the disk, and recovers what a crash has left of it.
    pub async fn open(options: Options) -> Result<Self, OpenError> {
        Self::open_within(TAKEN, options).await
    }

    /// The same, where the process that has the folder may take as long as `patience` to end.
    pub async fn open_within(patience: Duration, options: Options) -> Result<Self, OpenError> {
        let folder = take_within(patience, &options.path).await?;
        let engine = on_disk(Arc::new(folder), options).await?;
        Ok(Self { engine })
    }

    /// Waits until no process has the folder, as long as `patience`.
    pub async fn free_within(patience: Duration, path: &Path) -> Result<(), OpenError> {
        take_within(patience, path).await.map(drop)
    }

    /// Opens the spool that an account's sidecars share in Redis. `folder`: where this machine
    /// remembers its owner, so that after a crash it has its messages again at once.
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
                tracing::warn!(%error, "Redis does not accept the spool: tollgate stores no message until it does, and retries");
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
        let mut from = None;
        loop {
            let backend = Arc::clone(&backend);
            let read = engine.run(Box::pin(async move { backend.read_page(from).await })).await;
            from = read.map_err(|failed| refused(&failed))?;
            if from.is_none() {
                return Ok(Self { engine });
            }
        }
    }

    /// Takes over what the account's dead sidecars have left, and returns how many messages the
    /// living have. To be closed.
    pub async fn take_over(fleet: &Fleet, options: Options) -> Result<(Self, u64), OpenError> {
        let times = Times::default();
        let (shared, begun) = SharedSpool::begin(fleet, None, options, times).await?;
        begun.map_err(failed)?;
        loop {
            let (view, backend) = (shared.engine.view.clone(), Arc::clone(&shared.backend));
            let taken =
                shared.engine.run(Box::pin(async move { backend.take_over(&view).await })).await;
            match taken.map_err(|failed| refused(&failed))? {
                (Progress::More, _) => {}
                (_, Peers { undecided: true, .. }) => sleep(times.heartbeat).await,
                (_, Peers { held, .. }) => return Ok((Self { engine: shared.engine }, held)),
            }
        }
    }
}

/// Takes the folder, for which the process that has it may take as long as `patience` to end.
async fn take_within(patience: Duration, path: &Path) -> Result<LockedFolder, OpenError> {
    let (begun, mut pause, mut logged) = (Instant::now(), Duration::from_millis(1), false);
    loop {
        let there = path.to_owned();
        let taken = spawn_blocking(move || LockedFolder::take(&there)).await;
        let failed = |error| OpenError::Io { path: path.to_owned(), error };
        match taken.map_err(|error| failed(io::Error::from(error)))? {
            Err(error @ OpenError::Taken(_)) if begun.elapsed() < patience => {
                if begun.elapsed() >= TAKEN && !logged {
                    tracing::info!(reason = %error, ?patience, "waiting for the other process to end: tollgate does not start before");
                    logged = true;
                }
                sleep(pause.min(patience.saturating_sub(begun.elapsed()))).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            taken => return taken,
        }
    }
}

/// Recovers what is on a disk.
pub(super) async fn on_disk(
    disk: Arc<dyn Disk>,
    options: Options,
) -> Result<Arc<Engine>, OpenError> {
    let read = options.clone();
    let opened = spawn_blocking(move || DiskBackend::open(&disk, &read)).await;
    let opened = opened.map_err(io::Error::from).flatten();
    let (backend, found) = opened.map_err(|error| unreadable(&options, error))?;
    let backend = Arc::new(backend);
    let engine = Engine::new(Core::new(options, found.index, None), Arc::clone(&backend) as _);
    let repaired = if found.repairs.is_empty() {
        Ok(Vec::new())
    } else {
        let (writing, repairs) = (Arc::clone(&engine), found.repairs.clone());
        let written = engine.spawn(async move { writing.commit(repairs).await }).await;
        written.unwrap_or_else(|error| Err(WriteError::new(&error, Residue::Possible)))
    };
    let repairs = found.repairs.into_iter().map(WriteOp::unobserved).collect();
    match repaired {
        Ok(results) => {
            engine.core.complete(repairs, &results);
            let set_aside = spawn_blocking(move || backend.set_aside(&found.damage));
            drop(set_aside.await);
        }
        Err(_) => engine.core.queue().put_back(repairs),
    }
    engine.wake();
    Ok(engine)
}

fn unreadable(options: &Options, error: impl Into<io::Error>) -> OpenError {
    OpenError::Io { path: options.path.clone(), error: error.into() }
}

/// Messages on this disk would never be delivered once the spool is in Redis.
async fn nothing_is_left(path: &Path, options: &Options) -> Result<(), OpenError> {
    let there = path.to_owned();
    let looked = spawn_blocking(move || Spool::is_at(&there)).await;
    // That the folder cannot be used is warned of where this process's name is kept in it.
    if !looked.is_ok_and(|is_at| is_at.unwrap_or(false)) {
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
        let ownership = Arc::new(Ownership::new(options.adopts.clone()));
        let core = Core::new(options.clone(), Index::default(), Some(Arc::clone(&ownership)));
        let (fleet, folder, owns) =
            (fleet.clone(), folder.map(Path::to_owned), Arc::clone(&ownership));
        let backend = spawn_blocking(move || {
            RedisBackend::new(&fleet, folder.as_deref(), &options, times, &owns)
        });
        let backend = Arc::new(backend.await.map_err(failed)??);
        let engine = Engine::new(core, Arc::clone(&backend) as _);
        let begun = loop {
            let (view, backend) = (engine.view.clone(), Arc::clone(&backend));
            let begun = engine.run(Box::pin(async move { backend.begin(&view).await })).await;
            match begun.map_err(|failed| refused(&failed))? {
                Ok(Progress::More) => {}
                begun => break begun.map(drop),
            }
        };
        Ok((Self { engine, backend, ownership }, begun))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it maps an error")]
fn failed<E: ToString>(error: E) -> OpenError {
    OpenError::Redis(error.to_string())
}

fn refused(failed: &WriteError) -> OpenError {
    OpenError::Redis(failed.error.to_string())
}
