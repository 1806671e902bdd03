//! What a sidecar asks of Redis, and what Redis replies.

use std::time::Duration;

use super::unanswered::Bounds;
use super::window::WINDOW;

/// For two clocks that run at different speeds, over the length of a lease.
const SLACK: Duration = Duration::from_millis(100);

/// What to ask Redis.
#[derive(Debug, Default)]
pub(super) struct Ask {
    pub(super) figures: Vec<u32>,
    pub(super) want: usize,
    /// How many of them are to be core.
    pub(super) core: usize,
    pub(super) park: bool,
    /// When the latest call that was answered had been sent, at the earliest.
    pub(super) answered: Option<u64>,
    pub(super) times: Times,
    pub(super) back: Vec<Back>,
}

/// What Redis has to know of calls here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Times {
    /// From the beginning of a call with an answer to when its permit has cooled, at most; and
    /// [`SLACK`]. So long before its end a lease begins no more calls.
    pub(super) cycle: Duration,
    /// How long a call without an answer counts at least.
    pub(super) min: Duration,
    /// How long one counts at most, and cools.
    pub(super) hold: Duration,
}

impl Times {
    pub(super) fn new(call_timeout: Duration, bounds: Bounds) -> Self {
        let cycle = call_timeout + WINDOW + SLACK;
        // A call may be in flight for a cycle after its lease has begun its last one.
        Self { cycle, min: bounds.min.max(cycle), hold: bounds.max.max(cycle) + WINDOW }
    }
}

/// A lease that ends before its time.
#[derive(Debug)]
pub(super) struct Back {
    pub(super) ids: Vec<u32>,
    pub(super) nonce: u64,
    /// When its permits have cooled, from the asking. [`Times::hold`]: its call had no answer.
    pub(super) free_in: Duration,
}

/// What Redis says. Its moments are microseconds of its own clock.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) now: u64,
    pub(super) learn_in: u64,
    /// Whether somebody got less than was wanted, a moment ago.
    pub(super) short: bool,
    pub(super) ask_in: u64,
    pub(super) figures: Vec<u32>,
    pub(super) parked: usize,
    /// How many of them are still at work.
    pub(super) owed: usize,
    pub(super) out: Vec<Given>,
}

#[derive(Debug)]
pub(super) struct Given {
    pub(super) ids: Vec<u32>,
    pub(super) nonce: u64,
    pub(super) ready_in: u64,
}
