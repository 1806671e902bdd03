//! The others of the account: whether they live, and what the dead have left.

use std::collections::HashMap;
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::owner::{Ours, Owner, PAGE};
use super::{Claimed, Times, Trouble};
use crate::message::MessageId;
use crate::spool::Share;
use crate::spool::shared::Shared;

/// What the script writes for an owner that has left.
const GONE: &str = "-";

/// Another owner, as it was seen.
#[derive(Debug)]
pub(super) struct Seen {
    turn: String,
    /// How long its turn has stood still while we looked. Time in which we could not look does not
    /// count: after an outage of Redis nobody has moved.
    silent: Duration,
    /// It has moved since we look.
    moved: bool,
    pending: u64,
}

impl Seen {
    fn is_dead(&self, times: &Times) -> bool {
        self.turn == GONE || self.silent >= times.silent
    }
}

/// How others stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::spool) struct Peers {
    /// Messages of those that may live.
    pub(in crate::spool) held: u64,
    /// Some have not been looked at for long enough.
    pub(in crate::spool) undecided: bool,
}

impl Owner {
    /// Says that we live, looks after the others, and takes over a slice of what a dead one has
    /// left, if that is wanted.
    pub(in crate::spool) fn tend(
        &mut self,
        shared: &Shared,
        regrets: &[MessageId],
    ) -> Result<(), Trouble> {
        if self.has_left() {
            return Ok(());
        }
        self.ready(shared, regrets, &[])?;
        if self.looked.is_none_or(|looked| looked.elapsed() >= self.streams.times.beat.mul_f64(0.9))
        {
            self.watch()?;
        }
        self.look_at_configuration()?;
        if self.streams.is_adopting() && self.take_some(shared)? {
            self.streams.more.notify_one();
        }
        Ok(())
    }

    /// Looks at all others.
    pub(in crate::spool) fn watch(&mut self) -> Result<(), Trouble> {
        let mut answer = self.ask::<Vec<Value>>("watch", false, |_| ())?.into_iter();
        let now = Instant::now();
        let mut total = || match answer.next() {
            // A hand that counted wrong is no reason to stop.
            Some(Value::Int(n)) => Some(u64::try_from(n).unwrap_or(0)),
            _ => None,
        };
        let (Some(messages), Some(bytes)) = (total(), total()) else {
            return Err(Trouble::Garbled);
        };
        self.streams.state().account = Share { messages, bytes };
        let since = self
            .looked
            .map_or(Duration::ZERO, |looked| now - looked)
            .min(self.streams.times.beat * 2);
        let mut before = std::mem::take(&mut self.others);
        let mut others = HashMap::new();
        for owner in answer {
            let (name, turn, pending): (String, String, u64) =
                redis::from_redis_value(owner).map_err(|_| Trouble::Garbled)?;
            let (silent, moved) = match before.remove(&name) {
                Some(seen) if seen.turn == turn => (seen.silent + since, seen.moved),
                seen => (Duration::ZERO, seen.is_some()),
            };
            others.insert(name, Seen { turn, silent, moved, pending });
        }
        self.others = others;
        self.looked = Some(now);
        Ok(())
    }

    pub(in crate::spool) fn peers(&self) -> Peers {
        let mut peers = Peers::default();
        for seen in self.others.values() {
            if !seen.is_dead(&self.streams.times) {
                peers.held += seen.pending;
                peers.undecided |= seen.pending > 0 && !seen.moved;
            }
        }
        peers
    }

    /// Takes over a slice from one that is dead. Returns whether there is more.
    pub(in crate::spool) fn take_some(&mut self, shared: &Shared) -> Result<bool, Trouble> {
        if let Some(predecessor) = self.predecessor.clone() {
            let (claimed, more) = self.take(&predecessor, "*")?;
            if !more {
                self.predecessor = None;
            }
            self.adopt(shared, claimed);
            return Ok(true);
        }
        let dead = self.others.iter().find(|(_, seen)| seen.is_dead(&self.streams.times));
        let Some((name, turn)) = dead.map(|(name, seen)| (name.clone(), seen.turn.clone())) else {
            return Ok(false);
        };
        let (claimed, more) = self.take(&name, &turn)?;
        if !more {
            self.others.remove(&name);
        }
        if !claimed.is_empty() {
            tracing::info!(
                owner = name,
                messages = claimed.len(),
                "taking over what a sidecar has left"
            );
        }
        self.adopt(shared, claimed);
        Ok(true)
    }

    /// A slice of what `other` has, if its turn is still the one that was seen, and whether there
    /// is more.
    fn take(&mut self, other: &str, seen: &str) -> Result<(Vec<Claimed>, bool), Trouble> {
        self.ours = Ours::More;
        let taken = self.ask::<Vec<Value>>("take", false, |command| {
            command.arg(other).arg(seen).arg(PAGE);
        })?;
        let (head, claimed) = super::told::page(taken)?;
        self.ours = Ours::Known;
        Ok((claimed, head == "more"))
    }

    /// Reads what anybody has into the index: to be looked at, not to be changed.
    pub(in crate::spool) fn read_all(&mut self, shared: &Shared) -> Result<(), Trouble> {
        let mut from = "0-0".to_owned();
        loop {
            let page = self.look::<Vec<Value>>("all", |command| {
                command.arg(&from).arg(PAGE);
            })?;
            let (next, all) = super::told::page(page)?;
            super::told::insert(shared, all);
            if next.is_empty() {
                return Ok(());
            }
            from = next;
        }
    }
}
