//! What a sidecar takes over from others: what it may send.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::{Config, Topics};
use crate::message::{InstanceId, Topic};

/// What a sidecar takes over. The rest is left with its dead owner, for a sidecar that may send it.
#[derive(Debug, Clone, Default)]
pub struct AdoptionRules {
    /// `None`: everything, as an operator's command does, which sends nothing.
    only: Option<(Topics, BTreeSet<InstanceId>)>,
}

impl AdoptionRules {
    /// Topics that `topics.allow` allows, of instances that `[upstream]` names for any topic: the sidecar
    /// that accepted a message has chosen its instance, and rules for that may have changed since.
    pub fn of(config: &Config) -> Self {
        let rules = config.upstream.instances.iter().map(|rule| &rule.instance_id);
        let instances = config.upstream.instance_id.iter().chain(rules).map(Arc::clone);
        Self { only: Some((config.topics.clone(), instances.collect())) }
    }

    /// Whether a message of this instance and topic is taken over.
    pub(super) fn allow(&self, instance: &InstanceId, topic: &Topic) -> bool {
        let Some((topics, instances)) = &self.only else { return true };
        topics.allows(topic) && instances.contains(instance)
    }
}

/// Stored messages that are not sent, by the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldCounts {
    /// `topics.allow` does not allow their topics, or `[upstream]` does not name their instances.
    pub not_allowed: u64,
    /// Their MACs do not hold.
    pub unverified: u64,
}

impl std::ops::AddAssign for HeldCounts {
    fn add_assign(&mut self, more: Self) {
        self.not_allowed += more.not_allowed;
        self.unverified += more.unverified;
    }
}
