//! What callers, operators and scripts are promised, against a scripted upstream or the emulator. Nothing has
//! to be installed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod answers;
mod batch_publish;
mod callers;
mod certificates;
mod cli;
mod cloud_events;
mod config;
mod connections;
mod demo;
mod door;
mod durability;
mod keyring;
mod keys;
mod ledger;
mod log;
mod memory;
mod messages;
mod payloads;
mod problems;
mod process;
mod reads;
mod requests;
mod sdk;
mod sdk_actions;
mod secrets;
mod signatures;
mod spool_http;
#[path = "../support/mod.rs"]
mod support;
mod terms;
mod traces;
mod upstream;
