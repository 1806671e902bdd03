use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// Things in their order, each with a number.
#[derive(Debug, Default)]
struct Line(VecDeque<usize>);

impl CallersQueue for Line {
    fn len(&self) -> usize {
        self.0.len()
    }
}

fn weights(of: &[u32]) -> Weights {
    Weights::of(of.iter().enumerate().map(|(n, weight)| (n.to_string().into(), *weight)))
}

fn flow(weights: &Weights, caller: usize) -> Flow {
    weights.flow(Some(&caller.to_string().into()))
}

fn push(queue: &mut FairQueue<Line>, flow: Flow, number: usize) {
    queue.change(flow, |line| line.0.push_back(number));
}

fn pop(queue: &mut FairQueue<Line>) -> Option<usize> {
    queue.pop(|line| line.0.pop_front())
}

#[test]
fn callers_that_are_not_named_are_one() {
    assert!(!weights(&[1]).tell_apart() && !Weights::default().tell_apart());
    let weights = weights(&[1, 2]);
    assert_eq!(weights.flow(None), Flow::default());
    assert_eq!(weights.flow(Some(&"gone".into())), Flow::default());
    assert_ne!(flow(&weights, 0), flow(&weights, 1));
    assert!(weights.tell_apart());
}

#[test]
fn alone_each_gets_all_in_its_order() {
    let weights = weights(&[1, 7]);
    let mut queue = FairQueue::new(weights.clone());
    for number in 0..100 {
        push(&mut queue, flow(&weights, number / 50), number);
        assert_eq!(pop(&mut queue), Some(number));
    }
    assert!(queue.is_empty() && pop(&mut queue).is_none());
}

/// What has given up is passed over, and its caller has had no service.
#[test]
fn what_has_given_up_takes_no_turn() {
    let weights = weights(&[1, 1]);
    let (one, other) = (flow(&weights, 0), flow(&weights, 1));
    let mut queue = FairQueue::new(weights);
    for number in 0..3 {
        push(&mut queue, one, number);
        push(&mut queue, other, 10 + number);
    }
    let odd = |line: &mut Line| {
        while line.0.front().is_some_and(|number| number % 2 == 0) {
            line.0.pop_front();
        }
        line.0.pop_front()
    };
    assert_eq!((queue.pop(odd), queue.pop(odd)), (Some(1), Some(11)));
    assert_eq!(queue.pop(odd), None);
    assert!(queue.is_empty());
    push(&mut queue, one, 5);
    assert_eq!(queue.len(), 1);
    queue.change_all(|line| line.0.clear());
    assert!(queue.is_empty() && queue.queues().next().is_none());
}

/// Each sweep looks at a few queues, and all of them have their turn.
#[test]
fn a_sweep_comes_round() {
    let weights = weights(&[1; 100]);
    let mut queue = FairQueue::new(weights.clone());
    (0..100).for_each(|caller| push(&mut queue, flow(&weights, caller), caller));
    for _ in 0..100_usize.div_ceil(SWEPT) {
        let before = queue.len();
        queue.sweep(|line| line.0.clear());
        assert!(before - queue.len() <= SWEPT);
    }
    assert!(queue.is_empty());
}

proptest! {
    /// Of callers that wait all the time, each is served by its weight, within a few services of each; whatever came before.
    #[test]
    fn by_weight(
        of in prop::collection::vec(1_u32..=1_000, 2..8),
        before in prop::collection::vec(any::<prop::sample::Index>(), 0..50),
    ) {
        let weights = weights(&of);
        let mut queue = FairQueue::new(weights.clone());
        for index in before {
            push(&mut queue, flow(&weights, index.index(of.len())), 0);
            pop(&mut queue);
        }
        let total: u32 = of.iter().sum();
        let rounds = 3_000_u32;
        for caller in 0..of.len() {
            (0..rounds).for_each(|_| push(&mut queue, flow(&weights, caller), caller));
        }
        let mut served = vec![0_u32; of.len()];
        for round in 1..=rounds {
            served[pop(&mut queue).unwrap()] += 1;
            for (served, weight) in served.iter().zip(&of) {
                let due = f64::from(round) * f64::from(*weight) / f64::from(total);
                // The virtual time of a service is a whole number.
                let slack = (of.len() as u64 * (HEAD_START + 1)) as f64 + due * 0.01;
                prop_assert!((f64::from(*served) - due).abs() <= slack, "{served} of {due}");
            }
        }
    }

    /// One that comes one by one beside a flood is served after one service of each weight of its own, and gets
    /// no more than its share in the long run.
    #[test]
    fn beside_a_flood(victim in 1_u32..=10, flood in 1_u32..=10, pause in 0_usize..30) {
        let weights = weights(&[victim, flood]);
        let (own, other) = (flow(&weights, 0), flow(&weights, 1));
        let mut queue = FairQueue::new(weights);
        (0..5_000).for_each(|_| push(&mut queue, other, 1));
        let most = (flood as usize).div_ceil(victim as usize) + 1;
        let (mut served, mut all) = (0, 0);
        for _ in 0..100 {
            push(&mut queue, own, 0);
            let ahead = queue.ahead(own, 0);
            let mut waited = 0;
            while pop(&mut queue) != Some(0) {
                waited += 1;
            }
            prop_assert!(waited <= most && waited <= ahead, "{waited} of {ahead}");
            served += 1;
            all += waited + 1;
            (0..pause).for_each(|_| {
                pop(&mut queue);
            });
            all += pause;
        }
        let share = f64::from(victim) / f64::from(victim + flood);
        prop_assert!(f64::from(served) <= all as f64 * share * 1.02 + 2.0 + HEAD_START as f64, "{served} of {all}");
    }

    /// How many are ahead is known beforehand: exactly, but for callers whose turns are at the same moment.
    #[test]
    fn what_is_ahead(
        of in prop::collection::vec(1_u32..=20, 1..8),
        before in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..20, 0_usize..30), 0..10),
        asks in any::<prop::sample::Index>(),
    ) {
        let weights = weights(&of);
        let mut queue = FairQueue::new(weights.clone());
        for (index, pushes, pops) in before {
            let flow = flow(&weights, index.index(of.len()));
            (0..pushes).for_each(|_| push(&mut queue, flow, 0));
            (0..pops).for_each(|_| {
                pop(&mut queue);
            });
        }
        let flow = flow(&weights, asks.index(of.len()));
        let own = queue.waiting(flow);
        let (ahead, at_most) = (queue.ahead(flow, own), queue.ahead_at_most(flow, own));
        prop_assert!(own <= ahead && ahead <= at_most && at_most <= queue.len());
        push(&mut queue, flow, 1);
        let mut served = 0;
        while pop(&mut queue) != Some(1) {
            served += 1;
        }
        prop_assert!(served <= ahead && ahead <= served + of.len(), "{served}, {ahead} said");
    }
}

/// A debt ends when nothing waits at all: who has had more than its share then pays for it to no one.
#[test]
fn a_pause_forgives() {
    let weights = weights(&[1, 1_000]);
    let (light, heavy) = (flow(&weights, 0), flow(&weights, 1));
    let mut queue = FairQueue::new(weights);
    push(&mut queue, light, 0);
    push(&mut queue, heavy, 1);
    while pop(&mut queue).is_some() {}
    (0..2_000).for_each(|_| push(&mut queue, heavy, 1));
    pop(&mut queue);
    push(&mut queue, light, 0);
    assert!(queue.ahead(light, 0) <= 1, "{}", queue.ahead(light, 0));
    assert!((0..2).any(|_| pop(&mut queue) == Some(0)));
}
