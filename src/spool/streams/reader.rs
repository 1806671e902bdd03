//! Reads bodies over a connection of its own: one reads for all who wait, as one writes for all.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::line::{Line, Place, Trouble};
use crate::message::MessageId;

/// Bodies of one answer: together far below what a connection may take its time for.
const ROUND: usize = 32;

/// A body, if there still is one.
type Read = Result<Option<Bytes>, Arc<str>>;

#[derive(Debug)]
pub(in crate::spool) struct Reader {
    place: Arc<Place>,
    queue: Mutex<Queue>,
    /// Only whoever reads takes this lock.
    line: Mutex<Option<Line>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<(MessageId, oneshot::Sender<Read>)>,
    /// Somebody reads.
    leading: bool,
}

/// Should reading ever panic, the next who comes leads.
struct Leading<'a>(&'a Reader);

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut queue = self.0.queue();
            queue.leading = false;
            queue.waiting.clear();
        }
    }
}

impl Reader {
    pub(super) fn new(place: Arc<Place>) -> Self {
        Self { place, queue: Mutex::default(), line: Mutex::default() }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of a message.
    pub(in crate::spool) async fn body(self: &Arc<Self>, id: MessageId, runtime: &Handle) -> Read {
        let (done, told) = oneshot::channel();
        if self.is_first(id, done) {
            let reader = Arc::clone(self);
            runtime.spawn_blocking(move || reader.lead());
        }
        told.await.unwrap_or_else(|_| Err("it was stopped".into()))
    }

    /// Whether nobody reads yet.
    fn is_first(&self, id: MessageId, done: oneshot::Sender<Read>) -> bool {
        let mut queue = self.queue();
        queue.waiting.push((id, done));
        !std::mem::replace(&mut queue.leading, true)
    }

    fn lead(&self) {
        let _leading = Leading(self);
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut queue = self.queue();
            let n = queue.waiting.len().min(ROUND);
            if n == 0 {
                queue.leading = false;
                return;
            }
            let round: Vec<_> = queue.waiting.drain(..n).collect();
            drop(queue);
            let had_line = line.is_some();
            let mut read = self.read(&mut line, round.iter().map(|(id, _)| *id));
            // A connection that has ended while nobody looked says nothing of Redis.
            if had_line && read.as_ref().is_err_and(Trouble::is_dropped) {
                *line = None;
                read = self.read(&mut line, round.iter().map(|(id, _)| *id));
            }
            let error: Arc<str> = match read {
                Ok(bodies) => {
                    for ((_, to), body) in round.into_iter().zip(bodies) {
                        // Whoever has gone away need not know.
                        drop(to.send(Ok(body.map(Bytes::from))));
                    }
                    continue;
                }
                Err(error) => error.to_string().into(),
            };
            *line = None;
            // Nobody waits for a second failure.
            let rest = std::mem::take(&mut self.queue().waiting);
            for (_, to) in round.into_iter().chain(rest) {
                drop(to.send(Err(Arc::clone(&error))));
            }
        }
    }

    fn read(
        &self,
        line: &mut Option<Line>,
        ids: impl Iterator<Item = MessageId>,
    ) -> Result<Vec<Option<Vec<u8>>>, Trouble> {
        let line = match line {
            Some(line) => line,
            None => line.insert(Line::open(&self.place)?),
        };
        line.ask(&self.place, false, |command| {
            command.arg("read").arg("").arg(0);
            for id in ids {
                command.arg(id.to_string());
            }
        })
    }
}
