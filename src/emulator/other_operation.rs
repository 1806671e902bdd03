//! Operations of the provider beside `SendMessage`: they are authenticated, counted and answered, and do nothing.

use http::Response;
use serde_json::{Value, json};
use uuid::Uuid;

use super::faults::Then;
use super::issued_key::KeyAnswer;
use super::reply::{self, Body};
use super::send_message;
use super::state::EmulatorInner;
use crate::verification::{ReceivedCall, Refusal};

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OtherOperation {
    pub(super) name: &'static str,
    /// Calls of all sources in a sliding second.
    ceiling: usize,
}

/// With the ceilings that the provider publishes.
pub(super) static ALL: [OtherOperation; 8] = [
    OtherOperation { name: "ApplyToken", ceiling: 100 },
    OtherOperation { name: "QueryToken", ceiling: 100 },
    OtherOperation { name: "RevokeToken", ceiling: 5 },
    OtherOperation { name: "CreateGroupId", ceiling: 10 },
    OtherOperation { name: "DeleteGroupId", ceiling: 10 },
    OtherOperation { name: "ListGroupId", ceiling: 10 },
    OtherOperation { name: "BatchQuerySessionByClientIds", ceiling: 100 },
    OtherOperation { name: "QuerySessionByClientId", ceiling: 500 },
];

/// Authentication, then the operation's ceiling, then faults.
pub(super) fn answer(
    shared: &EmulatorInner,
    operation: &'static OtherOperation,
    call: &ReceivedCall<'_>,
) -> KeyAnswer {
    let mut fault = None;
    let answer = send_message::authenticate(shared, call).and_then(|_| {
        let instance =
            call.parameter("InstanceId").ok_or_else(|| Refusal::missing("InstanceId"))?;
        let mut books = shared.books();
        // Read inside the lock, so that arrivals are in order.
        let now = shared.now();
        let window = books.operations.entry(operation.name).or_default();
        if window.record(now) > operation.ceiling {
            let room_in = window.until_below(operation.ceiling).div_ceil(1_000_000).max(1);
            return Err(Refusal { retry_after: Some(room_in), ..Refusal::new("Throttling.User") });
        }
        fault = books.faults.draw(operation.name, "", now);
        Ok(done(operation, instance))
    });
    let hits = fault.as_ref().filter(|f| f.code.is_some() || !matches!(f.then, Then::Answer));
    if let Err(refusal) = &answer {
        shared.books().ledger.refuse(&refusal.code);
    } else if let Some(code) = hits.and_then(|fault| fault.code.as_deref()) {
        shared.books().ledger.refuse(code);
    }
    KeyAnswer { answer, fault }
}

/// What the provider answers, with figures of an instance that has nothing.
fn done(operation: &OtherOperation, instance: &str) -> Response<Body> {
    let mut answer = match operation.name {
        "ApplyToken" => json!({ "Token": format!("LzMT+{}", Uuid::new_v4().simple()) }),
        "QueryToken" => json!({ "TokenStatus": true }),
        "ListGroupId" => json!({ "Data": [{ "InstanceId": instance, "GroupId": "GID_emulated" }] }),
        "BatchQuerySessionByClientIds" => json!({ "OnlineStatusList": [] }),
        "QuerySessionByClientId" => json!({ "OnlineStatus": false }),
        _ => json!({}),
    };
    let request_id = reply::request_id();
    answer["RequestId"] = Value::from(&*request_id);
    reply::with_request_id(reply::json(http::StatusCode::OK, &answer), &request_id)
}
