//! Errors as callers get them: problem details (RFC 9457).

use std::time::Duration;

use http::header::{ALLOW, CONNECTION, HeaderValue, RETRY_AFTER};
use http::{HeaderName, StatusCode};
use serde::{Serialize, Serializer};

use super::reply::{Reply, json, reply};
use super::slug::Slug;

/// One problem: what happened, what became of the message, what the caller can do.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    #[serde(rename = "type", serialize_with = "kind")]
    slug: Slug,
    title: &'static str,
    status: u16,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    retryable: bool,
    attempts: u32,
    #[serde(flatten)]
    message: Option<Box<KeptMessage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<Box<UpstreamAnswer>>,
    #[serde(skip)]
    headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct KeptMessage {
    id: String,
    status: &'static str,
}

#[derive(Debug, Clone, Serialize)]
struct UpstreamAnswer {
    #[serde(rename = "Code", skip_serializing_if = "Option::is_none")]
    code: Option<Box<str>>,
    #[serde(rename = "RequestId", skip_serializing_if = "Option::is_none")]
    request_id: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
}

impl Problem {
    /// A problem of type `urn:tollgate:<slug>`.
    pub fn new(status: StatusCode, slug: Slug, title: &'static str, detail: String) -> Self {
        Self {
            slug,
            title,
            status: status.as_u16(),
            detail,
            outcome: None,
            retryable: false,
            attempts: 0,
            message: None,
            upstream: None,
            headers: Vec::new(),
        }
    }

    /// What became of the message: `not-sent`, `refused` or `unknown`.
    #[must_use]
    pub fn outcome(mut self, outcome: &'static str) -> Self {
        self.outcome = Some(outcome);
        self
    }

    /// The same request may succeed later.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// The same request will not succeed soon.
    #[must_use]
    pub fn not_retryable(mut self) -> Self {
        self.retryable = false;
        self
    }

    /// How many calls to the upstream were made.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// The kept message that it is about, and what has become of it.
    #[must_use]
    pub fn message(mut self, id: String, status: &'static str) -> Self {
        self.message = Some(Box::new(KeptMessage { id, status }));
        self
    }

    /// The upstream's error code, request id and HTTP status.
    #[must_use]
    pub fn upstream(
        mut self,
        code: Option<Box<str>>,
        request_id: Option<Box<str>>,
        status: Option<u16>,
    ) -> Self {
        self.upstream = Some(Box::new(UpstreamAnswer { code, request_id, status }));
        self
    }

    /// `Retry-After`: whole seconds, rounded up, at least 1.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.headers.push((RETRY_AFTER, HeaderValue::from(seconds(wait))));
        self.retryable()
    }

    /// `Allow`: the methods that this path has.
    #[must_use]
    pub fn allow(mut self, methods: &'static str) -> Self {
        self.headers.push((ALLOW, HeaderValue::from_static(methods)));
        self
    }

    /// A header of its reply.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// `Connection: close`, where the rest of the request is not read.
    #[must_use]
    pub fn close(mut self) -> Self {
        self.headers.push((CONNECTION, HeaderValue::from_static("close")));
        self
    }

    /// 404 for a path that this server does not have; `paths` names those that it has.
    pub fn not_found(path: &str, paths: &str) -> Self {
        let detail = format!("There is nothing at {path:?}. This listener serves {paths}.");
        Self::new(StatusCode::NOT_FOUND, Slug::NotFound, "No such path", detail)
    }

    /// Its HTTP status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The last part of its type.
    pub fn slug(&self) -> Slug {
        self.slug
    }

    /// What happened, what was done, and what to do.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Its JSON document.
    pub fn to_json(&self) -> Vec<u8> {
        json(self)
    }

    /// The problem as a reply.
    pub fn into_response(self) -> Reply {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut reply = reply(status, "application/problem+json", self.to_json());
        reply.headers_mut().extend(self.headers);
        reply
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn kind<S: Serializer>(slug: &Slug, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&format_args!("urn:tollgate:{slug}"))
}

/// Whole seconds, rounded up, at least 1: a caller that is asked to wait 0 s would not wait.
fn seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}
