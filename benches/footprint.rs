//! What a sidecar costs a pod: how long until it is ready, and its memory, idle and at work. What the
//! requests of `deploy/` rest on.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use support::callers;
use support::http::{get, post};
use support::process::{Emulator, Serve};
use tokio::time::{Instant, sleep};

const STARTS: usize = 10;
const READY: Duration = Duration::from_millis(150);
const MIB: u64 = 1 << 20;
// Nearly all of it the pages of the program itself that a start touches; the heap has less than one.
const IDLE: u64 = 13 * MIB;
const AT_WORK: u64 = 30 * MIB;
const PER_SECOND: f64 = 1_000.0;
const LOAD: Duration = Duration::from_secs(20);
const WARM: Duration = Duration::from_secs(5);

/// Resident bytes now, and the most there were.
fn resident(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
    };
    (of("VmRSS:"), of("VmHWM:"))
}

fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: u64 = fields.split(' ').skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// With what it has in a pod: a spool on a disk and the default number of threads.
async fn serve(upstream: &str, spool: &std::path::Path) -> Serve {
    let path = spool.to_str().unwrap();
    let settings = [
        ("upstream.endpoint", upstream),
        ("spool.store", "disk"),
        ("spool.path", path),
        ("ceilings.account", "2000"),
        ("ceilings.egress_ip", "none"),
    ];
    Serve::start(&settings, &[]).await
}

/// Bytes that each of many messages leaves resident once it was stored and delivered: its receipt, and the
/// key that it may have. What `runtime.memory` counts with.
async fn left_by_each(serve: &Serve, name: &str, key: Option<&str>) -> f64 {
    const BATCHES: usize = 40;
    const LINES: usize = 1_000;
    let before = resident(serve.pid()).0;
    for batch in 0..BATCHES {
        let line = |n: usize| {
            let key = key.map(|key| format!(",\"key\":\"{key}-{batch}-{n}\"")).unwrap_or_default();
            format!("{{\"topic\":\"TopicA\",\"payload\":\"{name}\"{key}}}\n")
        };
        let lines: String = (0..LINES).map(line).collect();
        let headers = [("content-type", "application/x-ndjson"), ("prefer", "respond-async")];
        let answer = post(&serve.publish, "/publish", &headers, lines.as_bytes()).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    while get(&serve.telemetry, "/status.json").await.json()["kept"]["queued"] != 0 {
        sleep(Duration::from_millis(100)).await;
    }
    (resident(serve.pid()).0.saturating_sub(before)) as f64 / (BATCHES * LINES) as f64
}

#[tokio::main]
async fn main() {
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    let mut starts = Vec::new();
    let mut idle = 0;
    for _ in 0..STARTS {
        let spool = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let serve = serve("http://127.0.0.1:1", spool.path()).await;
        while get(&serve.telemetry, "/readyz").await.status != 200 {
            sleep(Duration::from_millis(1)).await;
        }
        starts.push(start.elapsed());
        sleep(Duration::from_secs(1)).await;
        idle = idle.max(resident(serve.pid()).0);
    }
    starts.sort();
    println!(
        "ready without an upstream after {:?} (median of {STARTS}; the longest {:?})",
        starts[STARTS / 2],
        starts[STARTS - 1]
    );
    println!("resident, idle: {:.1} MiB", mib(idle));

    let emulator = Emulator::start(&["--account-qps", "0", "--egress-ip-qps", "0"]).await;
    let spool = tempfile::tempdir().unwrap();
    let serve = serve(&emulator.url(), spool.path()).await;
    // After a start it sends nothing for as long as a call of a process before it may be on its way, and a
    // twentieth until it has had answers for two seconds: all callers' connections would be open at once.
    let first = post(&serve.publish, "/publish/TopicA", &[("prefer", "wait=60")], b"first").await;
    assert_eq!(first.status, 200, "{}", serve.log());
    let warm = callers::arrive(&serve.publish, PER_SECOND / 50.0, Instant::now() + WARM, 6).await;
    assert!(warm.iter().all(|asked| asked.status == 200), "{}", serve.log());
    let before = cpu(serve.pid());
    let answers = callers::arrive(&serve.publish, PER_SECOND, Instant::now() + LOAD, 7).await;
    assert!(answers.iter().all(|asked| asked.status == 200), "{}", serve.log());
    let used = cpu(serve.pid()).saturating_sub(before);
    let (now, most) = resident(serve.pid());
    println!(
        "{:.0} messages/s: resident {:.1} MiB, {:.1} at most; {:.1} % of a core",
        answers.len() as f64 / LOAD.as_secs_f64(),
        mib(now),
        mib(most),
        100.0 * used.as_secs_f64() / LOAD.as_secs_f64()
    );
    // What a burst needs for itself stays with the allocator.
    left_by_each(&serve, "burst", Some("burst")).await;
    let stored = left_by_each(&serve, "stored", None).await;
    let keyed = left_by_each(&serve, "keyed", Some("key")).await;
    println!("each delivered message leaves {stored:.0} bytes, with a key {keyed:.0}");
    assert!(starts[STARTS / 2] <= READY, "it takes longer than {READY:?} to be ready");
    assert!(idle <= IDLE, "idle, it takes more than {} MiB", IDLE / MIB);
    assert!(most <= AT_WORK, "at work, it takes more than {} MiB", AT_WORK / MIB);
}
