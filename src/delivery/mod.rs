//! What happens to a message from acceptance to its end.
//!
//! A message is on a task of its own before its caller first waits: a caller who hangs up loses
//! the answer, never the message. Deadlines are data that this looks at, not futures that are
//! dropped.
//!
//! With a spool, a message that is not delivered at its first try is kept, and belongs to the retry
//! batches (`batches`, `lane`) until its end.

mod batches;
mod idempotency;
mod kept;
mod lane;
mod outcome;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::TaskTracker;

use crate::answer::{Answer, Bar, Verdict};
use crate::ceiling::{Ceiling, Class, Permit, Refused, Ticket};
use crate::config;
use crate::message::{Message, MessageId};
use crate::meter::{Call, CallKind, Meter, OverBudget};
use crate::spool::{Brief, Change, Claim, Picked, Spool};
use crate::upstream::{Departure, Upstream};
pub use batches::Paused;
use batches::{Batches, Hold};
use idempotency::Keys;
use kept::{Kept, billed, said};
pub use outcome::{Ended, Outcome};

/// Calls for one message while its caller waits, where nothing is kept: the first and two more.
const MAX_CALLS: u32 = 3;
/// The most that a second try waits where the provider named no time; the third twice as long.
const BACK_OFF: Duration = Duration::from_millis(50);

/// What a caller wants.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// How long it waits for the outcome.
    pub patience: Duration,
    /// It would rather have its message kept than be refused because of a ceiling.
    pub keep: bool,
    /// The claim of its `Idempotency-Key`.
    pub claim: Option<Claim>,
}

/// Delivers messages. Cheap to clone.
#[derive(Debug)]
pub struct Delivery<U> {
    shared: Arc<Shared<U>>,
}

impl<U> Clone for Delivery<U> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

#[derive(Debug)]
struct Shared<U> {
    upstream: Arc<U>,
    ceiling: Ceiling,
    meter: Meter,
    jitter: Mutex<fastrand::Rng>,
    under_way: TaskTracker,
    keys: Arc<Keys>,
    kept: Option<Arc<Kept<U>>>,
}

impl<U: Upstream> Delivery<U> {
    /// Starts delivering what `spool` holds, if there is one. `seed` decides the jitter.
    pub fn new(
        config: &config::Config,
        upstream: U,
        spool: Option<Spool>,
        ceiling: Ceiling,
        meter: Meter,
        seed: u64,
    ) -> Self {
        let (upstream, under_way) = (Arc::new(upstream), TaskTracker::new());
        let keys = Arc::new(Keys::new(&config.idempotency, spool.as_ref()));
        let kept = spool.map(|spool| {
            let kept = Arc::new(Kept {
                spool,
                batches: Batches::new(config.retry.clone(), seed),
                upstream: Arc::clone(&upstream),
                ceiling: ceiling.clone(),
                meter: meter.clone(),
                under_way: under_way.clone(),
                stopping: false.into(),
                lines: kept::Lines::default(),
            });
            kept.recover();
            let changed = Arc::clone(&kept.batches.changed);
            tokio::spawn(batches::run(Arc::downgrade(&kept), changed));
            kept
        });
        let jitter = Mutex::new(fastrand::Rng::with_seed(seed));
        let shared = Shared { upstream, ceiling, meter, jitter, under_way, keys, kept };
        Self { shared: Arc::new(shared) }
    }

    /// Delivers a message and says what became of it, at the latest when its caller's patience
    /// ends.
    pub async fn publish(&self, message: Message, wanted: Wanted) -> Outcome {
        let first = match wanted.claim.map(|claim| self.shared.keys.claim(claim)).transpose() {
            Ok(first) => first,
            Err(outcome) => return outcome,
        };
        let deadline = Instant::now() + wanted.patience;
        let plan = match self.shared.plan(&message, &wanted, deadline) {
            Ok(plan) => plan,
            Err(ended) => return Outcome::new(0, ended),
        };
        let (to, outcome) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        self.shared.under_way.spawn(async move {
            let (told, heard) = oneshot::channel();
            let caller = Caller { to: Some(told), deadline };
            // Remembered also if the caller has gone.
            let remembered = async move {
                let outcome = heard.await;
                if let (Ok(outcome), Some(first)) = (&outcome, first) {
                    first.answered(outcome);
                }
                drop(outcome.map(|outcome| to.send(outcome)));
            };
            tokio::join!(shared.carry_out(plan, message, wanted.claim, caller), remembered);
        });
        // The task ends early only with the runtime, and then nobody is told anything.
        outcome.await.unwrap_or_else(|_| Outcome::new(1, Ended::Unanswered))
    }

    /// What is known of a message that was kept.
    pub fn find(&self, id: MessageId) -> Option<Brief> {
        self.shared.kept.as_ref()?.spool.find(id)
    }

    /// What is kept, if anything is.
    pub fn spool(&self) -> Option<&Spool> {
        self.shared.kept.as_ref().map(|kept| &kept.spool)
    }

    /// Tries the dead letters that are meant once more. Returns how many, once that is durable.
    pub async fn replay(&self, selection: &Picked) -> usize {
        let Some(kept) = &self.shared.kept else { return 0 };
        let change = Change::Replayed(Timestamp::now());
        let again = |id| {
            if let Some(brief) = kept.spool.find(id) {
                kept.enqueue(&Brief { attempts: 0, ..brief });
            }
        };
        kept.spool.change(&|brief| selection.means_dead(brief), &change, &again).await
    }

    /// Drops the messages that are meant. Returns how many, once that is durable. A call that is on
    /// its way is not called back.
    pub async fn discard(&self, selection: &Picked) -> usize {
        let Some(kept) = &self.shared.kept else { return 0 };
        let meant = |brief: &Brief| selection.means_droppable(brief);
        kept.spool.change(&meant, &Change::Forgotten, &|_| ()).await
    }

    /// Lanes that do not deliver.
    pub fn paused(&self) -> Vec<Paused> {
        self.shared.kept.as_ref().map(|kept| kept.batches.paused()).unwrap_or_default()
    }

    /// Makes no new calls after `grace`, in which what is on its way, and what is kept and due, is
    /// delivered. Returns how many messages were left that are kept nowhere.
    pub async fn drain(&self, grace: Duration) -> usize {
        let shared = &self.shared;
        let end = Instant::now() + grace;
        shared.under_way.close();
        if let Some(kept) = shared.kept.as_ref().filter(|kept| !kept.stopped()) {
            let empty = async {
                while kept.batches.len() > 0 {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            drop(timeout_at(end, empty).await);
            kept.stopping.store(true, Ordering::Relaxed);
            kept.batches.changed.notify_one();
        }
        let ended = timeout_at(end, shared.under_way.wait()).await;
        let Some(kept) = &shared.kept else {
            return if ended.is_ok() { 0 } else { shared.under_way.len() };
        };
        let flushed = timeout_at(end.max(Instant::now() + FLUSH), kept.spool.flush()).await;
        drop(flushed);
        let left = kept.batches.len();
        if left > 0 {
            tracing::info!(messages = left, "kept for the next start");
        }
        0
    }
}

/// What a disk may take for the last writes.
const FLUSH: Duration = Duration::from_secs(2);

/// How a message begins.
enum Plan {
    /// With a call, as soon as there is a permit.
    Call(Ticket),
    /// In the spool.
    Keep,
}

/// Who waits for the outcome, and until when.
struct Caller {
    to: Option<oneshot::Sender<Outcome>>,
    deadline: Instant,
}

impl Caller {
    fn tell(&mut self, outcome: Outcome) {
        if let Some(to) = self.to.take() {
            // It may have hung up.
            drop(to.send(outcome));
        }
    }
}

impl<U: Upstream> Shared<U> {
    /// Decides at the door: what cannot be sent in time is refused, unless it may be kept.
    fn plan(&self, message: &Message, wanted: &Wanted, deadline: Instant) -> Result<Plan, Ended> {
        let admitted = self.meter.admits(&message.instance, message.topic.parent());
        admitted.map_err(Ended::OverBudget)?;
        if let Some(kept) = &self.kept {
            match kept.batches.trouble(&message.lane()) {
                Some(Hold::Barred(bar)) if !wanted.keep => return Err(Ended::Barred(bar)),
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
            Err(refused) => Err(Ended::NoPermit(refused)),
        }
    }

    async fn carry_out(
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
        let Ok(permit) = ticket.permit().await else {
            return self.keep(kept, &message, None, 0, None, &mut caller).await;
        };
        self.first_try(kept, &message, permit, &mut caller).await;
    }

    /// Keeps a message and tells its caller what becomes of it. If it cannot be kept, `otherwise`
    /// is what became of it.
    async fn keep(
        &self,
        kept: &Arc<Kept<U>>,
        message: &Message,
        claim: Option<Claim>,
        calls: u32,
        otherwise: Option<Ended>,
        caller: &mut Caller,
    ) {
        let at_least = match &otherwise {
            Some(Ended::Answered(answer)) => match answer.verdict() {
                Verdict::Throttled { retry_after } => retry_after.unwrap_or_default(),
                _ => Duration::ZERO,
            },
            _ => Duration::ZERO,
        };
        let outcome = match kept.keep(message, claim, calls, at_least, caller.deadline).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::new(calls, otherwise.unwrap_or(Ended::NotKept(error))),
        };
        caller.tell(outcome);
    }

    /// The first call for a message that is not kept yet.
    async fn first_try(
        &self,
        kept: &Arc<Kept<U>>,
        message: &Message,
        mut permit: Permit,
        caller: &mut Caller,
    ) {
        let may_repeat = kept.batches.retry().may_repeat(&message.topic);
        let mut calls = 1;
        loop {
            let (begun, entry) = match self.begin(message, permit, calls).await {
                Ok(begun) => begun,
                Err(over) => {
                    return caller.tell(Outcome::new(calls - 1, Ended::OverBudget(over)));
                }
            };
            let departure = Departure::new(caller.deadline);
            let mut call = std::pin::pin!(self.one_call(message, begun, entry, &departure));
            let answer = match timeout_at(caller.deadline, &mut call).await {
                Ok(answer) => answer,
                // A call that has not left by now never leaves, and ends at once.
                Err(_) if !departure.left() => call.await,
                Err(_) if may_repeat => {
                    return self.outlast(kept, message, calls, call, caller).await;
                }
                Err(_) => {
                    caller.tell(Outcome::new(calls, Ended::Unanswered));
                    call.await
                }
            };
            kept.batches.heard(message.lane(), message.id, &said(&answer));
            let next = match answer.verdict() {
                Verdict::Failed | Verdict::Throttled { .. } => None,
                Verdict::Unknown if may_repeat => None,
                // A newer key or a corrected clock may help at once.
                Verdict::Barred(_) if calls < MAX_CALLS => {
                    let again = self.worth_another(&answer, calls, caller).await;
                    if again { self.another_permit(caller).await } else { None }
                }
                _ => return caller.tell(Outcome::new(calls, Ended::Answered(answer))),
            };
            if let Some(next) = next {
                permit = next;
                calls += 1;
                continue;
            }
            let ended = Ended::Answered(answer.clone());
            if matches!(answer.verdict(), Verdict::Barred(_)) {
                return caller.tell(Outcome::new(calls, ended));
            }
            return self.keep(kept, message, None, calls, Some(ended), caller).await;
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
        let keep = async {
            let is_kept = kept.spool.keep(message, None).await.is_ok();
            let ended = if is_kept { Ended::Kept(message.id) } else { Ended::Unanswered };
            caller.tell(Outcome::new(calls, ended));
            is_kept
        };
        let (is_kept, answer) = tokio::join!(keep, call);
        kept.batches.heard(message.lane(), message.id, &said(&answer));
        if is_kept {
            let (_, again) = kept.settle(message, calls, &answer, true).await;
            if let Some(brief) = kept.spool.find(message.id).filter(|_| again) {
                kept.enqueue(&brief);
            }
        }
    }

    async fn deliver(&self, message: Message, ticket: Ticket, mut caller: Caller) {
        let mut permit = match ticket.permit().await {
            Ok(permit) => permit,
            Err(refused) => return caller.tell(Outcome::new(0, Ended::NoPermit(refused))),
        };
        let mut calls = 1;
        loop {
            let (begun, entry) = match self.begin(&message, permit, calls).await {
                Ok(begun) => begun,
                Err(over) => {
                    return caller.tell(Outcome::new(calls - 1, Ended::OverBudget(over)));
                }
            };
            let answer = self.call(&message, begun, entry, calls, &mut caller).await;
            let again = calls < MAX_CALLS && self.worth_another(&answer, calls, &caller).await;
            let next = if again { self.another_permit(&caller).await } else { None };
            let Some(next) = next else {
                return caller.tell(Outcome::new(calls, Ended::Answered(answer)));
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
        let departure = Departure::new(caller.deadline);
        let mut call = std::pin::pin!(self.one_call(message, permit, entry, &departure));
        if let Ok(answer) = timeout_at(caller.deadline, &mut call).await {
            return answer;
        }
        // A call that has not left by now never leaves, and ends at once.
        if departure.left() {
            caller.tell(Outcome::new(calls, Ended::Unanswered));
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
        departure: &Departure,
    ) -> Answer {
        let start = Instant::now();
        let answer = self.upstream.send(message, permit, departure).await;
        let took = start.elapsed();
        tracing::debug!(id = %message.id, topic = %message.topic, code = %answer.label(), ?took, "called");
        entry.ended(&answer.label(), billed(&answer.verdict()), took);
        answer
    }

    /// Whether another try may succeed and cannot make a duplicate; returns when it is time for
    /// it.
    async fn worth_another(&self, answer: &Answer, calls: u32, caller: &Caller) -> bool {
        if caller.to.is_none() {
            // The caller was told; what may have been sent is not sent again.
            return false;
        }
        let pause = match answer.verdict() {
            Verdict::Barred(Bar::Key) => {
                let renewed = timeout_at(caller.deadline, self.upstream.renew_key()).await;
                return renewed.unwrap_or(false);
            }
            // The upstream has corrected its clock by the answer's; once.
            Verdict::Barred(Bar::Clock) => return calls == 1,
            Verdict::Throttled { retry_after: Some(wait) } => wait,
            Verdict::Throttled { retry_after: None } | Verdict::Failed => self.back_off(calls),
            Verdict::Delivered
            | Verdict::Refused
            | Verdict::Unknown
            | Verdict::Barred(Bar::Permission | Bar::Endpoint) => return false,
        };
        if Instant::now() + pause >= caller.deadline {
            return false;
        }
        sleep(pause).await;
        true
    }

    /// Full jitter.
    fn back_off(&self, calls: u32) -> Duration {
        let most = BACK_OFF * (1 << (calls - 1));
        let mut jitter = self.jitter.lock().unwrap_or_else(PoisonError::into_inner);
        most.mul_f64(jitter.f64())
    }

    async fn another_permit(&self, caller: &Caller) -> Option<Permit> {
        let ticket = self.ceiling.request(Class::Retry, caller.deadline);
        let permit: Result<Permit, Refused> = match ticket {
            Ok(ticket) => ticket.permit().await,
            Err(refused) => Err(refused),
        };
        permit.ok()
    }
}
