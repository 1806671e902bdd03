//! With what others have made: Chromium, Prometheus, Alertmanager, mosquitto, the provider's SDKs, HTTP clients of Python,
//! Node, Java and curl, Kubernetes' schemas, containerd.
//! `tests/setup.sh` installs them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod alerting;
#[path = "../emulator/client.rs"]
#[allow(dead_code, reason = "what the emulator's own tests need, too")]
mod client;
mod clients;
mod containers;
mod emulator_broker;
mod emulator_sdk;
mod kubernetes;
mod mqtt;
mod openapi;
mod operators;
mod page;
mod prometheus;
mod runbooks;
mod sdk_door;
mod sdk_verifies;
mod snippets;
#[path = "../support/mod.rs"]
mod support;

use client::{options, start};
