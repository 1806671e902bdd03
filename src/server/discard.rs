//! What a client is still sending when its answer is known.
//!
//! A socket that is closed while bytes arrive is reset, and the reset takes the answer away that the
//! client has not read yet. So the rest of a request is discarded for a while: before an answer that
//! closes the connection, since some clients (Java's) lose an answer that comes while they send, and
//! after the end of our side has been sent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// The most bytes that are discarded before an answer, and the time limit for that: twice the largest body.
pub(super) const BEFORE_AN_ANSWER: DiscardLimits =
    DiscardLimits { bytes: 16 << 20, time: Duration::from_secs(1) };
/// After our side has ended.
pub(super) const AFTER_OUR_END: DiscardLimits =
    DiscardLimits { bytes: 256 << 20, time: Duration::from_secs(5) };

/// How much is discarded.
#[derive(Debug, Clone, Copy)]
pub(super) struct DiscardLimits {
    pub(super) bytes: usize,
    pub(super) time: Duration,
}

/// Discards what arrives.
pub(super) struct Discard {
    timer: Pin<Box<Sleep>>,
    left: usize,
}

impl Discard {
    pub(super) fn new(limits: DiscardLimits) -> Self {
        Self { timer: Box::pin(sleep_until(Instant::now() + limits.time)), left: limits.bytes }
    }

    /// Ready once `is_enough` of what arrived, the client has ended its side, or a limit is reached.
    pub(super) fn poll<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        mut is_enough: impl FnMut(&[u8]) -> bool,
    ) -> Poll<()> {
        let mut discarded = [0; 8 * 1024];
        while self.timer.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut discarded);
            let read: io::Result<()> = ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer));
            let bytes = buffer.filled();
            self.left = self.left.saturating_sub(bytes.len());
            if read.is_err() || bytes.is_empty() || self.left == 0 || is_enough(bytes) {
                break;
            }
        }
        Poll::Ready(())
    }
}
