//! Builds a sidecar from a configuration, starts its listeners, drains and stops them in order.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ceiling::{Ceiling, Left, Start};
use crate::config::{self, Address, Config};
use crate::control::Control;
use crate::delivery::Delivery;
use crate::keys::{KeyError, Keys};
use crate::message::InstanceId;
use crate::meter::{Meter, PriorCalls};
use crate::publish::PublishService;
use crate::server::{HttpServer, Limits, Listener};
use crate::spool::{self, OpenError, Spool};
use crate::telemetry::{Configuration, StartingTelemetry, TelemetryService, TelemetrySources};
use crate::upstream::{HttpUpstream, TlsError};

/// Limits of the listeners for telemetry and control: a scraper, a kubelet, a few browsers and
/// operators.
const SMALL: Limits = Limits {
    max_connections: 64,
    max_header: 16 * 1024,
    header_timeout: Duration::from_secs(5),
    idle_timeout: Duration::from_secs(75),
};
/// For how long new slices of the remaining messages are migrated to the fleet's spool, and the limit
/// for all of it. The difference lets a slice finish: one given up half-way may be delivered twice.
const BEGIN_HAND_OVER: Duration = Duration::from_secs(6);
const HAND_OVER: Duration = Duration::from_secs(10);
/// Time limit for closing the spool.
const LEAVE: Duration = Duration::from_secs(5);
/// Time limit for writes of the spool that are still under way after that.
const LAST_WRITES: Duration = Duration::from_secs(1);
/// Time limit for recording the outcome of the last call.
const LAST_RECORDS: Duration = Duration::from_millis(2_500);
/// Time limit for sending the last replies, once everything else has ended.
const LAST_REPLIES: Duration = Duration::from_secs(1);
/// Time for the rest of a stop: permits are given back, and the ledger and the log are written.
const LAST_STEPS: Duration = Duration::from_secs(5);

/// Why a sidecar does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be bound.
    #[error("cannot listen at {address}: {error}")]
    Bind {
        /// The address as it is configured.
        address: String,
        /// The system's error.
        error: io::Error,
    },
    /// The key source is unusable.
    #[error("keys: {0}")]
    Keys(#[from] KeyError),
    /// The upstream's TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Counting does not start.
    #[error("the meter does not start: {0}")]
    Meter(String),
    /// The spool does not open.
    #[error("{0}; {remedy}", remedy = .0.remedy())]
    Spool(#[from] OpenError),
    /// It was asked to stop while it waited for its predecessor.
    #[error("stopped before the start")]
    Stopped,
}

/// A running sidecar.
pub struct Sidecar {
    publish: PublishService,
    delivery: Delivery<HttpUpstream>,
    ceiling: Ceiling,
    meter: Meter,
    spool: Option<SpoolRemainder>,
    /// Set first: `/readyz` fails from now on.
    ending: Arc<AtomicBool>,
    /// Set after `drain.accept_for`: new messages are refused from now on.
    draining: Arc<AtomicBool>,
    drain: config::Drain,
    call_timeout: Duration,
    stop: CancellationToken,
    tasks: TaskTracker,
    addresses: Addresses,
    configuration: Configuration,
}

/// Where a sidecar listens.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// For callers.
    pub publish: Vec<String>,
    /// For Prometheus, the kubelet and a browser.
    pub telemetry: String,
}

impl Sidecar {
    /// Starts one on the current runtime. `seed` decides its jitter.
    pub async fn start(
        config: &Config,
        keys: Keys,
        start: Start,
        seed: u64,
    ) -> Result<Self, StartError> {
        Self::start_unless(std::future::pending(), config, keys, start, seed).await
    }

    /// The same. `stopped` ends the wait for a predecessor that has the spool.
    pub async fn start_unless(
        stopped: impl Future<Output = ()>,
        config: &Config,
        keys: Keys,
        start: Start,
        seed: u64,
    ) -> Result<Self, StartError> {
        let stop = CancellationToken::new();
        // A start that fails stops what answers already.
        let failed = stop.clone().drop_guard();
        let tasks = TaskTracker::new();
        let mut publish_listeners = Vec::new();
        for address in &config.listen.publish {
            publish_listeners.push(bind(address).await?);
        }
        let telemetry_listener = bind(&Address::Tcp(config.listen.telemetry)).await?;
        let addresses = Addresses {
            publish: publish_listeners.iter().map(Listener::address).collect(),
            telemetry: telemetry_listener.address(),
        };
        // While the predecessor ends, the kubelet learns that this process is alive.
        let starting = StartingTelemetry::default();
        let answering = starting.clone();
        let service =
            tower::service_fn(move |request| std::future::ready(answering.answer(&request)));
        let (server, token) = (HttpServer::new(SMALL, &config.listen.hosts, service), stop.clone());
        tasks.spawn(async move { server.serve(telemetry_listener, token, LAST_REPLIES).await });

        let upstream =
            HttpUpstream::new(&config.upstream, config.retry.codes.clone(), keys.clone())?;
        let spool = match &config.spool {
            Some(spool) => tokio::select! {
                opened = open(config, spool) => Some(opened?),
                () = stopped => return Err(StartError::Stopped),
            },
            None => None,
        };
        // Its folder may be the spool's, which is this user's alone.
        let control_listener = bind_control(config).await?;
        let rules = config.upstream.instances.iter().map(|rule| Arc::clone(&rule.instance_id));
        let instances = config.upstream.instance_id.iter().cloned().chain(rules);
        let meter = meter(config, instances.collect()).await?;
        let start = match start {
            Start::AfterOthers => after_others(&meter, config),
            start => start,
        };
        let ceiling = ceiling(config, start);
        let delivery = Delivery::new(
            config,
            upstream.clone(),
            spool.clone(),
            ceiling.clone(),
            meter.clone(),
            seed,
        );
        let (ending, draining) = (Arc::default(), Arc::default());
        let publish = PublishService::new(
            config,
            delivery.clone(),
            ceiling.clone(),
            meter.clone(),
            Arc::clone(&draining),
        );
        let configuration = Configuration::new(config);
        starting.started(TelemetryService::new(TelemetrySources {
            meter: meter.clone(),
            ceiling: ceiling.clone(),
            spool: spool.clone(),
            delivery: delivery.clone(),
            keys,
            upstream,
            endpoint: config.upstream.endpoint.authority(),
            egress: egress_names(config),
            configuration: configuration.clone(),
            stopping: Arc::clone(&ending),
            refusing: Arc::clone(&draining),
            started: Timestamp::now(),
        }));

        let publish_service = publish.clone();
        let service = tower::service_fn(move |request| publish_service.clone().answer(request));
        let server =
            HttpServer::new(publish_limits(&config.publish), &config.listen.hosts, service);
        for listener in publish_listeners {
            let (server, stop) = (server.clone(), stop.clone());
            tasks.spawn(async move { server.serve(listener, stop, LAST_REPLIES).await });
        }
        if let Some(listener) = control_listener {
            let control = Control::new(delivery.clone(), meter.clone());
            let service = tower::service_fn(move |request| control.clone().answer(request));
            let (server, token) = (HttpServer::new(SMALL, &[], service), stop.clone());
            tasks.spawn(async move { server.serve(listener, token, LAST_REPLIES).await });
        }
        tasks.close();
        failed.disarm();
        let spool = spool.map(|spool| SpoolRemainder { spool, to: hand_over_to(config) });
        let drain = config.drain.clone();
        Ok(Self {
            publish,
            delivery,
            ceiling,
            meter,
            spool,
            ending,
            draining,
            drain,
            call_timeout: config.upstream.call_timeout,
            stop,
            tasks,
            addresses,
            configuration,
        })
    }

    /// Where it listens; with the port that the system chose where the configuration has 0.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Where the reader of the configuration reports what became of a change.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Applies what may change while running: ceilings (permits already spent stay spent), prices, and
    /// how requests are read.
    pub fn reload(&self, config: &Config) {
        self.ceiling.resize(&config.ceilings);
        self.meter.reprice(&config.billing);
        self.publish.reload(config);
        self.configuration.applied(config);
    }

    /// Stops: `/readyz` fails at once; after `drain.accept_for` new messages are refused; messages on
    /// their way finish within `drain.grace`; then the listeners close. `hurry` ends both waits.
    /// Returns how many messages did not finish.
    ///
    /// Every call must be able to end within the grace, so the last one begins `upstream.call_timeout`
    /// before its end, or at half of a shorter grace.
    pub async fn drain(self, hurry: impl Future<Output = ()>) -> usize {
        self.ending.store(true, Ordering::Relaxed);
        if let Some(rest) = &self.spool {
            rest.spool.retire();
        }
        let uncertain = self.meter.uncertain();
        let grace = self.drain.grace;
        let in_order = async {
            tokio::time::sleep(self.drain.accept_for).await;
            self.draining.store(true, Ordering::Relaxed);
            self.delivery.drain(grace.saturating_sub(self.call_timeout.min(grace / 2))).await;
        };
        tokio::select! {
            () = in_order => {}
            () = hurry => {
                self.draining.store(true, Ordering::Relaxed);
                self.delivery.drain(Duration::ZERO).await;
            }
        }
        // While the listeners are open: a caller whose call ends now still gets its reply.
        let left = self.delivery.close(self.call_timeout + LAST_RECORDS).await;
        let uncertain = self.meter.uncertain() - uncertain;
        if uncertain > 0 {
            tracing::warn!(
                calls = uncertain,
                "calls ended without an answer while stopping: each may have been delivered"
            );
        }
        self.stop.cancel();
        self.tasks.wait().await;
        self.ceiling.close().await;
        if let Some(rest) = self.spool {
            rest.leave().await;
        }
        self.meter.close().await;
        left
    }
}

/// The messages that are still stored when a sidecar ends.
struct SpoolRemainder {
    spool: Spool,
    /// The fleet's spool, to which those of a disk are migrated (`drain.handoff`).
    to: Option<(config::Fleet, spool::Options)>,
}

impl SpoolRemainder {
    /// Migrates the messages, or closes the spool with them, and lets the last writes end: they end
    /// with the runtime.
    async fn leave(self) {
        self.hand_over_or_close().await;
        drop(timeout(LAST_WRITES, self.spool.settle()).await);
    }

    async fn hand_over_or_close(&self) {
        let Some((fleet, options)) = &self.to else {
            if timeout(LEAVE, self.spool.close()).await.is_err() {
                tracing::warn!("the spool was not closed in time");
            }
            return;
        };
        let handed = timeout(HAND_OVER, hand_over(&self.spool, fleet, options.clone())).await;
        let usage = self.spool.usage();
        let left = usage.queued.messages + usage.dead.messages;
        match handed {
            Ok(Ok(messages)) if left == 0 => {
                tracing::info!(messages, "messages migrated to Redis");
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    error,
                    left,
                    "messages not migrated to Redis: they stay on this disk for the next start"
                );
            }
            Ok(Ok(_)) | Err(_) => {
                tracing::warn!(
                    left,
                    "messages not migrated to Redis in time: they stay on this disk for the next start"
                );
            }
        }
    }
}

async fn hand_over(
    from: &Spool,
    fleet: &config::Fleet,
    options: spool::Options,
) -> Result<usize, String> {
    let until = Instant::now() + BEGIN_HAND_OVER;
    let to = Spool::share(fleet, None, options).await.map_err(|error| error.to_string())?;
    let handed = from.hand_over(&to, until).await.map_err(|error| error.to_string());
    to.close().await;
    handed
}

fn publish_limits(config: &config::Publish) -> Limits {
    Limits {
        max_connections: config.max_connections,
        max_header: config.max_header,
        header_timeout: config.header_timeout,
        idle_timeout: config.idle_timeout,
    }
}

fn hand_over_to(config: &Config) -> Option<(config::Fleet, spool::Options)> {
    let spool = config.spool.as_ref()?;
    if !config.drain.handoff || spool.store == config::Store::Redis {
        return None;
    }
    Some((config.fleet.clone()?, spool_options(spool, &config.idempotency)))
}

async fn open(config: &Config, spool: &config::Spool) -> Result<Spool, OpenError> {
    let options = spool_options(spool, &config.idempotency);
    match (spool.store, &config.fleet) {
        (config::Store::Redis, Some(fleet)) => {
            Spool::share(fleet, Some(&spool.path), options).await
        }
        _ => Spool::open_within(longest_stop(config), options).await,
    }
}

/// How long a predecessor with this configuration may take from SIGTERM to its end.
fn longest_stop(config: &Config) -> Duration {
    let drain = &config.drain;
    let calls = drain.accept_for + drain.grace + config.upstream.call_timeout + LAST_RECORDS;
    let leave = if hand_over_to(config).is_some() { HAND_OVER } else { LEAVE };
    calls + LAST_REPLIES + leave + LAST_WRITES + LAST_STEPS
}

/// The ceilings, shared with the fleet's sidecars where there is a fleet.
fn ceiling(config: &Config, start: Start) -> Ceiling {
    let egress = config.upstream.egress_addresses.len();
    let ceiling = Ceiling::start(&config.ceilings, egress, config.publish.max_waiting, start);
    ceiling.name_egress(egress_names(config));
    if let Some(fleet) = &config.fleet {
        ceiling.share(&config.ceilings, fleet, config.upstream.call_timeout);
    }
    ceiling
}

/// Opens the ledger beside the spool. If that fails, messages are counted in memory: a full disk must
/// not keep a sidecar from starting.
async fn meter(config: &Config, instances: Vec<InstanceId>) -> Result<Meter, StartError> {
    let (topics, billing) = (config.telemetry.max_topics, config.billing.clone());
    let folder = config.spool.as_ref().map(ledger_folder);
    let open = move || match folder {
        Some(folder) => Meter::open(Some(&folder), topics, &billing, instances.clone())
            .or_else(|error| Meter::unkept(&error, topics, &billing, instances)),
        None => Meter::open(None, topics, &billing, instances),
    };
    let opened = tokio::task::spawn_blocking(open).await;
    let opened = opened.map_err(|error| StartError::Meter(error.to_string()))?;
    opened.map_err(|error| StartError::Meter(error.to_string()))
}

/// The unanswered calls of the process before this one, as the ledger has them. Without that ledger
/// any number is possible.
fn after_others(meter: &Meter, config: &Config) -> Start {
    let within = config.ceilings.unanswered.max;
    let call_timeout = config.upstream.call_timeout;
    let calls = meter.unanswered_before(within, call_timeout);
    let Some(calls) = calls else { return Start::AfterOthers };
    let left = calls.into_iter().map(|call| {
        let PriorCalls { ago, calls, under_way, later_answered } = call;
        Left { ago, calls, under_way, later_answered }
    });
    Start::After { left: left.collect(), call_timeout }
}

/// The ledger's folder, in that of the spool.
pub fn ledger_folder(spool: &config::Spool) -> PathBuf {
    spool.path.join("ledger")
}

/// The configuration of a spool, as the spool takes it.
pub fn spool_options(config: &config::Spool, idempotency: &config::Idempotency) -> spool::Options {
    spool::Options {
        path: config.path.clone(),
        max_bytes: config.max_bytes,
        max_messages: config.max_messages,
        // A key's answer is in its message's receipt.
        keep_receipts: config.keep_receipts.max(idempotency.keep),
        keep_claims: idempotency.keep,
    }
}

/// Where the control socket may be, best first: a container may not be allowed to write `/run`.
pub fn control_sockets(config: &Config) -> Vec<PathBuf> {
    let Some(configured) = &config.listen.control else { return Vec::new() };
    let beside = config.spool.as_ref().map(|spool| spool.path.join("control.sock"));
    std::iter::once(configured.clone()).chain(beside).collect()
}

async fn bind_control(config: &Config) -> Result<Option<Listener>, StartError> {
    let mut failed = None;
    for path in control_sockets(config) {
        match Listener::bind_private(&path).await {
            Ok(listener) => return Ok(Some(listener)),
            // The operator's file is at this path: another one is not what the configuration means.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StartError::Bind { address: unix(&path), error });
            }
            Err(error) => failed = Some((path, error)),
        }
    }
    if let Some((path, error)) = failed {
        let path = path.display();
        tracing::warn!(
            %path,
            %error,
            "the control socket cannot be created: `tollgate messages` and `tollgate bill` do not work \
             with this sidecar; set listen.control"
        );
    }
    Ok(None)
}

/// The addresses as they are configured; the one that the system chooses is `default`.
fn egress_names(config: &Config) -> Vec<String> {
    let addresses = &config.upstream.egress_addresses;
    if addresses.is_empty() {
        return vec!["default".to_owned()];
    }
    addresses.iter().map(ToString::to_string).collect()
}

async fn bind(address: &Address) -> Result<Listener, StartError> {
    Listener::bind(address).await.map_err(|error| {
        let address = match address {
            Address::Tcp(address) => address.to_string(),
            Address::Unix(path) => unix(path),
        };
        StartError::Bind { address, error }
    })
}

/// A socket's path as the configuration writes it.
fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}
