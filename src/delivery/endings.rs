//! How a kept message ends, and what its waiting caller and its key are answered.

use jiff::Timestamp;
use tokio::time::timeout;

use super::kept::{DISK, Kept};
use super::outcome::{Disposition, Outcome};
use super::waiters::Waiter;
use crate::answer::Answer;
use crate::message::{Message, MessageId};
use crate::spool::{Brief, Change, Death, Effect, Noted, Reason, Receipt, State};
use crate::upstream::Upstream;

/// Why a message is a dead letter that may be sent again, but not for ever.
pub(super) const TOO_MANY_UNKNOWN: &str =
    "the outcome of as many calls is unknown as may be (retry.unknown_tries)";

impl<U: Upstream> Kept<U> {
    /// What a waiting caller is answered now.
    pub(super) fn now(&self, id: MessageId, waiter: &Waiter) -> Outcome {
        match self.spool.find(id) {
            Some(Brief { state: State::Queued { .. }, .. }) => Outcome::kept(id),
            Some(Brief { state: State::Dropped(_), attempts, .. }) => waiter.dropped(id, attempts),
            Some(brief) => Outcome::of(&brief),
            None if waiter.is_dropped() => waiter.dropped(id, 0),
            // Another sidecar has taken it over.
            None => Outcome::kept(id),
        }
    }

    /// An operator has dropped a message, unless it had ended before, or is a peer's.
    pub(super) fn dropped(&self, before: &Brief, effect: Effect) {
        self.batches.waiters.drop_ends(before.id, before.attempts, effect);
        let is_made = effect == Effect::Made;
        if let Some(brief) = self.spool.find(before.id).filter(|_| is_made) {
            self.keys.ended(&brief);
        }
    }

    pub(super) async fn delivered(&self, message: &Message, attempts: u32, answer: &Answer) {
        let id = message.id;
        let caller = self.batches.waiters.take(id);
        let text = |text: Option<&Box<str>>| text.cloned().unwrap_or_default();
        let receipt = Receipt {
            msg_id: text(answer.http().and_then(|http| http.msg_id.as_ref())),
            request_id: text(answer.http().and_then(|http| http.request_id.as_ref())),
            at: Timestamp::now(),
            accepted: caller.is_none(),
        };
        let noted = self.spool.note(id, Change::Delivered(attempts, receipt));
        if let Some(brief) = self.spool.find(id) {
            self.keys.ended(&brief);
        }
        let Some(caller) = caller else { return };
        // Durable before it is told: else a crash now would deliver again what is known to be
        // delivered. A disk that takes nothing keeps nobody waiting.
        drop(timeout(DISK, noted).await);
        drop(caller.to.send(Outcome::new(attempts, Disposition::Answered(answer.clone()))));
    }

    /// A call has ended whose message was dropped meanwhile, and did not deliver it for certain.
    /// `doubt`: it may have.
    pub(super) fn dropped_meanwhile(&self, id: MessageId, doubt: bool) {
        let decides = self.batches.decides(id);
        let Some(Brief { state: State::Dropped(_), doubt: before, .. }) = self.spool.find(id)
        else {
            return;
        };
        if doubt != before && (doubt || decides) {
            drop(self.spool.note(id, Change::Decided { doubt }));
            if let Some(brief) = self.spool.find(id) {
                self.keys.ended(&brief);
            }
        }
    }

    /// A message becomes a dead letter, and its waiting caller is answered so. `why`: for the log,
    /// where the reason does not say it all.
    pub(super) async fn bury(
        &self,
        id: MessageId,
        attempts: u32,
        mut death: Death,
        why: Option<&str>,
    ) {
        let waiter = self.batches.waiters.take(id);
        death.accepted = waiter.is_none();
        let noted = self.dead(id, attempts, death, why);
        let Some(waiter) = waiter else { return };
        let mut outcome = self.now(id, &waiter);
        // Durable before it is answered: else a crash now would send again what is answered to be
        // at its end. A disk that takes nothing keeps no caller waiting.
        if timeout(DISK, noted).await == Ok(Effect::TransportError) {
            // A peer goes on with it.
            outcome = Outcome::new(attempts, Disposition::Unanswered);
        }
        drop(waiter.to.send(outcome));
    }

    /// A message becomes a dead letter.
    pub(super) fn dead(
        &self,
        id: MessageId,
        attempts: u32,
        death: Death,
        why: Option<&str>,
    ) -> Noted {
        if let Some(suppressed) = self.lines.next() {
            let (reason, code) = (death.reason, death.code.as_deref());
            let trace_id = self.trace(id).map(tracing::field::display);
            tracing::warn!(%id, trace_id, ?reason, why, attempts, code, suppressed, "a message is a dead letter");
        }
        let noted = self.spool.note(id, Change::Dead(attempts, death));
        if let Some(brief) = self.spool.find(id) {
            self.keys.ended(&brief);
        }
        noted
    }
}

/// A dead letter's end now, as the last `answer` has it. No caller was answered 202.
pub(super) fn death(reason: Reason, answer: Option<&Answer>) -> Death {
    let code = answer.map(|answer| answer.label().into_owned().into_boxed_str());
    let http = answer.and_then(Answer::http);
    let request_id = http.and_then(|http| http.request_id.clone());
    Death { reason, code, request_id, at: Timestamp::now(), accepted: false }
}
