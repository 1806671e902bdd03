//! How much memory the process may use, and how much of it each kind of data may take.
//!
//! A process that passes the limit of its container is killed, and every caller with it. So what callers
//! can make it hold is bounded before it is read: connections, stored messages and idempotency keys by their
//! number, bodies by their bytes.

mod budget;
mod limit;
mod queue;

pub use budget::{MemoryBudget, MemoryReservation, MemoryUsage, NoMemory};
pub use limit::limit;
pub use queue::{MemoryQueue, MemoryTurn};

const MIB: u64 = 1 << 20;

/// What the process needs before it holds anything for a caller: code, certificates, the ledger, connections
/// to the provider, buffers of writes and of the log.
const BASE: u64 = 16 * MIB;
/// A part of the limit that is left to the allocator, which does not return all that is freed, and to the
/// system's buffers of sockets.
const SLACK: u64 = 8;
/// The least that is shared out: with a lower limit, nothing would work.
const LEAST: u64 = 4 * MIB;

/// An open connection without a request, in bytes. Measured by `cargo bench --bench footprint`.
const CONNECTION: u64 = 25 << 10;
/// The same over TLS, with the certificate of its client: 7 KiB more of its own, and twice the certificates.
const TLS_CONNECTION: u64 = 35 << 10;
/// What the index holds of a stored message, in bytes, without its key: at most, of one that was delivered.
/// Measured by the same.
const STORED: u64 = 720;
/// An idempotency key and what became of its message, in bytes. Measured by the same.
const KEY: u64 = 740;

/// The most of each kind of data that the process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Bytes for the bodies of callers' messages, from their first byte until the message has ended or is
    /// stored.
    pub bodies: u64,
    /// Bytes for the bodies of stored messages that are being called for.
    pub stored_bodies: u64,
    /// Connections of callers.
    pub connections: usize,
    /// The same, where they speak TLS.
    pub tls_connections: usize,
    /// Stored messages, dead letters and receipts.
    pub messages: usize,
    /// Idempotency keys.
    pub keys: usize,
}

impl MemoryPlan {
    /// Shares out the memory of a process that may use `limit` bytes.
    pub fn of(limit: u64) -> Self {
        let shared = limit.saturating_sub(BASE + limit / SLACK).max(LEAST);
        let part = |sixteenths: u64| shared / 16 * sixteenths;
        let count = |bytes: u64, each: u64| usize::try_from(bytes / each).unwrap_or(usize::MAX);
        Self {
            bodies: part(3),
            stored_bodies: part(2),
            connections: count(part(3), CONNECTION),
            tls_connections: count(part(3), TLS_CONNECTION),
            messages: count(part(5), STORED),
            keys: count(part(3), KEY),
        }
    }

    /// Bytes that stored messages and keys may take and do not, where there are so many of them.
    pub fn unused(&self, messages: u64, keys: u64) -> u64 {
        let may = self.messages as u64 * STORED + self.keys as u64 * KEY;
        may.saturating_sub(messages.saturating_mul(STORED) + keys.saturating_mul(KEY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_fit_the_limit() {
        for limit in [32 * MIB, 64 * MIB, 128 * MIB, 256 * MIB, 1 << 30, 1 << 40] {
            let plan = MemoryPlan::of(limit);
            let counted = plan.connections as u64 * CONNECTION
                + plan.messages as u64 * STORED
                + plan.keys as u64 * KEY;
            let used = plan.bodies + plan.stored_bodies + counted;
            assert!(
                used + BASE + limit / SLACK <= limit.max(BASE + LEAST + limit / SLACK),
                "{limit}: {plan:?}"
            );
            assert!(used >= LEAST / 2, "{limit}: {plan:?}");
        }
        let plan = MemoryPlan::of(128 * MIB);
        let all = plan.unused(0, 0);
        assert!(all > 32 * MIB && plan.unused(1_000, 1_000) == all - 1_000 * (STORED + KEY));
        assert_eq!(plan.unused(u64::MAX, 0), 0);
        // Nothing is too small for a message of the largest kind.
        assert!(MemoryPlan::of(0).stored_bodies >= budget::cost(64 << 10));
    }
}
