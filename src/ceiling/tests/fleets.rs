//! Fleets in simulation: never over, whatever fails, and the ceiling is used.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use proptest::prelude::*;
use tokio::time::Instant;

use super::plan::{Demand, Fault, MS, Plan, Regions, SECOND, Trouble, assumed};
use super::simulation::{BEGIN, BOUNDS, Seen, run};
use super::words::{CYCLE, HOLD, TIMES, asked, reply, worst};
use crate::ceiling::Mode;
use crate::ceiling::exchange::LeaseReply;
use crate::ceiling::lease::Sent;
use crate::ceiling::leases::Leases;
use crate::ceiling::model::{self, Back, Gets, Kept};

fn never_over(plan: &Plan, seen: &Seen) -> Result<(), String> {
    let of = |arrivals: &[i64], figure: i64| {
        let worst = worst(arrivals);
        if worst <= usize::try_from(figure).unwrap() {
            Ok(())
        } else {
            Err(format!("{worst} of {figure}: {plan:?}"))
        }
    };
    of(&seen.arrivals, plan.figures[0])?;
    let groups = plan.figures.get(1).into_iter();
    groups.flat_map(|figure| seen.by_group.iter().map(|arrivals| of(arrivals, *figure))).collect()
}

/// Of the ceiling, in the seconds from and to.
fn used(plan: &Plan, seen: &Seen, from: i64, to: i64) -> f64 {
    let calls = seen.arrivals.iter().filter(|at| (from..to).contains(*at)).count();
    calls as f64 * SECOND as f64 / (to - from) as f64 / plan.figures[0] as f64
}

// === few, on an empty Redis ===

fn trouble() -> impl Strategy<Value = Trouble> {
    let who = || (0..4_usize).prop_map(|member| (member, member + 1));
    let fault = prop_oneof![
        Just(Fault::Stopped),
        Just(Fault::Killed),
        Just(Fault::Flushed),
        Just(Fault::Expired),
        // Two servers' clocks, each of them less than a second apart.
        (-490 * MS..490 * MS).prop_map(|clock| Fault::Failover { clock }),
        who().prop_map(Fault::CutOff),
        who().prop_map(Fault::Crashed),
        who().prop_map(Fault::Stood),
        who().prop_map(Fault::Left),
        Just(Fault::Frozen),
        Just(Fault::PushedBack),
        Just(Fault::Stalled),
        Just(Fault::BackendStalled),
        Just(Fault::AnswersLost),
    ];
    (fault, 30 * SECOND..65 * SECOND, 1..14_000_i64).prop_map(|(fault, from, ms)| {
        let long = match fault {
            Fault::Frozen => ms.min(2_500),
            // Longer than any lease.
            Fault::CutOff(_) | Fault::Stood(_) | Fault::Stalled => ms * 3,
            Fault::BackendStalled => ms.min(10_000),
            _ => ms,
        };
        Trouble { fault, from, to: from + long * MS }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 8, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn a_fleet_is_never_over(
        n in prop::sample::select(vec![1_i64, 7, 100, 300, 1_000]),
        egress in any::<bool>(),
        groups in 1..3_usize,
        members in 1..5_usize,
        expected in 1..12_usize,
        troubles in prop::collection::vec(trouble(), 0..5),
        seed in any::<u64>(),
    ) {
        let figures = if egress { vec![n, (n * 2 / 3).max(1)] } else { vec![n] };
        let troubles = assumed(troubles);
        let plan = Plan {
            figures,
            groups,
            members,
            expected,
            regions: Regions::None,
            demand: Demand::Uniform,
            wanted: 3 * n,
            calm: false,
            begun: false,
            troubles,
            seed,
            until: 90 * SECOND,
        };
        let seen = run(&plan);
        prop_assert_eq!(never_over(&plan, &seen), Ok(()));
    }
}

// === with and without a region ===

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 8, ..ProptestConfig::with_cases(64) })]

    /// An update to a version that knows regions, and its way back, at any time and with any fault.
    #[test]
    fn a_fleet_is_never_over_in_an_update(
        n in prop::sample::select(vec![1_i64, 7, 100, 300]),
        egress in any::<bool>(),
        members in 1..6_usize,
        all in any::<bool>(),
        begun in any::<bool>(),
        restarts in prop::collection::vec((0..6_usize, any::<bool>(), 5 * SECOND..80 * SECOND, 1..5_000_i64), 1..8),
        troubles in prop::collection::vec(trouble(), 0..3),
        seed in any::<u64>(),
    ) {
        let restarts = restarts.into_iter().map(|(member, ordered, from, ms)| {
            let who = (member, member + 1);
            let fault = if ordered { Fault::Left(who) } else { Fault::Crashed(who) };
            Trouble { fault, from, to: from + ms * MS }
        });
        // A change of the ceiling forgets as a new server does, at times that are not known here.
        let stands = |fault| matches!(fault, Fault::Stalled | Fault::BackendStalled | Fault::Frozen);
        let troubles = troubles.into_iter().filter(|trouble| !stands(trouble.fault));
        let plan = Plan {
            figures: if egress { vec![n, (n * 2 / 3).max(1)] } else { vec![n] },
            groups: 1,
            members,
            expected: members,
            regions: if all { Regions::All } else { Regions::Some },
            demand: Demand::Uniform,
            wanted: 3 * n,
            calm: false,
            begun,
            troubles: troubles.chain(restarts).collect(),
            seed,
            until: 110 * SECOND,
        };
        let seen = run(&plan);
        prop_assert_eq!(never_over(&plan, &seen), Ok(()));
    }
}

/// A week after the last sidecar without a region the others move to the ceiling of their own.
#[test]
fn the_ceiling_of_all_regions_is_left() {
    let expired = Trouble { fault: Fault::Expired, from: 20 * SECOND, to: 21 * SECOND };
    let plan = Plan {
        figures: vec![300],
        wanted: 900,
        regions: Regions::All,
        troubles: vec![expired],
        until: 70 * SECOND,
        ..many(4, Demand::Uniform, 7)
    };
    let seen = run(&plan);
    assert_eq!(never_over(&plan, &seen), Ok(()));
    for (from, to) in [(10, 20), (60, 70)] {
        let of_use = used(&plan, &seen, from * SECOND, to * SECOND);
        assert!(of_use >= 0.9, "{of_use:.4} from {from} s");
    }
}

// === many ===

const DEMANDS: [Demand; 4] = [Demand::Uniform, Demand::Bursty, Demand::OneHot, Demand::Ramp];

fn many(members: usize, demand: Demand, seed: u64) -> Plan {
    Plan {
        figures: vec![1_000],
        groups: 1,
        members,
        expected: members,
        regions: Regions::None,
        demand,
        wanted: 3_000,
        calm: true,
        begun: true,
        troubles: Vec::new(),
        seed,
        until: 40 * SECOND,
    }
}

/// Each fault, of a fifth of the members where it is theirs.
fn faults(members: usize, rng: &mut Rng) -> [Fault; 13] {
    let mut who = || {
        let from = rng.usize(..members * 4 / 5);
        (from, from + members / 5)
    };
    [
        Fault::CutOff(who()),
        Fault::Crashed(who()),
        Fault::Stood(who()),
        Fault::Left(who()),
        Fault::Stopped,
        Fault::Killed,
        Fault::Flushed,
        Fault::Failover { clock: rng.i64(-490 * MS..490 * MS) },
        Fault::Frozen,
        Fault::PushedBack,
        Fault::Stalled,
        Fault::BackendStalled,
        Fault::AnswersLost,
    ]
}

/// Runs all of these plans on all cores.
fn each(plans: &[Plan], check: impl Fn(&Plan, &Seen) + Sync) {
    let next = AtomicU64::new(0);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(plan) =
                    plans.get(usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap())
                {
                    check(plan, &run(plan));
                }
            });
        }
    });
}

/// Plans with each fault and each demand.
const ALL_KINDS: u64 = 13 * 4;

/// Each fault with each demand, with 100 sidecars or 1,000 in turn, and a second fault of any kind beside each.
/// `TOLLGATE_SEEDS` (`make soak`) has both sizes of each, and more of them.
#[test]
fn many_sidecars_are_never_over() {
    let mut plans = Vec::new();
    let seeds = std::env::var("TOLLGATE_SEEDS").map_or(ALL_KINDS, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        let mut rng = Rng::with_seed(seed);
        let kind = usize::try_from(seed).unwrap();
        let (demand, fault, again) = (kind % 4, kind / 4 % 13, kind / 52);
        // The other size with the next fifty-two.
        let members = if (demand + fault + again).is_multiple_of(2) { 1_000 } else { 100 };
        let mut plan = many(members, DEMANDS[demand], seed);
        let first = faults(members, &mut rng)[fault];
        let second = faults(members, &mut rng)[rng.usize(..13)];
        plan.calm = rng.bool();
        plan.expected = members * rng.usize(1..20) / 10 + 1;
        if rng.bool() {
            plan.groups = rng.usize(2..6);
            plan.figures.push(300);
        }
        let troubles = [first, second]
            .map(|fault| {
                let from = rng.i64(2 * SECOND..25 * SECOND);
                let long = match fault {
                    Fault::Frozen => 2_500,
                    Fault::BackendStalled => 10_000,
                    _ => 14_000,
                };
                Trouble { fault, from, to: from + rng.i64(1..long) * MS }
            })
            .to_vec();
        plan.troubles = assumed(troubles);
        plans.push(plan);
    }
    each(&plans, |plan, seen| {
        assert_eq!(never_over(plan, seen), Ok(()));
        assert!(seen.arrivals.len() > 2_000, "{}: {plan:?}", seen.arrivals.len());
    });
}

#[test]
fn many_sidecars_use_the_ceiling() {
    let mut plans = Vec::new();
    for members in [100, 1_000] {
        plans.extend(DEMANDS.map(|demand| many(members, demand, 7)));
    }
    each(&plans, |plan, seen| {
        assert_eq!(never_over(plan, seen), Ok(()));
        let of_use = used(plan, seen, 20 * SECOND, 40 * SECOND);
        println!("{} sidecars, {:?}: {of_use:.4}", plan.members, plan.demand);
        assert!(of_use >= 0.97, "{of_use:.4} of the ceiling: {plan:?}");
    });
}

#[test]
fn a_fleet_uses_its_ceiling() {
    for n in [7_i64, 300, 1_000] {
        let few =
            Plan { figures: vec![n], wanted: 3 * n, begun: false, ..many(4, Demand::Uniform, 7) };
        let plan = Plan { calm: false, until: 60 * SECOND, ..few };
        let seen = run(&plan);
        assert_eq!(never_over(&plan, &seen), Ok(()));
        // One call in 200 takes 1.5 s: less than all can be used.
        let of_use = used(&plan, &seen, 40 * SECOND, 60 * SECOND);
        assert!(of_use >= 0.9, "{of_use:.4} of {n}");
    }
}

/// To a server that takes over with a clock that is behind, a lease that has ended, and whose permit
/// went to somebody else, seems to live: what is left of it must be more than that.
#[test]
fn a_claim_needs_a_lease_that_lasts() {
    let ask = |want, back| model::Ask { figures: vec![1], want, back, ..TIMES };
    let mut redis = model::at_rest(&[1], "first", BEGIN);
    let gets = model::serve(&mut redis, &ask(1, Vec::new()), "first", BEGIN);
    let nonce = gets.out[0].nonce;
    let till = nonce - HOLD + CYCLE;
    for (left, counts) in [(SECOND, false), (SECOND + 1, true)] {
        let mut next = redis.clone();
        let now = till - left;
        let back = Back { ids: vec![0], nonce, free_in: 0 };
        model::serve(&mut next, &ask(0, vec![back]), "second", now);
        assert_eq!(next[0].permits[0] == now, counts);
    }
}

// === alone with Redis ===

/// A sidecar whose round trip to Redis is short, and what it asked in a second for so many callers.
fn asks(n: u32, mut waiting: usize) -> usize {
    let mut redis = model::at_rest(&[i64::from(n)], "first", BEGIN);
    let base = Instant::now();
    let mut leases = Leases::new(vec![n], Duration::from_secs(3), BOUNDS, 1, base);
    let mut requests = 0;
    for now in (0..SECOND).step_by(200) {
        let at = base + Duration::from_micros(now.unsigned_abs());
        while waiting > 0 && leases.take(at).is_some() {
            waiting -= 1;
            // None of them ends here; the provider answers others.
            leases.answered_call(at);
        }
        if let Some(ask) = leases.ask(at, waiting, None) {
            requests += 1;
            leases
                .answered(reply(model::serve(&mut redis, &asked(&ask), "first", BEGIN + now)), at);
        }
    }
    assert_eq!(waiting, 0, "of {n}");
    requests
}

#[test]
fn what_the_pace_holds_back_is_asked_for_when_it_is_time() {
    for (n, waiting) in [(7, 7), (300, 200), (1_000, 600)] {
        let requests = asks(n, waiting);
        assert!(requests < 40, "{requests} requests for {waiting} permits of {n}");
    }
}

#[test]
fn a_permit_that_goes_back_brings_no_turn_forward() {
    let base = Instant::now();
    let mut leases = Leases::new(vec![7], Duration::from_secs(3), BOUNDS, 1, base);
    let mut answered = |after, out, ask_in| {
        let at = base + Duration::from_millis(after);
        let ask = leases.ask(at, 3, None).map(|ask| (ask.want, ask.back.len()));
        let figures = vec![7];
        leases.answered(
            LeaseReply { ask_in, figures, out, contended: true, ..LeaseReply::default() },
            at,
        );
        let lease = leases.take(at);
        if let Some(lease) = lease {
            leases.ended(lease, Sent::Yes, 0, at);
        }
        ask
    };
    let given =
        Gets { out: vec![model::Out { ids: vec![0], nonce: NONCE, ready_in: 0 }], ..gets(7) };
    assert_eq!(answered(0, reply(given).out, 1_000_000), Some((3, 0)));
    assert_eq!(answered(500, Vec::new(), 0), Some((0, 1)));
    assert_eq!(answered(600, Vec::new(), 0), None);
    assert_eq!(answered(1_000, Vec::new(), 0), Some((3, 0)));
}

#[test]
fn who_is_cut_off_is_closed_when_its_leases_have_ended() {
    let base = Instant::now();
    let mut leases = Leases::new(vec![7], Duration::from_secs(3), BOUNDS, 7, base);
    leases.ask(base, 2, None).unwrap();
    let out = (0..2).map(|id| model::Out { ids: vec![id], nonce: NONCE, ready_in: 0 });
    let given = reply(Gets { out: out.collect(), ..gets(7) });
    leases.answered(LeaseReply { now: 0, warm_up: 0, ..given }, base);
    let mut mode = |after| {
        let at = base + Duration::from_millis(after);
        leases.lost(at);
        (leases.mode(at), leases.held())
    };
    assert_eq!(mode(100), (Mode::CutOff, 2));
    // A call, its cooling and the slack of clocks before the leases' end: about 4.1 s.
    assert_eq!(mode(5_800), (Mode::CutOff, 2));
    assert_eq!(mode(5_900), (Mode::Closed, 0));
}

/// Of a lease of ten seconds from zero.
const NONCE: i64 = 10 * SECOND - CYCLE + HOLD;

fn gets(figure: i64) -> Gets {
    let ask = model::Ask { figures: vec![figure], ..TIMES };
    model::serve(&mut Vec::new(), &ask, "first", BEGIN)
}

/// Two groups under one account. All permits of one cool; the other waits for nothing.
#[test]
fn a_group_that_is_used_up_holds_back_nobody_else() {
    let mut at_rest = model::at_rest(&[1_000, 300], "first", BEGIN);
    let (group, mut account) = (at_rest.remove(1), at_rest.remove(0));
    let mut groups = [group.clone(), group];
    let mut asks = |group: usize, now: i64, want, back| {
        let group: &mut Kept = &mut groups[group];
        let mut kept = vec![std::mem::take(&mut account), std::mem::take(group)];
        let ask = model::Ask { figures: vec![1_000, 300], want, back, ..TIMES };
        let gets = model::serve(&mut kept, &ask, "first", BEGIN + now);
        *group = kept.remove(1);
        account = kept.remove(0);
        gets
    };
    let mut taken = Vec::new();
    for now in (0..).step_by(10_000).take_while(|now| *now < 2 * SECOND) {
        taken.extend(asks(0, now, 5, Vec::new()).out);
    }
    assert_eq!(taken.len(), 300);
    let back = |out: model::Out| Back { ids: out.ids, nonce: out.nonce, free_in: 400 * MS };
    let back = taken.into_iter().map(back).collect();
    let used_up = asks(0, 2 * SECOND, 64, back);
    assert!(used_up.out[0].ready_in >= 400 * MS && used_up.short == 1, "{used_up:?}");
    let other = asks(1, 2 * SECOND, 1, Vec::new());
    assert_eq!((other.out[0].ready_in, other.short), (0, 0));
}
