//! A call refused with one of the provider's codes.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;

use super::codes;

/// Why a call is refused, in the provider's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The provider's code.
    pub code: Cow<'static, str>,
    /// Of the answer.
    pub status: u16,
    /// For a person.
    pub message: Cow<'static, str>,
    /// Milliseconds, for `x-acs-retry-after`.
    pub retry_after: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct RefusalBody<'a> {
    request_id: &'a str,
    host_id: &'a str,
    code: &'a str,
    message: &'a str,
    recommend: String,
}

impl Refusal {
    /// With the status and message that the provider documents for the code.
    pub fn new(code: impl Into<Cow<'static, str>>) -> Self {
        let code = code.into();
        let (status, message) = codes::status_and_message(&code);
        Self { code, status, message: Cow::Borrowed(message), retry_after: None }
    }

    /// A mandatory parameter did not come.
    pub fn missing(parameter: &str) -> Self {
        Self::new("MissingParameter").saying(format!("{parameter} is mandatory for this action."))
    }

    /// To be tried again after this.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        let milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Self { retry_after: Some(milliseconds.max(1)), ..self }
    }

    /// The body of an answer to a call, as the provider has it.
    pub fn to_json(&self, request_id: &str, host: &str) -> Vec<u8> {
        let code = self.code.as_ref();
        let body = RefusalBody {
            request_id,
            host_id: host,
            code,
            message: &self.message,
            recommend: format!("https://api.aliyun.com/troubleshoot?q={code}&product=OnsMqtt"),
        };
        // Text: serialising it cannot fail.
        serde_json::to_vec(&body).unwrap_or_default()
    }

    /// With another message.
    #[must_use]
    pub fn saying(self, message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), ..self }
    }
}
