//! What several tests need: a sidecar in process, an upstream whose answers the test chooses, a client.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod authority;
pub mod broker;
pub mod browser;
pub mod callers;
pub mod collector;
pub mod fleet;
pub mod http;
pub mod lossy;
pub mod manifests;
pub mod output;
pub mod ports;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod redis;
pub mod script;
pub mod secrets;
pub mod stage;
pub mod standstill;
pub mod test_sidecar;
pub mod tls_client;
pub mod virtual_time;

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};
use tollgate::ceiling::Start;
use tollgate::config::{self, Config};
use tollgate::keys::{Key, Keys};
use tollgate::sidecar::{Sidecar, StartError};
use tollgate::spool::OpenError;

pub const INSTANCE: &str = "post-cn-test0001";

/// A machine that stands still for seconds makes no call fail or end without an answer, and no caller give
/// up: a test that wants that says so.
pub const PATIENT: [(&str, &str); 3] = [
    ("publish.wait", "20s"),
    ("upstream.connect_timeout", "20s"),
    ("upstream.call_timeout", "20s"),
];

/// A configuration of these keys over those that every test wants.
pub fn config(endpoint: &str, flags: &[(&str, &str)]) -> Config {
    let base = [
        ("listen.publish", "127.0.0.1:0"),
        ("listen.telemetry", "127.0.0.1:0"),
        ("upstream.endpoint", endpoint),
        ("upstream.instance_id", INSTANCE),
        ("runtime.threads", "1"),
        ("spool.store", "none"),
        ("listen.control", "none"),
    ];
    // A fleet's calls may not take so long.
    let in_fleet = flags.iter().any(|(key, _)| *key == "fleet.url");
    let patient = if in_fleet { &[][..] } else { &PATIENT };
    let flags: Vec<_> = base
        .iter()
        .chain(patient)
        .filter(|(key, _)| flags.iter().all(|(other, _)| other != key))
        .chain(flags)
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    match config::load(None, [], &flags) {
        Ok(loaded) => loaded.config,
        Err(mistakes) => panic!("{mistakes}"),
    }
}

pub fn key() -> Key {
    Key::new("testid", "testsecret".into(), None, None).unwrap()
}

/// How many tests under load run at a time. Tests of one binary do, and what another takes of two cores is
/// missing in what this one measures.
const PLACES: u32 = 3;
static FREE: Semaphore = Semaphore::const_new(PLACES as usize);

/// Held by a test that loads the whole machine. Others go first: it would keep free places from them while it
/// waits.
pub async fn alone() -> SemaphorePermit<'static> {
    loop {
        if let Ok(all) = FREE.try_acquire_many(PLACES) {
            return all;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Held by a test that keeps a third of a core busy, or less.
pub async fn beside_others() -> SemaphorePermit<'static> {
    FREE.acquire().await.unwrap()
}

/// Looks until it is so; fails if it never is.
pub async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let looked = async {
        while !so().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(http::BOUND, looked).await.is_ok(), "never: {what}");
}

/// A sidecar on free ports, that nobody else's calls precede.
pub async fn sidecar(config: &Config) -> (Sidecar, String, String) {
    sidecar_with(config, Keys::fixed(key())).await
}

pub async fn sidecar_with(config: &Config, keys: Keys) -> (Sidecar, String, String) {
    let begun = Instant::now();
    let sidecar = loop {
        match Sidecar::start(config, keys.clone(), Start::Alone, 7).await {
            // The one before still lets go of its folder: a slow disk takes its time.
            Err(StartError::Spool(OpenError::Taken(_))) if begun.elapsed() < http::BOUND => {}
            started => break started.unwrap(),
        }
    };
    let publish = sidecar.addresses().publish[0].clone();
    let telemetry = sidecar.addresses().telemetry.clone();
    (sidecar, publish, telemetry)
}
