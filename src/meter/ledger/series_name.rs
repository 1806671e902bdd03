//! Names of series, as the ledger has them.

use std::borrow::Cow;
use std::sync::Arc;

use crate::message::{CallerName, InstanceId};

/// Whose messages a series counts. The topic is a parent topic, or `other`; the caller is empty where all
/// callers are one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SeriesName {
    pub(crate) instance: InstanceId,
    pub(crate) topic: Arc<str>,
    pub(crate) caller: CallerName,
}

/// The caller of a series that stands for all of them. No caller has this name.
const ALL_CALLERS: &str = "*";

/// Topic and caller of the series of calls that are no messages: neither is called so.
const ACTIONS: &str = "+";

impl SeriesName {
    /// The one of an instance's calls of other operations, which are not billed: it only knows how many may have
    /// no answer.
    pub(crate) fn of_actions(instance: &InstanceId) -> Self {
        Self { instance: Arc::clone(instance), topic: ACTIONS.into(), caller: ACTIONS.into() }
    }

    /// Whether it counts messages.
    pub(crate) fn counts_messages(&self) -> bool {
        &*self.topic != ACTIONS
    }

    /// The one of an instance and parent topic, where all callers are one.
    pub(crate) fn of_all(instance: &InstanceId, topic: &str) -> Self {
        Self { instance: Arc::clone(instance), topic: topic.into(), caller: "".into() }
    }

    /// The ones that count this one's messages as well, for their largest seconds: of its whole instance, and
    /// with a caller that of the topic and that of the caller.
    pub(crate) fn sums(&self) -> Vec<Self> {
        if !self.counts_messages() {
            return Vec::new();
        }
        let whole = Self::of_all(&self.instance, "");
        if self.caller.is_empty() {
            return vec![whole];
        }
        let of_topic = Self { caller: ALL_CALLERS.into(), ..self.clone() };
        let of_caller = Self { topic: "".into(), ..self.clone() };
        vec![whole, of_topic, of_caller]
    }

    /// The same of another topic; and of the callers that are counted together, if it is of one.
    pub(crate) fn of_others(&self, label: &str) -> Self {
        let caller = if self.caller.is_empty() { "" } else { label };
        Self { instance: Arc::clone(&self.instance), topic: label.into(), caller: caller.into() }
    }

    /// Whether it counts what others count, too.
    pub(crate) fn is_sum(&self) -> bool {
        self.topic.is_empty() || &*self.caller == ALL_CALLERS
    }

    /// Topic and caller as the store has them: earlier versions have written topics alone.
    pub(crate) fn scope(&self) -> Cow<'_, str> {
        if self.caller.is_empty() {
            Cow::Borrowed(&self.topic)
        } else {
            Cow::Owned(format!("{}\n{}", self.topic, self.caller))
        }
    }

    pub(crate) fn of_scope(instance: &str, scope: &str) -> Self {
        let (topic, caller) = scope.split_once('\n').unwrap_or((scope, ""));
        Self { instance: instance.into(), topic: topic.into(), caller: caller.into() }
    }
}
