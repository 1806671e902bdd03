//! What is wrong with the ceilings.

use jiff::SignedDuration;

use super::{Concerns, NEAR_CEILING, QUEUE, limit, share, span};
use crate::config::grouped;
use crate::telemetry::view::{CeilingView, Level, SidecarStatus};

/// From this part of a ceiling on, unanswered calls are a concern.
const MANY_UNANSWERED: f64 = 0.1;

impl Concerns {
    pub(super) fn ceilings(&mut self, status: &SidecarStatus) {
        let parked = |ceiling: &&CeilingView| ceiling.parked > 0;
        if let Some(ceiling) = status.ceilings.iter().find(parked) {
            let (parked, of) = (grouped(ceiling.parked as u64), limit(ceiling));
            let detail = format!(
                "tollgate withholds {parked} of {of} permits, and returns them one by one after 15 to \
                 45 s."
            );
            let remedy = "Nothing yet. If it persists, other clients use the account, or the bought TPS \
                          is too small: lower ceilings.account to what is left.";
            self.add("throttled", Level::Warn, "The provider throttles calls", detail, remedy);
        }
        let unanswered =
            |ceiling: &CeilingView| share(ceiling.unanswered as f64, ceiling.limit.map(f64::from));
        let most = status.ceilings.iter().max_by(|a, b| unanswered(a).total_cmp(&unanswered(b)));
        if let Some(ceiling) = most.filter(|ceiling| unanswered(ceiling) >= MANY_UNANSWERED) {
            // A configured time fits into a signed one by far.
            let most = SignedDuration::try_from(status.unanswered_max).unwrap_or_default();
            let detail = format!(
                "{} of {} permits are used by calls that ended without an answer. The provider may still \
                 read them, so they count until later calls are answered, for {} at most \
                 (ceilings.unanswered_max).",
                grouped(ceiling.unanswered as u64),
                limit(ceiling),
                span(most)
            );
            let remedy = "Check whether the provider or the network to it stalls. Nothing else: it ends \
                          with the stall.";
            self.add("unanswered", Level::Warn, "Calls get no answer", detail, remedy);
        }
        let used = |ceiling: &CeilingView| share(ceiling.used as f64, ceiling.limit.map(f64::from));
        let tightest = status.ceilings.iter().max_by(|a, b| used(a).total_cmp(&used(b)));
        let Some(ceiling) = tightest.filter(|ceiling| ceiling.limit.is_some()) else { return };
        let at_it = used(ceiling) >= NEAR_CEILING;
        if !at_it && status.longest_wait_seconds <= QUEUE {
            return;
        }
        let detail = format!(
            "{} of {} calls in the last second. Messages that wait: {}, the first for {:.1} s. Callers \
             that would wait too long get 429.",
            grouped(ceiling.used as u64),
            limit(ceiling),
            grouped(status.waiting as u64),
            status.longest_wait_seconds,
        );
        let (title, remedy) = match (at_it, &*ceiling.name) {
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
                "Nothing, after a burst or a start. If it persists, tollgate needs more CPU, or the \
                 provider answers slowly.",
            ),
        };
        self.add("ceiling", Level::Warn, title, detail, remedy);
    }
}
