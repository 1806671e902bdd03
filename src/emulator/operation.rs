//! The operations that are served.

use http::request::Parts;

use super::faults::SEND_MESSAGE;
use super::other_operation::{self, OtherOperation};
use crate::verification::{ReceivedCall, Refusal};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    SendMessage,
    AssumeRole,
    AssumeRoleWithOidc,
    Other(&'static OtherOperation),
}

impl Operation {
    fn all() -> impl Iterator<Item = Self> {
        let own = [Self::SendMessage, Self::AssumeRole, Self::AssumeRoleWithOidc];
        own.into_iter().chain(other_operation::ALL.iter().map(Self::Other))
    }

    /// That of a call, before its signature is checked.
    pub(super) fn of(call: &ReceivedCall<'_>) -> Result<Self, Refusal> {
        let (action, version) = call.operation()?;
        let operation =
            Self::all().find(|one| one.as_str() == action && one.api_version() == version);
        let operation = operation.ok_or_else(|| Refusal::new("InvalidApi.NotFound"))?;
        call.check_format()?;
        Ok(operation)
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::SendMessage => SEND_MESSAGE,
            Self::AssumeRole => "AssumeRole",
            Self::AssumeRoleWithOidc => "AssumeRoleWithOIDC",
            Self::Other(other) => other.name,
        }
    }

    const fn api_version(self) -> &'static str {
        match self {
            Self::SendMessage | Self::Other(_) => "2020-04-20",
            Self::AssumeRole | Self::AssumeRoleWithOidc => "2015-04-01",
        }
    }
}

/// Whether the head of a call names an operation of the Security Token Service. The provider has that
/// elsewhere, and its calls count towards no ceiling of `SendMessage`.
pub(super) fn is_for_sts(parts: &Parts) -> bool {
    let sts = |action: &str| action.starts_with("AssumeRole");
    let call = received(parts, &[]);
    call.header("x-acs-action").is_some_and(sts) || call.parameter("Action").is_some_and(sts)
}

/// A call as it came.
pub(super) fn received<'a>(parts: &'a Parts, body: &'a [u8]) -> ReceivedCall<'a> {
    ReceivedCall::new(parts, parts.uri.query().unwrap_or_default(), body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::faults::{FAULT_ACTIONS, METADATA};

    #[test]
    fn a_fault_can_hit_each_operation() {
        let operations: Vec<_> =
            Operation::all().map(Operation::as_str).chain([METADATA]).collect();
        assert_eq!(operations, FAULT_ACTIONS);
    }
}
