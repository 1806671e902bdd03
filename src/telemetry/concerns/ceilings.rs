//! What is wrong with the ceilings.

use super::{Concerns, Level, NEAR_CEILING, QUEUE, limit, share};
use crate::config::grouped;
use crate::telemetry::status::{Ceiling, Status};

/// The part of a ceiling's permits with calls without an answer that is worth a word.
const MANY_UNANSWERED: f64 = 0.1;

impl Concerns {
    pub(super) fn ceilings(&mut self, status: &Status) {
        let parked = |ceiling: &&Ceiling| ceiling.parked > 0;
        if let Some(ceiling) = status.ceilings.iter().find(parked) {
            let (parked, of) = (grouped(ceiling.parked as u64), limit(ceiling));
            let detail = format!(
                "{parked} of {of} permits are withheld; they return one by one within a minute."
            );
            let todo = "Nothing at once. If it stays: somebody else uses the account, or the \
                        bought TPS is too small; lower ceilings.account to what is left.";
            self.add(Level::Warn, "The provider pushes back", detail, todo);
        }
        let unanswered =
            |ceiling: &Ceiling| share(ceiling.unanswered as f64, ceiling.limit.map(f64::from));
        let most = status.ceilings.iter().max_by(|a, b| unanswered(a).total_cmp(&unanswered(b)));
        if let Some(ceiling) = most.filter(|ceiling| unanswered(ceiling) >= MANY_UNANSWERED) {
            let detail = format!(
                "{} of {} permits are with calls that ended without an answer. The provider may still \
                 read them, so they count until later calls are answered, for five minutes at most \
                 (ceilings.unanswered_max).",
                grouped(ceiling.unanswered as u64),
                limit(ceiling)
            );
            let todo = "Look for what stands still: the provider, or the way to it. Nothing more is \
                        to be done: it ends with the stall.";
            self.add(Level::Warn, "Calls get no answer", detail, todo);
        }
        let used = |ceiling: &Ceiling| share(ceiling.used as f64, ceiling.limit.map(f64::from));
        let tightest = status.ceilings.iter().max_by(|a, b| used(a).total_cmp(&used(b)));
        let Some(ceiling) = tightest.filter(|ceiling| ceiling.limit.is_some()) else { return };
        let at_it = used(ceiling) >= NEAR_CEILING;
        if !at_it && status.longest_wait_seconds <= QUEUE {
            return;
        }
        let detail = format!(
            "{} of {} calls in the last second; {} messages wait, the first for {:.1} s. Callers \
             whose turn would come too late are told 429.",
            grouped(ceiling.used as u64),
            limit(ceiling),
            grouped(status.waiting as u64),
            status.longest_wait_seconds,
        );
        let (title, todo) = match (at_it, ceiling.name) {
            (true, "account") => (
                "At the account's ceiling",
                "Publish less, or have the account's ceiling raised and ceilings.account with it.",
            ),
            (true, _) => (
                "At the egress addresses' ceiling",
                "Publish less, or add egress addresses (upstream.egress_addresses).",
            ),
            (false, _) => (
                "Messages wait for a permit",
                "Nothing after a burst or a start. If it stays: tollgate needs more CPU, or the \
                 provider answers slowly.",
            ),
        };
        self.add(Level::Warn, title, detail, todo);
    }
}
