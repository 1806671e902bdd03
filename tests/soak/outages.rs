//! Minutes of real time, with the real binary and the emulator's own report: `make soak`. The same
//! is shown in paused time, with every build, in `tests/delivery/outages.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::http::{get, post};
use crate::support::process::{Emulator, Serve};
use serde_json::Value;
use tokio::time::{Instant, interval, sleep, sleep_until};

async fn serve(emulator: &Emulator, folder: &std::path::Path, account: &str) -> Serve {
    let (url, path) = (emulator.url(), folder.display().to_string());
    let settings = [
        ("upstream.endpoint", &*url),
        ("spool.store", "disk"),
        ("spool.path", &*path),
        ("ceilings.account", account),
        ("publish.max_connections", "60000"),
    ];
    Serve::start(&settings, &[]).await
}

async fn queued(serve: &Serve) -> u64 {
    let status = get(&serve.telemetry, "/status.json").await.json();
    status["kept"]["queued"].as_u64().unwrap()
}

async fn empty(serve: &Serve, within: Duration) -> Duration {
    let start = Instant::now();
    while queued(serve).await > 0 {
        assert!(start.elapsed() < within, "{} are left", queued(serve).await);
        sleep(Duration::from_millis(50)).await;
    }
    start.elapsed()
}

/// How often each payload was taken.
async fn taken(emulator: &Emulator) -> BTreeMap<String, usize> {
    let mut taken = BTreeMap::new();
    for line in get(&emulator.address, "/_emulator/messages").await.text().lines() {
        let message: Value = serde_json::from_str(line).unwrap();
        *taken.entry(message["payload"].as_str().unwrap().to_owned()).or_insert(0) += 1;
    }
    taken
}

fn once_each(taken: &BTreeMap<String, usize>, wanted: usize) {
    assert_eq!(taken.len(), wanted, "none is lost");
    assert!(taken.values().all(|times| *times == 1), "none is delivered twice");
}

#[tokio::test]
async fn an_outage_of_two_minutes() {
    let folder = tempfile::tempdir().unwrap();
    let emulator = Emulator::start(&["--egress-ip-qps", "0"]).await;
    let serve = serve(&emulator, folder.path(), "1000").await;
    let fault = br#"[{"code":"SendMessageFailed","for":"120s"}]"#;
    let end = Instant::now() + Duration::from_mins(2);
    post(&emulator.address, "/_emulator/faults", &[], fault).await;
    for n in 0..5_000 {
        let prefer = [("prefer", "respond-async")];
        let answer =
            post(&serve.publish, "/publish/TopicA", &prefer, format!("{n}").as_bytes()).await;
        assert_eq!(answer.status, 202);
    }
    sleep_until(end).await;
    let during = emulator.report().await["calls"].as_u64().unwrap();
    let took = empty(&serve, Duration::from_secs(10)).await;
    let report = emulator.report().await;
    println!("{during} calls in the outage, all delivered {took:?} after it, {report:#}");
    assert!(during <= 150, "{during}");
    once_each(&taken(&emulator).await, 5_000);
}

/// Publishes at this rate and says how many were accepted.
async fn demand(serve: &Serve, rate: u32, seconds: u32, prefer: &'static str) -> usize {
    let accepted = Arc::new(AtomicUsize::new(0));
    let mut ticks = interval(Duration::from_secs(1) / rate);
    let mut tasks = Vec::new();
    for n in 0..rate * seconds {
        ticks.tick().await;
        let (address, accepted) = (serve.publish.clone(), Arc::clone(&accepted));
        tasks.push(tokio::spawn(async move {
            let body = format!("{n}");
            let headers = [("prefer", prefer)];
            let answer = post(&address, "/publish/TopicA", &headers, body.as_bytes()).await;
            accepted.fetch_add(usize::from(answer.status < 300), Ordering::Relaxed);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    accepted.load(Ordering::Relaxed)
}

#[tokio::test]
async fn a_provider_that_takes_less_than_we_believe() {
    for over in ["SystemOverFlow", "Throttling.User"] {
        let folder = tempfile::tempdir().unwrap();
        let args = ["--egress-ip-qps", "0", "--account-qps", "400", "--over", over];
        let emulator = Emulator::start(&args).await;
        let serve = serve(&emulator, folder.path(), "1000").await;
        let start = Instant::now();
        let publishing = demand(&serve, 800, 60, "wait=5");
        let watching = async {
            sleep_until(start + Duration::from_secs(15)).await;
            let early = emulator.report().await;
            sleep_until(start + Duration::from_mins(1)).await;
            (early, emulator.report().await)
        };
        let (accepted, (early, late)) = tokio::join!(publishing, watching);
        let grown = |name: &str| late[name].as_f64().unwrap() - early[name].as_f64().unwrap();
        let pushed_back = 1.0 - grown("accepted") / grown("calls");
        let goodput = grown("accepted") / 45.0 / 400.0;
        println!("{over}: pushed back {pushed_back:.4}, goodput {goodput:.3}, accepted {accepted}");
        assert!(pushed_back <= 0.05 && goodput >= 0.85);
        empty(&serve, Duration::from_mins(3)).await;
        once_each(&taken(&emulator).await, accepted);
    }
}

#[tokio::test]
async fn one_call_in_ten_overflows() {
    let folder = tempfile::tempdir().unwrap();
    let emulator = Emulator::start(&["--egress-ip-qps", "0"]).await;
    let serve = serve(&emulator, folder.path(), "1000").await;
    let fault = br#"[{"code":"SystemOverFlow","probability":0.1}]"#;
    post(&emulator.address, "/_emulator/faults", &[], fault).await;
    let accepted = demand(&serve, 500, 60, "respond-async, wait=5").await;
    assert_eq!(accepted, 30_000);
    let took = empty(&serve, Duration::from_mins(5)).await;
    println!("all delivered {took:?} after the demand");
    once_each(&taken(&emulator).await, 30_000);
}
