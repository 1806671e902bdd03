//! The queue of spans that have ended, and their way to the collector.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use opentelemetry::{Key, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter, SpanProcessor,
};
use reqwest::redirect::Policy;
use tokio::runtime::Handle;

use crate::config::Otlp;
use crate::keys::{client_tls, innermost};
use crate::log_limiter::LogLimiter;

/// Spans that wait, or are being exported. More are dropped.
pub(super) const QUEUE: usize = 2_048;
/// Spans in one request to the collector.
const BATCH: usize = 512;
/// Spans wait no longer than this for others.
const DELAY: Duration = Duration::from_secs(1);
/// One export in all.
const EXPORT: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(2);
/// The most bytes of a collector's answer that are read.
const MAX_ANSWER: usize = 64 << 10;

/// What became of spans that have ended, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpanCounts {
    /// The collector has them.
    pub exported: u64,
    /// The collector did not take them.
    pub failed: u64,
    /// Too many were waiting, or the process ended.
    pub dropped: u64,
}

#[derive(Debug)]
struct Counters {
    waiting: AtomicUsize,
    exported: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    log: LogLimiter,
}

/// Spans that have ended. A thread of its own exports them.
#[derive(Debug)]
pub(super) struct SpanQueue {
    processor: BatchSpanProcessor,
    counters: Arc<Counters>,
}

impl SpanQueue {
    pub(super) fn new(exporter: impl SpanExporter + 'static) -> Self {
        let counters = Arc::new(Counters {
            waiting: AtomicUsize::new(0),
            exported: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            log: LogLimiter::each_minute(1),
        });
        let exporter = CountingExporter { exporter, counters: Arc::clone(&counters) };
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(DELAY);
        let mut processor = BatchSpanProcessor::new(exporter, config.build());
        processor.set_resource(&resource());
        Self { processor, counters }
    }

    /// Never waits. The processor counts what it has no place for nowhere, so places are counted here.
    pub(super) fn submit(&self, span: SpanData) {
        let Counters { waiting, dropped, log, .. } = &*self.counters;
        if waiting.fetch_add(1, Ordering::Relaxed) < QUEUE {
            return self.processor.on_end(span);
        }
        waiting.fetch_sub(1, Ordering::Relaxed);
        dropped.fetch_add(1, Ordering::Relaxed);
        if let Some(suppressed) = log.next() {
            tracing::warn!(
                suppressed,
                "spans are dropped: the collector takes fewer than there are; lower telemetry.otlp.sample"
            );
        }
    }

    pub(super) fn counts(&self) -> SpanCounts {
        let Counters { exported, failed, dropped, .. } = &*self.counters;
        let [exported, failed, dropped] =
            [exported, failed, dropped].map(|count| count.load(Ordering::Relaxed));
        SpanCounts { exported, failed, dropped }
    }

    /// Exports what waits, at the latest until `within` is over. Blocks.
    pub(super) fn close(&self, within: Duration) {
        if self.processor.shutdown_with_timeout(within).is_err() {
            let Counters { waiting, dropped, .. } = &*self.counters;
            let spans = waiting.swap(QUEUE, Ordering::Relaxed);
            dropped.fetch_add(spans as u64, Ordering::Relaxed);
            tracing::warn!(spans, "stopped with spans that the collector has not taken");
        }
    }
}

/// Counts what an exporter does.
#[derive(Debug)]
struct CountingExporter<E> {
    exporter: E,
    counters: Arc<Counters>,
}

impl<E: SpanExporter> SpanExporter for CountingExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let exported = self.exporter.export(batch).await;
        let Counters { waiting, exported: good, failed, .. } = &*self.counters;
        waiting.fetch_sub(spans, Ordering::Relaxed);
        let count = if exported.is_ok() { good } else { failed };
        count.fetch_add(spans as u64, Ordering::Relaxed);
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// What all spans of this process have. OpenTelemetry's own variables win: `OTEL_SERVICE_NAME` and
/// `OTEL_RESOURCE_ATTRIBUTES`.
fn resource() -> Resource {
    let given = Resource::builder().build();
    let lacks = |key: &'static str| given.get(&Key::from_static_str(key)).is_none();
    let name = given.get(&Key::from_static_str("service.name"));
    let is_named = name.is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let mut resource = Resource::builder();
    if !is_named {
        resource = resource.with_service_name("tollgate");
    }
    if lacks("service.version") {
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        resource = resource.with_attribute(version);
    }
    if lacks("service.instance.id") {
        // In a pod it is the pod's name.
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        resource = resource.with_attribute(KeyValue::new("service.instance.id", host));
    }
    resource.build()
}

/// Sends spans to the collector.
pub(super) fn exporter(config: &Otlp) -> Result<impl SpanExporter + 'static, String> {
    let client = CollectorClient::new(&config.endpoint, config.ca_file.as_deref())?;
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(EXPORT)
        .with_endpoint(&config.endpoint)
        .build();
    exporter.map_err(|error| error.to_string())
}

/// Our HTTP client. The thread that exports has no runtime, so each request is a task of this one.
#[derive(Debug)]
struct CollectorClient {
    client: reqwest::Client,
    runtime: Handle,
    endpoint: String,
    log: LogLimiter,
}

impl CollectorClient {
    fn new(endpoint: &str, ca_file: Option<&Path>) -> Result<Self, String> {
        let is_tls = endpoint.starts_with("https://");
        let tls = client_tls(is_tls, ca_file).map_err(|error| error.to_string())?;
        let client = reqwest::Client::builder()
            // A collector is near.
            .no_proxy()
            .tls_backend_preconfigured(tls)
            .redirect(Policy::none())
            .retry(reqwest::retry::never())
            .http1_only()
            .pool_max_idle_per_host(1)
            .connect_timeout(CONNECT)
            .timeout(EXPORT)
            .build()
            .map_err(|error| innermost(&error))?;
        let (runtime, endpoint) = (Handle::current(), endpoint.to_owned());
        Ok(Self { client, runtime, endpoint, log: LogLimiter::each_minute(1) })
    }

    /// Spans do not reach the collector. Its answers are not repeated: they may hold anything.
    fn log(&self, error: &str) {
        if let Some(suppressed) = self.log.next() {
            let endpoint = &*self.endpoint;
            tracing::warn!(
                endpoint,
                error,
                suppressed,
                "spans are not exported; messages are delivered as before. Check telemetry.otlp.endpoint and the collector"
            );
        }
    }
}

/// Sends one request, and reads its answer.
async fn exchange(
    client: reqwest::Client,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, reqwest::Error> {
    let mut answer = client.execute(request.try_into()?).await?;
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await? {
        let room = MAX_ANSWER - body.len();
        body.extend_from_slice(&piece[..piece.len().min(room)]);
        if piece.len() >= room {
            break;
        }
    }
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = answer.status();
    *response.headers_mut() = std::mem::take(answer.headers_mut());
    Ok(response)
}

#[async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let exchanged = self.runtime.spawn(exchange(self.client.clone(), request)).await;
        match exchanged {
            Ok(Ok(answer)) => {
                if !answer.status().is_success() {
                    self.log(&format!("HTTP status {}", answer.status().as_u16()));
                }
                Ok(answer)
            }
            Ok(Err(error)) => {
                let error = innermost(&error);
                self.log(&error);
                Err(error.into())
            }
            // The process ends.
            Err(error) => Err(error.into()),
        }
    }
}
