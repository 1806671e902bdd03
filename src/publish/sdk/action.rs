//! Calls of other operations than `SendMessage`, which are passed on.

use std::borrow::Cow;
use std::collections::BTreeMap;

use http::header::CONTENT_TYPE;

use super::no_memory;
use super::outcome::SdkAnswer;
use crate::action::ActionCall;
use crate::answer::{AccessDenied, Answer, AnswerBody, Verdict};
use crate::memory::NoMemory;
use crate::message::{InstanceId, MessageId};
use crate::passthrough::NotPassed;
use crate::publish::request::RequestReader;
use crate::upstream::RawAnswer;
use crate::verification::{ReceivedCall, Refusal};

/// Parameters of a call that say who calls, when and how, and not what: a signature of ours brings its own.
const COMMON: [&str; 11] = [
    "AccessKeyId",
    "Action",
    "Format",
    "SecurityToken",
    "Signature",
    "SignatureMethod",
    "SignatureNonce",
    "SignatureType",
    "SignatureVersion",
    "Timestamp",
    "Version",
];
/// How operations name the instance that they are for.
const INSTANCE: [&str; 2] = ["InstanceId", "MqttInstanceId"];
/// How the names of parameters begin that say in whose account, or on what else, an operation works. What is for
/// tollgate's key to reach is what the configuration names.
const OF_OTHERS: [&str; 3] = ["resourceowner", "owner", "resourceid"];
/// No operation has as many.
const MOST_PARAMETERS: usize = 200;

/// A call as it will be signed, and the configured instance that it is for.
pub(super) fn read(
    reader: &RequestReader,
    call: &ReceivedCall<'_>,
    action: &str,
) -> Result<(ActionCall, InstanceId), Refusal> {
    let wrong = |text: String| Refusal::new("ParameterCheckFailed").saying(text);
    if !call.body.is_empty() && call.form.is_empty() {
        let kind = call.header(CONTENT_TYPE.as_str()).unwrap_or("none");
        return Err(wrong(format!("The body is no form (its content type: {kind}).")));
    }
    // By their names in small letters: which of two spellings the provider would take is not known, and one is
    // checked here.
    let mut parameters = BTreeMap::new();
    for (name, value) in call.query.iter().chain(&call.form) {
        let small = name.to_ascii_lowercase();
        if COMMON.contains(&&**name) {
            continue;
        }
        let is_common = COMMON.iter().any(|common| common.eq_ignore_ascii_case(&small));
        if is_common || OF_OTHERS.iter().any(|start| small.starts_with(start)) {
            return Err(wrong(format!("The parameter {name} is not passed on.")));
        }
        if parameters.len() == MOST_PARAMETERS {
            return Err(wrong(format!("There are more than {MOST_PARAMETERS} parameters.")));
        }
        if parameters.insert(small, (name, value)).is_some() {
            return Err(wrong(format!("The parameter {name} is given twice.")));
        }
    }
    let mut instances = INSTANCE.iter().filter_map(|name| {
        parameters.get(&name.to_ascii_lowercase()).filter(|(given, _)| given == name)
    });
    let (_, instance) = instances.next().ok_or_else(|| Refusal::missing(INSTANCE[0]))?;
    if instances.next().is_some() {
        return Err(wrong("InstanceId and MqttInstanceId are given.".to_owned()));
    }
    let instance = reader.configured_instance(instance).ok_or_else(|| {
        Refusal::new("InstancePermissionCheckFailed")
            .saying("This instance is none that tollgate is configured for (upstream.instance_id).")
    })?;
    let own =
        |(name, value): (&Cow<'_, str>, &Cow<'_, str>)| (Box::from(&**name), Box::from(&**value));
    let mut parameters: Vec<_> = parameters.into_values().map(own).collect();
    parameters.sort_unstable();
    Ok((ActionCall { id: MessageId::new(), action: action.into(), parameters }, instance))
}

/// What an SDK gets: what the provider has answered, but where that is about our key, leaves open what became of the
/// call, or is nothing that an SDK reads.
pub(super) fn answer(raw: RawAnswer) -> SdkAnswer {
    let RawAnswer { answer, body } = raw;
    if let Answer::Http(http) = &answer {
        let is_final = match answer.verdict() {
            _ if http.is_2xx() => http.body == AnswerBody::Object,
            Verdict::Denied(AccessDenied::Key | AccessDenied::Clock) | Verdict::Unknown => false,
            _ => http.code.is_some(),
        };
        if is_final {
            return SdkAnswer::passed(http, body);
        }
    }
    SdkAnswer::of_action(&answer)
}

/// What an SDK gets for a call that was not made.
pub(super) fn not_passed(why: NotPassed, action: &str) -> SdkAnswer {
    match why {
        NotPassed::OwnCeiling(refused) => SdkAnswer::without_permit(&refused, action),
        NotPassed::Ceiling(refused) => SdkAnswer::without_permit(&refused, "all calls"),
        NotPassed::NoMemory => no_memory(NoMemory).into(),
        NotPassed::Stopping => super::stopping().into(),
    }
}
