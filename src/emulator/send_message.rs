//! The one operation: from a call that arrived and passed the ceilings to what becomes of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::faults::{Fault, SEND_MESSAGE, Then};
use super::key_ring::KnownKey;
use super::options::Over;
use super::parameters::Request;
use super::report::Accepted;
use super::state::EmulatorInner;
use crate::verification::{self, ReceivedCall, Refusal};

/// What the caller will see.
#[derive(Debug)]
pub(super) enum CallOutcome {
    Accepted {
        msg_id: String,
    },
    EmptyMsgId,
    Refused(Refusal),
    Html503,
    Hang,
    Close,
    /// Taken, but no subscriber receives it.
    AcceptedThenClose,
}

impl CallOutcome {
    /// Under which name a call that was not taken is counted.
    fn not_taken(&self) -> Option<&str> {
        match self {
            Self::Accepted { .. } | Self::AcceptedThenClose => None,
            Self::EmptyMsgId => Some("empty-msgid"),
            Self::Refused(refusal) => Some(&refusal.code),
            Self::Html503 => Some("html-503"),
            Self::Hang => Some("hang"),
            Self::Close => Some("close"),
        }
    }
}

/// An outcome, and how much later than usual it shows.
pub(super) struct DelayedOutcome {
    pub(super) outcome: CallOutcome,
    pub(super) delay: Duration,
}

/// A call over the account's ceiling; `room_in` nanoseconds later there is room.
pub(super) fn over_account(shared: &EmulatorInner, room_in: u64) -> DelayedOutcome {
    let refusal = match shared.options.over {
        Over::SystemOverFlow => Refusal::new("SystemOverFlow"),
        Over::ThrottlingUser => Refusal {
            retry_after: Some(room_in.div_ceil(1_000_000).max(1)),
            ..Refusal::new("Throttling.User")
        },
    };
    refuse(shared, refusal)
}

/// Refuses a call without a look at it.
pub(super) fn refuse(shared: &EmulatorInner, refusal: Refusal) -> DelayedOutcome {
    settled(shared, Err(refusal))
}

/// Authentication, then parameters, then faults, then acceptance.
pub(super) fn settle(
    shared: &EmulatorInner,
    source: IpAddr,
    call: &ReceivedCall<'_>,
) -> DelayedOutcome {
    let verdict = authenticate(shared, call).and_then(|key| {
        let now = shared.now();
        let request = Request::read(call)?;
        if !key.may_send(request.instance, request.topic) {
            return Err(Refusal::new("Forbidden.RAM"));
        }
        if request.is_oversize() {
            return Ok(DelayedOutcome { outcome: CallOutcome::EmptyMsgId, delay: Duration::ZERO });
        }
        let fault = shared.books().faults.draw(SEND_MESSAGE, request.topic, now);
        Ok(match fault {
            None => {
                DelayedOutcome { outcome: accept(shared, source, &request), delay: Duration::ZERO }
            }
            Some(fault) => play(fault, || accept(shared, source, &request)),
        })
    });
    settled(shared, verdict)
}

/// The key that has signed a call, which no other call had before.
pub(super) fn authenticate(
    shared: &EmulatorInner,
    call: &ReceivedCall<'_>,
) -> Result<Arc<KnownKey>, Refusal> {
    let now = shared.wall();
    let find = |id: &str, token: Option<&str>| shared.keys.find(id, token, now);
    let signed = verification::check(call, find, now)?;
    let (mut books, id) = (shared.books(), &signed.key.pair.id);
    if !books.ledger.first_use(id, signed.nonce, shared.now()) {
        return Err(Refusal::new("SignatureNonceUsed"));
    }
    books.ledger.signed(id);
    drop(books);
    Ok(signed.key)
}

fn settled(shared: &EmulatorInner, verdict: Result<DelayedOutcome, Refusal>) -> DelayedOutcome {
    let refused =
        |refusal| DelayedOutcome { outcome: CallOutcome::Refused(refusal), delay: Duration::ZERO };
    let verdict = verdict.unwrap_or_else(refused);
    if let Some(name) = verdict.outcome.not_taken() {
        shared.books().ledger.refuse(name);
    }
    verdict
}

fn play(fault: Fault, accept: impl FnOnce() -> CallOutcome) -> DelayedOutcome {
    let outcome = match (fault.then, fault.code) {
        (Then::Answer, None) => accept(),
        (Then::Answer, Some(code)) => {
            let refusal = Refusal { retry_after: fault.retry_after_ms, ..Refusal::new(code) };
            let status = fault.status.unwrap_or(refusal.status);
            CallOutcome::Refused(Refusal { status, ..refusal })
        }
        (Then::Close, _) => CallOutcome::Close,
        (Then::Hang, _) => CallOutcome::Hang,
        (Then::EmptyMsgid, _) => CallOutcome::EmptyMsgId,
        (Then::Html503, _) => CallOutcome::Html503,
        (Then::DeliverThenClose, _) => {
            accept();
            CallOutcome::AcceptedThenClose
        }
    };
    DelayedOutcome { outcome, delay: fault.latency.unwrap_or_default() }
}

fn accept(shared: &EmulatorInner, source: IpAddr, request: &Request<'_>) -> CallOutcome {
    let Request { instance, topic, payload } = *request;
    let msg_id = upper_hex(Uuid::new_v4());
    let message = Arc::new(Accepted {
        time: shared.wall(),
        source,
        instance: instance.to_owned(),
        topic: topic.to_owned(),
        payload: payload.to_owned(),
        msg_id: msg_id.clone(),
    });
    let content = shared.hash(instance, topic, payload);
    {
        let mut books = shared.books();
        books.traffic.accepted(message.time.as_second());
        books.ledger.accept(Arc::clone(&message), content, shared.now());
    }
    if let Some(broker) = &shared.broker {
        broker.hand_over(&message);
    }
    CallOutcome::Accepted { msg_id }
}

fn upper_hex(id: Uuid) -> String {
    id.simple().encode_upper(&mut Uuid::encode_buffer()).to_owned()
}
