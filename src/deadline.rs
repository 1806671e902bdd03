//! Deadlines that a process which stood still does not miss.
//!
//! A suspended machine, a paused container or a starved node stops the process, not the world: when it
//! goes on, its timers have long fired, and the answers that it waited for lie in its sockets unread.
//! To give up at once would throw them away.

use std::pin::pin;
use std::time::Duration;

use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};

/// What it takes at most to read what has arrived meanwhile.
const CATCH_UP: Duration = Duration::from_secs(1);

/// The output of `future`, if it comes by `deadline`. Where the deadline is noticed late, the future
/// has as long again as it is late, at most a second, to return what it already has.
///
/// # Errors
/// [`Elapsed`], if it does not come.
pub async fn by<F: Future>(deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    if let Ok(output) = timeout_at(deadline, &mut future).await {
        return Ok(output);
    }
    // A timer that was only rounded up is a millisecond late.
    let late = Instant::now().saturating_duration_since(deadline);
    timeout(late.min(CATCH_UP), future).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may")]
mod tests {
    use tokio::sync::oneshot;
    use tokio::time::{advance, sleep};

    use super::*;

    /// The answer has arrived, but the task that reads it runs after the timer has fired.
    async fn noticed_after(late: Duration) -> Result<u8, Elapsed> {
        let deadline = Instant::now() + Duration::from_secs(3);
        let (to, answer) = oneshot::channel();
        let waiting = tokio::spawn(by(deadline, answer));
        tokio::task::yield_now().await;
        // Two turns: the timer is seen first.
        tokio::spawn(async move {
            sleep(Duration::from_secs(3)).await;
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            to.send(7).unwrap();
        });
        tokio::task::yield_now().await;
        advance(Duration::from_secs(3) + late).await;
        waiting.await.unwrap().map(Result::unwrap)
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_stood_still_reads_what_it_has() {
        assert_eq!(noticed_after(Duration::from_secs(5)).await.ok(), Some(7));
        assert_eq!(noticed_after(Duration::from_millis(20)).await.ok(), Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_is_kept_otherwise() {
        let begun = Instant::now();
        let never = std::future::pending::<()>();
        assert!(by(begun + Duration::from_secs(3), never).await.is_err());
        assert!(begun.elapsed() <= Duration::from_millis(3_003));
        // What was late before it began has no more time than it is late.
        let begun = Instant::now();
        assert!(by(begun - Duration::from_millis(10), std::future::pending::<()>()).await.is_err());
        assert!(begun.elapsed() <= Duration::from_millis(12));
    }

    #[tokio::test(start_paused = true)]
    async fn catching_up_is_bounded() {
        let deadline = Instant::now() + Duration::from_secs(1);
        let waiting = tokio::spawn(by(deadline, std::future::pending::<()>()));
        tokio::task::yield_now().await;
        advance(Duration::from_hours(1)).await;
        let noticed = Instant::now();
        assert!(waiting.await.unwrap().is_err());
        assert!(noticed.elapsed() <= Duration::from_millis(1_002));
    }
}
