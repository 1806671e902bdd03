//! Real processes under load, before an emulator that counts. Each of these tests holds [`support::alone`] or,
//! with less load, [`support::beside_others`]. Some need redis-server, which `tests/setup.sh` installs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod crash;
mod demand;
mod fair;
mod fleet_bill;
mod regions;
mod rolling;
mod sdk_calls;
mod shared_budget;
mod shared_ceiling;
mod standstill;
#[path = "../support/mod.rs"]
mod support;
