//! The fleet's parts, each alone: the script against its model, and sidecars against the model.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may")]

#[cfg(feature = "redis-tests")]
mod differential;
mod fleets;
mod log;
mod plan;
mod simulation;
mod words;
