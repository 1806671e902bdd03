//! Takes the query of a request to `/` out of its line, before hyper reads it.
//!
//! The provider's SDKs put a message of 64 KiB into the query, and the `http` crate takes no target of more
//! than 65,534 bytes.

use bytes::BytesMut;

use super::heads::RequestScanner;
use super::taken_query::{MAX_QUERY, TakenQuery};
use crate::memory::{MemoryBudget, MemoryReservation, NoMemory};

/// The most bytes of a query that is too long which are read for the sake of an answer.
const MOST_READ: usize = 1 << 20;

/// Where in a request's line the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinePart {
    Method,
    /// The target's first byte.
    Target,
    /// After a `/`.
    Path,
    Query,
    /// What stays as it is.
    Rest,
}

/// Takes queries out of the bytes of one connection.
#[derive(Debug)]
pub(super) struct QueryTaker {
    memory: MemoryBudget,
    part: LinePart,
    taking: Result<Taking, TakenQuery>,
    /// Bytes of the query that is being taken, also of those that are not held.
    length: usize,
}

/// A query of which some has come.
#[derive(Debug)]
struct Taking {
    bytes: BytesMut,
    /// Begun with the first bytes.
    reservation: Option<MemoryReservation>,
}

impl Taking {
    fn none() -> Self {
        Self { bytes: BytesMut::new(), reservation: None }
    }

    fn add(&mut self, bytes: &[u8], memory: &MemoryBudget) -> Result<(), TakenQuery> {
        if bytes.len() > MAX_QUERY - self.bytes.len() {
            return Err(TakenQuery::TooLong);
        }
        let no_memory = |NoMemory| TakenQuery::NoMemory;
        if self.reservation.is_none() {
            self.reservation = Some(memory.begin().map_err(no_memory)?);
        }
        if let Some(reservation) = &mut self.reservation {
            reservation.add_bytes(bytes.len()).map_err(no_memory)?;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

impl QueryTaker {
    pub(super) fn new(memory: MemoryBudget) -> Self {
        Self { memory, part: LinePart::Method, taking: Ok(Taking::none()), length: 0 }
    }

    /// Takes queries out of the next bytes, and lets `scanner` have the others, which are at the beginning
    /// then. Returns how many they are.
    pub(super) fn advance(&mut self, scanner: &mut RequestScanner, bytes: &mut [u8]) -> usize {
        let (mut read, mut kept) = (0, 0);
        while let Some(rest) = bytes.get(read..).filter(|rest| !rest.is_empty()) {
            let stays = if scanner.is_at_request_line() {
                let line = self.stays(rest);
                if line == 0 {
                    read += self.take(rest, scanner);
                    continue;
                }
                scanner.advance(rest.get(..line).unwrap_or_default());
                line
            } else {
                scanner.step(rest).max(1)
            };
            bytes.copy_within(read..read + stays, kept);
            (read, kept) = (read + stays, kept + stays);
        }
        kept
    }

    /// Whether the query is so long that the rest of it is not worth reading.
    pub(super) fn is_flooded(&self) -> bool {
        self.length > MOST_READ
    }

    /// How many bytes of a request's line stay, from the first on.
    fn stays(&mut self, line: &[u8]) -> usize {
        for (at, byte) in line.iter().enumerate() {
            self.part = match (self.part, byte) {
                (LinePart::Query, _) => return at,
                (_, b'\n') => {
                    self.part = LinePart::Method;
                    return at + 1;
                }
                (LinePart::Method, b' ') => LinePart::Target,
                (LinePart::Target, b'/') => LinePart::Path,
                (LinePart::Path, b'?') => {
                    self.part = LinePart::Query;
                    return at;
                }
                (LinePart::Method, _) => LinePart::Method,
                _ => LinePart::Rest,
            };
        }
        line.len()
    }

    /// Takes bytes of a query, the first time with the question mark. Returns how many.
    fn take(&mut self, bytes: &[u8], scanner: &mut RequestScanner) -> usize {
        let end = bytes.iter().position(|byte| matches!(byte, b' ' | b'\r' | b'\n'));
        let part = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
        if let Ok(taking) = &mut self.taking
            && let Err(failed) = taking.add(part, &self.memory)
        {
            self.taking = Err(failed);
        }
        self.length = self.length.saturating_add(part.len());
        if end.is_some() {
            self.length = 0;
            self.part = LinePart::Rest;
            let taken = std::mem::replace(&mut self.taking, Ok(Taking::none()));
            scanner.set_query(taken.map_or_else(|failed| failed, Taking::whole));
        }
        part.len()
    }
}

impl Taking {
    fn whole(self) -> TakenQuery {
        let mut bytes = self.bytes.freeze();
        // The question mark.
        bytes = bytes.slice(1.min(bytes.len())..);
        TakenQuery::Whole(match self.reservation {
            Some(reservation) => reservation.hold(bytes),
            None => bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::heads::HiddenParts;

    /// What stays of these bytes, and the queries, whatever the pieces are in which the bytes arrive.
    fn taken(bytes: &str, memory: u64) -> (String, Vec<Option<String>>) {
        let of = |size: usize| {
            let hidden = HiddenParts::default();
            let mut scanner = RequestScanner::new(hidden.clone());
            let mut taker = QueryTaker::new(MemoryBudget::new(memory));
            let mut all = Vec::new();
            for piece in bytes.as_bytes().chunks(size) {
                let mut piece = piece.to_vec();
                let kept = taker.advance(&mut scanner, &mut piece);
                all.extend_from_slice(&piece[..kept]);
            }
            let mut queries = Vec::new();
            while let Some(head) = hidden.pop() {
                queries.push(head.query.map(|query| match query {
                    TakenQuery::Whole(query) => String::from_utf8(query.to_vec()).unwrap(),
                    other => format!("{other:?}"),
                }));
            }
            (String::from_utf8(all).unwrap(), queries)
        };
        let whole = of(bytes.len().max(1));
        for size in [1, 2, 3, 5, 7, 4_096] {
            assert_eq!(of(size), whole, "{size}");
        }
        whole
    }

    #[test]
    fn only_queries_of_the_root_are_taken() {
        let sized = "POST /?a=1 HTTP/1.1\r\ncontent-length: 12\r\n\r\nGET /?b HT\r\n";
        let (stays, queries) = taken(
            &format!(
                "GET /?x=y%20z HTTP/1.1\r\nhost: x\r\n\r\n\r\n{sized}GET /?b?c=/? HTTP/1.1\r\n\r\n\
                 GET /publish/?x HTTP/1.1\r\n\r\nGET http://x/?y HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n\
                 GET /? HTTP/1.1\r\n\r\nGET /?half\r\n\r\nGET /?un"
            ),
            1 << 20,
        );
        assert_eq!(
            stays,
            "GET / HTTP/1.1\r\nhost: x\r\n\r\n\r\nPOST / HTTP/1.1\r\ncontent-length: 12\r\n\r\n\
             GET /?b HT\r\nGET / HTTP/1.1\r\n\r\nGET /publish/?x HTTP/1.1\r\n\r\n\
             GET http://x/?y HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n\
             GET /\r\n\r\nGET /"
        );
        let queries: Vec<_> = queries.iter().map(Option::as_deref).collect();
        let wanted = [Some("x=y%20z"), Some("a=1"), Some("b?c=/?"), None, None, None, Some("")];
        assert_eq!(queries, [&wanted[..], &[Some("half")]].concat());
    }

    #[test]
    fn a_query_has_its_bounds() {
        let of = |length: usize, memory| {
            let query = "q".repeat(length);
            let (stays, queries) = taken(&format!("GET /?{query} HTTP/1.1\r\n\r\n"), memory);
            assert_eq!(stays, "GET / HTTP/1.1\r\n\r\n");
            queries[0].clone().unwrap()
        };
        assert_eq!(of(MAX_QUERY - 1, 1 << 20).len(), MAX_QUERY - 1);
        assert_eq!(of(MAX_QUERY, 1 << 20), "TooLong");
        assert_eq!(of(80_000, 60_000), "NoMemory");
    }
}
