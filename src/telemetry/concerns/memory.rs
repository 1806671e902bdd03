//! The memory for callers' messages, or the places of their idempotency keys, are nearly all in use.

use bytesize::ByteSize;

use super::{Concerns, NEARLY, share};
use crate::config::grouped;
use crate::telemetry::view::{Level, SidecarStatus};

/// Large messages are refused from three quarters on.
const LARGE: f64 = 0.7;

impl Concerns {
    pub(super) fn idempotency_keys(&mut self, status: &SidecarStatus) {
        let Some(usage) = status.keys else { return };
        let used = share(usage.reserved as f64, Some(usage.max as f64));
        if used < NEARLY {
            return;
        }
        let detail = format!(
            "{} of {} are reserved. When all are, messages with a new key are answered 503, with Retry-After; \
             messages without one are not affected.",
            grouped(usage.reserved as u64),
            grouped(usage.max as u64)
        );
        let remedy = "Lower idempotency.keep, or raise idempotency.max_keys, spool.max_messages and the memory \
                      limit of the container.";
        let level = if used >= 1.0 { Level::Bad } else { Level::Warn };
        self.add("idempotency_keys", level, "Idempotency keys are nearly used up", detail, remedy);
    }

    pub(super) fn memory(&mut self, status: &SidecarStatus) {
        let Some(usage) = status.memory else { return };
        if share(usage.used as f64, Some(usage.max as f64)) < LARGE {
            return;
        }
        let detail = format!(
            "Messages in progress take {} of the {} that they may. Those that find no memory are answered 503 \
             with Retry-After.",
            ByteSize(usage.used),
            ByteSize(usage.max)
        );
        let remedy = "Let callers send fewer large messages at once, or raise the memory limit of the \
                      container (runtime.memory).";
        self.add(
            "memory",
            Level::Warn,
            "The memory for messages is nearly used up".to_owned(),
            detail,
            remedy,
        );
    }
}
