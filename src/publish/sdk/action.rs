//! Calls of other operations than `SendMessage`, which are passed on.

use std::collections::BTreeMap;

use http::header::CONTENT_TYPE;

use super::outcome::SdkAnswer;
use crate::action::ActionCall;
use crate::answer::{Answer, Verdict};
use crate::message::{InstanceId, MessageId};
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
const INSTANCE: &str = "InstanceId";

/// A call as it will be signed, and the configured instance that it is for.
pub(super) fn read(
    reader: &RequestReader,
    call: &ReceivedCall<'_>,
    action: &str,
) -> Result<(ActionCall, InstanceId), Refusal> {
    if !call.body.is_empty() && call.form.is_empty() {
        let kind = call.header(CONTENT_TYPE.as_str()).unwrap_or("none");
        let text = format!("The body is no form (its content type: {kind}).");
        return Err(Refusal::new("ParameterCheckFailed").saying(text));
    }
    let mut parameters = BTreeMap::new();
    for (name, value) in call.query.iter().chain(&call.form) {
        if COMMON.contains(&&**name) {
            continue;
        }
        // Which of two the provider would take is not known, and one was checked here.
        if parameters.insert(name.to_string(), value.to_string()).is_some() {
            let text = "A parameter is given twice.";
            return Err(Refusal::new("ParameterCheckFailed").saying(text));
        }
    }
    let instances = parameters.keys().filter(|name| name.eq_ignore_ascii_case(INSTANCE)).count();
    let instance = parameters.get(INSTANCE).filter(|_| instances == 1);
    let instance = instance.ok_or_else(|| Refusal::missing(INSTANCE))?;
    let instance = reader.configured_instance(instance).ok_or_else(|| {
        Refusal::new("InstancePermissionCheckFailed")
            .saying("This instance is none that tollgate is configured for (upstream.instance_id).")
    })?;
    let parameters = parameters.into_iter().collect();
    Ok((ActionCall { id: MessageId::new(), action: action.into(), parameters }, instance))
}

/// What an SDK gets: what the provider has answered, but where that is about our key, or is nothing that an SDK reads.
pub(super) fn answer(raw: RawAnswer) -> SdkAnswer {
    let RawAnswer { answer, body } = raw;
    if let Answer::Http(http) = &answer {
        let is_denied = matches!(answer.verdict(), Verdict::Denied(_)) && !http.is_2xx();
        let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
        if is_json && !is_denied && (http.is_2xx() || http.code.is_some()) {
            return SdkAnswer::passed(http, body);
        }
    }
    SdkAnswer::of_action(&answer)
}
