//! A real sidecar, a real emulator and three times the demand: never over a ceiling as the
//! provider counts, nobody blocked, the ceiling used, and callers served in their order.
#![allow(clippy::print_stdout, reason = "figures to quote")]

use std::time::Duration;

use crate::support::callers::{self, Asked};
use crate::support::http::get;
use crate::support::process::{Emulator, Serve};
use crate::support::{alone, until};
use serde_json::Value;
use tokio::time::Instant;

const LOAD: Duration = Duration::from_secs(20);

/// Calls per second over the whole seconds in the middle of the load.
fn rate(report: &Value) -> f64 {
    let seconds = report["by_second"].as_array().unwrap();
    let calls: Vec<f64> = seconds.iter().map(|s| s["calls"].as_f64().unwrap()).collect();
    let middle = &calls[4..calls.len() - 3];
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

/// How long a call took, on average.
async fn call(serve: &Serve) -> f64 {
    let metrics = get(&serve.telemetry, "/metrics").await.text();
    let sum_of = |part: &str| -> f64 {
        let name = format!("tollgate_upstream_call_duration_seconds_{part}");
        let samples = metrics.lines().filter(|line| line.starts_with(&name));
        samples.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    sum_of("sum") / sum_of("count")
}

/// One run.
struct Run {
    /// What the emulator reports.
    report: Value,
    /// What callers were told.
    answers: Vec<Asked>,
    start: Instant,
    /// How long a call took, seconds.
    call: f64,
}

async fn load(emulator: &[&str], settings: &[(&str, &str)], callers: usize) -> Run {
    let emulator = Emulator::start(emulator).await;
    let url = emulator.url();
    let base = [("upstream.endpoint", url.as_str()), ("publish.wait", "25s")];
    let serve = Serve::start(&[&base[..], settings].concat(), &[]).await;
    let start = Instant::now();
    let answers = callers::run(&serve.publish, callers, start + LOAD).await;
    assert!(answers.iter().all(|a| a.status == 200), "each was let in and delivered");
    let report = emulator.report().await;
    assert_eq!(report["refused"], serde_json::json!({}));
    assert_eq!(report["blocked"], serde_json::json!([]));
    Run { report, answers, start, call: call(&serve).await }
}

/// The ceiling is to be used: all but 3 % of what can be, since a permit is out for a call and one
/// second more, and calls take longer where other processes want the machine. Every run must keep the
/// ceiling, and `check` looks at every run; of the use the best of three counts.
async fn used(
    what: &str,
    ceiling: f64,
    emulator: &[&str],
    settings: &[(&str, &str)],
    callers: usize,
    check: impl Fn(&Value),
) {
    let mut best = 0.0_f64;
    for _ in 0..3 {
        let Run { report, answers, start, call } = load(emulator, settings, callers).await;
        check(&report);
        let (rate, possible) = (rate(&report), ceiling / (1.0 + call));
        best = best.max(rate / possible);
        println!(
            "{what}: {rate:.1} calls/s of {possible:.1}, worst sliding second {}, by address {}",
            report["worst_second"], report["worst_second_by_source"]
        );
        if best >= 0.97 {
            return all_wait_alike(&answers, start + Duration::from_secs(6), start + LOAD);
        }
    }
    panic!("{what}: {best} of what can be");
}

/// Without `[ceilings]`: the account's default holds against any endpoint.
#[tokio::test]
async fn three_thousand_callers_at_three_times_the_account() {
    let _one = alone().await;
    used("3,000 callers", 1_000.0, &["--egress-ip-qps", "0"], &[], 3_000, |report| {
        assert!(report["worst_second"].as_u64().unwrap() <= 1_000, "{report}");
    })
    .await;
}

#[tokio::test]
async fn four_egress_addresses_share_the_account() {
    let _one = alone().await;
    let settings = [
        ("upstream.egress_addresses", "127.0.0.1, 127.0.0.2, 127.0.0.3, 127.0.0.4"),
        ("ceilings.account", "1000"),
        ("ceilings.egress_ip", "300"),
    ];
    used("four addresses", 1_000.0, &[], &settings, 3_000, |report| {
        assert!(report["worst_second"].as_u64().unwrap() <= 1_000, "{report}");
        let by_source = report["worst_second_by_source"].as_object().unwrap();
        assert_eq!(by_source.len(), 4);
        assert!(by_source.values().all(|worst| worst.as_u64().unwrap() <= 300), "{by_source:?}");
    })
    .await;
}

#[tokio::test]
async fn one_egress_address_is_never_blocked() {
    let _one = alone().await;
    let settings = [("ceilings.account", "1000"), ("ceilings.egress_ip", "300")];
    used("one address", 300.0, &[], &settings, 900, |report| {
        assert!(report["worst_second"].as_u64().unwrap() <= 300, "{report}");
    })
    .await;
}

/// kill -9 in the middle of the load and a new start at once, again and again.
#[tokio::test]
async fn a_crash_loop_is_never_blocked_either() {
    let _one = alone().await;
    let emulator = Emulator::start(&[]).await;
    let url = emulator.url();
    for _ in 0..4 {
        let settings = [
            ("upstream.endpoint", url.as_str()),
            ("ceilings.egress_ip", "300"),
            ("publish.wait", "10s"),
        ];
        let serve = Serve::start(&settings, &[]).await;
        let calls = async || emulator.report().await["calls"].as_u64().unwrap();
        let before = calls().await;
        tokio::select! {
            _ = callers::run(&serve.publish, 600, Instant::now() + LOAD) => {}
            () = until("it is in the middle", async || calls().await > before + 250) => {}
        }
        serve.signal(rustix::process::Signal::KILL);
        drop(serve);
    }
    let report = emulator.report().await;
    println!("crash loop: {} calls, worst {}", report["calls"], report["worst_second"]);
    assert!(report["calls"].as_u64().unwrap() > 800, "{report}");
    assert!(report["worst_second"].as_u64().unwrap() <= 300, "{report}");
    assert_eq!(report["blocked"], serde_json::json!([]));
}
