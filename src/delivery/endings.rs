//! What a call for a kept message came to: what the spool notes of it, and what the waiting caller and
//! the key of the message are answered.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;

use super::attempt::{NextStep, Repeat};
use super::idempotency::is_queued;
use super::kept::{KeptMessages, MAX_WRITE};
use super::outcome::{Disposition, Outcome};
use super::signal::{Requeue, Signal};
use super::stay::StayEnd;
use crate::answer::{AccessDenied, Answer, CleanText, Verdict};
use crate::message::{Message, MessageId};
use crate::spool::{Brief, Change, Death, Doubt, Effect, Noted, Reason, Receipt, State, Tries};
use crate::upstream::Upstream;

/// Why a message is a dead letter that may be sent again, but not for ever.
const TOO_MANY_UNKNOWN: &str =
    "the outcome of as many calls is unknown as may be (retry.unknown_tries)";

/// How long a kept message waits for a look at where the key comes from, which may hang.
const MAX_RENEWAL: Duration = Duration::from_secs(30);

impl<U: Upstream> KeptMessages<U> {
    /// Records the answer to a call for a kept message, `attempts` calls in all.
    pub(super) async fn record(
        &self,
        message: &Message,
        attempts: u32,
        answer: &Answer,
        repeat: Repeat,
    ) -> (Signal, Requeue) {
        let (id, signal) = (message.id, Signal::of(answer));
        let is_unknown = answer.verdict() == Verdict::Unknown;
        if is_unknown {
            self.queue.mark_uncertain(id);
        }
        let brief = self.queued(id);
        let unknown = brief.as_ref().map_or(0, |brief| brief.unknown);
        match NextStep::of(answer, repeat, unknown) {
            NextStep::Delivered => self.delivered(message, attempts, answer).await,
            _ if brief.is_none() => self.decide_drop(id, is_unknown.into()),
            NextStep::Refused => self.refused(id, attempts, answer).await,
            NextStep::Uncertain => self.uncertain(id, attempts, repeat, Some(answer)).await,
            next @ (NextStep::Access(_) | NextStep::Retry(_)) => {
                // Before a key is waited for: otherwise a crash here would make the definite failure
                // look like a call under way.
                let tries = Tries { calls: attempts, unknown: unknown + u32::from(is_unknown) };
                drop(self.spool.note(id, Change::Tried(tries)));
                if next == NextStep::Access(AccessDenied::Key) {
                    let renewed = timeout(MAX_RENEWAL, self.dispatcher.upstream.renew_key());
                    self.dispatcher.stop.run_until_cancelled(renewed).await;
                }
                return (signal, Requeue::Yes);
            }
        }
        (signal, Requeue::No)
    }

    /// A panic has ended a try whose call had begun, `attempts` calls in all. The outcome of that call counts
    /// as unknown, also where the panic came after it was noted.
    pub(super) async fn record_panic(&self, id: MessageId, attempts: u32) {
        self.queue.mark_uncertain(id);
        let Some(brief) = self.queued(id) else { return self.decide_drop(id, Doubt::Possible) };
        let repeat = Repeat::of(self.queue.retry(), &brief.topic);
        if repeat.follows(brief.unknown) {
            let tries = Tries { calls: attempts, unknown: brief.unknown + 1 };
            drop(self.spool.note(id, Change::Tried(tries)));
        } else {
            self.uncertain(id, attempts, repeat, None).await;
        }
    }

    /// The last call may have arrived, and no other may follow it.
    async fn uncertain(
        &self,
        id: MessageId,
        attempts: u32,
        repeat: Repeat,
        answer: Option<&Answer>,
    ) {
        let why = (repeat != Repeat::Never).then_some(TOO_MANY_UNKNOWN);
        self.dead_letter(id, attempts, death(Reason::Unknown, answer), why).await;
    }

    async fn delivered(&self, message: &Message, attempts: u32, answer: &Answer) {
        let id = message.id;
        let caller = self.queue.take_caller(id);
        let text = |text: Option<&CleanText>| text.cloned().unwrap_or_default().into();
        let receipt = Receipt {
            msg_id: text(answer.http().and_then(|http| http.msg_id.as_ref())),
            request_id: text(answer.http().and_then(|http| http.request_id.as_ref())),
            at: Timestamp::now(),
            accepted: caller.is_none(),
        };
        // One that was dropped during its call has ended before.
        let was_queued = self.dispatcher.traces.is_on() && self.queued(id).is_some();
        let noted = self.spool.note(id, Change::Delivered(attempts, receipt));
        self.key_ends(id);
        if was_queued {
            self.stay_ends(id);
        }
        let Some(caller) = caller else { return };
        // Durable before it is answered: else a crash now would deliver again what is known to be
        // delivered. A hung disk delays no caller for longer.
        drop(timeout(MAX_WRITE, noted).await);
        caller.respond(Outcome::new(attempts, Disposition::Answered(answer.clone())));
    }

    /// The provider will never take the message. A caller who waits, and is certain to have had no call
    /// that arrived, learns that: then the message was never accepted, also not after a crash.
    async fn refused(&self, id: MessageId, attempts: u32, answer: &Answer) {
        let Some(caller) = self.queue.take_caller_if_certain(id) else {
            let death = death(Reason::Refused, Some(answer));
            return self.dead_letter(id, attempts, death, None).await;
        };
        let stays = self.dispatcher.traces.is_on().then(|| self.queued(id)).flatten();
        let forgotten = self.spool.note(id, Change::Forgotten);
        if let Some(brief) = stays {
            self.stay_ends_as(&brief, StayEnd::Refused);
        }
        self.readers.ended(id);
        let ended = match timeout(MAX_WRITE, forgotten).await {
            Ok(Effect::Made | Effect::Unchanged) => Disposition::Answered(answer.clone()),
            // What is not forgotten is tried again, by a peer or the next process.
            Ok(Effect::NotOwned) | Err(_) => Disposition::Unanswered,
        };
        caller.respond(Outcome::new(attempts, ended));
    }

    /// A message becomes a dead letter, and its waiting caller is answered so. `why`: for the log,
    /// where the reason does not say it all.
    pub(super) async fn dead_letter(
        &self,
        id: MessageId,
        attempts: u32,
        mut death: Death,
        why: Option<&str>,
    ) {
        let caller = self.queue.take_caller(id);
        death.accepted = caller.is_none();
        let noted = self.note_dead(id, attempts, death, why);
        let Some(caller) = caller else { return };
        let mut outcome = self.outcome_now(id, &caller);
        // Durable before it is answered: else a crash now would send again what is answered to be
        // at its end. A hung disk delays no caller for longer.
        if timeout(MAX_WRITE, noted).await == Ok(Effect::NotOwned) {
            // A peer goes on with it.
            outcome = Outcome::new(attempts, Disposition::Unanswered);
        }
        caller.respond(outcome);
    }

    /// A message becomes a dead letter.
    pub(super) fn note_dead(
        &self,
        id: MessageId,
        attempts: u32,
        death: Death,
        why: Option<&str>,
    ) -> Noted {
        if let Some(suppressed) = self.log.next() {
            let Death { reason, code, request_id, .. } = &death;
            let (code, upstream_request_id) = (code.as_deref(), request_id.as_deref());
            let brief = self.spool.find(id);
            let topic = brief.as_ref().map(|brief| tracing::field::display(&brief.topic));
            let trace_id =
                brief.as_ref().and_then(|brief| brief.trace).map(tracing::field::display);
            tracing::warn!(%id, trace_id, topic, reason = reason.as_str(), why, attempts, code, upstream_request_id, suppressed, "the message became a dead letter: tollgate does not retry it; replay or drop it (tollgate messages)");
        }
        let noted = self.spool.note(id, Change::Dead(attempts, death));
        self.key_ends(id);
        if noted.changed {
            self.stay_ends(id);
        }
        noted
    }

    /// An operator has dropped a message, unless it had ended before, or is a peer's.
    pub(super) fn dropped(&self, before: &Brief, effect: Effect) {
        self.queue.drop_ends(before.id, before.attempts, effect);
        if effect == Effect::Made {
            self.key_ends(before.id);
            if is_queued(before) {
                self.stay_ends(before.id);
            }
        }
    }

    /// A try has ended whose message was dropped meanwhile, and did not deliver it for certain.
    /// `doubt`: its call may have arrived.
    pub(super) fn decide_drop(&self, id: MessageId, doubt: Doubt) {
        let decides = self.queue.take_dropped_during_call(id);
        let Some(Brief { state: State::Dropped(_) | State::Expired(_), doubt: before, .. }) =
            self.spool.find(id)
        else {
            return;
        };
        if doubt != before.into() && (doubt == Doubt::Possible || decides) {
            drop(self.spool.note(id, Change::Decided { doubt: doubt.into() }));
            self.key_ends(id);
        }
    }

    /// From now on the key of this message is taken for as long as ended messages' are. Readers that wait
    /// for its end go on.
    pub(super) fn key_ends(&self, id: MessageId) {
        self.readers.ended(id);
        if let Some(brief) = self.spool.find(id) {
            self.keys.ended(&brief);
        }
    }
}

/// A dead letter's end now, as the last `answer` has it. No caller was answered 202.
pub(super) fn death(reason: Reason, answer: Option<&Answer>) -> Death {
    let code = answer.map(|answer| answer.cause().into_owned().into_boxed_str());
    let http = answer.and_then(Answer::http);
    let request_id = http.and_then(|http| http.request_id.clone()).map(Into::into);
    Death { reason, code, request_id, at: Timestamp::now(), accepted: false }
}
