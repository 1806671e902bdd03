//! A call refused with one of the provider's codes.

use std::borrow::Cow;

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

    /// With another message.
    #[must_use]
    pub fn saying(self, message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), ..self }
    }
}
