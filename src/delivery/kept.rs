//! A kept message's next try, from the spool to its end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;

use super::batches::Batches;
use super::lane::{Item, Said};
use super::outcome::{Ended, Outcome};
use crate::answer::{Answer, Bar, Verdict};
use crate::ceiling::{Ceiling, Class, Permit};
use crate::message::{self, Message, MessageId, TraceId};
use crate::meter::{Billed, Call, CallKind, Meter, OverBudget};
use crate::spool::{
    Brief, Change, Claim, Death, KeepError, ReadError, Reason, Receipt, Spool, State,
};
use crate::upstream::{Departure, Upstream};

/// A kept message has no caller whose patience ends: its turn may take its time.
const TURN: Duration = Duration::from_mins(10);

/// What delivers kept messages.
#[derive(Debug)]
pub(super) struct Kept<U> {
    pub(super) spool: Spool,
    pub(super) batches: Batches,
    pub(super) upstream: Arc<U>,
    pub(super) ceiling: Ceiling,
    pub(super) meter: Meter,
    pub(super) under_way: TaskTracker,
    /// No more calls are made.
    pub(super) stopping: AtomicBool,
    /// What may be logged of single messages.
    pub(super) lines: Lines,
}

/// How long a message waits that others may have taken over, as long as nobody knows.
const NOT_OURS: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_mins(1);

/// Lines of one second; the rest is counted.
const MAX_LINES: u64 = 20;

/// How many lines may still be written in this second.
#[derive(Debug, Default)]
pub(super) struct Lines(Mutex<(Option<Instant>, u64, u64)>);

impl Lines {
    /// Whether one more may be written, and how many were not since the last.
    fn next(&self) -> Option<u64> {
        let mut spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (second, written, suppressed) = &mut *spent;
        let now = Instant::now();
        if second.is_none_or(|second| now - second >= Duration::from_secs(1)) {
            (*second, *written) = (Some(now), 0);
        }
        if *written >= MAX_LINES {
            *suppressed += 1;
            return None;
        }
        *written += 1;
        Some(std::mem::take(suppressed))
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
        Verdict::Delivered | Verdict::Refused => Said::Works,
        Verdict::Barred(bar) => Said::Bars(bar),
        Verdict::Throttled { retry_after } => Said::Fails(retry_after),
        Verdict::Failed | Verdict::Unknown => Said::Fails(None),
    }
}

impl<U: Upstream> Kept<U> {
    pub(super) fn stopped(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Takes up what an earlier process has left.
    pub(super) fn recover(&self) {
        let mut queued = |brief: &Brief| matches!(brief.state, State::Queued { .. });
        let left = self.spool.list(None, usize::MAX, &mut queued);
        if !left.is_empty() {
            tracing::info!(
                messages = left.len(),
                "messages were left in the spool: delivering them"
            );
        }
        self.take_up(left);
    }

    /// Delivers what others have left.
    pub(super) fn take_up(&self, left: Vec<Brief>) {
        for brief in left {
            if !matches!(brief.state, State::Queued { .. }) {
                continue;
            }
            if brief.state == (State::Queued { calling: true }) {
                // A call may have left, and the topic is not to be delivered twice. The ledger
                // has counted it, like all that were under way.
                self.bury(brief.id, brief.attempts + 1, Reason::Unknown, None);
                continue;
            }
            self.enqueue(&brief);
        }
    }

    /// A queued message waits for its turn: at once, unless a call for it has just failed.
    pub(super) fn enqueue(&self, brief: &Brief) {
        self.enqueue_after(brief, Duration::ZERO);
    }

    fn enqueue_after(&self, brief: &Brief, at_least: Duration) {
        let now = Instant::now();
        let due = if brief.attempts == 0 {
            now
        } else {
            now + self.batches.wait(brief.attempts).max(at_least)
        };
        let age = Timestamp::now().duration_since(brief.kept_at).unsigned_abs();
        let expires = now + self.batches.retry().max_age.saturating_sub(age);
        let item = Item { id: brief.id, attempts: brief.attempts, expires, probe: false };
        self.batches.push(brief.lane.clone(), item, due);
    }

    /// Keeps a message and waits for what becomes of it, at the latest until `deadline`: then it
    /// stays kept. `at_least`: what the provider asked us to wait before the next try.
    pub(super) async fn keep(
        &self,
        message: &Message,
        claim: Option<Claim>,
        attempts: u32,
        at_least: Duration,
        deadline: Instant,
    ) -> Result<Outcome, KeepError> {
        self.spool.keep(message, claim).await?;
        if attempts > 0 {
            drop(self.spool.note(message.id, Change::Tried(attempts)));
        }
        let outcome = self.batches.wait_for(message.id);
        if let Some(brief) = self.spool.find(message.id) {
            self.enqueue_after(&brief, at_least);
        }
        Ok(self.outcome_of(message.id, outcome, deadline).await)
    }

    pub(super) async fn outcome_of(
        &self,
        id: MessageId,
        mut outcome: tokio::sync::oneshot::Receiver<Outcome>,
        deadline: Instant,
    ) -> Outcome {
        // A timer would round the end of no patience up to a millisecond.
        if Instant::now() < deadline
            && let Ok(Ok(outcome)) = timeout_at(deadline, &mut outcome).await
        {
            return outcome;
        }
        let queued = || Outcome::new(0, Ended::Kept(id));
        if self.batches.caller(id).is_some() {
            return queued();
        }
        // It ended in this moment.
        outcome.await.unwrap_or_else(|_| queued())
    }

    /// One try.
    pub(super) async fn attempt(self: Arc<Self>, lane: message::Lane, item: Item) {
        let (said, again) = self.try_once(&lane, item).await;
        let attempts = item.attempts + u32::from(!matches!(said, Said::Nothing | Said::Waits(_)));
        self.batches.ended(&lane, Item { attempts, ..item }, &said, again);
    }

    /// What the call says of the lane, and whether the message waits on.
    async fn try_once(&self, lane: &message::Lane, item: Item) -> (Said, bool) {
        if Instant::now() >= item.expires {
            self.bury(item.id, item.attempts, Reason::Expired, None);
            return (Said::Nothing, false);
        }
        if let Err(over) = self.meter.admits(&lane.instance, &lane.parent) {
            return (Said::Waits(wait_for(&over)), true);
        }
        if self.spool.is_ours().is_err() {
            return (Said::Waits(NOT_OURS), true);
        }
        let message = match self.spool.read(item.id).await {
            Ok(record) => record.message,
            Err(ReadError::Absent) => return (Said::Nothing, false),
            Err(error @ ReadError::Damaged) => {
                let trace_id = self.trace(item.id).map(tracing::field::display);
                tracing::error!(id = %item.id, trace_id, %error, "an accepted message is lost");
                drop(self.batches.caller(item.id));
                return (Said::Nothing, false);
            }
            Err(ReadError::Disk(error) | ReadError::Redis(error)) => {
                if let Some(suppressed) = self.lines.next() {
                    let error = &*error;
                    let trace_id = self.trace(item.id).map(tracing::field::display);
                    tracing::warn!(id = %item.id, trace_id, error, suppressed, "the spool cannot be read");
                }
                return (Said::Fails(None), true);
            }
        };
        let Some(permit) = self.permit(item).await else { return (Said::Nothing, true) };
        // Asked before it is looked for: whoever takes it over does so after `ours` has ended.
        let Ok(ours) = self.spool.is_ours() else {
            permit.unsent();
            return (Said::Waits(NOT_OURS), true);
        };
        let closes = (Instant::now() + TURN).min(ours.unwrap_or(Instant::now() + TURN));
        let other_probes = !item.probe && self.batches.trouble(lane).is_some();
        if self.stopped() || other_probes || self.spool.find(item.id).is_none() {
            permit.unsent();
            return (Said::Nothing, true);
        }
        let may_repeat = self.batches.retry().may_repeat(&message.topic);
        let entry = match self.begin(&message, item).await {
            Ok(entry) => entry,
            Err(over) => {
                permit.unsent();
                return (Said::Waits(wait_for(&over)), true);
            }
        };
        if !may_repeat {
            // Not durable in time: then the call does not leave.
            drop(timeout_at(closes, self.spool.note(item.id, Change::Calling)).await);
        }
        let answer = self.call(&message, permit, entry, closes).await;
        self.settle(&message, item.attempts + 1, &answer, may_repeat).await
    }

    async fn permit(&self, item: Item) -> Option<Permit> {
        let class = if item.attempts == 0 { Class::Fresh } else { Class::Retry };
        match self.ceiling.request(class, Instant::now() + TURN) {
            Ok(ticket) => ticket.permit().await.ok(),
            Err(_) => None,
        }
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
        let departure = Departure::new(closes);
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
        let said = said(answer);
        match answer.verdict() {
            Verdict::Delivered => {
                self.delivered(message, attempts, answer).await;
                return (said, false);
            }
            Verdict::Refused => {
                if let Some(caller) = self.batches.caller(message.id) {
                    // It is told, and so it was never accepted.
                    drop(self.spool.note(message.id, Change::Forgotten));
                    drop(caller.send(Outcome::new(attempts, Ended::Answered(answer.clone()))));
                } else {
                    self.bury(message.id, attempts, Reason::Refused, Some(answer));
                }
                return (said, false);
            }
            Verdict::Unknown if !may_repeat => {
                drop(self.batches.caller(message.id));
                self.bury(message.id, attempts, Reason::Unknown, Some(answer));
                return (said, false);
            }
            Verdict::Barred(Bar::Key) => {
                self.upstream.renew_key().await;
            }
            _ => {}
        }
        drop(self.spool.note(message.id, Change::Tried(attempts)));
        (said, true)
    }

    async fn delivered(&self, message: &Message, attempts: u32, answer: &Answer) {
        let id = message.id;
        let caller = self.batches.caller(id);
        let text = |text: Option<&Box<str>>| text.cloned().unwrap_or_default();
        let receipt = Receipt {
            msg_id: text(answer.http().and_then(|http| http.msg_id.as_ref())),
            request_id: text(answer.http().and_then(|http| http.request_id.as_ref())),
            at: Timestamp::now(),
            accepted: caller.is_none(),
        };
        let noted = self.spool.note(id, Change::Delivered(attempts, receipt));
        let Some(caller) = caller else { return };
        // Durable before it is told: else a crash now would deliver again what is known to be
        // delivered. A disk that takes nothing keeps nobody waiting.
        drop(timeout_at(Instant::now() + Duration::from_secs(1), noted).await);
        drop(caller.send(Outcome::new(attempts, Ended::Answered(answer.clone()))));
    }

    /// The trace of a kept message, for the log.
    fn trace(&self, id: MessageId) -> Option<TraceId> {
        self.spool.find(id)?.trace
    }

    /// A message becomes a dead letter.
    pub(super) fn bury(
        &self,
        id: MessageId,
        attempts: u32,
        reason: Reason,
        answer: Option<&Answer>,
    ) {
        let code = answer.map(|answer| answer.label().into_owned().into_boxed_str());
        let http = answer.and_then(Answer::http);
        let request_id = http.and_then(|http| http.request_id.clone());
        if let Some(suppressed) = self.lines.next() {
            let code = code.as_deref();
            let trace_id = self.trace(id).map(tracing::field::display);
            tracing::warn!(%id, trace_id, ?reason, attempts, code, suppressed, "a message is a dead letter");
        }
        let death = Death { reason, code, request_id, at: Timestamp::now() };
        drop(self.spool.note(id, Change::Dead(attempts, death)));
    }
}
