//! What becomes of a message between its acceptance and its outcome, most of it in paused time: ceilings,
//! outages, restarts, races. Nothing has to be installed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod ceilings;
mod outages;
mod outcomes;
mod races;
mod readers;
mod stalls;
#[path = "../support/mod.rs"]
mod support;
