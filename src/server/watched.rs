//! A connection that ends when its client is too slow, and that does not take the last answer away from
//! a client that is still sending.
//!
//! hyper has one timer for an idle connection and a slow request head together. A caller's idle
//! keep-alive connection should live for minutes and a head should take seconds, so the two are
//! distinguished here, where bytes pass.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::automatic::AutomaticAnswers;
use super::discard::{AFTER_OUR_END, BEFORE_AN_ANSWER, Discard};
use super::heads::RequestScanner;
use super::query_taker::QueryTaker;
use super::slots::{ConnectionPhase, Timed};

/// How long a slow client may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// Without a request; also for an answer that is not read.
    pub(super) idle: Duration,
    /// From a head's first byte to its last.
    pub(super) head: Duration,
}

pub(super) struct Watched<S> {
    stream: S,
    phase: ConnectionPhase,
    timeouts: Timeouts,
    /// What the read timer was set for.
    timed: Timed,
    read_timer: Pin<Box<Sleep>>,
    /// Set while the client does not take what we write.
    write_timer: Option<Pin<Box<Sleep>>>,
    scanner: RequestScanner,
    /// Where queries are taken out of request lines.
    taker: Option<QueryTaker>,
    automatic: AutomaticAnswers,
    /// What is still to be written of an answer that replaces one of hyper's own.
    replacement: Bytes,
    /// Set while the rest of a request comes that has such an answer.
    rest: Option<Discard>,
    /// Whether there was such an answer.
    replaced: bool,
    /// Whether the client has ended its side.
    ended: bool,
    /// Set once our side has ended.
    linger: Option<Discard>,
}

impl<S> Watched<S> {
    pub(super) fn new(
        stream: S,
        phase: ConnectionPhase,
        timeouts: Timeouts,
        taker: Option<QueryTaker>,
        automatic: AutomaticAnswers,
    ) -> Self {
        let read_timer = Box::pin(sleep_until(Instant::now() + timeouts.idle));
        Self {
            stream,
            phase,
            timeouts,
            timed: Timed::Idle,
            read_timer,
            write_timer: None,
            scanner: RequestScanner::new(automatic.hidden.clone()),
            taker,
            automatic,
            replacement: Bytes::new(),
            rest: None,
            replaced: false,
            ended: false,
            linger: None,
        }
    }

    fn poll_too_slow(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let timed = self.phase.timed();
        if timed != self.timed {
            self.timed = timed;
            let is_head = timed == Timed::Head;
            let timeout = if is_head { self.timeouts.head } else { self.timeouts.idle };
            self.read_timer.as_mut().reset(Instant::now() + timeout);
        }
        if timed == Timed::Busy {
            return Poll::Pending;
        }
        ready!(self.read_timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    /// Passes a write's result on, and ends the connection if there is none for too long.
    fn watch_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.write_timer = None;
            return written;
        }
        let until = Instant::now() + self.timeouts.idle;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    /// Ends a connection that hyper has dropped after an answer of its own.
    pub(super) async fn finish(mut self) {
        if self.replaced {
            // However it ends: there is no other answer.
            drop(self.shutdown().await);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        loop {
            if Pin::new(&mut this.stream).poll_read(cx, buffer).is_pending() {
                return this.poll_too_slow(cx);
            }
            let bytes = buffer.filled_mut().get_mut(before..).unwrap_or_default();
            this.ended = bytes.is_empty();
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            this.phase.received();
            let Some(taker) = &mut this.taker else {
                this.scanner.advance(bytes);
                return Poll::Ready(Ok(()));
            };
            let kept = taker.advance(&mut this.scanner, bytes);
            buffer.set_filled(before + kept);
            if taker.is_flooded() {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            // Nothing at all would be the end.
            if kept > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Watched<S> {
    fn poll_replacement(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(rest) = &mut self.rest {
            let scanner = &mut self.scanner;
            ready!(rest.poll(&mut self.stream, cx, |bytes| {
                scanner.advance(bytes);
                scanner.is_settled()
            }));
            self.rest = None;
        }
        while !self.replacement.is_empty() {
            let written = Pin::new(&mut self.stream).poll_write(cx, &self.replacement);
            let written = ready!(self.watch_write(cx, written))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.replacement.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Replaces these bytes, if they are an answer of hyper's own.
    fn replaces(&mut self, bytes: &[u8]) -> bool {
        let Some(answer) = self.automatic.explained(bytes) else { return false };
        self.replacement = answer.into();
        let comes = !self.ended && !self.scanner.is_settled();
        self.rest = comes.then(|| Discard::new(BEFORE_AN_ANSWER));
        self.replaced = true;
        self.scanner.serve_no_more();
        true
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_replacement(cx))?;
        if self.replaces(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch_write(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_replacement(cx))?;
        if let [only] = bytes
            && self.replaces(only)
        {
            return Poll::Ready(Ok(only.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.watch_write(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_replacement(cx))?;
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        let flushed = self.watch_write(cx, flushed);
        // hyper flushes once it has written all that it has.
        if matches!(flushed, Poll::Ready(Ok(()))) {
            let is_between = self.scanner.is_between_requests();
            self.phase.flushed(if is_between { Timed::Idle } else { Timed::Head });
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(this.poll_replacement(cx))?;
            let shut = Pin::new(&mut this.stream).poll_shutdown(cx);
            ready!(this.watch_write(cx, shut))?;
            if this.ended || this.scanner.is_between_requests() {
                return Poll::Ready(Ok(()));
            }
            this.phase.lingers();
        }
        let linger = this.linger.get_or_insert_with(|| Discard::new(AFTER_OUR_END));
        ready!(linger.poll(&mut this.stream, cx, |_| false));
        // The answer is sent; how the client's side ends no longer matters.
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::time::timeout;

    use super::*;
    use crate::server::heads::HiddenParts;
    use crate::server::peer::Peer;
    use crate::server::slots::{ConnectionSlots, PeerShare};

    const TOO_LARGE: &[u8] =
        b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    const HALF: &[u8] = b"POST /publish/TopicA HTTP/1.1\r\ncontent-length: 9\r\nx: ";

    /// Sends these parts a while apart, and reads what comes at each; then reads to the end.
    async fn answers(parts: &[&[u8]]) -> Vec<String> {
        let slots = ConnectionSlots::new("test", 1, PeerShare::All);
        let slot = slots.take(Peer::Local).await.unwrap();
        let timeouts = Timeouts { idle: Duration::from_mins(1), head: Duration::from_secs(10) };
        let hidden = HiddenParts::default();
        let automatic = AutomaticAnswers { hidden, max_header: 16 << 10, max_lines: 64 };
        let (mut client, ours) = tokio::io::duplex(1 << 20);
        let mut watched = Watched::new(ours, slot.phase(), timeouts, None, automatic);
        client.write_all(parts[0]).await.unwrap();
        watched.read_exact(&mut vec![0; parts[0].len()]).await.unwrap();
        // What hyper does with a head that it does not take.
        let answering = tokio::spawn(async move {
            watched.write_all(TOO_LARGE).await.unwrap();
            drop(timeout(Duration::ZERO, watched.flush()).await);
            watched.finish().await;
        });
        let mut all = Vec::new();
        for part in &parts[1..] {
            let mut read = [0; 4_096];
            let read = timeout(Duration::from_millis(300), client.read(&mut read)).await;
            all.push(read.map_or_else(|_| "nothing".to_owned(), |read| format!("{read:?}")));
            client.write_all(part).await.unwrap();
        }
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        all.push(rest.lines().next().unwrap_or_default().to_owned());
        drop(client);
        answering.await.unwrap();
        all
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_a_head_waits_for_the_rest_of_its_request() {
        let line = "HTTP/1.1 431 Request Header Fields Too Large";
        assert_eq!(
            answers(&[HALF, b"y\r\n\r\nbo", b"dy is 9"]).await,
            ["nothing", "nothing", line]
        );
        assert_eq!(answers(&[&[HALF, b"y\r\n\r\nbody is 9"].concat()]).await, [line]);
        // Of a request that does not end, for no longer than a second.
        let begun = Instant::now();
        assert_eq!(answers(&[HALF]).await, [line]);
        assert!(begun.elapsed() < Duration::from_millis(1_100));
    }
}
