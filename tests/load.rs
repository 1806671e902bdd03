//! A real sidecar, a real emulator and three times the demand: never over a ceiling as the
//! provider counts, nobody blocked, the ceiling used, and callers served in their order.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod support;

use std::time::Duration;

use serde_json::Value;
use support::callers::{self, Asked};
use support::process::{Emulator, Serve};
use tokio::sync::Mutex;
use tokio::time::Instant;

const LOAD: Duration = Duration::from_secs(20);
/// One at a time: each wants the machine for itself.
static ONE: Mutex<()> = Mutex::const_new(());

/// Calls per second over the whole seconds in the middle of the load.
fn rate(report: &Value) -> f64 {
    let seconds = report["by_second"].as_array().unwrap();
    let calls: Vec<f64> = seconds.iter().map(|s| s["calls"].as_f64().unwrap()).collect();
    let middle = &calls[3..calls.len() - 3];
    assert!(middle.len() >= 12, "{calls:?}");
    middle.iter().sum::<f64>() / middle.len() as f64
}

/// Callers in line are served in turn: all wait alike. Those who came first had a shorter line.
fn all_wait_alike(answers: &[Asked], from: Instant, until: Instant) {
    let mut waits: Vec<_> =
        answers.iter().filter(|a| a.at > from && a.at + a.took < until).map(|a| a.took).collect();
    waits.sort();
    let median = waits[waits.len() / 2];
    let (least, most) = (waits[0], waits[waits.len() - 1]);
    assert!(
        least * 5 > median * 4 && most * 4 < median * 5,
        "waits of {least:?} to {most:?} around {median:?}: not first come, first served"
    );
}

#[tokio::test]
async fn three_thousand_callers_at_three_times_the_account() {
    let _one = ONE.lock().await;
    let emulator = Emulator::start(&["--egress-ip-qps", "0"]).await;
    let url = emulator.url();
    let settings = [
        ("upstream.endpoint", url.as_str()),
        ("ceilings.account", "1000"),
        ("publish.wait", "10s"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    let start = Instant::now();
    let answers = callers::run(&serve.publish, 3_000, start + LOAD).await;
    let report = emulator.report().await;
    let worst = report["worst_second"].as_u64().unwrap();
    let rate = rate(&report);
    println!("3,000 callers: {rate:.1} calls/s, worst sliding second {worst}");
    assert!(answers.iter().all(|a| a.status == 200), "each was let in and delivered");
    assert_eq!(report["refused"], serde_json::json!({}));
    assert!(worst <= 1_000, "{worst} in a sliding second");
    assert!(rate >= 970.0, "{rate} of 1,000 calls/s");
    all_wait_alike(&answers, start + Duration::from_secs(6), start + LOAD);
}

#[tokio::test]
async fn four_egress_addresses_share_the_account() {
    let _one = ONE.lock().await;
    let emulator = Emulator::start(&[]).await;
    let url = emulator.url();
    let settings = [
        ("upstream.endpoint", url.as_str()),
        ("upstream.egress_addresses", "127.0.0.1, 127.0.0.2, 127.0.0.3, 127.0.0.4"),
        ("ceilings.account", "1000"),
        ("ceilings.egress_ip", "300"),
        ("publish.wait", "10s"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    let answers = callers::run(&serve.publish, 3_000, Instant::now() + LOAD).await;
    let report = emulator.report().await;
    let rate = rate(&report);
    println!("four addresses: {rate:.1} calls/s, {}", report["worst_second_by_source"]);
    assert!(answers.iter().all(|a| a.status == 200));
    assert!(report["worst_second"].as_u64().unwrap() <= 1_000);
    let by_source = report["worst_second_by_source"].as_object().unwrap();
    assert_eq!(by_source.len(), 4);
    assert!(by_source.values().all(|worst| worst.as_u64().unwrap() <= 300), "{by_source:?}");
    assert_eq!(report["blocked"], serde_json::json!([]));
    assert!(rate >= 970.0, "{rate} of 1,000 calls/s");
}

#[tokio::test]
async fn one_egress_address_is_never_blocked() {
    let _one = ONE.lock().await;
    let emulator = Emulator::start(&[]).await;
    let url = emulator.url();
    let settings = [
        ("upstream.endpoint", url.as_str()),
        ("ceilings.account", "1000"),
        ("ceilings.egress_ip", "300"),
        ("publish.wait", "10s"),
    ];
    let serve = Serve::start(&settings, &[]).await;
    let answers = callers::run(&serve.publish, 900, Instant::now() + LOAD).await;
    let report = emulator.report().await;
    let rate = rate(&report);
    println!("one address: {rate:.1} calls/s, worst {}", report["worst_second"]);
    assert!(answers.iter().all(|a| a.status == 200));
    assert!(report["worst_second"].as_u64().unwrap() <= 300);
    assert_eq!(report["blocked"], serde_json::json!([]));
    assert!(rate >= 291.0, "{rate} of 300 calls/s");
}

/// kill -9 in the middle of the load and a new start at once, again and again.
#[tokio::test]
async fn a_crash_loop_is_never_blocked_either() {
    let _one = ONE.lock().await;
    let emulator = Emulator::start(&[]).await;
    let url = emulator.url();
    let mut delivered = 0;
    for _ in 0..4 {
        let settings = [
            ("upstream.endpoint", url.as_str()),
            ("ceilings.egress_ip", "300"),
            ("publish.wait", "10s"),
        ];
        let serve = Serve::start(&settings, &[]).await;
        let load = callers::run(&serve.publish, 600, Instant::now() + Duration::from_millis(2_500));
        let answers = tokio::select! {
            answers = load => answers,
            () = tokio::time::sleep(Duration::from_secs(2)) => Vec::new(),
        };
        delivered += answers.len();
        serve.signal(rustix::process::Signal::KILL);
        drop(serve);
    }
    let report = emulator.report().await;
    println!("crash loop: {} calls, worst {}", report["calls"], report["worst_second"]);
    assert!(report["calls"].as_u64().unwrap() > 800, "{report} {delivered}");
    assert!(report["worst_second"].as_u64().unwrap() <= 300, "{report}");
    assert_eq!(report["blocked"], serde_json::json!([]));
}
