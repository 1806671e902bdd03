//! `CloudEvents` over HTTP in binary mode: attributes in `ce-…` headers, data in the body. An MQTT 3.1.1 message has no
//! headers, so the attributes go on in the event's JSON format (structured mode), or the request is refused: none is
//! dropped silently. An event in structured mode is a body as any other.
//!
//! Source: <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use percent_encoding::percent_decode;
use serde::de::IgnoredAny;

use super::refusal::invalid;
use crate::config::CloudEvents;
use crate::server::{Problem, Slug};

const PREFIX: &str = "ce-";
const VERSION: &str = "1.0";
/// The media types of structured and batched mode begin so.
const STRUCTURED: &str = "application/cloudevents";
/// Attributes that every event has, with a value.
const REQUIRED: [&str; 4] = ["id", "source", "specversion", "type"];
/// Members of the JSON format that are no attribute of a header.
const RESERVED: [&str; 3] = ["data", "datacontenttype", "datacontentencoding"];

/// An event whose data is not read yet.
pub(super) struct CloudEvent {
    attributes: BTreeMap<String, String>,
    content_type: Option<String>,
}

/// What its data is in the JSON format.
enum Data<'a> {
    None,
    Json(&'a str),
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl CloudEvent {
    /// The event that a request's head says, if it says one.
    ///
    /// # Errors
    /// Events are refused, or the attributes are not those of one.
    pub(super) fn of(headers: &HeaderMap, events: CloudEvents) -> Result<Option<Self>, Problem> {
        let is_attribute = |name: &http::HeaderName| name.as_str().starts_with(PREFIX);
        if !headers.keys().any(is_attribute) || is_structured(headers) {
            return Ok(None);
        }
        if events == CloudEvents::Refuse {
            return Err(refused());
        }
        let mut attributes = BTreeMap::new();
        for header in headers.keys().filter(|name| is_attribute(name)) {
            let name = &header.as_str()[PREFIX.len()..];
            let is_name = !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
            if !is_name || RESERVED.contains(&name) {
                return Err(malformed(&format!("{header} is the header of no attribute")));
            }
            let value = attribute(headers, header.as_str())?;
            attributes.insert(name.to_owned(), value);
        }
        for name in REQUIRED {
            if attributes.get(name).is_none_or(String::is_empty) {
                return Err(malformed(&format!("it has no {PREFIX}{name}")));
            }
        }
        if attributes.get("specversion").is_some_and(|version| version != VERSION) {
            return Err(malformed("its ce-specversion is not 1.0"));
        }
        let content_type = headers.contains_key(CONTENT_TYPE);
        let content_type = content_type.then(|| one(headers, CONTENT_TYPE.as_str())).transpose()?;
        let content_type = content_type.map(|value| String::from_utf8_lossy(value).into_owned());
        Ok(Some(Self { attributes, content_type }))
    }

    fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// What tells it from all other events: its source and its id. No key in a header has a line break.
    pub(super) fn key(&self) -> String {
        format!("{}\n{}", self.attribute("source"), self.attribute("id"))
    }

    /// What is the same whenever the event is sent: a time or a trace may differ.
    pub(super) fn identity(&self, data: &[u8]) -> Bytes {
        [self.attribute("type").as_bytes(), b"\n", data].concat().into()
    }

    /// At most so many bytes are the event with data of this length, and what is made on the way.
    pub(super) fn most_bytes(&self, data: usize) -> usize {
        let attributes = self.attributes.iter().map(|(name, value)| name.len() + value.len());
        let content_type = self.content_type.as_ref().map_or(0, String::len);
        // A character becomes six at most.
        6 * (data + attributes.sum::<usize>() + content_type) + 64
    }

    /// The event in its JSON format.
    ///
    /// # Errors
    /// Its data is not what its `Content-Type` says.
    pub(super) fn structured(&self, data: &Bytes) -> Result<Bytes, Problem> {
        let mut members: BTreeMap<&str, serde_json::Value> =
            self.attributes.iter().map(|(name, value)| (&**name, value.as_str().into())).collect();
        if let Some(content_type) = &self.content_type {
            members.insert("datacontenttype", content_type.as_str().into());
        }
        let mut json = None;
        match self.data(data)? {
            Data::None => {}
            Data::Json(text) => json = Some(text),
            Data::Text(text) => drop(members.insert("data", text.into())),
            Data::Bytes(bytes) => {
                drop(members.insert("data_base64", STANDARD.encode(bytes).into()));
            }
        }
        // Text: serialising it cannot fail.
        let mut event = serde_json::to_string(&members).unwrap_or_default();
        if let Some(json) = json {
            // As it was written: numbers keep all of their digits.
            event.pop();
            event.push_str(",\"data\":");
            event.push_str(json);
            event.push('}');
        }
        Ok(event.into())
    }

    /// Whether its text is in UTF-8, as far as its `Content-Type` says.
    fn is_utf8(&self) -> bool {
        let parameters = self.content_type.as_deref().unwrap_or_default().to_ascii_lowercase();
        let charset = parameters
            .split(';')
            .skip(1)
            .find_map(|part| part.trim().strip_prefix("charset=").map(str::to_owned));
        charset.is_none_or(|name| matches!(name.trim_matches('"'), "utf-8" | "us-ascii"))
    }

    fn data<'a>(&self, data: &'a [u8]) -> Result<Data<'a>, Problem> {
        if data.is_empty() {
            return Ok(Data::None);
        }
        let media = self.content_type.as_deref().unwrap_or_default();
        let media = media.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let is_json = media.ends_with("/json") || media.ends_with("+json");
        match std::str::from_utf8(data) {
            Ok(text) if is_json && serde_json::from_str::<IgnoredAny>(text).is_ok() => {
                Ok(Data::Json(text.trim()))
            }
            _ if is_json => Err(malformed("its data is not JSON, as its Content-Type says")),
            Ok(text) if media.starts_with("text/") && self.is_utf8() => Ok(Data::Text(text)),
            _ => Ok(Data::Bytes(data)),
        }
    }
}

/// Whether the body is an event, or a batch of them, with all of its attributes: headers may repeat some.
fn is_structured(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let start = content_type.trim_ascii().get(..STRUCTURED.len()).unwrap_or_default();
    start.eq_ignore_ascii_case(STRUCTURED.as_bytes())
}

/// Refuses a request with several messages that has attributes of one event.
pub(super) fn refuse_batch(headers: &HeaderMap) -> Result<(), Problem> {
    if headers.keys().any(|name| name.as_str().starts_with(PREFIX)) {
        return Err(malformed("a request with many messages is no event"));
    }
    Ok(())
}

/// The value of a header that is there once.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a [u8], Problem> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().map(HeaderValue::as_bytes).unwrap_or_default().trim_ascii();
    if values.next().is_some() {
        return Err(malformed(&format!("there are several {name} headers")));
    }
    Ok(value)
}

/// The value of an attribute: without quotes, and percent-decoded.
fn attribute(headers: &HeaderMap, name: &str) -> Result<String, Problem> {
    let value = one(headers, name)?;
    let bytes = match value {
        [b'"', quoted @ .., b'"'] => unescaped(quoted),
        plain => plain.to_vec(),
    };
    let decoded = percent_decode(&bytes).decode_utf8();
    let decoded = decoded.map_err(|_| malformed(&format!("{name} is not UTF-8")))?;
    if decoded.contains(char::is_control) {
        return Err(malformed(&format!("{name} has a control character")));
    }
    Ok(decoded.into_owned())
}

/// Without the backslashes of quoted pairs.
fn unescaped(quoted: &[u8]) -> Vec<u8> {
    let (mut plain, mut bytes) = (Vec::with_capacity(quoted.len()), quoted.iter());
    while let Some(byte) = bytes.next() {
        plain.push(if *byte == b'\\' { bytes.next().copied().unwrap_or(b'\\') } else { *byte });
    }
    plain
}

fn refused() -> Problem {
    let detail = "This request is a CloudEvent in binary mode, and MQTT messages have no headers: its attributes would \
                  be lost. Nothing was sent. Send it in structured mode (Content-Type: application/cloudevents+json), \
                  leave the ce- headers out, or set publish.cloud_events = \"structured\".";
    invalid(
        StatusCode::BAD_REQUEST,
        Slug::CloudEvent,
        "A CloudEvent in binary mode",
        detail.to_owned(),
    )
}

fn malformed(why: &str) -> Problem {
    let detail = format!("This CloudEvent cannot be read: {why}. Nothing was sent.");
    invalid(StatusCode::BAD_REQUEST, Slug::CloudEvent, "Malformed CloudEvent", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 4] = [
        ("ce-specversion", "1.0"),
        ("ce-id", "a-1"),
        ("ce-source", "/orders"),
        ("ce-type", "made"),
    ];

    fn event(more: &[(&str, &str)]) -> Result<Option<CloudEvent>, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in
            GOOD.iter().filter(|(name, _)| more.iter().all(|(other, _)| other != name))
        {
            headers.append(*name, value.parse().unwrap());
        }
        for (name, value) in more {
            headers.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        CloudEvent::of(&headers, CloudEvents::Structured)
            .map_err(|problem| problem.detail().to_owned())
    }

    fn structured(more: &[(&str, &str)], data: &'static [u8]) -> String {
        let event = event(more).unwrap().unwrap();
        String::from_utf8(event.structured(&Bytes::from_static(data)).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn the_json_format() {
        let head = r#""id":"a-1","source":"/orders","specversion":"1.0","type":"made""#;
        let json = ("content-type", "application/json; charset=utf-8");
        let kind = r#"{"datacontenttype":"application/json; charset=utf-8","#;
        assert_eq!(
            structured(&[json], b" {\"n\": 1.00000000000000000001} "),
            format!(r#"{kind}{head},"data":{{"n": 1.00000000000000000001}}}}"#)
        );
        assert_eq!(structured(&[], b""), format!("{{{head}}}"));
        assert_eq!(structured(&[], b"\xff"), format!(r#"{{"data_base64":"/w==",{head}}}"#));
        let text = [("content-type", "text/plain")];
        assert_eq!(
            structured(&text, b"a\"b"),
            format!(r#"{{"data":"a\"b","datacontenttype":"text/plain",{head}}}"#)
        );
        assert_eq!(
            structured(&text, b"\xff"),
            format!(r#"{{"data_base64":"/w==","datacontenttype":"text/plain",{head}}}"#)
        );
        let odd = [("ce-subject", "Euro%20%E2%82%AC"), ("ce-traceparent", "\"a\\\"b\"")];
        let whole: serde_json::Value = serde_json::from_str(&structured(&odd, b"x")).unwrap();
        assert_eq!((&whole["subject"], &whole["traceparent"]), (&"Euro €".into(), &"a\"b".into()));
        assert_eq!(event(&[]).unwrap().unwrap().key(), "/orders\na-1");
        let utf16 = [("content-type", "text/plain; charset=utf-16")];
        assert!(structured(&utf16, b"a\0").contains("data_base64"));
    }

    #[test]
    fn what_is_no_event() {
        for (headers, wrong) in [
            (&[("ce-id", "")][..], "no ce-id"),
            (&[("ce-specversion", "0.3")], "1.0"),
            (&[("ce-data", "x")], "no attribute"),
            (&[("ce-", "x")], "no attribute"),
            (&[("ce-comexample-x", "x")], "no attribute"),
            (&[("ce-type", "a"), ("ce-type", "b")], "several"),
            (&[("ce-subject", "%ff")], "UTF-8"),
            (&[("ce-source", "a%0Ab")], "control character"),
        ] {
            let found = event(headers).err().unwrap();
            assert!(found.contains(wrong), "{headers:?}: {found}");
        }
        let broken = event(&[("content-type", "application/x+json")]).unwrap().unwrap();
        assert!(broken.structured(&Bytes::from_static(b"{")).is_err());
        let control: &'static [u8] = &[1; 1_000];
        let text = event(&[("content-type", "text/plain")]).unwrap().unwrap();
        let whole = text.structured(&Bytes::from_static(control)).unwrap();
        assert!(whole.len() <= text.most_bytes(control.len()), "{}", whole.len());
        assert!(CloudEvent::of(&HeaderMap::new(), CloudEvents::Refuse).unwrap().is_none());
        // In structured mode headers may repeat attributes.
        for media in
            ["application/cloudevents+json", "Application/CloudEvents-batch+json; charset=utf-8"]
        {
            assert!(event(&[("content-type", media)]).unwrap().is_none());
        }
    }
}
