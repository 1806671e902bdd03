//! The HTTP API for operators: a Unix socket, which `tollgate messages` and `tollgate bill` use.

mod audit;
mod query;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::delivery::Delivery;
use crate::message::MessageId;
use crate::meter::{Meter, OperatorVerb};
use crate::server::{PeerProcess, Problem, Reply, RequestBody, Slug, json_reply, reply};
use crate::spool::{Affected, Listed, Picked, Selection, Spool};
use crate::upstream::HttpUpstream;
use audit::{Audit, peer};
pub use query::{Listing, bill_query};

/// The most messages of one reply; the next page is asked for with `after`.
pub const MAX_LISTED: usize = 1_000;
/// The messages of a reply where the request has no `limit`.
const LISTED: usize = 100;
const MAX_BODY: usize = 1 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Which sidecar this is: several on one machine may be configured with the same socket.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Identity {
    /// The folder of its spool, without symbolic links, if it has one.
    pub spool: Option<PathBuf>,
}

impl Identity {
    /// The sidecar with this spool.
    pub fn of(spool: Option<&Path>) -> Self {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Self { spool: spool.map(real) }
    }
}

/// How many messages were changed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Changed {
    /// Their number.
    pub messages: usize,
    /// Dead letters that are not replayed, since their time to live has ended.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub expired: usize,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl From<&Affected> for Changed {
    fn from(affected: &Affected) -> Self {
        Self { messages: affected.messages, expired: affected.expired }
    }
}

/// The HTTP API for operators. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    delivery: Delivery<HttpUpstream>,
    meter: Meter,
}

impl Control {
    /// Shows and changes what `delivery` keeps, and shows what `meter` has counted.
    pub fn new(delivery: Delivery<HttpUpstream>, meter: Meter) -> Self {
        Self { delivery, meter }
    }

    /// Answers one request.
    pub async fn answer(self, request: Request<RequestBody>) -> Result<Reply, Infallible> {
        Ok(self.handle(request).await.unwrap_or_else(Problem::into_response))
    }

    async fn handle(&self, request: Request<RequestBody>) -> Result<Reply, Problem> {
        if request.uri().path() == "/bill" && request.method() == Method::GET {
            let query = query::bill(request.uri().query().unwrap_or_default()).map_err(bad)?;
            return self.meter.bill(query).await.map(|bill| ok(&bill)).map_err(unreadable);
        }
        if request.uri().path() == "/sidecar" && request.method() == Method::GET {
            return Ok(ok(&Identity::of(self.delivery.spool().map(Spool::path))));
        }
        let Some(spool) = self.delivery.spool() else {
            let detail = "This sidecar keeps no messages (spool.store = \"none\").".to_owned();
            let status = StatusCode::NOT_FOUND;
            return Err(Problem::new(status, Slug::NoSpool, "Nothing is kept", detail));
        };
        let path = request.uri().path().to_owned();
        match (request.method(), &*path) {
            (&Method::GET, "/messages") => {
                let listing = Listing::parse(request.uri().query().unwrap_or_default());
                let Listing { selection, after, limit } = listing.map_err(bad)?;
                let picked = selection.pick().map_err(|error| bad(error.to_string()))?;
                Ok(lines(&spool.select(&picked, after, limit)))
            }
            (&Method::GET, path) if let Some(id) = path.strip_prefix("/messages/") => {
                self.show(spool, id, peer(&request)).await
            }
            (&Method::POST, "/messages/replay") => {
                let (picked, audit) = self.picked(OperatorVerb::Replay, request).await?;
                let delivery = self.delivery.clone();
                changed(audit, async move { delivery.replay(&picked).await }).await
            }
            (&Method::POST, "/messages/drop") => {
                let (picked, audit) = self.picked(OperatorVerb::Drop, request).await?;
                let delivery = self.delivery.clone();
                changed(audit, async move { delivery.discard(&picked).await }).await
            }
            _ => Err(Problem::not_found(&path, PATHS)),
        }
    }

    /// The selected messages; an empty selection is refused, so that all are never dropped by mistake.
    async fn picked(
        &self,
        verb: OperatorVerb,
        request: Request<RequestBody>,
    ) -> Result<(Picked, Audit), Problem> {
        let peer = peer(&request);
        let selection: Selection = read(request).await?;
        if selection.is_empty() {
            return Err(bad(
                "Nothing is selected. To select everything, set \"all\": true.".to_owned()
            ));
        }
        let picked = selection.pick().map_err(|error| bad(error.to_string()))?;
        Ok((picked, Audit::new(&self.meter, verb, peer, &selection)))
    }

    async fn show(
        &self,
        spool: &Spool,
        name: &str,
        peer: Option<PeerProcess>,
    ) -> Result<Reply, Problem> {
        let id = id(name)?;
        let selection = Selection { ids: vec![id.to_string()], ..Selection::default() };
        let audit = Audit::new(&self.meter, OperatorVerb::Show, peer, &selection);
        let found = spool.show(id).await;
        let mut affected = Affected::default();
        if found.is_some() {
            affected.add(id);
        }
        audit.record(&affected);
        found.map(|listed| ok(&listed)).ok_or_else(|| {
            let detail = "No message with this id is kept.".to_owned();
            Problem::new(StatusCode::NOT_FOUND, Slug::NoSuchMessage, "No such message", detail)
        })
    }
}

const PATHS: &str = "GET /sidecar, GET /bill, GET /messages, GET /messages/<Id>, POST /messages/replay and POST /messages/drop";

fn unreadable(reason: String) -> Problem {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    Problem::new(status, Slug::Ledger, "The ledger cannot be read", reason)
}

/// A task of its own, so that the change completes even if the client disconnects: a dead letter that
/// is noted as replayed must get into its lane, too.
async fn changed(
    audit: Audit,
    change: impl Future<Output = Affected> + Send + 'static,
) -> Result<Reply, Problem> {
    let recorded = async move {
        let affected = change.await;
        audit.record(&affected);
        Changed::from(&affected)
    };
    let changed = tokio::spawn(recorded).await.map_err(|error| {
        tracing::error!(%error, "a change of messages did not complete");
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let detail =
            "The change did not complete; list the messages to see how far it got.".to_owned();
        Problem::new(status, Slug::Unfinished, "Unfinished change", detail)
    })?;
    Ok(ok(&changed))
}

fn id(text: &str) -> Result<MessageId, Problem> {
    text.parse().map_err(|_| bad(format!("{text:?} is no message id")))
}

fn bad(detail: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, Slug::MalformedSelection, "Malformed selection", detail)
}

async fn read<T: for<'de> Deserialize<'de>>(request: Request<RequestBody>) -> Result<T, Problem> {
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let body = match timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return Err(bad(format!("The body cannot be read: {error}")).close()),
        Err(_) => return Err(bad("The body did not arrive in time.".to_owned()).close()),
    };
    serde_json::from_slice(&body)
        .map_err(|error| bad(format!("The body is not a valid selection: {error}")))
}

fn ok(body: &impl Serialize) -> Reply {
    json_reply(StatusCode::OK, body)
}

/// One message per line.
fn lines(listed: &[Listed]) -> Reply {
    let mut body = Vec::new();
    for listed in listed {
        body.extend(serde_json::to_vec(listed).unwrap_or_default());
        body.push(b'\n');
    }
    reply(StatusCode::OK, "application/x-ndjson", body)
}
