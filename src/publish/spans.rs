//! What spans say of a request, and of each message of one with many.

use super::answered::Answered;
use super::log::LogContext;
use crate::message::Message;
use crate::traces::Span;

/// The request is for this message.
pub(super) fn message(span: &mut Span, message: &Message) {
    if span.is_recording() {
        span.destination("publish", &message.topic);
        span.text("messaging.message.id", &message.id.to_string());
        span.number("messaging.message.body.size", message.payload.as_bytes().len());
    }
}

/// It came over this route.
pub(super) fn route(span: &mut Span, route: &'static str) {
    span.name("publish");
    span.word("http.request.method", "POST");
    span.word("http.route", route);
}

/// It is answered.
pub(super) fn answered(mut span: Span, answered: &Answered, context: &LogContext) {
    if !span.is_recording() {
        return;
    }
    let status = answered.reply.status();
    span.word("messaging.operation.type", "send");
    span.number("http.response.status_code", status.as_u16());
    span.word("tollgate.outcome", answered.published.as_str());
    if let Some(id) = context.request_id() {
        span.text("tollgate.request_id", id);
    }
    if let Some(caller) = context.caller() {
        span.text("tollgate.caller", caller);
    }
    if let Some(failure) = &answered.failure {
        span.number("tollgate.attempts", failure.calls);
        // A refusal is the caller's failure, not the server's.
        if status.is_server_error() {
            span.fails(&failure.problem);
        } else {
            span.refuses(&failure.problem);
        }
    }
    span.end();
}
