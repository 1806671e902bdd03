//! A neighbour's drill: in a real memory cgroup of 64 MiB, everything that the pod's other containers can do
//! at once, for ten minutes, while one caller publishes 200 messages a second. Needs root and a writable
//! cgroup hierarchy (version 1 or 2):
//!
//! `cargo test --release --test soak neighbours -- --nocapture`
//!
//! `TOLLGATE_DRILL=60` makes it so many seconds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::support::callers::{Asked, arrive};
use crate::support::http::{get, post, series};
use crate::support::process::{Emulator, Serve};
use crate::support::until;

const LIMIT: u64 = 64 << 20;
const GOOD: f64 = 200.0;
const WARM: Duration = Duration::from_secs(5);
const CALM: Duration = Duration::from_mins(1);

/// A memory cgroup, removed when dropped.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new() -> Self {
        let name = format!("tollgate-drill-{}", std::process::id());
        let (root, file) = if Path::new("/sys/fs/cgroup/memory").is_dir() {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            // It fails where the controller is there already.
            drop(std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory"));
            ("/sys/fs/cgroup", "memory.max")
        };
        let folder = Path::new(root).join(name);
        std::fs::create_dir(&folder).expect("the drill needs root and a writable memory cgroup");
        std::fs::write(folder.join(file), LIMIT.to_string()).unwrap();
        Self(folder)
    }

    /// The most bytes that were in use, and how often the kernel has killed.
    fn usage(&self) -> (u64, String) {
        let read = |name: &str| std::fs::read_to_string(self.0.join(name)).ok();
        let peak = read("memory.max_usage_in_bytes").or_else(|| read("memory.peak"));
        let kills = read("memory.oom_control").or_else(|| read("memory.events")).unwrap();
        let kills = kills.lines().filter(|line| line.starts_with("oom_kill ")).collect();
        (peak.map_or(0, |bytes| bytes.trim().parse().unwrap()), kills)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        drop(std::fs::remove_dir(&self.0));
    }
}

/// What the neighbours were answered.
#[derive(Default)]
struct Tally {
    accepted: AtomicU64,
    refused: AtomicU64,
    reset: AtomicU64,
}

impl Tally {
    fn note(&self, status: Option<u16>) {
        match status {
            Some(200 | 202) => &self.accepted,
            Some(_) => &self.refused,
            None => &self.reset,
        }
        .fetch_add(1, Relaxed);
    }
}

/// A connection that sends nothing, and is opened again a second after it was closed.
async fn silent(address: String) {
    loop {
        if let Ok(mut stream) = TcpStream::connect(&address).await {
            let mut end = [0; 64];
            while stream.read(&mut end).await.is_ok_and(|bytes| bytes > 0) {}
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// The status; `None`: the connection ended without an answer.
async fn ask(address: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Option<u16> {
    let (address, path, body) = (address.to_owned(), path.to_owned(), body.to_vec());
    let headers: Vec<_> = headers.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    let asked = tokio::spawn(async move {
        let headers: Vec<_> = headers.iter().map(|(a, b)| (&**a, &**b)).collect();
        post(&address, &path, &headers, &body).await.status
    });
    asked.await.ok()
}

/// Large bodies: 50 a second, and a hundred more at once every 20 s.
async fn large(address: String, tally: Arc<Tally>) {
    let body = vec![0x5a; 48 << 10];
    let mut sending = JoinSet::new();
    for number in 0_u64.. {
        let burst = if number % 1_000 == 500 { 100 } else { 1 };
        for _ in 0..burst {
            let (address, body, tally) = (address.clone(), body.clone(), Arc::clone(&tally));
            sending.spawn(async move {
                tally.note(ask(&address, "/publish/Large", &[], &body).await);
            });
        }
        while sending.try_join_next().is_some() {}
        sleep(Duration::from_millis(20)).await;
    }
}

/// New topics, keys that are never used again, and topics and requests that are none: 40 a second.
async fn hostile(address: String, tally: Arc<Tally>) {
    for number in 0_u64.. {
        let topic = format!("/publish/Hostile{number}");
        let key = format!("\"{number}-key\"");
        tally.note(ask(&address, &topic, &[("idempotency-key", &key)], b"x").await);
        tally.note(ask(&address, "/publish/%F0%9F%92%A9/\u{7f}", &[], b"x").await);
        tally.note(ask(&address, "/publish/a b?c", &[], &vec![0; 70_000]).await);
        tally.note(
            ask(&address, "/publish", &[("content-type", "application/x-ndjson")], b"{\n[\n").await,
        );
        sleep(Duration::from_millis(90)).await;
    }
}

/// The addresses of a pod and of its node, on the loopback interface while this lives: the kubelet is another
/// machine than the pod's containers, which share half of the slots of telemetry.
struct Addresses;

const POD: &str = "198.18.0.1";
const NODE: &str = "198.18.0.2";

impl Addresses {
    fn new() -> Self {
        Self::change("replace");
        Self
    }

    fn change(how: &str) {
        for address in [POD, NODE] {
            let args = ["address", how, &format!("{address}/32"), "dev", "lo"];
            assert!(std::process::Command::new("ip").args(args).status().unwrap().success());
        }
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        Self::change("delete");
    }
}

/// The status of an answer to the node.
async fn probe(port: &str, path: &str) -> Option<String> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{NODE}:0").parse().unwrap()).unwrap();
    let mut stream = socket.connect(format!("{POD}:{port}").parse().unwrap()).await.ok()?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: {POD}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.split(' ').nth(1).map(str::to_owned)
}

/// Asks as the kubelet does, each second for at most a second; returns how often, and what failed.
async fn probes(telemetry: String, stop: Arc<AtomicBool>) -> (u64, Vec<String>) {
    let port = telemetry.rsplit(':').next().unwrap();
    let (mut asked, mut missed) = (0, Vec::new());
    while !stop.load(Relaxed) {
        for path in ["/livez", "/readyz"] {
            asked += 1;
            let begun = Instant::now();
            match timeout(Duration::from_secs(1), probe(port, path)).await {
                Ok(Some(status)) if status == "200" => {}
                other => missed.push(format!("{path} {other:?} after {:?}", begun.elapsed())),
            }
        }
        sleep(Duration::from_secs(1)).await;
    }
    (asked, missed)
}

fn p99(asked: &[Asked]) -> Duration {
    let mut took: Vec<_> = asked.iter().map(|asked| asked.took).collect();
    took.sort();
    took[took.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_caller_among_bad_neighbours() {
    let seconds = std::env::var("TOLLGATE_DRILL").map_or(600, |text| text.parse().unwrap());
    let (group, folder) = (MemoryGroup::new(), tempfile::tempdir().unwrap());
    let path = folder.path().display().to_string();
    // No ceiling of an address holds against this host by itself.
    let emulator = Emulator::start(&["--egress-ip-qps", "0"]).await;
    let before = format!("echo $$ > {}/cgroup.procs", group.0.display());
    let upstream = emulator.url();
    let settings = [
        ("upstream.endpoint", &*upstream),
        ("upstream.connect_timeout", "1s"),
        ("upstream.call_timeout", "3s"),
        ("spool.store", "disk"),
        ("spool.path", &*path),
        ("listen.telemetry", "0.0.0.0:0"),
    ];
    let _addresses = Addresses::new();
    let serve = Serve::start_under(&before, &settings).await;
    // After a start it sends nothing for as long as a call of a process before it may be on its way.
    let first = post(&serve.publish, "/publish/TopicA", &[("prefer", "wait=60")], b"first").await;
    assert_eq!(first.status, 200, "{}", first.text());
    // And a twentieth of the ceiling until it has had answers for two seconds.
    let warm = arrive(&serve.publish, GOOD / 10.0, Instant::now() + WARM, 3).await;
    assert!(warm.iter().all(|asked| asked.status == 200), "{warm:?}");

    let calm = arrive(&serve.publish, GOOD, Instant::now() + CALM, 1).await;
    let odd: Vec<_> = calm.iter().filter(|asked| asked.status != 200).collect();
    assert!(odd.is_empty(), "calm: {odd:?}");

    serve.stop_reading();
    let tally = Arc::new(Tally::default());
    let mut neighbours = JoinSet::new();
    for _ in 0..200 {
        neighbours.spawn(silent(serve.telemetry.clone()));
    }
    for _ in 0..1_000 {
        neighbours.spawn(silent(serve.publish.clone()));
    }
    neighbours.spawn(large(serve.publish.clone(), Arc::clone(&tally)));
    neighbours.spawn(hostile(serve.publish.clone(), Arc::clone(&tally)));
    let stop = Arc::new(AtomicBool::new(false));
    let probed = tokio::spawn(probes(serve.telemetry.clone(), Arc::clone(&stop)));

    let end = Instant::now() + Duration::from_secs(seconds);
    let noisy = arrive(&serve.publish, GOOD, end, 2).await;
    neighbours.shutdown().await;
    stop.store(true, Relaxed);
    let (asked, missed) = probed.await.unwrap();

    // What was accepted is delivered.
    let metric = async |name: &str| series(&get(&serve.telemetry, "/metrics").await.text(), name);
    until("an empty queue", async || {
        metric("tollgate_spool_messages{state=\"queued\"}").await < 1.0
    })
    .await;
    let dead = metric("tollgate_spool_messages{state=\"dead\"}").await;
    let dropped = metric("tollgate_log_lines_dropped_total").await;
    let served = noisy.iter().filter(|asked| [200, 202].contains(&asked.status)).count();
    let mut others: Vec<_> = noisy.iter().map(|asked| asked.status).collect();
    others.retain(|status| ![200, 202].contains(status));
    others.truncate(20);
    let accepted =
        (1 + warm.len() + calm.len()) as u64 + served as u64 + tally.accepted.load(Relaxed);
    let delivered = emulator.report().await["accepted"].as_u64().unwrap();
    let (peak, kills) = group.usage();
    println!(
        "calm p99 {:?}, noisy p99 {:?}; good {served} of {} (others {others:?}); neighbours: {} accepted, {} refused, {} cut; \
         probes {asked}, missed {missed:?}; log lines dropped {dropped}; memory {} MiB of {}, {kills}; \
         accepted {accepted}, delivered {delivered}, dead {dead}",
        p99(&calm),
        p99(&noisy),
        noisy.len(),
        tally.accepted.load(Relaxed),
        tally.refused.load(Relaxed),
        tally.reset.load(Relaxed),
        peak >> 20,
        LIMIT >> 20,
    );
    // A connection that was silent for long may have given way to a silent one just when its request came.
    let cut = noisy.iter().filter(|asked| asked.status == 0).count();
    assert_eq!(served + cut, noisy.len(), "no message of the good caller is refused");
    assert!(cut * 10_000 <= noisy.len(), "{cut} requests of the good caller lost their connection");
    assert!(missed.is_empty(), "{missed:?}");
    assert_eq!(kills, "oom_kill 0");
    // Calls that a neighbour's caller did not wait for may be more than it knows of.
    assert!(delivered >= accepted && dead < 1.0, "{delivered} of {accepted}, {dead} dead");
    assert!(p99(&noisy) <= 2 * p99(&calm), "{:?} after {:?}", p99(&noisy), p99(&calm));
}
