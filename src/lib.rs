//! tollgate: a sidecar between services and Alibaba Cloud ApsaraMQ for MQTT.
//!
//! A service does `POST /publish/<topic>` with raw bytes. tollgate signs the call, keeps under the
//! provider's ceilings and counts what is billed. Three promises, in this order: never over a
//! ceiling, in any sliding second; never lose a message that we said we have; never bill twice by
//! our own fault, and say so where we cannot know.
//!
//! # Layers
//!
//! | layer | modules | |
//! | --- | --- | --- |
//! | 5 | [`cli`] | the verbs of the command line, and the only module that prints |
//! | 4 | [`sidecar`] | starts the parts from a configuration, drains and stops them |
//! | 3 | [`publish`], [`telemetry`], [`control`], [`keyring`] | HTTP services: for callers; for Prometheus, the kubelet and a browser; for operators; for sidecars that want a key |
//! | 2 | [`delivery`], [`passthrough`] | what happens to a message from acceptance to its end; what happens to a call of another operation |
//! | 1 | [`ceiling`], [`upstream`], [`spool`], [`meter`] | permits; one call; stored messages; counted calls |
//! | 0 | [`keys`], [`signing`], [`verification`], [`callers`], [`server`], [`log_limiter`], [`redis_client`], [`deadline`], [`backoff`], [`fair_queue`], [`histogram`], [`traces`] | the access key; signatures of a call; those of calls that arrive; who a caller is; the HTTP server; a limit of log lines; connections to Redis; deadlines that hold in a process that was stopped; waits between tries; queues that are served by weight; histograms of what modules measure; spans and their export |
//! | −1 | [`message`], [`action`], [`answer`], [`config`], [`memory`] | types that all modules share; the memory that callers' messages may take |
//! | apart | [`emulator`] | the provider on your machine, behind the feature `emulator`; only [`cli`] uses it, and it uses [`verification`] only |
//!
//! Imports between modules go down a layer, never up, and never sideways on layers 1 and 3, but that
//! [`upstream`] takes a permit of [`ceiling`]'s: there is no call without one. Within a module, files
//! do not import each other in a circle. `tests/layering.rs` checks both.
//!
//! # The way of a message
//!
//! 1. [`publish`] parses the request once: a [`message::Message`] and how long its caller waits.
//! 2. [`delivery`] asks [`ceiling`] for a permit; what cannot be sent in time is refused at once.
//! 3. [`upstream`] spends the permit on one signed call and returns an [`answer::Answer`].
//! 4. [`answer::Answer::verdict`], the only place that knows the provider's codes, says what it
//!    means; [`meter`] counts it.
//! 5. A message that was not delivered is stored in [`spool`], and [`delivery`] retries it until its
//!    end.
//! 6. The outcome goes back up the same way, once.

pub mod action;
pub mod answer;
pub mod backoff;
pub mod callers;
pub mod ceiling;
pub mod cli;
pub mod config;
pub mod control;
pub mod deadline;
pub mod delivery;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod fair_queue;
pub mod histogram;
pub mod keyring;
pub mod keys;
pub mod log_limiter;
pub mod memory;
pub mod message;
pub mod meter;
pub mod passthrough;
pub mod publish;
pub mod redis_client;
pub mod server;
pub mod sidecar;
pub mod signing;
pub mod spool;
pub mod telemetry;
pub mod traces;
pub mod upstream;
pub mod verification;
