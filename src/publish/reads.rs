//! What the callers' listener answers to `GET` and `HEAD`: receipts, its health, its description.

use std::time::Duration;

use http::header::{CACHE_CONTROL, HeaderValue};
use http::{Method, Request, StatusCode};

use super::prefer::{MAX_WAIT, Prefer};
use super::{Inner, receipts, wrong_method};
use crate::message::MessageId;
use crate::server::{Reply, reply};

/// The description of this listener in the form of `OpenAPI` 3.1. Tests hold the running listener
/// against it.
const DESCRIPTION: &str = include_str!("openapi.json");
/// Its media type.
const DESCRIPTION_TYPE: &str = "application/vnd.oai.openapi+json;version=3.1";

/// A request for something that is read.
pub(super) struct ReadRequest {
    method: Method,
    resource: Resource,
    /// How long the reader waits for the end of a message.
    wait: Option<Duration>,
}

enum Resource {
    /// `/messages/<Id>`; the id may be none.
    Message(String),
    Health,
    Description,
}

impl ReadRequest {
    /// `None`: nothing is read at this path.
    pub(super) fn of<B>(request: &Request<B>) -> Option<Self> {
        let resource = match request.uri().path() {
            "/healthz" => Resource::Health,
            "/openapi.json" => Resource::Description,
            path => Resource::Message(path.strip_prefix("/messages/")?.to_owned()),
        };
        let wait = Prefer::read(request.headers()).wait.map(|wait| wait.min(MAX_WAIT));
        Some(Self { method: request.method().clone(), resource, wait })
    }

    /// Whether only callers may read it.
    pub(super) fn needs_caller(&self) -> bool {
        matches!(self.resource, Resource::Message(_))
    }
}

impl Inner {
    /// The answer, of which the server sends the head only where the method is `HEAD`.
    pub(super) async fn read(&self, request: ReadRequest) -> Reply {
        let ReadRequest { method, resource, wait } = request;
        if !matches!(method, Method::GET | Method::HEAD) {
            let instead = match resource {
                Resource::Message(_) => "GET shows one",
                Resource::Health => "GET asks whether messages are taken",
                Resource::Description => "GET reads it",
            };
            return wrong_method(&method, instead, "GET, HEAD");
        }
        match resource {
            Resource::Message(id) => self.receipt(&id, wait).await,
            Resource::Health => self.health(),
            Resource::Description => reply(StatusCode::OK, DESCRIPTION_TYPE, DESCRIPTION),
        }
    }

    async fn receipt(&self, id: &str, wait: Option<Duration>) -> Reply {
        let Ok(id) = id.parse::<MessageId>() else { return receipts::none() };
        let Some(wait) = wait else { return receipts::answer(self.delivery.find(id)) };
        let Ok(found) = self.delivery.find_ended(id, wait).await else {
            // A preference that cannot be met is ignored (RFC 7240): the reader is told by its absence.
            return receipts::answer(self.delivery.find(id));
        };
        let mut reply = receipts::answer(found);
        if let Ok(applied) = HeaderValue::try_from(format!("wait={}", wait.as_secs())) {
            reply.headers_mut().insert("preference-applied", applied);
        }
        reply
    }

    /// For what decides by a status whether messages are sent here.
    fn health(&self) -> Reply {
        let (status, word) = if self.draining() {
            (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
        } else {
            (StatusCode::OK, "ok\n")
        };
        let mut reply = reply(status, "text/plain; charset=utf-8", word);
        reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        reply
    }
}
