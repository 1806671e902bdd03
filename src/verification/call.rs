//! One call as it arrived: what was in the URL, in the form, in the headers.

use std::borrow::Cow;

use http::request::Parts;
use http::{HeaderMap, Method, header};

use super::refusal::Refusal;

/// Decoded names and values, in the order they came.
pub type Pairs<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

/// A call, decoded but not believed.
#[derive(Debug)]
pub struct ReceivedCall<'a> {
    /// How it came.
    pub method: &'a Method,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Of the target.
    pub query: Pairs<'a>,
    /// Empty unless the body says that it is a form.
    pub form: Pairs<'a>,
    /// As it came.
    pub body: &'a [u8],
}

/// Which of the two signatures a call claims to carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureKind {
    /// RPC 1.0, HMAC-SHA1: everything is a parameter.
    Rpc,
    /// ACS3-HMAC-SHA256: everything but the business parameters is a header.
    Acs3,
}

impl<'a> ReceivedCall<'a> {
    /// Decodes a request. `query`: what its target has after the question mark.
    pub fn new(parts: &'a Parts, query: &'a str, body: &'a [u8]) -> Self {
        let form = match (text(&parts.headers, header::CONTENT_TYPE.as_str()), str::from_utf8(body))
        {
            (Some(kind), Ok(body)) if is_form(kind) => pairs(body),
            _ => Vec::new(),
        };
        Self { method: &parts.method, headers: &parts.headers, query: pairs(query), form, body }
    }

    /// A header's text; one that is not ASCII counts as absent.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        text(self.headers, name)
    }

    /// A parameter's first value, wherever it came. An empty one counts as absent.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.possibly_empty(name).filter(|value| !value.is_empty())
    }

    /// The same of a parameter that may be empty.
    pub fn possibly_empty(&self, name: &str) -> Option<&str> {
        let mut all = self.query.iter().chain(&self.form);
        all.find(|(key, _)| key == name).map(|(_, value)| value.as_ref())
    }

    /// The Python SDK sends `x-acs-*` headers with an RPC signature too, so only `Authorization`
    /// decides.
    pub fn kind(&self) -> SignatureKind {
        if self.headers.contains_key(header::AUTHORIZATION) {
            SignatureKind::Acs3
        } else {
            SignatureKind::Rpc
        }
    }

    /// Action and version of the operation, before the signature is checked.
    pub fn operation(&self) -> Result<(&str, &str), Refusal> {
        if !matches!(*self.method, Method::GET | Method::POST) {
            return Err(Refusal::new("UnsupportedHTTPMethod"));
        }
        let (action, version) = match self.kind() {
            SignatureKind::Rpc => (self.parameter("Action"), self.parameter("Version")),
            SignatureKind::Acs3 => (self.header("x-acs-action"), self.header("x-acs-version")),
        };
        let action = action.ok_or_else(|| Refusal::missing("Action"))?;
        let version = version.ok_or_else(|| Refusal::missing("Version"))?;
        Ok((action, version))
    }

    /// Answers are JSON. Whether the provider takes an absent `Format` for JSON or XML is documented both
    /// ways.
    pub fn check_format(&self) -> Result<(), Refusal> {
        match self.parameter("Format") {
            Some(format) if !format.eq_ignore_ascii_case("JSON") => {
                Err(Refusal::new("InvalidParameter.Format"))
            }
            _ => Ok(()),
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

/// Decodes a query or a form.
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
