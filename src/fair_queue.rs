//! Queues of several callers that are served by weight: who floods one makes the others wait no longer than their
//! shares imply, and one that waits alone gets all.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996). A service is one thing taken from the queues, and all cost
//! the same. Each caller, a flow, has a turn in virtual time; the one whose turn is the earliest is served, and its
//! next turn is later by the inverse of its weight. A flow that comes back after a pause has its turn a few services
//! before the present at the earliest: things that come together find no round of the others before them, and no more
//! than that is saved up. When nothing waits at all, all debts are forgotten.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use crate::message::CallerName;

/// The virtual time of one service of weight 1. Whole numbers for weights up to 1,000 are exact to 0.1 %, and last
/// for 10^13 services.
const SERVICE: u64 = 1 << 20;

/// Services that a caller has ahead of others when it comes back after a pause: one that sends less than its share
/// waits for no round of the others, though its messages come unevenly.
const HEAD_START: u64 = 4;

/// Queues that are looked through for what has given up, with each look: a request costs the same however many
/// callers wait.
const SWEPT: usize = 8;

/// Whether one of several that holds so much of a room may take more, while so much of it is free: up to eight times
/// that. So about a ninth is left to the others, and what they take comes off what it may. (Dynamic thresholds, as in
/// the shared memory of switches: Choudhury and Hahne, 1998.)
pub fn leaves_room(held: u64, free: u64) -> bool {
    held <= free.saturating_mul(8)
}

/// A caller among those that are served by weight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow(u16);

/// The weights of callers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Weights(Arc<WeightsOfCallers>);

#[derive(Debug)]
struct WeightsOfCallers {
    flows: HashMap<CallerName, Flow>,
    /// By flow. The first is of messages whose caller is not named, or not any more.
    weights: Vec<u32>,
}

impl Default for Weights {
    fn default() -> Self {
        Self::of([])
    }
}

impl Weights {
    /// Those of these callers. Weights are at least 1; messages of no caller weigh 1 together.
    pub fn of(callers: impl IntoIterator<Item = (CallerName, u32)>) -> Self {
        let (mut flows, mut weights) = (HashMap::new(), vec![1]);
        for ((name, weight), flow) in callers.into_iter().zip(1..) {
            flows.insert(name, Flow(flow));
            weights.push(weight.max(1));
        }
        Self(Arc::new(WeightsOfCallers { flows, weights }))
    }

    /// The flow of this caller's messages.
    pub fn flow(&self, caller: Option<&CallerName>) -> Flow {
        caller.and_then(|name| self.0.flows.get(name)).copied().unwrap_or_default()
    }

    /// Whether there are callers to be told apart.
    pub fn tell_apart(&self) -> bool {
        // The first is of no caller.
        self.0.weights.len() > 2
    }

    fn weight(&self, flow: Flow) -> u64 {
        self.0.weights.get(usize::from(flow.0)).copied().unwrap_or(1).into()
    }

    fn service(&self, flow: Flow) -> u64 {
        SERVICE / self.weight(flow)
    }
}

/// What waits of one caller.
pub trait CallersQueue: Default {
    /// How many.
    fn len(&self) -> usize;

    /// Whether nothing does.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The queue of a caller for which something waits.
#[derive(Debug, Default)]
struct Waiting<Q> {
    queue: Q,
    turn: u64,
}

/// What waits, by caller.
#[derive(Debug)]
pub struct FairQueue<Q> {
    weights: Weights,
    /// Those in which something waits.
    waiting: BTreeMap<Flow, Waiting<Q>>,
    /// The same ones, by their turns.
    order: BTreeSet<(u64, Flow)>,
    /// Of those in which nothing waits: when they were to be served next.
    idle: HashMap<Flow, u64>,
    /// The turn that was served last.
    now: u64,
    /// In all queues.
    len: usize,
    /// The sum of the weights of those that wait.
    weight: u64,
    /// Where the next sweep begins.
    sweeps: Flow,
}

impl<Q: CallersQueue> FairQueue<Q> {
    /// An empty one.
    pub fn new(weights: Weights) -> Self {
        Self {
            weights,
            waiting: BTreeMap::new(),
            order: BTreeSet::new(),
            idle: HashMap::new(),
            now: 0,
            len: 0,
            weight: 0,
            sweeps: Flow::default(),
        }
    }

    /// What waits in all queues.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The queue of one caller, if anything waits there.
    pub fn queue(&self, flow: Flow) -> Option<&Q> {
        self.waiting.get(&flow).map(|waiting| &waiting.queue)
    }

    /// What waits of one caller.
    pub fn waiting(&self, flow: Flow) -> usize {
        self.queue(flow).map_or(0, Q::len)
    }

    /// All queues in which something waits.
    pub fn queues(&self) -> impl Iterator<Item = &Q> {
        self.waiting.values().map(|waiting| &waiting.queue)
    }

    /// Adds to, or takes from, the queue of a caller.
    pub fn change<T>(&mut self, flow: Flow, change: impl FnOnce(&mut Q) -> T) -> T {
        let turn = self.turn(flow);
        let waiting = self.waiting.entry(flow).or_default();
        let before = waiting.queue.len();
        let changed = change(&mut waiting.queue);
        let after = waiting.queue.len();
        self.len = self.len - before + after;
        match (before, after) {
            (0, 0) => drop(self.waiting.remove(&flow)),
            (0, _) => {
                waiting.turn = turn;
                self.idle.remove(&flow);
                self.order.insert((turn, flow));
                self.weight += self.weights.weight(flow);
            }
            (_, 0) => {
                self.waiting.remove(&flow);
                self.order.remove(&(turn, flow));
                self.idle.insert(flow, turn);
                self.weight -= self.weights.weight(flow);
            }
            _ => {}
        }
        if self.is_empty() {
            self.idle.clear();
        }
        changed
    }

    /// As [`Self::change`], of all callers' queues.
    pub fn change_all(&mut self, mut change: impl FnMut(&mut Q)) {
        let flows: Vec<_> = self.waiting.keys().copied().collect();
        for flow in flows {
            self.change(flow, &mut change);
        }
    }

    /// As [`Self::change`], of some callers' queues: of all, with every few calls.
    pub fn sweep(&mut self, mut change: impl FnMut(&mut Q)) {
        if self.is_empty() {
            return;
        }
        let from = self.waiting.range(self.sweeps..).chain(self.waiting.range(..self.sweeps));
        let flows: Vec<_> = from.map(|(flow, _)| *flow).take(SWEPT).collect();
        for flow in &flows {
            self.change(*flow, &mut change);
        }
        let next = flows.last().map(|last| (Bound::Excluded(*last), Bound::Unbounded));
        let next = next.and_then(|after| self.waiting.range::<Flow, _>(after).next());
        self.sweeps = next.map_or(Flow::default(), |(flow, _)| *flow);
    }

    /// Serves the caller whose turn it is. `pop` takes from its queue; `None`: what waited there has given up, and
    /// the queue is empty now.
    pub fn pop<T>(&mut self, mut pop: impl FnMut(&mut Q) -> Option<T>) -> Option<T> {
        while let Some((turn, flow)) = self.order.first().copied() {
            let Some(served) = self.change(flow, &mut pop) else {
                if self.waiting(flow) > 0 {
                    // It breaks the rule above: that must be no endless loop.
                    return None;
                }
                continue;
            };
            self.now = self.now.max(turn);
            let next = turn + self.weights.service(flow);
            if let Some(waiting) = self.waiting.get_mut(&flow) {
                waiting.turn = next;
                self.order.remove(&(turn, flow));
                self.order.insert((next, flow));
            } else if !self.is_empty() {
                self.idle.insert(flow, next);
            }
            return Some(served);
        }
        None
    }

    /// How many are served before one of this caller, before which `own` of its own are: at most.
    pub fn ahead_at_most(&self, flow: Flow, own: usize) -> usize {
        if self.is_empty() {
            return 0;
        }
        let (rounds, weight) = (own as u64 + 1, self.weights.weight(flow));
        let waits = u64::from(self.waiting.contains_key(&flow));
        let others = self.weight - waits * weight;
        let others = others.saturating_mul(rounds).div_ceil(weight);
        let each = HEAD_START + 1;
        let others = others.saturating_add((self.order.len() as u64 - waits) * each);
        usize::try_from(others).unwrap_or(usize::MAX).saturating_add(own).min(self.len)
    }

    /// How many are served before one of this caller, before which `own` of its own are. Looks at every caller that
    /// waits.
    pub fn ahead(&self, flow: Flow, own: usize) -> usize {
        if self.is_empty() {
            return 0;
        }
        let turn = self.turn(flow) + self.weights.service(flow).saturating_mul(own as u64);
        let before = |(other, waiting): (&Flow, &Waiting<Q>)| {
            if *other == flow || waiting.turn > turn {
                return 0;
            }
            let services = (turn - waiting.turn) / self.weights.service(*other) + 1;
            waiting.queue.len().min(usize::try_from(services).unwrap_or(usize::MAX))
        };
        own + self.waiting.iter().map(before).sum::<usize>()
    }

    /// When a caller is served next; of one for which nothing waits, were something to come now.
    fn turn(&self, flow: Flow) -> u64 {
        if let Some(waiting) = self.waiting.get(&flow) {
            return waiting.turn;
        }
        let earliest = self.now.saturating_sub(HEAD_START * self.weights.service(flow));
        self.idle.get(&flow).copied().unwrap_or(0).max(earliest)
    }
}

#[cfg(test)]
mod tests;
