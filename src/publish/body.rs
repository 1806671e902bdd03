//! Reads the body of a request, within its limits of bytes, time and memory.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::time::timeout;

use super::refusal::{RefusedRequest, invalid};
use crate::memory::NoMemory;
use crate::server::{Problem, RequestBody, Slug};

/// The most bytes in one request with many messages.
pub(super) const MAX_BATCH: usize = 8 << 20;

/// The keys that limit a message's body.
pub(super) const PAYLOAD_LIMIT: &str = "publish.max_payload, upstream.payload";

/// The limits of a body.
pub(super) struct BodyLimits {
    /// In bytes.
    pub(super) most: usize,
    /// What sets `most`, for the caller.
    pub(super) by: &'static str,
    /// For the whole body.
    pub(super) time: Duration,
}

impl BodyLimits {
    /// The whole body of the request with these headers. `reserve` makes room for so many more bytes of it,
    /// before they are held.
    pub(super) async fn read(
        &self,
        headers: &HeaderMap,
        body: RequestBody,
        reserve: impl FnMut(usize) -> Result<(), NoMemory>,
    ) -> Result<Bytes, RefusedRequest> {
        let most = self.most as u64;
        if declared(headers).is_some_and(|length| length > most) || body.size_hint().lower() > most
        {
            return Err(too_large(self.most, self.by).into());
        }
        let read = self.collect(body, reserve);
        timeout(self.time, read).await.unwrap_or_else(|_| Err(self.too_slow().into()))
    }

    async fn collect(
        &self,
        mut body: RequestBody,
        mut reserve: impl FnMut(usize) -> Result<(), NoMemory>,
    ) -> Result<Bytes, RefusedRequest> {
        // A copy: a part of hyper's buffer would keep all of it.
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| incomplete())?;
            let Some(part) = frame.data_ref() else { continue };
            if part.len() > self.most - whole.len() {
                return Err(too_large(self.most, self.by).into());
            }
            reserve(part.len())?;
            whole.extend_from_slice(part);
        }
        Ok(whole.freeze())
    }

    fn too_slow(&self) -> Problem {
        let detail = format!(
            "The body was not complete after {:?} (publish.body_timeout). Nothing was sent; send it again \
             over a faster connection.",
            self.time
        );
        let (status, slug) = (StatusCode::REQUEST_TIMEOUT, Slug::BodyTimeout);
        invalid(status, slug, "Body did not arrive in time", detail).retryable().close()
    }
}

fn incomplete() -> Problem {
    let detail = "The body ended early or its framing is broken. Nothing was sent.".to_owned();
    invalid(StatusCode::BAD_REQUEST, Slug::IncompleteBody, "Body is incomplete", detail).close()
}

pub(super) fn too_large(limit: usize, limited_by: &str) -> Problem {
    let detail =
        format!("At most {limit} bytes are allowed in a body ({limited_by}). Nothing was sent.");
    invalid(StatusCode::PAYLOAD_TOO_LARGE, Slug::PayloadTooLarge, "Body is too large", detail)
}

fn declared(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
