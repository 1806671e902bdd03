//! The server for the provider's SDKs: their `SendMessage`, taken as a publish, and other operations, passed on.
//!
//! `call` reads a request, `action` one of another operation, `outcome` words what became of it as the provider would.

mod action;
mod call;
mod outcome;

use std::time::Duration;

use http::Request;
use jiff::Timestamp;
use tokio::time::Instant;

use super::Inner;
use super::log::LogContext;
use super::request::trace_parent;
use super::spans;
use crate::config;
use crate::delivery::{Keeping, PublishOptions};
use crate::memory::NoMemory;
use crate::message::Message;
use crate::meter::Published;
use crate::server::{Reply, RequestBody};
use crate::verification::Refusal;
use call::{CallReader, ReadCall};
use outcome::SdkAnswer;

/// A call that is refused before anything is done for it, and how it is counted.
struct RefusedCall {
    refusal: Refusal,
    published: Published,
}

impl From<Refusal> for RefusedCall {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, published: Published::Invalid }
    }
}

impl Inner {
    /// Answers one call of an SDK.
    pub(super) async fn sdk_call(&self, request: Request<RequestBody>) -> Reply {
        let start = Instant::now();
        let (trace, mut span) = self.traces.request(trace_parent(request.headers()));
        spans::route(&mut span, "/");
        let mut context = LogContext::of(&request, "", trace);
        let (parts, body) = request.into_parts();
        let host = parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        let host = host.unwrap_or_default().to_owned();
        let reader = self.reader();
        let reader = CallReader {
            reader: &reader,
            sdk: &self.sdk,
            callers: &self.callers,
            passthrough: &self.passthrough,
            trace,
        };
        let read = if self.draining() {
            Err(stopping())
        } else {
            reader.read(&parts, body, start, &mut context).await
        };
        // Its query may be long.
        drop(parts);
        let mut parent = None;
        let answer = match read {
            Ok(_) if self.draining() => SdkAnswer::from(stopping()),
            Ok(ReadCall::Message(message)) => {
                spans::message(&mut span, &message);
                context.topic(message.topic.as_str());
                parent = Some(message.topic.clone());
                self.deliver(message).await
            }
            Ok(ReadCall::Action(call, options, memory)) => {
                // No message: it has counts of its own.
                let name = call.action.clone();
                let answer = match self.passthrough.pass(call, options, memory).await {
                    Ok(raw) => action::answer(raw),
                    Err(not_passed) => action::not_passed(not_passed, &name),
                };
                let answered = answer.answered(&host);
                span.name("call");
                span.text("rpc.method", &name);
                spans::answered(span, &answered, &context);
                return self.limited(answered.reply);
            }
            Err(refused) => SdkAnswer::from(refused),
        };
        let answered = answer.answered(&host);
        self.note(parent.as_ref(), &answered, start.elapsed(), &context, span);
        self.limited(answered.reply)
    }

    fn limited(&self, mut reply: Reply) -> Reply {
        self.limit_headers(&mut reply);
        reply
    }

    async fn deliver(&self, message: Message) -> SdkAnswer {
        let keep = match self.sdk.kept {
            config::SdkKept::Refuse => Keeping::Never,
            config::SdkKept::Accept => Keeping::IfNotDelivered,
        };
        let options = PublishOptions { patience: self.sdk.wait, keep, claim: None };
        SdkAnswer::of(self.delivery.publish(message, options).await, Timestamp::now())
    }
}

fn stopping() -> RefusedCall {
    let refusal = Refusal::new("ServiceUnavailable")
        .saying("This sidecar is stopping and takes no more calls. Send it again.");
    RefusedCall { refusal, published: Published::Draining }
}

fn no_memory(_: NoMemory) -> RefusedCall {
    let refusal = Refusal::new("ServiceUnavailable")
        .saying("Messages in progress take all of the memory that they may (runtime.memory).")
        .after(Duration::from_secs(1));
    RefusedCall { refusal, published: Published::Full }
}
