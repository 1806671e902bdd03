//! One more try for a kept message, be it a probe or not: from its lane to its call and back.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use super::attempt::Repeat;
use super::contained::{Panicked, contained};
use super::endings::death;
use super::kept::{AFTER_PANIC, KeptMessages, MAX_WRITE};
use super::lane::RetryItem;
use super::order::Turn;
use super::outcome::{Disposition, Outcome};
use super::retry_queue::MayCall;
use super::signal::{HoldReason, Requeue, Signal};
use super::spans;
use super::stay::StayEnd;
use crate::ceiling::{Class, Permit, PermitRequest};
use crate::message::{self, Expiry, Message, MessageId, SpanContext, Topic};
use crate::meter::{CallKind, OverBudget};
use crate::spool::{Change, Doubt, Effect, KeepError, ReadError, Reason, Record, Tries};
use crate::upstream::{SendGate, Upstream};

/// A kept message waits this long for a permit, and then for its call to leave: no caller's patience
/// bounds it.
const MAX_WAIT: Duration = Duration::from_mins(10);

/// After a failure of this machine. No call was made.
const LOCAL_FAILURE: Signal = Signal::Postpone(Duration::from_secs(1));

/// The longest wait while a budget is used up.
const LOOK_AGAIN: Duration = Duration::from_mins(1);

/// The turns of a message among those of its lane. It gets memory in this order, too: one that has it
/// must not wait for one that waits for it.
pub(super) struct Turns {
    pub(super) memory: Turn,
    /// Until it has its place in the ceiling's queue, or needs none.
    pub(super) call: Turn,
}

/// The signal of a try, and whether its message waits on.
type TryResult = (Signal, Requeue);

/// Of a try that panics.
const PANICKED: TryResult = (Signal::Postpone(AFTER_PANIC), Requeue::Yes);

/// A message that was handed out. It comes back to its lane when this is dropped, whatever has panicked.
pub(super) struct HandedOut<U: Upstream> {
    kept: Arc<KeptMessages<U>>,
    lane: message::Lane,
    item: RetryItem,
    turns: Option<Turns>,
    tried: TryResult,
    /// Its time to live has ended during its call.
    has_expired: bool,
}

impl<U: Upstream> Drop for HandedOut<U> {
    fn drop(&mut self) {
        let (signal, requeue) = self.tried;
        let attempts = self.item.attempts + u32::from(!signal.is_without_call());
        self.kept.queue.ended(&self.lane, RetryItem { attempts, ..self.item }, signal, requeue);
        if requeue == Requeue::Hold(HoldReason::NotAllowed) {
            // The rule may have changed meanwhile.
            self.kept.release(self.item.id);
        }
        if self.has_expired {
            self.kept.expiries.notify_one();
        }
    }
}

/// How long a message waits whose budget is used up: to its next period, but budgets may change.
fn budget_wait(over: &OverBudget) -> Duration {
    let left = over.until.duration_since(Timestamp::now());
    Duration::try_from(left).unwrap_or_default().clamp(Duration::from_secs(1), LOOK_AGAIN)
}

impl<U: Upstream> HandedOut<U> {
    pub(super) fn new(
        kept: &Arc<KeptMessages<U>>,
        lane: message::Lane,
        item: RetryItem,
        turns: Turns,
    ) -> Self {
        Self {
            kept: Arc::clone(kept),
            lane,
            item,
            turns: Some(turns),
            tried: PANICKED,
            has_expired: false,
        }
    }

    /// One try.
    pub(super) async fn try_again(mut self) {
        let (kept, item) = (Arc::clone(&self.kept), self.item);
        let tried = async {
            // It is tried once.
            let turns = self.turns.take().ok_or((Signal::NoCall, Requeue::Yes))?;
            kept.try_once(&self.lane, item, turns).await
        };
        match contained(tried).await {
            Ok(Ok(tried) | Err(tried)) => self.tried = tried,
            Err(Panicked) if kept.queue.is_calling(item.id) => {
                self.item.attempts += 1;
                kept.record_panic(item.id, self.item.attempts).await;
            }
            Err(Panicked) => {}
        }
        // An operator may have dropped it meanwhile.
        let queued = kept.queued(item.id);
        self.has_expired =
            queued.as_ref().and_then(|brief| brief.expiry).is_some_and(Expiry::is_over);
        if queued.is_none() {
            self.tried.1 = Requeue::No;
            if self.tried.0.is_without_call() {
                kept.decide_drop(item.id, Doubt::None);
            }
        }
    }
}

impl<U: Upstream> KeptMessages<U> {
    /// `Err`: no call was made.
    async fn try_once(
        &self,
        lane: &message::Lane,
        item: RetryItem,
        Turns { memory: mut turn, call }: Turns,
    ) -> Result<TryResult, TryResult> {
        turn.comes().await;
        let _memory = self.memory.turn(self.spool.size(item.id)).await;
        drop(turn);
        if self.dispatcher.stop.is_cancelled() {
            return Err((Signal::NoCall, Requeue::Yes));
        }
        let (message, stay) = self.ready(lane, item).await?;
        let permit = self.permit(&message, item, call, stay).await?;
        let repeat = Repeat::of(self.queue.retry(), &message.topic);
        let closes = match self.prepare(&message, item, repeat).await {
            Ok(closes) => closes,
            Err(tried) => {
                permit.unsent();
                return Err(tried);
            }
        };
        let kind = match item {
            RetryItem { probe: true, .. } => CallKind::Probe,
            RetryItem { attempts: 0, .. } => CallKind::First,
            _ => CallKind::Retry,
        };
        let attempt = self.dispatcher.attempt(&message, permit, kind, stay).await;
        let attempt = attempt.map_err(|over| {
            self.uncall(item);
            (Signal::OverBudget(budget_wait(&over)), Requeue::Yes)
        })?;
        let answer = attempt.send(&SendGate::new(closes, &self.dispatcher.stop)).await;
        Ok(self.record(&message, item.attempts + 1, &answer, repeat).await)
    }

    /// The message, if it is to be tried now, and the span of its stay.
    async fn ready(
        &self,
        lane: &message::Lane,
        item: RetryItem,
    ) -> Result<(Message, Option<SpanContext>), TryResult> {
        let gone = (Signal::NoCall, Requeue::No);
        let id = item.id;
        let Some(brief) = self.queued(id) else { return Err(gone) };
        if brief.expiry.is_some_and(Expiry::is_over) {
            self.expire(id).await;
            return Err(gone);
        }
        self.may_go(id, &brief.topic)?;
        if Instant::now() >= item.expires {
            self.dead_letter(id, item.attempts, death(Reason::Expired, None), None).await;
            return Err(gone);
        }
        let caller = brief.caller.as_deref();
        if let Err(over) = self.dispatcher.meter.admits(&lane.instance, &lane.parent, caller) {
            return Err((Signal::OverBudget(budget_wait(&over)), Requeue::Yes));
        }
        if self.spool.is_ours().is_err() {
            return Err((LOCAL_FAILURE, Requeue::Yes));
        }
        match self.spool.read(id).await {
            Ok(Record { message, .. }) => {
                // Its call is to be noted before it leaves: no permit for what cannot be.
                let repeat = Repeat::of(self.queue.retry(), &message.topic);
                if repeat == Repeat::Never && self.spool.usage().failure.is_some() {
                    return Err((LOCAL_FAILURE, Requeue::Yes));
                }
                Ok((message, spans::stay(&brief)))
            }
            Err(ReadError::Absent) => {
                self.readers.ended(id);
                Err(gone)
            }
            Err(error @ ReadError::Damaged) => {
                let trace_id = self.trace(id).map(tracing::field::display);
                tracing::error!(%id, trace_id, %error, "an accepted message is lost: its bytes in the spool are damaged");
                if let Some(caller) = self.queue.take_caller(id) {
                    let ended = match item.attempts {
                        0 => Disposition::NotKept(KeepError::Disk(error.to_string().into())),
                        _ => Disposition::Unanswered,
                    };
                    caller.respond(Outcome::new(item.attempts, ended));
                }
                self.stay_ends_as(&brief, StayEnd::Damaged);
                self.readers.ended(id);
                Err(gone)
            }
            Err(ReadError::Unverified) => {
                self.log_held(id, HoldReason::Unverified);
                Err((Signal::NoCall, Requeue::Hold(HoldReason::Unverified)))
            }
            Err(ReadError::Disk(error) | ReadError::Redis(error)) => {
                if let Some(suppressed) = self.log.next() {
                    let error = &*error;
                    let trace_id = self.trace(id).map(tracing::field::display);
                    tracing::warn!(%id, trace_id, error, suppressed, "the spool cannot be read");
                }
                Err((LOCAL_FAILURE, Requeue::Yes))
            }
        }
    }

    /// Else the configuration has changed since the message was put into its lane.
    fn may_go(&self, id: MessageId, topic: &Topic) -> Result<(), TryResult> {
        if self.may_send(topic) {
            return Ok(());
        }
        self.log_held(id, HoldReason::NotAllowed);
        Err((Signal::NoCall, Requeue::Hold(HoldReason::NotAllowed)))
    }

    async fn permit(
        &self,
        message: &Message,
        item: RetryItem,
        mut turn: Turn,
        stay: Option<SpanContext>,
    ) -> Result<Permit, TryResult> {
        turn.comes().await;
        let asks = PermitRequest {
            class: if item.attempts == 0 { Class::Fresh } else { Class::Retry },
            caller: item.caller,
            urgency: item.urgency,
            deadline: Instant::now() + MAX_WAIT,
            ends: message.terms.expiry().map(Expiry::at),
        };
        let ticket = self.dispatcher.ceiling.ask(&asks);
        drop(turn);
        let ticket = ticket.map_err(|_| (LOCAL_FAILURE, Requeue::Yes))?;
        self.dispatcher.permit(ticket, stay).await.map_err(|_| (Signal::NoCall, Requeue::Yes))
    }

    /// Looks at the message once more, since its permit may have been long in coming, and notes the call
    /// where none may follow it. Returns until when the call may leave.
    async fn prepare(
        &self,
        message: &Message,
        item: RetryItem,
        repeat: Repeat,
    ) -> Result<Instant, TryResult> {
        let id = item.id;
        let no_call = (Signal::NoCall, Requeue::Yes);
        // The ownership deadline is read before the lookup: a peer can claim the message only after it.
        let ours = self.spool.is_ours().map_err(|_| (LOCAL_FAILURE, Requeue::Yes))?;
        let latest = Instant::now() + MAX_WAIT;
        let closes = message.terms.by(ours.map_or(latest, |ours| ours.min(latest)));
        let other_probes = !item.probe && self.queue.pause_reason(&message.lane()).is_some();
        if self.dispatcher.stop.is_cancelled() || other_probes || message.terms.is_over() {
            return Err(no_call);
        }
        self.may_go(id, &message.topic)?;
        match self.queue.call_begins(id, || self.find_state(id)) {
            MayCall::Yes => {}
            MayCall::Gone => return Err(no_call),
            MayCall::CalledByOther => {
                // A peer had the message meanwhile and has called. Its outcome is unknown.
                let death = death(Reason::Unknown, None);
                self.dead_letter(id, item.attempts + 1, death, None).await;
                return Err((Signal::NoCall, Requeue::No));
            }
        }
        if repeat == Repeat::Never {
            // Durable before it leaves, or a crash would repeat it.
            let noted = self.spool.note(id, Change::Calling);
            if !noted.changed {
                // It has ended since it was looked for.
                return Err(no_call);
            }
            match timeout(MAX_WRITE, noted).await {
                Ok(Effect::NotOwned) => return Err(no_call),
                Ok(_) => {}
                Err(_) => {
                    self.uncall(item);
                    return Err((LOCAL_FAILURE, Requeue::Yes));
                }
            }
        }
        Ok(closes)
    }

    /// Notes that a call which was about to leave did not.
    fn uncall(&self, item: RetryItem) {
        let unknown = self.spool.find(item.id).map_or(0, |brief| brief.unknown);
        let tries = Tries { calls: item.attempts, unknown };
        drop(self.spool.note(item.id, Change::Tried(tries)));
    }
}
