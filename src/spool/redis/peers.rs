//! The other owners of the account: whether they live, and what the dead have left.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::connection::{Memory, SpoolRedisError};
use super::owner::{Owned, Owner, PAGE};
use super::peer_state::{BEGINNING, PeerState, Scan};
use super::reply::{self, Page};
use super::trust::TakeOver;
use crate::message::MessageId;
use crate::spool::Share;
use crate::spool::adoption::HeldCounts;
use crate::spool::facts::{Fact, Progress, StoredMessage};
use crate::spool::view::IndexView;

/// In the place of an epoch: the owner is dead, whatever its epoch is.
const ANY_EPOCH: &str = "*";

/// How the other owners stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::spool) struct Peers {
    /// Messages of those that may live.
    pub(in crate::spool) held: u64,
    /// Some were not observed for long enough.
    pub(in crate::spool) undecided: bool,
}

/// Whether a dead owner still has messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stays {
    Yes,
    /// It has none.
    No,
    /// It lives.
    Alive,
}

impl Owner {
    /// Raises our epoch, looks at the peers, and takes over a page of what a dead one has left, if
    /// that is wanted.
    pub(super) async fn maintain(&mut self, view: &IndexView) -> Result<(), SpoolRedisError> {
        if self.has_left() {
            return Ok(());
        }
        self.check_trust().await;
        self.ready(&[], view).await?;
        self.watch_if_due().await?;
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
        self.watch_if_due().await?;
        let progress = self.take_over().await?;
        let mut peers = Peers::default();
        for peer in self.peers.values().filter(|peer| !peer.is_dead(&self.times)) {
            peers.held += peer.pending;
            peers.undecided |= peer.pending > 0 && !peer.moved;
        }
        Ok((progress, peers))
    }

    async fn watch_if_due(&mut self) -> Result<(), SpoolRedisError> {
        let due = self.times.heartbeat.mul_f64(0.9);
        if self.looked.is_some_and(|looked| looked.elapsed() < due) {
            return Ok(());
        }
        self.watch().await
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
            let (unchanged, moved, mut scan) = match before.remove(&name) {
                Some(seen) if seen.epoch == epoch => {
                    (seen.unchanged + since, seen.moved, seen.scan)
                }
                seen => (Duration::ZERO, seen.is_some(), Scan::default()),
            };
            scan.sees(pending, now);
            peers.insert(name, PeerState { epoch, unchanged, moved, pending, scan });
        }
        self.peers = peers;
        self.looked = Some(now);
        self.count_left();
        Ok(())
    }

    /// What is left with dead owners, as of the last whole look at each.
    fn count_left(&self) {
        let mut left = self.set_aside;
        for peer in self.peers.values().filter(|peer| peer.is_dead(&self.times)) {
            left += peer.scan.left;
        }
        self.ownership.set_left(left);
    }

    /// Takes over a page from the predecessor, or else from a dead peer. Done only where there was
    /// neither.
    pub(super) async fn take_over(&mut self) -> Result<Progress, SpoolRedisError> {
        if let Some((name, mut scan)) = self.predecessor.take() {
            // It stays the predecessor if this fails.
            self.predecessor = Some((name.clone(), Scan::default()));
            let (messages, _) = self.take_from(&name, ANY_EPOCH, &mut scan).await?;
            // What is left with it is a dead owner's from now on.
            self.predecessor = scan.next.is_some().then_some((name, scan));
            self.report(Fact::TakenOver(messages));
            return Ok(Progress::More);
        }
        let dead = |peer: &PeerState| peer.is_dead(&self.times) && peer.scan.next.is_some();
        let Some(name) = self.peers.iter().find(|(_, peer)| dead(peer)).map(|(name, _)| name)
        else {
            return Ok(Progress::Done);
        };
        let name = name.clone();
        let Some(peer) = self.peers.get_mut(&name) else { return Ok(Progress::Done) };
        let (epoch, mut scan) = (peer.epoch.clone(), std::mem::take(&mut peer.scan));
        let (messages, stays) = self.take_from(&name, &epoch, &mut scan).await?;
        let (taken, left) = (messages.len(), scan.left.not_allowed);
        let is_whole = scan.next.is_none();
        match (self.peers.get_mut(&name), stays) {
            (Some(peer), Stays::Yes) => peer.scan = scan,
            // The next look at the owners finds out its epoch.
            (Some(peer), Stays::Alive) => *peer = PeerState::moved(peer.pending),
            _ => drop(self.peers.remove(&name)),
        }
        self.count_left();
        if taken > 0 {
            tracing::info!(
                owner = name,
                messages = taken,
                "delivering the messages of a sidecar that has stopped"
            );
        }
        if is_whole
            && left > 0
            && let Some(suppressed) = self.left_log.next()
        {
            tracing::warn!(
                owner = name,
                messages = left,
                suppressed,
                "messages of a sidecar that has stopped are left for others: topics.allow or [upstream] of this one does not allow them"
            );
        }
        self.report(Fact::TakenOver(messages));
        Ok(Progress::More)
    }

    /// Takes what is for this sidecar of a page of what a peer owns, if its epoch is still the one that
    /// was seen.
    async fn take_from(
        &mut self,
        peer: &str,
        epoch: &str,
        scan: &mut Scan,
    ) -> Result<(Vec<StoredMessage>, Stays), SpoolRedisError> {
        let page = self.query("peek", |command| {
            command.arg(peer).arg(scan.next.as_deref().unwrap_or(BEGINNING)).arg(PAGE);
        });
        let Page { next, mut messages, unreadable } = reply::page(page.await?)?;
        let rules = self.ownership.rules();
        let readable = messages.len();
        self.trust.leaves_unreadable(unreadable, &mut scan.found);
        messages
            .retain(|message| self.trust.judges(message, &rules, &mut scan.found) == TakeOver::Yes);
        // A call without messages ends an owner that has none left, or a predecessor.
        let are_some_left = unreadable > 0 || messages.len() < readable;
        if messages.is_empty() && are_some_left && epoch != ANY_EPOCH {
            scan.goes_on(next);
            return Ok((messages, Stays::Yes));
        }
        self.owned = Owned::More;
        let taken = self.call::<Vec<String>>("take", Memory::Shrinks, |command| {
            command.arg(peer).arg(epoch);
            for message in &messages {
                command.arg(message.id.to_string()).arg(&message.meta[..]);
            }
        });
        let taken = taken.await?;
        self.owned = Owned::Known;
        let (head, taken) = taken.split_first().ok_or(SpoolRedisError::Malformed)?;
        let taken: HashSet<_> =
            taken.iter().filter_map(|id| id.parse::<MessageId>().ok()).collect();
        // A peer has taken the others, or their owner lives, or their words were changed.
        scan.missed |= taken.len() < messages.len();
        messages.retain(|message| taken.contains(&message.id));
        scan.goes_on(next);
        let stays = match &**head {
            "left" => Stays::Yes,
            "alive" => Stays::Alive,
            _ => Stays::No,
        };
        Ok((messages, stays))
    }

    /// Reports a page of what all own: to be shown, not to be changed.
    pub(super) async fn read_page(
        &mut self,
        from: Option<String>,
    ) -> Result<Option<String>, SpoolRedisError> {
        let page = self.query("all", |command| {
            command.arg(from.as_deref().unwrap_or(BEGINNING)).arg(PAGE);
        });
        let Page { next, messages, unreadable } = reply::page(page.await?)?;
        self.trust.leaves_unreadable(unreadable, &mut HeldCounts::default());
        self.report(Fact::TakenOver(messages));
        Ok(Some(next).filter(|next| !next.is_empty()))
    }
}
