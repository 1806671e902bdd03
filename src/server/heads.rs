//! Follows requests in the bytes of a connection.
//!
//! hyper removes a `Content-Length` that stands beside a `Transfer-Encoding`, and refuses some heads
//! before a service sees them. This has the same idea of where a head begins and ends, and keeps what
//! hyper hides.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::taken_query::TakenQuery;

/// Bytes of a line that are looked at; no length, coding or chunk size needs as many.
const MAX_LINE: usize = 256;

/// How a head says where its body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// In one way, or there is no body.
    Clear,
    /// By a `Content-Length` and a `Transfer-Encoding`, of which either may count; or in a way that this
    /// does not follow.
    Both,
    /// By a transfer coding other than `chunked`.
    UnknownCoding,
}

/// What hyper does not see of a head.
#[derive(Debug)]
pub(super) struct HiddenPart {
    pub(super) framing: Framing,
    pub(super) query: Option<TakenQuery>,
}

/// What is hidden of heads that are read and not served yet, in their order.
#[derive(Debug, Clone, Default)]
pub(super) struct HiddenParts(Arc<Mutex<VecDeque<HiddenPart>>>);

impl HiddenParts {
    fn push(&self, part: HiddenPart) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(part);
    }

    pub(super) fn pop(&self) -> Option<HiddenPart> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// That of the next head. hyper has parsed it, so it has been read, unless the scanner has lost its
    /// place: then nothing may be served.
    pub(super) fn next(&self) -> HiddenPart {
        self.pop().unwrap_or(HiddenPart { framing: Framing::Both, query: None })
    }
}

/// Where in a request the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Before a head; blank lines are skipped.
    Start,
    Head,
    /// A body with so many bytes left.
    Body(u64),
    ChunkSize,
    /// A chunk with so many bytes left.
    Chunk(u64),
    /// The line end after a chunk.
    ChunkEnd,
    Trailer,
    /// The framing is broken or refused: hyper reads no further request.
    Lost,
}

/// The head that is being read.
#[derive(Debug, Clone, Copy, Default)]
struct Fields {
    length: Option<u64>,
    /// Whether the last coding of the last `Transfer-Encoding` is `chunked`, and the only one.
    chunked: Option<bool>,
    /// Whether there is a `Content-Length`, readable or not.
    has_length: bool,
    /// hyper refuses the length, unless there is a `Transfer-Encoding`.
    broken: bool,
    /// A line that says the length is longer than what is looked at.
    is_cut: bool,
}

/// Follows the requests of one connection.
#[derive(Debug)]
pub(super) struct RequestScanner {
    part: Part,
    /// The beginning of the line that is being read.
    line: Vec<u8>,
    /// Whether the line is longer than that.
    is_cut: bool,
    fields: Fields,
    /// Taken out of the line of the request that has begun.
    query: Option<TakenQuery>,
    hidden: Option<HiddenParts>,
}

impl RequestScanner {
    pub(super) fn new(hidden: HiddenParts) -> Self {
        Self {
            part: Part::Start,
            line: Vec::new(),
            is_cut: false,
            fields: Fields::default(),
            query: None,
            hidden: Some(hidden),
        }
    }

    /// Whether no request has begun that has not ended.
    pub(super) fn is_between_requests(&self) -> bool {
        self.part == Part::Start && self.line.is_empty()
    }

    /// Whether the next byte belongs to a request's line, or to a blank line before it.
    pub(super) fn is_at_request_line(&self) -> bool {
        self.part == Part::Start
    }

    /// The request whose line is being read has this query, which the line has no more.
    pub(super) fn set_query(&mut self, query: TakenQuery) {
        self.query = Some(query);
    }

    /// No request is served any more: what is hidden of heads is of no use.
    pub(super) fn serve_no_more(&mut self) {
        self.hidden = None;
    }

    /// Whether no byte is known to follow: between two requests, or where the framing was lost.
    pub(super) fn is_settled(&self) -> bool {
        self.part == Part::Lost || self.is_between_requests()
    }

    /// Takes the next bytes that hyper reads.
    pub(super) fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = self.step(bytes);
            bytes = bytes.get(taken..).unwrap_or_default();
        }
    }

    /// Takes some of these bytes, at least one: to the end of a line or of a body, if that is among them. Returns how
    /// many.
    pub(super) fn step(&mut self, bytes: &[u8]) -> usize {
        let taken = match &mut self.part {
            Part::Lost => return bytes.len(),
            Part::Body(left) | Part::Chunk(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                taken
            }
            _ => self.take_line(bytes),
        };
        match self.part {
            Part::Body(0) => self.part = Part::Start,
            Part::Chunk(0) => self.part = Part::ChunkEnd,
            _ => {}
        }
        taken
    }

    /// Takes bytes up to the end of a line, and looks at the line if it is complete. Most lines come in one
    /// piece, and are not copied.
    fn take_line(&mut self, bytes: &[u8]) -> usize {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let piece = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
        let room = MAX_LINE.saturating_sub(self.line.len()).min(piece.len());
        self.is_cut |= room < piece.len();
        let piece = piece.get(..room).unwrap_or_default();
        match end {
            Some(_) if self.line.is_empty() => self.end_line(piece),
            Some(_) => {
                let mut line = std::mem::take(&mut self.line);
                line.extend(piece);
                self.end_line(&line);
            }
            None => self.line.extend(piece),
        }
        end.map_or(bytes.len(), |end| end + 1)
    }

    fn end_line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let is_cut = std::mem::take(&mut self.is_cut);
        self.part = match self.part {
            Part::Start | Part::Trailer if line.is_empty() => Part::Start,
            Part::Start => {
                self.fields = Fields::default();
                Part::Head
            }
            Part::Head if line.is_empty() => self.end_head(),
            Part::Head => {
                self.fields.read(line, is_cut);
                Part::Head
            }
            // hyper reads any number of digits; those beyond are not known here.
            Part::ChunkSize if is_cut && !line.contains(&b';') => Part::Lost,
            Part::ChunkSize => match chunk_size(line) {
                Some(0) => Part::Trailer,
                Some(size) => Part::Chunk(size),
                None => Part::Lost,
            },
            Part::ChunkEnd if line.is_empty() => Part::ChunkSize,
            Part::Trailer => Part::Trailer,
            _ => Part::Lost,
        };
    }

    fn end_head(&mut self) -> Part {
        let Fields { length, chunked, has_length, broken, is_cut } = self.fields;
        let (framing, part) = match (length, chunked) {
            _ if is_cut => (Framing::Both, Part::Lost),
            // hyper ignores a length beside a coding, whatever it says.
            (_, Some(_)) if has_length => (Framing::Both, Part::Lost),
            (_, Some(false)) => (Framing::UnknownCoding, Part::Lost),
            (_, Some(true)) => (Framing::Clear, Part::ChunkSize),
            _ if broken => (Framing::Clear, Part::Lost),
            (None | Some(0), None) => (Framing::Clear, Part::Start),
            (Some(length), None) => (Framing::Clear, Part::Body(length)),
        };
        let query = self.query.take();
        if let Some(hidden) = &self.hidden {
            hidden.push(HiddenPart { framing, query });
        }
        part
    }
}

impl Fields {
    fn read(&mut self, line: &[u8], is_cut: bool) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            let only = value.eq_ignore_ascii_case(b"chunked");
            self.chunked = Some(only && self.chunked.is_none());
            self.is_cut |= is_cut;
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            self.broken |= length.is_none() || self.length.is_some_and(|l| Some(l) != length);
            self.length = length;
            self.has_length = true;
            self.is_cut |= is_cut;
        }
    }
}

/// The size that a chunk's first line has, before extensions.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let size = line.split(|byte| *byte == b';').next()?.trim_ascii();
    let digits = !size.is_empty() && size.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(size).ok().filter(|_| digits)?;
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The framings of all heads, and whether the end stands between two requests, whatever the
    /// pieces are in which the bytes arrive.
    fn scan(bytes: &str) -> (Vec<Framing>, bool) {
        let of = |size: usize| {
            let hidden = HiddenParts::default();
            let mut scanner = RequestScanner::new(hidden.clone());
            bytes.as_bytes().chunks(size).for_each(|piece| scanner.advance(piece));
            let all: Vec<_> =
                std::iter::from_fn(|| hidden.pop()).map(|part| part.framing).collect();
            (all, scanner.is_between_requests())
        };
        let whole = of(bytes.len().max(1));
        for size in 1..5 {
            assert_eq!(of(size), whole, "{size}: {bytes:?}");
        }
        whole
    }

    #[test]
    fn framings_are_found_wherever_a_head_begins() {
        use Framing::{Both, Clear, UnknownCoding};
        let get = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        let sized = "POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\nGET /\r\n\r\n";
        let chunked =
            "POST / HTTP/1.1\nTransfer-Encoding:chunked\n\n3;x=y\r\na\r\n\r\n0\r\nT: 1\r\n\r\n";
        let both = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n";
        let other = "POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n";
        let gzip = "POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n";
        let twice =
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nTransfer-encoding: chunked\r\n\r\n";
        for (bytes, framings, is_between) in [
            (get.repeat(3), vec![Clear; 3], true),
            (format!("\r\n\r\n{get}\r\n{sized}{get}"), vec![Clear; 3], true),
            (format!("{sized}{chunked}{sized}"), vec![Clear; 3], true),
            (format!("{sized}{both}{get}"), vec![Clear, Both], false),
            (format!("{chunked}{other}"), vec![Clear, Both], false),
            (format!("{get}{gzip}x"), vec![Clear, UnknownCoding], false),
            (twice.to_owned(), vec![UnknownCoding], false),
            (get[..10].to_owned(), vec![], false),
            (sized[..sized.len() - 1].to_owned(), vec![Clear], false),
            (chunked[..chunked.len() - 2].to_owned(), vec![Clear], false),
            (
                format!("POST / HTTP/1.1\r\n{}content-length: 2\r\n\r\nab", "x: y\r\n".repeat(500)),
                vec![Clear],
                true,
            ),
            (
                format!("POST /{} HTTP/1.1\r\ncontent-length: 2\r\n\r\nab", "x".repeat(5_000)),
                vec![Clear],
                true,
            ),
            (
                "POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n".to_owned(),
                vec![Clear],
                false,
            ),
            // hyper serves it as chunked.
            (
                "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5, 5\r\n\r\n"
                    .to_owned(),
                vec![Both],
                false,
            ),
            // hyper reads 5 and 3 bytes; their bodies must not be taken for heads.
            (
                format!("POST / HTTP/1.1\r\ncontent-length: {}5\r\n\r\nx\n\nx\n", "0".repeat(300)),
                vec![Both],
                false,
            ),
            (
                format!(
                    "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{}3\r\nx\n\n\r\n",
                    "0".repeat(300)
                ),
                vec![Clear],
                false,
            ),
        ] {
            assert_eq!(scan(&bytes), (framings, is_between), "{bytes:?}");
        }
    }

    #[test]
    fn nothing_is_served_whose_head_was_not_followed() {
        let hidden = HiddenParts::default();
        let mut scanner = RequestScanner::new(hidden.clone());
        let lost = format!("POST / HTTP/1.1\ntransfer-encoding: chunked\n\n{}\n", "0".repeat(300));
        scanner.advance(format!("{lost}GET / HTTP/1.1\nhost: x\n\n").as_bytes());
        assert_eq!((hidden.next().framing, hidden.next().framing), (Framing::Clear, Framing::Both));
    }
}
