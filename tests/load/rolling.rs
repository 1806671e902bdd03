//! A workload with a native sidecar is rolled: a new pod is ready before the old one ends, the app ends
//! first and the sidecar after it. Nothing is lost, and no caller hears of it.
#![allow(clippy::print_stdout, reason = "figures to quote")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::support::callers::{self, Asked};
use crate::support::http::{get, post, series};
use crate::support::process::{Emulator, Serve};
use crate::support::{beside_others, until};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

const ROLLS: u64 = 10;
/// Of the app in each pod.
const PER_SECOND: f64 = 300.0;
/// How long a pod has the app; two pods at a time.
const LIFE: Duration = Duration::from_secs(2);

struct Pod {
    sidecar: Serve,
    app: std::thread::JoinHandle<Vec<Asked>>,
}

impl Pod {
    /// The app starts when the sidecar is ready, as Kubernetes has it, and stops at `end` as an app
    /// does on SIGTERM: no new work, and what is begun is finished.
    async fn start(upstream: &str, volume: &Path, seed: u64, end: Instant) -> Self {
        let path = volume.to_str().unwrap();
        let settings = [
            ("upstream.endpoint", upstream),
            ("spool.store", "disk"),
            ("spool.path", path),
            ("drain.grace", "2s"),
        ];
        let sidecar = Serve::start(&settings, &[]).await;
        until("it is ready", async || get(&sidecar.telemetry, "/readyz").await.status == 200).await;
        let address = sidecar.publish.clone();
        let app = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(callers::arrive(&address, PER_SECOND, end, seed))
        });
        Self { sidecar, app }
    }

    /// SIGTERM to the app, and when it has ended to the sidecar.
    async fn end(self) -> Vec<Asked> {
        let answers = tokio::task::spawn_blocking(move || self.app.join().unwrap()).await.unwrap();
        self.sidecar.signal(Signal::TERM);
        let (status, log) = self.sidecar.ended().await;
        assert_eq!(status.code(), Some(0), "{log}");
        answers
    }
}

#[tokio::test]
async fn a_rolling_restart() {
    let _alone = beside_others().await;
    let emulator = Emulator::start(&["--account-qps", "0", "--egress-ip-qps", "0"]).await;
    // Some calls fail, so that there is something to keep when a pod ends.
    let faults = br#"[{"code":"SendMessageFailed","probability":0.05}]"#;
    let set = post(&emulator.address, "/_emulator/faults", &[], faults).await;
    assert_eq!(set.status, 200, "{}", set.text());
    // A StatefulSet's volumes: the next but one pod has the volume of this one.
    let volumes = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (url, start) = (emulator.url(), Instant::now());
    let mut answers = Vec::new();
    let mut old: Option<Pod> = None;
    for roll in 0..ROLLS {
        let volume = volumes[usize::try_from(roll % 2).unwrap()].path();
        let now = Instant::now();
        let pod = Pod::start(&url, volume, roll, now + 2 * LIFE).await;
        sleep_until(now + LIFE).await;
        if let Some(old) = old.replace(pod) {
            answers.extend(old.end().await);
        }
    }
    answers.extend(old.unwrap().end().await);
    println!("{} requests in {:?}", answers.len(), start.elapsed());

    let mut told = BTreeMap::<u16, usize>::new();
    for asked in &answers {
        *told.entry(asked.status).or_default() += 1;
    }
    println!("told {told:?}");
    assert!(told.keys().all(|status| matches!(status, 200 | 202)), "{told:?}");
    assert!(answers.len() > 1_000);

    // What was left is delivered by whoever has the volume next.
    post(&emulator.address, "/_emulator/faults", &[], b"[]").await;
    let mut last = Vec::new();
    for volume in &volumes {
        last.push(Pod::start(&url, volume.path(), 0, Instant::now()).await);
    }
    until("all is delivered", async || {
        for pod in &last {
            let metrics = get(&pod.sidecar.telemetry, "/metrics").await.text();
            if series(&metrics, "tollgate_spool_messages{state=\"queued\"}") > 0.0 {
                return false;
            }
        }
        true
    })
    .await;
    let mut taken = BTreeMap::<String, usize>::new();
    for line in get(&emulator.address, "/_emulator/messages").await.text().lines() {
        let message: Value = serde_json::from_str(line).unwrap();
        *taken.entry(message["payload"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(taken.len(), answers.len(), "none is lost");
    assert!(taken.values().all(|times| *times == 1), "none is delivered twice");
}
