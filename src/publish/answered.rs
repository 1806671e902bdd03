//! What became of one request to publish: its reply, and what is counted and logged.

use std::borrow::Cow;

use crate::meter::Published;
use crate::server::{Problem, Reply};

/// A reply, and what is counted and logged of it.
pub(super) struct Answered {
    pub(super) reply: Reply,
    pub(super) published: Published,
    /// `None`: there is nothing to log, since the message was delivered or kept.
    pub(super) failure: Option<NotDelivered>,
}

/// The log line of a message that was not delivered.
pub(super) struct NotDelivered {
    pub(super) status: u16,
    pub(super) problem: Cow<'static, str>,
    pub(super) calls: u32,
    pub(super) code: Option<String>,
    pub(super) upstream_request_id: Option<Box<str>>,
}

impl Answered {
    pub(super) fn problem(published: Published, problem: Problem) -> Self {
        let failure = NotDelivered {
            status: problem.status(),
            problem: problem.slug().as_str().into(),
            calls: 0,
            code: None,
            upstream_request_id: None,
        };
        Self { published, failure: Some(failure), reply: problem.into_response() }
    }

    /// Sets how many calls were made, for the log.
    pub(super) fn with_calls(mut self, calls: u32) -> Self {
        if let Some(failure) = &mut self.failure {
            failure.calls = calls;
        }
        self
    }
}
