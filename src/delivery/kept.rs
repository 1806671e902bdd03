//! A kept message's next try, from the spool to its end.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::batches::{Batches, SetsOut};
use super::endings::{TOO_MANY_UNKNOWN, death};
use super::fresh::Caller;
use super::idempotency::Keys;
use super::lane::{Item, Said};
use super::outcome::{Disposition, Outcome};
use crate::answer::{AccessDenied, Answer, TransportError, Verdict};
use crate::ceiling::{Ceiling, Class, Permit};
use crate::deadline;
use crate::log_limiter::LogLimiter;
use crate::message::{self, Message, MessageId, TraceId};
use crate::meter::{Billed, Call, CallKind, Meter, OverBudget};
use crate::spool::{
    Brief, Change, Claim, Effect, KeepError, ReadError, Reason, Record, Spool, State, Tries,
};
use crate::upstream::{SendGate, Upstream};

/// A kept message has no caller whose patience ends: its turn may take its time.
const TURN: Duration = Duration::from_mins(10);

/// What a disk may take that works. Nobody is kept waiting for longer by one that does not.
pub(super) const DISK: Duration = Duration::from_secs(2);

/// Until what went wrong on this machine is tried again: nothing was called.
const AGAIN: Duration = Duration::from_secs(1);

const LOOK_AGAIN: Duration = Duration::from_mins(1);

/// Log lines in one second about single messages.
pub(super) const MAX_LINES: u64 = 20;

/// What delivers kept messages.
#[derive(Debug)]
pub(super) struct Kept<U> {
    pub(super) spool: Spool,
    pub(super) keys: Arc<Keys>,
    pub(super) batches: Batches,
    pub(super) upstream: Arc<U>,
    pub(super) ceiling: Ceiling,
    pub(super) meter: Meter,
    pub(super) under_way: TaskTracker,
    /// No more calls are made.
    pub(super) stop: CancellationToken,
    pub(super) lines: LogLimiter,
}

/// What a try says of its lane, and whether its message waits on.
type Tried = (Said, bool);

/// A message that was handed out comes back, also from a try that panics.
struct HandedOut<'a> {
    batches: &'a Batches,
    lane: message::Lane,
    item: Item,
    tried: Tried,
}

impl Drop for HandedOut<'_> {
    fn drop(&mut self) {
        let (said, again) = &self.tried;
        let called = !stayed(said);
        let attempts = self.item.attempts + u32::from(called);
        self.batches.waiters.call_ends(self.item.id, attempts);
        self.batches.ended(&self.lane, Item { attempts, ..self.item }, said, *again);
    }
}

/// How long a message waits whose budget is used up: to its next period, but budgets may change.
fn wait_for(over: &OverBudget) -> Duration {
    let left = over.until.duration_since(Timestamp::now());
    Duration::try_from(left).unwrap_or_default().clamp(Duration::from_secs(1), LOOK_AGAIN)
}

/// What a call tells the rest of the house.
pub(super) fn billed(verdict: &Verdict) -> Billed {
    match verdict {
        Verdict::Delivered => Billed::Yes,
        Verdict::Unknown => Billed::Uncertain,
        _ => Billed::No,
    }
}

/// What an answer says of its lane.
pub(super) fn said(answer: &Answer) -> Said {
    match answer.verdict() {
        // It stayed here.
        _ if matches!(
            answer,
            Answer::TransportError(TransportError::TooLate | TransportError::NotText)
        ) =>
        {
            Said::Nothing
        }
        Verdict::Delivered | Verdict::Refused => Said::Works,
        Verdict::Denied(bar) => Said::Bars(bar),
        Verdict::Throttled { retry_after } => Said::Fails(retry_after),
        Verdict::Failed | Verdict::Unknown => Said::Fails(None),
    }
}

/// Whether no call left.
fn stayed(said: &Said) -> bool {
    matches!(said, Said::Nothing | Said::Waits(_))
}

/// What the provider asked us to wait before the next try.
pub(super) fn asked(said: &Said) -> Duration {
    if let Said::Fails(Some(wait)) = said { *wait } else { Duration::ZERO }
}

impl<U: Upstream> Kept<U> {
    /// Whether a call for this message was noted that is not this process's own: a peer's, or an
    /// earlier process's.
    pub(super) fn was_called(&self, id: MessageId) -> bool {
        self.batches.was_called(id, || self.find_state(id))
    }

    fn find_state(&self, id: MessageId) -> Option<State> {
        self.spool.find(id).map(|brief| brief.state)
    }

    /// A queued message waits for its turn: at once, unless a call for it has just failed.
    pub(super) fn enqueue(&self, brief: &Brief) {
        self.enqueue_after(brief, Duration::ZERO);
    }

    pub(super) fn enqueue_after(&self, brief: &Brief, at_least: Duration) {
        let now = Instant::now();
        let due = if brief.attempts == 0 {
            now
        } else {
            now + self.batches.wait(brief.attempts).max(at_least)
        };
        // A clock that was ahead: as if it had been kept now.
        let age = Timestamp::now().duration_since(brief.kept_at);
        let age = Duration::try_from(age).unwrap_or_default();
        let expires = now + self.batches.retry().max_age.saturating_sub(age);
        let item = Item { id: brief.id, attempts: brief.attempts, expires, probe: false };
        self.batches.push(brief.lane.clone(), item, due);
    }

    /// Keeps a message and tells its caller what becomes of it, at the latest when its patience
    /// ends: then it stays kept. `before`: what its last call came back with.
    pub(super) async fn keep(
        &self,
        message: &Message,
        claim: Option<Claim>,
        tries: Tries,
        before: Option<&Answer>,
        caller: &mut Caller,
    ) -> Result<(), KeepError> {
        // From here on an operator may drop it, and its caller is answered that.
        let outcome = self.batches.waiters.wait_for(message.id);
        if tries.unknown > 0 {
            self.batches.waiters.doubt(message.id);
        }
        let stored = self.store(message, claim, tries, tries.calls, caller).await;
        if !matches!(stored, Ok(true)) {
            drop(self.batches.waiters.take(message.id));
            return stored.map(drop);
        }
        if let Some(brief) = self.spool.find(message.id) {
            let at_least = before.map_or(Duration::ZERO, |answer| asked(&said(answer)));
            self.enqueue_after(&brief, at_least);
        }
        caller.tell(self.outcome_of(message.id, outcome, caller.deadline).await);
        Ok(())
    }

    /// Makes a message durable. `false`: the disk did not answer as long as its caller waits, who
    /// was told that nobody knows, so the message is not ours.
    pub(super) async fn store(
        &self,
        message: &Message,
        claim: Option<Claim>,
        tries: Tries,
        calls: u32,
        caller: &mut Caller,
    ) -> Result<bool, KeepError> {
        let bound = caller.deadline.max(Instant::now() + DISK);
        let mut kept = std::pin::pin!(self.spool.keep_tried(message, claim, tries));
        // A stop does not wait as long as a caller would.
        let stopped = async {
            self.stop.cancelled().await;
            sleep(DISK).await;
        };
        let in_time = tokio::select! {
            biased;
            kept = &mut kept => Some(kept),
            () = sleep_until(bound) => None,
            () = stopped => None,
        };
        if let Some(kept) = in_time {
            return kept.map(|()| true);
        }
        caller.tell(Outcome::new(calls, Disposition::Unanswered));
        if kept.await.is_ok() {
            self.spool.note(message.id, Change::Forgotten).await;
        }
        Ok(false)
    }

    async fn outcome_of(
        &self,
        id: MessageId,
        mut outcome: oneshot::Receiver<Outcome>,
        deadline: Instant,
    ) -> Outcome {
        // Whoever takes a caller tells it, but for a bug.
        let lost = |_| Outcome::new(0, Disposition::Unanswered);
        // A timer would round the end of no patience up to a millisecond.
        if Instant::now() < deadline
            && let Ok(told) = deadline::by(deadline, &mut outcome).await
        {
            return told.unwrap_or_else(lost);
        }
        if let Some(waiter) = self.batches.waiters.take(id) {
            return self.now(id, &waiter);
        }
        // It ends in this moment.
        outcome.await.unwrap_or_else(lost)
    }

    /// One try.
    pub(super) async fn attempt(self: Arc<Self>, lane: message::Lane, item: Item) {
        let tried = (Said::Waits(LOOK_AGAIN), true);
        let mut handed_out = HandedOut { batches: &self.batches, lane, item, tried };
        let (said, again) = self.try_once(&handed_out.lane, item).await;
        // An operator may have dropped it meanwhile.
        let is_queued = self.is_queued(item.id);
        if !is_queued && stayed(&said) {
            self.dropped_meanwhile(item.id, false);
        }
        handed_out.tried = (said, again && is_queued);
    }

    async fn try_once(&self, lane: &message::Lane, item: Item) -> Tried {
        let message = match self.ready(lane, item).await {
            Ok(message) => message,
            Err(tried) => return tried,
        };
        let permit = match self.permit(item).await {
            Ok(permit) => permit,
            Err(tried) => return tried,
        };
        let may_repeat = self.batches.retry().may_repeat(&message.topic);
        let (entry, closes) = match self.set_out(&message, item, may_repeat).await {
            Ok(set_out) => set_out,
            Err(tried) => {
                permit.unsent();
                return tried;
            }
        };
        let answer = self.call(&message, permit, entry, closes).await;
        self.settle(&message, item.attempts + 1, &answer, may_repeat).await
    }

    /// The message, if it is to be tried now.
    async fn ready(&self, lane: &message::Lane, item: Item) -> Result<Message, Tried> {
        let gone = (Said::Nothing, false);
        if !self.is_queued(item.id) {
            return Err(gone);
        }
        if Instant::now() >= item.expires {
            self.bury(item.id, item.attempts, death(Reason::Expired, None), None).await;
            return Err(gone);
        }
        if let Err(over) = self.meter.admits(&lane.instance, &lane.parent) {
            return Err((Said::Waits(wait_for(&over)), true));
        }
        if self.spool.is_ours().is_err() {
            return Err((Said::Waits(AGAIN), true));
        }
        match self.spool.read(item.id).await {
            Ok(Record { message, .. }) => {
                // Its call is to be noted before it leaves: no permit for what cannot be.
                let may_repeat = self.batches.retry().may_repeat(&message.topic);
                if !may_repeat && self.spool.usage().failure.is_some() {
                    return Err((Said::Waits(AGAIN), true));
                }
                Ok(message)
            }
            Err(ReadError::Absent) => Err(gone),
            Err(error @ ReadError::Damaged) => {
                let trace_id = self.trace(item.id).map(tracing::field::display);
                tracing::error!(id = %item.id, trace_id, %error, "an accepted message is lost");
                if let Some(caller) = self.batches.waiters.take(item.id) {
                    let lost = match item.attempts {
                        0 => Disposition::NotKept(KeepError::Disk(error.to_string().into())),
                        _ => Disposition::Unanswered,
                    };
                    drop(caller.to.send(Outcome::new(item.attempts, lost)));
                }
                Err(gone)
            }
            Err(ReadError::Disk(error) | ReadError::Redis(error)) => {
                if let Some(suppressed) = self.lines.next() {
                    let error = &*error;
                    let trace_id = self.trace(item.id).map(tracing::field::display);
                    tracing::warn!(id = %item.id, trace_id, error, suppressed, "the spool cannot be read");
                }
                Err((Said::Waits(AGAIN), true))
            }
        }
    }

    /// Dropped, delivered and dead ones are not.
    fn is_queued(&self, id: MessageId) -> bool {
        self.queued(id).is_some()
    }

    fn queued(&self, id: MessageId) -> Option<Brief> {
        self.spool.find(id).filter(|brief| matches!(brief.state, State::Queued { .. }))
    }

    /// Notes that a call which was about to leave did not.
    fn uncall(&self, item: Item) {
        let unknown = self.spool.find(item.id).map_or(0, |brief| brief.unknown);
        let tries = Tries { calls: item.attempts, unknown };
        drop(self.spool.note(item.id, Change::Tried(tries)));
    }

    async fn permit(&self, item: Item) -> Result<Permit, Tried> {
        let class = if item.attempts == 0 { Class::Fresh } else { Class::Retry };
        let ticket = self.ceiling.request(class, Instant::now() + TURN);
        let ticket = ticket.map_err(|_| (Said::Waits(AGAIN), true))?;
        let permit = self.stop.run_until_cancelled(ticket.permit()).await;
        permit.and_then(Result::ok).ok_or((Said::Nothing, true))
    }

    /// Looks once more before a call leaves, for its turn may have been long in coming, and enters
    /// it in the books. Returns until when it may leave.
    async fn set_out(
        &self,
        message: &Message,
        item: Item,
        may_repeat: bool,
    ) -> Result<(Call, Instant), Tried> {
        let id = item.id;
        // Asked before it is looked for: whoever takes it over does so after `ours` has ended.
        let ours = self.spool.is_ours().map_err(|_| (Said::Waits(AGAIN), true))?;
        let turn = Instant::now() + TURN;
        let closes = ours.map_or(turn, |ours| ours.min(turn));
        self.batches.waiters.call_begins(id);
        let other_probes = !item.probe && self.batches.trouble(&message.lane()).is_some();
        if self.stop.is_cancelled() || other_probes {
            return Err((Said::Nothing, true));
        }
        match self.batches.sets_out(id, || self.find_state(id)) {
            SetsOut::Yes => {}
            SetsOut::Gone => return Err((Said::Nothing, true)),
            SetsOut::Other => {
                // A peer had the message meanwhile and has called. Its outcome is not known.
                self.bury(id, item.attempts + 1, death(Reason::Unknown, None), None).await;
                return Err((Said::Nothing, false));
            }
        }
        if !may_repeat {
            // Durable before it leaves, or a crash would repeat it.
            let noted = self.spool.note(id, Change::Calling);
            if !noted.changed {
                // It has ended since it was looked for.
                return Err((Said::Nothing, true));
            }
            match timeout(DISK, noted).await {
                Ok(Effect::TransportError) => return Err((Said::Nothing, true)),
                Ok(_) => {}
                Err(_) => {
                    self.uncall(item);
                    return Err((Said::Waits(AGAIN), true));
                }
            }
        }
        let begun = self.begin(message, item).await.map_err(|over| {
            self.uncall(item);
            (Said::Waits(wait_for(&over)), true)
        });
        begun.map(|entry| (entry, closes))
    }

    async fn begin(&self, message: &Message, item: Item) -> Result<Call, OverBudget> {
        let kind = match item {
            Item { probe: true, .. } => CallKind::Probe,
            Item { attempts: 0, .. } => CallKind::First,
            _ => CallKind::Retry,
        };
        self.meter.begin(message, kind).await
    }

    async fn call(
        &self,
        message: &Message,
        permit: Permit,
        entry: Call,
        closes: Instant,
    ) -> Answer {
        if let Some((ceiling, wait)) = permit.waited() {
            self.meter.waited(ceiling as usize, wait);
        }
        let start = Instant::now();
        let departure = SendGate::new(closes, &self.stop);
        let answer = self.upstream.send(message, permit, &departure).await;
        entry.ended(&answer.label(), billed(&answer.verdict()), start.elapsed());
        answer
    }

    /// Notes what became of a call for a kept message, and tells who waits.
    pub(super) async fn settle(
        &self,
        message: &Message,
        attempts: u32,
        answer: &Answer,
        may_repeat: bool,
    ) -> (Said, bool) {
        let (said, verdict, retry) = (said(answer), answer.verdict(), self.batches.retry());
        let is_unknown = verdict == Verdict::Unknown;
        if verdict == Verdict::Delivered {
            self.delivered(message, attempts, answer).await;
            return (said, false);
        }
        if is_unknown {
            self.batches.waiters.doubt(message.id);
        }
        let Some(brief) = self.queued(message.id) else {
            self.dropped_meanwhile(message.id, is_unknown);
            return (said, false);
        };
        let unknown = brief.unknown + u32::from(is_unknown);
        match verdict {
            Verdict::Refused => {
                if let Some(caller) = self.batches.waiters.take_certain(message.id) {
                    // It is told, and so it was never accepted, also not after a crash.
                    let forgotten = self.spool.note(message.id, Change::Forgotten);
                    let ended = match timeout(DISK, forgotten).await {
                        Ok(Effect::Made | Effect::Unchanged) => {
                            Disposition::Answered(answer.clone())
                        }
                        // What is not forgotten is tried again, by a peer or the next process.
                        Ok(Effect::TransportError) | Err(_) => Disposition::Unanswered,
                    };
                    drop(caller.to.send(Outcome::new(attempts, ended)));
                } else {
                    let death = death(Reason::Refused, Some(answer));
                    self.bury(message.id, attempts, death, None).await;
                }
                return (said, false);
            }
            Verdict::Unknown if !may_repeat || unknown > retry.unknown_tries => {
                let death = death(Reason::Unknown, Some(answer));
                let why = may_repeat.then_some(TOO_MANY_UNKNOWN);
                self.bury(message.id, attempts, death, why).await;
                return (said, false);
            }
            _ => {}
        }
        // Before a key is waited for: what has failed for certain is not to be taken for a call of
        // which nobody knows, should we end meanwhile.
        let tries = Tries { calls: attempts, unknown };
        drop(self.spool.note(message.id, Change::Tried(tries)));
        if said == Said::Bars(AccessDenied::Key) {
            self.stop.run_until_cancelled(self.upstream.renew_key()).await;
        }
        (said, true)
    }

    /// The trace of a kept message, for the log.
    pub(super) fn trace(&self, id: MessageId) -> Option<TraceId> {
        self.spool.find(id)?.trace
    }
}
