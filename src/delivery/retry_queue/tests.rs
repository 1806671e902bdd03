use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn retry() -> Retry {
    let flags = [("upstream.endpoint", "http://127.0.0.1:1"), ("upstream.instance_id", "x")];
    let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned()));
    crate::config::load(None, [], &flags).unwrap().config.retry
}

/// Later than anything is due.
fn far() -> Instant {
    Instant::now() + Duration::from_hours(1)
}

fn item(id: u8, attempts: u32) -> RetryItem {
    let expires = Instant::now() + Duration::from_hours(24);
    RetryItem {
        id: MessageId::from_u128(id.into()),
        attempts,
        expires,
        probe: false,
        caller: crate::fair_queue::Flow::default(),
        urgency: message::Urgency::Normal,
        since: expires,
        over_budget: None,
    }
}

fn lane(id: u8) -> message::Lane {
    let parent = if id.is_multiple_of(2) { "even" } else { "odd" };
    message::Lane { instance: "x".into(), parent: parent.into() }
}

#[derive(Debug, Clone)]
enum Step {
    Push {
        id: u8,
        attempts: u32,
        due: u64,
    },
    Take,
    End {
        nth: usize,
        signal: Signal,
        requeue: Requeue,
    },
    Forget(u8),
    /// A fresh call begins, or ends.
    Fresh(u8),
}

const IDS: u8 = 6;

fn step() -> impl Strategy<Value = Step> {
    let signal = prop_oneof![
        4 => Just(Signal::Works),
        2 => Just(Signal::Fails { retry_after: None }),
        1 => Just(Signal::Denied(AccessDenied::Key)),
        1 => Just(Signal::NoCall),
    ];
    prop_oneof![
        5 => (0..IDS, 0..3_u32, 0..60_u64)
            .prop_map(|(id, attempts, due)| Step::Push { id, attempts, due }),
        3 => Just(Step::Take),
        4 => (any::<usize>(), signal, prop_oneof![Just(Requeue::Yes), Just(Requeue::No)])
            .prop_map(|(nth, signal, requeue)| Step::End { nth, signal, requeue }),
        1 => (0..IDS).prop_map(Step::Forget),
        1 => (0..IDS).prop_map(Step::Fresh),
    ]
}

/// What is to become of one message.
#[derive(Debug, Default)]
struct Model {
    /// It is to be handed out.
    waits: bool,
    out: bool,
    /// It was pushed while it was out.
    pushed: bool,
}

proptest! {
    /// However often and in whatever order messages are pushed: each is handed out once at a time and
    /// never again for the same push, none is lost, and nothing stays behind of those that ended.
    #[test]
    fn a_message_is_in_its_lane_once(steps in prop::collection::vec(step(), 1..120)) {
        let queue = RetryQueue::new(retry(), Weights::default(), 7);
        let mut model: BTreeMap<u8, Model> = (0..IDS).map(|id| (id, Model::default())).collect();
        let mut out: Vec<(message::Lane, RetryItem)> = Vec::new();
        let mut fresh: BTreeMap<u8, FreshCall<'_>> = BTreeMap::new();
        let name = |item: &RetryItem| u8::try_from(item.id.as_u128()).unwrap();
        let ends = |one: &mut Model, again: bool| {
            one.waits = again || one.pushed;
            (one.out, one.pushed) = (false, false);
        };
        for step in steps {
            match step {
                Step::Push { id, attempts, due } => {
                    let one = model.get_mut(&id).unwrap();
                    if one.out { one.pushed = true } else { one.waits = true }
                    let due = Instant::now() + Duration::from_secs(due);
                    queue.push(lane(id), item(id, attempts), due);
                }
                Step::Take => {
                    for (lane, items) in queue.take_due(far()).0 {
                        for item in items {
                            let one = model.get_mut(&name(&item)).unwrap();
                            prop_assert!(!one.out, "{item:?} is handed out twice at once");
                            prop_assert!(one.waits, "{item:?} is handed out again");
                            (one.out, one.waits) = (true, false);
                            out.push((lane.clone(), item));
                        }
                    }
                }
                Step::End { nth, signal, requeue } if !out.is_empty() => {
                    let (lane, item) = out.swap_remove(nth % out.len());
                    ends(model.get_mut(&name(&item)).unwrap(), requeue == Requeue::Yes);
                    queue.ended(&lane, item, signal, requeue);
                }
                Step::End { .. } => {}
                Step::Forget(id) => {
                    let one = model.get_mut(&id).unwrap();
                    (one.waits, one.pushed) = (false, false);
                    queue.remove(&[item(id, 0).id].into());
                }
                Step::Fresh(id) => {
                    let one = model.get_mut(&id).unwrap();
                    if fresh.remove(&id).is_some() {
                        ends(one, false);
                    } else if !one.waits && !one.out {
                        one.out = true;
                        fresh.insert(id, queue.fresh_call_begins(item(id, 0).id));
                    }
                }
            }
            let held = model.values().filter(|one| one.waits || one.out).count();
            prop_assert_eq!(queue.state().registry.len(), held);
            prop_assert_eq!(queue.len() + fresh.len(), held);
        }
        for id in fresh.keys() {
            ends(model.get_mut(id).unwrap(), false);
        }
        drop(fresh);
        // All that wait come out in the end, each once.
        loop {
            for (lane, item) in out.drain(..) {
                ends(model.get_mut(&name(&item)).unwrap(), false);
                queue.ended(&lane, item, Signal::Works, Requeue::No);
            }
            for (lane, items) in queue.take_due(far()).0 {
                out.extend(items.into_iter().map(|item| (lane.clone(), item)));
            }
            if out.is_empty() {
                break;
            }
            for (_, item) in &out {
                let one = model.get_mut(&name(item)).unwrap();
                prop_assert!(one.waits && !one.out);
                (one.out, one.waits) = (true, false);
            }
        }
        prop_assert!(model.values().all(|one| !one.waits), "{model:?} are lost");
        prop_assert_eq!((queue.len(), queue.state().registry.len()), (0, 0));
    }
}

/// A message that is pushed again while it waits goes as it is known last, when it was to go.
#[test]
fn what_is_known_last_counts() {
    let queue = RetryQueue::new(retry(), Weights::default(), 7);
    let due = Instant::now();
    queue.push(lane(1), item(1, 7), due);
    queue.push(lane(1), item(1, 0), due + Duration::from_mins(30));
    let handed_out: Vec<_> =
        queue.take_due(due).0.into_iter().flat_map(|(_, items)| items).collect();
    assert!(matches!(handed_out[..], [RetryItem { attempts: 0, .. }]), "{handed_out:?}");
}

/// A call sets out only for a message that is queued, and a drop finds it under way until it has ended.
#[test]
fn a_call_and_a_drop() {
    let queued = || Some(spool::State::Queued { calling: false });
    let queue = RetryQueue::new(retry(), Weights::default(), 7);
    let drops = |id: u8| queue.drop_begins(item(id, 0).id, || None, |doubt| doubt);
    for id in 1..=3 {
        queue.push(lane(1), item(id, 0), Instant::now());
    }
    assert_eq!(drops(1), Doubt::None, "no call was made");
    queue.mark_uncertain(item(2, 0).id);
    assert_eq!(drops(2), Doubt::Possible, "an earlier process may have made one");
    while queue.state().registry.len() > 0 {
        for (lane, items) in queue.take_due(far()).0 {
            for item in items {
                assert_eq!(queue.call_begins(item.id, || None), MayCall::Gone);
                assert_eq!(queue.call_begins(item.id, queued), MayCall::Yes);
                let doubt = queue.drop_begins(item.id, || None, |doubt| doubt);
                // Its own call decides, unless there may have been another.
                let decides = item.id != self::item(2, 0).id;
                assert!(
                    doubt == Doubt::Possible && queue.take_dropped_during_call(item.id) == decides,
                    "{item:?}"
                );
                queue.ended(&lane, item, Signal::Works, Requeue::No);
            }
        }
    }
}

/// What was pushed during a try counts for the next, also where the message goes back by itself.
#[test]
fn a_push_during_a_try_counts() {
    let queue = RetryQueue::new(retry(), Weights::default(), 7);
    let expires = Instant::now() + Duration::from_hours(48);
    queue.push(lane(1), item(1, 0), Instant::now());
    let (lane, items) = queue.take_due(far()).0.pop().unwrap();
    queue.push(lane.clone(), RetryItem { expires, ..item(1, 1) }, far());
    queue.ended(&lane, items[0], Signal::NoCall, Requeue::Yes);
    let next = queue.take_due(far()).0.pop().map(|(_, items)| items[0].expires);
    assert_eq!(next, Some(expires));
}

fn counts(queue: &RetryQueue) -> (u64, u64) {
    let held = queue.held_counts();
    (held.not_allowed, held.unverified)
}

/// Each way out of the hold, and into it.
#[test]
fn what_is_held_is_counted_by_its_reason() {
    let queue = RetryQueue::new(retry(), Weights::default(), 7);
    let now = Instant::now();
    for id in 0..6 {
        queue.hold(lane(id), item(id, 0), now, HoldReason::NotAllowed);
        queue.hold(lane(id), item(id, 0), now, HoldReason::NotAllowed);
    }
    queue.hold(lane(5), item(5, 0), now, HoldReason::Unverified);
    assert_eq!(counts(&queue), (5, 1));
    queue.push(lane(0), item(0, 0), now);
    queue.remove(&[item(1, 0).id].into());
    drop(queue.fresh_call_begins(item(2, 0).id));
    assert_eq!(counts(&queue), (2, 1));
    // Handed out, and found to have another body.
    let (lane, items) = queue.take_due(far()).0.pop().unwrap();
    assert_eq!(counts(&queue), (2, 1));
    queue.ended(&lane, items[0], Signal::NoCall, Requeue::Hold(HoldReason::Unverified));
    assert_eq!(counts(&queue), (2, 2));
    let ids = |ids: &[u8]| ids.iter().map(|id| item(*id, 0).id).collect::<Vec<_>>();
    assert_eq!(queue.held_page(None, 3), ids(&[0, 3, 4]));
    assert_eq!(queue.held_page(Some(item(3, 0).id), 3), ids(&[4, 5]));
    // One that has gone back to its lane since it was looked at stays there, and so does one that has
    // come back to the spool.
    queue.push(lane, item(0, 0), now);
    queue.remove_held(&ids(&[0, 3, 4]), |id| id == item(4, 0).id);
    assert_eq!((counts(&queue), queue.len(), queue.state().registry.len()), ((1, 1), 1, 3));
    assert_eq!(queue.held_page(None, 9), ids(&[4, 5]));
}
