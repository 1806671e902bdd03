//! Queues of several callers that are served by weight: who floods one makes the others wait no longer than their
//! shares imply, and one that waits alone gets all.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996), with every service of the same cost: each caller has a
//! virtual time, which goes on by the inverse of its weight with each service; the caller whose time is earliest
//! is served. One that comes back after a pause begins a little before the present virtual time, so that a few
//! messages together find no queue before them, and it has not saved up more than that; coming one by one it gets no
//! more than its share.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use crate::message::CallerName;

/// The virtual time of one service of weight 1. Whole numbers for weights up to 1,000 are exact to 0.1 %, and last
/// for 10^13 services.
const SERVICE: u64 = 1 << 20;

/// Services that a caller has ahead of others when it comes back after a pause: one that sends less than its share
/// waits for no round of the others, though its messages come unevenly.
const CREDIT: u64 = 4;

/// Queues that are looked through for what has given up, with each look: a request costs the same however many
/// callers wait.
const SWEPT: usize = 8;

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
        self.0.weights.len() > 1
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

/// What waits, by caller.
#[derive(Debug)]
pub struct FairQueue<Q> {
    weights: Weights,
    /// Those in which something waits.
    queues: BTreeMap<Flow, Q>,
    /// The same ones, by their virtual times.
    order: BTreeSet<(u64, Flow)>,
    /// When each is served next; of one that does not wait, when it was to be served next.
    turns: HashMap<Flow, u64>,
    /// The virtual time of the last service.
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
            queues: BTreeMap::new(),
            order: BTreeSet::new(),
            turns: HashMap::new(),
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
        self.queues.get(&flow)
    }

    /// What waits of one caller.
    pub fn waiting(&self, flow: Flow) -> usize {
        self.queues.get(&flow).map_or(0, Q::len)
    }

    /// All queues in which something waits.
    pub fn queues(&self) -> impl Iterator<Item = &Q> {
        self.queues.values()
    }

    /// Adds to, or takes from, the queue of a caller.
    pub fn change<T>(&mut self, flow: Flow, change: impl FnOnce(&mut Q) -> T) -> T {
        let queue = self.queues.entry(flow).or_default();
        let before = queue.len();
        let changed = change(queue);
        let after = queue.len();
        self.len = self.len - before + after;
        match (before, after) {
            (0, 0) => drop(self.queues.remove(&flow)),
            (0, _) => self.begins(flow),
            (_, 0) => self.ends(flow),
            _ => {}
        }
        changed
    }

    /// As [`Self::change`], of all callers' queues.
    pub fn change_all(&mut self, mut change: impl FnMut(&mut Q)) {
        let flows: Vec<_> = self.queues.keys().copied().collect();
        for flow in flows {
            self.change(flow, &mut change);
        }
    }

    /// As [`Self::change`], of some callers' queues: of all, with every few calls.
    pub fn sweep(&mut self, mut change: impl FnMut(&mut Q)) {
        let from = self.queues.range(self.sweeps..).chain(self.queues.range(..self.sweeps));
        let flows: Vec<_> = from.map(|(flow, _)| *flow).take(SWEPT).collect();
        for flow in &flows {
            self.change(*flow, &mut change);
        }
        let next = flows.last().map(|last| (Bound::Excluded(*last), Bound::Unbounded));
        let next = next.and_then(|after| self.queues.range::<Flow, _>(after).next());
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
            if self.order.remove(&(turn, flow)) {
                self.order.insert((next, flow));
            }
            self.turns.insert(flow, next);
            return Some(served);
        }
        None
    }

    /// How many are served before one of this caller, before which `own` of its own are: at most.
    pub fn ahead_at_most(&self, flow: Flow, own: usize) -> usize {
        let (rounds, weight) = (own as u64 + 1, self.weights.weight(flow));
        let waits = u64::from(self.queues.contains_key(&flow));
        let others = self.weight - waits * weight;
        let others = others.saturating_mul(rounds).div_ceil(weight);
        let each = CREDIT + 1;
        let others = others.saturating_add((self.order.len() as u64 - waits) * each);
        usize::try_from(others).unwrap_or(usize::MAX).saturating_add(own).min(self.len)
    }

    /// How many are served before one of this caller, before which `own` of its own are. Looks at every caller that
    /// waits.
    pub fn ahead(&self, flow: Flow, own: usize) -> usize {
        let turn = self.turn(flow) + self.weights.service(flow).saturating_mul(own as u64);
        let before = |(theirs, other): &(u64, Flow)| {
            if *other == flow {
                return own;
            }
            let services = (turn - theirs) / self.weights.service(*other) + 1;
            self.waiting(*other).min(usize::try_from(services).unwrap_or(usize::MAX))
        };
        let ahead: usize = self.order.range(..=(turn, Flow(u16::MAX))).map(before).sum();
        ahead.max(own)
    }

    fn turn(&self, flow: Flow) -> u64 {
        let turn = self.turns.get(&flow).copied().unwrap_or(0);
        if self.queues.contains_key(&flow) { turn } else { turn.max(self.earliest(flow)) }
    }

    /// The virtual time at which a caller begins that has waited for long.
    fn earliest(&self, flow: Flow) -> u64 {
        self.now.saturating_sub(CREDIT * self.weights.service(flow))
    }

    fn begins(&mut self, flow: Flow) {
        let turn = self.turns.get(&flow).copied().unwrap_or(0).max(self.earliest(flow));
        self.turns.insert(flow, turn);
        self.order.insert((turn, flow));
        self.weight += self.weights.weight(flow);
    }

    fn ends(&mut self, flow: Flow) {
        self.queues.remove(&flow);
        if let Some(turn) = self.turns.get(&flow) {
            self.order.remove(&(*turn, flow));
        }
        self.weight -= self.weights.weight(flow);
    }
}

#[cfg(test)]
mod tests;
