//! A message whose delivery has begun.

use tokio::sync::oneshot;

use super::outcome::{Disposition, Outcome};

/// A message whose delivery has begun. Dropped, it loses the outcome, never the message.
#[derive(Debug)]
#[must_use = "the outcome is what the caller waits for"]
pub enum Begun {
    /// It ended at the door.
    Done(Outcome),
    /// A task carries it on, and sends the outcome.
    UnderWay(oneshot::Receiver<Outcome>),
}

impl Begun {
    /// What became of the message, at the latest when its caller's patience ends.
    pub async fn outcome(self) -> Outcome {
        match self {
            Self::Done(outcome) => outcome,
            // The task ends without an outcome only with the runtime, or by a bug of ours; a call may
            // have left by then.
            Self::UnderWay(outcome) => {
                outcome.await.unwrap_or_else(|_| Outcome::new(1, Disposition::Unanswered))
            }
        }
    }
}
