//! tollgate: a sidecar between services and Alibaba Cloud ApsaraMQ for MQTT.
//!
//! A service does `POST /publish/<topic>` with raw bytes. tollgate signs the call, keeps under the
//! provider's ceilings and counts what is billed. Three promises, in this order: never over a
//! ceiling, in any sliding second; never lose a message that we said we have; never bill twice by
//! our own fault, and say so where we cannot know.
//!
//! # Rooms
//!
//! | floor | rooms | |
//! | --- | --- | --- |
//! | 5 | [`cli`] | the verbs, and the only place that prints |
//! | 4 | [`sidecar`] | builds the house, opens the doors, drains and closes them |
//! | 3 | [`publish`], [`telemetry`], [`control`] | doors: for callers; for Prometheus, the kubelet, a browser; for operators |
//! | 2 | [`delivery`] | what happens to a message from acceptance to its end |
//! | 1 | [`ceiling`], [`upstream`], [`spool`], [`meter`] | engines: permits; one call; what is kept; what was sent |
//! | 0 | [`keys`], [`signing`], [`server`], [`log_limiter`], [`redis_client`], [`deadline`], [`backoff`] | the key; pure signatures; what all doors share; how much is logged; the way to Redis; deadlines of a process that may stand still; waits between tries |
//! | G | [`message`], [`answer`], [`config`] | words that all share; they know nobody |
//! | annex | [`emulator`] | the provider on your machine, behind the feature `emulator`; only [`cli`] knows it |
//!
//! An arrow between rooms goes down, never up, and never sideways on floors 1 and 3, but that
//! [`upstream`] is handed a permit of [`ceiling`]'s: there is no call without one. `tests/layering.rs`
//! holds the `use` lines against this table.
//!
//! # The way of a message
//!
//! 1. [`publish`] reads the request once: a [`message::Message`] and its caller's patience.
//! 2. [`delivery`] asks [`ceiling`] for a permit; what cannot be sent in time is refused at once.
//! 3. [`upstream`] spends the permit on one signed call and returns an [`answer::Answer`].
//! 4. [`answer::Answer::verdict`], the only place that knows the provider's codes, says what it
//!    means; [`meter`] counts it.
//! 5. What did not get through is kept in [`spool`], and belongs to [`delivery`]'s retry batches
//!    until its end.
//! 6. Back up the same stairs, once.

pub mod answer;
pub mod backoff;
pub mod ceiling;
pub mod cli;
pub mod config;
pub mod control;
pub mod deadline;
pub mod delivery;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod keys;
pub mod log_limiter;
pub mod message;
pub mod meter;
pub mod publish;
pub mod redis_client;
pub mod server;
pub mod sidecar;
pub mod signing;
pub mod spool;
pub mod telemetry;
pub mod upstream;
