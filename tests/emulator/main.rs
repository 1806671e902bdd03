//! The emulator over real sockets. `tests/setup.sh` installs what the `broker` and `sdk` tests
//! need.

// clippy spares tests, but not what they share
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod authentication;
mod broker;
mod client;
mod connections;
mod faults;
mod limits;
mod report;
mod sdk;
#[path = "../support/mod.rs"]
mod support;
mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;
use tollgate::emulator::{Emulator, KeyPair, Options};

use client::{Call, Client, Place, Version};

/// On a free port, without ceilings, and with temporary keys beside the demo key.
fn options() -> Options {
    let keys = [
        KeyPair::with_token("sts-1", "sts-secret", "CAIS-token-1+/=="),
        KeyPair::with_token("sts-2", "sts-secret", "CAIS-token-2+/=="),
    ];
    let default = Options::default();
    Options {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        account_qps: 0,
        egress_ip_qps: 0,
        keys: default.keys.iter().cloned().chain(keys).collect(),
        ..default
    }
}

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

async fn start(options: Options) -> (Emulator, Client) {
    let emulator = Emulator::start(options).unwrap();
    let client = Client::connect(emulator.address()).await;
    (emulator, client)
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
