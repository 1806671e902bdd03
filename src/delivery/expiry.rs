//! The end of stored messages whose time to live is over: the task that drops them when it is, be they due, held or
//! in a lane that is paused.

use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::contained::contained;
use super::kept::{KeptMessages, MAX_WRITE};
use super::outcome::{Disposition, Outcome};
use super::registry::RegisteredCaller;
use crate::message::MessageId;
use crate::spool::{Change, Doubt, Effect, Expired, Noted};
use crate::upstream::Upstream;

/// The longest time between two looks, in case a wake-up is missed.
const MAX_PAUSE: Duration = Duration::from_mins(1);

/// Before the next look at a message whose call has not ended, or that is not in its lane yet.
const UNDER_WAY: Duration = Duration::from_millis(250);

/// After a pass that has dropped some: each pass looks at all that waits in lanes. What is over meanwhile is not sent.
const TOGETHER: Duration = Duration::from_millis(50);

/// Messages that are dropped before the store is waited for.
const PAGE: usize = 500;

/// After a panic.
const RESTART: Duration = Duration::from_secs(1);

/// Drops messages at their ends, until the delivery is dropped or stops.
pub(super) async fn run<U: Upstream>(kept: Weak<KeptMessages<U>>) {
    let Some((stop, expiries)) =
        kept.upgrade().map(|kept| (kept.dispatcher.stop.clone(), Arc::clone(&kept.expiries)))
    else {
        return;
    };
    while !stop.is_cancelled() {
        let next = {
            let Some(kept) = kept.upgrade() else { return };
            let looked = contained(kept.drop_expired()).await;
            looked.unwrap_or_else(|_| Looked { again: Instant::now() + RESTART, dropped: 0 })
        };
        if next.dropped > 0 && stop.run_until_cancelled(sleep(TOGETHER)).await.is_none() {
            return;
        }
        tokio::select! {
            () = sleep_until(next.again) => {}
            () = expiries.notified() => {}
            () = stop.cancelled() => {}
        }
    }
}

/// What came of one pass.
struct Looked {
    /// When the next one is due.
    again: Instant,
    dropped: usize,
}

/// A message that was dropped, and its caller who waits for the answer.
struct ExpiredMessage {
    id: MessageId,
    noted: Noted,
    caller: Option<(RegisteredCaller, Outcome)>,
}

impl ExpiredMessage {
    /// Answers its caller, once the drop is durable: else a crash now would send again what is answered to be at
    /// its end. A hung disk delays no caller for longer than `until`.
    async fn answer(self, until: Instant) {
        let Some((caller, outcome)) = self.caller else { return };
        caller.respond(match timeout_at(until, self.noted).await {
            // A peer goes on with it.
            Ok(Effect::NotOwned) => Outcome::new(outcome.calls, Disposition::Unanswered),
            _ => outcome,
        });
    }
}

impl<U: Upstream> KeptMessages<U> {
    /// Drops all messages whose time to live has ended.
    async fn drop_expired(&self) -> Looked {
        let now = Instant::now();
        let (mut after, mut next, mut ended) = (None, now + MAX_PAUSE, 0);
        loop {
            let page = self.spool.expired(after, now, PAGE);
            let Some(last) = page.last() else { break };
            after = Some(*last);
            let mut dropped = Vec::with_capacity(page.len());
            for (_, id) in page {
                match self.begin_expiry(id) {
                    Some(expired) => dropped.push(expired),
                    None => next = now + UNDER_WAY,
                }
            }
            // Else a stop would wait for their next try.
            self.queue.remove(&dropped.iter().map(|expired| expired.id).collect());
            ended += dropped.len();
            let until = Instant::now() + MAX_WRITE;
            for expired in dropped {
                expired.answer(until).await;
            }
        }
        let again = self.spool.next_expiry(now).map_or(next, |at| at.min(next));
        Looked { again, dropped: ended }
    }

    /// Drops a message that was handed out, and whose time to live has ended.
    pub(super) async fn expire(&self, id: MessageId) {
        if let Some(expired) = self.begin_expiry(id) {
            expired.answer(Instant::now() + MAX_WRITE).await;
        }
    }

    /// `None`: a call is under way, and its outcome counts; or it is not in its lane yet.
    fn begin_expiry(&self, id: MessageId) -> Option<ExpiredMessage> {
        self.queue.expiry_begins(id, |caller, doubt| {
            let expired = Expired { at: Timestamp::now(), accepted: caller.is_none() };
            let noted = self.spool.note(id, Change::Expired { expired, doubt: doubt.into() });
            if noted.changed {
                self.has_expired(id);
            }
            // An operator may have dropped it at this moment.
            let caller = caller.map(|caller| {
                let outcome = self.outcome_now(id, &caller);
                (caller, outcome)
            });
            ExpiredMessage { id, noted, caller }
        })
    }

    fn has_expired(&self, id: MessageId) {
        let brief = self.spool.find(id);
        let doubt = Doubt::from(brief.as_ref().is_some_and(|brief| brief.doubt));
        self.dispatcher.count_expired(doubt);
        if let Some(suppressed) = self.log.next() {
            let trace_id =
                brief.as_ref().and_then(|brief| brief.trace).map(tracing::field::display);
            let attempts = brief.as_ref().map(|brief| brief.attempts);
            let may_have_arrived = bool::from(doubt);
            tracing::info!(%id, trace_id, attempts, may_have_arrived, suppressed, "the message expired: its time to live (TTL) has ended, and tollgate sends it no more");
        }
        self.key_ends(id);
        self.stay_ends(id);
    }
}
