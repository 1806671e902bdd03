//! Arrivals: the ceilings, the blocked addresses, calls by second.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::report::{EmulatedSecond, WorstSecond};
use super::window::TrafficWindow;

/// Addresses followed by themselves; calls from further ones count in all only.
const MOST_SOURCES: usize = 4096;
/// An hour.
const MOST_SECONDS: usize = 3600;

/// The ceilings, in calls a sliding second. 0: none.
#[derive(Debug, Clone, Copy)]
pub(super) struct TrafficCeilings {
    pub(super) account: usize,
    pub(super) egress_ip: usize,
    pub(super) block_for: Option<Duration>,
}

/// What became of an arrival.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Goes on to be read.
    Passed,
    /// Its address is blocked, perhaps by this very call.
    Blocked,
    /// Over the account's ceiling; nanoseconds until there is room.
    OverAccount(u64),
}

#[derive(Debug, Default)]
struct SourceTraffic {
    window: TrafficWindow,
    block: Block,
}

#[derive(Debug, Default, Clone, Copy)]
enum Block {
    #[default]
    None,
    Until(u64),
    UntilLifted,
}

/// All that is known from arrivals alone.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    calls: u64,
    all: TrafficWindow,
    sources: HashMap<IpAddr, SourceTraffic>,
    seconds: VecDeque<EmulatedSecond>,
}

impl Traffic {
    /// Counts a call that arrived at `at` nanoseconds, in wall-clock second `second`.
    pub(super) fn arrive(
        &mut self,
        source: IpAddr,
        at: u64,
        second: i64,
        ceilings: TrafficCeilings,
    ) -> Arrival {
        self.calls += 1;
        self.second(second).calls += 1;
        let in_all = self.all.record(at);
        if self.from(source, at, ceilings) {
            return Arrival::Blocked;
        }
        if ceilings.account > 0 && in_all > ceilings.account {
            return Arrival::OverAccount(self.all.until_below(ceilings.account));
        }
        Arrival::Passed
    }

    /// Counts for the address, and says whether it is blocked.
    fn from(&mut self, source: IpAddr, at: u64, ceilings: TrafficCeilings) -> bool {
        if self.sources.len() >= MOST_SOURCES && !self.sources.contains_key(&source) {
            return false;
        }
        let source = self.sources.entry(source).or_default();
        let count = source.window.record(at);
        if let Block::Until(end) = source.block
            && at >= end
        {
            source.block = Block::None;
        }
        if matches!(source.block, Block::None)
            && ceilings.egress_ip > 0
            && count > ceilings.egress_ip
        {
            let end = ceilings.block_for.and_then(|lasts| u64::try_from(lasts.as_nanos()).ok());
            source.block =
                end.map_or(Block::UntilLifted, |lasts| Block::Until(at.saturating_add(lasts)));
        }
        !matches!(source.block, Block::None)
    }

    pub(super) fn accepted(&mut self, second: i64) {
        self.second(second).accepted += 1;
    }

    /// The books of a second. A clock that steps back counts on in the latest one.
    fn second(&mut self, second: i64) -> &mut EmulatedSecond {
        let latest = self.seconds.back().map_or(i64::MIN, |latest| latest.second);
        if second > latest || self.seconds.is_empty() {
            if self.seconds.len() >= MOST_SECONDS {
                self.seconds.pop_front();
            }
            self.seconds.push_back(EmulatedSecond { second, calls: 0, accepted: 0 });
        }
        let last = self.seconds.len() - 1;
        &mut self.seconds[last]
    }

    /// Lets every blocked address in again.
    pub(super) fn lift_blocks(&mut self) {
        for source in self.sources.values_mut() {
            source.block = Block::None;
        }
    }

    pub(super) fn calls(&self) -> u64 {
        self.calls
    }

    pub(super) fn worst_second(&self) -> WorstSecond {
        let by_source =
            self.sources.iter().map(|(ip, source)| (*ip, source.window.worst())).collect();
        WorstSecond { all: self.all.worst(), by_source }
    }

    pub(super) fn seconds(&self) -> Vec<EmulatedSecond> {
        self.seconds.iter().copied().collect()
    }

    pub(super) fn blocked(&self, now: u64) -> Vec<IpAddr> {
        let blocked = self.sources.iter().filter(|(_, source)| match source.block {
            Block::None => false,
            Block::Until(end) => now < end,
            Block::UntilLifted => true,
        });
        let mut blocked: Vec<_> = blocked.map(|(ip, _)| *ip).collect();
        blocked.sort_unstable();
        blocked
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
    const SECOND: u64 = 1_000_000_000;

    fn ceilings(account: usize, egress_ip: usize) -> TrafficCeilings {
        TrafficCeilings { account, egress_ip, block_for: None }
    }

    #[test]
    fn over_its_ceiling_an_address_is_blocked_for_good() {
        let (mut traffic, ceilings) = (Traffic::default(), ceilings(0, 2));
        let mut arrive = |ip, at| traffic.arrive(ip, at, 0, ceilings);
        assert_eq!(arrive(ONE, 0), Arrival::Passed);
        assert_eq!(arrive(ONE, 1), Arrival::Passed);
        assert_eq!(arrive(TWO, 2), Arrival::Passed);
        assert_eq!(arrive(ONE, 3), Arrival::Blocked);
        assert_eq!(arrive(ONE, 9 * SECOND), Arrival::Blocked, "quiet does not help");
        assert_eq!(arrive(TWO, 9 * SECOND), Arrival::Passed);
        assert_eq!(traffic.blocked(9 * SECOND), [ONE]);
        traffic.lift_blocks();
        assert_eq!(traffic.arrive(ONE, 10 * SECOND, 0, ceilings), Arrival::Passed);
    }

    #[test]
    fn a_block_may_end_by_itself() {
        let ceilings =
            TrafficCeilings { block_for: Some(Duration::from_secs(5)), ..ceilings(0, 1) };
        let mut traffic = Traffic::default();
        let mut arrive = |at| traffic.arrive(ONE, at, 0, ceilings);
        assert_eq!(arrive(0), Arrival::Passed);
        assert_eq!(arrive(1), Arrival::Blocked);
        assert_eq!(arrive(5 * SECOND), Arrival::Blocked);
        assert_eq!(arrive(5 * SECOND + 1), Arrival::Blocked, "two in its last second");
        assert_eq!(arrive(11 * SECOND), Arrival::Passed);
    }

    #[test]
    fn the_account_is_throttled_until_there_is_room() {
        let (mut traffic, ceilings) = (Traffic::default(), ceilings(2, 0));
        let mut arrive = |ip, at| traffic.arrive(ip, at, 0, ceilings);
        assert_eq!(arrive(ONE, 0), Arrival::Passed);
        assert_eq!(arrive(TWO, 100), Arrival::Passed);
        assert_eq!(arrive(TWO, 200), Arrival::OverAccount(SECOND - 100));
        assert_eq!(arrive(ONE, 2 * SECOND), Arrival::Passed);
    }

    #[test]
    fn seconds_are_an_hour_at_most() {
        let mut traffic = Traffic::default();
        for second in 0..5000 {
            traffic.arrive(ONE, 0, second, ceilings(0, 0));
        }
        traffic.arrive(ONE, 0, 12, ceilings(0, 0));
        let seconds = traffic.seconds();
        assert_eq!(seconds.len(), MOST_SECONDS);
        assert_eq!(seconds.last(), Some(&EmulatedSecond { second: 4999, calls: 2, accepted: 0 }));
    }
}
