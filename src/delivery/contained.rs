//! Panics: a bug of ours costs its message time, and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;

/// A future has panicked. The panic hook has printed where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Panicked;

/// The output of `future`, unless it panics. What it holds has been dropped by then.
pub(super) fn contained<F: Future>(future: F) -> impl Future<Output = Result<F::Output, Panicked>> {
    // On the heap: each task that may keep a message would move this with itself, and few do keep one.
    let mut future = Box::pin(future);
    // A future that has panicked is not polled again, and every lock of what it shares ignores poison.
    std::future::poll_fn(move |context| {
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(polled) => polled.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
}
