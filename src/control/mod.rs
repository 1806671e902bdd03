//! The operators' door: a Unix socket behind `tollgate messages`.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::delivery::Delivery;
use crate::door::{Problem, Reply};
use crate::message::MessageId;
use crate::spool::{Selection, Spool};
use crate::upstream::Upstream;

/// The most messages of one answer; the rest is asked for with `after`.
pub const MAX_LISTED: usize = 1_000;
const MAX_BODY: usize = 1 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What is asked for.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listing {
    /// Which messages.
    #[serde(default)]
    pub selection: Selection,
    /// From the first after this id.
    #[serde(default)]
    pub after: Option<String>,
    /// At most so many, and no more than [`MAX_LISTED`].
    pub limit: usize,
}

/// How many messages were changed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Changed {
    /// So many.
    pub messages: usize,
}

/// The operators' door. Cheap to clone.
pub struct Control<U> {
    delivery: Delivery<U>,
}

impl<U> Clone for Control<U> {
    fn clone(&self) -> Self {
        Self { delivery: self.delivery.clone() }
    }
}

impl<U: Upstream> Control<U> {
    /// A door to what `delivery` keeps.
    pub fn new(delivery: Delivery<U>) -> Self {
        Self { delivery }
    }

    /// Answers one request.
    pub async fn answer(self, request: Request<Incoming>) -> Result<Reply, Infallible> {
        Ok(self.reply(request).await.unwrap_or_else(Problem::into_response))
    }

    async fn reply(&self, request: Request<Incoming>) -> Result<Reply, Problem> {
        let Some(spool) = self.delivery.spool() else {
            let detail = "This sidecar keeps no messages (spool.store = \"none\").".to_owned();
            let status = StatusCode::NOT_FOUND;
            return Err(Problem::new(status, "no-spool", "Nothing is kept", detail));
        };
        let path = request.uri().path().to_owned();
        if let (&Method::GET, Some(id)) = (request.method(), path.strip_prefix("/messages/")) {
            return show(spool, id).await;
        }
        if request.method() != Method::POST {
            return Err(Problem::not_found(&path, PATHS));
        }
        match &*path {
            "/messages/list" => {
                let asked: Listing = read(request).await?;
                let after = asked.after.as_deref().map(id).transpose()?;
                let listed = spool.select(&asked.selection, after, asked.limit.min(MAX_LISTED));
                Ok(json(&listed))
            }
            "/messages/replay" => {
                let messages = self.delivery.replay(&selection(request).await?).await;
                Ok(json(&Changed { messages }))
            }
            "/messages/drop" => {
                let messages = self.delivery.discard(&selection(request).await?).await;
                Ok(json(&Changed { messages }))
            }
            _ => Err(Problem::not_found(&path, PATHS)),
        }
    }
}

const PATHS: &str =
    "GET /messages/<Id>, POST /messages/list, POST /messages/replay and POST /messages/drop";

async fn show(spool: &Spool, name: &str) -> Result<Reply, Problem> {
    let found = spool.show(id(name)?).await;
    found.map(|listed| json(&listed)).ok_or_else(|| {
        let detail = "No message of this id is kept.".to_owned();
        Problem::new(StatusCode::NOT_FOUND, "no-such-message", "No such message", detail)
    })
}

fn id(text: &str) -> Result<MessageId, Problem> {
    text.parse().map_err(|_| bad(format!("{text:?} is no message id")))
}

fn bad(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "malformed-selection", "Malformed selection", detail)
}

/// Whoever means everything says so.
async fn selection(request: Request<Incoming>) -> Result<Selection, Problem> {
    let selection: Selection = read(request).await?;
    if selection.is_empty() {
        return Err(bad("Nothing is selected. To mean everything, say \"all\": true.".to_owned()));
    }
    Ok(selection)
}

async fn read<T: for<'de> Deserialize<'de>>(request: Request<Incoming>) -> Result<T, Problem> {
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let body = match timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return Err(bad(format!("The body cannot be read: {error}")).close()),
        Err(_) => return Err(bad("The body did not arrive in time.".to_owned()).close()),
    };
    serde_json::from_slice(&body)
        .map_err(|error| bad(format!("The body is not a request: {error}")))
}

fn json(body: &impl Serialize) -> Reply {
    // Strings, numbers and times: there is nothing that could not be serialised.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
