//! `tollgate messages deliver`: empties a spool that no sidecar serves any more.

use std::io::Write;
use std::pin::pin;
use std::time::Duration;

use jiff::SignedDuration;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::run::{MessagesFormat, VerbError, print, runtime};
use super::serve::prepare;
use super::{Stop, count, logging};
use crate::ceiling::Start;
use crate::config::{Config, Flags};
use crate::keys::Keys;
use crate::sidecar::{Sidecar, StartError, longest_stop, spool_options};
use crate::spool::{OpenError, Spool};

/// Between two lines about progress.
const PROGRESS: Duration = Duration::from_secs(5);
/// Between two looks at what is left.
const LOOK: Duration = Duration::from_millis(100);
/// Time limit for writes to the disk that are still under way at the end.
const LAST_WRITES: Duration = Duration::from_secs(1);
/// Time limits for what has begun when it is stopped: moving a slice, and its last records in Redis. A pod's
/// grace is longer.
const LAST_SLICE: Duration = Duration::from_secs(20);
const LAST_RECORDS: Duration = Duration::from_secs(5);
/// Time for the end after the last call: what became of it is recorded, permits are given back, and the ledger is
/// written, where each takes a disk or Redis a second at most.
const LAST_STEPS: Duration = Duration::from_secs(6);
/// Time to read the spool and make calls, or to move slices, at the least. A ceiling opens a second after its start.
const SHORTEST: Duration = Duration::from_secs(3);
/// The least wait for a process that has the spool: it may be at its end.
const LEAST_PATIENCE: Duration = Duration::from_millis(500);
/// No dead letter is dropped for its age: an operator decides.
const KEEP_DEAD: &str = "8760h";
const NOT_BEGUN: &str =
    "the spool was not open in time for a call within --for: no call was made; allow more time";
const NOT_ENDED: &str = "--for was over before the end, as where a disk does not answer: calls that it had begun count as \
                         interrupted, as if it had been killed; run it again";
const GIVEN_UP: &str = "Redis did not take the last messages in time: they are on this disk, and some may be in Redis, \
                        too; run it again with --handoff before anything else sends them";

/// Deliver what a spool without a sidecar holds, and end when it is empty
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tollgate messages deliver --spool /mnt/spool-orders-2/spool\n  \
    tollgate messages deliver --handoff --spool /mnt/spool-orders-2/spool\n\n\
    Needs the sidecar's configuration and key, and keeps to its ceilings: without [fleet] it uses them in \
    full, beside other sidecars of the account. Messages older than retry.max_age become dead letters: raise it \
    by --set retry.max_age=168h. SIGTERM ends it, and it can be run again. So does the end of --for, in which no call \
    begins that could not end: it is at least 9 s longer than upstream.call_timeout, or 8 s with --handoff.\n\n\
    Exits with 0 if neither messages nor dead letters are left: then the volume can be deleted. Exits with 1 if \
    some are left, and prints how many.")]
pub(super) struct DeliverArgs {
    /// The spool's folder [default: spool.path of the configuration]
    #[arg(long, value_name = "PATH")]
    spool: Option<String>,
    /// Move messages and dead letters to the Redis of [fleet], for its sidecars, instead of calling the provider
    #[arg(long)]
    handoff: bool,
    /// End within this time, for example 10m; the wait for a process that has the spool is in it [default: no limit]
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    limit: Option<Duration>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: Result<SignedDuration, _> = text.parse();
    let parsed = parsed.ok().and_then(|duration| Duration::try_from(duration).ok());
    parsed.ok_or_else(|| "write a duration such as 90s or 10m".to_owned())
}

/// What became of the messages.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Emptied {
    /// Delivered, or handed over.
    done: u64,
    queued: u64,
    dead_letters: u64,
}

pub(super) fn run(
    args: &DeliverArgs,
    mut flags: Flags,
    output: MessagesFormat,
) -> Result<(), VerbError> {
    // Whatever sidecars do now: this is a disk's spool, and it is not to be left as it is.
    let fixed = [
        ("spool.store", "disk"),
        ("spool.lifetime", "volume"),
        ("drain.handoff", "false"),
        ("retry.keep_dead", KEEP_DEAD),
    ];
    let path = args.spool.as_deref().map(|path| ("spool.path", path));
    let set = fixed.into_iter().chain(path);
    flags.set.extend(set.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let loaded = if args.handoff { flags.load_for_operator()? } else { flags.load()? };
    let mut config = loaded.config;
    let Some(spool) = &config.spool else { return Ok(()) };
    let path = spool.path.clone();
    // Of one that cannot be looked at, opening it says why.
    if !Spool::is_at(&path).unwrap_or(true) {
        return Err(format!("there is no spool at {}", path.display()).into());
    }
    // A predecessor stops as the configuration says, and may hand its messages over.
    config.drain.handoff = true;
    let patience = longest_stop(&config);
    config.drain.handoff = false;
    let limits =
        args.limit.map(|limit| Limits::of(limit, &mut config, args.handoff)).transpose()?;
    if args.handoff && config.fleet.is_none() {
        return Err("--handoff needs the Redis of a fleet: set fleet.url".to_owned().into());
    }
    let _log = logging::start(&config.telemetry);
    prepare(&mut config);
    // No caller is served.
    config.listen.publish.clear();
    config.drain.accept_for = Duration::ZERO;
    let runtime = runtime(config.worker_threads())?;
    let emptied = runtime.block_on(in_time(limits, args.handoff, async {
        let mut stop = Stop::listen().map_err(|error| error.to_string())?;
        let patience = limits
            .map_or(patience, |limits| limits.left().max(LEAST_PATIENCE).min(patience));
        tokio::select! {
            free = Spool::free_within(patience, &path) => free.map_err(|error| taken(&error, args.limit))?,
            () = stop.received() => return Err("stopped before the spool was free".to_owned()),
        }
        let until = limits.map(|limits| limits.last);
        if args.handoff {
            hand_over(&config, until, stop).await
        } else {
            deliver(&config, until, stop).await
        }
    }));
    runtime.shutdown_timeout(limits.map_or(LAST_WRITES, |limits| limits.rest().min(LAST_WRITES)));
    let emptied = emptied?;
    let Emptied { done, queued, dead_letters } = emptied;
    let verb = if args.handoff { "handed over" } else { "delivered" };
    print(|to| match output {
        MessagesFormat::Json => {
            serde_json::to_writer(&mut *to, &emptied)?;
            writeln!(to)
        }
        MessagesFormat::Table => {
            let dead = count(dead_letters, "dead letter");
            writeln!(to, "{done} {verb}; left: {}, {dead}", count(queued, "message"))
        }
    })?;
    if queued + dead_letters == 0 {
        return Ok(());
    }
    Err(VerbError::Runtime(format!(
        "{} and {} are left at {}: run it again, or list, replay or drop them (tollgate messages, --set spool.path=…)",
        count(queued, "message"),
        count(dead_letters, "dead letter"),
        path.display()
    )))
}

/// The times of a run with `--for`.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// No call and no slice begins after this.
    last: Instant,
    end: Instant,
}

impl Limits {
    /// From now on. No call begins that may not end in time: given up half-way, it may be made twice.
    fn of(limit: Duration, config: &mut Config, handoff: bool) -> Result<Self, VerbError> {
        let end = Instant::now().checked_add(limit);
        let end =
            end.ok_or_else(|| VerbError::Usage("--for is too long: leave it out".to_owned()))?;
        let too_short = |least: Duration, why: &str| {
            Err(VerbError::Usage(format!(
                "--for {limit:?} is too short{why}: write at least {least:?}"
            )))
        };
        if handoff {
            let least = 2 * (SHORTEST + LAST_WRITES);
            if limit < least {
                return too_short(least, "");
            }
            // A slice takes milliseconds, or as long as Redis takes: one that the end cuts may be in both spools.
            return Ok(Self { last: end - LAST_SLICE.min(limit / 2), end });
        }
        let call = config.upstream.call_timeout;
        let least = call + LAST_STEPS + SHORTEST;
        if limit < least {
            return too_short(
                least,
                &format!(", as a call may take upstream.call_timeout ({call:?})"),
            );
        }
        // All along it delivers: there is no more to do at the end.
        config.drain.grace = Duration::ZERO;
        Ok(Self { last: end - call - LAST_STEPS, end })
    }

    /// Until it is too late for a beginning.
    fn left(self) -> Duration {
        self.last.saturating_duration_since(Instant::now()).saturating_sub(SHORTEST)
    }

    /// Until the end.
    fn rest(self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }
}

/// Ends at the limit also where a disk or Redis stands still.
async fn in_time<T>(
    limits: Option<Limits>,
    handoff: bool,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let Some(limits) = limits else { return work.await };
    let ended = timeout_at(limits.end - LAST_WRITES, work).await;
    ended.unwrap_or_else(|_| Err(if handoff { GIVEN_UP } else { NOT_ENDED }.to_owned()))
}

/// Why the spool is not to be had.
fn taken(error: &OpenError, limit: Option<Duration>) -> String {
    match (error, limit) {
        (OpenError::Taken(_), Some(limit)) => format!(
            "{error}, and still did when nothing more could begin within --for {limit:?}: no message was touched; stop that \
             process, or allow more time"
        ),
        _ => format!("{error}; {}", error.remedy()),
    }
}

/// Delivers as a sidecar without callers does.
async fn deliver(
    config: &Config,
    until: Option<Instant>,
    mut stop: Stop,
) -> Result<Emptied, String> {
    let keys = Keys::start(&config.keys, CancellationToken::new());
    let keys = keys.map_err(|error| error.to_string())?;
    let (start, seed) = (Start::AfterOthers, fastrand::u64(..));
    let is_over = || until.is_some_and(|until| Instant::now() >= until);
    let ended = async {
        match until {
            Some(until) => drop(timeout_at(until, stop.received()).await),
            None => stop.received().await,
        }
    };
    let sidecar = match Sidecar::start_unless(ended, config, keys, start, seed).await {
        Err(StartError::Stopped) if is_over() => return Err(NOT_BEGUN.to_owned()),
        started => started.map_err(|error| error.to_string())?,
    };
    let begun = left(&sidecar);
    let mut next_line = Instant::now();
    loop {
        let now = left(&sidecar);
        let held = sidecar.delivery().held();
        // Those for which no call is made wait for an operator, not for time.
        if now.queued <= held.not_allowed + held.unverified {
            break;
        }
        if is_over() {
            break;
        }
        if Instant::now() >= next_line {
            next_line = Instant::now() + PROGRESS;
            let done = now.done_since(begun);
            let paused = sidecar.delivery().paused().len();
            tracing::info!(
                delivered = done,
                queued = now.queued,
                dead_letters = now.dead_letters,
                paused_topics = paused,
                "delivering what the spool holds"
            );
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = stop.received() => break,
        }
    }
    let left = sidecar.drain(stop.received()).await;
    let emptied = Emptied { done: 0, queued: left.queued, dead_letters: left.dead_letters };
    Ok(Emptied { done: emptied.done_since(begun), ..emptied })
}

fn left(sidecar: &Sidecar) -> Emptied {
    sidecar.delivery().spool().map(of).unwrap_or_default()
}

fn of(spool: &Spool) -> Emptied {
    let usage = spool.usage();
    Emptied { done: 0, queued: usage.queued.messages, dead_letters: usage.dead.messages }
}

impl Emptied {
    /// How many of those are not there any more.
    fn done_since(self, begun: Self) -> u64 {
        (begun.queued + begun.dead_letters).saturating_sub(self.queued + self.dead_letters)
    }
}

/// Moves everything to the spool of the fleet, a slice after the other.
async fn hand_over(
    config: &Config,
    until: Option<Instant>,
    mut stop: Stop,
) -> Result<Emptied, String> {
    let (Some(spool), Some(fleet)) = (&config.spool, &config.fleet) else {
        return Ok(Emptied::default());
    };
    let options = spool_options(spool, &config.idempotency, &config.runtime);
    let from = Spool::open(options.clone()).await.map_err(|error| error.to_string())?;
    let to = Spool::share(fleet, None, options).await.map_err(|error| error.to_string())?;
    let begun = of(&from);
    let mut stopped = pin!(stop.received());
    let moved = async {
        let mut is_stopped = false;
        loop {
            let next_line = Instant::now() + PROGRESS;
            let slice = until.map_or(next_line, |until| next_line.min(until));
            // A slice that has begun goes on to its end: given up half-way, it would be in both spools.
            let mut handing = pin!(from.hand_over(&to, slice));
            let handed = tokio::select! {
                handed = &mut handing => handed,
                () = &mut stopped, if !is_stopped => {
                    is_stopped = true;
                    let ended = timeout(LAST_SLICE, handing).await;
                    ended.map_err(|_| GIVEN_UP.to_owned())?
                }
            };
            let handed = handed.map_err(|error| error.to_string())?;
            let now = of(&from);
            tracing::info!(
                handed_over = now.done_since(begun),
                left = now.queued + now.dead_letters,
                "handing over what the spool holds"
            );
            let is_over = until.is_some_and(|until| Instant::now() >= until);
            if handed == 0 || now.queued + now.dead_letters == 0 || is_over || is_stopped {
                return Ok::<_, String>(());
            }
        }
    };
    let moved = moved.await;
    // Redis or the disk may stand still.
    drop(timeout(LAST_RECORDS, to.close()).await);
    drop(timeout(LAST_WRITES, from.flush()).await);
    moved?;
    let left = of(&from);
    Ok(Emptied { done: left.done_since(begun), ..left })
}
