//! Sidecars and a real Redis: each kind of it, and messages that are kept in it. `tests/setup.sh` installs
//! redis-server. What fleets do under load is in `tests/load/shared_ceiling.rs`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod actions;
mod redis_kinds;
mod restarts;
mod shared_spool;
#[path = "../support/mod.rs"]
mod support;
