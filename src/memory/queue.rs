//! Bytes that are waited for, in the order of those who ask.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::budget::cost;

/// What one permit of the semaphore stands for, in bytes.
const UNIT: u64 = 1 << 10;

/// Bytes for the bodies of stored messages that are called for. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MemoryQueue {
    units: Arc<Semaphore>,
    max: u32,
}

/// Bytes in use; free again when dropped.
#[derive(Debug)]
pub struct MemoryTurn {
    _units: Option<OwnedSemaphorePermit>,
}

impl MemoryQueue {
    /// A queue for `max` bytes.
    pub fn new(max: u64) -> Self {
        let most = (Semaphore::MAX_PERMITS as u64).min(u32::MAX.into());
        let max = u32::try_from((max / UNIT).clamp(1, most)).unwrap_or(u32::MAX);
        Self { units: Arc::new(Semaphore::new(max as usize)), max }
    }

    /// Waits for the bytes that a message with a body of so many costs; one that is larger than all of them
    /// goes alone.
    pub async fn turn(&self, body: u64) -> MemoryTurn {
        let units = u32::try_from(cost(body).div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.max);
        // The semaphore is never closed.
        MemoryTurn { _units: Arc::clone(&self.units).acquire_many_owned(units).await.ok() }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn in_order_and_never_more_than_there_are() {
        let queue = MemoryQueue::new(2 * cost(1_000));
        let first = queue.turn(1_000).await;
        let (mut large, mut small) = (pin!(queue.turn(1 << 30)), pin!(queue.turn(0)));
        assert!(futures_poll(&mut large).await.is_none());
        // It would fit, and waits for the one before it.
        assert!(futures_poll(&mut small).await.is_none());
        drop(first);
        let alone = futures_poll(&mut large).await.unwrap();
        assert!(futures_poll(&mut small).await.is_none());
        drop(alone);
        assert!(futures_poll(&mut small).await.is_some());
    }

    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = std::future::ready(()) => None,
        }
    }
}
