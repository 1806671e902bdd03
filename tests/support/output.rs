//! What a process says, read by a thread of its own: to the end, also where the test has ended before.
#![allow(
    clippy::disallowed_methods,
    reason = "it reads and waits on threads, whatever becomes of a test's time"
)]

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use tokio::sync::oneshot;

use super::http::BOUND;

/// One of a process's pipes.
pub struct Output {
    text: Arc<Mutex<String>>,
    /// The pipe stays open, and is not read.
    is_stalled: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    /// Closed when the thread ends.
    ended: Mutex<mpsc::Receiver<()>>,
}

impl Output {
    /// Reads it from now on. What `find` finds in the first line that has it is sent; an error means that no line has.
    pub fn find<T: Send + 'static>(
        pipe: OwnedFd,
        find: impl Fn(&str) -> Option<T> + Send + 'static,
    ) -> (Self, oneshot::Receiver<T>) {
        let (text, is_stalled) = (Arc::<Mutex<String>>::default(), Arc::<AtomicBool>::default());
        let (sender, found) = oneshot::channel();
        let mut sender = Some(sender);
        let (end, ended) = mpsc::channel();
        let (kept, stalled) = (Arc::clone(&text), Arc::clone(&is_stalled));
        let thread = thread::spawn(move || {
            let _end = end;
            let mut lines = BufReader::new(std::fs::File::from(pipe)).split(b'\n');
            loop {
                while stalled.load(Ordering::Relaxed) {
                    thread::park();
                }
                let Some(Ok(line)) = lines.next() else { return };
                let line = String::from_utf8_lossy(&line);
                // Before it is known to be found, it is in the text.
                kept.lock().unwrap().extend([&line, "\n"]);
                if sender.is_some()
                    && let Some(found) = find(&line)
                    && let Some(sender) = sender.take()
                {
                    drop(sender.send(found));
                }
            }
        });
        (Self { text, is_stalled, thread, ended: Mutex::new(ended) }, found)
    }

    pub fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// Reads no more until [`Self::rest`]; the pipe fills.
    pub fn stall(&self) {
        self.is_stalled.store(true, Ordering::Relaxed);
    }

    /// All of it, once its process has ended, or is about to. Blocks.
    pub fn rest(&self) -> String {
        self.is_stalled.store(false, Ordering::Relaxed);
        self.thread.thread().unpark();
        let ended = self.ended.lock().unwrap().recv_timeout(BOUND);
        assert_eq!(ended, Err(RecvTimeoutError::Disconnected), "it does not end:\n{}", self.text());
        self.text()
    }
}
