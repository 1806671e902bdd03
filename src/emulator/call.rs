//! One call as it arrived: what was in the URL, in the form, in the headers.

use std::borrow::Cow;

use http::request::Parts;
use http::{HeaderMap, Method, header};

use super::faults::SEND_MESSAGE;
use super::refusal::Refusal;

/// Decoded names and values, in the order they came.
pub(super) type Pairs<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

/// A call, decoded but not believed.
pub(super) struct ReceivedCall<'a> {
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
    pub(super) query: Pairs<'a>,
    /// Empty unless the body says that it is a form.
    pub(super) form: Pairs<'a>,
    pub(super) body: &'a [u8],
}

/// Which of the two signatures a call claims to carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// RPC 1.0, HMAC-SHA1: everything is a parameter.
    V1,
    /// ACS3-HMAC-SHA256: everything but the business parameters is a header.
    V3,
}

/// The operations that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    SendMessage,
    AssumeRole,
    AssumeRoleWithOidc,
}

impl Operation {
    const ALL: [Self; 3] = [Self::SendMessage, Self::AssumeRole, Self::AssumeRoleWithOidc];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::SendMessage => SEND_MESSAGE,
            Self::AssumeRole => "AssumeRole",
            Self::AssumeRoleWithOidc => "AssumeRoleWithOIDC",
        }
    }

    const fn api_version(self) -> &'static str {
        match self {
            Self::SendMessage => "2020-04-20",
            Self::AssumeRole | Self::AssumeRoleWithOidc => "2015-04-01",
        }
    }
}

/// Whether the head of a call names an operation of the Security Token Service. The provider has that
/// elsewhere, and its calls count towards no ceiling of `SendMessage`.
pub(super) fn is_for_sts(parts: &Parts) -> bool {
    let sts = |action: &str| action.starts_with("AssumeRole");
    let query = pairs(parts.uri.query().unwrap_or_default());
    text(&parts.headers, "x-acs-action").is_some_and(sts)
        || query.iter().any(|(name, value)| name == "Action" && sts(value))
}

impl<'a> ReceivedCall<'a> {
    pub(super) fn new(parts: &'a Parts, body: &'a [u8]) -> Self {
        let form = match (text(&parts.headers, header::CONTENT_TYPE.as_str()), str::from_utf8(body))
        {
            (Some(kind), Ok(body)) if is_form(kind) => pairs(body),
            _ => Vec::new(),
        };
        Self {
            method: &parts.method,
            headers: &parts.headers,
            query: pairs(parts.uri.query().unwrap_or_default()),
            form,
            body,
        }
    }

    /// A header's text; one that is not ASCII counts as absent.
    pub(super) fn header(&self, name: &str) -> Option<&'a str> {
        text(self.headers, name)
    }

    /// A parameter's first value, wherever it came. An empty one counts as absent.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.possibly_empty(name).filter(|value| !value.is_empty())
    }

    /// The same of a parameter that may be empty.
    pub(super) fn possibly_empty(&self, name: &str) -> Option<&str> {
        let mut all = self.query.iter().chain(&self.form);
        all.find(|(key, _)| key == name).map(|(_, value)| value.as_ref())
    }

    /// The Python SDK sends `x-acs-*` headers with a V1 signature too, so only `Authorization`
    /// tells.
    pub(super) fn version(&self) -> Version {
        if self.headers.contains_key(header::AUTHORIZATION) { Version::V3 } else { Version::V1 }
    }

    /// Which operation this is, before its signature is checked.
    pub(super) fn operation(&self) -> Result<Operation, Refusal> {
        if !matches!(*self.method, Method::GET | Method::POST) {
            return Err(Refusal::new("UnsupportedHTTPMethod"));
        }
        let (action, version) = match self.version() {
            Version::V1 => (self.parameter("Action"), self.parameter("Version")),
            Version::V3 => (self.header("x-acs-action"), self.header("x-acs-version")),
        };
        let action = action.ok_or_else(|| Refusal::missing("Action"))?;
        let version = version.ok_or_else(|| Refusal::missing("Version"))?;
        let operation = Operation::ALL
            .into_iter()
            .find(|one| one.as_str() == action && one.api_version() == version);
        let operation = operation.ok_or_else(|| Refusal::new("InvalidApi.NotFound"))?;
        // JSON is all that is spoken here. Whether the provider takes an absent Format for JSON
        // or XML is told both ways.
        match self.parameter("Format") {
            Some(format) if !format.eq_ignore_ascii_case("JSON") => {
                Err(Refusal::new("InvalidParameter.Format"))
            }
            _ => Ok(operation),
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn is_form(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

fn pairs(encoded: &str) -> Pairs<'_> {
    let nonempty = encoded.split('&').filter(|pair| !pair.is_empty());
    nonempty
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

/// Takes what senders really send: `+` for a space (the Python SDK), a raw `*` (the Node SDK).
/// Bytes that are no UTF-8 become replacement characters, and the signature will not match.
fn decode(encoded: &str) -> Cow<'_, str> {
    if !encoded.bytes().any(|byte| matches!(byte, b'+' | b'%')) {
        return Cow::Borrowed(encoded);
    }
    let spaced = encoded.replace('+', " ");
    Cow::Owned(percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_sdks_send() {
        let decoded = pairs("a=TopicA%2Fsub+1%2F%C3%A9%2A~&b=*&c&&d=%2B%zz=");
        let expected = [("a", "TopicA/sub 1/é*~"), ("b", "*"), ("c", ""), ("d", "+%zz=")];
        assert_eq!(decoded.len(), expected.len());
        for ((name, value), (n, v)) in decoded.iter().zip(expected) {
            assert_eq!((name.as_ref(), value.as_ref()), (n, v));
        }
    }

    #[test]
    fn a_form_says_so() {
        assert!(is_form("application/x-www-form-urlencoded; charset=utf-8"));
        assert!(!is_form("application/json"));
    }
}
