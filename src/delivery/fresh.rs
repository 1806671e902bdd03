//! A fresh message: its first call, and what becomes of it while its caller waits.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use super::batches::Hold;
use super::idempotency::First;
use super::kept::{Kept, asked, billed, said};
use super::outcome::{Disposition, Outcome};
use super::{PublishOptions, Shared};
use crate::answer::{AccessDenied, Answer, Verdict};
use crate::ceiling::{Class, Permit, Ticket};
use crate::deadline;
use crate::message::Message;
use crate::meter::{Call, CallKind, OverBudget};
use crate::spool::{Claim, KeepError, Tries};
use crate::upstream::{SendGate, Upstream};

/// Calls for one message while its caller waits, where nothing is kept: the first and two more.
const MAX_CALLS: u32 = 3;
/// The most that a second try waits where the provider named no time; the third twice as long.
const BACK_OFF: Duration = Duration::from_millis(50);

/// How a message begins.
pub(super) enum Plan {
    /// With a call, as soon as there is a permit.
    Call(Ticket),
    /// In the spool.
    Keep,
}

/// Who waits for the outcome, and until when.
pub(super) struct Caller {
    to: Option<oneshot::Sender<Outcome>>,
    pub(super) deadline: Instant,
    /// Its key is taken as long as it is here.
    first: Option<First>,
}

impl Caller {
    pub(super) fn new(
        to: oneshot::Sender<Outcome>,
        deadline: Instant,
        first: Option<First>,
    ) -> Self {
        Self { to: Some(to), deadline, first }
    }

    /// Tells it once. What is known only later is what the next request with its key is told.
    pub(super) fn tell(&mut self, outcome: Outcome) {
        if outcome.holds_key()
            && let Some(first) = self.first.take()
        {
            first.answered(&outcome);
        }
        if let Some(to) = self.to.take() {
            // It may have hung up.
            drop(to.send(outcome));
        }
    }

    fn is_told(&self) -> bool {
        self.to.is_none()
    }
}

impl<U: Upstream> Shared<U> {
    /// Decides at the door: what cannot be sent in time is refused, unless it may be kept.
    pub(super) fn plan(
        &self,
        message: &Message,
        wanted: &PublishOptions,
        deadline: Instant,
    ) -> Result<Plan, Disposition> {
        if self.stop.is_cancelled() {
            return Err(Disposition::Stopping);
        }
        let admitted = self.meter.admits(&message.instance, message.topic.parent());
        admitted.map_err(Disposition::OverBudget)?;
        if let Some(kept) = &self.kept {
            match kept.batches.trouble(&message.lane()) {
                Some(Hold::Denied(bar)) if !wanted.keep => return Err(Disposition::Denied(bar)),
                Some(_) => return Ok(Plan::Keep),
                None if wanted.keep && wanted.patience.is_zero() => return Ok(Plan::Keep),
                None => {}
            }
        }
        // A claimed message is durable before its call, so that a crash does not make the same
        // request a second message; its place among the calls is that of a kept message.
        let place = if self.kept.is_some() && wanted.claim.is_some() {
            self.ceiling.admits(deadline).map(|()| Plan::Keep)
        } else {
            self.ceiling.request(Class::Fresh, deadline).map(Plan::Call)
        };
        match place {
            Ok(plan) => Ok(plan),
            Err(_) if self.kept.is_some() && wanted.keep => Ok(Plan::Keep),
            Err(refused) => Err(Disposition::NoPermit(refused)),
        }
    }

    pub(super) async fn carry_out(
        &self,
        plan: Plan,
        message: Message,
        claim: Option<Claim>,
        mut caller: Caller,
    ) {
        let Some(kept) = &self.kept else {
            let Plan::Call(ticket) = plan else { return };
            return self.deliver(message, ticket, caller).await;
        };
        let ticket = match plan {
            Plan::Call(ticket) => ticket,
            Plan::Keep => return self.keep(kept, &message, claim, 0, None, &mut caller).await,
        };
        match self.turn(ticket).await {
            Ok(permit) => self.first_try(kept, &message, permit, &mut caller).await,
            Err(Disposition::Stopping) => caller.tell(Outcome::new(0, Disposition::Stopping)),
            Err(_) => self.keep(kept, &message, None, 0, None, &mut caller).await,
        }
    }

    /// A permit, unless no more calls are made.
    async fn turn(&self, ticket: Ticket) -> Result<Permit, Disposition> {
        let permit = self.stop.run_until_cancelled(ticket.permit()).await;
        permit.ok_or(Disposition::Stopping)?.map_err(Disposition::NoPermit)
    }

    /// Keeps a message and tells its caller what becomes of it. If it cannot be kept, its last call's
    /// `answer` is what became of it.
    async fn keep(
        &self,
        kept: &Arc<Kept<U>>,
        message: &Message,
        claim: Option<Claim>,
        calls: u32,
        answer: Option<Answer>,
        caller: &mut Caller,
    ) {
        let unknown = answer.as_ref().is_some_and(|a| a.verdict() == Verdict::Unknown);
        let tries = Tries { calls, unknown: unknown.into() };
        if let Err(error) = kept.keep(message, claim, tries, answer.as_ref(), caller).await {
            let ended = match error {
                KeepError::Unsure(_) => Disposition::Unanswered,
                error => answer.map_or(Disposition::NotKept(error), Disposition::Answered),
            };
            caller.tell(Outcome::new(calls, ended));
        }
    }

    /// The first call for a message that is not kept yet.
    async fn first_try(
        &self,
        kept: &Arc<Kept<U>>,
        message: &Message,
        mut permit: Permit,
        caller: &mut Caller,
    ) {
        let retry = kept.batches.retry();
        let may_repeat = retry.may_repeat(&message.topic);
        let mut calls = 1;
        loop {
            let (begun, entry) = match self.begin(message, permit, calls).await {
                Ok(begun) => begun,
                Err(over) => {
                    return caller.tell(Outcome::new(calls - 1, Disposition::OverBudget(over)));
                }
            };
            let departure = SendGate::new(caller.deadline, &self.stop);
            let mut call = std::pin::pin!(self.one_call(message, begun, entry, &departure));
            let answer = match deadline::by(caller.deadline, &mut call).await {
                Ok(answer) => answer,
                // A call that has not left by now never leaves, and ends at once.
                Err(_) if !departure.left() => call.await,
                Err(_) if may_repeat => {
                    return self.outlast(kept, message, calls, call, caller).await;
                }
                Err(_) => {
                    caller.tell(Outcome::new(calls, Disposition::Unanswered));
                    call.await
                }
            };
            kept.batches.heard(message.lane(), message.id, &said(&answer));
            if caller.is_told() {
                // That nobody knows: so it was not accepted, and is not ours.
                return caller.tell(Outcome::new(calls, Disposition::Answered(answer)));
            }
            let next = match answer.verdict() {
                Verdict::Failed | Verdict::Throttled { .. } => None,
                Verdict::Unknown if may_repeat && retry.unknown_tries > 0 => None,
                // A newer key or a corrected clock may help at once.
                Verdict::Denied(_) if calls < MAX_CALLS => {
                    let again = self.worth_another(&answer, calls, caller).await;
                    if again { self.another_permit(caller).await } else { None }
                }
                _ => return caller.tell(Outcome::new(calls, Disposition::Answered(answer))),
            };
            if let Some(next) = next {
                permit = next;
                calls += 1;
                continue;
            }
            if matches!(answer.verdict(), Verdict::Denied(_)) {
                return caller.tell(Outcome::new(calls, Disposition::Answered(answer)));
            }
            return self.keep(kept, message, None, calls, Some(answer), caller).await;
        }
    }

    /// Its caller's patience has ended while a call is on its way: the message is kept before
    /// anybody knows, and settled when the answer comes.
    async fn outlast(
        &self,
        kept: &Arc<Kept<U>>,
        message: &Message,
        calls: u32,
        call: impl Future<Output = Answer>,
        caller: &mut Caller,
    ) {
        // From when it is kept a peer may take it and give it back: not before this call has ended.
        let _reserved = kept.batches.reserve(message.id);
        let keep = async {
            // Its call is under way, and counts when it has ended.
            let stored = kept.store(message, None, Tries::default(), calls, caller).await;
            let is_kept = stored.is_ok_and(|kept| kept);
            let ended =
                if is_kept { Disposition::Kept(message.id) } else { Disposition::Unanswered };
            caller.tell(Outcome::new(calls, ended));
            is_kept
        };
        let call = async {
            let answer = call.await;
            kept.batches.heard(message.lane(), message.id, &said(&answer));
            answer
        };
        let (is_kept, answer) = tokio::join!(keep, call);
        if is_kept {
            let (said, again) = kept.settle(message, calls, &answer, true).await;
            if let Some(brief) = kept.spool.find(message.id).filter(|_| again) {
                kept.enqueue_after(&brief, asked(&said));
            }
        }
    }

    async fn deliver(&self, message: Message, ticket: Ticket, mut caller: Caller) {
        let mut permit = match self.turn(ticket).await {
            Ok(permit) => permit,
            Err(ended) => return caller.tell(Outcome::new(0, ended)),
        };
        let mut calls = 1;
        loop {
            let (begun, entry) = match self.begin(&message, permit, calls).await {
                Ok(begun) => begun,
                Err(over) => {
                    return caller.tell(Outcome::new(calls - 1, Disposition::OverBudget(over)));
                }
            };
            let answer = self.call(&message, begun, entry, calls, &mut caller).await;
            let again = calls < MAX_CALLS && self.worth_another(&answer, calls, &caller).await;
            let next = if again { self.another_permit(&caller).await } else { None };
            let Some(next) = next else {
                return caller.tell(Outcome::new(calls, Disposition::Answered(answer)));
            };
            permit = next;
            calls += 1;
        }
    }

    /// One call. Should its answer come later than the caller waits, the caller is told that
    /// nobody knows, and the answer is still counted.
    async fn call(
        &self,
        message: &Message,
        permit: Permit,
        entry: Call,
        calls: u32,
        caller: &mut Caller,
    ) -> Answer {
        let departure = SendGate::new(caller.deadline, &self.stop);
        let mut call = std::pin::pin!(self.one_call(message, permit, entry, &departure));
        if let Ok(answer) = deadline::by(caller.deadline, &mut call).await {
            return answer;
        }
        // A call that has not left by now never leaves, and ends at once.
        if departure.left() {
            caller.tell(Outcome::new(calls, Disposition::Unanswered));
        }
        call.await
    }

    /// Enters a call in the book before it leaves.
    async fn begin(
        &self,
        message: &Message,
        permit: Permit,
        calls: u32,
    ) -> Result<(Permit, Call), OverBudget> {
        if let Some((ceiling, wait)) = permit.waited() {
            self.meter.waited(ceiling as usize, wait);
        }
        let kind = if calls == 1 { CallKind::First } else { CallKind::Retry };
        match self.meter.begin(message, kind).await {
            Ok(entry) => Ok((permit, entry)),
            Err(over) => {
                permit.unsent();
                Err(over)
            }
        }
    }

    /// One call, counted.
    async fn one_call(
        &self,
        message: &Message,
        permit: Permit,
        entry: Call,
        departure: &SendGate,
    ) -> Answer {
        let start = Instant::now();
        let answer = self.upstream.send(message, permit, departure).await;
        let took = start.elapsed();
        let trace_id = message.trace.map(tracing::field::display);
        tracing::debug!(id = %message.id, trace_id, topic = %message.topic, code = %answer.label(), ?took, "called");
        entry.ended(&answer.label(), billed(&answer.verdict()), took);
        answer
    }

    /// Whether another try may succeed and cannot make a duplicate; returns when it is time for
    /// it.
    async fn worth_another(&self, answer: &Answer, calls: u32, caller: &Caller) -> bool {
        if caller.is_told() {
            // The caller was told; what may have been sent is not sent again.
            return false;
        }
        let pause = match answer.verdict() {
            Verdict::Denied(AccessDenied::Key) => {
                let renewed = timeout_at(caller.deadline, self.upstream.renew_key());
                let renewed = self.stop.run_until_cancelled(renewed).await;
                return renewed.is_some_and(|renewed| renewed.unwrap_or(false));
            }
            // The upstream has corrected its clock by the answer's; once.
            Verdict::Denied(AccessDenied::Clock) => return calls == 1,
            Verdict::Throttled { retry_after: Some(wait) } => wait,
            Verdict::Throttled { retry_after: None } | Verdict::Failed => self.back_off(calls),
            Verdict::Delivered
            | Verdict::Refused
            | Verdict::Unknown
            | Verdict::Denied(AccessDenied::Permission | AccessDenied::Endpoint) => return false,
        };
        if Instant::now() + pause >= caller.deadline {
            return false;
        }
        self.stop.run_until_cancelled(sleep(pause)).await.is_some()
    }

    /// Full jitter.
    fn back_off(&self, calls: u32) -> Duration {
        let most = BACK_OFF * (1 << (calls - 1));
        let mut jitter = self.jitter.lock().unwrap_or_else(PoisonError::into_inner);
        most.mul_f64(jitter.f64())
    }

    async fn another_permit(&self, caller: &Caller) -> Option<Permit> {
        let ticket = self.ceiling.request(Class::Retry, caller.deadline);
        self.turn(ticket.ok()?).await.ok()
    }
}
