//! What a simulated fleet is, what its callers want, and what happens to it.

pub(super) const MS: i64 = 1_000;
pub(super) const SECOND: i64 = 1_000_000;

/// Members from and to.
pub(super) type Who = (usize, usize);

#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// Redis does nothing, and then all that came meanwhile.
    Stopped,
    /// Redis is gone, and empty after.
    Killed,
    /// Its keys are gone at once.
    Flushed,
    /// A replica takes over that is as far behind as the trouble is long, up to 3 s, with a clock that
    /// is so much off the first one's.
    Failover { clock: i64 },
    /// Members and Redis do not hear each other; requests or answers on their way are lost.
    CutOff(Who),
    /// Members die and start again after the fault.
    Crashed(Who),
    /// Members stand still, and go on.
    Stood(Who),
    /// Members end in order, and start again after the fault.
    Left(Who),
    /// Calls freeze on their way to the provider, and then arrive at once.
    Frozen,
    /// The provider pushes back one call in twenty.
    PushedBack,
    /// The provider stands still, and then reads all that has arrived, also from connections that are
    /// closed.
    Stalled,
    /// So does one of the four backends behind its address.
    BackendStalled,
    /// One answer in ten is lost.
    AnswersLost,
    /// The ceiling of all regions is forgotten, a week after the last sidecar without a region.
    Expired,
}

#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub(super) fault: Fault,
    pub(super) from: i64,
    pub(super) to: i64,
}

/// How what callers want is divided.
#[derive(Debug, Clone, Copy)]
pub(super) enum Demand {
    Uniform,
    /// Each member has ten times as much for a tenth of the time, in turn.
    Bursty,
    /// One has nine tenths of it.
    OneHot,
    /// From nothing to twice as much at the end.
    Ramp,
}

/// Which members know their region, as those of an older version do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Regions {
    None,
    All,
    /// Each life of a member has it or not, as in an update and its way back.
    Some,
}

#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// Of the account; and perhaps of each egress group, among which members are divided.
    pub(super) figures: Vec<i64>,
    pub(super) groups: usize,
    pub(super) members: usize,
    /// What members take for their number: more of them is fewer core permits.
    pub(super) expected: usize,
    pub(super) regions: Regions,
    pub(super) demand: Demand,
    /// Calls a second that all want together.
    pub(super) wanted: i64,
    /// Whether the network is as it should be, and no call slow.
    pub(super) calm: bool,
    /// Whether the fleet began longer than a lease ago: else Redis is empty.
    pub(super) begun: bool,
    pub(super) troubles: Vec<Trouble>,
    pub(super) seed: u64,
    pub(super) until: i64,
}

/// What is assumed of what happens together. A provider that goes on does so for a second; a part of it
/// stands still alone; and of what a sidecar has sent that is gone or cut off, a Redis that forgets is told
/// nothing, which nothing can mend while the provider stands still.
pub(super) fn assumed(mut troubles: Vec<Trouble>) -> Vec<Trouble> {
    let stalls =
        |t: &Trouble| matches!(t.fault, Fault::Stalled | Fault::BackendStalled | Fault::Frozen);
    let forgets = |t: &Trouble| {
        matches!(t.fault, Fault::Killed | Fault::Flushed | Fault::Expired | Fault::Failover { .. })
    };
    let (mut end, mut stalled) = (i64::MIN, false);
    troubles.sort_by_key(|trouble| trouble.from);
    troubles.retain(|trouble| {
        let keep = !stalls(trouble) || trouble.from > end.saturating_add(SECOND);
        if keep && stalls(trouble) {
            (end, stalled) = (trouble.to, true);
        }
        keep
    });
    if stalled && troubles.iter().any(forgets) {
        use Fault::{Crashed, CutOff, Left, Stood};
        let silent = |t: &Trouble| matches!(t.fault, Crashed(_) | CutOff(_) | Stood(_) | Left(_));
        troubles.retain(|trouble| !silent(trouble));
    }
    troubles
}

impl Plan {
    /// Whether this life of a member knows its region.
    pub(super) fn knows_region(&self, member: usize, life: u64) -> bool {
        match self.regions {
            Regions::None => false,
            Regions::All => true,
            Regions::Some => {
                let life = self.seed ^ ((member as u64) << 32) ^ life;
                fastrand::Rng::with_seed(life).bool()
            }
        }
    }

    pub(super) fn group(&self, member: usize) -> usize {
        member % self.groups
    }

    /// Calls a second that this member's callers want.
    pub(super) fn rate(&self, member: usize, now: i64) -> f64 {
        let (all, members) = (self.wanted as f64, self.members as f64);
        match self.demand {
            Demand::Uniform => all / members,
            Demand::Bursty => {
                let turn = (now + i64::try_from(member).unwrap() * 370 * MS) % (4 * SECOND);
                if turn < 400 * MS { 10.0 * all / members } else { 0.0 }
            }
            Demand::OneHot if member == 0 => 0.9 * all,
            Demand::OneHot => 0.1 * all / (members - 1.0),
            Demand::Ramp => 2.0 * all / members * now as f64 / self.until as f64,
        }
    }
}
