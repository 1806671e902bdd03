//! What a caller must prove, and what it may do.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderValue, WWW_AUTHENTICATE};
use http::{Request, StatusCode};

use super::Inner;
use super::refusal::{RefusedRequest, invalid};
use crate::callers::{Caller, Unproven};
use crate::message::Topic;
use crate::meter::Published;
use crate::server::{ClientAddress, PeerNames, PeerProcess, Problem, RequestBody, Slug};

/// Log lines a second about callers that are refused.
pub(super) const MAX_LINES: u64 = 5;

impl Inner {
    /// Who has sent a request; `None`: all callers are one. A refusal is logged.
    pub(super) fn caller(
        &self,
        request: &Request<RequestBody>,
    ) -> Result<Option<Arc<Caller>>, RefusedRequest> {
        let process = request.extensions().get::<PeerProcess>();
        let names = request.extensions().get().map(PeerNames::all);
        let uid = process.map(|peer| peer.uid);
        let identified = self.callers.identify(request.headers(), uid, names);
        identified.map_err(|why| {
            if let Some(suppressed) = self.refused_log.next() {
                let from = request.extensions().get::<ClientAddress>();
                let from = from.map(|address| tracing::field::display(address.0));
                let reason = why.to_string();
                // A caller's operator has to find the name that the configuration lacks.
                let certificate = names.map(tracing::field::debug);
                tracing::warn!(from, uid, certificate, reason, suppressed, "a caller was refused");
            }
            unproven(why).into()
        })
    }
}

/// Refuses a message to a topic that is not the caller's, and one too many.
pub(super) fn check(caller: Option<&Caller>, topic: &Topic) -> Result<(), RefusedRequest> {
    let Some(caller) = caller else { return Ok(()) };
    if !caller.may_publish(topic) {
        let detail = format!(
            "The caller {} may not publish to {topic} (callers.topics). Nothing was sent.",
            caller.name()
        );
        let status = StatusCode::FORBIDDEN;
        return Err(invalid(status, Slug::ForbiddenTopic, "Forbidden topic", detail).into());
    }
    caller
        .count()
        .map_err(|later| RefusedRequest::new(Published::OverCeiling, too_many(caller, later)))
}

fn too_many(caller: &Caller, later: Duration) -> Problem {
    let detail = format!(
        "The caller {} has sent as many messages as it may in a second (callers.calls_per_second). Nothing \
         was sent; send it again after Retry-After.",
        caller.name()
    );
    let status = StatusCode::TOO_MANY_REQUESTS;
    invalid(status, Slug::CallerRate, "Over the caller's rate", detail).retry_after(later)
}

fn unproven(why: Unproven) -> Problem {
    let detail = format!(
        "Callers must prove who they are, and {why}. Nothing was sent. Send Authorization: Bearer with the \
         token of a caller ([[callers]]), or another proof of one."
    );
    invalid(StatusCode::UNAUTHORIZED, Slug::UnprovenCaller, "Unproven caller", detail)
        .header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tollgate\""))
}
