//! The emulator over real sockets. Nothing has to be installed; with a real broker and the provider's own SDK
//! it is tried in `tests/tools/`.

// clippy spares tests, but not what they share
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod authentication;
mod client;
mod connections;
mod faults;
mod keys;
mod limits;
mod report;
#[path = "../support/mod.rs"]
mod support;
mod wire;

use std::time::Duration;

use tokio::time::Instant;

use client::{Call, Place, Version, options, start};

/// What happens within one second: on a machine that stood still meanwhile, once more.
async fn within_a_second<T>(scenario: impl AsyncFn() -> T) -> T {
    let end = Instant::now() + support::http::BOUND;
    loop {
        let begun = Instant::now();
        let seen = scenario().await;
        if begun.elapsed() < Duration::from_secs(1) {
            return seen;
        }
        assert!(Instant::now() < end, "no second is long enough");
    }
}

/// The same call in each of the four ways that the provider takes it.
fn four_ways(call: &Call) -> [Call; 4] {
    let way = |version, place| Call {
        version,
        place,
        nonce: uuid::Uuid::new_v4().to_string(),
        ..call.clone()
    };
    [
        way(Version::V1, Place::Query),
        way(Version::V1, Place::Form),
        way(Version::V3, Place::Query),
        way(Version::V3, Place::Form),
    ]
}
