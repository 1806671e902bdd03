//! A fresh message: its first calls, and what becomes of it while its caller waits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::attempt::{Dispatcher, NextStep, Repeat};
use super::caller::{Caller, Keeping, PublishOptions};
use super::contained::{Panicked, contained};
use super::idempotency::IdempotencyKeys;
use super::kept::KeptMessages;
use super::order::Turn;
use super::outcome::{Disposition, Outcome};
use super::retry_queue::PauseReason;
use super::signal::{Requeue, Signal};
use crate::answer::{AccessDenied, Answer, NextSignature, Verdict};
use crate::backoff::Backoff;
use crate::ceiling::{Class, Permit, PermitRequest, Ticket};
use crate::deadline;
use crate::fair_queue::Weights;
use crate::message::{Expiry, Lifespan, Message};
use crate::meter::CallKind;
use crate::spool::{Claim, Doubt, KeepError, Tries};
use crate::upstream::{SendGate, Upstream};

/// Calls for one message while its caller waits: the first and two more.
const MAX_CALLS: u32 = 3;
/// And one more where the last was refused for its key: two keys that are dead use those up, and the source may have
/// a third.
const MAX_CALLS_FOR_KEY: u32 = MAX_CALLS + 1;
/// Between these calls, where nothing is kept and the provider named no time.
const BACKOFF: Backoff =
    Backoff::exponential(Duration::from_millis(50), Duration::from_millis(100));

/// Takes fresh messages in.
#[derive(Debug)]
pub(super) struct Intake<U> {
    pub(super) dispatcher: Arc<Dispatcher<U>>,
    pub(super) keys: Arc<IdempotencyKeys>,
    pub(super) kept: Option<Arc<KeptMessages<U>>>,
    /// By which callers are served.
    pub(super) weights: Weights,
    pub(super) jitter: Mutex<fastrand::Rng>,
}

/// Which way a message takes to its first call, if it may be called at once and there is a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    /// It has a key, or follows one of its lane that has.
    ThroughSpool,
}

/// The calls that were made for a message, and the answer to the last.
struct Calls {
    calls: u32,
    answer: Option<Answer>,
}

impl Calls {
    const NONE: Self = Self { calls: 0, answer: None };

    /// Whether the last call may have arrived. None follows one that may have, but of a message that is kept.
    fn doubt(&self) -> Doubt {
        self.answer.as_ref().is_some_and(|answer| answer.verdict() == Verdict::Unknown).into()
    }
}

/// How a message begins.
pub(super) enum Plan<U> {
    /// With a call, as soon as there is a permit.
    Call(Ticket),
    /// In the spool.
    Keep(Arc<KeptMessages<U>>),
}

impl<U: Upstream> Intake<U> {
    /// Refuses at once what cannot be sent in time, unless it may be kept.
    pub(super) fn plan(
        &self,
        message: &Message,
        wanted: &PublishOptions,
        way: Way,
        deadline: Instant,
    ) -> Result<Plan<U>, Disposition> {
        let Dispatcher { ceiling, meter, stop, .. } = &*self.dispatcher;
        if stop.is_cancelled() {
            return Err(Disposition::Stopping);
        }
        if message.terms.is_over() {
            return Err(self.dispatcher.expired(Doubt::None));
        }
        let caller = message.caller.as_deref();
        let admitted = meter.admits(&message.instance, message.topic.parent(), caller);
        admitted.map_err(Disposition::OverBudget)?;
        let keep = |kept: &Arc<KeptMessages<U>>| Plan::Keep(Arc::clone(kept));
        let is_at_once = message.terms.lifespan == Lifespan::AtOnce;
        let is_preferred = wanted.keep == Keeping::Preferred && !is_at_once;
        if let Some(kept) = &self.kept {
            let lane = message.lane();
            kept.spool.published(&lane);
            match kept.queue.pause_reason(&lane) {
                Some(PauseReason::Denied(why)) if !is_preferred => {
                    return Err(Disposition::Denied(why));
                }
                // It would wait for a probe, and perhaps for more.
                Some(_) if is_at_once => return Err(self.dispatcher.expired(Doubt::None)),
                // Stored ones probe. Where there are none, its call says as much of the provider.
                Some(_) if wanted.keep == Keeping::Never && kept.queue.has_waiting(&lane) => {
                    return Err(Disposition::Paused);
                }
                Some(_) if wanted.keep == Keeping::Never => {}
                Some(_) => return Ok(keep(kept)),
                None if is_preferred && wanted.patience.is_zero() => return Ok(keep(kept)),
                None => {}
            }
        }
        let asks = PermitRequest {
            class: Class::Fresh,
            caller: self.weights.flow(message.caller.as_ref()),
            urgency: message.terms.urgency,
            deadline,
            ends: message.terms.expiry().map(Expiry::at),
        };
        let plan = match &self.kept {
            // A claimed message is durable before its call, so that a crash does not make the same
            // request a second message; it then queues for a permit like any kept message.
            Some(kept) if way == Way::ThroughSpool => ceiling.admits(&asks).map(|()| keep(kept)),
            _ => ceiling.ask(&asks).map(Plan::Call),
        };
        plan.or_else(|refused| match &self.kept {
            Some(kept) if is_preferred => Ok(keep(kept)),
            _ => Err(Disposition::NoPermit(refused)),
        })
    }

    /// Where the message may be kept, if it may.
    fn store(&self, message: &Message) -> Option<&Arc<KeptMessages<U>>> {
        self.kept.as_ref().filter(|_| message.terms.lifespan != Lifespan::AtOnce)
    }

    pub(super) async fn carry_out(
        &self,
        plan: Plan<U>,
        message: Message,
        PublishOptions { claim, keep, .. }: PublishOptions,
        turn: Option<Turn>,
        mut caller: Caller,
    ) {
        let (kept, claim, turn, calls) = match plan {
            Plan::Keep(kept) => (kept, claim, turn, Calls::NONE),
            Plan::Call(ticket) => {
                let keeper = self.store(&message).filter(|_| keep != Keeping::Never);
                let calls = match (self.dispatcher.permit(ticket, message.span()).await, keeper) {
                    (Ok(permit), _) => self.call(&message, permit, keeper, &mut caller).await,
                    // Until its end, or its caller's.
                    (Err(Disposition::NoPermit(_)), _) if message.terms.is_over() => {
                        Some(Calls::NONE)
                    }
                    (Err(Disposition::NoPermit(_)), Some(_)) => Some(Calls::NONE),
                    (Err(ended), _) => return caller.respond(Outcome::new(0, ended)),
                };
                let Some(calls) = calls else { return };
                if message.terms.is_over() {
                    let ended = self.dispatcher.expired(calls.doubt());
                    return caller.respond(Outcome::new(calls.calls, ended));
                }
                let Some(kept) = keeper else { return };
                (Arc::clone(kept), None, None, calls)
            }
        };
        // On the heap, as all that few messages come to: each message's task is moved with the room for it.
        Box::pin(Self::keep(&kept, message, claim, turn, calls, &mut caller)).await;
    }

    /// Keeps a message and answers its caller what becomes of it. If it cannot be kept, the answer to
    /// its last call is what became of it.
    async fn keep(
        kept: &Arc<KeptMessages<U>>,
        message: Message,
        claim: Option<Claim>,
        turn: Option<Turn>,
        Calls { calls, answer }: Calls,
        caller: &mut Caller,
    ) {
        let id = message.id;
        let unknown = answer.as_ref().is_some_and(|a| a.verdict() == Verdict::Unknown);
        let tries = Tries { calls, unknown: unknown.into() };
        let keeps = kept.keep(message, claim, tries, turn, answer.as_ref(), caller);
        let ended = match contained(keeps).await {
            Ok(Ok(())) => return,
            Err(Panicked) => {
                return kept.come_back(id, calls, Doubt::None, caller).await;
            }
            Ok(Err(KeepError::Unsure(_))) => Disposition::Unanswered,
            Ok(Err(error)) => answer.map_or(Disposition::NotKept(error), Disposition::Answered),
        };
        caller.respond(Outcome::new(calls, ended));
    }

    /// The calls for a message that is not kept yet. Returns them if `keeper` is to keep it now; else its
    /// caller is answered.
    async fn call(
        &self,
        message: &Message,
        mut permit: Permit,
        keeper: Option<&Arc<KeptMessages<U>>>,
        caller: &mut Caller,
    ) -> Option<Calls> {
        // Where it is not kept, no call follows one of unknown outcome.
        let repeat = keeper.map(|kept| Repeat::of(kept.queue.retry(), &message.topic));
        let repeat = repeat.unwrap_or(Repeat::Never);
        let mut calls = 1;
        loop {
            let kind = if calls == 1 { CallKind::First } else { CallKind::Retry };
            let attempt = self.dispatcher.attempt(message, permit, kind, message.span()).await;
            let attempt = match attempt {
                Ok(attempt) => attempt,
                Err(over) => {
                    let ended = Disposition::OverBudget(over);
                    caller.respond(Outcome::new(calls - 1, ended));
                    return None;
                }
            };
            let gate = SendGate::new(caller.sends_by, &self.dispatcher.stop);
            let mut call = std::pin::pin!(attempt.send(&gate));
            let answer = match (deadline::by(caller.deadline, &mut call).await, keeper) {
                (Ok(answer), _) => answer,
                // A call that has not left by now never leaves, and ends at once.
                (Err(_), _) if !gate.left() => call.await,
                (Err(_), Some(kept)) if repeat != Repeat::Never => {
                    Box::pin(Self::outlast(kept, message, calls, call, repeat, caller)).await;
                    return None;
                }
                (Err(_), _) => {
                    caller.respond(Outcome::new(calls, Disposition::Unanswered));
                    call.await
                }
            };
            // Of a call whose caller was already answered `unknown` we did not accept the message: it is
            // neither called for again nor kept.
            let is_answered = caller.is_answered();
            let next = NextStep::of(&answer, repeat, 0);
            let most = match next {
                NextStep::Access(AccessDenied::Key) => MAX_CALLS_FOR_KEY,
                _ => MAX_CALLS,
            };
            let again = match next {
                _ if is_answered || calls >= most => false,
                NextStep::Access(why) => {
                    Box::pin(self.regains_access(why, &answer, calls, caller)).await
                }
                NextStep::Retry(after) if keeper.is_none() => {
                    Box::pin(self.pauses(after, calls, caller)).await
                }
                _ => false,
            };
            // A lane whose calls have another key now is not paused.
            let has_access = again && next == NextStep::Access(AccessDenied::Key);
            if let Some(kept) = self.kept.as_ref().filter(|_| !has_access) {
                kept.queue.observe(message.lane(), message.id, Signal::of(&answer));
            }
            let mut without_permit = None;
            if again {
                match Box::pin(self.another_permit(message, caller)).await {
                    Ok(another) => {
                        permit = another;
                        calls += 1;
                        continue;
                    }
                    Err(ended) => without_permit = Some(ended),
                }
            }
            let follows = again || answer.has_other_key() || matches!(next, NextStep::Retry(_));
            // Of one whose time to live has ended, that is its end.
            let is_over =
                matches!(next, NextStep::Retry(_) | NextStep::Access(_)) && message.terms.is_over();
            if follows && !is_answered && (keeper.is_some() || is_over) {
                return Some(Calls { calls, answer: Some(answer) });
            }
            // Not the refusal of a key that the next call would not have had.
            let ended = match (without_permit, next) {
                (Some(ended), NextStep::Access(_)) => ended,
                _ => Disposition::Answered(answer),
            };
            caller.respond(Outcome::new(calls, ended));
            return None;
        }
    }

    /// The caller's wait has expired while a call is on its way: the message is kept before the outcome
    /// is known.
    async fn outlast(
        kept: &Arc<KeptMessages<U>>,
        message: &Message,
        calls: u32,
        call: impl Future<Output = Answer>,
        repeat: Repeat,
        caller: &mut Caller,
    ) {
        // Once it is kept, a peer may take it and give it back: it is not queued before this call ends.
        let fresh_call = kept.queue.fresh_call_begins(message.id);
        let kept_meanwhile = Self::keep_meanwhile(kept, message, calls, call, repeat, caller);
        if contained(kept_meanwhile).await == Err(Panicked) {
            kept.come_back(message.id, calls, Doubt::Possible, caller).await;
            fresh_call.panicked();
        }
    }

    /// Keeps a message while a call is on its way, and records the outcome when the answer comes.
    async fn keep_meanwhile(
        kept: &Arc<KeptMessages<U>>,
        message: &Message,
        calls: u32,
        call: impl Future<Output = Answer>,
        repeat: Repeat,
        caller: &mut Caller,
    ) {
        let keep = async {
            // The call under way is counted when it has ended.
            let stored = kept.store(message, None, Tries::default(), calls, caller).await;
            let is_kept = stored.is_ok_and(|kept| kept);
            let ended =
                if is_kept { Disposition::Kept(message.id) } else { Disposition::Unanswered };
            caller.respond(Outcome::new(calls, ended));
            is_kept
        };
        let call = async {
            let answer = call.await;
            kept.queue.observe(message.lane(), message.id, Signal::of(&answer));
            answer
        };
        let (is_kept, answer) = tokio::join!(keep, call);
        if is_kept {
            let (signal, requeue) = kept.record(message, calls, &answer, repeat).await;
            if requeue == Requeue::Yes
                && let Some(brief) = kept.spool.find(message.id)
            {
                kept.enqueue_after(&brief, signal.retry_after());
            }
        }
    }

    /// Whether another call may be let in, while the caller waits.
    async fn regains_access(
        &self,
        why: AccessDenied,
        answer: &Answer,
        calls: u32,
        caller: &Caller,
    ) -> bool {
        match why {
            _ if answer.has_other_key() => true,
            AccessDenied::Key => {
                let renewed = timeout_at(caller.sends_by, self.dispatcher.upstream.renew_key());
                let renewed = self.dispatcher.stop.run_until_cancelled(renewed).await;
                renewed.is_some_and(|renewed| renewed.unwrap_or(false))
            }
            // The upstream corrects its clock when two answers agree: the second, if this is the first.
            AccessDenied::Clock => {
                calls == 1
                    || answer.http().is_some_and(|http| http.next == NextSignature::OtherTime)
            }
            AccessDenied::Permission | AccessDenied::Endpoint => false,
        }
    }

    /// Waits before the next call. `false`: the caller does not wait as long, or we stop.
    async fn pauses(&self, after: Option<Duration>, calls: u32, caller: &Caller) -> bool {
        let pause = after.unwrap_or_else(|| {
            let mut jitter = self.jitter.lock().unwrap_or_else(PoisonError::into_inner);
            BACKOFF.after(calls, jitter.f64())
        });
        Instant::now() + pause < caller.sends_by
            && self.dispatcher.stop.run_until_cancelled(sleep(pause)).await.is_some()
    }

    async fn another_permit(
        &self,
        message: &Message,
        caller: &Caller,
    ) -> Result<Permit, Disposition> {
        let asks = PermitRequest {
            class: Class::Retry,
            caller: self.weights.flow(message.caller.as_ref()),
            urgency: message.terms.urgency,
            deadline: caller.deadline,
            ends: message.terms.expiry().map(Expiry::at),
        };
        let ticket = self.dispatcher.ceiling.ask(&asks);
        let ticket = ticket.map_err(Disposition::NoPermit)?;
        self.dispatcher.permit(ticket, message.span()).await
    }
}
