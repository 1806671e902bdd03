//! What an upstream answer means. [`TABLE`] is the only place that knows the provider's codes;
//! everything else asks [`Answer::verdict`].

mod errors;
mod read;
mod text;

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;

pub use errors::{AccessDenied, TransportError};
pub use text::{CleanText, clean};

/// What decides the meaning of an HTTP answer: the first of these that applies. The same order as in
/// [`Answer::verdict`].
pub const PRECEDENCE: [(&str, &str); 6] = [
    ("2xx", "delivered with a MsgId, else unknown"),
    ("retry.codes", "what the configuration says of the code"),
    ("doubt", "unknown: a copy arrived, or a gateway may have passed the call on"),
    ("x-acs-retry-after", "throttled, on a status of 400 or more; Retry-After alike"),
    ("the table of codes", "what the provider documents of the code"),
    ("the HTTP status", "where the code is missing or not documented"),
];

/// The longest `x-acs-retry-after` or `Retry-After` that is believed. The official SDKs cap it at the
/// same figure.
pub const MAX_RETRY_AFTER: Duration = Duration::from_mins(2);

/// What one call came back with: facts, not meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A whole HTTP answer.
    Http(HttpAnswer),
    /// No whole answer.
    TransportError(TransportError),
}

/// The parts of an HTTP answer that decide anything. The provider's `Message` is left out on
/// purpose: for a wrong signature it repeats the signed string, with the payload in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpAnswer {
    /// HTTP status.
    pub status: u16,
    /// What the body is.
    pub body: AnswerBody,
    /// `MsgId`, if there is one and it is not blank.
    pub msg_id: Option<CleanText>,
    /// `RequestId`: what the provider's support asks for.
    pub request_id: Option<CleanText>,
    /// `Code` of an error.
    pub code: Option<CleanText>,
    /// `x-acs-retry-after`, a positive number of milliseconds, capped at [`MAX_RETRY_AFTER`].
    pub retry_after: Option<Duration>,
    /// `Retry-After`, seconds or a date, as a wait capped at [`MAX_RETRY_AFTER`]. A gateway may have
    /// written it.
    pub pause: Option<Pause>,
    /// The provider's clock.
    pub date: Option<Timestamp>,
    /// What `retry.codes` says that its code means.
    pub ruled: Option<Verdict>,
    /// What the upstream has learnt from it for the next call.
    pub next: NextSignature,
}

/// A wait that is bounded, in milliseconds: small, since outcomes carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause(NonZeroU32);

impl Pause {
    /// `None` for less than a millisecond; more than [`MAX_RETRY_AFTER`] is as much.
    pub fn new(wait: Duration) -> Option<Self> {
        let millis = u32::try_from(wait.min(MAX_RETRY_AFTER).as_millis()).ok()?;
        NonZeroU32::new(millis).map(Self)
    }
}

impl From<Pause> for Duration {
    fn from(pause: Pause) -> Self {
        Self::from_millis(pause.0.get().into())
    }
}

/// How the next call is signed, after a refusal of this one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NextSignature {
    /// As this one.
    #[default]
    Same,
    /// With another time: the provider refused ours, and ours was corrected.
    OtherTime,
    /// With another key, which the provider is not known to refuse.
    OtherKey,
}

/// What the body of an answer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AnswerBody {
    /// A JSON object, as the provider documents it.
    #[default]
    Object,
    /// Nothing, as with a 204.
    Empty,
    /// In a content coding that was not asked for, such as gzip. It is not decoded.
    Encoded,
    /// Anything else: a page of a gateway, an object that was cut off.
    Other,
}

impl AnswerBody {
    /// Its name where a dead letter says why, and what it is: a part of a sentence.
    const fn row(self) -> (&'static str, &'static str) {
        match self {
            Self::Object => ("empty_msgid", "without a MsgId"),
            Self::Empty => ("empty_body", "with an empty body, so without a MsgId"),
            Self::Encoded => {
                ("encoded_body", "with a compressed body, in which no MsgId can be read")
            }
            Self::Other => ("unreadable_body", "with a body in which no MsgId can be read"),
        }
    }

    /// What it is, after "answered 200".
    pub const fn explanation(self) -> &'static str {
        self.row().1
    }
}

/// What the configuration says of codes, over the table.
#[derive(Debug, Clone, Default)]
pub struct Codes(Vec<(Box<str>, Verdict)>);

impl Codes {
    /// Codes with what they are to mean; the first match wins.
    pub fn new(codes: Vec<(Box<str>, Verdict)>) -> Self {
        Self(codes)
    }

    /// An answer, read by these rules.
    pub fn rule(&self, mut answer: Answer) -> Answer {
        if let Answer::Http(http) = &mut answer
            && let Some(code) = &http.code
        {
            let rule = self.0.iter().find(|(of, _)| **of == **code);
            http.ruled = rule.map(|(_, means)| means.clone());
        }
        answer
    }
}

/// What an answer means for the message and for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Accepted and billed: one message.
    Delivered,
    /// This message will never pass.
    Refused,
    /// We are not let in; no message would pass.
    Denied(AccessDenied),
    /// Too many calls; not accepted, not billed.
    Throttled {
        /// What the provider asked us to wait.
        retry_after: Option<Duration>,
    },
    /// Not accepted, and will pass later.
    Failed,
    /// May have been accepted, and billed.
    Unknown,
}

/// How a row's code is compared.
#[derive(Debug, Clone, Copy)]
pub enum Code {
    /// The whole code.
    Is(&'static str),
    /// How it begins.
    Begins(&'static str),
    /// A part of it.
    Has(&'static str),
}

/// One row of the table.
#[derive(Debug)]
pub struct CodeRow {
    /// The code.
    pub code: Code,
    /// What it means, whatever the HTTP status: that differs between the provider's products.
    pub means: Verdict,
}

const fn row(code: Code, means: Verdict) -> CodeRow {
    CodeRow { code, means }
}

const THROTTLED: Verdict = Verdict::Throttled { retry_after: None };

/// Every code that the provider documents for `SendMessage` and its common layer; first match wins.
#[rustfmt::skip]
pub static TABLE: &[CodeRow] = &[
    // The reference page of SendMessage: nine codes.
    row(Code::Is("SendMessageFailed"), Verdict::Failed), // "storage exception"
    row(Code::Is("InternalError"), Verdict::Failed),
    row(Code::Is("SystemOverFlow"), THROTTLED), // the reference calls it generic, the error-code page throttling
    row(Code::Is("ParameterCheckFailed"), Verdict::Refused),
    row(Code::Begins("InvalidParameter"), Verdict::Refused),
    row(Code::Is("CheckAccountInfoFailed"), Verdict::Denied(AccessDenied::Key)), // account lookup by token
    row(Code::Is("PermissionCheckFailed"), Verdict::Denied(AccessDenied::Permission)),
    row(Code::Is("InstancePermissionCheckFailed"), Verdict::Denied(AccessDenied::Permission)),
    row(Code::Is("ApiNotSupport"), Verdict::Denied(AccessDenied::Endpoint)),
    // Throttling: Throttling, Throttling.User, Throttling.Api, Rejected.Throttling.
    row(Code::Has("Throttling"), THROTTLED),
    // Signature, key, token.
    row(Code::Is("SignatureDoesNotMatch"), Verdict::Denied(AccessDenied::Key)),
    row(Code::Is("IncompleteSignature"), Verdict::Denied(AccessDenied::Key)),
    row(Code::Is("InvalidSignatureMethod"), Verdict::Denied(AccessDenied::Endpoint)),
    row(Code::Begins("InvalidAccessKeyId"), Verdict::Denied(AccessDenied::Key)),
    row(Code::Begins("InvalidSecurityToken"), Verdict::Denied(AccessDenied::Key)),
    row(Code::Is("MissingSecurityToken"), Verdict::Denied(AccessDenied::Key)),
    // Every try has a nonce of its own, so a used one means that a copy of this very call arrived.
    row(Code::Is("SignatureNonceUsed"), Verdict::Unknown),
    row(Code::Begins("InvalidTimeStamp"), Verdict::Denied(AccessDenied::Clock)),
    row(Code::Is("IllegalTimestamp"), Verdict::Denied(AccessDenied::Clock)),
    // The common layer.
    row(Code::Begins("MissingParameter"), Verdict::Refused),
    row(Code::Begins("Forbidden"), Verdict::Denied(AccessDenied::Permission)), // Forbidden.RAM
    row(Code::Is("UnsupportedHTTPMethod"), Verdict::Denied(AccessDenied::Endpoint)),
    row(Code::Begins("InvalidApi"), Verdict::Denied(AccessDenied::Endpoint)), // InvalidApi.NotFound
    row(Code::Begins("InvalidProtocol"), Verdict::Denied(AccessDenied::Endpoint)), // InvalidProtocol.NeedSsl
    row(Code::Is("ServiceUnavailable"), Verdict::Failed),
    row(Code::Is("UnknownError"), Verdict::Failed),
];

impl Code {
    /// Whether a code is of this row.
    pub fn matches(self, code: &str) -> bool {
        match self {
            Self::Is(whole) => code == whole,
            Self::Begins(start) => code.starts_with(start),
            Self::Has(part) => code.contains(part),
        }
    }
}

impl Answer {
    /// Reads an HTTP answer. Any bytes will do: what is not the provider's JSON is an answer
    /// without a code.
    pub fn read(status: u16, headers: &HeaderMap, body: &[u8]) -> Self {
        Self::Http(read::read(status, headers, body))
    }

    /// What it means. Total: every status and every code has a verdict.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::TransportError(TransportError::NotText) => Verdict::Refused,
            Self::TransportError(lost) if lost.nothing_sent() => Verdict::Failed,
            Self::TransportError(_) => Verdict::Unknown,
            Self::Http(answer) => answer.verdict(),
        }
    }

    /// The label of this answer in metrics and logs: `OK`, the provider's code, `http_503` or a
    /// transport word.
    pub fn label(&self) -> Cow<'_, str> {
        match self {
            Self::TransportError(lost) => lost.as_str().into(),
            Self::Http(answer) => match (&answer.code, &answer.msg_id) {
                (Some(code), _) if answer.status >= 300 => (&**code).into(),
                (_, Some(_)) if answer.is_2xx() => "OK".into(),
                (_, None) if answer.is_2xx() => "empty_msgid".into(),
                _ => format!("http_{}", answer.status).into(),
            },
        }
    }

    /// Its label, and for a 2xx without a `MsgId` what its body is: why a message is a dead letter.
    pub fn cause(&self) -> Cow<'_, str> {
        match self.http() {
            Some(http) if http.is_2xx() && http.msg_id.is_none() => http.body.row().0.into(),
            _ => self.label(),
        }
    }

    /// How long to wait before the next call, where the answer says so.
    pub fn pause(&self) -> Option<Duration> {
        self.http().and_then(HttpAnswer::pause)
    }

    /// Whether a gateway gave up waiting for the provider, which may read the call yet.
    pub fn is_gateway_timeout(&self) -> bool {
        self.http().is_some_and(|http| http.status == 504 && http.code.is_none())
    }

    /// Whether it refused a key, and the next call has another one.
    pub fn has_other_key(&self) -> bool {
        self.http().is_some_and(|http| http.next == NextSignature::OtherKey)
    }

    /// The HTTP answer, where there was one.
    pub fn http(&self) -> Option<&HttpAnswer> {
        match self {
            Self::Http(answer) => Some(answer),
            Self::TransportError(_) => None,
        }
    }
}

impl HttpAnswer {
    /// Whether it says that the call was done.
    pub fn is_2xx(&self) -> bool {
        (200..300).contains(&self.status)
    }

    fn verdict(&self) -> Verdict {
        if self.is_2xx() {
            // An empty MsgId: the body was too large, or an inner call timed out. The provider
            // says to send again; whether it stored or billed the first is not published.
            return if self.msg_id.is_some() { Verdict::Delivered } else { Verdict::Unknown };
        }
        if let Some(ruled) = &self.ruled {
            // The operator's word on a code comes before any header. A throttled call still waits for
            // as long as the provider asks.
            return match ruled {
                Verdict::Throttled { .. } => Verdict::Throttled { retry_after: self.pause() },
                _ => ruled.clone(),
            };
        }
        let row = self.code.as_deref().and_then(|code| TABLE.iter().find(|r| r.code.matches(code)));
        if self.is_in_doubt(row) {
            return Verdict::Unknown;
        }
        if self.status >= 400 && self.pause().is_some() {
            // Whatever the table says of the code: so do the official SDKs since July 2026.
            return Verdict::Throttled { retry_after: self.pause() };
        }
        if let Some(row) = row {
            return row.means.clone();
        }
        match self.status {
            429 => THROTTLED,
            408 | 500.. => Verdict::Failed,
            401 | 403 | 407 if self.code.is_none() => Verdict::Denied(AccessDenied::Permission),
            404 | 405 if self.code.is_none() => Verdict::Denied(AccessDenied::Endpoint),
            400..500 => Verdict::Refused,
            // A redirect is not the provider's answer.
            _ => Verdict::Denied(AccessDenied::Endpoint),
        }
    }

    /// Whether the call may have been taken although this answer is no success. A header that asks to
    /// wait does not change that.
    fn is_in_doubt(&self, row: Option<&CodeRow>) -> bool {
        if let Some(row) = row {
            return row.means == Verdict::Unknown;
        }
        match self.status {
            // See Other is what follows a POST that was carried out. Less than 200 is no answer.
            ..200 | 303 => true,
            // Not the provider's words but a gateway's, which may have passed the call on before
            // what stands behind it failed. Only the provider sends x-acs-retry-after; but 504 says
            // that the gateway did not wait for its answer.
            500.. if self.code.is_none() => self.status == 504 || self.retry_after.is_none(),
            // The provider says "throttled" with a 400: what this one says is not known.
            400 => self.body == AnswerBody::Encoded && self.pause().is_none(),
            _ => false,
        }
    }

    fn pause(&self) -> Option<Duration> {
        self.retry_after.or(self.pause.map(Duration::from))
    }
}

/// What a [label](Answer::label) means, for those who have nothing else; `None`: a code that the
/// table does not know. Neither `retry.codes` nor `x-acs-retry-after` has left a trace in a label.
pub fn meaning(label: &str) -> Option<Verdict> {
    if let Some(lost) = TransportError::ALL.into_iter().find(|lost| lost.as_str() == label) {
        return Some(Answer::TransportError(lost).verdict());
    }
    let status = match label {
        "OK" => return Some(Verdict::Delivered),
        "empty_msgid" => Some(200),
        _ => label.strip_prefix("http_").and_then(|status| status.parse().ok()),
    };
    match status {
        Some(status) => Some(HttpAnswer { status, ..HttpAnswer::default() }.verdict()),
        None => TABLE.iter().find(|row| row.code.matches(label)).map(|row| row.means.clone()),
    }
}
