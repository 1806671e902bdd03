//! A collector of spans: what it takes is decoded by OTLP's published definitions.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::authority::certify;

/// What it does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    All,
    /// It answers with this status.
    None(u16),
    /// It never answers.
    Hangs,
}

/// A span, with its ids in hexadecimal.
#[derive(Debug, Clone)]
pub struct TakenSpan {
    pub name: String,
    pub trace: String,
    pub id: String,
    /// Empty without one.
    pub parent: String,
    pub kind: i32,
    pub attributes: BTreeMap<String, String>,
    /// Traces and spans.
    pub links: Vec<(String, String)>,
    pub has_failed: bool,
    /// Of the process.
    pub service: String,
    pub times: (u64, u64),
}

impl TakenSpan {
    pub fn attribute(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

#[derive(Clone)]
pub struct Collector {
    pub url: String,
    takes: Takes,
    bodies: Arc<Mutex<Vec<Bytes>>>,
}

impl Collector {
    pub async fn start(takes: Takes) -> Self {
        Self::serve("http", takes, None).await
    }

    /// One that speaks TLS, with a certificate of the authority that it writes to `ca.pem` in this folder.
    pub async fn with_tls(folder: &Path) -> Self {
        let (certificate, key) = certify(folder, &["localhost"]);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        Self::serve("https", Takes::All, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn serve(scheme: &str, takes: Takes, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = format!("{scheme}://localhost:{port}");
        let collector = Self { url, takes, bodies: Arc::default() };
        let serving = collector.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (collector, tls) = (serving.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                collector.answer(stream).await;
                            }
                        }
                        None => collector.answer(stream).await,
                    }
                });
            }
        });
        collector
    }

    async fn answer(self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(|request: Request<Incoming>| {
            let collector = self.clone();
            async move { Ok::<_, Infallible>(collector.take(request).await) }
        });
        drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
    }

    async fn take(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        let is_otlp = request.uri().path() == "/v1/traces"
            && request.headers()["content-type"] == "application/x-protobuf";
        if !is_otlp {
            *response.status_mut() = hyper::StatusCode::NOT_FOUND;
            return response;
        }
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
        match self.takes {
            Takes::All => self.bodies.lock().unwrap().extend(body.ok()),
            Takes::None(status) => {
                *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap();
            }
            Takes::Hangs => std::future::pending().await,
        }
        response
    }

    /// All that it has taken, as bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.bodies.lock().unwrap().concat()
    }

    /// All spans that it has taken.
    pub fn spans(&self) -> Vec<TakenSpan> {
        let bodies = self.bodies.lock().unwrap().clone();
        let all = bodies
            .into_iter()
            .flat_map(|body| ExportTraceServiceRequest::decode(body).unwrap().resource_spans);
        all.flat_map(|of| {
            let resource = attributes(of.resource.unwrap_or_default().attributes);
            let service = resource.get("service.name").cloned().unwrap_or_default();
            let spans = of.scope_spans.into_iter().flat_map(|of| of.spans);
            spans
                .map(move |span| TakenSpan {
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    kind: span.kind,
                    attributes: attributes(span.attributes),
                    links: span
                        .links
                        .iter()
                        .map(|link| (hex(&link.trace_id), hex(&link.span_id)))
                        .collect(),
                    has_failed: span.status.unwrap_or_default().code == 2,
                    service: service.clone(),
                    times: (span.start_time_unix_nano, span.end_time_unix_nano),
                })
                .collect::<Vec<_>>()
        })
        .collect()
    }

    /// Waits until it has this span, and returns it.
    pub async fn span(&self, what: &str, is_it: impl Fn(&TakenSpan) -> bool) -> TakenSpan {
        let mut found = None;
        super::until(what, async || {
            found = self.spans().into_iter().find(|span| is_it(span));
            found.is_some()
        })
        .await;
        found.unwrap()
    }
}

fn attributes(pairs: Vec<KeyValue>) -> BTreeMap<String, String> {
    let pairs = pairs.into_iter().map(|pair| {
        let value = match pair.value {
            Some(AnyValue { value: Some(Value::StringValue(text)) }) => text,
            Some(AnyValue { value: Some(Value::IntValue(number)) }) => number.to_string(),
            other => panic!("{}: {other:?}", pair.key),
        };
        (pair.key, value)
    });
    pairs.collect()
}

fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from_digit(half.into(), 16).unwrap();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
