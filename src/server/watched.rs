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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::automatic::AutomaticAnswers;
use super::heads::RequestScanner;
use super::linger::Linger;
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
    automatic: AutomaticAnswers,
    /// What is still to be written of an answer that replaces one of hyper's own.
    replacement: Bytes,
    /// Whether the client has ended its side.
    ended: bool,
    linger: Option<Linger>,
}

impl<S> Watched<S> {
    pub(super) fn new(
        stream: S,
        phase: ConnectionPhase,
        timeouts: Timeouts,
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
            scanner: RequestScanner::new(automatic.framings.clone()),
            automatic,
            replacement: Bytes::new(),
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

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        if Pin::new(&mut this.stream).poll_read(cx, buffer).is_pending() {
            return this.poll_too_slow(cx);
        }
        let bytes = buffer.filled().get(before..).unwrap_or_default();
        this.scanner.advance(bytes);
        this.ended = bytes.is_empty();
        if !bytes.is_empty() {
            this.phase.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Watched<S> {
    fn poll_replacement(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
        this.linger.get_or_insert_with(Linger::new).poll(&mut this.stream, cx)
    }
}
