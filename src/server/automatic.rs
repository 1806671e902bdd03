//! The answers that hyper makes itself to heads that it cannot read. It gives them no body; they get one
//! here, where bytes pass.

use http::StatusCode;

use super::heads::{Framing, HiddenParts};
use super::problem::Problem;
use super::slug::Slug;

/// How hyper's own answers begin: only 4xx have no body and no request id.
const START: &[u8] = b"HTTP/1.1 4";

/// Recognises hyper's own answers on one connection.
#[derive(Debug, Clone)]
pub(super) struct AutomaticAnswers {
    pub(super) hidden: HiddenParts,
    pub(super) max_header: usize,
    pub(super) max_lines: usize,
}

impl AutomaticAnswers {
    /// The same answer with a problem as its body, if these bytes are one of hyper's own.
    pub(super) fn explained(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        if !bytes.starts_with(START) || !bytes.ends_with(b"\r\n\r\n") {
            return None;
        }
        let mut lines = std::str::from_utf8(bytes).ok()?.trim_end().split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let status = StatusCode::from_u16(status).ok()?;
        let mut fields: Vec<_> = lines.collect();
        let length = fields.iter().position(|field| *field == "content-length: 0")?;
        fields.remove(length);
        // Services' own answers have a type and a request id.
        if fields.iter().any(|field| field.is_empty() || field.starts_with("x-request-id:")) {
            return None;
        }
        let problem = self.problem(status);
        let id = uuid::Uuid::now_v7().simple();
        let (status, body) = (problem.status(), problem.to_json());
        let reason = StatusCode::from_u16(status).ok()?.canonical_reason().unwrap_or_default();
        let fields: String = fields.iter().flat_map(|field| [*field, "\r\n"]).collect();
        let length = body.len();
        let mut answer = format!(
            "HTTP/1.1 {status} {reason}\r\n{fields}content-type: application/problem+json\r\n\
             x-request-id: {id}\r\ncontent-length: {length}\r\n\r\n"
        )
        .into_bytes();
        answer.extend(body);
        Some(answer)
    }

    fn problem(&self, status: StatusCode) -> Problem {
        let (slug, title, detail) = match status {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => (
                Slug::HeadTooLarge,
                "Head is too large",
                format!(
                    "At most {} bytes and {} header lines are allowed in a request's head. Nothing \
                     was sent.",
                    self.max_header, self.max_lines
                ),
            ),
            StatusCode::URI_TOO_LONG => (
                Slug::PathTooLong,
                "Path is too long",
                "The path is far longer than any that there is here. Nothing was sent.".to_owned(),
            ),
            _ if self.hidden.next().framing == Framing::UnknownCoding => return unknown_coding(),
            _ => (
                Slug::MalformedRequest,
                "Malformed request",
                "The request's head is not valid HTTP/1.1 (RFC 9112). Nothing was sent.".to_owned(),
            ),
        };
        Problem::new(status, slug, title, detail).outcome("not-sent")
    }
}

/// A body in a transfer coding that we do not read.
pub(super) fn unknown_coding() -> Problem {
    let detail = "The only Transfer-Encoding that is read here is chunked, alone and once. Nothing \
                  was sent. Send the body with a Content-Length, or chunked.";
    let (status, title) = (StatusCode::NOT_IMPLEMENTED, "Unknown transfer coding");
    Problem::new(status, Slug::UnknownTransferCoding, title, detail.to_owned())
        .outcome("not-sent")
        .close()
}
