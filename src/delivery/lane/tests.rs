use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::answer::Codes;

fn retry() -> Retry {
    Retry {
        batch: 100,
        base: Duration::from_millis(200),
        cap: Duration::from_secs(30),
        max_age: Duration::from_hours(24),
        keep_dead: Duration::from_hours(24),
        unknown_tries: 2,
        park: Vec::new(),
        codes: Codes::default(),
    }
}

fn item(attempts: u32, now: Instant) -> RetryItem {
    let expires = now + Duration::from_hours(1);
    RetryItem {
        id: MessageId::new(),
        attempts,
        expires,
        probe: false,
        caller: Flow::default(),
        urgency: Urgency::Normal,
        since: now,
        over_budget: None,
    }
}

const FAILS: Signal = Signal::Fails { retry_after: None };

/// A fresh message with a new id was called for.
fn observe(lane: &mut LaneQueue, signal: Signal, now: Instant) {
    lane.observe(MessageId::new(), signal, now, &retry(), 0.5);
}

#[test]
fn trouble_is_different_messages_that_fail() {
    let (mut lane, now) = (LaneQueue::new(Weights::default()), Instant::now());
    let stubborn = MessageId::new();
    for _ in 0..3 * TROUBLE {
        lane.observe(stubborn, FAILS, now, &retry(), 0.5);
    }
    assert!(!lane.in_trouble(), "one message fails by itself");
    for _ in 1..TROUBLE {
        assert!(!lane.in_trouble());
        observe(&mut lane, FAILS, now);
    }
    assert!(lane.in_trouble());
    observe(&mut lane, Signal::Works, now);
    assert!(!lane.in_trouble());
    // The count starts again.
    observe(&mut lane, FAILS, now);
    assert!(!lane.in_trouble());
    observe(&mut lane, Signal::Denied(AccessDenied::Key), now);
    assert_eq!(lane.denied(), Some(AccessDenied::Key), "a denial needs no second failure");
}

#[test]
fn all_are_due_when_trouble_ends() {
    let (mut lane, now) = (LaneQueue::new(Weights::default()), Instant::now());
    for far in 1..=4 {
        lane.push(item(9, now), now + Duration::from_mins(far));
    }
    (0..TROUBLE).for_each(|_| observe(&mut lane, FAILS, now));
    let probed = now + Duration::from_secs(30);
    let probe = lane.take(probed, 100);
    assert!(matches!(probe[..], [RetryItem { probe: true, .. }]), "{probe:?}");
    assert!(lane.take(probed, 100).is_empty(), "one probe at a time");
    lane.ended(probe[0], Signal::Works, Requeue::No, probed, &retry(), 0.5);
    assert_eq!(lane.next(), Some(probed), "and not in a minute");
    let mut delivered = 1;
    while delivered < 4 {
        let group = lane.take(probed, 100);
        assert!(!group.is_empty());
        delivered += group.len();
        for item in group {
            lane.ended(item, Signal::Works, Requeue::No, probed, &retry(), 0.5);
        }
    }
    assert!(lane.is_idle());
}

#[test]
fn the_least_tried_is_the_probe() {
    let (mut lane, now) = (LaneQueue::new(Weights::default()), Instant::now());
    let fresh = item(0, now);
    for attempts in [7, 3, 5] {
        lane.push(item(attempts, now), now);
    }
    lane.push(fresh, now + Duration::from_secs(9));
    observe(&mut lane, Signal::Denied(AccessDenied::Permission), now);
    let probe = lane.take(now + Duration::from_mins(1), 100);
    assert_eq!(probe, [RetryItem { probe: true, ..fresh }]);
}

/// A message whose budget is used up is no probe until its next period: the others of its lane are probed with.
#[test]
fn a_used_up_budget_closes_no_lane() {
    let (mut lane, now) = (LaneQueue::new(Weights::default()), Instant::now());
    let (poor, other) = (item(0, now), item(3, now));
    lane.push(poor, now);
    lane.push(other, now);
    (0..TROUBLE).for_each(|_| observe(&mut lane, FAILS, now));
    let probed = now + Duration::from_secs(30);
    let probe = lane.take(probed, 100);
    assert_eq!(probe[0].id, poor.id, "the least tried");
    let wait = Duration::from_mins(1);
    lane.ended(probe[0], Signal::OverBudget(wait), Requeue::Yes, probed, &retry(), 0.5);
    let next = lane.next().unwrap();
    assert!(next <= probed + PAUSE, "{:?}", next - probed);
    let probe = lane.take(next, 100);
    assert_eq!(probe[0].id, other.id);
    lane.ended(probe[0], FAILS, Requeue::No, next, &retry(), 0.5);
    assert!(lane.take(probed + wait - PAUSE, 100).is_empty());
    assert_eq!(lane.take(probed + wait, 100)[0].id, poor.id);
}

/// Of messages that are due, the one goes whose turn is the earliest: also where the lane is in trouble between, or
/// calls are not made after all. So one is overtaken only by those that came within the difference of their
/// handicaps after it, and none starves.
#[test]
fn no_message_starves_in_its_lane() {
    for seed in 0..50 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut lane, mut now) = (LaneQueue::new(Weights::default()), Instant::now());
        // What is in the lane, and when it is due.
        let mut waiting = std::collections::HashMap::new();
        let mut low = None;
        for n in 0..3_000 {
            now += Duration::from_millis(random.u64(..100));
            let urgency = match random.u8(..10) {
                _ if n == 100 => Urgency::VeryLow,
                0 => Urgency::ALL[random.usize(..4)],
                _ => Urgency::High,
            };
            let item = RetryItem { urgency, since: now, ..item(0, now) };
            if n == 100 {
                low = Some(item.id);
            }
            waiting.insert(item.id, (now, item.turn()));
            lane.push(item, now);
            // Every other one goes.
            let gone = if random.bool() { lane.take(now, 1) } else { Vec::new() };
            for item in gone {
                let due = waiting.values().filter(|(due, _)| *due <= now).map(|(_, turn)| *turn);
                assert!(Some(item.turn()) <= due.min(), "{seed}: {item:?} overtakes another");
                let no_call = random.u8(..8) == 0;
                let requeue = if no_call { Requeue::Yes } else { Requeue::No };
                let signal = if no_call { Signal::NoCall } else { Signal::Works };
                if no_call {
                    waiting.insert(item.id, (now + PAUSE, item.turn()));
                } else {
                    waiting.remove(&item.id);
                }
                lane.ended(item, signal, requeue, now, &retry(), 0.5);
            }
            if random.u8(..100) == 0 {
                (0..TROUBLE).for_each(|_| observe(&mut lane, FAILS, now));
                observe(&mut lane, Signal::Works, now);
                // All may go.
                for (due, _) in waiting.values_mut() {
                    *due = now.min(*due);
                }
            }
        }
        assert!(low.is_some_and(|low| !waiting.contains_key(&low)), "{seed}: it starves");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Push { attempts: u32, due: u64 },
    Take { room: usize },
    End { nth: usize, signal: Signal, requeue: Requeue },
    Fresh(Signal),
    Wait(u64),
}

fn signal() -> impl Strategy<Value = Signal> {
    prop_oneof![
        3 => Just(Signal::Works),
        3 => Just(FAILS),
        1 => (0..60_u64).prop_map(|s| Signal::Fails { retry_after: Some(Duration::from_secs(s)) }),
        1 => Just(Signal::Denied(AccessDenied::Key)),
        1 => Just(Signal::NoCall),
        1 => (1..60_u64).prop_map(|s| Signal::Postpone(Duration::from_secs(s))),
    ]
}

fn requeue() -> impl Strategy<Value = Requeue> {
    prop_oneof![Just(Requeue::Yes), Just(Requeue::No)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..5_u32, 0..60_u64).prop_map(|(attempts, due)| Step::Push { attempts, due }),
        (0..20_usize).prop_map(|room| Step::Take { room }),
        (any::<usize>(), signal(), requeue()).prop_map(|(nth, signal, requeue)| Step::End {
            nth,
            signal,
            requeue
        }),
        signal().prop_map(Step::Fresh),
        (0..40_000_u64).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Whatever happens: no message is lost or handed out twice, trouble has one probe, groups
    /// keep to their bounds, and a lane in which something waits has a time to look again or has
    /// calls under way.
    #[test]
    fn nothing_is_lost_and_nothing_sleeps(
        steps in prop::collection::vec(step(), 1..200),
        random in 0.0..1.0,
    ) {
        let retry = retry();
        let (mut lane, mut now) = (LaneQueue::new(Weights::default()), Instant::now());
        let (mut waiting, mut out) = (BTreeSet::new(), Vec::<RetryItem>::new());
        for step in steps {
            match step {
                Step::Push { attempts, due } => {
                    let item = item(attempts, now);
                    waiting.insert(item.id);
                    lane.push(item, now + Duration::from_secs(due));
                }
                Step::Take { room } => {
                    let in_trouble = lane.in_trouble();
                    let group = lane.take(now, room);
                    prop_assert!(group.len() <= room.min(retry.batch));
                    if in_trouble {
                        prop_assert!(group.len() <= 1 && (group.is_empty() || out.is_empty()));
                    }
                    for item in group {
                        prop_assert!(waiting.remove(&item.id));
                        prop_assert_eq!(item.probe, in_trouble);
                        out.push(item);
                    }
                }
                Step::End { nth, signal, requeue } if !out.is_empty() => {
                    let item = out.swap_remove(nth % out.len());
                    lane.ended(item, signal, requeue, now, &retry, random);
                    if requeue == Requeue::Yes {
                        waiting.insert(item.id);
                    }
                }
                Step::End { .. } => {}
                Step::Fresh(signal) => observe(&mut lane, signal, now),
                Step::Wait(ms) => now += Duration::from_millis(ms),
            }
            prop_assert_eq!(lane.len(), waiting.len() + out.len());
            if out.is_empty() && !waiting.is_empty() {
                prop_assert!(lane.next().is_some());
            }
        }
        // And all come out of it in the end, if the provider works.
        while !lane.is_idle() {
            now = lane.next().map_or(now, |at| now.max(at));
            out.extend(lane.take(now, 7));
            for item in out.drain(..) {
                waiting.remove(&item.id);
                lane.ended(item, Signal::Works, Requeue::No, now, &retry, random);
            }
        }
        prop_assert!(waiting.is_empty());
    }
}

/// `retry.base` bounds the wait after a kept message's first failed call, and doubles from there.
#[test]
fn the_first_wait_is_at_most_the_base() {
    let (retry, now) = (retry(), Instant::now());
    for (attempts, ms) in [(1, 200), (2, 400), (3, 800), (9, 30_000)] {
        let mut lane = LaneQueue::new(Weights::default());
        lane.push(item(attempts - 1, now), now);
        let tried = lane.take(now, 1)[0];
        lane.ended(RetryItem { attempts, ..tried }, FAILS, Requeue::Yes, now, &retry, 1.0);
        assert_eq!(lane.next(), Some(now + Duration::from_millis(ms)), "{attempts}");
        assert_eq!(retry_wait(&retry, attempts, 1.0), Duration::from_millis(ms));
    }
}
