//! The query that was taken out of a request's line.

use bytes::Bytes;

/// The most bytes of such a query: 64 KiB of which each character is percent-encoded, and the other parameters.
pub const MAX_QUERY: usize = 200 << 10;

/// The query that a request's target had after `/?`: an extension of the request.
#[derive(Debug, Clone)]
pub enum TakenQuery {
    /// All of it. It is counted until it is dropped.
    Whole(Bytes),
    /// It had more than [`MAX_QUERY`] bytes.
    TooLong,
    /// The memory for messages was in use.
    NoMemory,
}
