//! What a fleet's bill is made of, and what it lacks.

use serde::{Deserialize, Serialize};

/// Which sidecars a fleet's bill is of, and what it lacks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FleetCoverage {
    /// `fleet.account`.
    pub account: String,
    /// Sidecars whose messages may be in this time.
    pub sidecars: usize,
    /// Those of them that run.
    pub reporting: usize,
    /// Those that have ended in order.
    pub ended: usize,
    /// Those that have done neither: they were killed, or do not reach Redis.
    pub silent: usize,
    /// No more than a hundred of the silent ones, the latest first.
    pub silent_sidecars: Vec<SilentSidecar>,
    /// From here on, Redis has what every sidecar counted, but for losses. Before, it may lack messages.
    pub complete_from: Option<String>,
    /// Redis fell back to an older state. What sidecars wrote in this time and that ended soon after may be missing.
    pub losses: Vec<Loss>,
    /// Uncertain messages whose calls have ended, but for an answer.
    pub unanswered: u64,
    /// Uncertain messages of calls that may have begun since their sidecar's last report.
    pub unreported: u64,
}

/// A sidecar that does not report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentSidecar {
    /// Its machine's name; a pod's is the pod's.
    pub name: String,
    /// Of this run of it.
    pub id: String,
    /// Its last report.
    pub reported: String,
    /// Calls that it may have made since.
    pub unreported: u64,
}

/// Redis had an older state than before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// The last moment from which it had all, of those that are known.
    pub from: String,
    /// When a sidecar noticed.
    pub to: String,
}
