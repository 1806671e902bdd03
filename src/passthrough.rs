//! What happens to a call of another operation than `SendMessage`: a permit of the operation's own ceiling, one of
//! those that all calls share, the call, and its answer as it came. Nothing of it is stored, sent again or billed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::action::{Action, ActionCall};
use crate::answer::{AccessDenied, Answer, AnswerBody, TransportError, Verdict};
use crate::ceiling::{Ceiling, Class, Permit, PermitRequest, Refused, Start};
use crate::config::{self, Config};
use crate::fair_queue::Weights;
use crate::log_limiter::LogLimiter;
use crate::memory::MemoryReservation;
use crate::message::{CallerName, InstanceId};
use crate::meter::{ActionResult, CallRead, Meter};
use crate::upstream::{HttpUpstream, MAX_ACTION_ANSWER, RawAnswer, SendGate, Upstream};

/// Log lines a minute about calls that were not done.
const MAX_LINES: u64 = 5;

/// Passes calls on. Cheap to clone.
#[derive(Clone)]
pub struct Passthrough {
    inner: Arc<Inner>,
}

struct Inner {
    upstream: HttpUpstream,
    /// Those of the account and the address. The provider counts each operation of an account by itself, but all
    /// calls of an address together: a permit of both is the careful reading.
    ceiling: Ceiling,
    /// By operation, for all of the account: those that are passed on.
    own: BTreeMap<Box<str>, Ceiling>,
    weights: Weights,
    meter: Meter,
    tasks: TaskTracker,
    stop: CancellationToken,
    log_limiter: LogLimiter,
}

/// Who calls, and until when.
#[derive(Debug)]
pub struct PassOptions {
    /// The instance that the call names.
    pub instance: InstanceId,
    /// `None`: all callers are one.
    pub caller: Option<CallerName>,
    /// Until when the call may begin, and its answer is waited for.
    pub deadline: Instant,
}

/// Why a call was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPassed {
    /// There was no permit of the operation's own ceiling in time.
    OwnCeiling(Refused),
    /// There was none of the ceilings that all calls share.
    Ceiling(Refused),
    /// There is no memory for its answer.
    NoMemory,
    /// We stop.
    Stopping,
}

/// The ceiling of an operation now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActionCeiling {
    /// The operation's name.
    pub action: Box<str>,
    /// Calls a second, of all sidecars together that share it.
    pub limit: u32,
    /// Calls of this sidecar in flight, answered within the last second, or without an answer and perhaps not read.
    pub used: usize,
    /// Calls that wait for a permit of it.
    pub waiting: usize,
}

impl Passthrough {
    /// Passes on the operations of `sdk.actions`, on the current runtime. Processes before this one may have called
    /// them a moment ago, unless `start` says that there were none.
    pub fn start(
        config: &Config,
        upstream: HttpUpstream,
        ceiling: Ceiling,
        meter: Meter,
        start: &Start,
    ) -> Self {
        let weighed = config.callers.iter();
        let weights = Weights::of(weighed.map(|one| (one.name.as_str().into(), one.weight)));
        let actions = if config.sdk.enabled { &*config.sdk.actions } else { &[] };
        let own = actions.iter().map(|action| {
            let own = own(config, action, start);
            own.weigh(weights.clone());
            (action.name.clone(), own)
        });
        let inner = Inner {
            upstream,
            ceiling,
            own: own.collect(),
            weights,
            meter,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            log_limiter: LogLimiter::each_minute(MAX_LINES),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Whether calls of an operation are passed on.
    pub fn passes(&self, action: &str) -> bool {
        self.inner.own.contains_key(action)
    }

    /// Makes a call, with the memory that it holds. A caller that hangs up once it has its permits loses the answer
    /// alone: a call that is given up would count for longer.
    ///
    /// # Errors
    /// It was not made, and is not made any more.
    pub async fn pass(
        &self,
        call: ActionCall,
        options: PassOptions,
        mut memory: MemoryReservation,
    ) -> Result<RawAnswer, NotPassed> {
        let (inner, action, deadline) =
            (Arc::clone(&self.inner), call.action.clone(), options.deadline);
        let permit = self.inner.permit(&action, &options).await.and_then(|permit| {
            if memory.add_bytes(MAX_ACTION_ANSWER).is_ok() {
                return Ok(permit);
            }
            permit.unsent();
            Err(NotPassed::NoMemory)
        });
        let permit = permit.inspect_err(|refused| {
            let result = match refused {
                NotPassed::OwnCeiling(_) | NotPassed::Ceiling(_) => ActionResult::Throttled,
                NotPassed::NoMemory | NotPassed::Stopping => ActionResult::Failed,
            };
            self.inner.meter.action_ended(&action, result);
        })?;
        let task = self.inner.tasks.spawn(async move {
            let answer = inner.send(call, &options, permit).await;
            drop(memory);
            answer
        });
        // A task ends without an answer only with the runtime, or by a bug of ours.
        let answer = timeout_at(deadline, task).await;
        Ok(answer.ok().and_then(Result::ok).unwrap_or_else(|| TransportError::Timeout.into()))
    }

    /// Sends nothing more, and waits for the answers of calls under way, but no longer than this.
    pub async fn close(&self, limit: Duration) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        // Else they count as unknown.
        drop(timeout(limit, self.inner.tasks.wait()).await);
    }

    /// Gives back what is held of a fleet's ceilings.
    pub async fn leave(&self) {
        let mut all = JoinSet::new();
        for own in self.inner.own.values() {
            let own = own.clone();
            all.spawn(async move { own.close().await });
        }
        all.join_all().await;
    }

    /// The operations' own ceilings, by name.
    pub fn ceilings(&self) -> Vec<ActionCeiling> {
        let own = self.inner.own.iter().map(|(action, own)| {
            let status = own.status();
            let [account, _] = &status.ceilings;
            ActionCeiling {
                action: action.clone(),
                limit: account.limit.unwrap_or_default(),
                used: account.used,
                waiting: status.waiting,
            }
        });
        own.collect()
    }
}

impl Inner {
    /// First one of the operation's own, so that what the operation does not get holds no permit of the address, for
    /// which all calls wait.
    async fn permit(&self, action: &str, options: &PassOptions) -> Result<Permit, NotPassed> {
        let caller = self.weights.flow(options.caller.as_ref());
        let asks = PermitRequest { caller, ..PermitRequest::new(Class::Fresh, options.deadline) };
        let of = async |ceiling: &Ceiling| ceiling.ask(&asks)?.permit().await;
        let permit = async {
            let own_ceiling =
                self.own.get(action).ok_or(NotPassed::OwnCeiling(Refused::TimedOut))?;
            loop {
                let own = of(own_ceiling).await.map_err(NotPassed::OwnCeiling)?;
                let permit = of(&self.ceiling).await.map_err(NotPassed::Ceiling)?;
                // In a fleet it may have ended by now.
                if own.holds() {
                    return Ok(permit.with_own(own));
                }
                own.unsent();
                permit.unsent();
            }
        };
        self.stop.run_until_cancelled(permit).await.unwrap_or(Err(NotPassed::Stopping))
    }

    async fn send(&self, call: ActionCall, options: &PassOptions, permit: Permit) -> RawAnswer {
        let gate = SendGate::new(options.deadline, &self.stop);
        let entry = self.meter.begin_action(&options.instance, &call.action).await;
        let raw = self.upstream.pass(&call, permit, &gate).await;
        let (result, read) = (result(&raw.answer), read(&raw.answer));
        entry.ended(result, read);
        let (code, action) = (raw.answer.label(), &*call.action);
        // What the provider refuses is its caller's affair.
        if !matches!(result, ActionResult::Ok | ActionResult::Refused)
            && let Some(suppressed) = self.log_limiter.next()
        {
            let caller = options.caller.as_deref();
            let upstream_request_id = raw.answer.http().and_then(|http| http.request_id.as_deref());
            let result = result.as_str();
            tracing::warn!(id = %call.id, action, caller, %code, upstream_request_id, result, suppressed, "operation not done");
        }
        if matches!(raw.answer.verdict(), Verdict::Denied(AccessDenied::Key)) {
            // For the calls that follow: this one has its answer.
            let upstream = self.upstream.clone();
            self.tasks.spawn(async move { upstream.renew_key().await });
        }
        raw
    }
}

fn result(answer: &Answer) -> ActionResult {
    if let Some(http) = answer.http().filter(|http| http.is_2xx()) {
        let is_whole = http.body == AnswerBody::Object;
        return if is_whole { ActionResult::Ok } else { ActionResult::Unknown };
    }
    match answer.verdict() {
        Verdict::Throttled { .. } => ActionResult::Throttled,
        Verdict::Refused => ActionResult::Refused,
        Verdict::Unknown => ActionResult::Unknown,
        Verdict::Delivered | Verdict::Denied(_) | Verdict::Failed => ActionResult::Failed,
    }
}

/// Whether the provider may still read a call with this end.
fn read(answer: &Answer) -> CallRead {
    let is_over = match answer {
        Answer::Http(_) => !answer.is_gateway_timeout(),
        Answer::TransportError(lost) => lost.nothing_sent(),
    };
    if is_over { CallRead::Done } else { CallRead::Possible }
}

/// The ceiling of an operation, which a fleet shares as it shares the account's.
fn own(config: &Config, action: &Action, start: &Start) -> Ceiling {
    let account = Some(action.ceiling);
    let ceilings = config::Ceilings { account, egress_ip: None, ..config.ceilings.clone() };
    // Calls that an earlier process left are not known by their operation.
    let start = match start {
        Start::Alone => Start::Alone,
        Start::AfterOthers | Start::After { .. } => Start::AfterOthers,
    };
    // As many as may have their turn in time, and those whose callers are refused by the wait.
    let seconds =
        usize::try_from(config.sdk.wait.as_secs()).unwrap_or(usize::MAX).saturating_add(1);
    let most_waiting =
        usize::try_from(action.ceiling).unwrap_or(usize::MAX).saturating_mul(seconds);
    let own = Ceiling::start(&ceilings, 1, most_waiting.min(config.publish.max_waiting), start);
    if let Some(fleet) = &config.fleet {
        own.share_action(&ceilings, fleet, config.upstream.call_timeout, &action.name);
    }
    own
}
