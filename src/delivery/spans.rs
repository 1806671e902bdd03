//! What spans say of a message: the wait for its permit, its calls, and which span its stay in the spool is.
//!
//! A stay may outlast its request by days, and this process. So it is the root of a trace of its own, whose ids
//! follow from the message: whichever process ends the stay makes its span, and the calls of all of them are
//! within it. It is linked to the span of its request.

use std::time::Duration;

use crate::answer::{Answer, Verdict};
use crate::ceiling::CeilingKind;
use crate::message::{Message, SpanContext, SpanId, TraceId};
use crate::meter::CallKind;
use crate::spool::Brief;
use crate::traces::{Kind, Span, Traces};

/// Spreads bits: the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// A call within `of` has waited so long for its permit. `ended`: because of which ceiling, or why it got none.
pub(super) fn waited(
    traces: &Traces,
    of: Option<SpanContext>,
    time: Duration,
    ended: Result<CeilingKind, &'static str>,
) {
    let mut span = traces.child(of, Kind::Internal);
    span.name("wait for a permit");
    match ended {
        Ok(ceiling) => span.word("tollgate.ceiling", ceiling.as_str()),
        Err(why) => span.fails(why),
    }
    span.lasted(time);
    span.end();
}

/// A call for a message within `of`.
pub(super) fn call(
    traces: &Traces,
    of: Option<SpanContext>,
    message: &Message,
    kind: CallKind,
) -> Span {
    let mut span = traces.child(of, Kind::Client);
    if span.is_recording() {
        span.destination("send", &message.topic);
        span.word("messaging.operation.type", "send");
        span.text("messaging.message.id", &message.id.to_string());
        span.number("messaging.message.body.size", message.payload.as_bytes().len());
        span.word("rpc.method", "SendMessage");
        span.word("tollgate.call.kind", kind.as_str());
    }
    span
}

/// The call has ended.
pub(super) fn called(mut span: Span, answer: &Answer) {
    if !span.is_recording() {
        return;
    }
    if let Some(http) = answer.http() {
        span.number("http.response.status_code", http.status);
        if let Some(id) = &http.request_id {
            span.text("aliyun.request_id", id);
        }
        if let Some(id) = &http.msg_id {
            span.text("aliyun.msg_id", id);
        }
    }
    if answer.verdict() != Verdict::Delivered {
        span.fails(&answer.label());
    }
    span.end();
}

/// The stay of a message in the spool, as its calls refer to it; `None`: its request was not sampled.
pub(super) fn stay(brief: &Brief) -> Option<SpanContext> {
    brief.trace?.span?;
    let id = brief.id.as_u128();
    // A replay begins another stay of the same message, at another time.
    let since = brief.kept_at.as_microsecond().cast_unsigned();
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is the random one")]
    let bits = (id as u64 ^ since.wrapping_mul(SPREAD)).wrapping_mul(SPREAD);
    let span = SpanId::from_u64(bits).or(SpanId::from_u64(SPREAD))?;
    Some(SpanContext { trace: TraceId::from_u128(id)?, span })
}
