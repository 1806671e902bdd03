//! A request, or a line of one, that is refused before anything is done for it.

use std::time::Duration;

use http::StatusCode;

use super::answered::Answered;
use crate::memory::NoMemory;
use crate::meter::Published;
use crate::server::{Problem, Slug};

/// `Retry-After` where there is no memory: messages in progress end soon.
const MEMORY_RETRY: Duration = Duration::from_secs(1);

/// What its caller is answered, and how it is counted.
pub(super) struct RefusedRequest {
    pub(super) published: Published,
    pub(super) problem: Box<Problem>,
}

impl RefusedRequest {
    pub(super) fn new(published: Published, problem: Problem) -> Self {
        Self { published, problem: Box::new(problem) }
    }

    pub(super) fn answered(self) -> Answered {
        Answered::problem(self.published, *self.problem)
    }
}

impl From<Problem> for RefusedRequest {
    fn from(problem: Problem) -> Self {
        Self::new(Published::Invalid, problem)
    }
}

impl From<NoMemory> for RefusedRequest {
    fn from(_: NoMemory) -> Self {
        let detail = "Messages in progress take all of the memory that they may (runtime.memory). Nothing was \
                      sent; send it again.";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let problem = invalid(status, Slug::MemoryFull, "No memory", detail.to_owned());
        Self::new(Published::Full, problem.retry_after(MEMORY_RETRY))
    }
}

pub(super) fn invalid(
    status: StatusCode,
    slug: Slug,
    title: &'static str,
    detail: String,
) -> Problem {
    Problem::new(status, slug, title, detail).outcome("not-sent")
}
