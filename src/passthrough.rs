//! What happens to a call of another operation than `SendMessage`: a permit of the operation's own ceiling, one of
//! those that all calls share, the call, and its answer as it came. Nothing of it is stored, sent again or billed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::action::{Action, ActionCall};
use crate::answer::{TransportError, Verdict};
use crate::ceiling::{Ceiling, Class, Permit, PermitRequest, Refused, Start};
use crate::config::{self, Config};
use crate::fair_queue::Weights;
use crate::message::{CallerName, InstanceId};
use crate::meter::{ActionResult, Meter};
use crate::upstream::{HttpUpstream, RawAnswer, SendGate};

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
}

/// Who calls, and until when.
#[derive(Debug)]
pub struct PassOptions {
    /// The instance that the call names.
    pub instance: InstanceId,
    /// `None`: all callers are one.
    pub caller: Option<CallerName>,
    /// How long the call waits for permits.
    pub patience: Duration,
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
        let actions = if config.sdk.enabled { &*config.sdk.actions } else { &[] };
        let own = actions.iter().map(|action| (action.name.clone(), own(config, action, start)));
        let weighed =
            config.callers.iter().map(|caller| (caller.name.as_str().into(), caller.weight));
        let inner = Inner {
            upstream,
            ceiling,
            own: own.collect(),
            weights: Weights::of(weighed),
            meter,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Whether calls of an operation are passed on.
    pub fn passes(&self, action: &str) -> bool {
        self.inner.own.contains_key(action)
    }

    /// Makes a call, with the memory that it holds. A caller that hangs up loses the answer, not the call's place in
    /// the ceilings: a call that is given up would count for longer.
    ///
    /// # Errors
    /// There was no permit in time.
    pub async fn pass(
        &self,
        call: ActionCall,
        options: PassOptions,
        memory: impl Send + 'static,
    ) -> Result<RawAnswer, Refused> {
        let (inner, action) = (Arc::clone(&self.inner), call.action.clone());
        let permit = match self.inner.permit(&action, &options).await {
            Ok(permit) => permit,
            Err(refused) => {
                self.inner.meter.action_ended(&action, ActionResult::Throttled);
                return Err(refused);
            }
        };
        let task = self.inner.tasks.spawn(async move {
            let answer = inner.send(call, &options.instance, permit).await;
            drop(memory);
            answer
        });
        // It ends without an answer only with the runtime, or by a bug of ours.
        Ok(task.await.unwrap_or_else(|_| TransportError::Timeout.into()))
    }

    /// Sends nothing more, waits for the answers of calls under way, but no longer than this, and gives back what is
    /// held of a fleet's ceilings.
    pub async fn close(&self, limit: Duration) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        // Else they count as unknown.
        drop(timeout(limit, self.inner.tasks.wait()).await);
        for own in self.inner.own.values() {
            own.close().await;
        }
    }
}

impl Inner {
    /// First one of the operation's own, which is free for others until the call has another one: that of the address
    /// is what all calls wait for.
    async fn permit(&self, action: &str, options: &PassOptions) -> Result<Permit, Refused> {
        let deadline = Instant::now() + options.patience;
        let caller = self.weights.flow(options.caller.as_ref());
        let asks = PermitRequest { caller, ..PermitRequest::new(Class::Fresh, deadline) };
        let own = self.own.get(action).ok_or(Refused::TimedOut)?;
        let permit = async {
            let own = own.ask(&asks)?.permit().await?;
            let permit = self.ceiling.ask(&asks)?.permit().await?;
            Ok(permit.with_own(own))
        };
        self.stop.run_until_cancelled(permit).await.unwrap_or(Err(Refused::TimedOut))
    }

    async fn send(&self, call: ActionCall, instance: &InstanceId, permit: Permit) -> RawAnswer {
        // A permit is for a call that leaves now.
        let gate = SendGate::new(Instant::now() + self.upstream.call_timeout(), &self.stop);
        let entry = self.meter.begin_action(instance, &call.action).await;
        let answer = self.upstream.pass(&call, permit, &gate).await;
        let result = match answer.answer.http() {
            Some(http) if http.is_2xx() => ActionResult::Ok,
            _ => match answer.answer.verdict() {
                Verdict::Throttled { .. } => ActionResult::Throttled,
                Verdict::Refused => ActionResult::Refused,
                Verdict::Unknown => ActionResult::Unknown,
                Verdict::Delivered | Verdict::Denied(_) | Verdict::Failed => ActionResult::Failed,
            },
        };
        let code = answer.answer.label();
        tracing::debug!(id = %call.id, action = &*call.action, %code, "operation called");
        entry.ended(result);
        answer
    }
}

/// The ceiling of an operation, which a fleet shares as it shares the account's.
fn own(config: &Config, action: &Action, start: &Start) -> Ceiling {
    let ceilings = config::Ceilings {
        account: Some(action.ceiling),
        egress_ip: None,
        ..config.ceilings.clone()
    };
    // Calls that an earlier process left are not known by their operation.
    let start = match start {
        Start::Alone => Start::Alone,
        Start::AfterOthers | Start::After { .. } => Start::AfterOthers,
    };
    let most_waiting = usize::try_from(action.ceiling).unwrap_or(usize::MAX);
    let own = Ceiling::start(&ceilings, 1, most_waiting.min(config.publish.max_waiting), start);
    if let Some(fleet) = &config.fleet {
        let account = format!("{}/{}", fleet.account, action.name);
        let fleet = config::Fleet { account, egress_group: String::new(), ..fleet.clone() };
        own.share(&ceilings, &fleet, config.upstream.call_timeout);
    }
    own
}
