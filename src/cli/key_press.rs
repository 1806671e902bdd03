//! Enter, pressed in the terminal that a verb runs in.

use std::io::{self, IsTerminal, Read};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;
use tokio::sync::mpsc;

/// How often the thread looks whether it is wanted.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Receives one for each press. `None`: standard input is no terminal (a pipe, a file, closed): then it is never
/// read.
///
/// A thread of its own reads: a runtime would wait for the end of such a read at its own end.
pub(super) fn enter() -> Option<mpsc::Receiver<()>> {
    if !io::stdin().is_terminal() {
        return None;
    }
    let (to, presses) = mpsc::channel(1);
    let read = move || {
        while !to.is_closed() {
            match was_pressed() {
                // One that nothing waits for is lost.
                Ok(true) => drop(to.try_send(())),
                Ok(false) => {}
                // The terminal is gone.
                Err(_) => return,
            }
        }
    };
    thread::Builder::new().name("key-press".to_owned()).spawn(read).ok()?;
    Some(presses)
}

/// Waits for a moment. A process in the background reads nothing: the terminal would stop it.
fn was_pressed() -> io::Result<bool> {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    let is_ready = match poll(&mut fds, Some(&LOOK)) {
        Ok(ready) => ready > 0,
        Err(rustix::io::Errno::INTR) => false,
        Err(error) => return Err(error.into()),
    };
    if !is_ready {
        return Ok(false);
    }
    if tcgetpgrp(&stdin)? != getpgrp() {
        // There is a line for the shell: look again later, not at once.
        thread::park_timeout(std::time::Duration::from_millis(200));
        return Ok(false);
    }
    let mut line = [0; 1_024];
    match stdin.lock().read(&mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(true),
    }
}
