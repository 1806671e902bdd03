//! Why connections to the provider do not open now: for people who ask, and once for the log.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::answer::TransportError;
use crate::log_limiter::LogLimiter;

/// The same cause is logged again after this.
const REMIND: Duration = Duration::from_mins(10);

#[derive(Debug)]
pub(super) struct Trouble {
    state: Mutex<Causes>,
    /// At most one line a second, also where causes alternate.
    lines: LogLimiter,
}

#[derive(Debug, Default)]
struct Causes {
    now: Option<TransportError>,
    logged: Option<(TransportError, Instant)>,
}

impl Trouble {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default(), lines: LogLimiter::new(1) }
    }

    /// Why the last connection did not open; `None`: a call was answered since.
    pub(super) fn now(&self) -> Option<TransportError> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).now
    }

    /// A call was answered.
    pub(super) fn ended(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).now = None;
    }

    /// No connection was had for a call. `host`: whose.
    pub(super) fn met(&self, why: TransportError, host: &str) {
        if !why.is_of_connection() {
            return;
        }
        let is_new = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.now = Some(why);
            let logged = state.logged;
            let is_new = logged.is_none_or(|(of, at)| of != why || at.elapsed() >= REMIND)
                && self.lines.next().is_some();
            if is_new {
                state.logged = Some((why, Instant::now()));
            }
            is_new
        };
        if is_new {
            let (problem, remedy) = (why.explanation(), why.remedy());
            tracing::warn!(
                host,
                code = why.as_str(),
                problem,
                remedy,
                "no connection to the provider"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;
    use tracing::Level;

    use super::*;
    use crate::log_limiter::captured::capture;

    /// A thousand calls that fail alike are one line; each new cause is one more.
    #[tokio::test(start_paused = true)]
    async fn one_line_for_each_cause() {
        let (log, _guard) = capture(Level::INFO);
        let lines = || {
            let log = log.text();
            [TransportError::CertificateExpired, TransportError::Refused]
                .map(|why| log.matches(why.explanation()).count())
        };
        let trouble = Trouble::new();
        for _ in 0..1_000 {
            trouble.met(TransportError::CertificateExpired, "host");
        }
        assert_eq!((trouble.now(), lines()), (Some(TransportError::CertificateExpired), [1, 0]));
        // Neither is about the connection.
        trouble.met(TransportError::NoConnection, "host");
        trouble.met(TransportError::TooLate, "host");
        assert_eq!(trouble.now(), Some(TransportError::CertificateExpired));
        trouble.ended();
        assert_eq!(trouble.now(), None);
        trouble.met(TransportError::CertificateExpired, "host");
        assert_eq!(lines(), [1, 0], "it comes and goes");
        advance(Duration::from_secs(2)).await;
        trouble.met(TransportError::Refused, "host");
        assert_eq!(lines(), [1, 1]);
        advance(REMIND).await;
        trouble.met(TransportError::Refused, "host");
        assert_eq!(lines(), [1, 2]);
    }
}
