//! Builds a sidecar from a configuration, starts its listeners, drains and stops them in order.

mod listeners;
mod memory;
mod stop;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use jiff::Timestamp;

use crate::callers::Callers;
use crate::ceiling::{Ceiling, Left, Start, member_name};
use crate::config::{self, Config};
use crate::control::Control;
use crate::delivery::Delivery;
use crate::keys::{KeyError, Keys};
use crate::memory::{MemoryBudget, MemoryPlan};
use crate::message::{CallerName, InstanceId};
use crate::meter::{Meter, PriorCalls};
use crate::passthrough::Passthrough;
use crate::publish::{PublishParts, PublishService};
use crate::server::HttpServer;
use crate::spool::{self, AdoptionRules, MacFileError, MacKeys, OpenError, Spool};
use crate::telemetry::{
    Configuration, SidecarIdentity, StartingTelemetry, TelemetryService, TelemetrySources,
};
use crate::traces::{Traces, TracesError};
use crate::upstream::{HttpUpstream, TlsError};
pub use listeners::{Addresses, control_sockets};
use listeners::{
    CallersListeners, SMALL, ServerSlots, Servers, bind_control, bind_tcp, certificates,
};
pub use stop::{Leftovers, longest_stop};
use stop::{SpoolRemainder, hand_over_to};

/// Why a sidecar does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be bound.
    #[error("cannot listen at {address}: {error}{}", remedy_of_bind(error))]
    Bind {
        /// The address as it is configured.
        address: String,
        /// The system's error.
        error: io::Error,
    },
    /// The callers' certificate, its key, or the authorities cannot be used.
    #[error("listen.tls: {0}")]
    Certificate(KeyError),
    /// The key source is unusable.
    #[error("keys: {0}")]
    Keys(#[from] KeyError),
    /// The upstream's TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Spans cannot be exported.
    #[error(transparent)]
    Traces(#[from] TracesError),
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

/// What helps where an address is taken.
fn remedy_of_bind(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another process listens there, or one that is stopping still does (drain.grace): wait for it, or set \
             another address under listen"
        }
        _ => "",
    }
}

/// A running sidecar.
pub struct Sidecar {
    publish: PublishService,
    delivery: Delivery<HttpUpstream>,
    passthrough: Passthrough,
    ceiling: Ceiling,
    meter: Meter,
    traces: Traces,
    spool: Option<SpoolRemainder>,
    /// Set first: `/readyz` fails from now on.
    ending: Arc<AtomicBool>,
    /// Set after `drain.accept_for`: new messages are refused from now on.
    draining: Arc<AtomicBool>,
    drain: config::Drain,
    call_timeout: Duration,
    servers: Servers,
    addresses: Addresses,
    configuration: Configuration,
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
        let servers = Servers::default();
        // A start that fails stops what answers already.
        let failed = servers.stop.clone().drop_guard();
        let (slots, hosts) = (ServerSlots::new(config), &config.listen.hosts);
        let certificates = certificates(config).await?;
        let traces = traces(config).await?;
        let telemetry_listener = bind_tcp(config.listen.telemetry)?;
        let telemetry_address = telemetry_listener.address();
        // While the predecessor ends, the kubelet learns that this process is alive.
        let starting = StartingTelemetry::default();
        let answering = starting.clone();
        let service =
            tower::service_fn(move |request| std::future::ready(answering.answer(&request)));
        let server = HttpServer::new(SMALL, slots.telemetry.clone(), hosts, service);
        servers.serve(&server, telemetry_listener);

        let upstream =
            HttpUpstream::new(&config.upstream, config.retry.codes.clone(), keys.clone())?;
        let spool = match &config.spool {
            Some(spool) => tokio::select! {
                opened = open(config, spool) => Some(opened?),
                () = stopped => return Err(StartError::Stopped),
            },
            None => None,
        };
        // After the spool: until then callers are refused by the system at once, and the predecessor may have the
        // sockets.
        let publish_listeners = CallersListeners::bind(config, certificates, &servers).await?;
        let addresses = publish_listeners.addresses(telemetry_address);
        // Its folder may be the spool's, which is this user's alone.
        let control_listener = bind_control(config).await?;
        let meter = meter(config, instances(config)).await?;
        let (ceiling, passthrough) = ceilings(config, start, &meter, &upstream);
        let plan = MemoryPlan::of(config.runtime.memory);
        let memory = MemoryBudget::new(plan.bodies);
        let delivery = Delivery::new(
            config,
            upstream.clone(),
            spool.clone(),
            ceiling.clone(),
            meter.clone(),
            traces.clone(),
            seed,
        );
        let callers = Callers::start(&config.callers, &servers.stop).await;
        let (ending, draining) = (Arc::default(), Arc::default());
        let parts = PublishParts {
            delivery: delivery.clone(),
            passthrough: passthrough.clone(),
            ceiling: ceiling.clone(),
            meter: meter.clone(),
            traces: traces.clone(),
            draining: Arc::clone(&draining),
            memory: memory.clone(),
            callers,
        };
        let publish = PublishService::new(config, parts);
        let configuration = Configuration::new(config);
        let telemetry = TelemetryService::new(TelemetrySources {
            meter: meter.clone(),
            ceiling: ceiling.clone(),
            spool: spool.clone(),
            delivery: delivery.clone(),
            passthrough: passthrough.clone(),
            keys,
            upstream,
            identity: identity(config),
            endpoint: config.upstream.endpoint.authority(),
            egress: egress_names(config),
            configuration: configuration.clone(),
            connections: slots.all(),
            memory: memory.clone(),
            traces: traces.clone(),
            stopping: Arc::clone(&ending),
            refusing: Arc::clone(&draining),
            started: Timestamp::now(),
        });
        servers.tasks.spawn(telemetry.clone().watch(servers.stop.clone()));
        starting.started(telemetry);

        publish_listeners.serve(config, &publish, &memory, &slots.publish, &servers);
        if let Some(listener) = control_listener {
            let control = Control::new(delivery.clone(), meter.clone());
            let service = tower::service_fn(move |request| control.clone().answer(request));
            servers.serve(&HttpServer::new(SMALL, slots.control, &[], service), listener);
        }
        servers.tasks.spawn(memory::lend(plan, memory, delivery.clone(), servers.stop.clone()));
        servers.tasks.close();
        failed.disarm();
        Ok(Self {
            publish,
            delivery,
            passthrough,
            ceiling,
            meter,
            traces,
            spool: spool.map(|spool| SpoolRemainder { spool, to: hand_over_to(config) }),
            ending,
            draining,
            drain: config.drain.clone(),
            call_timeout: config.upstream.call_timeout,
            servers,
            addresses,
            configuration,
        })
    }

    /// Where it listens; with the port that the system chose where the configuration has 0.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// What it delivers, and has stored.
    pub fn delivery(&self) -> &Delivery<HttpUpstream> {
        &self.delivery
    }

    /// Where the reader of the configuration reports what became of a change.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Applies what may change while running: ceilings (permits already spent stay spent), prices,
    /// how requests are read, and which stored messages are sent and taken over.
    pub fn reload(&self, config: &Config) {
        self.ceiling.resize(&config.ceilings);
        self.meter.set_ceiling(config.ceilings.account.unwrap_or(u32::MAX));
        self.meter.reprice(&config.billing);
        self.publish.reload(config);
        self.delivery.reload(config);
        self.configuration.applied(config);
    }
}

async fn open(config: &Config, spool: &config::Spool) -> Result<Spool, OpenError> {
    let adopts = AdoptionRules::of(config);
    let options = spool::Options {
        adopts,
        caller_shares: caller_shares(config),
        ..spool_options(spool, &config.idempotency, &config.runtime)
    };
    if hand_over_to(config).is_some()
        && let Some(file) = options.mac.clone()
    {
        // Else the error would come at the end, when the messages are to be migrated.
        let path = file.path.clone();
        let read = tokio::task::spawn_blocking(move || MacKeys::read(&file.path)).await;
        let read = read.map_err(io::Error::from).map_err(MacFileError::from).flatten();
        read.map_err(|error| OpenError::MacFile { path, error })?;
    }
    match (spool.store, &config.fleet) {
        (config::Store::Redis, Some(fleet)) => {
            Spool::share(fleet, Some(&spool.path), options).await
        }
        _ => Spool::open_within(longest_stop(config), options).await,
    }
}

/// Spans, if they are configured. Files are read on a thread for blocking work.
async fn traces(config: &Config) -> Result<Traces, StartError> {
    let Some(otlp) = config.otlp.clone() else { return Ok(Traces::off()) };
    let endpoint = config.upstream.endpoint.clone();
    let started = tokio::task::spawn_blocking(move || Traces::start(&otlp, &endpoint)).await;
    let started = started.map_err(|error| TracesError::from(io::Error::from(error)))?;
    Ok(started?)
}

/// The parts of the spool that callers may fill.
fn caller_shares(config: &Config) -> Arc<BTreeMap<CallerName, f64>> {
    let shares = config.callers.iter();
    let shares =
        shares.filter_map(|caller| Some((caller.name.as_str().into(), caller.spool_share?)));
    Arc::new(shares.collect())
}

/// The ceilings that all calls share, and those of other operations.
fn ceilings(
    config: &Config,
    start: Start,
    meter: &Meter,
    upstream: &HttpUpstream,
) -> (Ceiling, Passthrough) {
    let others = start.clone();
    let ceiling = ceiling(config, start, meter);
    let (upstream, meter) = (upstream.clone(), meter.clone());
    let passthrough = Passthrough::start(config, upstream, ceiling.clone(), meter, &others);
    (ceiling, passthrough)
}

/// The ceilings, shared with the fleet's sidecars where there is a fleet.
fn ceiling(config: &Config, start: Start, meter: &Meter) -> Ceiling {
    let start = match start {
        Start::AfterOthers => after_others(meter, config),
        start => start,
    };
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
    let meter = opened.map_err(|error| StartError::Meter(error.to_string()))?;
    if let Some(fleet) = &config.fleet {
        meter.join_fleet(fleet, config.ceilings.account.unwrap_or(u32::MAX));
    }
    Ok(meter)
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
pub fn spool_options(
    config: &config::Spool,
    idempotency: &config::Idempotency,
    runtime: &config::Runtime,
) -> spool::Options {
    spool::Options {
        path: config.path.clone(),
        lifetime: config.lifetime,
        max_bytes: config.max_bytes,
        max_messages: config.max_messages,
        max_in_memory: MemoryPlan::of(runtime.memory).messages,
        // A key's answer is in its message's receipt.
        keep_receipts: config.keep_receipts.max(idempotency.keep),
        keep_claims: idempotency.keep,
        caller_shares: Arc::default(),
        mac: config.mac.clone(),
        adopts: AdoptionRules::default(),
    }
}

/// All that messages may be published to, the default one first.
fn instances(config: &Config) -> Vec<InstanceId> {
    let rules = config.upstream.instances.iter().map(|rule| Arc::clone(&rule.instance_id));
    config.upstream.instance_id.iter().cloned().chain(rules).collect()
}

/// Which sidecar it is, for a person who looks at several.
fn identity(config: &Config) -> SidecarIdentity {
    let mut names = Vec::<String>::new();
    for instance in instances(config) {
        // Several rules may name the same one.
        if !names.iter().any(|name| **name == *instance) {
            names.push(instance.to_string());
        }
    }
    let region = config.fleet.as_ref().map(|fleet| fleet.region.clone());
    let region = region.or_else(|| config.upstream.endpoint.region()).unwrap_or_default();
    SidecarIdentity { name: member_name(), instances: names, region }
}

/// The addresses as they are configured; the one that the system chooses is `default`.
fn egress_names(config: &Config) -> Vec<String> {
    let addresses = &config.upstream.egress_addresses;
    if addresses.is_empty() {
        return vec!["default".to_owned()];
    }
    addresses.iter().map(ToString::to_string).collect()
}
