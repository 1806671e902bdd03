//! What happens to a message from acceptance to its end.
//!
//! A message is on a task of its own before its caller first waits: a caller who hangs up loses
//! the answer, never the message. Deadlines are data that this looks at, not futures that are
//! dropped.

mod outcome;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::TaskTracker;

use crate::answer::{Answer, Bar, Verdict};
use crate::ceiling::{Ceiling, Class, Permit, Refused, Ticket};
use crate::message::Message;
use crate::meter::{Billed, CallKind, Meter};
use crate::upstream::{Departure, Upstream};
pub use outcome::{Ended, Outcome};

/// Calls for one message while its caller waits: the first and two more.
const MAX_CALLS: u32 = 3;
/// The most that a second try waits where the provider named no time; the third twice as long.
const BACK_OFF: Duration = Duration::from_millis(50);

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
    upstream: U,
    ceiling: Ceiling,
    meter: Meter,
    jitter: Mutex<fastrand::Rng>,
    under_way: TaskTracker,
}

impl<U: Upstream> Delivery<U> {
    /// `seed` decides the jitter.
    pub fn new(upstream: U, ceiling: Ceiling, meter: Meter, seed: u64) -> Self {
        let jitter = Mutex::new(fastrand::Rng::with_seed(seed));
        let under_way = TaskTracker::new();
        Self { shared: Arc::new(Shared { upstream, ceiling, meter, jitter, under_way }) }
    }

    /// Delivers a message and says what became of it, at the latest when `patience` ends.
    pub async fn publish(&self, message: Message, patience: Duration) -> Outcome {
        let deadline = Instant::now() + patience;
        let ticket = match self.shared.ceiling.request(Class::Fresh, deadline) {
            Ok(ticket) => ticket,
            Err(refused) => return Outcome::new(0, Ended::NoPermit(refused)),
        };
        let (to, outcome) = oneshot::channel();
        let caller = Caller { to: Some(to), deadline };
        let shared = Arc::clone(&self.shared);
        self.shared.under_way.spawn(async move { shared.deliver(message, ticket, caller).await });
        // The task ends early only with the runtime, and then nobody is told anything.
        outcome.await.unwrap_or_else(|_| Outcome::new(1, Ended::Unanswered))
    }

    /// Waits for the messages on their way, at most for `grace`. Returns how many are left.
    pub async fn drain(&self, grace: Duration) -> usize {
        self.shared.under_way.close();
        let ended = timeout_at(Instant::now() + grace, self.shared.under_way.wait()).await;
        if ended.is_ok() { 0 } else { self.shared.under_way.len() }
    }
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
    async fn deliver(&self, message: Message, ticket: Ticket, mut caller: Caller) {
        let mut permit = match ticket.permit().await {
            Ok(permit) => permit,
            Err(refused) => return caller.tell(Outcome::new(0, Ended::NoPermit(refused))),
        };
        let mut calls = 1;
        loop {
            let answer = self.call(&message, permit, calls, &mut caller).await;
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
        calls: u32,
        caller: &mut Caller,
    ) -> Answer {
        if let Some((ceiling, wait)) = permit.waited() {
            self.meter.waited(ceiling as usize, wait);
        }
        let start = Instant::now();
        let departure = Departure::new(caller.deadline);
        let mut call = std::pin::pin!(self.upstream.send(message, permit, &departure));
        let answer = if let Ok(answer) = timeout_at(caller.deadline, &mut call).await {
            answer
        } else {
            // A call that has not left by now never leaves, and ends at once.
            if departure.left() {
                caller.tell(Outcome::new(calls, Ended::Unanswered));
            }
            call.await
        };
        let billed = match answer.verdict() {
            Verdict::Delivered => Billed::Yes,
            Verdict::Unknown => Billed::Uncertain,
            _ => Billed::No,
        };
        let kind = if calls == 1 { CallKind::First } else { CallKind::Retry };
        let (code, took) = (answer.label(), start.elapsed());
        tracing::debug!(id = %message.id, topic = %message.topic, call = calls, %code, ?took, "called");
        self.meter.called(message, kind, &code, billed, took);
        drop(code);
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
