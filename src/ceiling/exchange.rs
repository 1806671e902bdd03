//! What a sidecar asks of Redis, and what Redis replies.

use std::time::Duration;

use super::unanswered::Bounds;
use super::window::WINDOW;

/// For two clocks that run at different speeds, over the length of a lease.
const SLACK: Duration = Duration::from_millis(100);

/// What to ask Redis.
#[derive(Debug, Default)]
pub(super) struct LeaseRequest {
    pub(super) figures: Vec<u32>,
    pub(super) want: usize,
    /// How many of them are to be long-lived.
    pub(super) long_lived: usize,
    pub(super) push_back: bool,
    /// When the latest call that was answered had been sent, at the earliest.
    pub(super) answered: Option<u64>,
    pub(super) times: CallTimes,
    pub(super) back: Vec<ReturnedLease>,
}

/// What Redis has to know of calls here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CallTimes {
    /// From the beginning of a call with an answer to when its permit has cooled, at most; and
    /// [`SLACK`]. So long before its end a lease begins no more calls.
    pub(super) cycle: Duration,
    /// How long a call without an answer counts at least.
    pub(super) min: Duration,
    /// How long one counts at most, and cools.
    pub(super) hold: Duration,
}

impl CallTimes {
    pub(super) fn new(call_timeout: Duration, bounds: Bounds) -> Self {
        let cycle = call_timeout + WINDOW + SLACK;
        // A call may be in flight for a cycle after its lease has begun its last one.
        Self { cycle, min: bounds.min.max(cycle), hold: bounds.max.max(cycle) + WINDOW }
    }
}

/// A lease that ends before its time.
#[derive(Debug)]
pub(super) struct ReturnedLease {
    pub(super) ids: Vec<u32>,
    pub(super) nonce: u64,
    /// When its permits have cooled, from the asking. [`CallTimes::hold`]: its call had no answer.
    pub(super) free_in: Duration,
}

/// Whose calls the account's shared ceiling counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    /// Those to this sidecar's region, as the provider does; to all, if it knows no region.
    #[default]
    Own,
    /// Those to all regions, though this sidecar knows its own: now or within the last week another
    /// sidecar of the account did not.
    AllRegions,
}

/// What Redis says. Its moments are microseconds of its own clock.
#[derive(Debug, Default)]
pub(super) struct LeaseReply {
    pub(super) now: u64,
    pub(super) warm_up: u64,
    /// Whether a sidecar of the fleet got less than it wanted a moment ago.
    pub(super) contended: bool,
    pub(super) ask_in: u64,
    pub(super) figures: Vec<u32>,
    pub(super) withheld: usize,
    /// How many of them are still at work.
    pub(super) debt: usize,
    pub(super) scope: Scope,
    pub(super) out: Vec<GrantedLease>,
}

#[derive(Debug)]
pub(super) struct GrantedLease {
    pub(super) ids: Vec<u32>,
    pub(super) nonce: u64,
    pub(super) ready_in: u64,
}
