//! Minutes and hours of real time, in no run of `cargo test` but in `make soak`, one test at a time.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod fleets;
mod keys;
mod neighbours;
mod night;
mod outages;
mod standstills;
#[path = "../support/mod.rs"]
mod support;
