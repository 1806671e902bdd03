//! What an owner has in Redis beside what its index has.

use std::collections::HashSet;

use super::connection::{Memory, SpoolRedisError};
use super::owner::{Owned, Owner, PAGE};
use super::peer_state::BEGINNING;
use super::reply::{self, Page};
use super::trust::TakeOver;
use crate::message::MessageId;
use crate::spool::adoption::HeldCounts;
use crate::spool::entry::Content;
use crate::spool::facts::Fact;
use crate::spool::view::IndexView;

impl Owner {
    /// Reads what we own, and reports where the index differs. Everything is read anew: what an earlier
    /// attempt found, and the index does not have yet, may be a peer's by now.
    pub(super) async fn reconcile(
        &mut self,
        skipped: &HashSet<MessageId>,
        view: &IndexView,
    ) -> Result<(), SpoolRedisError> {
        self.facts.clear();
        self.set_aside = HeldCounts::default();
        let rules = self.ownership.rules();
        let mut facts = Vec::new();
        let mut mine = HashSet::new();
        let mut from = BEGINNING.to_owned();
        loop {
            let page = self.call("mine", Memory::Shrinks, |command| {
                command.arg(&from).arg(PAGE);
            });
            let Page { next, messages: mut new, unreadable } = reply::page(page.await?)?;
            self.trust.leaves_unreadable(unreadable, &mut self.set_aside);
            new.retain(|one| {
                mine.insert(one.id) && !skipped.contains(&one.id) && !view.contains(one.id)
            });
            // An answer with these was lost, or a client of Redis has given them to us: as if they were
            // a dead owner's.
            new.retain(|one| self.trust.judges(one, &rules, &mut self.set_aside) == TakeOver::Yes);
            facts.push(Fact::TakenOver(new));
            if next.is_empty() {
                break;
            }
            from = next;
        }
        // Those that the index has and we do not own: peers own them, or they are gone.
        let (held, gone): (Vec<_>, Vec<_>) =
            view.all().into_iter().partition(|(id, _)| mine.contains(id));
        let (mut taken, mut lost) = (0_usize, 0_usize);
        for few in gone.chunks(PAGE) {
            let exist = self.query::<Vec<bool>>("look", |command| {
                for (id, _) in few {
                    command.arg(id.to_string());
                }
            });
            let (mut owned_by_peers, mut vanished) = (Vec::new(), Vec::new());
            for ((id, content), exists) in few.iter().zip(exist.await?) {
                let is_message = usize::from(*content == Content::Message);
                if exists {
                    owned_by_peers.push(*id);
                    taken += is_message;
                } else {
                    vanished.push(*id);
                    lost += is_message;
                }
            }
            facts.extend([Fact::OwnedByPeers(owned_by_peers), Fact::Vanished(vanished)]);
        }
        if taken > 0 {
            tracing::warn!(
                messages = taken,
                "other sidecars have taken over messages of this one, because it did not reach Redis for 15 s"
            );
        }
        if lost > 0 {
            tracing::error!(
                messages = lost,
                "Redis no longer has these accepted messages: they are lost; check its persistence and failovers"
            );
        }
        if self.owned == Owned::Fenced {
            facts.push(Fact::Outdated(held.into_iter().map(|(id, _)| id).collect()));
        }
        self.facts.extend(facts);
        Ok(())
    }
}
