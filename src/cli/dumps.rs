//! Keeps the process's memory, which has the access key in it, from others: no core file, and no other
//! process of this user may read it or attach to it.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Makes the process leave no core, and not dumpable. A system that refuses is logged: it must not keep a
/// sidecar from starting.
pub(super) fn protect() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "the limit of core files stays as it is: a crash may write the access key to a file");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "the process stays dumpable: other processes of this user may read its memory");
    }
}
