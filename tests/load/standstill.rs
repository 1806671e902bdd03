//! A provider that is stopped and goes on reads at once what arrived meanwhile, also from connections
//! that are closed: never over a ceiling all the same, and no address is blocked. What takes longer is in
//! `tests/soak/standstills.rs`.

use std::time::Duration;

use crate::support::process::{Emulator, Serve};
use crate::support::standstill::{
    CALLERS, N, Spool, load, never_over, one_of_four, signal, stopped,
};
use crate::support::{beside_others, until};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

const STOP: Duration = Duration::from_secs(6);

/// What is safe is asserted here; what takes its time on a busy machine, in `make soak`.
#[tokio::test]
async fn a_provider_that_stands_still_blocks_no_address() {
    for (spool, sidecars) in [(Spool::None, 1), (Spool::Disk, 1), (Spool::Redis, 5)] {
        let used = stopped(spool, sidecars, STOP).await;
        assert!(used > 0.3, "it goes on: {used}");
    }
}

/// kill -9 while the provider stands still: what the killed process has sent counts for the next one.
#[tokio::test]
async fn a_process_that_is_killed_meanwhile() {
    let _one = beside_others().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let emulator = Emulator::start(&[]).await;
    let (url, n) = (emulator.url(), N.to_string());
    let settings = [
        ("upstream.endpoint", url.as_str()),
        ("upstream.connect_timeout", "1s"),
        ("upstream.call_timeout", "3s"),
        ("ceilings.account", &n),
        ("ceilings.egress_ip", &n),
        ("spool.store", "disk"),
        ("spool.path", &path),
    ];
    for life in 0..4 {
        let serve = Serve::start(&settings, &[]).await;
        let load = load(serve.publish.clone(), CALLERS, Instant::now() + Duration::from_secs(5));
        sleep(Duration::from_secs(4)).await;
        if life == 0 {
            signal(&emulator, Signal::STOP);
            sleep(Duration::from_secs(2)).await;
        }
        serve.signal(Signal::KILL);
        tokio::task::spawn_blocking(move || load.join().unwrap()).await.unwrap();
    }
    signal(&emulator, Signal::CONT);
    // It goes on, and the next process with it.
    let serve = Serve::start(&settings, &[]).await;
    let load = load(serve.publish.clone(), CALLERS, Instant::now() + Duration::from_secs(20));
    let calls = async || emulator.report().await["calls"].as_u64().unwrap();
    let before = calls().await;
    until("the ceiling is open again", async || calls().await > before + 3 * N).await;
    tokio::task::spawn_blocking(move || load.join().unwrap()).await.unwrap();
    never_over(&emulator.report().await);
}

#[tokio::test]
async fn one_backend_that_stands_still() {
    let used = one_of_four(Duration::from_secs(5)).await;
    assert!(used > 0.3, "it goes on: {used}");
}
