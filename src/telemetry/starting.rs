//! What the telemetry listener answers while a sidecar starts: it may wait for its predecessor to end.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use http::{Request, StatusCode};

use super::{TelemetryService, text};
use crate::server::Reply;

/// The telemetry API of a sidecar that may not have started yet. Cheap to clone.
#[derive(Clone, Default)]
pub struct StartingTelemetry {
    started: Arc<OnceLock<TelemetryService>>,
}

impl StartingTelemetry {
    /// From now on `service` answers. The first one stays.
    pub fn started(&self, service: TelemetryService) {
        self.started.get_or_init(|| service);
    }

    /// Answers one request. Before the start, the process is alive, and nothing else.
    pub fn answer<B>(&self, request: &Request<B>) -> Result<Reply, Infallible> {
        match self.started.get() {
            Some(service) => service.clone().answer(request),
            None if request.uri().path() == "/livez" => Ok(text(StatusCode::OK, "ok\n".to_owned())),
            None => Ok(text(StatusCode::SERVICE_UNAVAILABLE, "starting\n".to_owned())),
        }
    }
}
