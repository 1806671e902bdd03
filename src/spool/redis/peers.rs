//! The other owners of the account: whether they live, and what the dead have left.

use std::collections::HashMap;
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::connection::{Memory, SpoolRedisError};
use super::owner::{BEGINNING, Owned, Owner, PAGE};
use super::peer_state::PeerState;
use super::reply;
use crate::spool::Share;
use crate::spool::facts::{Fact, Progress, StoredMessage};
use crate::spool::view::IndexView;

/// How the other owners stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::spool) struct Peers {
    /// Messages of those that may live.
    pub(in crate::spool) held: u64,
    /// Some were not observed for long enough.
    pub(in crate::spool) undecided: bool,
}

impl Owner {
    /// Raises our epoch, looks at the peers, and takes over a page of what a dead one has left, if
    /// that is wanted.
    pub(super) async fn maintain(&mut self, view: &IndexView) -> Result<(), SpoolRedisError> {
        if self.has_left() {
            return Ok(());
        }
        self.ready(&[], view).await?;
        let due = self.times.heartbeat.mul_f64(0.9);
        if self.looked.is_none_or(|looked| looked.elapsed() >= due) {
            self.watch().await?;
        }
        self.check_configuration().await?;
        if self.ownership.takes_over() && self.take_over().await? == Progress::More {
            self.ownership.ask_for_more();
        }
        Ok(())
    }

    /// Looks at the peers, and takes over a page of what the dead have left.
    pub(super) async fn take_page(
        &mut self,
        view: &IndexView,
    ) -> Result<(Progress, Peers), SpoolRedisError> {
        self.ready(&[], view).await?;
        self.watch().await?;
        let progress = self.take_over().await?;
        let mut peers = Peers::default();
        for peer in self.peers.values().filter(|peer| !peer.is_dead(&self.times)) {
            peers.held += peer.pending;
            peers.undecided |= peer.pending > 0 && !peer.moved;
        }
        Ok((progress, peers))
    }

    async fn watch(&mut self) -> Result<(), SpoolRedisError> {
        let answer = self.call::<Vec<Value>>("watch", Memory::Shrinks, |_| ()).await?;
        let mut answer = answer.into_iter();
        let now = Instant::now();
        let mut total = || match answer.next() {
            // A total that an operator has made negative is no reason to stop.
            Some(Value::Int(n)) => Some(u64::try_from(n).unwrap_or(0)),
            _ => None,
        };
        let (Some(messages), Some(bytes)) = (total(), total()) else {
            return Err(SpoolRedisError::Malformed);
        };
        self.ownership.set_account(Share { messages, bytes });
        let since = self.looked.map_or(Duration::ZERO, |looked| now - looked);
        let since = since.min(self.times.heartbeat * 2);
        let mut before = std::mem::take(&mut self.peers);
        let mut peers = HashMap::new();
        for peer in answer {
            let (name, epoch, pending): (String, String, u64) =
                redis::from_redis_value(peer).map_err(|_| SpoolRedisError::Malformed)?;
            let (unchanged, moved) = match before.remove(&name) {
                Some(seen) if seen.epoch == epoch => (seen.unchanged + since, seen.moved),
                seen => (Duration::ZERO, seen.is_some()),
            };
            peers.insert(name, PeerState { epoch, unchanged, moved, pending });
        }
        self.peers = peers;
        self.looked = Some(now);
        Ok(())
    }

    /// Takes over a page from the predecessor, or else from a dead peer. Done only where there was
    /// neither.
    pub(super) async fn take_over(&mut self) -> Result<Progress, SpoolRedisError> {
        if let Some(predecessor) = self.predecessor.clone() {
            let (messages, progress) = self.take_from(&predecessor, "*").await?;
            if progress == Progress::Done {
                self.predecessor = None;
            }
            self.report(Fact::TakenOver(messages));
            return Ok(Progress::More);
        }
        let dead = self.peers.iter().find(|(_, peer)| peer.is_dead(&self.times));
        let Some((name, epoch)) = dead.map(|(name, peer)| (name.clone(), peer.epoch.clone()))
        else {
            return Ok(Progress::Done);
        };
        let (messages, progress) = self.take_from(&name, &epoch).await?;
        if progress == Progress::Done {
            self.peers.remove(&name);
        }
        if !messages.is_empty() {
            tracing::info!(
                owner = name,
                messages = messages.len(),
                "delivering the messages of a sidecar that has stopped"
            );
        }
        self.report(Fact::TakenOver(messages));
        Ok(Progress::More)
    }

    /// A page of what a peer owns, if its epoch is still the one that was seen.
    async fn take_from(
        &mut self,
        peer: &str,
        epoch: &str,
    ) -> Result<(Vec<StoredMessage>, Progress), SpoolRedisError> {
        self.owned = Owned::More;
        let taken = self.call("take", Memory::Shrinks, |command| {
            command.arg(peer).arg(epoch).arg(PAGE);
        });
        let (head, messages) = reply::page(taken.await?)?;
        self.owned = Owned::Known;
        Ok((messages, if head == "more" { Progress::More } else { Progress::Done }))
    }

    /// Reports a page of what all own: to be shown, not to be changed.
    pub(super) async fn read_page(
        &mut self,
        from: Option<String>,
    ) -> Result<Option<String>, SpoolRedisError> {
        let page = self.query("all", |command| {
            command.arg(from.as_deref().unwrap_or(BEGINNING)).arg(PAGE);
        });
        let (next, all) = reply::page(page.await?)?;
        self.report(Fact::TakenOver(all));
        Ok(Some(next).filter(|next| !next.is_empty()))
    }
}
