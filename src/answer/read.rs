//! From the bytes of an HTTP answer to its facts. Any bytes will do.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, DATE, HeaderName, RETRY_AFTER};
use jiff::Timestamp;
use serde_json::Value;

use super::text::{CleanText, clean};
use super::{AnswerBody, HttpAnswer, MAX_RETRY_AFTER, NextSignature, Pause};

/// The header of the provider's own, in milliseconds.
const ACS_RETRY_AFTER: HeaderName = HeaderName::from_static("x-acs-retry-after");
/// Some writers of JSON put it before the text.
const BOM: &[u8] = b"\xef\xbb\xbf";

pub(super) fn read(status: u16, headers: &HeaderMap, body: &[u8]) -> HttpAnswer {
    let (kind, body) = parse(headers, body);
    let text = |names: &[&str]| {
        let mut texts = names.iter().filter_map(|name| body[name].as_str()).map(clean);
        texts.find(|text| !text.is_blank())
    };
    // Some of the provider's answers have a number for a code.
    let number = || body["Code"].as_number().map(|code| CleanText::from(code.to_string()));
    let date = header(headers, &DATE).and_then(http_date);
    HttpAnswer {
        status,
        body: kind,
        msg_id: text(&["MsgId"]),
        request_id: text(&["RequestId", "requestId"]),
        code: text(&["Code", "code"]).or_else(number),
        retry_after: acs_retry_after(headers),
        pause: retry_after(headers, date),
        date,
        ruled: None,
        next: NextSignature::Same,
    }
}

/// The JSON object of a body; `Null` where it has none.
fn parse(headers: &HeaderMap, body: &[u8]) -> (AnswerBody, Value) {
    let encoded = headers.get_all(CONTENT_ENCODING).iter();
    if encoded.map(|value| value.as_bytes().trim_ascii()).any(is_encoded) {
        return (AnswerBody::Encoded, Value::Null);
    }
    let body = body.strip_prefix(BOM).unwrap_or(body);
    if body.trim_ascii().is_empty() {
        return (AnswerBody::Empty, Value::Null);
    }
    match serde_json::from_slice(body) {
        Ok(object @ Value::Object(_)) => (AnswerBody::Object, object),
        Ok(_) | Err(_) => (AnswerBody::Other, Value::Null),
    }
}

/// Every call asks for `identity`, and nothing else is decoded.
fn is_encoded(coding: &[u8]) -> bool {
    !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity")
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Zero, negative, blank or non-numeric is no header, as in the official SDKs.
fn acs_retry_after(headers: &HeaderMap) -> Option<Duration> {
    let millis = whole(header(headers, &ACS_RETRY_AFTER)?)?;
    Some(Duration::from_millis(millis).min(MAX_RETRY_AFTER)).filter(|wait| !wait.is_zero())
}

/// Seconds, or a date: against the clock that wrote it, where that is known.
fn retry_after(headers: &HeaderMap, date: Option<Timestamp>) -> Option<Pause> {
    let value = header(headers, &RETRY_AFTER)?;
    if let Some(seconds) = whole(value) {
        return Pause::new(Duration::from_secs(seconds));
    }
    let left = http_date(value)?.duration_since(date.unwrap_or_else(Timestamp::now));
    Pause::new(Duration::try_from(left).ok()?)
}

/// A whole number; one that does not fit is the largest that does.
fn whole(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

/// Any of the three forms of RFC 9110. A moment that no [`Timestamp`] holds is the last that one does.
fn http_date(text: &str) -> Option<Timestamp> {
    let at = httpdate::parse_http_date(text).ok()?;
    Some(Timestamp::try_from(at).unwrap_or(if at < SystemTime::UNIX_EPOCH {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    }))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::answer::{Answer, Verdict};

    const DATED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn headers(of: &[(&'static str, &'static str)]) -> HeaderMap {
        of.iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn a_body_is_read_only_where_it_is_the_providers_json() {
        let ok = br#"{"MsgId":"M-1","RequestId":"R-1"}"#.as_slice();
        let with_bom = [BOM, ok].concat();
        let twice = [BOM, BOM, ok].concat();
        let utf_16: Vec<u8> =
            String::from_utf8_lossy(ok).encode_utf16().flat_map(u16::to_le_bytes).collect();
        let gzip = [("content-encoding", "gzip")];
        for (coding, body, kind, msg_id) in [
            (&[][..], ok, AnswerBody::Object, Some("M-1")),
            (&[], &with_bom, AnswerBody::Object, Some("M-1")),
            (&[("content-encoding", "Identity")], ok, AnswerBody::Object, Some("M-1")),
            (&[("content-encoding", "")], ok, AnswerBody::Object, Some("M-1")),
            // Even if its bytes could be read: they are not what the header says.
            (&gzip, ok, AnswerBody::Encoded, None),
            (&gzip, b"\x1f\x8b\x08\0\0", AnswerBody::Encoded, None),
            (&[("content-encoding", "identity, br")], ok, AnswerBody::Encoded, None),
            (&[], b"\x1f\x8b\x08\0\0", AnswerBody::Other, None),
            (&[], &twice, AnswerBody::Other, None),
            (&[], &utf_16, AnswerBody::Other, None),
            (&[], b"", AnswerBody::Empty, None),
            (&[], b" \r\n", AnswerBody::Empty, None),
            (&[], BOM, AnswerBody::Empty, None),
            (&[], b"<html>ok</html>", AnswerBody::Other, None),
            (&[], br#"{"MsgId":"M-1","#, AnswerBody::Other, None),
            (&[], br#"[{"MsgId":"M-1"}]"#, AnswerBody::Other, None),
            (&[], br#""M-1""#, AnswerBody::Other, None),
            (&[], br#"{"MsgId":null}"#, AnswerBody::Object, None),
            (&[], br#"{"MsgId":{"a":1}}"#, AnswerBody::Object, None),
            (&[], br#"{"MsgId":" \t"}"#, AnswerBody::Object, None),
            (&[], br#"{"MsgId":"\u0000"}"#, AnswerBody::Object, None),
        ] {
            let answer = read(200, &headers(coding), body);
            let shown = String::from_utf8_lossy(body);
            assert_eq!((answer.body, answer.msg_id.as_deref()), (kind, msg_id), "{shown}");
            let wanted = if msg_id.is_some() { Verdict::Delivered } else { Verdict::Unknown };
            assert_eq!(Answer::Http(answer).verdict(), wanted, "{shown}");
        }
    }

    #[test]
    fn both_headers_of_a_wait_are_read_and_bounded() {
        let max = Some(MAX_RETRY_AFTER);
        let seconds = |n| Some(Duration::from_secs(n));
        for (value, wait) in [
            ("5", seconds(5)),
            (" 5 ", seconds(5)),
            ("120", max),
            ("121", max),
            ("99999999999999999999999", max),
            ("0", None),
            ("-5", None),
            ("+5", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
            // The three forms of a date, 30 s after the answer's own; and others.
            ("Sun, 06 Nov 1994 08:50:07 GMT", seconds(30)),
            ("Sunday, 06-Nov-94 08:50:07 GMT", seconds(30)),
            ("Sun Nov  6 08:50:07 1994", seconds(30)),
            (DATED, None),
            ("Sun, 06 Nov 1994 08:49:36 GMT", None),
            ("Fri, 31 Dec 9999 23:59:59 GMT", max),
            ("Thu, 01 Jan 1970 00:00:00 GMT", None),
            ("Sun, 06 Nov 1994 99:50:07 GMT", None),
        ] {
            let answer = read(503, &headers(&[("date", DATED), ("retry-after", value)]), b"");
            let pause = answer.pause.map(Duration::from);
            assert_eq!((pause, answer.retry_after), (wait, None), "{value:?}");
        }
        for (value, wait) in [
            ("1500", Some(Duration::from_millis(1_500))),
            ("18446744073709551616", max),
            ("0", None),
            ("-1", None),
            (DATED, None),
        ] {
            let answer = read(400, &headers(&[("x-acs-retry-after", value)]), b"");
            assert_eq!((answer.retry_after, answer.pause), (wait, None), "{value:?}");
        }
    }

    /// Against our own clock, where the answer has no date.
    #[test]
    fn a_date_to_wait_for_without_a_date() {
        for (value, wait) in
            [("Fri, 31 Dec 9999 23:59:59 GMT", Some(MAX_RETRY_AFTER)), (DATED, None)]
        {
            let pause = read(503, &headers(&[("retry-after", value)]), b"").pause;
            assert_eq!(pause.map(Duration::from), wait);
        }
    }

    #[test]
    fn dates_at_the_edge() {
        for (value, date) in [
            (DATED, Some("1994-11-06T08:49:37Z".parse().unwrap())),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some("1994-11-06T08:49:37Z".parse().unwrap())),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(Timestamp::MAX)),
            ("Fri, 31 Dec 99999 23:59:59 GMT", None),
            ("never", None),
        ] {
            assert_eq!(read(200, &headers(&[("date", value)]), b"").date, date, "{value}");
        }
    }
}
