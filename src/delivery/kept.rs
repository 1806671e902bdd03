//! Kept messages: into the spool, into the queue for their tries, and what their callers are answered.

use std::pin::pin;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::attempt::Dispatcher;
use super::caller::Caller;
use super::idempotency::{IdempotencyKeys, is_queued};
use super::lane::RetryItem;
use super::order::Turn;
use super::outcome::{Disposition, Outcome};
use super::readers::WaitingReaders;
use super::registry::RegisteredCaller;
use super::retry_queue::RetryQueue;
use super::signal::{HoldReason, Signal};
use crate::answer::Answer;
use crate::config::Topics;
use crate::deadline;
use crate::log_limiter::LogLimiter;
use crate::memory::MemoryQueue;
use crate::message::{Message, MessageId, Trace};
use crate::spool::{Brief, Change, Claim, Doubt, KeepError, Spool, State, Tries};
use crate::upstream::Upstream;

/// Upper bound on a write of a healthy disk; callers never wait longer for a hung one.
pub(super) const MAX_WRITE: Duration = Duration::from_secs(2);

/// A message waits this long after a panic in its task.
pub(super) const AFTER_PANIC: Duration = Duration::from_mins(1);

/// Log lines in one second about single messages.
pub(super) const MAX_LINES: u64 = 20;

/// Keeps messages, and delivers them later.
#[derive(Debug)]
pub(super) struct KeptMessages<U> {
    pub(super) spool: Spool,
    pub(super) keys: Arc<IdempotencyKeys>,
    pub(super) queue: RetryQueue,
    /// For the bodies of messages that are tried.
    pub(super) memory: MemoryQueue,
    pub(super) dispatcher: Arc<Dispatcher<U>>,
    pub(super) log: LogLimiter,
    /// What stored messages may be sent.
    pub(super) topics: RwLock<Topics>,
    pub(super) held_log: LogLimiter,
    pub(super) readers: WaitingReaders,
    /// Wakes the task that drops messages whose time to live has ended.
    pub(super) expiries: Arc<Notify>,
}

impl<U: Upstream> KeptMessages<U> {
    pub(super) fn find_state(&self, id: MessageId) -> Option<State> {
        self.spool.find(id).map(|brief| brief.state)
    }

    /// The message, unless it was dropped, delivered or became a dead letter.
    pub(super) fn queued(&self, id: MessageId) -> Option<Brief> {
        self.spool.find(id).filter(is_queued)
    }

    /// The trace of a kept message, for the log.
    pub(super) fn trace(&self, id: MessageId) -> Option<Trace> {
        self.spool.find(id)?.trace
    }

    /// Puts a queued message into its lane: due at once, unless a call for it has failed. One that may
    /// not be sent is held.
    pub(super) fn enqueue(&self, brief: &Brief) {
        self.enqueue_after(brief, Duration::ZERO);
    }

    /// As [`Self::enqueue`]; after a failed call, due no sooner than this.
    pub(super) fn enqueue_after(&self, brief: &Brief, at_least: Duration) {
        let now = Instant::now();
        let due = if brief.attempts == 0 {
            now
        } else {
            now + self.queue.wait(brief.attempts).max(at_least)
        };
        // Where a clock was ahead: as if the message had been kept now.
        let age = Timestamp::now().duration_since(brief.kept_at);
        let age = Duration::try_from(age).unwrap_or_default();
        let expires = now + self.queue.retry().max_age.saturating_sub(age);
        let Brief { id, attempts, urgency, .. } = *brief;
        let caller = self.queue.weights().flow(brief.caller.as_ref());
        let (probe, over_budget) = (false, None);
        let item =
            RetryItem { id, attempts, expires, probe, caller, urgency, since: due, over_budget };
        if self.may_send(&brief.topic) {
            self.queue.push(brief.lane.clone(), item, due);
        } else {
            self.log_held(brief.id, HoldReason::NotAllowed);
            self.queue.hold(brief.lane.clone(), item, due, HoldReason::NotAllowed);
            // The rule may have changed meanwhile.
            self.release(brief.id);
        }
        if brief.expiry.is_some() {
            self.expiries.notify_one();
        }
    }

    /// Keeps a message and answers its caller what becomes of it, at the latest when its patience
    /// ends: then it stays kept. `before`: the answer to its last call. Its body is let go once it is stored.
    pub(super) async fn keep(
        &self,
        message: Message,
        claim: Option<Claim>,
        tries: Tries,
        mut turn: Option<Turn>,
        before: Option<&Answer>,
        caller: &mut Caller,
    ) -> Result<(), KeepError> {
        let id = message.id;
        // From here on an operator may drop it, and its caller is answered that.
        let outcome = self.queue.register_caller(id);
        if tries.unknown > 0 {
            self.queue.mark_uncertain(id);
        }
        let stored = self.store(&message, claim, tries, tries.calls, caller).await;
        drop(message);
        if !matches!(stored, Ok(true)) {
            drop(self.queue.take_caller(id));
            return stored.map(drop);
        }
        #[cfg(test)]
        super::tests::panics::at("has stored");
        let mut outcome = Some(outcome);
        if let Some(turn) = &mut turn
            && Instant::now() < caller.deadline
        {
            drop(deadline::by(caller.deadline, turn.comes()).await);
        }
        // One that does not wait, or not any longer, is answered before a call can be made: that it is kept.
        if Instant::now() >= caller.deadline
            && let Some(outcome) = outcome.take()
        {
            caller.respond(self.outcome_of(id, outcome, caller.deadline).await);
        }
        if let Some(turn) = &mut turn {
            turn.comes().await;
        }
        if let Some(brief) = self.spool.find(id) {
            let at_least = before.map_or(Duration::ZERO, |answer| Signal::of(answer).retry_after());
            self.enqueue_after(&brief, at_least);
        }
        drop(turn);
        if let Some(outcome) = outcome {
            caller.respond(self.outcome_of(id, outcome, caller.deadline).await);
        }
        Ok(())
    }

    /// Makes a message durable. `false`: the disk did not finish while the caller waited. The caller was
    /// answered `unknown`, so we did not accept the message and must not keep it.
    pub(super) async fn store(
        &self,
        message: &Message,
        claim: Option<Claim>,
        tries: Tries,
        calls: u32,
        caller: &mut Caller,
    ) -> Result<bool, KeepError> {
        let mut kept = pin!(self.spool.keep_tried(message, claim, tries));
        if let Some(kept) = self.in_time(&mut kept, caller.deadline).await {
            match &kept {
                Err(KeepError::TopicShare) => self.log_share(
                    message,
                    "a message was not stored: its topic holds its share of the spool while others are in use; find out why its messages are not delivered, and replay or drop its dead letters (tollgate messages)",
                ),
                Err(KeepError::CallerShare) => self.log_share(
                    message,
                    "a message was not stored: its caller holds its share of the spool (callers.spool_share); find out why its messages are not delivered, and replay or drop its dead letters (tollgate messages)",
                ),
                _ => {}
            }
            return kept.map(|()| true);
        }
        caller.respond(Outcome::new(calls, Disposition::Unanswered));
        if kept.await.is_ok() {
            self.spool.note(message.id, Change::Forgotten).await;
        }
        Ok(false)
    }

    fn log_share(&self, message: &Message, what: &str) {
        if let Some(suppressed) = self.log.next() {
            let (topic, caller) = (message.topic.parent(), message.caller.as_deref());
            tracing::warn!(topic, caller, suppressed, "{what}");
        }
    }

    /// The output of a write, unless a caller with this deadline does not wait for it any more.
    async fn in_time<F: Future>(&self, write: F, deadline: Instant) -> Option<F::Output> {
        let bound = deadline.max(Instant::now() + MAX_WRITE);
        // A stop does not wait as long as a caller would.
        let stopped = async {
            self.dispatcher.stop.cancelled().await;
            sleep(MAX_WRITE).await;
        };
        tokio::select! {
            biased;
            written = write => Some(written),
            () = sleep_until(bound) => None,
            () = stopped => None,
        }
    }

    /// A panic has ended what was to keep a message: if the spool has the message, or is about to, it
    /// comes back to its lane, and its caller is answered. `calls` were begun for it; `doubt`: of the
    /// last one, if that is not recorded.
    pub(super) async fn come_back(
        &self,
        id: MessageId,
        calls: u32,
        doubt: Doubt,
        caller: &mut Caller,
    ) {
        // The store goes on without its task. It takes what was noted before this in order.
        let mut written = pin!(self.spool.flush());
        if self.in_time(&mut written, caller.deadline).await.is_none() {
            caller.respond(Outcome::new(calls, Disposition::Unanswered));
            written.await;
        }
        let registered = self.queue.take_caller(id);
        if caller.is_refused() {
            self.spool.note(id, Change::Forgotten).await;
            return;
        }
        if doubt == Doubt::Possible {
            self.record_panic(id, calls).await;
        }
        if let Some(brief) = self.queued(id) {
            self.enqueue_after(&brief, AFTER_PANIC);
        }
        let outcome = match (self.spool.find(id), registered) {
            (found, Some(registered)) if found.is_some() || registered.is_dropped() => {
                self.outcome_now(id, &registered)
            }
            (Some(brief), _) => Outcome::of(&brief),
            (None, _) => Outcome::new(calls, Disposition::Unanswered),
        };
        caller.respond(outcome);
    }

    async fn outcome_of(
        &self,
        id: MessageId,
        mut outcome: oneshot::Receiver<Outcome>,
        deadline: Instant,
    ) -> Outcome {
        // The code that takes a caller answers it, but for a bug.
        let unanswered = |_| Outcome::new(0, Disposition::Unanswered);
        // A timer would round the end of no patience up to a millisecond.
        if Instant::now() < deadline
            && let Ok(outcome) = deadline::by(deadline, &mut outcome).await
        {
            return outcome.unwrap_or_else(unanswered);
        }
        if let Some(caller) = self.queue.take_caller(id) {
            return self.outcome_now(id, &caller);
        }
        // The message ends at this moment.
        outcome.await.unwrap_or_else(unanswered)
    }

    /// What a waiting caller is answered now.
    pub(super) fn outcome_now(&self, id: MessageId, caller: &RegisteredCaller) -> Outcome {
        match self.spool.find(id) {
            Some(Brief { state: State::Queued { .. }, .. }) => Outcome::kept(id),
            Some(Brief { state: State::Dropped(_), attempts, .. }) => caller.dropped(id, attempts),
            Some(brief) => Outcome::of(&brief),
            None if caller.is_dropped() => caller.dropped(id, 0),
            // Another sidecar has taken it over.
            None => Outcome::kept(id),
        }
    }
}
