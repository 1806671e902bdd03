//! Readers that wait for a kept message to end. None of them looks again and again: the code that ends
//! a message wakes them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::message::MessageId;

/// Readers that wait at once, over all messages.
const MAX_READERS: usize = 1_024;

/// As many readers wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyReaders;

/// All readers that wait.
#[derive(Debug)]
pub(super) struct WaitingReaders {
    most: usize,
    readers: Mutex<Readers>,
}

#[derive(Debug, Default)]
struct Readers {
    /// By message, and by the order in which they came. A sender that is dropped wakes its reader.
    waiting: BTreeMap<(MessageId, u64), oneshot::Sender<()>>,
    come: u64,
    /// No more calls are made: no reader waits any more.
    is_dismissed: bool,
}

/// A reader that waits until this is dropped.
#[derive(Debug)]
pub(super) struct WaitingReader<'a> {
    readers: &'a WaitingReaders,
    place: (MessageId, u64),
    woken: oneshot::Receiver<()>,
}

impl WaitingReaders {
    /// At most half of so many connections have a reader that waits: the rest is left to those who publish.
    pub(super) fn of(connections: usize) -> Self {
        Self { most: MAX_READERS.min(connections / 2), readers: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits from now on: the end of the message after this is not missed.
    pub(super) fn join(&self, id: MessageId) -> Result<WaitingReader<'_>, TooManyReaders> {
        let mut readers = self.lock();
        if readers.waiting.len() >= self.most {
            return Err(TooManyReaders);
        }
        readers.come += 1;
        let place = (id, readers.come);
        let (wakes, woken) = oneshot::channel();
        if !readers.is_dismissed {
            readers.waiting.insert(place, wakes);
        }
        Ok(WaitingReader { readers: self, place, woken })
    }

    /// The message has ended: its readers go on.
    pub(super) fn ended(&self, id: MessageId) {
        let mut readers = self.lock();
        let of_it = readers.waiting.range((id, 0)..=(id, u64::MAX)).map(|(place, _)| *place);
        for place in of_it.collect::<Vec<_>>() {
            readers.waiting.remove(&place);
        }
    }

    /// No message ends any more: all readers go on.
    pub(super) fn dismiss(&self) {
        let mut readers = self.lock();
        readers.is_dismissed = true;
        readers.waiting.clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().waiting.len()
    }
}

impl WaitingReader<'_> {
    /// Until the message has ended, or no message will.
    pub(super) async fn woken(&mut self) {
        // The sender is dropped without a word.
        drop((&mut self.woken).await);
    }
}

impl Drop for WaitingReader<'_> {
    fn drop(&mut self) {
        self.readers.lock().waiting.remove(&self.place);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Whether a reader goes on at once.
    fn now(future: impl Future<Output = ()>) -> bool {
        pin!(future).poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn an_end_wakes_the_readers_of_its_message_only() {
        let readers = WaitingReaders::of(8);
        let (id, other) = (MessageId::new(), MessageId::new());
        let mut first = readers.join(id).unwrap();
        let mut second = readers.join(id).unwrap();
        let mut others = readers.join(other).unwrap();
        assert!(!now(first.woken()));
        readers.ended(id);
        assert!(now(first.woken()) && now(second.woken()));
        assert!(!now(others.woken()));
        // A message that is replayed is waited for anew.
        assert!(!now(readers.join(id).unwrap().woken()));
        readers.dismiss();
        assert!(now(others.woken()) && now(readers.join(id).unwrap().woken()));
    }

    #[test]
    fn readers_are_bounded_and_leave_no_trace() {
        assert_eq!(WaitingReaders::of(8_192).most, MAX_READERS);
        let readers = WaitingReaders::of(7);
        let id = MessageId::new();
        let all: Vec<_> = (0..3).map(|_| readers.join(id).unwrap()).collect();
        assert_eq!(readers.join(id).err(), Some(TooManyReaders));
        assert_eq!(readers.join(MessageId::new()).err(), Some(TooManyReaders));
        drop(all);
        assert_eq!(readers.len(), 0);
        let ended = readers.join(id).unwrap();
        readers.ended(id);
        assert_eq!(readers.len(), 0);
        drop(ended);
        assert!(readers.join(id).is_ok());
    }
}
