//! The end of a connection whose client is still sending.
//!
//! A socket that is closed while bytes arrive is reset, and the reset takes the answer away that the
//! client has not read yet. So the end of our side is sent first, and what arrives is discarded for a
//! while.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// The most bytes that are discarded, and the time limit for that.
const MAX_BYTES: usize = 256 << 20;
const MAX_TIME: Duration = Duration::from_secs(5);

/// Discards what arrives until the client ends its side.
pub(super) struct Linger {
    timer: Pin<Box<Sleep>>,
    left: usize,
}

impl Linger {
    pub(super) fn new() -> Self {
        Self { timer: Box::pin(sleep_until(Instant::now() + MAX_TIME)), left: MAX_BYTES }
    }

    /// Ready once the client has ended its side, or a limit is reached.
    pub(super) fn poll<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut discarded = [0; 8 * 1024];
        while self.timer.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut discarded);
            let read = ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer));
            let bytes = buffer.filled().len();
            self.left = self.left.saturating_sub(bytes);
            if read.is_err() || bytes == 0 || self.left == 0 {
                break;
            }
        }
        // The answer is sent; how the client's side ends no longer matters.
        Poll::Ready(Ok(()))
    }
}
