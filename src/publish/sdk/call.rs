//! From an SDK's request to a message, or to a call of another operation.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{RefusedCall, action, no_memory};
use crate::action::ActionCall;
use crate::callers::{Caller, Callers};
use crate::config::{Sdk, SdkAccept};
use crate::memory::{MemoryReservation, NoMemory};
use crate::message::{InstanceId, Message, MessageId, Payload, Topic, Trace};
use crate::meter::Published;
use crate::passthrough::{PassOptions, Passthrough};
use crate::publish::body::BodyLimits;
use crate::publish::log::LogContext;
use crate::publish::refusal::RefusedRequest;
use crate::publish::request::RequestReader;
use crate::publish::terms::AskedTerms;
use crate::server::{MAX_QUERY, Problem, RequestBody, TakenQuery};
use crate::upstream::API_VERSION;
use crate::verification::{self, ReceivedCall, Refusal};

/// The action that is taken as a publish.
const SEND_MESSAGE: &str = "SendMessage";
/// The most bytes of a form: 64 KiB of which each character is percent-encoded, and the other parameters.
const MAX_FORM: usize = 200 << 10;
/// How access keys of the provider's own begin: lasting and temporary ones.
const PROVIDERS_KEYS: [&str; 2] = ["LTAI", "STS."];

/// Reads calls by the configuration's rules.
pub(super) struct CallReader<'a> {
    pub(super) reader: &'a RequestReader,
    pub(super) sdk: &'a Sdk,
    pub(super) callers: &'a Callers,
    pub(super) passthrough: &'a Passthrough,
    /// The call's.
    pub(super) trace: Option<Trace>,
}

/// What a call asks for.
pub(super) enum ReadCall {
    Message(Message),
    /// Another operation, with the memory that it holds.
    Action(ActionCall, PassOptions, MemoryReservation),
}

impl CallReader<'_> {
    /// Validates a call completely before anything is done for it.
    pub(super) async fn read(
        &self,
        parts: &Parts,
        body: RequestBody,
        start: Instant,
        context: &mut LogContext,
    ) -> Result<ReadCall, RefusedCall> {
        let now = Timestamp::now();
        let asked =
            AskedTerms::read(&parts.headers, start).map_err(|problem| refused_header(&problem))?;
        let query = match parts.extensions.get::<TakenQuery>() {
            Some(TakenQuery::Whole(query)) => query.clone(),
            Some(TakenQuery::TooLong) => return Err(query_too_long()),
            Some(TakenQuery::NoMemory) => return Err(no_memory(NoMemory)),
            // In the absolute form of a target.
            None => Bytes::copy_from_slice(parts.uri.query().unwrap_or_default().as_bytes()),
        };
        let query = std::str::from_utf8(&query)
            .map_err(|_| Refusal::new("ParameterCheckFailed").saying("The query is not UTF-8."))?;
        self.check_head(parts, query)?;
        let mut reservation = self.reader.memory().begin().map_err(no_memory)?;
        let limits = BodyLimits {
            most: MAX_FORM,
            by: "the limit of a form",
            time: self.reader.body_timeout(),
        };
        let body = limits.read(&parts.headers, body, |bytes| reservation.add_bytes(bytes)).await;
        let body = body.map_err(refused_body)?;
        let call = ReceivedCall::new(parts, query, &body);
        let (action, version) = call.operation()?;
        if version != API_VERSION {
            return Err(Refusal::new("InvalidApi.NotFound").into());
        }
        call.check_format()?;
        let caller = self.caller(&call, now)?;
        context.proven(caller.as_deref());
        if action != SEND_MESSAGE {
            let (call, instance) = self.action(&call, action, caller.as_deref())?;
            // The query's ends with the request. A parameter takes more than its bytes.
            let bytes = |(name, value): &(Box<str>, Box<str>)| name.len() + value.len() + 64;
            reservation.add_body(call.parameters.iter().map(bytes).sum()).map_err(no_memory)?;
            let caller = caller.map(|caller| Arc::clone(caller.name()));
            let options = PassOptions { instance, caller, deadline: start + self.sdk.wait };
            return Ok(ReadCall::Action(call, options, reservation));
        }
        let message = self.message(&call, asked)?;
        if caller.as_ref().is_some_and(|caller| !caller.may_publish(&message.topic)) {
            let refusal = Refusal::new("PermissionCheckFailed");
            let text = format!("This caller may not publish to {}.", message.topic);
            return Err(refusal.saying(text).into());
        }
        count(caller.as_deref())?;
        // The form and the query end here, and the message has a reservation of its own.
        let mut held = self.reader.memory().begin().map_err(no_memory)?;
        held.add_body(message.payload.as_bytes().len()).map_err(no_memory)?;
        let payload = encoded(held.hold(message.payload.into_bytes()))?;
        let caller = caller.map(|caller| Arc::clone(caller.name()));
        Ok(ReadCall::Message(Message { payload, caller, trace: self.trace, ..message }))
    }

    /// A call of another operation.
    fn action(
        &self,
        call: &ReceivedCall<'_>,
        action: &str,
        caller: Option<&Caller>,
    ) -> Result<(ActionCall, InstanceId), RefusedCall> {
        if !self.passthrough.passes(action) {
            let text = format!("{action} is not passed on by tollgate (sdk.actions).");
            return Err(Refusal::new("ApiNotSupport").saying(text).into());
        }
        // With a token of the provider's, say, a device publishes to any topic.
        if caller.is_some_and(|caller| !caller.may_publish_all()) {
            let text =
                "A caller with topics of its own (callers.topics) may call no other operation.";
            return Err(Refusal::new("PermissionCheckFailed").saying(text).into());
        }
        let read = action::read(self.reader, call, action)?;
        count(caller)?;
        Ok(read)
    }

    /// Refuses what the head says already, before a body is read: the key of a stranger, where the head has it.
    fn check_head(&self, parts: &Parts, query: &str) -> Result<(), Refusal> {
        let head = ReceivedCall::new(parts, query, &[]);
        if self.sdk.accept == SdkAccept::Issued
            && let Ok(id) = verification::key_id(&head)
        {
            self.callers.find(id, None)?;
        }
        Ok(())
    }

    /// Who has signed a call; `None`: all callers are one.
    fn caller(
        &self,
        call: &ReceivedCall<'_>,
        now: Timestamp,
    ) -> Result<Option<Arc<Caller>>, Refusal> {
        match self.sdk.accept {
            SdkAccept::Issued => {
                let find = |id: &str, token: Option<&str>| self.callers.find(id, token);
                let signed = verification::check(call, find, now)?;
                Callers::accept(&signed, now).map(Some)
            }
            SdkAccept::Any => {
                let id = verification::key_id(call)?;
                if PROVIDERS_KEYS.iter().any(|start| id.starts_with(start)) {
                    return Err(Refusal::new("InvalidAccessKeyId.Inactive").saying(
                        "This is an access key of the provider's, which has no business here: tollgate \
                         signs with its own. Give the SDK any other id and secret.",
                    ));
                }
                self.callers.called(id)
            }
        }
    }

    fn message(&self, call: &ReceivedCall<'_>, asked: AskedTerms) -> Result<Message, Refusal> {
        let mandatory = |name| call.parameter(name).ok_or_else(|| Refusal::missing(name));
        let instance = mandatory("InstanceId")?;
        let topic = mandatory("MqttTopic")?;
        let payload = call.possibly_empty("Payload").ok_or_else(|| Refusal::missing("Payload"))?;
        let topic = Topic::parse(topic).map_err(|error| {
            Refusal::new("ParameterCheckFailed").saying(format!("MqttTopic: {error}."))
        })?;
        let instance = self.reader.configured_instance(instance).ok_or_else(|| {
            Refusal::new("InstancePermissionCheckFailed").saying(
                "This instance is none that tollgate is configured for (upstream.instance_id).",
            )
        })?;
        if !self.reader.allows(&topic) {
            return Err(Refusal::new("PermissionCheckFailed")
                .saying(format!("topics.allow has no pattern for {topic}.")));
        }
        let most = self.reader.max_encoded();
        if payload.len() > most {
            let text =
                format!("Payload: at most {most} characters (publish.max_payload, as Base64).");
            return Err(Refusal::new("ParameterCheckFailed").saying(text));
        }
        let payload = encoded(Bytes::copy_from_slice(payload.as_bytes()))?;
        let terms = self.reader.terms(asked, &topic);
        let (id, caller, trace) = (MessageId::new(), None, None);
        Ok(Message { id, instance, topic, payload, caller, trace, terms })
    }
}

/// Counts a call of its caller.
fn count(caller: Option<&Caller>) -> Result<(), RefusedCall> {
    let Some(caller) = caller else { return Ok(()) };
    caller.count().map_err(|later| {
        let refusal = Refusal::new("Throttling.User")
            .saying("This caller has made as many calls as it may (callers.calls_per_second).")
            .after(later);
        RefusedCall { refusal, published: Published::OverCeiling }
    })
}

fn encoded(text: Bytes) -> Result<Payload, Refusal> {
    Payload::encoded(text)
        .map_err(|error| Refusal::new("ParameterCheckFailed").saying(format!("Payload: {error}.")))
}

fn query_too_long() -> RefusedCall {
    let message =
        format!("The query has more than {MAX_QUERY} bytes. Send the parameters as a form.");
    Refusal::new("ParameterCheckFailed").saying(message).into()
}

fn refused_header(problem: &Problem) -> Refusal {
    Refusal::new("ParameterCheckFailed").saying(problem.detail().to_owned())
}

/// What the door says of a body, in the provider's words.
fn refused_body(refused: RefusedRequest) -> RefusedCall {
    let RefusedRequest { published, problem } = refused;
    let later = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::REQUEST_TIMEOUT];
    let code = if later.iter().any(|status| status.as_u16() == problem.status()) {
        "ServiceUnavailable"
    } else {
        "ParameterCheckFailed"
    };
    RefusedCall { refusal: Refusal::new(code).saying(problem.detail().to_owned()), published }
}
