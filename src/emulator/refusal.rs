//! A call refused with one of the provider's codes.

use std::borrow::Cow;

use super::codes;

/// What the caller will be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: Cow<'static, str>,
    pub(super) status: u16,
    pub(super) message: Cow<'static, str>,
    /// Milliseconds, for `x-acs-retry-after`.
    pub(super) retry_after: Option<u64>,
}

impl Refusal {
    /// With the status and message that the provider documents for the code.
    pub(super) fn new(code: impl Into<Cow<'static, str>>) -> Self {
        let code = code.into();
        let (status, message) = codes::status_and_message(&code);
        Self { code, status, message: Cow::Borrowed(message), retry_after: None }
    }

    /// A mandatory parameter did not come.
    pub(super) fn missing(parameter: &str) -> Self {
        Self::new("MissingParameter").saying(format!("{parameter} is mandatory for this action."))
    }

    pub(super) fn saying(self, message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), ..self }
    }
}
