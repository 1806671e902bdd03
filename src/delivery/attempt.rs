//! One call for a message, be it fresh, kept or a probe: its permit, its entry in the meter, the call
//! itself, and what its answer asks for next.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::outcome::Disposition;
use super::spans;
use crate::answer::{AccessDenied, Answer, Verdict};
use crate::ceiling::{Ceiling, Permit, Ticket};
use crate::config::Retry;
use crate::message::{Message, SpanContext, Topic};
use crate::meter::{Billed, CallKind, ExpiredAs, LogLine, Meter, MeteredCall, OverBudget};
use crate::spool::Doubt;
use crate::traces::{Span, Traces};
use crate::upstream::{SendGate, Upstream};

/// What makes calls.
#[derive(Debug)]
pub(super) struct Dispatcher<U> {
    pub(super) upstream: U,
    pub(super) ceiling: Ceiling,
    pub(super) meter: Meter,
    pub(super) traces: Traces,
    /// The tasks that carry messages.
    pub(super) tasks: TaskTracker,
    /// Cancelled: no more calls are made.
    pub(super) stop: CancellationToken,
}

/// A call that has its permit and its entry in the meter.
#[must_use = "an attempt that is dropped counts as an uncertain call"]
pub(super) struct CallAttempt<'a, U> {
    upstream: &'a U,
    message: &'a Message,
    permit: Permit,
    entry: MeteredCall,
    span: Span,
}

impl<U: Upstream> Dispatcher<U> {
    /// A permit for a call within `span`, unless no more calls are made.
    pub(super) async fn permit(
        &self,
        ticket: Ticket,
        span: Option<SpanContext>,
    ) -> Result<Permit, Disposition> {
        let start = span.map(|_| Instant::now());
        let permit = self.stop.run_until_cancelled(ticket.permit()).await;
        let permit =
            permit.ok_or(Disposition::Stopping).and_then(|got| got.map_err(Disposition::NoPermit));
        match (&permit, start) {
            (Ok(permit), _) => {
                if let Some((ceiling, wait)) = permit.waited() {
                    self.meter.waited(ceiling as usize, wait);
                    spans::waited(&self.traces, span, wait, Ok(ceiling));
                }
            }
            (Err(Disposition::Stopping), Some(start)) => {
                spans::waited(&self.traces, span, start.elapsed(), Err("stopping"));
            }
            (Err(_), Some(start)) => {
                spans::waited(&self.traces, span, start.elapsed(), Err("no_permit"));
            }
            (Err(_), None) => {}
        }
        permit
    }

    /// The time to live of a message has ended that is not kept. `doubt`: of its calls.
    pub(super) fn expired(&self, doubt: Doubt) -> Disposition {
        self.count_expired(doubt);
        Disposition::Expired { id: None, doubt: doubt.into() }
    }

    pub(super) fn count_expired(&self, doubt: Doubt) {
        let known = match doubt {
            Doubt::None => ExpiredAs::NotSent,
            Doubt::Possible => ExpiredAs::Unknown,
        };
        self.meter.expired(known);
    }

    /// Enters a call in the meter, before it leaves. Over a budget, the permit is given back. `span`: what the
    /// call is a part of.
    pub(super) async fn attempt<'a>(
        &'a self,
        message: &'a Message,
        permit: Permit,
        kind: CallKind,
        span: Option<SpanContext>,
    ) -> Result<CallAttempt<'a, U>, OverBudget> {
        match self.meter.begin(message, kind).await {
            Ok(entry) => {
                let span = spans::call(&self.traces, span, message, kind);
                Ok(CallAttempt { upstream: &self.upstream, message, permit, entry, span })
            }
            Err(over) => {
                permit.unsent();
                Err(over)
            }
        }
    }
}

impl<U: Upstream> CallAttempt<'_, U> {
    /// Makes the call, as long as `gate` lets it leave.
    pub(super) async fn send(self, gate: &SendGate) -> Answer {
        let Self { upstream, message, permit, entry, span } = self;
        let start = Instant::now();
        let answer = upstream.send(message, permit, gate).await;
        let took = start.elapsed();
        spans::called(span, &answer);
        let trace_id = message.trace.map(tracing::field::display);
        tracing::debug!(id = %message.id, trace_id, topic = %message.topic, code = %answer.label(), ?took, "called");
        let billed = match answer.verdict() {
            Verdict::Delivered => Billed::Yes,
            Verdict::Unknown => Billed::Uncertain,
            _ => Billed::No,
        };
        let request_id = answer.http().and_then(|http| http.request_id.as_deref());
        // Of a delivered message, its caller has it.
        let entry = entry.answered(request_id.filter(|_| billed != Billed::Yes));
        if entry.ended(&answer.label(), billed, took) == LogLine::Due {
            tracing::warn!(id = %message.id, trace_id, topic = %message.topic, code = %answer.label(), upstream_request_id = request_id, "call failed");
        }
        answer
    }
}

/// Whether a message may be sent again after a call of unknown outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// At most once: no call follows one of unknown outcome.
    Never,
    /// At least once: as long as no more of its calls than this have an unknown outcome.
    UpTo(u32),
}

impl Repeat {
    /// For a kept message of this topic.
    pub(super) fn of(retry: &Retry, topic: &Topic) -> Self {
        if retry.may_repeat(topic) { Self::UpTo(retry.unknown_tries) } else { Self::Never }
    }

    /// Whether another call follows one of unknown outcome, after so many earlier ones.
    pub(super) fn follows(self, unknown: u32) -> bool {
        matches!(self, Self::UpTo(most) if unknown < most)
    }
}

/// What an answer asks for next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextStep {
    /// Nothing: the provider has the message.
    Delivered,
    /// Nothing: the provider will never take the message.
    Refused,
    /// Nothing: the call may have arrived, and the message is not to be sent again.
    Uncertain,
    /// Another call, once the provider lets us in.
    Access(AccessDenied),
    /// Another call, after the time that the provider asks for.
    Retry(Option<Duration>),
}

impl NextStep {
    /// `unknown`: how many earlier calls for the message had an unknown outcome.
    pub(super) fn of(answer: &Answer, repeat: Repeat, unknown: u32) -> Self {
        match answer.verdict() {
            Verdict::Delivered => Self::Delivered,
            Verdict::Refused => Self::Refused,
            Verdict::Unknown if repeat.follows(unknown) => Self::Retry(answer.pause()),
            Verdict::Unknown => Self::Uncertain,
            Verdict::Denied(why) => Self::Access(why),
            Verdict::Throttled { retry_after } => Self::Retry(retry_after),
            Verdict::Failed => Self::Retry(None),
        }
    }
}
