//! The log of a test, to look at.

use std::io;
use std::sync::{Arc, LazyLock, Mutex};

use tracing::subscriber::{DefaultGuard, NoSubscriber};
use tracing::{Dispatch, Level};

/// What was logged since [`capture`]. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl CapturedLog {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// With two, `tracing` asks both whether a line is wanted. With one it asks that of the thread which comes to the
/// line first, and remembers the answer for all: a test that captures nothing would take the line from one that does.
static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::default()));

/// Captures what this thread logs up to a level, until the guard is dropped.
pub(crate) fn capture(level: Level) -> (CapturedLog, DefaultGuard) {
    LazyLock::force(&SECOND);
    let log = CapturedLog::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    (log, tracing::subscriber::set_default(subscriber))
}

#[test]
fn a_line_that_another_thread_came_to_first() {
    fn line() {
        tracing::info!("the line");
    }
    let (log, _guard) = capture(Level::INFO);
    std::thread::spawn(line).join().unwrap();
    line();
    assert!(log.text().contains("the line"), "{}", log.text());
}
